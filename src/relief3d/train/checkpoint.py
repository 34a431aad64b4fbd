"""Saving and loading a run: folders that are complete or absent, and a pointer that is written last.

``checkpoints/step_00000500/`` holds ``model.safetensors``, ``optimiser.safetensors``, ``random.safetensors``, with an
average ``ema.safetensors``, and ``state.json`` with the counters and the size and SHA-256 of every other file.
``checkpoints/latest`` names the newest complete folder. No file can run code.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.io.atomic import TEMP_PREFIX, atomic_folder, write_text
from relief3d.io.json_file import read_json_object, write_json
from relief3d.train.config import CheckpointConfig

FOLDER = "checkpoints"
POINTER = "latest"
STATE = "state.json"
FORMAT = 1
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        step: optimiser steps done.
        tensors: by file name without suffix (``model``, ``optimiser``, ``random``, ``ema``): tensors by name.
        state: counters and the like, JSON types.
    """

    step: int
    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]


def checkpoint_name(step: int) -> str:
    """Name of the folder of a step; names sort as steps do."""
    return f"step_{step:08d}"


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and point to it; one of the same step that is complete is left as it is.

    Raises:
        InputError: the disk is full or cannot be written; earlier checkpoints and the pointer stay as they were.
    """
    target = run / FOLDER / checkpoint_name(checkpoint.step)
    if not is_complete(target):
        with atomic_folder(target, overwrite=True) as folder:
            files = {}
            for name, tensors in checkpoint.tensors.items():
                path = folder / f"{name}.safetensors"
                save_file(_storable(tensors), str(path))
                files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            write_json(
                folder / STATE,
                {"format": FORMAT, "step": checkpoint.step, "files": files, "state": dict(checkpoint.state)},
            )
    write_text(run / FOLDER / POINTER, target.name + "\n")
    return target


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint's folder has all its files at their full size."""
    try:
        listed = read_json_object(folder / STATE)["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in listed.items())
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return False


def find_checkpoint(run: Path) -> Path | None:
    """The checkpoint that the pointer names; when the pointer is lost or dangles, the newest complete one."""
    folder = run / FOLDER
    pointer = folder / POINTER
    if pointer.is_file():
        named = folder / pointer.read_text(encoding="utf-8", errors="replace").strip()
        if named.parent == folder and is_complete(named):
            return named
    complete = [p for p in sorted(folder.glob("step_*"), reverse=True) if is_complete(p)]
    return complete[0] if complete else None


def load_checkpoint(folder: Path, *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint.

    Args:
        folder: ``checkpoints/step_...``.
        verify: compare every file with its recorded SHA-256.

    Raises:
        InputError: incomplete, damaged, or of a later version.
    """
    entry = read_json_object(folder / STATE)
    if entry.get("format") != FORMAT:
        raise InputError(
            f"is a checkpoint of format {entry.get('format')}, this version reads {FORMAT}",
            path=folder / STATE,
            remedy="update relief3d",
        )
    tensors: dict[str, Tensors] = {}
    for name, recorded in entry["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != recorded["bytes"]:
            raise InputError("is missing or cut off", path=path, remedy="resume from another checkpoint")
        if verify and file_digest(path) != recorded["sha256"]:
            raise InputError("was changed or damaged", path=path, remedy="resume from another checkpoint")
        try:
            tensors[path.stem] = load_file(str(path))
        except SafetensorError as exc:
            raise InputError("is damaged", path=path, remedy="resume from another checkpoint") from exc
    return Checkpoint(int(entry["step"]), tensors, entry["state"])


def tidy_checkpoints(run: Path, config: CheckpointConfig, best: int | None = None) -> list[str]:
    """Remove all but the newest ``keep_last`` complete checkpoints and the best one, and what killed saves left.

    Args:
        run: the run's folder.
        config: how many to keep.
        best: step of the best checkpoint.

    Returns:
        Names that were removed; the newest complete checkpoint never is.
    """
    folder = run / FOLDER
    complete = [p for p in sorted(folder.glob("step_*")) if is_complete(p)]
    kept = {p.name for p in complete[-config.keep_last :]}
    if best is not None:
        kept.add(checkpoint_name(best))
    removed = []
    for path in sorted(folder.iterdir()):
        stale = path.name.startswith(TEMP_PREFIX) or (path.name.startswith("step_") and path.name not in kept)
        if path.is_dir() and stale:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tensors_digest(tensors: Tensors) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, whatever their order."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _storable(tensors: Tensors) -> dict[str, Tensor]:
    """On the CPU, contiguous, and none sharing memory with another, which the format refuses."""
    seen: set[int] = set()
    out = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        if value.numel() and value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        out[name] = value
    return out
