"""Perceptual similarity of a coloured shape to its picture, through encoders that the user plugs in.

Specification objects.md 6.3: ULIP and Uni3D compare 8192 coloured points with the picture. Their weights are not part
of this project; without an encoder the similarity is not available, and nothing else takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from relief3d.core.contract import Mesh, PointCloud
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.eval.metrics.mesh import sample_surface

POINTS = 8192
NOT_AVAILABLE = "n/a"
_GREY = 128


@runtime_checkable
class PerceptualEncoder(Protocol):
    """Embeds pictures and coloured points into one space."""

    def embed_image(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """(D,) embedding of a picture (3, H, W) in [0, 1], with the object's mask (H, W) bool if known."""

    def embed_points(self, xyz: Tensor, rgb: Tensor) -> Tensor:
        """(D,) embedding of points (8192, 3) in the unit ball, with colours (8192, 3) in [0, 1]."""


def coloured_cloud(mesh: Mesh, count: int = POINTS, seed: int = 0) -> PointCloud:
    """Points spread by area with the colour of the surface, centred on their mean and scaled into the unit ball.

    Colours come from the texture, else from the vertices; a mesh with neither is mid grey.

    Raises:
        InputError: the mesh has no surface.
    """
    samples = sample_surface(mesh, count, torch_generator(seed))
    assert samples.faces is not None
    centred = samples.points - samples.points.mean(0)
    radius = centred.norm(dim=1).max()
    corners = mesh.faces.cpu()[samples.faces]
    weights = _barycentric(samples.points, mesh.vertices.detach().cpu().double()[corners])
    if mesh.texture is not None and mesh.uv is not None:
        uv = (weights[..., None] * mesh.uv.cpu().double()[corners]).sum(1)
        height, width = mesh.texture.shape[:2]
        column = (uv[:, 0] * width).long().clamp(0, width - 1)
        row = ((1 - uv[:, 1]) * height).long().clamp(0, height - 1)
        rgb = mesh.texture.cpu()[row, column]
    elif mesh.rgb is not None:
        rgb = (weights[..., None] * mesh.rgb.cpu().double()[corners]).sum(1).round().to(torch.uint8)
    else:
        rgb = torch.full((count, 3), _GREY, dtype=torch.uint8)
    return PointCloud((centred / radius).float(), rgb)


def _barycentric(points: Tensor, corners: Tensor) -> Tensor:
    """(N, 3) weights of the corners (N, 3, 3) at points (N, 3) of their triangles."""
    a, b, c = corners.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    square = normal.square().sum(1).clamp_min(torch.finfo(points.dtype).tiny)
    second = (torch.linalg.cross(points - a, c - a) * normal).sum(1) / square
    third = (torch.linalg.cross(b - a, points - a) * normal).sum(1) / square
    return torch.stack([1 - second - third, second, third], 1).clamp(0, 1)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two (D,) embeddings.

    Raises:
        InputError: different sizes, not finite, or a zero embedding.
    """
    a, b = a.detach().cpu().double().flatten(), b.detach().cpu().double().flatten()
    if a.shape != b.shape:
        raise InputError(f"embeddings of {a.numel()} and {b.numel()} numbers cannot be compared")
    length = a.norm() * b.norm()
    if not bool(torch.isfinite(length)) or not float(length) > 0:
        raise InputError("an encoder gave an embedding that is zero or not finite")
    return float(a @ b / length)


def perceptual_similarity(
    encoders: Mapping[str, PerceptualEncoder],
    mesh: Mesh,
    image: Tensor,
    mask: Tensor | None,
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Cosine similarity of shape and picture by every encoder; empty without encoders, which prints as "n/a".

    Args:
        encoders: by name, such as "ulip" and "uni3d".
        mesh: the prediction, coloured or not.
        image: (3, H, W) uint8, or float in [0, 1].
        mask: (H, W) bool or None.
        seed: of the points.

    Raises:
        InputError: the mesh has no surface, or embeddings cannot be compared.
    """
    if not encoders:
        return {}
    cloud = coloured_cloud(mesh, seed=seed)
    assert cloud.rgb is not None
    picture = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    colours = cloud.rgb.float() / 255
    return {
        name: cosine(encoder.embed_image(picture, mask), encoder.embed_points(cloud.xyz, colours))
        for name, encoder in encoders.items()
    }
