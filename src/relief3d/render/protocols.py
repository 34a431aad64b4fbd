"""What a renderer of meshes offers, whichever library does the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError

BackFaces = Literal["discard", "cull", "keep"]


@dataclass(frozen=True)
class Hits:
    """First hits of the pixel rays of one camera.

    Attributes:
        depth: (H, W) float32 z-depth, 0 where the ray misses.
        face: (H, W) int64 index of the hit face, -1 where the ray misses.
        barycentric: (H, W, 3) float32 weights of the face's vertices at the hit.
    """

    depth: Tensor
    face: Tensor
    barycentric: Tensor

    @property
    def hit(self) -> Tensor:
        """(H, W) bool."""
        return self.face >= 0


class DepthRenderer(Protocol):
    """Renders z-depth of triangle meshes seen by pinhole cameras.

    Rays go through pixel centres at +0.5. ``back_faces`` says what a hit on the far side of a face
    (seen clockwise) means: ``"discard"`` makes the pixel a miss, so that a thin wall seen from behind
    gives no depth; ``"cull"`` looks through it; ``"keep"`` counts it.
    """

    name: str

    def render(self, mesh: Mesh, camera: Camera, *, back_faces: BackFaces = "discard") -> Tensor:
        """(H, W) float32 z-depth at pixel centres, 0 where nothing is hit."""

    def cast(self, mesh: Mesh, camera: Camera, *, back_faces: BackFaces = "discard") -> Hits:
        """First hits with their faces and barycentric weights."""


def posed_pinhole(camera: Camera) -> tuple[Tensor, Tensor]:
    """``K`` (3, 3) and ``cam_from_world`` (4, 4), float64, of a camera that can be rendered.

    Raises:
        InputError: when intrinsics or pose are missing or the lens is not a pinhole.
    """
    cam_from_world = camera.cam_from_world
    if camera.K is None or cam_from_world is None:
        raise InputError("rendering needs a camera with known intrinsics and pose")
    if camera.distortion is not None and not camera.distortion.is_identity:
        raise InputError("rendering needs a pinhole camera", remedy="undistort the view first")
    return camera.K, cam_from_world


def check_mesh(mesh: Mesh) -> None:
    """Refuse meshes whose faces point outside the vertex list or whose vertices are not finite.

    Raises:
        InputError: naming what is wrong.
    """
    if mesh.vertices.ndim != 2 or mesh.vertices.shape[1] != 3:
        raise InputError(f"mesh vertices must be (V, 3), got {tuple(mesh.vertices.shape)}")
    if mesh.faces.ndim != 2 or mesh.faces.shape[1] != 3:
        raise InputError(f"mesh faces must be (F, 3), got {tuple(mesh.faces.shape)}")
    if not bool(torch.isfinite(mesh.vertices).all()):
        raise InputError("the mesh has vertices that are not finite")
    if mesh.faces.numel() and not (
        int(mesh.faces.min()) >= 0 and int(mesh.faces.max()) < mesh.vertices.shape[0]
    ):
        raise InputError("the mesh has faces that name a vertex it does not have")


def empty_hits(height: int, width: int, device: torch.device) -> Hits:
    """Hits of rays that all miss."""
    return Hits(
        torch.zeros(height, width, device=device),
        torch.full((height, width), -1, dtype=torch.int64, device=device),
        torch.zeros(height, width, 3, device=device),
    )
