"""Boundary metrics: golden values, brute force by loops, invariances, masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.metrics.boundaries import (
    boundary_f1,
    boundary_thresholds,
    has_all_contours,
    matte_recall,
    moge_boundary_f1,
    thinned_edges,
)


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, Tensor]:
    return load_file(shared_data.parent / "golden" / "metric_functions.safetensors")


def steps(seed: int, height: int = 12, width: int = 15) -> Tensor:
    """A depth map with contours of all strengths and directions."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(height, width, generator=generator, dtype=torch.float64) * 0.15).exp() * 3


def brute_f1(predicted: Tensor, truth: Tensor, mask: Tensor | None = None) -> float:
    """Depth Pro's F1 by loops over thresholds, directions and pixels."""
    x, y = 1 / predicted.clamp_min(1e-6), 1 / truth.clamp_min(1e-6)
    height, width = x.shape
    limits = np.linspace(1.05, 1.25, 10)
    total = 0.0
    for t in limits:
        precisions, recalls = [], []
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            found = true = both = 0
            for i in range(height):
                for j in range(width):
                    k, m = i + dy, j + dx
                    if not (0 <= k < height and 0 <= m < width):
                        continue
                    if mask is not None and not (mask[i, j] and mask[k, m]):
                        continue
                    a, b = bool(x[k, m] / x[i, j] > t), bool(y[k, m] / y[i, j] > t)
                    found, true, both = found + a, true + b, both + (a and b)
            precisions.append(both / max(found, 1))
            recalls.append(both / max(true, 1))
        p, r = np.mean(precisions), np.mean(recalls)
        total += t * (2 * p * r / (p + r) if p + r > 0 else 0)
    return float(total / limits.sum())


@pytest.mark.shared
def test_depth_pro_golden_values(golden: dict[str, Tensor]) -> None:
    p, g = golden["in/depth_pred"], golden["in/depth_gt"]
    limits, weights = boundary_thresholds()
    torch.testing.assert_close(limits, golden["depthpro/thresholds"], rtol=0, atol=1e-15)
    torch.testing.assert_close(weights, golden["depthpro/weights"], rtol=0, atol=1e-15)
    scores = boundary_f1(p, g)
    assert scores.score == pytest.approx(float(golden["depthpro/SI_boundary_F1"]), abs=1e-12)
    for key in ("f1", "precision", "recall"):
        expected = golden[f"depthpro/boundary_{key}_per_threshold"]
        torch.testing.assert_close(getattr(scores, key), expected, rtol=0, atol=1e-12)
    for side, edges in thinned_edges(p, 1.1).items():
        assert torch.equal(edges, golden[f"depthpro/thinned_1.1_{side}"])
    recall = matte_recall(p, golden["in/matte"])
    assert recall == pytest.approx(float(golden["depthpro/SI_boundary_Recall"]), abs=1e-12)


@pytest.mark.shared
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_moge_golden_values(golden: dict[str, Tensor], radius: int) -> None:
    got = moge_boundary_f1(golden["in/depth_pred"], golden["in/depth_gt"], golden["in/valid_mask"], radius)
    assert got == pytest.approx(float(golden[f"moge/metric_boundary_f1_r{radius}"]), abs=1e-6)


def test_weights_by_hand() -> None:
    _, weights = boundary_thresholds()
    assert float(weights[0]) == pytest.approx(0.091304, abs=1e-6)
    assert float(weights[-1]) == pytest.approx(0.108696, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int) -> None:
    truth = steps(seed)
    predicted = truth * (0.08 * steps(seed + 10)).exp()
    mask = steps(seed + 20) > 2.5
    assert boundary_f1(predicted, truth).score == pytest.approx(brute_f1(predicted, truth), abs=1e-12)
    masked = boundary_f1(predicted, truth, mask).score
    assert masked == pytest.approx(brute_f1(predicted, truth, mask), abs=1e-12)


def test_scale_and_flips_do_not_matter() -> None:
    truth = steps(1)
    assert has_all_contours(truth)
    assert boundary_f1(0.037 * truth, truth).score == pytest.approx(1.0, abs=1e-12)
    predicted = truth * (0.08 * steps(2)).exp()
    score = boundary_f1(predicted, truth).score
    assert 0 < score < 1
    for dims in ((0,), (1,), (0, 1)):
        assert boundary_f1(predicted.flip(*dims), truth.flip(*dims)).score == pytest.approx(score, abs=1e-12)
    assert boundary_f1(predicted.T, truth.T).score == pytest.approx(score, abs=1e-12)
    # Directions count: the negative of the relief has its contours on the other side.
    assert boundary_f1(1 / truth, truth).score == 0


def test_directions_are_averaged_not_pooled() -> None:
    truth = torch.full((4, 40), 2.0).double()
    truth[:, 20:] = 1.0  # four contours to the right
    truth[2:, :20] = 1.7  # many contours to the bottom
    predicted = truth.clone()
    predicted[:, 20:] = truth[:, 19:20]  # misses the first kind
    scores = boundary_f1(predicted, truth)
    # Only the bottom map has anything in common: a quarter of the recall, although most contours were found.
    assert float(scores.recall[0]) == pytest.approx(0.25)


def test_unknown_truth_makes_false_contours_unless_masked() -> None:
    truth = steps(3)
    predicted = truth.clone()
    truth[4:8, 5:9] = 0
    assert boundary_f1(predicted, truth, truth > 0).score == pytest.approx(1.0)
    assert boundary_f1(predicted, truth).score < 0.9
    # What the prediction says inside the hole does not matter to the masked variant.
    other = predicted.clone()
    other[4:8, 5:9] = torch.nan
    assert boundary_f1(other, truth, truth > 0).score == pytest.approx(1.0)
    with pytest.raises(InputError, match="NaN"):
        boundary_f1(other, truth)


def test_bad_input() -> None:
    truth = steps(0)
    with pytest.raises(InputError, match="no valid pixels"):
        boundary_f1(truth, truth, truth < 0)
    with pytest.raises(InputError, match="one shape"):
        boundary_f1(truth[:-1], truth)
    with pytest.raises(InputError, match="H, W"):
        boundary_f1(truth[None], truth[None])
    with pytest.raises(InputError, match="no valid pixels"):
        moge_boundary_f1(truth, truth, truth < 0)
    with pytest.raises(InputError, match="too small"):
        moge_boundary_f1(truth[:5], truth[:5], truth[:5] > 0, 3)
    with pytest.raises(InputError, match="no outline"):
        matte_recall(truth, torch.zeros_like(truth))


def brute_thin(ratio: np.ndarray, limit: float) -> np.ndarray:
    out = np.zeros(ratio.shape, dtype=bool)
    for i, row in enumerate(ratio):
        j = 0
        while j < len(row):
            if row[j] > limit:
                end = j
                while end < len(row) and row[end] > limit:
                    end += 1
                out[i, j + int(np.argmax(row[j:end]))] = True
                j = end
            else:
                j += 1
    return out


def test_thinning_keeps_the_strongest_of_every_run() -> None:
    depth = steps(4)
    depth[3, 2:8] = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]).double()  # a long ramp
    x = (1 / depth).numpy()
    edges = thinned_edges(depth, 1.05)
    assert np.array_equal(edges["right"].numpy(), brute_thin(x[:, 1:] / x[:, :-1], 1.05))
    assert np.array_equal(edges["left"].numpy(), brute_thin(x[:, :-1] / x[:, 1:], 1.05))
    assert np.array_equal(edges["bottom"].numpy(), brute_thin((x[1:] / x[:-1]).T, 1.05).T)
    assert np.array_equal(edges["top"].numpy(), brute_thin((x[:-1] / x[1:]).T, 1.05).T)
    assert int(edges["right"][3, 2:7].sum()) == 1


def test_matte_recall_by_hand() -> None:
    matte = torch.zeros(8, 8)
    matte[2:6, 2:6] = 0.5
    depth = torch.full((8, 8), 4.0)
    depth[2:6, 2:6] = 2.0  # nearer, as a foreground is
    assert matte_recall(depth, matte) == pytest.approx(1.0)
    assert matte_recall(8 / depth, matte) == 0.0  # farther: every contour on the wrong side
    assert matte_recall(depth, 0.15 * matte / 0.5) == pytest.approx(1.0)  # above 0.1 is foreground
    soft = depth.clone()
    soft[2:6, 1] = 3.0  # a halo on the left: the run's strongest pair is one further in, still the outline
    soft[2:6, 6] = 2.2  # the right contour moves outwards
    assert matte_recall(soft, matte) == pytest.approx(0.75, abs=0.01)


def test_moge_variant_against_loops() -> None:
    truth = steps(5)
    predicted = truth * (0.08 * steps(6)).exp()
    mask = steps(7) > 2.4
    for radius in (1, 2):
        total, weight = 0.0, 0.0
        for t in np.linspace(0.05, 0.25, 10):
            found = true = both = 0
            for i in range(radius, 12 - radius):
                for j in range(radius, 15 - radius):
                    for dy in range(-radius, radius + 1):
                        for dx in range(-radius, radius + 1):
                            if dy * dy + dx * dx > radius * radius or not (
                                mask[i, j] and mask[i + dy, j + dx]
                            ):
                                continue
                            a = bool(predicted[i + dy, j + dx] / predicted[i, j] > 1 + t)
                            b = bool(truth[i + dy, j + dx] / truth[i, j] > 1 + t)
                            found, true, both = found + a, true + b, both + (a and b)
            p, r = both / max(found, 1), both / max(true, 1)
            total += t * (2 * p * r / (p + r) if p + r else 0)
            weight += t
        assert moge_boundary_f1(predicted, truth, mask, radius) == pytest.approx(total / weight, abs=1e-12)


def test_of_equal_ratios_in_a_run_the_first_stays() -> None:
    depth = torch.tensor([[4.0, 2.0, 1.0, 1.0], [4.0, 2.0, 1.0, 1.0]])  # ratios 2, 2, 1 towards the right
    assert thinned_edges(depth, 1.1)["right"].tolist() == [[True, False, False]] * 2
    assert thinned_edges(depth.T.contiguous(), 1.1)["bottom"].tolist() == [
        [True] * 2,
        [False] * 2,
        [False] * 2,
    ]
