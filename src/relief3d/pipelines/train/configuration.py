"""Frozen dataclasses to YAML and back, exactly; with errors that name the option.

Read with a loader that makes plain values only and knows neither aliases nor doubled keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

from relief3d.core.errors import InputError

MAX_CHARACTERS = 1 << 20


def to_plain(value: Any) -> Any:
    """A configuration as dictionaries, lists, numbers, texts, booleans and None.

    Raises:
        TypeError: a value of a type that has no such form.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return value.as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(to_plain(key)): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((to_plain(item) for item in value), key=str)
    raise TypeError(f"{type(value).__name__} does not go into a configuration file")


def from_plain(kind: Any, data: Any, where: str = "", *, path: Path | None = None) -> Any:
    """The inverse of :func:`to_plain` for a type; missing keys take their defaults.

    Args:
        kind: a dataclass or any type of its fields.
        data: plain values.
        where: dotted name of the option, for errors.
        path: file they come from, for errors.

    Raises:
        InputError: an unknown key (the nearest known one is named) or a value of another type; names the option.
    """
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, data, where, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(arguments, data, where, path)
    if origin is Literal:
        if not any(type(data) is type(a) and data == a for a in arguments):
            raise _wrong(where, f"one of {', '.join(map(str, arguments))}", data, path)
        return data
    if origin in (tuple, list, set, frozenset):
        return _sequence(kind, origin, arguments, data, where, path)
    if origin is dict:
        if not isinstance(data, dict):
            raise _wrong(where, "a mapping", data, path)
        return {
            from_plain(arguments[0], key, where, path=path): from_plain(
                arguments[1], item, _join(where, str(key)), path=path
            )
            for key, item in data.items()
        }
    return _scalar(kind, data, where, path)


def _dataclass(kind: type[Any], data: Any, where: str, path: Path | None) -> Any:
    if not isinstance(data, dict):
        raise _wrong(where, "a mapping of options", data, path)
    hints = field_types(kind)
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.5)
            remedy = f"did you mean '{_join(where, near[0])}'?" if near else f"known are {', '.join(hints)}"
            raise InputError(f"there is no option '{_join(where, str(key))}'", path=path, remedy=remedy)
    values = {key: from_plain(hints[key], item, _join(where, key), path=path) for key, item in data.items()}
    for f in dataclasses.fields(kind):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise InputError(f"the option '{_join(where, f.name)}' is missing", path=path)
    try:
        return kind(**values)
    except InputError as exc:
        place = f"'{where}': " if where else ""
        raise InputError(f"{place}{exc.message}", path=path, remedy=exc.remedy) from exc


def _union(arguments: tuple[Any, ...], data: Any, where: str, path: Path | None) -> Any:
    if data is None and type(None) in arguments:
        return None
    members = [a for a in arguments if a is not type(None)]
    if len(members) == 1:
        return from_plain(members[0], data, where, path=path)
    errors = []
    for member in members:
        try:
            return from_plain(member, data, where, path=path)
        except InputError as exc:
            errors.append(exc.message)
    raise InputError("; or ".join(errors), path=path)


def _sequence(
    kind: Any, origin: type[Any], arguments: tuple[Any, ...], data: Any, where: str, path: Path | None
) -> Any:
    if not isinstance(data, list):
        raise _wrong(where, "a list", data, path)
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        kinds = list(arguments) if arguments != ((),) else []
        if len(data) != len(kinds):
            raise _wrong(where, f"a list of {len(kinds)} values", data, path)
    else:
        kinds = [arguments[0]] * len(data)
    items = [from_plain(k, item, f"{where}[{i}]", path=path) for i, (k, item) in enumerate(zip(kinds, data))]
    return origin(items)


def _scalar(kind: Any, data: Any, where: str, path: Path | None) -> Any:
    if kind is bool:
        if not isinstance(data, bool):
            raise _wrong(where, "true or false", data, path)
        return data
    if kind is int:
        if isinstance(data, bool) or not isinstance(data, int):
            raise _wrong(where, "a whole number", data, path)
        return data
    if kind is float:
        return _number(data, where, path)
    if kind in (str, Path):
        if not isinstance(data, str):
            raise _wrong(where, "a text", data, path)
        return kind(data)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if not isinstance(data, str) or data not in kind.__members__:
            raise _wrong(where, f"one of {', '.join(kind.__members__)}", data, path)
        return kind[data]
    if kind is type(None):
        if data is not None:
            raise _wrong(where, "null", data, path)
        return None
    raise TypeError(f"options of type {kind} ('{where}') cannot be read")


def _number(data: Any, where: str, path: Path | None) -> float:
    value = data
    if isinstance(value, str):  # YAML 1.1 takes 1e-4 for a text
        try:
            value = float(value)
        except ValueError:
            raise _wrong(where, "a number", data, path) from None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise _wrong(where, "a number", data, path)
    return float(value)


def _wrong(where: str, wanted: str, data: Any, path: Path | None) -> InputError:
    text = repr(data) if not isinstance(data, dict | list) or len(repr(data)) < 60 else "a long one"
    text = (
        {None: "null", True: "true", False: "false"}[data] if data is None or isinstance(data, bool) else text
    )
    return InputError(f"the option '{where or 'configuration'}' must be {wanted}, not {text}", path=path)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def field_types(kind: type[Any]) -> dict[str, Any]:
    """Types of the fields of a dataclass by name, resolved."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.init}


def option_names(kind: Any, where: str = "") -> Iterator[str]:
    """Dotted names of all options of a dataclass, in order; options in lists have ``[]`` in theirs."""
    kind = _inner(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        for name, inner in field_types(kind).items():
            yield from option_names(inner, _join(where, name))
        return
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (tuple, list) and dataclasses.is_dataclass(_inner(arguments[0])):
        yield from option_names(arguments[0], f"{where}[]")
        return
    yield where


def _inner(kind: Any) -> Any:
    """The one type of an optional one."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        members = [a for a in typing.get_args(kind) if a is not type(None)]
        if len(members) == 1:
            return members[0]
    return kind


# ---- YAML -------------------------------------------------------------------------------------------------------


def dump_yaml(value: Any) -> str:
    """YAML text of a configuration or plain values; keys keep their order."""
    import yaml

    return yaml.safe_dump(
        to_plain(value), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )


def parse_yaml(text: str, path: Path | None = None) -> Any:
    """Plain values from YAML text.

    Raises:
        InputError: not YAML, a key twice, an alias, an object of another language's, or far too long.
    """
    import yaml

    class StrictSafeLoader(yaml.SafeLoader):
        """Plain values; every key once."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not understood here")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for key in keys:
                if not isinstance(key, str | int | float) or keys.count(key) > 1:
                    raise yaml.YAMLError(f"the key {key!r} comes twice or is no plain value")
            return super().construct_mapping(node, deep)

    if len(text) > MAX_CHARACTERS:
        raise InputError("is too long for a configuration", path=path)
    try:
        return yaml.load(text, Loader=StrictSafeLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as exc:
        raise InputError(f"is not valid YAML: {' '.join(str(exc).split())}", path=path) from exc


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        InputError: missing, unreadable, or not a mapping.
    """
    from relief3d.io.whole_file import read_utf8

    value = parse_yaml(read_utf8(path, max_bytes=4 * MAX_CHARACTERS), path)
    if not isinstance(value, dict):
        raise InputError("does not hold a mapping of options", path=path)
    return value


# ---- changes ----------------------------------------------------------------------------------------------------


def merged(base: Any, over: Any) -> Any:
    """Plain values with those of ``over`` in their place; lists are replaced as a whole."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{k: merged(base[k], v) if k in base else v for k, v in over.items()}}
    return over


def changed(config: Any, changes: Sequence[str]) -> Any:
    """A configuration after changes ``a.b=value``; values are YAML, options that are off (None) switch on.

    Raises:
        InputError: not of that form, unknown option, or a value of another type.
    """
    plain = to_plain(config)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or not name.strip():
            raise InputError(f"'{change}' is not of the form OPTION=VALUE", remedy="--set train.steps=100")
        value = parse_yaml(text) if text.strip() else ""
        for key in reversed(name.strip().split(".")):
            value = {key: value}
        plain = merged(plain, value)
    return from_plain(type(config), plain)


def flat(value: Any, where: str = "") -> dict[str, Any]:
    """Plain values by dotted name."""
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in flat(item, _join(where, str(key))).items()}
    return {where: value}
