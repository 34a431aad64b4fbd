"""Point-map errors: golden values, loops, the translation that is removed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.metrics.depth_errors import depth_errors
from relief3d.eval.metrics.point_maps import (
    align_metric_points,
    delta1_depth,
    delta1_point,
    drop_far_depth,
    point_map_errors,
    rel_depth,
    rel_point,
)


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, Tensor]:
    return load_file(shared_data.parent / "golden" / "metric_functions.safetensors")


def points(seed: int, height: int = 20, width: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(height, width, 3, generator=generator, dtype=torch.float64)
    p[..., 2] = p[..., 2].abs() + 1
    return p


@pytest.mark.shared
def test_golden_values(golden: dict[str, Tensor]) -> None:
    valid = golden["in/valid_mask"]
    p, g = golden["in/depth_pred"][valid], golden["in/depth_gt"][valid]
    assert rel_depth(p, g) == pytest.approx(float(golden["moge/metric_rel_depth"]), rel=1e-6)
    assert delta1_depth(p, g) == pytest.approx(float(golden["moge/metric_delta1_depth"]), rel=1e-6)
    p, g = 1.6 * golden["in/points_affine"][valid], golden["in/points_gt"][valid]
    assert rel_point(p, g) == pytest.approx(float(golden["moge/metric_rel_point"]), rel=1e-6)
    assert delta1_point(p, g) == pytest.approx(float(golden["moge/metric_delta1_point"]), rel=1e-6)


@pytest.mark.shared
def test_depth_errors_of_metric_anything_have_the_golden_values(golden: dict[str, Tensor]) -> None:
    valid = golden["in/valid_mask"]
    errors = depth_errors(golden["in/depth_pred"], golden["in/depth_gt"], valid).as_dict()
    names = {"d1": "delta1", "d2": "delta2", "d3": "delta3"}
    keys = [k.split("eval_")[1] for k in golden if k.startswith("metricanything/eval_")]
    assert len(keys) == 10
    for key in keys:
        expected = float(golden[f"metricanything/eval_{key}"])
        assert errors[names.get(key, key)] == pytest.approx(expected, rel=2e-6), key


def test_by_hand() -> None:
    p, d = torch.tensor([1.0, 2.5, -1.0]), torch.tensor([1.0, 2.0, 1.0])
    assert rel_depth(p, d) == pytest.approx((0 + 0.25 + 2) / 3, abs=1e-5)
    assert delta1_depth(p, d) == pytest.approx(1 / 3)  # 1.25 itself does not count, nor does a negative depth
    a = torch.tensor([[0.0, 0.0, 4.0], [3.0, 0.0, 4.0]])
    b = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 5.0]])
    assert rel_point(a, b) == pytest.approx((1 / 5 + np.sqrt(10) / 5) / 2, abs=1e-6)
    assert delta1_point(a, b) == 0.0  # 1 < 0.25 * 4 is false
    assert delta1_point(torch.tensor([[0.0, 0.0, 4.1]]), b[:1]) == 1.0


def test_depth_is_not_aligned_but_points_are_moved() -> None:
    truth = points(0)
    mask = torch.ones(20, 30, dtype=torch.bool)
    shift = torch.tensor([0.3, -0.2, 0.5]).double()
    moved = point_map_errors(truth + shift, (truth + shift)[..., 2], truth, mask)
    assert moved.rel_point == pytest.approx(0, abs=1e-9) and moved.delta1_point == 1
    expected = float((0.5 / (truth[..., 2] + 1e-6)).mean())
    assert moved.rel_depth == pytest.approx(expected)
    raw = point_map_errors(truth + shift, truth[..., 2], truth, mask, "none")
    distance = (shift.norm() / (truth.norm(dim=-1) + 1e-6)).mean()
    assert raw.rel_point == pytest.approx(float(distance)) and raw.rel_depth == 0
    # A wrong scale is not taken out.
    assert point_map_errors(1.5 * truth, truth[..., 2], truth, mask).rel_point > 0.2


def test_translation_is_the_weighted_median() -> None:
    truth, predicted = points(1, 64, 64), points(2, 64, 64)
    mask = torch.ones(64, 64, dtype=torch.bool)
    t = align_metric_points(predicted, truth, mask)
    weights = (1 / truth.norm(dim=-1)).reshape(-1).numpy()
    for axis in range(3):
        change = (truth - predicted)[..., axis].reshape(-1).numpy()
        costs = [(weights * np.abs(s - change)).sum() for s in np.linspace(change.min(), change.max(), 500)]
        assert (weights * np.abs(float(t[axis]) - change)).sum() <= min(costs) + 1e-9
    # Weights matter: far points count less.
    plain = torch.from_numpy(np.median((truth - predicted).reshape(-1, 3).numpy(), axis=0))
    assert not torch.allclose(t, plain, atol=1e-4)


def test_far_pixels_are_dropped() -> None:
    depth = torch.linspace(1, 2, 200).double().reshape(10, 20)
    depth[0, 0], depth[9, 19], depth[9, 18] = 0.0, 1020.0, 1005.0  # 1.01 at 1 %, 1.05 at 5 %, 1 at 0 %
    mask = depth > 0
    limit = 1000 * np.quantile(depth[mask].numpy(), 0.01)
    kept = drop_far_depth(depth, mask)
    assert torch.equal(kept, mask & (depth <= limit)) and not bool(kept[9, 19]) and bool(kept[9, 18])
    with pytest.raises(InputError, match="no valid pixels"):
        drop_far_depth(depth, depth < 0)


def test_bad_input() -> None:
    truth = points(3)
    mask = torch.ones(20, 30, dtype=torch.bool)
    with pytest.raises(InputError, match="no valid pixels"):
        point_map_errors(truth, truth[..., 2], truth, ~mask)
    with pytest.raises(InputError, match="do not fit"):
        point_map_errors(truth[1:], truth[..., 2], truth, mask)
    broken = truth.clone()
    broken[0, 0] = torch.inf
    with pytest.raises(InputError, match="not finite"):
        point_map_errors(broken, truth[..., 2], truth, mask)
    mask[0, 0] = False
    assert point_map_errors(broken, truth[..., 2], truth, mask).pixels == 599
