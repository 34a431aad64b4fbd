"""``relief3d reconstruct`` as a model that answers protocols."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError, RunError
from relief3d.core.optional import require
from relief3d.eval.protocols.base import Answer, Model, Query
from relief3d.geometry.projection import depth_to_points
from relief3d.geometry.transforms import transform_points
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.depth import read_depth
from relief3d.io.images import write_image
from relief3d.pipelines.evaluate.baselines import picture_sizes
from relief3d.pipelines.reconstruct import ReconstructConfig, reconstruct
from relief3d.pipelines.reconstruct.depth import reload_depth

INPUT, OUTPUT = "pictures", "result"


def main_job(folder: Path) -> Model:
    """The main job on the pictures of a query.

    Poses and intrinsics are used where the query gives them. Every picture must be registered: a protocol that
    compares N views has no place for fewer, so anything less counts as a failure. Depth that stereo leaves open is
    filled from the nearest known pixel, because the protocols want a dense map; this is part of what is measured.

    Args:
        folder: for the pictures and results, removed after every query.
    """

    def answer(query: Query) -> Answer:
        count, height, width = picture_sizes(query)
        work = folder / hashlib.sha256(query.name.encode()).hexdigest()[:16]
        shutil.rmtree(work, ignore_errors=True)
        try:
            return _reconstruct(query, work, count, (height, width))
        finally:
            shutil.rmtree(work, ignore_errors=True)

    return answer


def _reconstruct(query: Query, work: Path, count: int, size: tuple[int, int]) -> Answer:
    assert query.scene is not None
    if count < 2:
        raise InputError(f"{query.name} has {count} picture; the main job needs at least two")
    source = _write_pictures(query.scene, work / INPUT)
    wants_depth = bool({"depth", "cam_points", "world_points"} & set(query.wants))
    config = ReconstructConfig(
        ordered=query.scene.ordered,
        mesh="mesh" in query.wants,
        splats=False,
        depth_source="stereo",
        seed=query.seed,
    )
    scene = reconstruct(source, work / OUTPUT, config=config)
    index = {v.name: i for i, v in enumerate(scene.views)}
    order = [index.get(f"{i:06d}.png") for i in range(count)]
    known = [i for i in order if i is not None and scene.views[i].camera.world_from_cam is not None]
    if len(known) < count:
        raise RunError(f"only {len(known)} of {count} pictures were registered")
    cameras = [scene.views[i].camera for i in known]
    tensors: dict[str, Tensor] = {
        "world_from_cam": torch.stack([c.world_from_cam for c in cameras if c.world_from_cam is not None]),
        "K": torch.stack([c.K for c in cameras if c.K is not None]),
    }
    if wants_depth:
        depth = _depth(scene, work / OUTPUT, known, size)
        points = depth_to_points(depth.double(), tensors["K"])
        world = transform_points(tensors["world_from_cam"], points.flatten(1, 2)).reshape(points.shape)
        tensors |= {"depth": depth, "cam_points": points.float(), "world_points": world.float()}
    mesh = scene.mesh if "mesh" in query.wants else None
    if "mesh" in query.wants and mesh is None:
        raise RunError("no surface was found")
    return Answer({k: v for k, v in tensors.items() if k in query.wants}, mesh)


def _write_pictures(scene: Scene, folder: Path) -> Path:
    """The pictures as PNG, with ``cameras.json`` where intrinsics are known; returns what to open."""
    views = []
    for i, view in enumerate(scene.views):
        path = write_image(folder / f"{i:06d}.png", view.load_image())
        views.append(view.replace(name=path.name, path=path, depth=None, mask=None, sparse_depth=None))
    if all(v.camera.K is not None for v in views):
        return write_cameras_json(scene.replace(views=tuple(views)), folder / "cameras.json")
    return folder


def _depth(scene: Scene, out: Path, known: list[int], size: tuple[int, int]) -> Tensor:
    """(N, H, W) dense depth at the size of the query; a picture without any depth gets the median of the others."""
    maps = {m.index: read_depth(m.path).values for m in reload_depth(scene, out)}
    found = torch.cat([d[d > 0] for d in maps.values()])
    if not found.numel():
        raise RunError("no depth was found")
    fallback = found.median()
    out_maps = []
    for i in known:
        if i not in maps or not bool((maps[i] > 0).any()):
            out_maps.append(torch.full(size, float(fallback)))
            continue
        small = _filled(maps[i])
        out_maps.append(torch.nn.functional.interpolate(small[None, None], size, mode="nearest-exact")[0, 0])
    return torch.stack(out_maps)


def _filled(depth: Tensor) -> Tensor:
    """Holes of (H, W) filled with the nearest known value."""
    ndimage = require("scipy.ndimage", extra="mesh", purpose="filling depth")
    rows, cols = ndimage.distance_transform_edt(
        (depth <= 0).numpy(), return_distances=False, return_indices=True
    )
    return depth[torch.from_numpy(rows).long(), torch.from_numpy(cols).long()]
