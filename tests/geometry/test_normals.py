from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck

from relief3d.geometry.normals import depth_to_normals
from relief3d.geometry.projection import intrinsics, pixel_rays

from .draws import F64, close, generator, properties, seeds, uniform

K = intrinsics(60, 62, 20.3, 14.8)
H, W = 30, 40


def plane(normal: torch.Tensor, offset: float) -> torch.Tensor:
    """z-depth of n . X = offset."""
    return offset / (pixel_rays(K, H, W) @ normal)


@properties
@given(seeds)
def test_planes_are_exact(seed: int) -> None:
    g = generator(seed)
    n = torch.cat([uniform(g, -1, 1, 2), -torch.ones(1, dtype=F64)])
    n = n / n.norm()
    depth = plane(n, -2.0)
    visible = depth > 0
    normals, valid = depth_to_normals(depth, K, max_ratio=10.0)
    assert valid.float().mean() > 0.5
    assert close(normals[valid & visible], n.expand(int((valid & visible).sum()), 3), 1e-9)
    assert bool((normals[valid].norm(dim=-1) - 1).abs().max() < 1e-12)
    assert bool(((normals * pixel_rays(K, H, W)).sum(-1)[valid] <= 0).all())  # facing the camera


def test_sphere_normals_are_close() -> None:
    rays = pixel_rays(K, H, W)
    centre, radius = torch.tensor([0.0, 0.0, 4.0], dtype=F64), 1.2
    a, b = rays.square().sum(-1), (rays @ centre)
    discriminant = b * b - a * (centre @ centre - radius**2)
    depth = torch.where(discriminant > 0, (b - discriminant.clamp_min(0).sqrt()) / a, 0.0)
    normals, valid = depth_to_normals(depth, K)
    truth = (rays * depth[..., None] - centre) / radius
    cosine = (normals * truth).sum(-1)[valid]
    assert valid.sum() > 200
    assert math.degrees(torch.acos(cosine.clamp(max=1)).median()) < 2
    assert not bool(valid[depth == 0].any())
    assert not bool(normals[~valid].any())


def test_creases_and_silhouettes_stay_sharp() -> None:
    # A step in depth: both sides are fronto-parallel and every pixel keeps the exact normal.
    step = torch.full((H, W), 2.0, dtype=F64)
    step[:, 20:] = 4.0
    normals, valid = depth_to_normals(step, K)
    assert bool(valid.all())
    assert close(normals, torch.tensor([0.0, 0.0, -1.0], dtype=F64).expand(H, W, 3), 1e-9)
    # A roof edge: away from the ridge column both faces are exact, at the ridge one of them is taken.
    left = torch.tensor([0.6, 0.0, -0.8], dtype=F64)
    right = torch.tensor([-0.6, 0.0, -0.8], dtype=F64)
    roof = torch.maximum(plane(left, -2.0), plane(right, -2.0))
    normals, valid = depth_to_normals(roof, K)
    to_left = (normals - left).norm(dim=-1)
    to_right = (normals - right).norm(dim=-1)
    assert bool(valid.all())
    assert torch.minimum(to_left, to_right).max() < 1e-9


def test_holes_masks_and_lonely_pixels() -> None:
    depth = torch.full((5, 6), 2.0, dtype=F64)
    depth[2, 3] = 0
    depth[4, :] = torch.nan
    mask = torch.ones(5, 6, dtype=torch.bool)
    mask[:, 0] = False
    normals, valid = depth_to_normals(depth, K, mask)
    assert bool(torch.isfinite(normals).all())
    assert not valid[2, 3] and not valid[4].any() and not valid[:, 0].any()
    assert valid[2, 2] and valid[3, 2] and valid[0, 1] and not valid[3, 3]
    lonely = torch.zeros(3, 3, dtype=F64)
    lonely[1, 1] = 1.0
    assert not depth_to_normals(lonely, K)[1].any()
    assert not depth_to_normals(torch.ones(1, 5, dtype=F64), K)[1].any()


def test_gradients_and_batches() -> None:
    g = generator(0)
    depth = plane(torch.tensor([0.2, 0.1, -1.0], dtype=F64), -2.0)[:4, :5] + 0.01 * uniform(g, 0, 1, 2, 4, 5)
    depth.requires_grad_()
    assert gradcheck(lambda d: depth_to_normals(d, K)[0], depth)
    holed = depth.detach().clone()
    holed[0, 1, 1] = 0
    holed.requires_grad_()
    (grad,) = torch.autograd.grad(depth_to_normals(holed, K)[0].sum(), holed)
    assert bool(torch.isfinite(grad).all())
    batched, _ = depth_to_normals(depth, K.expand(2, 3, 3))
    assert close(batched[1], depth_to_normals(depth[1], K)[0], 1e-14)
    single = depth_to_normals(depth.detach().float(), K.float())[0]
    assert single.dtype == torch.float32
    assert single[0, 1, 1].tolist() == pytest.approx(batched[0, 1, 1].tolist(), abs=1e-3)
