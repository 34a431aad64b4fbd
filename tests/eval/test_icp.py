"""ICP on clouds with a known motion, and against Open3D."""

import math

import numpy as np
import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.eval.metrics.icp import NeighbourTree, icp
from relief3d.geometry.alignment import Similarity
from relief3d.geometry.rotations import matrix_from_quat_wxyz
from relief3d.render.open3d_backend import load_open3d, open3d_status

USABLE, WHY = open3d_status()


def rotation(degrees):
    half = math.radians(degrees) / 2
    axis = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    axis = axis / axis.norm() * math.sin(half)
    return matrix_from_quat_wxyz(torch.cat([torch.tensor([math.cos(half)], dtype=torch.float64), axis]))


def bumpy_cloud(count=800, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 2 - 1
    z = 0.3 * torch.sin(4 * xy[:, 0]) + 0.2 * xy[:, 1] ** 2
    return torch.cat((xy, z[:, None]), -1)


def moved(points, scale, degrees, shift):
    truth = Similarity(
        torch.tensor(scale, dtype=torch.float64), rotation(degrees), torch.tensor(shift, dtype=torch.float64)
    )
    return truth, truth.apply(points)


def test_known_rigid_motion_is_recovered():
    src = bumpy_cloud()
    truth, dst = moved(src, 1.0, 3.0, [0.01, -0.02, 0.015])
    got = icp(src, dst)
    assert torch.allclose(got.rotation, truth.rotation, atol=1e-9)
    assert torch.allclose(got.translation, truth.translation, atol=1e-9)
    assert got.scale == 1.0 and got.fitness == 1.0 and got.rmse < 1e-9
    assert torch.allclose(got.apply(src), dst, atol=1e-9)


def test_known_similarity_needs_the_scale():
    src = bumpy_cloud()
    truth, dst = moved(src, 1.04, 2.0, [0.01, 0.02, 0.0])
    got = icp(src, dst, with_scale=True, iterations=60)
    assert got.scale == pytest.approx(1.04, abs=1e-9)
    assert torch.allclose(got.rotation, truth.rotation, atol=1e-8)
    rigid = icp(src, dst, iterations=60)
    assert rigid.scale == 1.0 and rigid.rmse > 1e-3


def test_start_is_used_and_a_rigid_step_keeps_its_scale():
    src = bumpy_cloud()
    truth, dst = moved(src, 3.0, 120.0, [5.0, -4.0, 2.0])
    near = Similarity(truth.scale, rotation(118.0), truth.translation + 0.02)
    got = icp(src, dst, init=near, iterations=60)
    assert got.scale == pytest.approx(3.0) and got.rmse < 1e-8
    assert torch.allclose(got.translation, truth.translation, atol=1e-8)
    far = icp(src, dst, iterations=60)
    assert far.rmse > 0.1


def test_threshold_leaves_outliers_out():
    src = bumpy_cloud()
    truth, dst = moved(src, 1.0, 1.0, [0.004, 0.0, -0.003])
    outliers = torch.rand(200, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 3.0
    both = torch.cat((src, outliers))
    got = icp(both, dst, threshold=0.1)
    assert got.fitness == pytest.approx(0.8) and torch.allclose(got.rotation, truth.rotation, atol=1e-9)
    assert not torch.allclose(icp(both, dst).rotation, truth.rotation, atol=1e-3)


def test_a_pair_at_exactly_the_threshold_counts_and_few_pairs_change_nothing():
    dst = torch.tensor([[0.0, 0, 0], [10, 0, 0], [0, 10, 0]], dtype=torch.float64)
    src = dst + torch.tensor([0.0, 0.0, 0.5])
    assert icp(src, dst, threshold=0.5, iterations=0).fitness == 1.0
    alone = icp(src, dst, threshold=0.49)
    assert alone.fitness == 0.0 and alone.iterations == 0 and alone.rmse == 0.0
    assert torch.equal(alone.rotation, torch.eye(3, dtype=torch.float64))


def test_a_tree_is_reused_and_units_do_not_matter():
    src = bumpy_cloud()
    _, dst = moved(src + 0.01, 1.02, 2.0, [0.0, 0.02, 0.01])
    dst = dst[::2]
    metres = icp(src, NeighbourTree(dst), threshold=0.2, with_scale=True, iterations=15)
    millimetres = icp(src * 1000, dst * 1000, threshold=200.0, with_scale=True, iterations=15)
    assert millimetres.iterations == metres.iterations
    assert millimetres.rmse == pytest.approx(1000 * metres.rmse, rel=1e-9)
    assert torch.allclose(millimetres.translation, 1000 * metres.translation, atol=1e-6)


@pytest.mark.skipif(not USABLE, reason=WHY)
@pytest.mark.parametrize("with_scale", [False, True])
def test_open3d_gives_the_same(with_scale):
    o3d = load_open3d()
    src = bumpy_cloud(600, 1)
    _, dst = moved(bumpy_cloud(700, 2), 1.03, 4.0, [0.03, -0.01, 0.02])

    def cloud(points):
        return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.numpy()))

    registration = o3d.pipelines.registration
    want = registration.registration_icp(
        cloud(src),
        cloud(dst),
        0.15,
        np.eye(4),
        registration.TransformationEstimationPointToPoint(with_scale),
        registration.ICPConvergenceCriteria(0.0, 0.0, 12),
    )
    got = icp(src, dst, threshold=0.15, iterations=12, with_scale=with_scale, relative_tolerance=0.0)
    matrix = torch.from_numpy(want.transformation.copy())
    assert torch.allclose(got.scale * got.rotation, matrix[:3, :3], atol=1e-9)
    assert torch.allclose(got.translation, matrix[:3, 3], atol=1e-9)
    assert got.fitness == pytest.approx(want.fitness) and got.rmse == pytest.approx(want.inlier_rmse)


def test_refusals():
    with pytest.raises(InputError, match="no points"):
        icp(torch.zeros(0, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="no points"):
        icp(torch.zeros(1, 3), torch.zeros(0, 3))
    with pytest.raises(InputError, match="not finite"):
        icp(torch.full((1, 3), torch.nan), torch.zeros(1, 3))
    with pytest.raises(InputError, match="N, 3"):
        icp(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(InputError, match="positive"):
        icp(torch.zeros(4, 3), torch.zeros(4, 3), threshold=0.0)
