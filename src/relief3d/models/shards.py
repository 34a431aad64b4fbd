"""Weights in several files: safetensors shards of a limited size and an index that says which tensor lies where.

The layout is the one that transformers writes: ``model-00001-of-00002.safetensors`` and so on beside
``model.safetensors.index.json`` with ``weight_map`` (tensor to file) and ``metadata``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from relief3d.core.errors import InputError

INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 15 * 2**20
"""No shard is larger, its header included."""
_HEADER_BYTES = 2**18
"""Room left for a shard's header: names, shapes, metadata."""


def is_index(path: str | Path) -> bool:
    """Whether a path is named as the index of shards."""
    return Path(path).name.endswith(".safetensors.index.json")


def write_shards(
    state: Mapping[str, Tensor], folder: Path, *, metadata: Mapping[str, str], limit: int = SHARD_BYTES
) -> list[Path]:
    """Write tensors into shards and their index, in the order of their names.

    Args:
        state: tensors by name.
        folder: exists; what it holds under the same names is replaced.
        metadata: of every shard, so that each says what it is a part of.
        limit: bytes of a shard at most.

    Returns:
        The shards, in order.

    Raises:
        InputError: one tensor alone is larger than a shard may be.
    """
    room = limit - _HEADER_BYTES
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(state):
        size = state[name].numel() * state[name].element_size()
        if size > room:
            raise InputError(f"the tensor {name} has {size} bytes, more than a shard of {limit} holds")
        if groups[-1] and filled + size > room:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    paths: list[Path] = []
    where: dict[str, str] = {}
    for k, names in enumerate(groups):
        path = folder / f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors"
        save_file({n: state[n].detach().cpu().contiguous() for n in names}, str(path), dict(metadata))
        path.chmod(0o644)  # the library makes files that only their owner may read
        paths.append(path)
        where |= dict.fromkeys(names, path.name)
    total = sum(v.numel() * v.element_size() for v in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return paths


def read_index(path: Path) -> dict[Path, set[str]]:
    """The shards of an index, in order, with the names that each must hold.

    Raises:
        InputError: no such file, damaged, or it names files outside of its folder.
    """
    if not path.is_file():
        raise InputError("there is no such file of weights", path=path)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        where = content["weight_map"]
        pairs = [(str(name), str(file)) for name, file in where.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise InputError(
            "is no index of shards: damaged or of another kind", path=path, remedy="download it again"
        ) from exc
    shards: dict[Path, set[str]] = {}
    for name, file in sorted(pairs, key=lambda p: p[1]):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise InputError(f"names '{file}', which is no shard beside it", path=path)
        shards.setdefault(path.parent / file, set()).add(name)
    if not shards:
        raise InputError("names no tensors", path=path)
    return shards
