"""Strict JSON in and NaN-safe JSON out, with errors that name the file and the place in it.

Readers of ``cameras.json`` and ``transforms.json`` go through :class:`Record`, so that a missing or
wrongly typed field anywhere becomes one :class:`~relief3d.core.errors.InputError` sentence.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.io.atomic import write_text
from relief3d.io.whole_file import read_utf8

MAX_JSON_BYTES = 256 * 1024**2


def read_json_object(path: str | Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Standard JSON only: NaN and Infinity are refused.

    Args:
        path: the file; UTF-8, a byte-order mark is tolerated.
        max_bytes: larger files are refused before they are read.

    Raises:
        InputError: when the file is missing, too large, not UTF-8, not JSON or not an object.
    """
    return parse_json_object(read_utf8(path, max_bytes=max_bytes), path)


def parse_json_object(text: str, path: str | Path) -> dict[str, Any]:
    """An object from JSON text; ``path`` is for messages.

    Raises:
        InputError: not standard JSON, or not an object.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"the number {name} is not allowed in JSON")

    try:
        value = json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as exc:
        raise InputError(
            f"not valid JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}", path=path
        ) from exc
    except ValueError as exc:
        raise InputError(f"not valid JSON: {exc}", path=path) from exc
    except RecursionError as exc:
        raise InputError("not valid JSON: nested too deeply", path=path) from exc
    if not isinstance(value, dict):
        raise InputError(f"the top level must be a JSON object, not {type(value).__name__}", path=path)
    return value


def write_json(path: str | Path, value: Any) -> Path:
    """Write JSON atomically; NaN and infinities become ``null``. Returns the path.

    Short lists of numbers (matrix rows) stay on one line, so that files diff well.
    """
    return write_text(path, _dump(to_jsonable(value), 0) + "\n")


def to_jsonable(value: Any) -> Any:
    """Turn tensors, arrays, dataclasses, paths and numbers into JSON types.

    Non-finite numbers become None, so that every JSON parser reads the result.

    Raises:
        TypeError: for a type that has no JSON form (a programming error, not bad input).
    """
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (np.generic, np.ndarray)):
        return to_jsonable(value.tolist())
    if isinstance(value, Tensor):
        return to_jsonable(value.detach().cpu().tolist())
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((to_jsonable(item) for item in value), key=str)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _dump(value: Any, depth: int) -> str:
    pad, closing = "  " * (depth + 1), "  " * depth
    if isinstance(value, dict) and value:
        items = [f"{pad}{json.dumps(key)}: {_dump(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{closing}}}"
    if isinstance(value, list) and value:
        if all(not isinstance(item, (dict, list)) for item in value):
            return "[" + ", ".join(json.dumps(item, allow_nan=False) for item in value) + "]"
        return "[\n" + ",\n".join(pad + _dump(item, depth + 1) for item in value) + f"\n{closing}]"
    return json.dumps(value, allow_nan=False)


@dataclass(frozen=True)
class Record:
    """A JSON object with checked access to its fields.

    Attributes:
        values: the object.
        path: the file it came from.
        where: the place in the file for error messages, for example ``"frame 3"``; empty at the top.
        fallback: looked up when a field is absent (shared intrinsics of transforms.json).
    """

    values: Mapping[str, Any]
    path: Path
    where: str = ""
    fallback: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def error(self, message: str, remedy: str | None = None) -> InputError:
        """An InputError that names the file and the place."""
        return InputError(
            f"{self.where}: {message}" if self.where else message, path=self.path, remedy=remedy
        )

    def get(self, key: str) -> Any:
        """The raw value, from the record or the fallback; None when absent or null."""
        value = self.values.get(key)
        return self.fallback.get(key) if value is None else value

    def number(self, key: str) -> float | None:
        """A finite number or None.

        Raises:
            InputError: for any other type or a number too large for a float.
        """
        value = self.get(key)
        return None if value is None else self._finite(value, f"'{key}'")

    def integer(self, key: str) -> int | None:
        """A whole number or None (``640`` and ``640.0`` are both accepted)."""
        value = self.number(key)
        if value is None:
            return None
        if value != int(value):
            raise self.error(f"'{key}' must be a whole number, not {value}")
        return int(value)

    def text(self, key: str) -> str | None:
        """A non-empty string or None."""
        value = self.get(key)
        if value is not None and (not isinstance(value, str) or not value or "\0" in value):
            raise self.error(f"'{key}' must be a non-empty text")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of non-empty strings; an absent field is an empty list."""
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(v, str) and v and "\0" not in v for v in value):
            raise self.error(f"'{key}' must be a list of non-empty texts")
        return value

    def objects(self, key: str) -> list[Mapping[str, Any]]:
        """A list of JSON objects.

        Raises:
            InputError: when absent or of another type.
        """
        value = self.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(f"'{key}' must be a list of objects")
        return value

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list of finite numbers or None."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(f"'{key}' must be a list of numbers")
        return tuple(self._finite(item, f"'{key}'") for item in value)

    def matrix(self, key: str, shapes: Sequence[tuple[int, int]]) -> Tensor | None:
        """A float64 matrix of one of the given shapes, or None.

        Raises:
            InputError: when rows, columns or numbers are wrong.
        """
        value = self.get(key)
        if value is None:
            return None
        wanted = " or ".join(f"{rows}x{cols}" for rows, cols in shapes)
        if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
            raise self.error(f"'{key}' must be a {wanted} matrix (list of rows)")
        if not any(len(value) == r and all(len(row) == c for row in value) for r, c in shapes):
            raise self.error(f"'{key}' must be a {wanted} matrix")
        rows = [[self._finite(item, f"'{key}'") for item in row] for row in value]
        return torch.tensor(rows, dtype=torch.float64)

    def _finite(self, value: Any, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(f"{name} must hold numbers, not {type(value).__name__}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(f"{name} must hold finite numbers")
        return number
