"""The header of PLY files: declarations of elements and properties, parsed strictly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from relief3d.core.errors import InputError

PlyFormat = Literal["binary_little_endian", "binary_big_endian", "ascii"]
MAX_HEADER_BYTES = 64 * 1024
MAX_PROPERTIES = 1024

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip


@dataclass(frozen=True)
class PlyProperty:
    """One property; ``count`` is the dtype of the length of a list property, None for a scalar."""

    name: str
    dtype: str
    count: str | None = None


@dataclass(frozen=True)
class PlyElement:
    """One element declaration of the header."""

    name: str
    size: int
    properties: tuple[PlyProperty, ...]

    @property
    def has_lists(self) -> bool:
        """True when a row has no fixed length."""
        return any(p.count is not None for p in self.properties)


@dataclass(frozen=True)
class PlyHeader:
    """Parsed header; ``offset`` is where the data begins."""

    format: PlyFormat
    elements: tuple[PlyElement, ...]
    offset: int


@dataclass(frozen=True)
class PlyLists:
    """A list property of all rows: ``values`` of row i are ``values[starts[i]:starts[i + 1]]``."""

    starts: NDArray[np.int64]
    values: NDArray[np.generic]


PlyColumns = dict[str, "NDArray[np.generic] | PlyLists"]


def parse_ply_header(data: bytes, path: Path) -> PlyHeader:
    """Parse the header at the start of ``data``.

    Raises:
        InputError: naming the file, when it is not a PLY header within :data:`MAX_HEADER_BYTES`.
    """
    if data[:3] != b"ply" or data[3:4] not in (b"\n", b"\r"):
        raise InputError("not a PLY file (it does not start with 'ply')", path=path)
    end = data.find(b"end_header")
    newline = -1 if end < 0 else data.find(b"\n", end)
    if newline < 0:
        raise InputError("the PLY header does not end", path=path, remedy="the file may be cut short")
    try:
        lines = data[:end].decode("ascii").splitlines()[1:]
    except UnicodeDecodeError:
        lines = data[:end].decode("latin-1").splitlines()[1:]
    format_name, elements = "", []
    for line in lines:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and len(words) == 3:
            format_name = words[1]
        elif words[0] == "element" and len(words) == 3 and words[2].isdecimal() and len(words[2]) < 16:
            elements.append(PlyElement(words[1], int(words[2]), ()))
        elif words[0] == "property" and elements:
            last = elements[-1]
            elements[-1] = PlyElement(last.name, last.size, (*last.properties, _property(words, path)))
        else:
            raise InputError(f"the PLY header has a line that is not understood: '{line[:80]}'", path=path)
    if format_name not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise InputError(f"the PLY format '{format_name[:40]}' is not known", path=path)
    for element in elements:
        names = [p.name for p in element.properties]
        if len(set(names)) != len(names) or len(names) > MAX_PROPERTIES or not names:
            raise InputError(f"the PLY element '{element.name}' has repeated or no properties", path=path)
    if len({e.name for e in elements}) != len(elements):
        raise InputError("the PLY header declares an element twice", path=path)
    return PlyHeader(format_name, tuple(elements), newline + 1)  # type: ignore[arg-type]


def _property(words: list[str], path: Path) -> PlyProperty:
    if len(words) == 3 and words[1] in _TYPES:
        return PlyProperty(words[2], _TYPES[words[1]])
    if len(words) == 5 and words[1] == "list" and words[3] in _TYPES and _TYPES.get(words[2], "f")[0] in "iu":
        return PlyProperty(words[4], _TYPES[words[3]], _TYPES[words[2]])
    raise InputError(f"the PLY header has an unknown property: '{' '.join(words)[:80]}'", path=path)
