"""Reading weights: any of the layouts in use, checked key by key, never by running code from the file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from relief3d.core.errors import InputError, RunError
from relief3d.models.shards import is_index, read_index

CONTAINERS = ("ema_model", "model", "state_dict")
"""Entries of training checkpoints that may hold the weights, best first: the averaged ones are what is evaluated."""
PREFIXES = ("module.", "model.")
SHOWN = 6
_STORED_TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""Names of types in safetensors files."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_file(path: Path, sha256: str, *, announce: Callable[[str], None] | None = None) -> bool:
    """See that a file has a digest, once: a marker beside it (``NAME.verified``, with size and time of the last change)
    spares the next call the reading, until the file changes. Where no marker can be written, every call reads.

    Args:
        path: of the file, or a link to it; the marker lies beside this path.
        sha256: hexadecimal.
        announce: told before a file is read for this.

    Returns:
        Whether the file had to be read.

    Raises:
        RunError: the file has another digest.
    """
    stat = path.stat()
    fact = json.dumps({"sha256": sha256.lower(), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    marker = path.with_name(path.name + ".verified")
    with contextlib.suppress(OSError):
        if marker.read_text(encoding="utf-8") == fact:
            return False
    if announce is not None:
        announce(f"checking {path.name} against its SHA-256")
    found = file_digest(path)
    if found != sha256.lower():
        raise RunError(
            f"the checksum does not match (SHA-256 {found[:12]}... instead of {sha256.lower()[:12]}...): "
            "the file is damaged",
            path=path,
            remedy="delete it and download it again",
        )
    with contextlib.suppress(OSError):  # a shared cache may be read-only
        fresh = marker.with_name(marker.name + ".part")
        fresh.write_text(fact, encoding="utf-8")
        fresh.replace(marker)
    return True


def read_state(path: str | Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, on the CPU.

    Args:
        path: ``.safetensors``, the index of shards (``.safetensors.index.json``), or a torch file (``.pt``, ``.pth``,
            ``.bin``, ``.ckpt``), which is read with ``weights_only``. Training checkpoints are unwrapped and common
            prefixes removed.
        sha256: the file must have this digest.

    Raises:
        InputError: the file is missing, damaged, truncated, has another digest, or holds more than weights.
    """
    path = Path(path)
    if path.is_file() and sha256 is not None and file_digest(path) != sha256.lower():
        raise InputError(
            "the checksum does not match: the file is incomplete or another one",
            path=path,
            remedy="download it again",
        )
    if is_index(path):
        return _of_shards(path, lambda shard: _stored_state(shard, lambda: load_file(str(shard)), mmap=False))
    return _stored_state(path, lambda: load_file(str(path)), mmap=False)


def _of_shards(path: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all shards of an index; each must hold exactly what the index says."""
    out: dict[str, Tensor] = {}
    for shard, names in read_index(path).items():
        found = read(shard)
        if set(found) != names:
            raise InputError(f"does not hold what {path.name} says", path=shard, remedy="download both again")
        out |= found
    return out


def read_header(path: str | Path) -> dict[str, Tensor]:
    """Names, shapes and types as in :func:`read_state`, as tensors on the meta device: values are not read.

    Raises:
        InputError: as :func:`read_state`.
    """
    path = Path(path)
    if is_index(path):
        return _of_shards(path, read_header)

    def header() -> dict[str, Tensor]:
        found = {}
        with safe_open(str(path), framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (no mapping)
                entry = stored.get_slice(name)
                kind = entry.get_dtype()
                if kind not in _STORED_TYPES:
                    raise ValueError(f"unknown type {kind}")
                found[name] = torch.empty(entry.get_shape(), dtype=_STORED_TYPES[kind], device="meta")
        return found

    state = _stored_state(path, header, mmap=True)
    return {name: torch.empty_like(value, device="meta") for name, value in state.items()}


def read_config(path: str | Path, key: str = "model_config") -> Mapping[str, Any] | None:
    """The configuration that a checkpoint carries beside its weights; None where there is none.

    Args:
        path: a torch file with an entry ``key``, or ``.safetensors`` with that entry in its metadata as JSON.
        key: of the entry.

    Raises:
        InputError: as :func:`read_state`; or the entry is no configuration.
    """
    path = Path(path)
    if is_index(path):
        path = next(iter(read_index(path)))  # every shard carries it
    config: Any
    if path.suffix == ".safetensors":
        read_header(path)  # says what is wrong with a bad file
        with safe_open(str(path), framework="pt") as stored:
            text = (stored.metadata() or {}).get(key)
        try:
            config = None if text is None else json.loads(text)
        except ValueError as exc:
            raise InputError(f"its entry '{key}' is no JSON", path=path) from exc
    else:
        whole = _opened(path, lambda: {}, mmap=True)
        config = whole.get(key) if isinstance(whole, Mapping) else None
    if config is not None and not isinstance(config, Mapping):
        raise InputError(f"its entry '{key}' is no configuration", path=path)
    return config


def _stored_state(
    path: Path, safetensors: Callable[[], dict[str, Tensor]], *, mmap: bool
) -> dict[str, Tensor]:
    """Open a file of either kind and unwrap what it holds; see :func:`read_state` for what is refused."""
    state = _unwrapped(_opened(path, safetensors, mmap=mmap))
    if not state:
        raise InputError("holds no tensors", path=path)
    return state


def _opened(path: Path, safetensors: Callable[[], dict[str, Tensor]], *, mmap: bool) -> Any:
    """Everything that a file holds."""
    if not path.is_file():
        raise InputError("there is no such file of weights", path=path)
    stored: Any
    try:
        if path.suffix == ".safetensors":
            stored = safetensors()
        else:
            # Files older than the zip format cannot be mapped.
            mapped = mmap and zipfile.is_zipfile(path)
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, EOFError, OSError, ValueError, RuntimeError, LookupError, struct.error) as exc:
        # The last two: what torch says of files that were never weights, such as pictures or text.
        raise InputError(
            "cannot be read as weights: damaged, truncated or of another kind",
            path=path,
            remedy="download it again",
        ) from exc
    except Exception as exc:
        # torch raises pickle's own error for objects that weights_only refuses.
        if type(exc).__name__ != "UnpicklingError":
            raise
        raise InputError(
            "holds more than weights (objects that would run code), which is refused",
            path=path,
            remedy="convert it to safetensors where you trust it",
        ) from exc
    return stored


def _unwrapped(stored: Any) -> dict[str, Tensor]:
    """The weights of a training checkpoint, without counters and prefixes."""
    if isinstance(stored, Mapping):
        for name in CONTAINERS:
            inner = stored.get(name)
            if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
                stored = inner
                break
    if not isinstance(stored, Mapping):
        return {}
    state = {str(k): v for k, v in stored.items() if isinstance(v, Tensor) and k != "n_averaged"}
    for prefix in PREFIXES:
        if state and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def load_weights(
    network: nn.Module,
    state: Mapping[str, Tensor],
    *,
    optional: Sequence[str] = (),
    source: str | Path | None = None,
    assign: bool = False,
) -> list[str]:
    """Copy weights into a network, which must want all of them and get all it needs.

    Args:
        network: to be filled; keeps its own data type and device, unless ``assign``.
        state: names as in ``network.state_dict()``.
        optional: beginnings of names that may be absent from ``state``.
        source: named in errors.
        assign: let the network take the given tensors themselves, without a second copy (for one on the meta device).

    Returns:
        Names that were absent and optional; those parameters are left as they were.

    Raises:
        InputError: names are missing or left over, or shapes differ; lists them.
    """
    own = network.state_dict()
    missing = [k for k in own if k not in state]
    lacking = [k for k in missing if not k.startswith(tuple(optional))] if optional else missing
    unused = [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
        for what, names in (("missing", lacking), ("unknown", unused), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise InputError(
            f"these weights do not fit {type(network).__name__}: " + "; ".join(problems),
            path=source,
            remedy="check that model and size belong to this file",
        )
    network.load_state_dict(state, strict=False, assign=assign)
    return missing
