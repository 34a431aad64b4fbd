"""Cameras solved on prepared pictures (turned, cropped, padded, resized), brought back to the originals.

Splat trainers, viewers and COLMAP itself open the original files, so an exported model must describe
those pixels. All maps are exact: pixel centres are at +0.5, hence resizing scales K without offsets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Distortion, Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.geometry.distortion import distort_points
from relief3d.io.images import read_image


@dataclass(frozen=True)
class OriginalPicture:
    """How a working picture was made from the original: turn, then cut out a box, then resize the box.

    Attributes:
        width, height: size of the original picture in pixels.
        quarter_turns: turns by 90 degrees counter-clockwise that came first (``torch.rot90(x, k, (-2, -1))``).
        box: (x0, y0, x1, y1) in pixels of the turned picture that became the whole working picture;
            parts outside the picture are padding. None: all of it.
        distortion: the original's lens, when the working picture was undistorted with K kept; None
            when the working picture has the lens of the original.
    """

    width: int
    height: int
    quarter_turns: int = 0
    box: tuple[float, float, float, float] | None = None
    distortion: Distortion | None = None


def original_resolution(scene: Scene, original_cameras: Mapping[str, Camera | OriginalPicture]) -> Scene:
    """Describe a scene's cameras and observations in pixels of the original pictures.

    K, pose (for turned pictures) and sparse observations are mapped; lens coefficients act on
    normalised coordinates and stay (their tangential part turns with the picture). Pictures are
    re-opened from ``View.path``; depth, sparse depth and masks belong to the working pictures and are
    dropped. World points do not change, nor do reprojection errors except by the scale, which is
    applied to ``SparsePoints.error``.

    Args:
        scene: solved on working pictures.
        original_cameras: by view name, how the working picture was made. A :class:`Camera` means
            "only resized from this size". Views that are not named are taken as original already.

    Returns:
        A scene with the same views, ready for :func:`relief3d.io.colmap.write_colmap_model`.

    Raises:
        InputError: for sizes or boxes that are not positive.
    """
    views = []
    for view in scene.views:
        given = original_cameras.get(view.name)
        views.append(view if given is None else _original_view(view, _as_original(given)))
    sparse = scene.sparse
    if sparse is not None:
        sparse = _original_observations(scene, sparse, original_cameras, views)
    return scene.replace(views=tuple(views), sparse=sparse)


def _as_original(given: Camera | OriginalPicture) -> OriginalPicture:
    return OriginalPicture(given.width, given.height) if isinstance(given, Camera) else given


def _pixel_map(view: View, origin: OriginalPicture) -> tuple[Tensor, Tensor]:
    """Affine maps (3, 3) of pixels: turned original from working picture, original from turned original."""
    if origin.width < 1 or origin.height < 1:
        raise InputError(f"view '{view.name}': the original size must be positive")
    k = origin.quarter_turns % 4
    w, h = (origin.width, origin.height) if k % 2 == 0 else (origin.height, origin.width)
    x0, y0, x1, y1 = (0.0, 0.0, float(w), float(h)) if origin.box is None else origin.box
    if not (x1 > x0 and y1 > y0):
        raise InputError(f"view '{view.name}': the box {origin.box} is empty")
    sx, sy = (x1 - x0) / view.camera.width, (y1 - y0) / view.camera.height
    unscale = torch.tensor([[sx, 0.0, x0], [0.0, sy, y0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    W, H = float(origin.width), float(origin.height)
    # Pixel (x, y) of the turned picture lies here in the original; centres at +0.5 make it exact.
    unturn = {
        0: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        1: [[0.0, -1.0, W], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
        2: [[-1.0, 0.0, W], [0.0, -1.0, H], [0.0, 0.0, 1.0]],
        3: [[0.0, 1.0, 0.0], [-1.0, 0.0, H], [0.0, 0.0, 1.0]],
    }[k]
    return unscale, torch.tensor(unturn, dtype=torch.float64)


def _original_view(view: View, origin: OriginalPicture) -> View:
    unscale, unturn = _pixel_map(view, origin)
    turn = torch.eye(3, dtype=torch.float64)
    turn[:2, :2] = unturn[:2, :2]  # also how the camera's x and y axes turn
    camera = view.camera
    K = None if camera.K is None else unturn @ unscale @ camera.K @ turn.T
    pose = camera.world_from_cam
    if pose is not None:
        pose = pose.clone()
        pose[:3, :3] = pose[:3, :3] @ turn.T
    lens = origin.distortion if origin.distortion is not None else _turned_lens(camera.distortion, turn)
    path = view.path
    return View(
        name=view.name,
        camera=replace(
            camera, width=origin.width, height=origin.height, K=K, world_from_cam=pose, distortion=lens
        ),
        image=None if path is None else partial(_load_original, path, (origin.width, origin.height)),
        time=view.time,
        path=path,
    )


def _turned_lens(lens: Distortion | None, turn: Tensor) -> Distortion | None:
    if lens is None or lens.model == "fisheye":
        return lens
    # The tangential term is 2 (p . x) x + |x|^2 p with p = (p2, p1): a vector that turns with the picture.
    p = turn[:2, :2] @ torch.tensor([lens.params[3], lens.params[2]], dtype=torch.float64)
    return Distortion("opencv", (*lens.params[:2], float(p[1]) + 0.0, float(p[0]) + 0.0, *lens.params[4:]))


def _original_observations(
    scene: Scene,
    sparse: SparsePoints,
    original_cameras: Mapping[str, Camera | OriginalPicture],
    views: list[View],
) -> SparsePoints:
    xy = sparse.obs_xy.to(torch.float64).clone()
    factor = torch.ones(len(scene.views), dtype=torch.float64)
    for index, view in enumerate(scene.views):
        given = original_cameras.get(view.name)
        mine = sparse.obs_view == index
        if given is None or not bool(mine.any()):
            continue
        origin = _as_original(given)
        unscale, unturn = _pixel_map(view, origin)
        A = unturn @ unscale
        mapped = xy[mine] @ A[:2, :2].T + A[:2, 2]
        if origin.distortion is not None:
            pinhole = views[index].camera.replace(distortion=None)
            mapped = distort_points(mapped, views[index].camera, pinhole)
        xy[mine] = mapped
        factor[index] = float(unscale[0, 0] * unscale[1, 1]) ** 0.5
    per_point = torch.zeros(len(sparse), dtype=torch.float64)
    count = torch.zeros(len(sparse), dtype=torch.float64)
    per_point.index_add_(0, sparse.obs_point, factor[sparse.obs_view])
    count.index_add_(0, sparse.obs_point, torch.ones(len(sparse.obs_point), dtype=torch.float64))
    error = sparse.error.to(torch.float64) * torch.where(count > 0, per_point / count.clamp_min(1), 1.0)
    return replace(sparse, obs_xy=xy, error=error)


def _load_original(path: Path, size: tuple[int, int]) -> Tensor:
    rgb = read_image(path).rgb
    if (rgb.shape[-1], rgb.shape[-2]) != size:
        raise InputError(
            f"the picture has {rgb.shape[-1]}x{rgb.shape[-2]} pixels, not {size[0]}x{size[1]}", path=path
        )
    return rgb
