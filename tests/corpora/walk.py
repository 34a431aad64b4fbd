"""A corner of a room, rendered exactly and fast, with depth of submaps at scales of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh, Scene, View
from relief3d.geometry.projection import intrinsics
from relief3d.geometry.transforms import look_at
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.depth import write_depth
from relief3d.io.images import write_image
from relief3d.methods.vfm_recon.config import SubmapConfig
from relief3d.methods.vfm_recon.submaps import plan_submaps

SIZE = (160, 120)
COUNT = 10
SUBMAP = SubmapConfig(4, 2)
SCALES = (1.0, 1.5, 0.75, 1.3)
"""Of the depth of the submaps: neighbours differ by up to half."""


@dataclass(frozen=True)
class Walk:
    """A room's corner (three walls at x = 2, y = 1, z = 3) seen by a camera that moves sideways.

    Attributes:
        folder: pictures with ``cameras.json``.
        maps: depth with one folder per submap, each at its own scale.
        cameras: the truth.
        depths: (h, w) metres.
    """

    folder: Path
    maps: Path
    cameras: list[Camera]
    depths: list[Tensor]


def _walls(camera: Camera) -> tuple[Tensor, Tensor]:
    """Exact depth (h, w) and picture (3, h, w) of three textured planes."""
    assert camera.K is not None and camera.world_from_cam is not None
    y, x = torch.meshgrid(torch.arange(SIZE[1]) + 0.5, torch.arange(SIZE[0]) + 0.5, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1).double() @ torch.linalg.inv(camera.K).T
    turned = rays @ camera.world_from_cam[:3, :3].T
    centre = camera.world_from_cam[:3, 3]
    offset = torch.tensor([2.0, 1.0, 3.0], dtype=torch.float64)
    t = torch.where(turned > 1e-6, (offset - centre) / turned.clamp_min(1e-6), torch.inf)
    depth, wall = t.min(-1)
    points = centre + depth[..., None] * turned
    rng = np.random.default_rng(0)
    out = torch.zeros(3, *depth.shape, dtype=torch.float64)
    for axis in range(3):
        uv = points[..., [a for a in range(3) if a != axis]]
        cells = torch.from_numpy(rng.uniform(0.05, 0.95, (3, 96, 96)))
        at = uv * 8 + 48
        i = at.floor().long().clamp(0, 94)
        f = (at - i).clamp(0, 1)
        f = f * f * (3 - 2 * f)
        a, b = i[..., 0], i[..., 1]
        fa, fb = f[..., 0], f[..., 1]
        value = (cells[:, a, b] * (1 - fa) + cells[:, a + 1, b] * fa) * (1 - fb)
        value += (cells[:, a, b + 1] * (1 - fa) + cells[:, a + 1, b + 1] * fa) * fb
        out = torch.where(wall == axis, value, out)
    return depth.float(), out.float()


def write_walk(root: Path) -> Walk:
    """Render it."""
    K = intrinsics(150.0, 150.0, SIZE[0] / 2, SIZE[1] / 2)
    cameras, depths, views = [], [], []
    for k in range(COUNT):
        eye = torch.tensor([-0.9 + 0.18 * k, -0.1 * math.sin(k), 0.05 * k], dtype=torch.float64)
        target = torch.tensor([0.5 + 0.1 * k, 0.3, 3.0], dtype=torch.float64)
        pose = look_at(eye, target, torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64))
        camera = Camera(*SIZE, K, pose)
        depth, image = _walls(camera)
        path = write_image(root / "in" / f"{k:03d}.png", image)
        cameras.append(camera)
        depths.append(depth)
        views.append(View(path.name, camera, path=path))
    write_cameras_json(Scene(tuple(views), metric=True, ordered=True), root / "in" / "cameras.json")
    for submap in plan_submaps([list(range(COUNT))], SUBMAP):
        for k in submap.frames:
            scaled = depths[k] * SCALES[submap.index]
            write_depth(root / "maps" / str(submap.index) / f"{k:03d}.npz", scaled)
    return Walk(root / "in", root / "maps", cameras, depths)


def wall_distance(mesh: Mesh) -> Tensor:
    """(V,) distance of vertices from the nearest wall."""
    offset = torch.tensor([2.0, 1.0, 3.0])
    return (mesh.vertices - offset).abs().min(-1).values
