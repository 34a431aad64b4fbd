from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given

from relief3d.core.errors import InputError
from relief3d.geometry import conventions as cv
from relief3d.geometry.projection import project, project_world
from relief3d.geometry.transforms import invert_rigid, transform_points

from .draws import F64, close, generator, intrinsics, normal, poses, properties, seeds

PAIRS = list(product(cv.CONVENTIONS, cv.CONVENTIONS))
# What "one step right, one step down, two steps forward" is called in each convention.
NAMED = {
    "opencv": [1.0, 1.0, 2.0],
    "colmap": [1.0, 1.0, 2.0],
    "opengl": [1.0, -1.0, -2.0],
    "blender": [1.0, -1.0, -2.0],
    "pytorch3d": [-1.0, -1.0, 2.0],
}


@pytest.mark.parametrize("source,target", PAIRS)
def test_round_trips_over_all_pairs(source: cv.Convention, target: cv.Convention) -> None:
    T = poses(generator(0))
    there = cv.convert_world_from_cam(T, source, target)
    assert close(cv.convert_world_from_cam(there, target, source), T, 1e-15)
    assert close(torch.linalg.det(there), torch.ones(16, dtype=F64), 1e-12)  # never a mirror
    inverse = cv.convert_cam_from_world(invert_rigid(T), source, target)
    assert close(inverse, invert_rigid(there), 1e-12)
    # The same physical point, named in either convention, is the same world point.
    a, b = (torch.tensor([NAMED[name]], dtype=F64) for name in (source, target))
    assert close(transform_points(there, b), transform_points(T, a), 1e-12)
    assert torch.equal(cv.convert_cam_points(a, source, target), b)


@pytest.mark.parametrize("via", cv.CONVENTIONS)
def test_conversions_compose(via: cv.Convention) -> None:
    T = poses(generator(1))
    for source, target in PAIRS:
        direct = cv.convert_world_from_cam(T, source, target)
        assert close(
            cv.convert_world_from_cam(cv.convert_world_from_cam(T, source, via), via, target), direct, 1e-15
        )


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="unknown camera convention 'unity'"):
        cv.convert_world_from_cam(torch.eye(4), "unity", "opencv")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="up axis"):
        cv.world_up_rotation("w", "z")  # type: ignore[arg-type]


@properties
@given(seeds)
def test_colmap_storage(seed: int) -> None:
    g = generator(seed)
    T = poses(g)
    q, t = cv.colmap_from_world_from_cam(T)
    assert close(cv.world_from_cam_from_colmap(q, t), T, 1e-12)
    assert close(transform_points(T, torch.zeros(16, 1, 3, dtype=F64))[:, 0], T[:, :3, 3], 1e-12)
    centre = transform_points(cv.invert_rigid(T), T[:, None, :3, 3])[:, 0]
    assert close(centre, torch.zeros(16, 3, dtype=F64), 1e-11)


@properties
@given(seeds)
def test_pytorch3d_storage_uses_row_vectors(seed: int) -> None:
    g = generator(seed)
    T, X = poses(g), normal(g, 16, 5, 3)
    R, t = cv.pytorch3d_from_world_from_cam(T)
    in_cam = X @ R + t[:, None]
    expected = transform_points(invert_rigid(T), X) * torch.tensor([-1.0, -1.0, 1.0], dtype=F64)
    assert close(in_cam, expected, 1e-12)
    assert close(cv.world_from_cam_from_pytorch3d(R, t), T, 1e-12)


@properties
@given(seeds)
def test_opengl_pipeline_gives_the_same_pixels(seed: int) -> None:
    g = generator(seed)
    K, T = intrinsics(g), poses(g)
    in_cam = normal(g, 16, 6, 3) + torch.tensor([0.0, 0.0, 6.0], dtype=F64)
    world = transform_points(T, in_cam)
    xy, z = project_world(world, K, invert_rigid(T))
    view, clip = cv.opengl_view_matrix(T), cv.opengl_projection(K, 640, 480, 0.1, 50.0)
    homogeneous = torch.cat([world, torch.ones_like(world[..., :1])], dim=-1) @ (clip @ view).mT
    ndc = homogeneous[..., :3] / homogeneous[..., 3:]
    pixels = torch.stack([(ndc[..., 0] + 1) * 320, (1 - ndc[..., 1]) * 240], dim=-1)
    assert close(pixels, xy, 1e-9)
    assert close(homogeneous[..., 3], z, 1e-9)
    assert bool((ndc[..., 2].abs() <= 1).all())
    with pytest.raises(InputError, match="near"):
        cv.opengl_projection(K, 640, 480, 0.0, 1.0)


def test_opengl_depth_range() -> None:
    clip = cv.opengl_projection(torch.eye(3, dtype=F64), 2, 2, 0.5, 20.0)
    for z, ndc in ((0.5, -1.0), (20.0, 1.0)):
        p = clip @ torch.tensor([0.0, 0.0, -z, 1.0], dtype=F64)
        assert (p[2] / p[3]).item() == pytest.approx(ndc)


@properties
@given(seeds)
def test_intrinsics_conventions(seed: int) -> None:
    g = generator(seed)
    K, X = intrinsics(g), normal(g, 16, 4, 3) + torch.tensor([0.0, 0.0, 6.0], dtype=F64)
    integer = cv.shift_pixel_centres(K, 0.5, 0.0)
    assert close(project(X, integer)[0], project(X, K)[0] - 0.5, 1e-12)
    assert close(cv.shift_pixel_centres(integer, 0.0, 0.5), K, 1e-15)
    normalized = cv.normalized_intrinsics(K, 640, 480)
    assert close(cv.pixel_intrinsics(normalized, 640, 480), K, 1e-12)
    assert close(normalized[:, 0, 2] * 640, K[:, 0, 2], 1e-12)


@pytest.mark.parametrize("source,target", list(product(["x", "y", "z", "-x", "-y", "-z"], repeat=2)))
def test_world_up_rotation(source: cv.UpAxis, target: cv.UpAxis) -> None:
    def axis(name: str) -> torch.Tensor:
        v = torch.zeros(3, dtype=F64)
        v["xyz".index(name[-1])] = -1.0 if name[0] == "-" else 1.0
        return v

    T = cv.world_up_rotation(source, target)
    assert close(T[:3, :3] @ axis(source), axis(target), 1e-15)
    assert torch.linalg.det(T).item() == pytest.approx(1)
    assert close(T @ T.T, torch.eye(4, dtype=F64), 1e-15)
    if source == "y" and target == "z":  # the familiar one: x stays, z becomes -y
        assert (T[:3, :3] @ torch.tensor([1.0, 2.0, 3.0], dtype=F64)).tolist() == [1.0, -3.0, 2.0]
