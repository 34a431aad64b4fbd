"""What fusion offers, whichever library does the work."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError


@runtime_checkable
class MeshExtractor(Protocol):
    """Turns what was integrated into a surface."""

    def extract(self, min_weight: float = 1.0) -> Mesh:
        """The zero level of the signed distance among voxels of at least ``min_weight``.

        Faces are counter-clockwise seen from free space. Nothing is filled: a cube with an unobserved
        corner has no face. The mesh is empty when nothing qualifies.
        """


@runtime_checkable
class Fuser(MeshExtractor, Protocol):
    """A truncated signed distance volume: Curless and Levoy, "A volumetric method for building complex
    models from range images", 1996.

    Attributes:
        name: back end.
        voxel_size: in world units.
        truncation: in world units.
        frames: number of depth maps integrated (empty ones are skipped and not counted).
    """

    name: str
    voxel_size: float
    truncation: float
    frames: int

    def integrate(
        self,
        depth: Tensor,
        K: Tensor,
        cam_from_world: Tensor,
        color: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> bool:
        """Add one depth map.

        Args:
            depth: (H, W) z-depth in world units; 0, negative or non-finite where unknown.
            K: (3, 3) pixels, centres at +0.5.
            cam_from_world: (4, 4).
            color: (H, W, 3) RGB in [0, 1], or None.
            weight: (H, W) non-negative weights, or None for 1; pixels of weight 0 are ignored.

        Returns:
            False when the map held no usable pixel and was skipped.
        """

    def memory_bytes(self) -> int:
        """Bytes held by the volume."""


def empty_mesh() -> Mesh:
    """A mesh without vertices."""
    return Mesh(
        torch.zeros(0, 3),
        torch.zeros(0, 3, dtype=torch.int64),
        rgb=torch.zeros(0, 3, dtype=torch.uint8),
    )


def usable_depth(depth: Tensor, weight: Tensor | None, max_depth: float) -> Tensor:
    """(H, W) float32 depth with everything unusable set to 0.

    Raises:
        InputError: when shapes disagree or a weight is negative.
    """
    if depth.ndim != 2:
        raise InputError(f"depth to fuse must be (H, W), got {tuple(depth.shape)}")
    depth = depth.to(torch.float32)
    good = torch.isfinite(depth) & (depth > 0) & (depth <= max_depth)
    if weight is not None:
        if weight.shape != depth.shape:
            raise InputError(f"weights {tuple(weight.shape)} must have the size of the depth map")
        if bool((weight < 0).any()):
            raise InputError("fusion weights must not be negative")
        good &= torch.isfinite(weight) & (weight > 0)
    return torch.where(good, depth, torch.zeros_like(depth))


def check_frame(depth: Tensor, color: Tensor | None) -> None:
    """Raises InputError when the colours do not have the size of the depth map."""
    if color is not None and tuple(color.shape) != (*depth.shape, 3):
        raise InputError(f"colours must be {(*depth.shape, 3)}, got {tuple(color.shape)}")
