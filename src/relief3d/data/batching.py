"""From views of any size and knowledge to one stacked :class:`Batch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.contract import Batch, Camera, Depth, Scene, View
from relief3d.core.errors import InputError


@dataclass(frozen=True)
class _Fit:
    """Scale, then centre crop, that takes a (w, h) picture to the batch size."""

    scale: float
    scaled: tuple[int, int]
    x0: int
    y0: int

    @staticmethod
    def of(w: int, h: int, width: int, height: int) -> _Fit:
        scale = max(width / w, height / h)
        scaled = (max(width, round(w * scale)), max(height, round(h * scale)))
        return _Fit(scale, scaled, (scaled[0] - width) // 2, (scaled[1] - height) // 2)


def batch_from_scene(scene: Scene, indices: Sequence[int], size: tuple[int, int]) -> Batch:
    """One scene as a batch of B = 1.

    Pictures are scaled to cover ``size`` and centre-cropped; K follows exactly (pixel centres at +0.5),
    depth and masks are resized by nearest pixel so that values never mix across edges. Batches hold single precision:
    where that would cost poses their fine part (maps in UTM), the world's origin moves to the first known camera.

    Args:
        scene: where the views come from; views must be pinhole (undistort first).
        indices: which views, in the wanted order.
        size: (width, height) of the batch.

    Returns:
        Batch with shapes (1, N, ...); modalities that no view has are None.

    Raises:
        InputError: no views, a view with lens distortion, or a picture, depth map or mask of another size than its
            camera.
    """
    if not indices:
        raise InputError("a batch needs at least one view")
    return collate([_stack(scene, [scene.views[i] for i in indices], size)])


def _stack(scene: Scene, views: Sequence[View], size: tuple[int, int]) -> Batch:
    width, height = size
    n = len(views)
    fits = [_Fit.of(v.camera.width, v.camera.height, width, height) for v in views]
    images = torch.stack([_image(v, fit, size) for v, fit in zip(views, fits)])
    K, has_K = torch.eye(3).repeat(n, 1, 1), torch.zeros(n, dtype=torch.bool)
    pose, has_pose = torch.eye(4).repeat(n, 1, 1), torch.zeros(n, dtype=torch.bool)
    depth, valid = torch.zeros(n, height, width), torch.zeros(n, height, width, dtype=torch.bool)
    sparse, mask = torch.zeros(n, height, width), torch.ones(n, height, width, dtype=torch.bool)
    time = torch.zeros(n)
    origin = _near_origin(views)
    any_depth = any_sparse = any_mask = any_time = False
    for i, (view, fit) in enumerate(zip(views, fits)):
        camera = view.camera
        if camera.distortion is not None and not camera.distortion.is_identity:
            raise InputError(f"view '{view.name}' has lens distortion", remedy="undistort it before batching")
        if camera.K is not None:
            K[i], has_K[i] = _intrinsics(camera, fit).float(), True
        if camera.world_from_cam is not None:
            moved = camera.world_from_cam.clone()
            moved[:3, 3] -= origin
            pose[i], has_pose[i] = moved.float(), True
        if (dense := view.load_depth()) is not None:
            _check_size(view, dense.values, "depth map")
            values, ok = _nearest(dense, fit, size)
            depth[i], valid[i], any_depth = values, ok, True
        if view.sparse_depth is not None and len(view.sparse_depth.z):
            _scatter(view, fit, sparse[i])
            any_sparse = True
        if (usable := view.load_mask()) is not None:
            _check_size(view, usable, "mask")
            # As for depth: the pixel under the new pixel's centre ("nearest" alone takes the one at its corner).
            near = F.interpolate(usable[None, None].float(), fit.scaled[::-1], mode="nearest-exact")
            mask[i], any_mask = _crop(near[0, 0], fit, size) > 0.5, True
        if view.time is not None:
            time[i], any_time = view.time, True
    return Batch(
        images=images,
        K=K if has_K.any() else None,
        has_K=has_K if has_K.any() else None,
        world_from_cam=pose if has_pose.any() else None,
        has_pose=has_pose if has_pose.any() else None,
        depth=depth if any_depth else None,
        depth_valid=valid if any_depth else None,
        sparse_depth=sparse if any_sparse else None,
        mask=mask if any_mask else None,
        time=time if any_time else None,
        metric=torch.tensor(scene.metric),
        names=(tuple(v.name for v in views),),
    )


def collate(batches: Sequence[Batch]) -> Batch:
    """Join scenes into one batch: (N, ...) or (1, N, ...) each to (B, N, ...).

    A modality that only some scenes have is filled with zeros (identity for K and poses) elsewhere and
    its ``has_*`` flag or validity mask is False there. ``depth`` keeps its own validity; ``mask`` is True.

    Raises:
        InputError: nothing to join, or scenes with different numbers or sizes of views.
    """
    if not batches:
        raise InputError("nothing to collate")
    rank = 4
    parts = [
        {
            f: (t[0] if b.images.ndim == rank + 1 else t)
            for f in b.__dataclass_fields__
            if isinstance(t := getattr(b, f), Tensor)
        }
        for b in batches
    ]
    shapes = {tuple(p["images"].shape) for p in parts}
    if len(shapes) > 1:
        raise InputError(f"scenes of different shapes {sorted(shapes)} cannot be stacked")
    out: dict[str, Tensor] = {}
    for name in {key for part in parts for key in part}:
        like = next(part[name] for part in parts if name in part)
        out[name] = torch.stack([part[name] if name in part else _blank(name, like) for part in parts])
    return Batch(**out, names=tuple(n for b in batches for n in b.names))


def _blank(name: str, like: Tensor) -> Tensor:
    if name in ("K", "world_from_cam"):
        return torch.eye(like.shape[-1], dtype=like.dtype).expand_as(like).clone()
    return torch.ones_like(like) if name == "mask" else torch.zeros_like(like)


def _image(view: View, fit: _Fit, size: tuple[int, int]) -> Tensor:
    image = view.load_image()
    _check_size(view, image, "picture")
    resized = F.interpolate(
        image[None], fit.scaled[::-1], mode="bilinear", antialias=True, align_corners=False
    )
    return _crop(resized[0], fit, size).clamp(0, 1)


def _check_size(view: View, values: Tensor, what: str) -> None:
    wanted = (view.camera.height, view.camera.width)
    if tuple(values.shape[-2:]) != wanted:
        raise InputError(
            f"the {what} of view '{view.name}' has size {tuple(values.shape[-2:])}, its camera {wanted}",
            path=view.path,
        )


def _near_origin(views: Sequence[View]) -> Tensor:
    """(3,) what is taken off all poses: zero unless rounding to single precision would eat the cameras' distances."""
    centres = [c for v in views if (c := v.camera.centre) is not None]
    if not centres:
        return torch.zeros(3, dtype=torch.float64)
    stack = torch.stack(centres)
    apart = float((stack - stack[0]).abs().max())
    lost = float(stack.abs().max()) * torch.finfo(torch.float32).eps
    return stack[0] if lost > 1e-4 * apart > 0 else torch.zeros(3, dtype=torch.float64)


def _crop(x: Tensor, fit: _Fit, size: tuple[int, int]) -> Tensor:
    return x[..., fit.y0 : fit.y0 + size[1], fit.x0 : fit.x0 + size[0]]


def _intrinsics(camera: Camera, fit: _Fit) -> Tensor:
    assert camera.K is not None
    K = camera.K.clone()
    K[0] *= fit.scaled[0] / camera.width
    K[1] *= fit.scaled[1] / camera.height
    K[0, 2] -= fit.x0
    K[1, 2] -= fit.y0
    return K


def _nearest(depth: Depth, fit: _Fit, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    both = torch.stack([depth.values, depth.valid.float()])
    resized = F.interpolate(both[None], fit.scaled[::-1], mode="nearest-exact")[0]
    values, ok = _crop(resized, fit, size)
    return values, ok > 0.5


def _scatter(view: View, fit: _Fit, out: Tensor) -> None:
    """Write sparse depth on the nearest pixels; where two fall together the nearer surface wins."""
    assert view.sparse_depth is not None
    xy, z = view.sparse_depth.xy.float(), view.sparse_depth.z.float()
    gx = fit.scaled[0] / view.camera.width
    gy = fit.scaled[1] / view.camera.height
    x = torch.floor(xy[:, 0] * gx - fit.x0).long()
    y = torch.floor(xy[:, 1] * gy - fit.y0).long()
    inside = (x >= 0) & (x < out.shape[1]) & (y >= 0) & (y < out.shape[0]) & (z > 0)
    # A reduction, because writing twice to one place leaves open which value stays.
    flat = torch.full((out.numel(),), torch.inf)
    flat.scatter_reduce_(0, y[inside] * out.shape[1] + x[inside], z[inside], "amin")
    out.copy_(torch.where(torch.isfinite(flat), flat, torch.zeros(())).view_as(out))
