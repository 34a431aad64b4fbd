"""Labels as files, and back. Files of one item: ``depth/000.npz``, ``masks/000/000.png``, ``tracks.safetensors``, ...

``label.json`` lists them with their SHA-256; everything in it and every byte of the files depends only on the input and
the recipe, so that two runs can be compared with ``cmp``. View names stand in ``label.json``, files are numbered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from relief3d.core.contract import Depth, Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.io.cameras_json import read_cameras_json, write_cameras_json
from relief3d.io.depth import read_depth, read_mask, write_depth
from relief3d.io.images import write_image
from relief3d.io.json_file import read_json_object, to_jsonable
from relief3d.labelling.base import DepthLabel, Labels, MaskLabel, TrackLabel
from relief3d.labelling.items import FORMAT, VERSION, Recipe, WorkItem
from relief3d.labelling.sources import file_digest
from relief3d.labelling.store import LABEL_FILE

SPARSE_FIELDS = ("xyz", "rgb", "error", "obs_point", "obs_view", "obs_xy")


def check_labels(item: WorkItem, labels: Labels) -> None:
    """See that labels belong to an item.

    Raises:
        InputError: they are of other views, or of another number of views.
    """
    strangers = (set(labels.depth) | set(labels.cameras) | set(labels.masks)) - set(item.views)
    if strangers:
        raise InputError(f"the labeler returned labels of other views ({sorted(strangers)[0]})")
    if labels.tracks is not None and labels.tracks.xy.shape[1] != len(item.views):
        raise InputError(f"tracks over {labels.tracks.xy.shape[1]} views for {len(item.views)} views")


def write_labels(folder: Path, item: WorkItem, recipe: Recipe, labels: Labels) -> None:
    """Write the labels of an item into an empty folder, ``label.json`` last.

    Raises:
        InputError: the labels do not belong to the item's views, or cannot be written.
    """
    check_labels(item, labels)
    files: list[dict[str, Any]] = []

    def note(path: Path, role: str, view: str | None = None, **facts: Any) -> None:
        entry: dict[str, Any] = {"path": path.relative_to(folder).as_posix(), "role": role}
        entry |= {"bytes": path.stat().st_size, "sha256": file_digest(path)} | facts
        files.append(entry if view is None else {**entry, "view": view})

    for number, name in enumerate(item.views):
        if (depth := labels.depth.get(name)) is not None:
            path = write_depth(folder / "depth" / f"{number:03d}.npz", depth.depth)
            note(path, "depth", name, kind=depth.kind, valid=int(depth.depth.valid.sum()))
        if (segments := labels.masks.get(name)) is not None:
            for k, mask in enumerate(segments.masks):
                path = write_image(
                    folder / "masks" / f"{number:03d}" / f"{k:03d}.png", mask.to(torch.uint8) * 255
                )
                note(path, "mask", name, score=round(float(segments.scores[k]), 6))
    if labels.cameras:
        views = tuple(View(n, labels.cameras[n]) for n in item.views if n in labels.cameras)
        scene = Scene(views, metric=False)
        note(write_cameras_json(scene, folder / "cameras.json"), "cameras")
    if labels.tracks is not None:
        note(_write_tensors(folder / "tracks.safetensors", _track_tensors(labels.tracks)), "tracks")
    if labels.sparse is not None:
        tensors = {name: getattr(labels.sparse, name) for name in SPARSE_FIELDS}
        note(_write_tensors(folder / "sparse.safetensors", tensors), "sparse")
    write_plain_json(
        folder / LABEL_FILE,
        {
            "format": FORMAT,
            "version": VERSION,
            "item": asdict(item),
            "recipe": asdict(recipe),
            "files": files,
            "facts": dict(labels.facts),
        },
    )


def write_plain_json(path: Path, value: object) -> None:
    """JSON into a folder that is not published yet: publishing flushes it to the disk, once is enough."""
    path.write_text(json.dumps(to_jsonable(value), indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _track_tensors(tracks: TrackLabel) -> dict[str, Tensor]:
    zero = torch.zeros(())
    return {
        "xy": torch.where(tracks.visible[..., None], tracks.xy, zero).to(torch.float32),
        "visible": tracks.visible,
        "confidence": torch.where(tracks.visible, tracks.confidence, zero).to(torch.float32),
    }


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    path.write_bytes(save(plain))
    return path


def _read_tensors(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as exc:
        raise InputError(f"not a readable label file ({exc})", path=path) from exc
    if missing := [n for n in names if n not in tensors]:
        raise InputError(f"lacks '{missing[0]}'", path=path)
    return tensors


def read_labels(folder: Path, *, verify: bool = False) -> tuple[WorkItem, Recipe, Labels]:
    """Read the labels of one item.

    Args:
        folder: the item's folder.
        verify: compare the SHA-256 of every file first.

    Raises:
        InputError: damaged, or not an item's folder.
    """
    document = read_json_object(folder / LABEL_FILE)
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        raise InputError("is not a label file that this version reads", path=folder / LABEL_FILE)
    try:
        raw = document["item"]
        item = WorkItem(raw["id"], raw["scene"], tuple(raw["views"]), tuple(raw["digests"]))
        recipe, files = Recipe(**document["recipe"]), document["files"]
        return item, recipe, _load(folder, item, files, document["facts"], verify)
    except (KeyError, TypeError) as exc:
        raise InputError(f"lacks or misnames a field ({exc})", path=folder / LABEL_FILE) from exc


def _load(
    folder: Path, item: WorkItem, files: list[dict[str, Any]], facts: dict[str, Any], verify: bool
) -> Labels:
    labels = Labels(facts=facts)
    depth: dict[str, DepthLabel] = {}
    masks: dict[str, list[tuple[Tensor, float]]] = {}
    for entry in files:
        path, role = folder / entry["path"], entry["role"]
        if verify and file_digest(path) != entry["sha256"]:
            raise InputError("differs from what was written", path=path, remedy="delete the item's folder")
        if role == "depth":
            depth[entry["view"]] = _read_depth(path, entry)
        elif role == "mask":
            masks.setdefault(entry["view"], []).append((read_mask(path), float(entry["score"])))
        elif role == "cameras":
            scene = read_cameras_json(path, require_images=False)
            labels = replace(labels, cameras={v.name: v.camera for v in scene.views})
        elif role == "tracks":
            found = _read_tensors(path, ("xy", "visible", "confidence"))
            tracks = TrackLabel(found["xy"], found["visible"], found["confidence"])
            labels = replace(labels, tracks=tracks)
        elif role == "sparse":
            found = _read_tensors(path, SPARSE_FIELDS)
            labels = replace(labels, sparse=SparsePoints(**{n: found[n] for n in SPARSE_FIELDS}))
    segments = {
        name: MaskLabel(torch.stack([m for m, _ in rows]), torch.tensor([s for _, s in rows]))
        for name, rows in masks.items()
    }
    return replace(labels, depth=depth, masks=segments)


def _read_depth(path: Path, entry: Mapping[str, Any]) -> DepthLabel:
    metric = entry["kind"] == "metric"
    depth = read_depth(path, scale=1.0, metric=metric)
    return DepthLabel(replace(depth, metric=metric), entry["kind"])


def content_digest(folder: Path) -> str:
    """SHA-256 over everything of an item that must not depend on the run."""
    return hashlib.sha256((folder / LABEL_FILE).read_bytes()).hexdigest()


def empty_depth(depth: Depth) -> bool:
    """Whether a depth map has no valid pixel; such maps are not written."""
    return not bool(depth.valid.any())
