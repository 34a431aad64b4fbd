"""Projective position embedding: attention that knows the cameras (Li et al. 2025, PRoPE), as Pi3X uses it.

The first half of every head is cut in groups of four channels that transform like homogeneous points under the views'
camera-from-world matrices, so that products depend on relative poses only; the other two quarters carry one-dimensional
rotary embeddings of the patch's column and row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from relief3d.geometry.transforms import invert_rigid


def rotate_split(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """One-dimensional rotary embedding, first half against second half, opposite in sign to the 2-D one.

    Args:
        x: (..., T, d).
        positions: (T,).
        base: of the frequencies.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = (positions.float()[:, None] * frequency).to(x.dtype)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos + b * sin, b * cos - a * sin], -1)


def _by_camera(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply the groups of four channels of (B, h, N * P, d) by per-view (B, N, 4, 4)."""
    views = matrices.shape[1]
    grouped = x.unflatten(-2, (views, -1)).unflatten(-1, (-1, 4))
    return torch.einsum("bnij,bhnpgj->bhnpgi", matrices.to(x.dtype), grouped).flatten(-2).flatten(-3, -2)


def projective_attention(
    q: Tensor, k: Tensor, v: Tensor, cam_from_world: Tensor, grid: tuple[int, int], base: float = 100.0
) -> Tensor:
    """Attention over the patches of all views.

    Args:
        q: (B, heads, N * P, d), d a multiple of 16; likewise k and v.
        k: keys.
        v: values.
        cam_from_world: (B, N, 4, 4).
        grid: rows and columns of patches.
        base: of the rotary part.

    Returns:
        (B, heads, N * P, d).
    """
    rows, cols = grid
    views, half = cam_from_world.shape[1], q.shape[-1] // 2
    world_from_cam = invert_rigid(cam_from_world)
    x = torch.arange(cols, device=q.device).repeat(rows).repeat(views)
    y = torch.arange(rows, device=q.device).repeat_interleave(cols).repeat(views)

    def encode(t: Tensor, matrices: Tensor, sign: int = 1) -> Tensor:
        quarter = half // 2
        return torch.cat(
            [
                _by_camera(t[..., :half], matrices),
                rotate_split(t[..., half : half + quarter], sign * x, base),
                rotate_split(t[..., half + quarter :], sign * y, base),
            ],
            -1,
        )

    mixed = nn.functional.scaled_dot_product_attention(
        encode(q, cam_from_world.mT), encode(k, world_from_cam), encode(v, world_from_cam)
    )
    return encode(mixed, cam_from_world, -1)
