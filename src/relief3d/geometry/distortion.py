"""Pictures, pixels and cameras with lens distortion, and their pinhole counterparts.

The lens equations are in :mod:`relief3d.geometry.lens_models`; its entry points can be imported from here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Distortion
from relief3d.core.errors import InputError
from relief3d.geometry.lens_models import (
    distort_normalized,
    distortion_params,
    fisheye_radius,
    monotonic_limit,
    undistort_angle,
    undistort_normalized,
    undistort_normalized_checked,
)
from relief3d.geometry.projection import (
    crop_intrinsics,
    denormalize_pixels,
    inside_image,
    intrinsics,
    normalize_pixels,
    pixel_grid,
)
from relief3d.geometry.sampling import Padding, SampleMode, sample_image

__all__ = [
    "distort_image",
    "distort_normalized",
    "distort_points",
    "distortion_map",
    "monotonic_limit",
    "project_distorted",
    "undistort_image",
    "undistort_normalized",
    "undistort_normalized_checked",
    "undistort_points",
    "undistorted_camera",
    "undistortion_map",
    "unproject_rays",
]


def project_distorted(points: Tensor, K: Tensor, distortion: Distortion | None) -> tuple[Tensor, Tensor]:
    """Pixels of camera-frame points in a distorted picture.

    Args:
        points: (*, N, 3) camera frame. A fisheye lens also sees points beside and behind the camera.
        K: (*, 3, 3) pixels.
        distortion: the lens; None is a pinhole.

    Returns:
        xy (*, N, 2) pixels and z (*, N).
    """
    z = points[..., 2]
    if distortion is not None and distortion.model == "fisheye":
        r2 = points[..., :2].square().sum(-1)
        zero = r2 == 0
        r = torch.where(zero, torch.ones_like(r2), r2).sqrt()
        theta = torch.atan2(torch.where(zero, torch.zeros_like(r), r), z)
        scale = fisheye_radius(theta, distortion_params(distortion, points)) / r
        xy = points[..., :2] * torch.where(zero, torch.zeros_like(scale), scale)[..., None]
        return denormalize_pixels(xy, K), z
    eps = torch.finfo(z.dtype).eps
    safe = torch.where(z.abs() < eps, torch.full_like(z, eps), z)
    return denormalize_pixels(distort_normalized(points[..., :2] / safe[..., None], distortion), K), z


def unproject_rays(xy: Tensor, K: Tensor, distortion: Distortion | None) -> tuple[Tensor, Tensor]:
    """Unit viewing rays of pixels in a distorted picture, also beyond 90 degrees for a fisheye lens.

    Args:
        xy: (*, N, 2) pixels.
        K: (*, 3, 3).
        distortion: the lens; None is a pinhole.

    Returns:
        rays (*, N, 3) in the camera frame and validity (*, N).
    """
    normalized = normalize_pixels(xy, K)
    if distortion is not None and distortion.model == "fisheye":
        r2 = normalized.square().sum(-1)
        theta, valid = undistort_angle(r2, distortion)
        zero = r2 == 0
        scale = torch.sin(theta) / torch.where(zero, torch.ones_like(r2), r2).sqrt()
        scale = torch.where(zero, torch.ones_like(scale), scale)
        return torch.cat([normalized * scale[..., None], torch.cos(theta)[..., None]], dim=-1), valid
    point, valid = undistort_normalized_checked(normalized, distortion)
    rays = torch.cat([point, torch.ones_like(point[..., :1])], dim=-1)
    return rays / rays.norm(dim=-1, keepdim=True), valid


def _camera_K(camera: Camera, like: Tensor) -> Tensor:
    if camera.K is None:
        raise InputError("lens distortion needs known intrinsics", remedy="estimate the cameras first")
    return camera.K.to(device=like.device, dtype=like.dtype)


def undistort_points(xy: Tensor, camera: Camera, new_camera: Camera | None = None) -> Tensor:
    """Pixels of the distorted picture to pixels of the pinhole picture.

    Args:
        xy: (*, N, 2) pixels in ``camera``'s picture.
        camera: with K and distortion.
        new_camera: the pinhole camera, by default :func:`undistorted_camera` (same K).

    Returns:
        (*, N, 2).
    """
    new_camera = undistorted_camera(camera) if new_camera is None else new_camera
    normalized = undistort_normalized(normalize_pixels(xy, _camera_K(camera, xy)), camera.distortion)
    return denormalize_pixels(normalized, _camera_K(new_camera, xy))


def distort_points(xy: Tensor, camera: Camera, new_camera: Camera | None = None) -> Tensor:
    """Pixels of the pinhole picture to pixels of the distorted picture; the inverse of :func:`undistort_points`."""
    new_camera = undistorted_camera(camera) if new_camera is None else new_camera
    normalized = distort_normalized(normalize_pixels(xy, _camera_K(new_camera, xy)), camera.distortion)
    return denormalize_pixels(normalized, _camera_K(camera, xy))


def undistorted_camera(camera: Camera, alpha: float | None = None, crop: bool = False) -> Camera:
    """The pinhole camera of the undistorted picture, with the same pose.

    Args:
        camera: with K and any distortion.
        alpha: None keeps K. Otherwise the focal lengths are scaled by one factor and the principal point
            moved: 0 shows only pixels that exist in the source, 1 shows every source pixel, values between
            interpolate.
        crop: keep the focal lengths and cut the picture to the largest window found valid everywhere.

    Returns:
        A camera without distortion.

    Raises:
        InputError: when K is unknown, alpha is outside [0, 1] or given together with crop, or the lens sees
            too wide an angle for one pinhole picture.
    """
    if camera.distortion is None or camera.distortion.is_identity:
        return camera.replace(distortion=None)
    K = _camera_K(camera, torch.zeros(1, dtype=torch.float64))
    if crop:
        if alpha is not None:
            raise InputError("undistortion takes either alpha or crop, not both")
        return _cropped_camera(camera, K)
    if alpha is None:
        return camera.replace(distortion=None)
    if not 0.0 <= alpha <= 1.0:
        raise InputError(f"undistortion alpha must lie in [0, 1], got {alpha}")
    inner, outer = _border_rectangles(camera)
    x0, y0, x1, y1 = (1 - alpha) * inner + alpha * outer
    aspect = K[1, 1] / K[0, 0]
    fits = torch.stack([camera.width / (x1 - x0), camera.height / (y1 - y0) / aspect])
    # alpha 0 must not show anything outside the rectangle, alpha 1 must show all of it.
    focal = float((1 - alpha) * fits.max() + alpha * fits.min())
    cx = 0.5 * camera.width - focal * 0.5 * float(x0 + x1)
    cy = 0.5 * camera.height - focal * float(aspect) * 0.5 * float(y0 + y1)
    return camera.replace(K=intrinsics(focal, focal * float(aspect), cx, cy), distortion=None)


def _cropped_camera(camera: Camera, K: Tensor) -> Camera:
    inner, _ = _border_rectangles(camera)
    corners = denormalize_pixels(inner.reshape(2, 2), K)
    # A barrel-shaped lens has valid content outside the picture; the window stays within the picture's frame.
    x0, y0 = (max(0, math.ceil(float(c) - 1e-9)) for c in corners[0])
    x1 = min(camera.width, math.floor(float(corners[1, 0]) + 1e-9))
    y1 = min(camera.height, math.floor(float(corners[1, 1]) + 1e-9))
    if x1 <= x0 or y1 <= y0:
        raise InputError(
            "no window of the undistorted picture is valid", remedy="check the lens coefficients"
        )
    return camera.replace(width=x1 - x0, height=y1 - y0, K=crop_intrinsics(K, x0, y0), distortion=None)


def _border_rectangles(camera: Camera) -> tuple[Tensor, Tensor]:
    """Largest rectangle inside and smallest around the undistorted border; (4,) each, normalised x0 y0 x1 y1."""
    w, h = float(camera.width), float(camera.height)
    s = torch.linspace(0, 1, 129, dtype=torch.float64)
    zero, one = torch.zeros_like(s), torch.ones_like(s)
    sides = [
        torch.stack(side, dim=-1)
        for side in ((zero, s * h), (one * w, s * h), (s * w, zero), (s * w, one * h))
    ]
    K = _camera_K(camera, s)
    checked = [undistort_normalized_checked(normalize_pixels(side, K), camera.distortion) for side in sides]
    if not all(bool(valid.all()) for _, valid in checked):
        raise InputError(
            "part of the picture's border has no pinhole position (a very wide lens or wrong coefficients)",
            remedy="keep K, without alpha or crop",
        )
    left, right, top, bottom = (points for points, _ in checked)
    inner = torch.stack([left[:, 0].max(), top[:, 1].max(), right[:, 0].min(), bottom[:, 1].min()])
    every = torch.cat([left, right, top, bottom])
    outer = torch.cat([every.min(dim=0).values, every.max(dim=0).values])
    return inner, outer


def undistortion_map(
    camera: Camera,
    new_camera: Camera | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Where each pixel of the pinhole picture lies in the distorted picture.

    Args:
        camera: with K and distortion.
        new_camera: the pinhole camera, by default :func:`undistorted_camera` (same size and K).
        dtype: type to compute in; single precision is good to about 0.001 pixel.
        device: where to compute.

    Returns:
        xy (H', W', 2) source pixels and validity (H', W'): inside the source and inside the monotonic range.
    """
    new_camera = undistorted_camera(camera) if new_camera is None else new_camera
    shape = (new_camera.height, new_camera.width)
    grid = pixel_grid(*shape, dtype=dtype, device=device).reshape(-1, 2)
    normalized = normalize_pixels(grid, _camera_K(new_camera, grid))
    source = denormalize_pixels(distort_normalized(normalized, camera.distortion), _camera_K(camera, grid))
    valid = inside_image(source, camera.width, camera.height)
    if camera.distortion is not None and not camera.distortion.is_identity:
        limit = monotonic_limit(camera.distortion)
        radius = limit if camera.distortion.model == "opencv" else math.tan(min(limit, math.pi / 2))
        valid &= normalized.norm(dim=-1) <= radius
    return source.reshape(*shape, 2), valid.reshape(shape)


def distortion_map(
    camera: Camera,
    new_camera: Camera | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Where each pixel of the distorted picture lies in the pinhole picture.

    Args:
        camera: with K and distortion.
        new_camera: the pinhole camera, by default :func:`undistorted_camera` (same size and K).
        dtype: type to compute in.
        device: where to compute.

    Returns:
        xy (H, W, 2) pixels of the pinhole picture and validity (H, W): inside it and inside the monotonic range.
    """
    new_camera = undistorted_camera(camera) if new_camera is None else new_camera
    shape = (camera.height, camera.width)
    grid = pixel_grid(*shape, dtype=dtype, device=device).reshape(-1, 2)
    normalized, valid = undistort_normalized_checked(
        normalize_pixels(grid, _camera_K(camera, grid)), camera.distortion
    )
    target = denormalize_pixels(normalized, _camera_K(new_camera, grid))
    valid = valid & inside_image(target, new_camera.width, new_camera.height)
    return target.reshape(*shape, 2), valid.reshape(shape)


def undistort_image(
    image: Tensor,
    camera: Camera,
    new_camera: Camera | None = None,
    mode: SampleMode = "bilinear",
    padding: Padding = "border",
) -> tuple[Tensor, Tensor]:
    """Resample a distorted picture to the pinhole camera.

    Args:
        image: (C, H, W) of ``camera``'s size.
        camera: with K and distortion.
        new_camera: the pinhole camera, by default :func:`undistorted_camera` (same size and K).
        mode: interpolation; use "nearest" for masks and depth.
        padding: what the half pixel along the border reads.

    Returns:
        picture (C, H', W'), 0 outside, and validity (H', W').

    Raises:
        InputError: when the picture does not have the camera's size or K is unknown.
    """
    new_camera = undistorted_camera(camera) if new_camera is None else new_camera
    if _same_pixels(camera, new_camera):
        return _remap(image, camera, None, None, mode=mode, padding=padding)
    xy, valid = undistortion_map(camera, new_camera, device=image.device)
    return _remap(image, camera, xy, valid, mode=mode, padding=padding)


def distort_image(
    image: Tensor,
    camera: Camera,
    new_camera: Camera | None = None,
    mode: SampleMode = "bilinear",
    padding: Padding = "border",
) -> tuple[Tensor, Tensor]:
    """Resample a pinhole picture (C, H', W') to the distorted ``camera``: picture (C, H, W) and validity (H, W)."""
    new_camera = undistorted_camera(camera) if new_camera is None else new_camera
    if _same_pixels(camera, new_camera):
        return _remap(image, new_camera, None, None, mode=mode, padding=padding)
    xy, valid = distortion_map(camera, new_camera, device=image.device)
    return _remap(image, new_camera, xy, valid, mode=mode, padding=padding)


def _same_pixels(camera: Camera, new_camera: Camera) -> bool:
    """True when there is no lens and both cameras have the same size and intrinsics."""
    if camera.distortion is not None and not camera.distortion.is_identity:
        return False
    same_size = (camera.width, camera.height) == (new_camera.width, new_camera.height)
    if camera.K is None or new_camera.K is None:
        return same_size and camera.K is new_camera.K
    return same_size and torch.equal(camera.K, new_camera.K)


def _remap(
    image: Tensor,
    source: Camera,
    xy: Tensor | None,
    valid: Tensor | None,
    *,
    mode: SampleMode,
    padding: Padding,
) -> tuple[Tensor, Tensor]:
    """Read ``image`` of camera ``source`` at ``xy``; None for both leaves the picture as it is."""
    if tuple(image.shape[-2:]) != (source.height, source.width):
        raise InputError(
            f"picture of {image.shape[-1]}x{image.shape[-2]} pixels does not fit a camera of "
            f"{source.width}x{source.height}",
            remedy="resize the camera with the picture",
        )
    if xy is None or valid is None:
        return image, torch.ones(image.shape[-2:], dtype=torch.bool, device=image.device)
    xy = torch.where(valid[..., None], xy, torch.zeros_like(xy))
    return sample_image(image, xy, mode, padding) * valid, valid
