"""Layout metrics against loops, closed forms and planted motions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist

from relief3d.core.errors import InputError
from relief3d.eval.metrics.object_pose import (
    absent_add_s,
    add_s,
    diameter,
    icp_rotation,
    mask_iou,
    relative_scale_error,
    relative_translation_error,
    scene_scale,
    scene_similarity,
)
from relief3d.geometry.rotations import matrix_from_axis_angle

F64 = torch.float64


def cloud(n: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, generator=g, dtype=F64) * torch.tensor([1.0, 0.6, 0.3], dtype=F64)


def test_diameter_is_the_largest_pair_distance() -> None:
    points = cloud(400)
    assert diameter(points) == pytest.approx(pdist(points.numpy()).max(), abs=1e-12)
    flat = points.clone()
    flat[:, 2] = 0.25
    assert diameter(flat) == pytest.approx(pdist(flat.numpy()).max(), abs=1e-12)
    assert diameter(points[:2]) == pytest.approx(float((points[0] - points[1]).norm()))


def test_add_s_is_symmetric_and_divided_by_twice_the_diameter() -> None:
    a, b = cloud(50), cloud(70, seed=1) + 0.1
    d = diameter(b)
    pairs = cdist(a.numpy(), b.numpy())
    expected = (pairs.min(1).mean() + pairs.min(0).mean()) / (2 * d)
    assert add_s(a, b, d) == pytest.approx(expected, abs=1e-12)
    # One-sided ADD-S (prediction to truth only) is another number on a fragment.
    fragment = b[:5]
    assert cdist(fragment.numpy(), b.numpy()).min(1).mean() == 0
    assert add_s(fragment, b, d) > 0.01
    assert add_s(b, b, d) == 0.0
    with pytest.raises(InputError, match="diameter"):
        add_s(a, b, 0.0)


def test_an_absent_object_is_a_point_at_the_camera() -> None:
    truth = cloud(30) + torch.tensor([0.0, 0.0, 2.0], dtype=F64)
    length = truth.norm(dim=1).numpy()
    expected = (length.min() + length.mean()) / (2 * 1.5)
    assert absent_add_s(truth, 1.5) == pytest.approx(expected)


@pytest.mark.parametrize("degrees", [0.0, 7.0, 20.0])
def test_icp_rotation_recovers_a_planted_turn_despite_size_and_place(degrees: float) -> None:
    truth = cloud(1500)
    axis = torch.tensor([0.2, -0.5, 0.8], dtype=F64)
    R = matrix_from_axis_angle(axis / axis.norm() * np.deg2rad(degrees))
    predicted = 1.7 * truth @ R.T + torch.tensor([3.0, -1.0, 4.0], dtype=F64)
    assert icp_rotation(predicted, truth, iterations=200) == pytest.approx(degrees, abs=0.05)
    with pytest.raises(InputError, match="extent"):
        icp_rotation(torch.zeros(10, 3), truth)


def test_mask_iou_counts_pixels() -> None:
    a, b = torch.zeros(4, 5, dtype=torch.bool), torch.zeros(4, 5, dtype=torch.bool)
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(1 / 3)
    assert mask_iou(torch.zeros_like(b), b) == 0.0
    with pytest.raises(InputError, match="no valid pixels"):
        mask_iou(a, torch.zeros_like(b))
    with pytest.raises(InputError, match="sizes"):
        mask_iou(a, b[:3])


def test_relative_errors() -> None:
    t, true = torch.tensor([[0.0, 0.0, 3.0], [1.0, 0, 0]]), torch.tensor([[0.0, 0.0, 2.0], [0, 1.0, 0]])
    assert torch.allclose(relative_translation_error(t, true), torch.tensor([0.5, 2**0.5]))
    assert torch.allclose(
        relative_scale_error(torch.tensor([3.0]), torch.tensor([4.0])), torch.tensor([0.25])
    )
    with pytest.raises(InputError):
        relative_translation_error(t, torch.zeros(2, 3))
    with pytest.raises(InputError):
        relative_scale_error(t[0], torch.zeros(3))


def test_scene_scale_is_the_median_ratio_and_the_similarity_is_exact() -> None:
    assert scene_scale([1.0, 2.0, 4.0], [2.0, 6.0, 8.0]) == pytest.approx(2.0)
    assert scene_scale([1.0, 1.0], [2.0, 4.0]) == pytest.approx(3.0)
    with pytest.raises(InputError):
        scene_scale([], [])
    with pytest.raises(InputError):
        scene_scale([-1.0], [1.0])
    points = cloud(6)
    R = matrix_from_axis_angle(torch.tensor([0.1, 0.5, 0.2], dtype=F64))
    fit = scene_similarity(points, 2.5 * points @ R.T + 1)
    assert float(fit.scale) == pytest.approx(2.5) and torch.allclose(fit.rotation, R)
    with pytest.raises(InputError, match="three"):
        scene_similarity(points[:2], points[:2])
