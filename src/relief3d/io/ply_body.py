"""The data part of PLY files: columns out of ASCII and binary bodies, checked against the header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relief3d.core.errors import InputError
from relief3d.io.ply_header import PlyColumns, PlyElement, PlyHeader, PlyLists

MAX_WORD = 64


def read_binary_body(path: Path, header: PlyHeader, data: bytes) -> dict[str, PlyColumns]:
    """Columns of a binary PLY.

    Raises:
        InputError: when the declared counts need more bytes than the file has.
    """
    order = ">" if header.format == "binary_big_endian" else "<"
    offset = header.offset
    out: dict[str, PlyColumns] = {}
    for element in header.elements:
        least = element.size * sum(np.dtype(p.count or p.dtype).itemsize for p in element.properties)
        if offset + least > len(data):
            raise _short(path, element, len(data))
        if not element.has_lists:
            dtype = np.dtype([(p.name, order + p.dtype) for p in element.properties])
            rows = np.frombuffer(data, dtype, count=element.size, offset=offset)
            out[element.name] = {p.name: _native(rows[p.name]) for p in element.properties}
            offset += rows.nbytes
        else:
            out[element.name], offset = _binary_lists(path, element, order, data, offset)
    return out


def _binary_lists(
    path: Path, element: PlyElement, order: str, data: bytes, offset: int
) -> tuple[PlyColumns, int]:
    fast = _uniform_lists(element, order, data, offset)
    if fast is not None:
        return fast
    scalars: dict[str, list[NDArray[np.generic]]] = {p.name: [] for p in element.properties}
    lengths: dict[str, list[int]] = {p.name: [] for p in element.properties if p.count is not None}
    kinds = [
        (p.name, np.dtype(order + p.dtype), np.dtype(order + p.count) if p.count else None)
        for p in element.properties
    ]
    for _ in range(element.size):
        for name, dtype, count_dtype in kinds:
            n = 1
            if count_dtype is not None:
                if offset + count_dtype.itemsize > len(data):
                    raise _short(path, element, len(data))
                n = int(np.frombuffer(data, count_dtype, 1, offset)[0])
                offset += count_dtype.itemsize
                lengths[name].append(n)
            if n < 0 or offset + n * dtype.itemsize > len(data):
                raise _short(path, element, len(data))
            scalars[name].append(np.frombuffer(data, dtype, n, offset))
            offset += n * dtype.itemsize
    columns: PlyColumns = {}
    for name, dtype, count_dtype in kinds:
        joined = np.concatenate(scalars[name]) if scalars[name] else np.zeros(0, dtype)
        flat = _native(joined)
        columns[name] = (
            flat if count_dtype is None else PlyLists(_starts(np.array(lengths[name], np.int64)), flat)
        )
    return columns, offset


def _uniform_lists(
    element: PlyElement, order: str, data: bytes, offset: int
) -> tuple[PlyColumns, int] | None:
    """All rows at once when every list has the length of the first row's (triangle meshes); else None."""
    if element.size == 0:
        return None
    lengths: list[int] = []
    position = offset
    for p in element.properties:
        if p.count is None:
            position += np.dtype(p.dtype).itemsize
            continue
        if position + np.dtype(p.count).itemsize > len(data):
            return None
        n = int(np.frombuffer(data, order + p.count, 1, position)[0])
        if n < 0 or n * np.dtype(p.dtype).itemsize > len(data):
            return None
        lengths.append(n)
        position += np.dtype(p.count).itemsize + n * np.dtype(p.dtype).itemsize
    fields: list[tuple[str, str] | tuple[str, str, tuple[int, ...]]] = []
    remaining = iter(lengths)
    for p in element.properties:
        if p.count is None:
            fields.append((p.name, order + p.dtype))
        else:
            fields += [("#" + p.name, order + p.count), (p.name, order + p.dtype, (next(remaining),))]
    dtype = np.dtype(fields)
    if offset + dtype.itemsize * element.size > len(data):
        return None
    rows = np.frombuffer(data, dtype, element.size, offset)
    columns: PlyColumns = {}
    for p in element.properties:
        if p.count is None:
            columns[p.name] = _native(rows[p.name])
            continue
        counts = rows["#" + p.name]
        if (counts != counts[0]).any():
            return None
        columns[p.name] = PlyLists(_starts(counts.astype(np.int64)), _native(rows[p.name].reshape(-1)))
    return columns, offset + rows.nbytes


def read_ascii_body(path: Path, header: PlyHeader, data: bytes) -> dict[str, PlyColumns]:
    """Columns of an ASCII PLY.

    Raises:
        InputError: when rows are missing, too short, or not numbers.
    """
    lines = [line for line in data[header.offset :].splitlines() if line.strip()]
    out: dict[str, PlyColumns] = {}
    first = 0
    for element in header.elements:
        if first + element.size > len(lines):
            raise _short(path, element, len(data))
        block = lines[first : first + element.size]
        first += element.size
        try:
            if element.has_lists:
                out[element.name] = _ascii_lists(element, block)
            else:
                out[element.name] = _ascii_scalars(element, block)
        except (ValueError, IndexError, OverflowError) as exc:
            raise InputError(
                f"the PLY element '{element.name}' has a row that does not fit the header", path=path
            ) from exc
    return out


def _ascii_scalars(element: PlyElement, block: list[bytes]) -> PlyColumns:
    width = len(element.properties)
    words = b" ".join(block).split()
    if len(words) != width * len(block):
        raise ValueError("wrong number of values")
    if words and max(map(len, words)) > MAX_WORD:
        raise ValueError("a number has too many characters")
    table = np.array(words).astype(np.float64).reshape(len(block), width)
    return {p.name: _cast(table[:, i], p.dtype) for i, p in enumerate(element.properties)}


def _ascii_lists(element: PlyElement, block: list[bytes]) -> PlyColumns:
    values: dict[str, list[float]] = {p.name: [] for p in element.properties}
    lengths: dict[str, list[int]] = {p.name: [] for p in element.properties}
    for line in block:
        words = line.split()
        at = 0
        for p in element.properties:
            n = 1
            if p.count is not None:
                n = int(words[at])
                at += 1
                if n < 0:
                    raise ValueError("negative list length")
                lengths[p.name].append(n)
            row = words[at : at + n]
            if len(row) != n:
                raise ValueError("row too short")
            values[p.name].extend(float(word) for word in row)
            at += n
        if at != len(words):
            raise ValueError("row too long")
    columns: PlyColumns = {}
    for p in element.properties:
        flat = _cast(np.array(values[p.name], np.float64), p.dtype)
        columns[p.name] = (
            flat if p.count is None else PlyLists(_starts(np.array(lengths[p.name], np.int64)), flat)
        )
    return columns


def _cast(values: NDArray[np.float64], dtype: str) -> NDArray[np.generic]:
    target = np.dtype(dtype)
    if target.kind in "iu":
        info = np.iinfo(target)
        if not (np.isfinite(values).all() and (values >= info.min).all() and (values <= info.max).all()):
            raise ValueError("integer out of range")
    with np.errstate(over="ignore"):
        return values.astype(target)


def _native(column: NDArray[np.generic]) -> NDArray[np.generic]:
    return np.ascontiguousarray(column).astype(column.dtype.newbyteorder("="))


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _short(path: Path, element: PlyElement, size: int) -> InputError:
    return InputError(
        f"the PLY header declares {element.size} rows of '{element.name}', more than its {size} bytes hold",
        path=path,
        remedy="the file may be cut short",
    )
