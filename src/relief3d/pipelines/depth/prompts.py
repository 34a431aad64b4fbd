"""Sparse metric depth that users bring, found by name and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from relief3d.core.contract import Camera, View
from relief3d.core.errors import InputError
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.io.depth import read_stored_depth
from relief3d.io.ply import read_ply

SUFFIXES = (".npz", ".npy", ".exr", ".pfm", ".png", ".tif", ".tiff", ".ply")
_MILLIMETRE = 0.001


def find_prompts(source: Path, views: Sequence[View]) -> list[Path]:
    """One file for every picture.

    Raises:
        InputError: nothing there, one file for several pictures, or pictures without one of their own.
    """
    if source.is_file():
        if len(views) > 1:
            raise InputError(
                f"this is one prompt, but there are {len(views)} pictures",
                path=source,
                remedy="give a folder with one prompt for every picture, by name",
            )
        return [source]
    if not source.is_dir():
        raise InputError("there is no such prompt", path=source, remedy="check --prompt")
    found = [_match(source, view) for view in views]
    missing = [view.name for view, path in zip(views, found, strict=True) if path is None]
    if missing:
        stem = Path(missing[0]).with_suffix("").as_posix()
        raise InputError(
            f"{len(missing)} of {len(views)} pictures have no prompt here, for example {missing[0]}",
            path=source,
            remedy=f"add {stem}.npz (or .png, .exr, .ply), or leave those pictures out",
        )
    owners: dict[Path, str] = {}
    for view, path in zip(views, found, strict=True):
        assert path is not None
        if path in owners:
            raise InputError(
                f"is the prompt of two pictures, {owners[path]} and {view.name}",
                path=path,
                remedy="put prompts into folders named as those of the pictures, or give pictures other names",
            )
        owners[path] = view.name
    return list(owners)


def _match(folder: Path, view: View) -> Path | None:
    """By the picture's name without or with suffix, or without its folders; never the picture itself."""
    stem = Path(view.name).with_suffix("")
    candidates = [folder / f"{base}{suffix}" for base in (stem, view.name, stem.name) for suffix in SUFFIXES]
    files = (path for path in candidates if path.is_file())
    return next((path for path in files if view.path is None or not path.samefile(view.path)), None)


def read_prompt(path: Path, camera: Camera, scale: float | None) -> MetricPrompt:
    """The prompt of a picture.

    Args:
        path: a depth map of the picture's shape, or a PLY cloud in the camera's frame (x right, y down, z forward).
        camera: of the picture; a cloud needs its K.
        scale: metres per stored unit, or None for 0.001 (whole numbers) and 1 (others), checked to be plausible.

    Raises:
        InputError: naming the file: unreadable, wrong unit or shape, beside the picture, negative, too few points.
    """
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise InputError(f"--prompt-scale must be positive, got {scale}")
    size = (camera.height, camera.width)
    try:
        if path.suffix.lower() == ".ply":
            return _from_cloud(path, camera, size, scale)
        stored = read_stored_depth(path)
        factor = scale if scale is not None else (1.0 if stored.is_floating_point() else _MILLIMETRE)
        prompt = MetricPrompt.from_depth_map(
            stored.double() * factor, size=size, unit=None if scale is None else "m", K=camera.K
        )
        if scale is None and not stored.is_floating_point():
            # Another unit (1/256 m of KITTI) can look plausible, so the scale is never set without a word.
            prompt = replace(
                prompt, notes=(*prompt.notes, "whole numbers of the prompt were taken as millimetres")
            )
        return prompt
    except InputError as exc:
        if exc.path is not None:
            raise
        remedy = exc.remedy
        if remedy is not None and "unit" in remedy:
            remedy = "say how many metres one unit is with --prompt-scale"
        raise InputError(exc.message, path=path, remedy=remedy) from exc


def _from_cloud(path: Path, camera: Camera, size: tuple[int, int], scale: float | None) -> MetricPrompt:
    if camera.K is None:
        raise InputError(
            "a cloud as prompt needs the intrinsics of the picture",
            path=path,
            remedy="give --intrinsics fx,fy,cx,cy",
        )
    read = read_ply(path)
    xyz = getattr(read, "xyz", None)
    if xyz is None:
        xyz = getattr(read, "vertices")  # noqa: B009 (a mesh: its corners)
    factor = 1.0 if scale is None else scale
    prompt = MetricPrompt.from_point_cloud(
        xyz.double() * factor,
        camera.K,
        torch.eye(4, dtype=torch.float64),
        size,
        unit=None if scale is None else "m",
    )
    if camera.distortion is None or camera.distortion.is_identity:
        return prompt
    return replace(
        prompt,
        notes=(*prompt.notes, "the cloud was drawn into the picture without the distortion of its lens"),
    )
