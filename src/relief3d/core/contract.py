"""The data contract: what every layer of relief3d speaks.

Conventions (docs/conventions.md): OpenCV camera axes (x right, y down, z forward); pixel centres at
+0.5, so an image covers ``[0, W] x [0, H]``; ``world_from_cam`` maps camera to world coordinates;
depth is the z coordinate in the camera frame; lengths are metres when ``metric`` is true, otherwise
the scene's own unit. Any field may be absent: an input carries whatever subset is known.

These are plain data with validation. Mathematics lives in :mod:`relief3d.geometry`, files in
:mod:`relief3d.io`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from relief3d.core.errors import InputError

DistortionModel = Literal["opencv", "fisheye"]
KSource = Literal["given", "exif", "estimated", "guess"]


@dataclass(frozen=True)
class Distortion:
    """Lens distortion in OpenCV's parameterisation, on normalised image coordinates.

    Attributes:
        model: ``"opencv"`` takes (k1, k2, p1, p2[, k3[, k4, k5, k6]]); ``"fisheye"`` takes (k1, k2, k3, k4).
        params: the coefficients, dimensionless.
    """

    model: DistortionModel
    params: tuple[float, ...]

    def __post_init__(self) -> None:
        allowed = {"opencv": (4, 5, 8), "fisheye": (4,)}
        if self.model not in allowed:
            raise InputError(f"unknown distortion model '{self.model}'", remedy="use opencv or fisheye")
        if len(self.params) not in allowed[self.model]:
            raise InputError(
                f"distortion model '{self.model}' takes {allowed[self.model]} coefficients, got {len(self.params)}"
            )

    @property
    def is_identity(self) -> bool:
        """True when the opencv model has only zero coefficients (a fisheye lens never is pinhole)."""
        return self.model == "opencv" and not any(self.params)


@dataclass(frozen=True)
class Camera:
    """One camera: image size, optional intrinsics, optional lens distortion, optional pose.

    Attributes:
        width, height: image size in pixels.
        K: (3, 3) float64, pixels, centres at +0.5; None when unknown.
        world_from_cam: (4, 4) float64 rigid transform; None when unknown.
        distortion: lens model, None for a pinhole image.
        K_source: where K comes from: "given" is trusted, "exif"/"guess" are refined, "estimated" was solved for.
    """

    width: int
    height: int
    K: Tensor | None = None
    world_from_cam: Tensor | None = None
    distortion: Distortion | None = None
    K_source: KSource = "given"

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InputError(f"camera size {self.width}x{self.height} is not positive")
        for name, shape in (("K", (3, 3)), ("world_from_cam", (4, 4))):
            value = getattr(self, name)
            if value is None:
                continue
            value = torch.as_tensor(value, dtype=torch.float64, device="cpu")
            if tuple(value.shape) != shape or not bool(torch.isfinite(value).all()):
                raise InputError(f"camera {name} must be a finite {shape[0]}x{shape[1]} matrix")
            object.__setattr__(self, name, value)
        if self.K is not None and not (self.K[0, 0] > 0 and self.K[1, 1] > 0):
            raise InputError("camera K must have positive focal lengths")
        if self.world_from_cam is not None:
            R = self.world_from_cam[:3, :3]
            rigid = torch.allclose(R @ R.T, torch.eye(3, dtype=R.dtype), atol=1e-3)
            if not rigid or torch.det(R) < 0:
                raise InputError(
                    "camera pose is not a rigid transform", remedy="give a rotation with determinant +1"
                )

    @property
    def cam_from_world(self) -> Tensor | None:
        """(4, 4) inverse of ``world_from_cam``."""
        if self.world_from_cam is None:
            return None
        R, t = self.world_from_cam[:3, :3], self.world_from_cam[:3, 3]
        out = torch.eye(4, dtype=torch.float64)
        out[:3, :3], out[:3, 3] = R.T, -R.T @ t
        return out

    @property
    def centre(self) -> Tensor | None:
        """(3,) camera centre in the world."""
        return None if self.world_from_cam is None else self.world_from_cam[:3, 3]

    def replace(self, **changes: Any) -> Camera:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Depth:
    """A depth map.

    Attributes:
        values: (H, W) float32 z-depth, 0 where invalid.
        valid: (H, W) bool.
        metric: True when values are metres.
        confidence: (H, W) float32 in [0, 1] or None.
    """

    values: Tensor
    valid: Tensor
    metric: bool = True
    confidence: Tensor | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape != self.valid.shape:
            raise InputError(
                f"depth values {tuple(self.values.shape)} and validity {tuple(self.valid.shape)} must be (H, W)"
            )
        if self.valid.dtype != torch.bool:
            raise InputError("depth validity must be boolean")
        if self.confidence is not None and self.confidence.shape != self.values.shape:
            raise InputError("depth confidence must have the size of the depth map")

    @staticmethod
    def from_values(values: Tensor, *, metric: bool = True, confidence: Tensor | None = None) -> Depth:
        """Mark finite positive values as valid and set the rest to 0; (H, W) in, any float type."""
        values = values.to(torch.float32)
        valid = torch.isfinite(values) & (values > 0)
        return Depth(torch.where(valid, values, torch.zeros_like(values)), valid, metric, confidence)


@dataclass(frozen=True)
class SparseDepth:
    """Depth known at some pixels (structure from motion, lidar, radar).

    Attributes:
        xy: (N, 2) float32 pixel positions, centres at +0.5.
        z: (N,) float32 z-depth.
        sigma: (N,) float32 standard deviation in the unit of z, or None.
        metric: True when z is in metres.
    """

    xy: Tensor
    z: Tensor
    sigma: Tensor | None = None
    metric: bool = True


LazyTensor = Tensor | Callable[[], Tensor] | None
LazyDepth = Depth | Callable[[], Depth] | None


@dataclass(frozen=True)
class View:
    """One picture with whatever is known about it.

    Attributes:
        name: unique within its scene; the file name relative to the input folder for pictures on disk.
        camera: size and any of intrinsics, distortion, pose.
        image: (3, H, W) float32 RGB in [0, 1], or a function that loads it.
        depth: dense depth of the camera's size, or a function that loads it.
        sparse_depth: depth at some pixels.
        mask: (H, W) bool, True where the picture may be used, or a function that loads it.
        time: seconds from the start of the recording.
        path: the file the picture came from, if any.
    """

    name: str
    camera: Camera
    image: LazyTensor = None
    depth: LazyDepth = None
    sparse_depth: SparseDepth | None = None
    mask: LazyTensor = None
    time: float | None = None
    path: Path | None = None

    def load_image(self) -> Tensor:
        """(3, H, W) float32 RGB in [0, 1].

        Raises:
            InputError: when the view has no picture.
        """
        image = self.image() if callable(self.image) else self.image
        if image is None:
            raise InputError(f"view '{self.name}' has no picture")
        return image

    def load_depth(self) -> Depth | None:
        """The dense depth, or None."""
        return self.depth() if callable(self.depth) else self.depth

    def load_mask(self) -> Tensor | None:
        """(H, W) bool or None."""
        return self.mask() if callable(self.mask) else self.mask

    def replace(self, **changes: Any) -> View:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class SparsePoints:
    """Points triangulated from several views, with their observations (a structure-from-motion model).

    Attributes:
        xyz: (P, 3) float64 world positions.
        rgb: (P, 3) uint8.
        error: (P,) float64 mean reprojection error in pixels.
        obs_point, obs_view: (M,) int64 indices into the points and into ``Scene.views``.
        obs_xy: (M, 2) float64 pixel positions in the (distorted) picture, centres at +0.5.
    """

    xyz: Tensor
    rgb: Tensor
    error: Tensor
    obs_point: Tensor
    obs_view: Tensor
    obs_xy: Tensor

    def __len__(self) -> int:
        return int(self.xyz.shape[0])


@dataclass(frozen=True)
class PointCloud:
    """(N, 3) float32 ``xyz`` with optional (N, 3) uint8 ``rgb``, (N, 3) float32 ``normals``, (N,) ``confidence``."""

    xyz: Tensor
    rgb: Tensor | None = None
    normals: Tensor | None = None
    confidence: Tensor | None = None


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int64, counter-clockwise seen from outside.
        rgb: (V, 3) uint8 vertex colours or None.
        normals: (V, 3) float32 unit normals or None.
        uv: (V, 2) float32 in [0, 1], origin at the bottom left of the texture, or None.
        texture: (H, W, 3) uint8 or None.
    """

    vertices: Tensor
    faces: Tensor
    rgb: Tensor | None = None
    normals: Tensor | None = None
    uv: Tensor | None = None
    texture: Tensor | None = None


@dataclass(frozen=True)
class Scene:
    """Views of one place, and what was reconstructed from them.

    Attributes:
        views: in capture order where there is one.
        metric: True when world lengths are metres.
        ordered: True when consecutive views follow each other in time (video, numbered walk).
        sparse: structure-from-motion points, if any.
        points: fused point cloud, if any.
        mesh: reconstructed surface, if any.
        info: free-form facts that belong in ``scene.json`` (JSON types only).
    """

    views: tuple[View, ...]
    metric: bool = False
    ordered: bool = False
    sparse: SparsePoints | None = None
    points: PointCloud | None = None
    mesh: Mesh | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        names = [view.name for view in self.views]
        if len(set(names)) != len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise InputError(f"two views are called '{twice}'", remedy="give every view its own name")

    def __len__(self) -> int:
        return len(self.views)

    @property
    def posed(self) -> tuple[int, ...]:
        """Indices of views whose intrinsics and pose are both known."""
        return tuple(
            i
            for i, v in enumerate(self.views)
            if v.camera.K is not None and v.camera.world_from_cam is not None
        )

    def replace(self, **changes: Any) -> Scene:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Batch:
    """Stacked views for networks: B scenes of N views of one size. Absent modalities are None.

    Per-view flags ``has_*`` (B, N) bool say where a modality is really known; elsewhere its values are 0
    (identity for poses) and must not be read.

    Attributes:
        images: (B, N, 3, H, W) RGB in [0, 1].
        K: (B, N, 3, 3) pixels.
        world_from_cam: (B, N, 4, 4).
        depth: (B, N, H, W) z-depth, 0 where ``depth_valid`` (B, N, H, W) is False.
        sparse_depth: (B, N, H, W) z-depth scattered on the nearest pixel, 0 elsewhere.
        mask: (B, N, H, W) bool, usable pixels.
        time: (B, N) seconds.
        metric: (B,) bool.
        names: scene and view names for error messages.
    """

    images: Tensor
    K: Tensor | None = None
    has_K: Tensor | None = None
    world_from_cam: Tensor | None = None
    has_pose: Tensor | None = None
    depth: Tensor | None = None
    depth_valid: Tensor | None = None
    sparse_depth: Tensor | None = None
    mask: Tensor | None = None
    time: Tensor | None = None
    metric: Tensor | None = None
    names: tuple[tuple[str, ...], ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class Prediction:
    """What a model says about a :class:`Batch`. Absent outputs are None.

    Attributes:
        depth: (B, N, H, W) z-depth.
        depth_confidence: (B, N, H, W), larger is better; the scale is the model's.
        cam_points: (B, N, H, W, 3) point maps in each camera's frame.
        world_points: (B, N, H, W, 3) point maps in one common frame.
        points_confidence: (B, N, H, W).
        world_from_cam: (B, N, 4, 4).
        K: (B, N, 3, 3) pixels of the batch's images.
        normals: (B, N, H, W, 3) unit, camera frame, facing the camera.
        mask: (B, N, H, W) probability that the pixel has a finite depth.
        metric_scale: (B,) factor from the prediction's unit to metres.
        metric: True when lengths are metres already.
        extras: further outputs by name (tracks, features).
    """

    depth: Tensor | None = None
    depth_confidence: Tensor | None = None
    cam_points: Tensor | None = None
    world_points: Tensor | None = None
    points_confidence: Tensor | None = None
    world_from_cam: Tensor | None = None
    K: Tensor | None = None
    normals: Tensor | None = None
    mask: Tensor | None = None
    metric_scale: Tensor | None = None
    metric: bool = False
    extras: Mapping[str, Tensor] = field(default_factory=dict)
