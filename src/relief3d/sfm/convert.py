"""A COLMAP model as the contract's scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Scene, SparsePoints, View
from relief3d.core.progress import Progress, track
from relief3d.sfm.database import image_id, to_uint8
from relief3d.sfm.lenses import Lens, camera_from_colmap


def scene_from_model(
    scene: Scene,
    model: Any,
    lenses: Sequence[Lens],
    progress: Progress,
    *,
    keep_frame: bool,
    keep_poses: bool,
) -> Scene:
    """The scene with cameras and sparse points; views that were not registered lose nothing but gain no pose.

    With a free frame (``keep_frame`` False) the model is turned so that the mean "down" of the pictures is
    world +y, moved so that the median point is the origin, and scaled so that the median depth of the
    observed points is 1. The scale of structure from motion is arbitrary, so the scene is not metric.

    Args:
        scene: the input.
        model: COLMAP reconstruction with ids from :func:`relief3d.sfm.database.image_id`.
        lenses: in the order of COLMAP's camera ids.
        progress: one step per registered view while colours are read.
        keep_frame: the model is in the scene's own world already.
        keep_poses: leave given poses untouched to the last bit.
    """
    registered = set(model.reg_image_ids())
    poses = {i: _world_from_cam(model, image_id(i)) for i in range(len(scene)) if image_id(i) in registered}
    points, xyz, error = _points(model)
    observations = _observations(model, points, len(scene))
    if not keep_frame:
        poses, xyz = _normalise(poses, xyz, observations)
    rgb = observed_colours(scene.views, observations, len(points), progress)
    sparse = SparsePoints(
        torch.from_numpy(xyz),
        torch.from_numpy(rgb),
        torch.from_numpy(error),
        *(torch.from_numpy(part) for part in observations),
    )
    lens_of = {index: k for k, lens in enumerate(lenses) for index in lens.views}
    views: list[View] = []
    for index, view in enumerate(scene.views):
        if index not in poses:
            views.append(view)
            continue
        lens = lenses[lens_of[index]]
        if lens.fixed:
            camera = view.camera
        else:
            camera = camera_from_colmap(model.camera(lens_of[index] + 1), "estimated")
        if view.camera.world_from_cam is not None and keep_poses:
            camera = camera.replace(world_from_cam=view.camera.world_from_cam)
        else:
            camera = camera.replace(world_from_cam=poses[index])
        views.append(view.replace(camera=camera))
    return scene.replace(views=tuple(views), sparse=sparse, metric=scene.metric and keep_frame)


def _world_from_cam(model: Any, colmap_id: int) -> Tensor:
    out = torch.eye(4, dtype=torch.float64)
    out[:3] = torch.from_numpy(np.array(model.image(colmap_id).cam_from_world().inverse().matrix()))
    return out


def _points(model: Any) -> tuple[list[int], np.ndarray, np.ndarray]:
    ids = sorted(model.point3D_ids())
    points = [model.point3D(i) for i in ids]
    xyz = np.array([p.xyz for p in points], dtype=np.float64).reshape(-1, 3)
    return ids, xyz, np.array([p.error for p in points], dtype=np.float64)


def _observations(model: Any, ids: list[int], views: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index of the point, index of the view and pixel of every sighting, ordered by view then keypoint."""
    row_of = {pid: row for row, pid in enumerate(ids)}
    rows: list[int] = []
    owners: list[int] = []
    pixels: list[np.ndarray] = []
    for index in range(views):
        if not model.exists_image(image_id(index)) or not model.image(image_id(index)).has_pose:
            continue
        for point2d in model.image(image_id(index)).points2D:
            if point2d.has_point3D() and point2d.point3D_id in row_of:
                rows.append(row_of[point2d.point3D_id])
                owners.append(index)
                pixels.append(np.asarray(point2d.xy))
    xy = np.array(pixels, dtype=np.float64).reshape(-1, 2)
    return np.array(rows, dtype=np.int64), np.array(owners, dtype=np.int64), xy


def _normalise(
    poses: dict[int, Tensor], xyz: np.ndarray, observations: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[dict[int, Tensor], np.ndarray]:
    """Put the model upright (+y down), centred on the median point, with median observed depth 1."""
    down = torch.stack([pose[:3, 1] for pose in poses.values()]).mean(0)
    R = _turn_to_y(down)
    centre = torch.from_numpy(np.median(xyz, axis=0)) if len(xyz) else torch.zeros(3, dtype=torch.float64)
    rows, owners, _ = observations
    depths = []
    for index, pose in poses.items():
        seen = xyz[rows[owners == index]] - pose[:3, 3].numpy()
        depths.append(seen @ pose[:3, 2].numpy())
    depth = float(np.median(np.concatenate(depths))) if len(rows) else 1.0
    scale = 1.0 / depth if depth > 0 else 1.0
    turned = {}
    for index, pose in poses.items():
        moved = pose.clone()
        moved[:3, :3] = R @ pose[:3, :3]
        moved[:3, 3] = scale * (R @ (pose[:3, 3] - centre))
        turned[index] = moved
    return turned, scale * (xyz - centre.numpy()) @ R.numpy().T


def _turn_to_y(down: Tensor) -> Tensor:
    """The smallest rotation (3, 3) that takes ``down`` to +y; identity where there is no direction."""
    length = torch.linalg.vector_norm(down)
    y = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    if length < 1e-6:
        return torch.eye(3, dtype=torch.float64)
    d = down / length
    axis, cosine = torch.linalg.cross(d, y), float(d @ y)
    if cosine < -1.0 + 1e-9:
        return torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    zero = torch.zeros((), dtype=torch.float64)
    cross = torch.stack(
        [
            torch.stack([zero, -axis[2], axis[1]]),
            torch.stack([axis[2], zero, -axis[0]]),
            torch.stack([-axis[1], axis[0], zero]),
        ]
    )
    return torch.eye(3, dtype=torch.float64) + cross + cross @ cross / (1.0 + cosine)


def observed_colours(
    views: Sequence[View],
    observations: tuple[np.ndarray, np.ndarray, np.ndarray],
    count: int,
    progress: Progress,
) -> np.ndarray:
    """(count, 3) uint8 mean colour of the pixels a point was seen at."""
    rows, owners, xy = observations
    total, hits = np.zeros((count, 3)), np.zeros(count)
    for index in track(progress, "colours", sorted(set(owners.tolist()))):
        pixels = to_uint8(views[index].load_image())
        mine = owners == index
        column = np.clip(np.floor(xy[mine, 0]).astype(int), 0, pixels.shape[1] - 1)
        line = np.clip(np.floor(xy[mine, 1]).astype(int), 0, pixels.shape[0] - 1)
        np.add.at(total, rows[mine], pixels[line, column])
        np.add.at(hits, rows[mine], 1.0)
    return np.round(total / np.maximum(hits, 1.0)[:, None]).astype(np.uint8)
