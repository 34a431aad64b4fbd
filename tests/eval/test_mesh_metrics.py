"""Mesh metrics by hand on planes."""

import pytest
import torch

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.eval.metrics.mesh import (
    SurfaceSamples,
    cull_samples,
    evaluate_meshes,
    evaluate_points,
    nearest_points,
    sample_surface,
    visible_count,
)
from relief3d.render.open3d_backend import open3d_status

USABLE, WHY = open3d_status()


def square(z=0.0, size=2.0, x0=-1.0):
    v = torch.tensor([[x0, -1, z], [x0, 1, z], [x0 + size, 1, z], [x0 + size, -1, z]])
    return Mesh(v, torch.tensor([[0, 1, 2], [0, 2, 3]]))


def test_parallel_planes_three_centimetres_apart():
    got = evaluate_meshes(square(0.03), square(0.0), (0.05, 0.02), relative=False, samples=100_000)
    assert got.accuracy == pytest.approx(0.03, abs=6e-4)
    assert got.completeness == pytest.approx(0.03, abs=6e-4)
    assert got.chamfer_l1 == pytest.approx(0.03, abs=6e-4)
    assert got.chamfer_l2 == pytest.approx(0.0009, rel=0.05)
    near, nearer = got.scores
    assert (near.precision, near.recall, near.fscore) == (1, 1, 1)
    assert (nearer.precision, nearer.recall, nearer.fscore) == (0, 0, 0)
    assert got.normal_consistency == pytest.approx(1.0)
    assert got.diagonal == pytest.approx(8**0.5)


def test_eight_centimetres_score_nothing_at_five():
    got = evaluate_meshes(square(0.08), square(0.0), (0.05,), relative=False, samples=20_000)
    assert got.scores[0].fscore == 0


def test_half_of_the_surface_has_full_precision_and_half_recall():
    got = evaluate_meshes(square(0.0, size=1.0), square(0.0), (0.01,), samples=60_000)
    score = got.scores[0]
    limit = 0.01 * 8**0.5
    assert score.threshold == pytest.approx(limit) and score.share == pytest.approx(0.01)
    assert score.precision == pytest.approx(1.0, abs=1e-3)
    assert score.recall == pytest.approx((1 + limit) / 2, abs=0.01)
    expected = 2 * score.precision * score.recall / (score.precision + score.recall)
    assert score.fscore == pytest.approx(expected)


def test_exact_point_sets():
    a = SurfaceSamples(torch.tensor([[0.0, 0, 0], [1, 0, 0]], dtype=torch.float64))
    b = SurfaceSamples(torch.tensor([[0.0, 0, 0], [1, 1, 0], [4, 0, 0]], dtype=torch.float64))
    got = evaluate_points(a, b, (0.5, 1.0), backend="scipy")
    assert got.accuracy == pytest.approx(0.5) and got.completeness == pytest.approx(4 / 3)
    assert got.scores[0].precision == 0.5 and got.scores[0].recall == pytest.approx(1 / 3)
    assert got.scores[1].precision == 1.0 and got.scores[1].recall == pytest.approx(2 / 3)
    assert got.normal_consistency is None


def test_samples_are_uniform_in_area_and_repeatable():
    big, small = square(0.0, 2.0), square(5.0, 1.0)
    mesh = Mesh(torch.cat((big.vertices, small.vertices)), torch.cat((big.faces, small.faces + 4)))
    one = sample_surface(mesh, 40_000, torch.Generator().manual_seed(3))
    two = sample_surface(mesh, 40_000, torch.Generator().manual_seed(3))
    assert torch.equal(one.points, two.points)
    on_big = one.points[:, 2] < 1
    assert float(on_big.double().mean()) == pytest.approx(2 / 3, abs=0.01)
    cells = torch.histc(one.points[on_big, 0], 8, -1, 1) / on_big.sum()
    assert float((cells - 1 / 8).abs().max()) < 0.01


@pytest.mark.skipif(not USABLE, reason=WHY)
def test_nearest_back_ends_agree():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3000, 3, generator=generator)
    one, two = nearest_points(a, b, "scipy"), nearest_points(a, b, "open3d")
    assert torch.allclose(one[0], two[0], atol=1e-7) and torch.equal(one[1], two[1])


def test_visibility_by_depth_maps():
    K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]], dtype=torch.float64)
    first = Camera(64, 48, K, torch.eye(4))
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = 1.0
    second = Camera(64, 48, K, pose)
    depth = torch.full((48, 64), 2.0)
    points = torch.tensor([[0.5, 0, 2.0], [0.5, 0, 2.05], [0.5, 0, 2.2], [-1.2, 0, 2.0], [0.5, 0, -2.0]])
    count = visible_count(points, [first, second], [depth, depth], slack=0.1)
    assert count.tolist() == [2, 2, 0, 1, 0]
    kept = cull_samples(SurfaceSamples(points), [first, second], [depth, depth], 0.1, min_views=2)
    assert kept.points.shape[0] == 2
    with pytest.raises(InputError, match="size of its camera"):
        visible_count(points, [first], [depth[:4]], 0.1)


def test_refusals():
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="no surface"):
        evaluate_meshes(empty, square())
    with pytest.raises(InputError, match="positive"):
        evaluate_meshes(square(), square(), (0.0,), samples=10)
    with pytest.raises(InputError, match="empty"):
        nearest_points(torch.zeros(0, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="finite"):
        nearest_points(torch.full((1, 3), torch.nan), torch.zeros(1, 3))
