"""Saving and loading a run: folders that are complete or absent, and a pointer that is written last.

``checkpoints/step_00000500/`` holds ``model.safetensors``, ``optimiser.safetensors``, ``random.safetensors``, with an
average ``ema.safetensors``, and ``state.json`` with the counters, the size and SHA-256 of every other file, and the
SHA-256 of its own content.
``checkpoints/latest`` names the newest complete folder. No file can run code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.io.atomic import TEMP_PREFIX, atomic_folder, remove_leftovers, write_text
from relief3d.io.json_file import read_json_object, to_jsonable, write_json
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
    """Write a checkpoint and point to it; one of the same step, left by a past that the run went back from, gives way.

    Raises:
        InputError: the disk is full or cannot be written; earlier checkpoints and the pointer stay as they were.
        RunError: the disk fails otherwise.
    """
    target = run / FOLDER / checkpoint_name(checkpoint.step)
    with atomic_folder(target, overwrite=True) as folder:
        files = {}
        for name, tensors in checkpoint.tensors.items():
            path = folder / f"{name}.safetensors"
            with _as_os_error():
                save_file(_storable(tensors), str(path))
            files[path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        entry = {"format": FORMAT, "step": checkpoint.step, "files": files, "state": dict(checkpoint.state)}
        entry = to_jsonable(entry)
        write_json(folder / STATE, {**entry, "content": _content_digest(entry)})
    write_text(run / FOLDER / POINTER, target.name + "\n")
    return target


def bring_back(run: Path) -> None:
    """Undo the first half of a replacement that was killed between its two renames: the old one was moved aside."""
    for aside in (run / FOLDER).glob(f"{TEMP_PREFIX}*.old"):
        if is_complete(aside):
            target = run / FOLDER / checkpoint_name(int(read_json_object(aside / STATE)["step"]))
            if not target.exists():
                aside.replace(target)


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint's folder has all its files at their full size."""
    try:
        entry = read_json_object(folder / STATE)
        if isinstance(entry.get("format"), int) and entry["format"] > FORMAT:
            return True  # a later version's is not ours to judge; loading it says so
        listed = entry["files"]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in listed.items())
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return False


def find_checkpoint(run: Path) -> Path | None:
    """The checkpoint that the pointer names; when the pointer is lost or dangles, the newest complete one."""
    candidates = _candidates(run)
    return candidates[0] if candidates else None


def newest_checkpoint(run: Path, say: Callable[[str], None]) -> tuple[Checkpoint, Path] | None:
    """The checkpoint that :func:`find_checkpoint` names, or when it is damaged the one before it.

    Args:
        run: the run's folder.
        say: hears which checkpoints are damaged or cut off, when an older one is taken for them.

    Returns:
        The checkpoint and its folder; None when the folder holds none, so that the run begins.

    Raises:
        InputError: every checkpoint is damaged, or one was written by a later version.
    """
    candidates = _candidates(run)
    complete = set(candidates)
    broken = [p for p in _folders(run) if p not in complete]
    if not candidates and broken:
        raise InputError(
            "no checkpoint here is complete",
            path=run / FOLDER,
            remedy="remove the folder to begin anew, or restore a checkpoint from a backup",
        )
    named = _named(run)
    if named and candidates and not (run / FOLDER / named).is_dir():
        say(
            f"{run / FOLDER / POINTER}: names '{named}', which is not here; going on from {candidates[0].name}"
        )
    # Newer than what is taken and incomplete: damage, because a killed save leaves no such folder. Loading says what.
    lost = [
        p
        for p in reversed(broken)
        if p.name == named or (p.name > candidates[0].name and (p / STATE).exists())
    ]
    first: InputError | None = None
    for path in [*lost, *candidates]:
        try:
            return load_checkpoint(path), path
        except DamagedError as exc:
            say(f"{exc}; going back to the checkpoint before it")
            first = first or exc
    if first is not None:
        raise first
    return None


def load_checkpoint(folder: Path, *, verify: bool = True) -> Checkpoint:
    """Read a checkpoint.

    Args:
        folder: ``checkpoints/step_...``.
        verify: compare every file with its recorded SHA-256.

    Raises:
        DamagedError: incomplete, damaged or unreadable.
        InputError: of a later version.
    """
    remedy = "remove this checkpoint to go on from the one before it"
    try:
        entry = read_json_object(folder / STATE)
        if entry.get("format") != FORMAT:
            raise _later(folder, entry.get("format"))
        step, files, state = int(entry["step"]), dict(entry["files"]), dict(entry["state"])
        recorded = {name: (int(f["bytes"]), str(f["sha256"])) for name, f in files.items()}
        written = entry.pop("content", None)  # absent in the first checkpoints of this format
        if written is not None and written != _content_digest(entry):
            raise DamagedError("was changed or damaged", path=folder / STATE, remedy=remedy)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise DamagedError("is damaged", path=folder / STATE, remedy=remedy) from exc
    except InputError as exc:
        if exc.path is None or isinstance(exc, _LaterFormatError | DamagedError):
            raise
        raise DamagedError(exc.message, path=exc.path, remedy=remedy) from exc
    tensors: dict[str, Tensors] = {}
    for name, (size, digest) in recorded.items():
        path = folder / name
        try:
            if not path.is_file() or path.stat().st_size != size:
                raise DamagedError("is missing or cut off", path=path, remedy=remedy)
            if verify and file_digest(path) != digest:
                raise DamagedError("was changed or damaged", path=path, remedy=remedy)
            tensors[path.stem] = load_file(str(path))
        except SafetensorError as exc:
            raise DamagedError("is damaged", path=path, remedy=remedy) from exc
        except OSError as exc:
            raise DamagedError(f"cannot be read ({exc.strerror or exc})", path=path, remedy=remedy) from exc
    return Checkpoint(step, tensors, state)


class DamagedError(InputError):
    """A checkpoint that cannot be used, while an earlier one may be."""


class _LaterFormatError(InputError):
    """A checkpoint of a version that is not known here: going back would lose work that is whole."""


def _later(folder: Path, found: object) -> InputError:
    return _LaterFormatError(
        f"is a checkpoint of format {found}, this version reads {FORMAT}",
        path=folder / STATE,
        remedy="update relief3d",
    )


def tidy_checkpoints(run: Path, config: CheckpointConfig, step: int, best: int | None = None) -> list[str]:
    """Remove what is no longer kept: all but the newest ``keep_last`` checkpoints up to ``step`` and the best one.

    Also removed: what killed saves left, and checkpoints after ``step``, which belong to a past that the run went back
    from. Call it after the checkpoint of ``step`` was saved.

    Args:
        run: the run's folder.
        config: how many to keep.
        step: of the checkpoint that was saved last.
        best: step of the best checkpoint.

    Returns:
        Names that were removed; the checkpoint of ``step`` never is.
    """
    folder, newest = run / FOLDER, checkpoint_name(step)
    if not is_complete(folder / newest):
        return []
    complete = [p.name for p in _folders(run) if p.name <= newest and is_complete(p)]
    kept = {newest, *complete[-config.keep_last :]}
    if best is not None:
        kept.add(checkpoint_name(best))
    removed = []
    for path in _folders(run):
        if path.name not in kept:
            # The list of files first: from then on nobody takes the folder for a checkpoint.
            (path / STATE).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    removed += sorted(p.name for p in folder.glob(f"{TEMP_PREFIX}*"))
    remove_leftovers(folder)
    return removed


def _folders(run: Path) -> list[Path]:
    """Folders of checkpoints, whole or not, oldest first."""
    return sorted(p for p in (run / FOLDER).glob("step_*") if p.is_dir())


def _candidates(run: Path) -> list[Path]:
    """Complete checkpoints in the order in which they should be tried."""
    folder = run / FOLDER
    complete = [p for p in reversed(_folders(run)) if is_complete(p)]
    named = _named(run)
    if named and folder / named in complete:
        # What is newer than the pointer's was not finished; it is as good, but the pointer decides.
        newer = [p for p in complete if p.name > named]
        return [folder / named, *(p for p in complete if p.name < named), *reversed(newer)]
    return complete


def _named(run: Path) -> str:
    """What the pointer says; empty without one that can be read and names a checkpoint."""
    try:
        text = (run / FOLDER / POINTER).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return text if re.fullmatch(r"step_\d+", text) else ""


@contextmanager
def _as_os_error() -> Iterator[None]:
    """Errors of the file system inside safetensors, as Python's own kind."""
    try:
        yield
    except SafetensorError as exc:
        found = re.search(r"os error (\d+)", str(exc))
        number = int(found.group(1)) if found else errno.EIO
        raise OSError(number, os.strerror(number)) from exc


def _content_digest(entry: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, whatever the order and layout in the file."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


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
