"""Reading weights: any of the layouts in use, checked key by key, never by running code from the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from relief3d.core.errors import InputError

CONTAINERS = ("ema_model", "model", "state_dict")
"""Entries of training checkpoints that may hold the weights, best first: the averaged ones are what is evaluated."""
PREFIXES = ("module.", "model.")
SHOWN = 6


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_state(path: str | Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, on the CPU.

    Args:
        path: ``.safetensors``, or a torch file (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), which is read with
            ``weights_only``. Training checkpoints are unwrapped and common prefixes removed.
        sha256: the file must have this digest.

    Raises:
        InputError: the file is missing, damaged, truncated, has another digest, or holds more than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("there is no such file of weights", path=path)
    if sha256 is not None and file_digest(path) != sha256.lower():
        raise InputError(
            "the checksum does not match: the file is incomplete or another one",
            path=path,
            remedy="download it again",
        )
    stored: Any
    try:
        if path.suffix == ".safetensors":
            stored = load_file(str(path))
        else:
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except (SafetensorError, EOFError, OSError, ValueError, RuntimeError) as exc:
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
    state = _unwrapped(stored)
    if not state:
        raise InputError("holds no tensors", path=path)
    return state


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
