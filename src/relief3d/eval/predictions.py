"""Answers on disk, so that metrics can be computed again without the network.

``PREDICTIONS/<sample>.safetensors`` holds the tensors, ``<sample>.ply`` the surface, ``<sample>.json`` the facts; any
of them may be absent. Foreign predictions may also be ``<sample>.npz`` or, for depth alone, ``<sample>.npy``,
``<sample>.png`` (16-bit millimetres) or ``<sample>.exr``, or a folder ``<sample>/`` with one such file per frame.
Answers that a run keeps also have ``<sample>.key``, written last: what the model was shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer
from relief3d.io.atomic import atomic_path, write_text
from relief3d.io.depth import read_depth, read_npz
from relief3d.io.glb import read_glb
from relief3d.io.json_file import read_json_object, write_json
from relief3d.io.names import natural_key
from relief3d.io.ply import read_ply, write_ply
from relief3d.io.rigid import rigid_from_file

_DEPTH = (".npy", ".png", ".exr", ".pfm", ".tif", ".tiff")
_ALL = (".safetensors", ".npz", ".ply", ".glb", ".json", *_DEPTH)

_POSE_TOLERANCE = 1e-2
"""Networks give rotations with the rounding of half precision."""


def prediction_files(folder: Path, sample: str) -> list[Path]:
    """Existing files that hold the answer to a sample, in a fixed order."""
    base = folder / sample
    found = [p for ending in _ALL if (p := base.with_name(base.name + ending)).is_file()]
    if base.is_dir():
        frames = [p for p in base.iterdir() if p.suffix.lower() in _DEPTH and p.is_file()]
        found += sorted(frames, key=lambda p: natural_key(p.name))
    return found


def fingerprint(files: list[Path]) -> str:
    """SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def kept_key(folder: Path, sample: str) -> str | None:
    """The key with which :func:`write_answer` kept the answer; None without one, or when it was interrupted."""
    path = _key_file(folder, sample)
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def write_answer(folder: Path, sample: str, answer: Answer, key: str | None = None) -> None:
    """Write one answer in place of an older one; every file appears complete or not at all, the key last.

    Args:
        folder: of the answers.
        sample: name.
        answer: what to write.
        key: see :func:`kept_key`.
    """
    base = folder / sample
    base.parent.mkdir(parents=True, exist_ok=True)
    _key_file(folder, sample).unlink(missing_ok=True)
    for ending in (".ply", ".json", ".safetensors"):  # an older answer may have had more parts
        base.with_name(base.name + ending).unlink(missing_ok=True)
    if answer.mesh is not None:
        write_ply(base.with_name(base.name + ".ply"), answer.mesh)
    if answer.facts or not answer.tensors:
        write_json(base.with_name(base.name + ".json"), dict(answer.facts))
    if answer.tensors:
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in answer.tensors.items()}
        with atomic_path(base.with_name(base.name + ".safetensors")) as temporary:
            save_file(tensors, str(temporary))
    if key is not None:
        write_text(_key_file(folder, sample), key)


def _key_file(folder: Path, sample: str) -> Path:
    base = folder / sample
    return base.with_name(base.name + ".key")


def read_answer(folder: Path, sample: str) -> Answer:
    """Read one answer.

    Tensors come back as floating-point numbers of at least single precision: half precision and whole numbers are
    converted, because metrics sum them.

    Raises:
        InputError: nothing is there, a file cannot be read, or holds complex numbers.
    """
    files = prediction_files(folder, sample)
    if not files:
        raise InputError(
            f"no prediction for '{sample}'",
            path=folder,
            remedy=f"write {sample}.safetensors (or .npz, .npy, .png, .ply, .json) there",
        )
    tensors: dict[str, Tensor] = {}
    mesh: Mesh | None = None
    facts: Mapping[str, Any] = {}
    frames: list[Tensor] = []
    for path in files:
        ending = path.suffix.lower()
        if ending == ".safetensors":
            tensors |= _real(_read_safetensors(path), path)
        elif ending == ".npz":
            tensors |= _real({k: torch.from_numpy(v.copy()) for k, v in read_npz(path).items()}, path)
        elif ending == ".ply":
            read = read_ply(path)
            # A surface that came out empty is an answer, which protocols count as such.
            none = torch.zeros(0, 3, dtype=torch.int64)
            mesh = read if isinstance(read, Mesh) else Mesh(read.xyz, none)
        elif ending == ".glb":
            mesh = read_glb(path)
        elif ending == ".json":
            facts = read_json_object(path)
        else:
            # Many protocols are free of scale; where metres count the run gives a hint.
            frames.append(read_depth(path, metric=False).values)
    if frames and "depth" not in tensors:
        if len({tuple(f.shape) for f in frames}) > 1:
            raise InputError("the depth maps of one sample differ in size", path=folder / sample)
        tensors["depth"] = torch.stack(frames)
    return Answer(tensors, mesh, facts)


def check_poses(answer: Answer) -> None:
    """Refuse ``world_from_cam`` (N, 4, 4) that are no rigid transforms; poses that are not finite pass as failed ones.

    Relative rotations of mirrored or scaled matrices can look perfect.

    Raises:
        InputError: names the first such pose.
    """
    poses = answer.tensors.get("world_from_cam")
    if poses is None or poses.ndim != 3 or poses.shape[1:] != (4, 4):
        return
    for i, pose in enumerate(poses.detach().cpu()):
        if bool(torch.isfinite(pose).all()):
            try:
                rigid_from_file(pose, tolerance=_POSE_TOLERANCE)
            except ValueError as exc:
                raise InputError(f"the predicted pose of view {i} {exc}") from exc


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as exc:
        raise InputError(f"is not a readable safetensors file ({exc})", path=path) from exc


def _real(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    complex_ = [name for name, value in tensors.items() if value.is_complex()]
    if complex_:
        raise InputError(f"'{complex_[0]}' holds complex numbers", path=path, remedy="save real numbers")
    kept = (torch.float32, torch.float64)
    return {k: v if v.dtype in kept else v.to(torch.float32) for k, v in tensors.items()}
