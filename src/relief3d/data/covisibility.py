"""How much of a view another view sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.geometry.projection import project, project_world, unproject
from relief3d.geometry.transforms import transform_points

ROWS, COLUMNS = 18, 24
"""Grid of pixels that are looked at per view."""


def depth_overlap(
    depth: Tensor,
    K: Tensor,
    world_from_cam: Tensor,
    tolerance: float = 0.05,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Share of each view's surface that each other view sees, by exact reprojection of a grid of pixels.

    A point of view i counts in view j when it falls into the picture in front of the camera and view j's depth there
    agrees within ``tolerance`` of it.

    Args:
        depth: (N, H, W) z-depth, 0 where unknown.
        K: (N, 3, 3) pixels.
        world_from_cam: (N, 4, 4).
        tolerance: relative difference of depth that still is the same surface.
        grid: rows and columns that are looked at.

    Returns:
        (N, N) in [0, 1]; row i: of the known pixels of view i the share that view j sees; 0 for a view without depth.
    """
    count, height, width = depth.shape
    rows, columns = grid or (min(height, ROWS), min(width, COLUMNS))
    y = (torch.arange(rows, device=depth.device) * height + height // 2) // rows
    x = (torch.arange(columns, device=depth.device) * width + width // 2) // columns
    y, x = y.clamp_max(height - 1), x.clamp_max(width - 1)
    z = depth[:, y][:, :, x].flatten(1).to(K.dtype)
    at = torch.stack([(x + 0.5).repeat(rows), (y + 0.5).repeat_interleave(columns)], -1).to(K.dtype)
    pose = world_from_cam.to(K.dtype)
    points = transform_points(pose, unproject(at.expand(count, -1, 2), z, K))
    xy, ahead = project_world(points[:, None], K[None, :], torch.linalg.inv(pose)[None, :])
    inside = (xy >= 0).all(-1) & (xy[..., 0] < width) & (xy[..., 1] < height) & (ahead > 0)
    column = xy[..., 0].clamp(0, width - 1).long()
    row = xy[..., 1].clamp(0, height - 1).long()
    other = torch.arange(count, device=depth.device)[None, :, None]
    there = depth[other, row, column].to(K.dtype)
    agree = inside & (there > 0) & ((there - ahead).abs() <= tolerance * ahead)
    known = z > 0
    total = known.sum(1)
    return (agree & known[:, None]).sum(-1).to(K.dtype) / total.clamp_min(1)[:, None].to(K.dtype)


def sparse_overlap(points: SparsePoints, views: int) -> Tensor:
    """(N, N) share of the points seen by view i that view j sees too; a view without points has 0."""
    seen = torch.zeros(views, len(points), dtype=torch.float64)
    seen[points.obs_view, points.obs_point] = 1.0
    return (seen @ seen.T) / seen.sum(1).clamp_min(1.0)[:, None]


def pose_overlap(K: Tensor, world_from_cam: Tensor, sizes: Tensor) -> Tensor:
    """A guess at overlap from cameras alone: the share of each view's field of view that points into the other's.

    Centres are taken for one point, so it holds for views whose distance is small beside that of the scene.

    Args:
        K: (N, 3, 3) pixels.
        world_from_cam: (N, 4, 4).
        sizes: (N, 2) width and height in pixels.

    Returns:
        (N, N) in [0, 1].
    """
    u, v = (torch.arange(n, dtype=K.dtype) + 0.5 for n in (COLUMNS, ROWS))
    at = torch.stack(torch.meshgrid(u / COLUMNS, v / ROWS, indexing="xy"), -1).reshape(-1, 2)
    xy = at[None] * sizes[:, None].to(K.dtype)
    R = world_from_cam[:, :3, :3].to(K.dtype)
    world = unproject(xy, torch.ones_like(xy[..., 0]), K) @ R.transpose(1, 2)
    seen, ahead = project(world[:, None] @ R[None, :], K[None])
    inside = (ahead > 0) & (seen >= 0).all(-1) & (seen <= sizes[None, :, None].to(K.dtype)).all(-1)
    return inside.to(K.dtype).mean(-1)


def scene_overlap(scene: Scene, indices: Sequence[int] | None = None) -> Tensor:
    """Overlap of some views of a scene by what is known best: triangulated points, dense depth, or cameras alone.

    Args:
        scene: a structure-from-motion model, or posed views with depth, or posed views.
        indices: which views; all when None.

    Returns:
        (n, n) float64; 0 for views of which neither points nor cameras are known (lost frames of a recording).

    Raises:
        InputError: neither depth nor points nor poses are known.
    """
    chosen = list(range(len(scene))) if indices is None else list(indices)
    if scene.sparse is not None and len(scene.sparse):
        return sparse_overlap(scene.sparse, len(scene))[chosen][:, chosen]
    known = set(scene.posed)
    rows = [row for row, index in enumerate(chosen) if index in known]
    if not rows:
        raise InputError(
            "views that see the same things cannot be found without poses or triangulated points",
            remedy="use another grouping, or label the cameras first",
        )
    overlap = torch.zeros(len(chosen), len(chosen), dtype=torch.float64)
    at = torch.tensor(rows)
    overlap[at[:, None], at] = _posed_overlap([scene.views[chosen[row]] for row in rows])
    return overlap


def _posed_overlap(views: Sequence[View]) -> Tensor:
    K = torch.stack([v.camera.K for v in views if v.camera.K is not None])
    pose = torch.stack([v.camera.world_from_cam for v in views if v.camera.world_from_cam is not None])
    if all(v.depth is not None for v in views):
        return _from_depth_maps(views, K, pose)
    sizes = torch.tensor([[v.camera.width, v.camera.height] for v in views])
    return pose_overlap(K, pose, sizes)


def _from_depth_maps(views: Sequence[View], K: Tensor, pose: Tensor) -> Tensor:
    """Depth maps of several sizes are brought to one by picking pixels; K follows."""
    height, width = 4 * ROWS, 4 * COLUMNS
    maps, inner = [], []
    for view, matrix in zip(views, K):
        depth = view.load_depth()
        values = torch.zeros(view.camera.height, view.camera.width) if depth is None else depth.values
        h, w = values.shape
        maps.append(
            torch.nn.functional.interpolate(values[None, None], (height, width), mode="nearest-exact")[0, 0]
        )
        scaled = matrix.clone()
        scaled[0] *= width / w
        scaled[1] *= height / h
        inner.append(scaled)
    return depth_overlap(torch.stack(maps), torch.stack(inner), pose, grid=(ROWS, COLUMNS))


class OverlapStore:
    """Overlap matrices of scenes, worked out once and kept on disk.

    Args:
        folder: of the matrices, one file per scene.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def get(self, key: str, scene: Scene) -> Tensor:
        """(N, N) overlap of all views of a scene; read from the folder when it was worked out before.

        Raises:
            InputError: see :func:`scene_overlap`; or the stored matrix is damaged or of another scene.
        """
        import hashlib

        from safetensors import SafetensorError
        from safetensors.torch import load_file, save_file

        from relief3d.io.atomic import atomic_path

        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
        if not path.is_file():
            matrix = scene_overlap(scene).to(torch.float32)
            with atomic_path(path) as temporary:
                save_file({"overlap": matrix.contiguous()}, str(temporary), {"key": key})
        try:
            stored = load_file(str(path))["overlap"]
        except (SafetensorError, KeyError) as exc:
            raise InputError("is damaged", path=path, remedy="delete it") from exc
        if tuple(stored.shape) != (len(scene), len(scene)):
            raise InputError(f"belongs to a scene of {len(stored)} views", path=path, remedy="delete it")
        return stored
