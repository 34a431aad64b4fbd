"""Shape metrics on analytic shapes and against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial.distance import cdist

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.eval.metrics.mesh import sample_surface
from relief3d.eval.metrics.shapes import (
    DIAGONAL,
    ShapeSampling,
    align_shape,
    chamfer,
    compare_shapes,
    cube_rotations,
    f1_score,
    nearest_both,
    normalise_mesh,
    used_vertices,
    worst_shape,
)
from relief3d.eval.metrics.voxels import occupied_cells, set_iou, solid_cells

FAST = ShapeSampling(points=1500, icp_points=200, refine_points=0, icp_iterations=8, emd_points=64, grid=32)


def as_mesh(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(
        torch.tensor(np.asarray(shape.vertices)).float(), torch.tensor(np.asarray(shape.faces)).long()
    )


def wedge() -> Mesh:
    """A shape without symmetry: two boxes of different sizes."""
    parts = [trimesh.creation.box((2.0, 0.6, 0.4)), trimesh.creation.box((0.4, 0.5, 1.2))]
    parts[1].apply_translation((0.7, 0.3, 0.7))
    return as_mesh(trimesh.util.concatenate(parts))


def moved(mesh: Mesh, rotation: torch.Tensor, scale: float = 1.0, shift: float = 0.0) -> Mesh:
    return Mesh(scale * mesh.vertices @ rotation.T.to(mesh.vertices.dtype) + shift, mesh.faces)


def nearest(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = torch.from_numpy(cdist(a.numpy(), b.numpy()))
    return pairs.amin(1), pairs.amin(0)


def test_spheres_five_thousandths_apart_have_perfect_f1() -> None:
    ball = as_mesh(trimesh.creation.icosphere(3))
    x = sample_surface(ball, 2000, torch_generator(0)).points
    forward, backward = nearest(x, x + torch.tensor([0.005, 0.0, 0.0]))
    assert f1_score(forward, backward, 0.01) == 1.0
    assert chamfer(forward, backward, 1) <= 0.01 + 1e-12
    assert f1_score(*nearest(x, x + torch.tensor([3.0, 0.0, 0.0])), 0.01) == 0.0


def test_f1_threshold_is_strict_and_combines_both_directions() -> None:
    forward, backward = torch.tensor([0.0, 0.01, 0.02]), torch.tensor([0.005, 0.5])
    p, r = 1 / 3, 1 / 2
    assert f1_score(forward, backward, 0.01) == pytest.approx(2 * p * r / (p + r))
    assert chamfer(forward, backward, 1) == pytest.approx(0.01 + 0.2525)
    assert chamfer(forward, backward, 2) == pytest.approx(0.0005 / 3 + (0.005**2 + 0.25) / 2)


def test_identical_meshes_have_the_perfect_score_with_few_points() -> None:
    result = compare_shapes(wedge(), wedge(), FAST)
    assert (result.f1_001, result.f1_005, result.viou, result.viou_solid) == (1, 1, 1, 1)
    assert (result.chamfer_l1, result.chamfer_l2, result.emd) == (0, 0, 0) and not result.degenerate


def test_a_sinkhorn_distance_is_flagged() -> None:
    blurred = ShapeSampling(
        **{**FAST.__dict__, "emd_method": "sinkhorn", "starts": "identity", "emd_points": 24}
    )
    ball = as_mesh(trimesh.creation.icosphere(1))
    result, exact = compare_shapes(ball, wedge(), blurred), compare_shapes(ball, wedge(), FAST, align=False)
    assert not result.emd_exact and exact.emd_exact
    assert compare_shapes(wedge(), wedge(), blurred).emd < 1e-2


def test_size_place_and_quarter_turns_do_not_count() -> None:
    for k in (5, 22):
        other = moved(wedge(), cube_rotations()[k], scale=3.0, shift=0.4)
        result = compare_shapes(other, wedge(), FAST)
        assert result.f1_001 == pytest.approx(1) and result.chamfer_l1 < 1e-5 and result.emd < 1e-5


def test_all_with_all_equals_trees() -> None:
    g = torch.Generator().manual_seed(4)
    a, b = (
        torch.rand(700, 3, generator=g, dtype=torch.float64),
        torch.rand(400, 3, generator=g, dtype=torch.float64),
    )
    for ours, oracle in zip(nearest_both(a, b, device="cpu"), nearest(a, b)):
        assert torch.allclose(ours, oracle, atol=1e-6)
    for ours, oracle in zip(nearest_both(a, b), nearest(a, b)):
        assert torch.allclose(ours, oracle, atol=1e-12)
    assert float(nearest_both(a, a, device="cpu")[0].max()) == 0.0


def test_one_start_is_caught_in_a_wrong_pose_that_the_cube_group_leaves() -> None:
    turned = moved(wedge(), cube_rotations()[22])
    single = ShapeSampling(**{**FAST.__dict__, "starts": "identity"})
    assert compare_shapes(turned, wedge(), single).chamfer_l1 > 0.05
    assert compare_shapes(turned, wedge(), FAST).chamfer_l1 < 1e-5


def test_alignment_never_scales() -> None:
    points = sample_surface(normalise_mesh(wedge()), 400, torch_generator(0)).points
    fit = align_shape(0.8 * points, points, FAST)
    assert float(fit.scale) == 1.0
    assert torch.allclose(fit.rotation @ fit.rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert float(torch.linalg.det(fit.rotation)) == pytest.approx(1)


def test_metrics_equal_brute_force_without_alignment() -> None:
    ball, block = as_mesh(trimesh.creation.icosphere(2)), as_mesh(trimesh.creation.box((2, 1.4, 1.8)))
    result = compare_shapes(ball, block, FAST, align=False)
    x = sample_surface(normalise_mesh(ball), 1500, torch_generator(0)).points
    y = sample_surface(normalise_mesh(block), 1500, torch_generator(0)).points
    forward, backward = nearest(x, y)
    p, r = float((forward < 0.05).double().mean()), float((backward < 0.05).double().mean())
    assert result.f1_005 == pytest.approx(2 * p * r / (p + r), abs=1e-12)
    assert result.chamfer_l1 == pytest.approx(float(forward.mean() + backward.mean()), abs=1e-12)
    assert result.chamfer_l2 == pytest.approx(float((forward**2).mean() + (backward**2).mean()), abs=1e-12)

    def cells(points: torch.Tensor) -> set[tuple[int, ...]]:
        return {tuple(min(31, max(0, math.floor((v + 1) * 16))) for v in row) for row in points.tolist()}

    a, b = cells(x), cells(y)
    assert result.viou == pytest.approx(len(a & b) / len(a | b), abs=1e-12)


def test_normalised_mesh_fills_the_cube_by_its_longest_side() -> None:
    mesh = as_mesh(trimesh.creation.box((1.0, 4.0, 2.0)))
    stray = Mesh(torch.cat([mesh.vertices + 7, torch.tensor([[99.0, 99.0, 99.0]])]), mesh.faces)
    points = used_vertices(normalise_mesh(stray))
    assert torch.allclose(points.amax(0), torch.tensor([0.25, 1.0, 0.5], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(points.amin(0), -points.amax(0), atol=1e-6)


def test_empty_predictions_get_the_worst_values_and_empty_truths_are_refused() -> None:
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    flat = Mesh(torch.ones(3, 3), torch.tensor([[0, 1, 2]]))
    nan = Mesh(torch.full((3, 3), float("nan")), torch.tensor([[0, 1, 2]]))
    for bad in (None, empty, flat, nan):
        result = compare_shapes(bad, wedge(), FAST)
        assert result == worst_shape() and result.degenerate
    assert worst_shape().emd == worst_shape().chamfer_l1 == pytest.approx(2 * math.sqrt(3)) == DIAGONAL
    assert worst_shape().f1_001 == worst_shape().viou == 0
    with pytest.raises(InputError, match="no surface"):
        compare_shapes(wedge(), empty, FAST)


def test_the_cube_group_has_24_proper_rotations() -> None:
    group = cube_rotations()
    assert group.shape == (24, 3, 3) and torch.equal(group[0], torch.eye(3, dtype=torch.float64))
    assert torch.allclose(torch.linalg.det(group), torch.ones(24, dtype=torch.float64))
    assert len({tuple(g.flatten().tolist()) for g in group}) == 24


def test_solid_cells_of_a_ball_and_a_box_have_their_volume() -> None:
    ball = as_mesh(trimesh.creation.icosphere(4))
    cells = solid_cells(ball, 32).numel() / 32**3 * 8
    assert cells == pytest.approx(4 / 3 * math.pi, rel=0.01)
    block = as_mesh(trimesh.creation.box((2.0, 1.0, 0.5)))
    assert solid_cells(block, 64).numel() == 64 * 32 * 16


def test_solid_cells_equal_a_point_test_and_survive_a_missing_triangle() -> None:
    shape = trimesh.creation.torus(0.7, 0.25)
    mesh = as_mesh(shape)
    axis = (torch.arange(16, dtype=torch.float64) + 0.5) / 8 - 1
    grid = torch.cartesian_prod(axis, axis, axis)
    ring = (grid[:, :2].norm(dim=1) - 0.7) ** 2 + grid[:, 2] ** 2
    # Away from the surface, where the mesh and the exact torus agree.
    sure_in, sure_out = ring < 0.23**2, ring > 0.26**2
    for triangles in (mesh.faces, torch.cat([mesh.faces[:100], mesh.faces[101:]])):
        inside = set(solid_cells(Mesh(mesh.vertices, triangles), 16).tolist())
        number = [occupied_cells(p[None], 16)[0].item() for p in grid[sure_in]]
        assert all(n in inside for n in number)
        assert not any(occupied_cells(p[None], 16)[0].item() in inside for p in grid[sure_out][::7])


def test_points_on_the_cube_and_beyond() -> None:
    corner = torch.tensor([[1.0, 1.0, 1.0], [1 + 1e-9, 1.0, 1.0], [0.999, 0.999, 0.999]])
    assert occupied_cells(corner).numel() == 1
    outside = torch.tensor([[1.5, 0.0, 0.0]])
    assert set_iou(occupied_cells(outside), occupied_cells(torch.tensor([[0.99, 0.0, 0.0]]))) == 0.0
    assert set_iou(torch.tensor([1, 2, 3]), torch.tensor([2, 3, 4])) == 0.5
    assert set_iou(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64)) == 0.0
    with pytest.raises(InputError):
        occupied_cells(corner, 0)
