from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck

from relief3d.geometry import projection as pj
from relief3d.geometry.transforms import invert_rigid, transform_points

from .draws import F64, close, generator, intrinsics, normal, poses, properties, seeds, uniform


@properties
@given(seeds)
def test_project_inverts_unproject(seed: int) -> None:
    g = generator(seed)
    K, xy, z = intrinsics(g), uniform(g, -200, 900, 16, 9, 2), uniform(g, 0.01, 100, 16, 9)
    points = pj.unproject(xy, z, K)
    back, depth = pj.project(points, K)
    assert close(back, xy, 1e-11)
    assert torch.equal(depth, z)
    assert close(pj.denormalize_pixels(pj.normalize_pixels(xy, K), K), xy, 1e-12)


@properties
@given(seeds)
def test_projection_is_the_matrix_product(seed: int) -> None:
    g = generator(seed)
    K, T = intrinsics(g), poses(g)
    X = normal(g, 16, 9, 3)
    homogeneous = transform_points(T, X) @ K.mT
    xy, z = pj.project_world(X, K, T)
    ahead = z.abs() > 0.05
    assert close(xy[ahead], (homogeneous[..., :2] / homogeneous[..., 2:])[ahead], 1e-10)
    assert close(z, homogeneous[..., 2], 1e-12)


def test_points_on_the_camera_plane_stay_finite() -> None:
    points = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, -1.0]], dtype=F64, requires_grad=True)
    xy, _ = pj.project(points, torch.eye(3, dtype=F64))
    (grad,) = torch.autograd.grad(xy[1:].sum(), points)
    assert bool(torch.isfinite(xy).all()) and bool(torch.isfinite(grad).all())


def test_gradients() -> None:
    g = generator(0)
    X = normal(g, 2, 3, 3) + torch.tensor([0.0, 0.0, 5.0], dtype=F64)
    assert gradcheck(pj.project, (X.requires_grad_(), intrinsics(g, 2).requires_grad_()))
    xy, z = uniform(g, 0, 500, 2, 3, 2).requires_grad_(), uniform(g, 1, 2, 2, 3).requires_grad_()
    assert gradcheck(pj.unproject, (xy, z, intrinsics(g, 2).requires_grad_()))


def test_pixel_grid_has_centres_at_half() -> None:
    grid = pj.pixel_grid(3, 5, dtype=F64)
    assert grid.shape == (3, 5, 2)
    assert grid[0, 0].tolist() == [0.5, 0.5]
    assert grid[2, 4].tolist() == [4.5, 2.5]
    assert grid[1, 3].tolist() == [3.5, 1.5]  # (x, y)


@properties
@given(seeds)
def test_rays_and_point_maps_agree_with_unproject(seed: int) -> None:
    g = generator(seed)
    K, T = intrinsics(g, 3), poses(g)[:3]
    depth = uniform(g, 0.5, 9, 3, 4, 6)
    points = pj.depth_to_points(depth, K)
    grid = pj.pixel_grid(4, 6, dtype=F64).reshape(-1, 2).expand(3, -1, 2)
    assert close(points.reshape(3, -1, 3), pj.unproject(grid, depth.flatten(1), K), 1e-12)
    assert torch.equal(pj.pixel_rays(K, 4, 6)[..., 2], torch.ones(3, 4, 6, dtype=F64))
    origin, direction = pj.world_rays(K, T, 4, 6)
    world = origin[:, None, None] + depth[..., None] * direction
    assert close(world, pj.depth_to_world_points(depth, K, T), 1e-11)
    xy, z = pj.project_world(world.flatten(1, 2), K, invert_rigid(T))
    assert close(xy, grid, 1e-9)
    assert close(z, depth.flatten(1), 1e-11)


@properties
@given(seeds)
def test_resizing_and_cropping_commute_with_projection(seed: int) -> None:
    g = generator(seed)
    K = intrinsics(g)
    X = normal(g, 16, 5, 3) + torch.tensor([0.0, 0.0, 6.0], dtype=F64)
    xy, _ = pj.project(X, K)
    small = pj.resize_intrinsics(K, (640, 480), (200, 333))
    assert close(pj.project(X, small)[0], xy * torch.tensor([200 / 640, 333 / 480], dtype=F64), 1e-12)
    assert close(pj.resize_intrinsics(small, (200, 333), (640, 480)), K, 1e-12)
    cut = pj.crop_intrinsics(K, 17, -5)
    assert close(pj.project(X, cut)[0], xy - torch.tensor([17.0, -5.0], dtype=F64), 1e-12)
    assert torch.equal(pj.crop_intrinsics(K, 0, 0), K)
    # Crop then resize is resize then crop of the scaled window.
    a = pj.resize_intrinsics(pj.crop_intrinsics(K, 64, 48), (320, 240), (160, 120))
    b = pj.crop_intrinsics(pj.resize_intrinsics(K, (640, 480), (320, 240)), 32, 24)
    assert close(a, b, 1e-12)


def test_field_of_view() -> None:
    K = pj.intrinsics_from_fov(640, 480, math.radians(70))
    fov = pj.fov_from_intrinsics(K, 640, 480)
    assert fov[0].item() == pytest.approx(math.radians(70), abs=1e-12)
    assert fov[1].item() == pytest.approx(2 * math.atan(240 / K[1, 1].item()), abs=1e-12)
    assert K[0, 2].item() == 320 and K[1, 2].item() == 240


def test_inside_image() -> None:
    xy = torch.tensor([[0.0, 0.0], [640.0, 480.0], [640.1, 3.0], [-0.1, 3.0], [5.0, torch.nan]])
    assert pj.inside_image(xy, 640, 480).tolist() == [True, True, False, False, False]
    assert pj.inside_image(xy, 640, 480, margin=1.0).tolist() == [False] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types_are_kept_and_batches_equal_loops(dtype: torch.dtype) -> None:
    g = generator(5)
    K = intrinsics(g, 6).to(dtype).reshape(2, 3, 3, 3)
    X = (normal(g, 2, 3, 5, 3) + torch.tensor([0.0, 0.0, 5.0], dtype=F64)).to(dtype)
    depth = uniform(g, 1, 2, 2, 3, 4, 5).to(dtype)
    xy, z = pj.project(X, K)
    points = pj.depth_to_points(depth, K)
    assert xy.dtype == z.dtype == points.dtype == dtype
    for i in range(2):
        for j in range(3):
            assert close(pj.project(X[i, j], K[i, j])[0], xy[i, j], 1e-6)
            assert close(pj.depth_to_points(depth[i, j], K[i, j]), points[i, j], 1e-6)
