"""Camera conventions of the papers against golden values, evo and loops written out in numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation

from relief3d.core.errors import InputError
from relief3d.eval.metrics.camera_conventions import (
    accuracy_percent,
    ate_rigid_mean,
    ate_sim3_rmse,
    auc_torch_bins,
    auc_unit_bins,
    map_anything_pair_errors,
    pair_baselines,
    pi3_pair_errors,
    rpe_sim3,
    worst_angles,
)
from relief3d.geometry.transforms import invert_rigid


def poses(count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    out = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    out[:, :3, :3] = torch.from_numpy(Rotation.random(count, random_state=rng).as_matrix())
    out[:, :3, 3] = torch.from_numpy(rng.normal(size=(count, 3)))
    return out


def disturbed(true: torch.Tensor, seed: int, degrees: float = 8.0, shift: float = 0.2) -> torch.Tensor:
    """Poses near the true ones in another gauge and scale."""
    rng = np.random.default_rng(seed)
    noise = torch.eye(4, dtype=torch.float64).repeat(len(true), 1, 1)
    vectors = rng.normal(size=(len(true), 3)) * math.radians(degrees)
    noise[:, :3, :3] = torch.from_numpy(Rotation.from_rotvec(vectors).as_matrix())
    noise[:, :3, 3] = torch.from_numpy(rng.normal(size=(len(true), 3)) * shift)
    return regauged(true @ noise, seed + 1, 0.7)


def regauged(world_from_cam: torch.Tensor, seed: int, scale: float) -> torch.Tensor:
    out = world_from_cam.clone()
    out[:, :3, 3] *= scale
    return poses(1, seed) @ out


def loop_errors(pred: torch.Tensor, true: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Relative pose T_j T_i^-1 of each pair, angles from the trace and the dot product."""
    rotation, translation = [], []
    for i in range(len(pred)):
        for j in range(i + 1, len(pred)):
            a = pred[j].numpy() @ np.linalg.inv(pred[i].numpy())
            b = true[j].numpy() @ np.linalg.inv(true[i].numpy())
            cosine = (np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2
            rotation.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
            u, v = a[:3, 3] / np.linalg.norm(a[:3, 3]), b[:3, 3] / np.linalg.norm(b[:3, 3])
            translation.append(np.degrees(np.arccos(np.clip(abs(u @ v), 0, 1))))
    return np.array(rotation), np.array(translation)


@pytest.mark.shared
def test_golden_values(shared_data):
    golden = load_file(shared_data.parent / "golden" / "multiview_losses_metrics.safetensors")
    group = {k.removeprefix("pose_metrics."): v for k, v in golden.items() if k.startswith("pose_metrics.")}
    pred, true = group["inputs.pred_w2c"], group["inputs.gt_w2c"]
    errors = pi3_pair_errors(pred, true)
    # 1e-3 degrees is the allowance of the golden file, which is in single precision.
    assert torch.allclose(errors.rotation.float(), group["outputs.rot_err_deg"], rtol=0, atol=1e-3)
    assert torch.allclose(errors.translation.float(), group["outputs.trans_err_deg"], rtol=0, atol=1e-3)
    for t in (5, 15, 30):
        assert auc_unit_bins(errors.worst, t) == pytest.approx(float(group[f"outputs.auc_{t}"]), abs=1e-5)
        assert accuracy_percent(errors.rotation, t) == pytest.approx(
            float(group[f"outputs.racc_{t}"]), abs=1e-5
        )
        assert accuracy_percent(errors.translation, t) == pytest.approx(
            float(group[f"outputs.tacc_{t}"]), abs=1e-5
        )
        assert abs(auc_torch_bins(errors.worst, t) - float(group[f"outputs.auc_{t}"])) > 0.1
    p, g = invert_rigid(pred.double()), invert_rigid(true.double())
    assert ate_rigid_mean(p, g) == pytest.approx(float(group["outputs.ate_rigid_mean"]), abs=1e-6)
    assert ate_sim3_rmse(p, g) == pytest.approx(float(group["outputs.ate_sim3_rmse"]), abs=1e-6)


def test_pi3_errors_equal_a_loop():
    true, pred = poses(6, 1), poses(6, 2)
    pred[:3] = disturbed(true, 3)[:3]
    got = pi3_pair_errors(pred, true)
    rotation, translation = loop_errors(pred, true)
    np.testing.assert_allclose(got.rotation.numpy(), rotation, atol=2e-5)
    np.testing.assert_allclose(got.translation.numpy(), translation, atol=2e-5)
    np.testing.assert_allclose(got.worst.numpy(), np.maximum(rotation, translation), atol=2e-5)


def test_gauge_and_scale_do_not_matter():
    true = poses(5, 4)
    pred = disturbed(true, 5)
    for convention, invert in ((pi3_pair_errors, True), (map_anything_pair_errors, False)):
        a, b = (invert_rigid(x) if invert else x for x in (pred, regauged(pred, 6, 3.0)))
        t = invert_rigid(true) if invert else true
        assert torch.allclose(convention(a, t).worst, convention(b, t).worst, atol=1e-6)


def test_conventions_differ_only_where_rotations_are_wrong():
    true = poses(5, 7)
    pred = disturbed(true, 8)
    ours, theirs = (
        pi3_pair_errors(invert_rigid(pred), invert_rigid(true)),
        map_anything_pair_errors(pred, true),
    )
    assert torch.allclose(ours.rotation, theirs.rotation, atol=1e-6)
    assert (ours.translation - theirs.translation).abs().max() > 0.5
    # Right rotations, wrong centres: both look at the same angle from another camera.
    moved = true.clone()
    moved[:, :3, 3] += 0.3 * torch.randn(
        5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    ours, theirs = (
        pi3_pair_errors(invert_rigid(moved), invert_rigid(true)),
        map_anything_pair_errors(moved, true),
    )
    assert torch.allclose(ours.translation, theirs.translation, atol=1e-6)
    assert ours.translation.max() > 1


def test_perfect_poses_and_reversed_translation():
    true = poses(4, 9)
    errors = pi3_pair_errors(true, true)
    assert float(errors.worst.max()) < 1e-5
    assert auc_unit_bins(errors.worst, 5) == 100 and accuracy_percent(errors.rotation, 1) == 100
    mirrored = true.clone()
    mirrored[:, :3, 3] *= -1  # cam_from_world with the opposite translation: every direction reversed
    assert float(pi3_pair_errors(mirrored, true).translation.max()) < 1e-5


def test_not_finite_and_no_baseline():
    true = poses(3, 10)
    pred = true.clone()
    pred[1, 0, 0] = math.nan
    errors = pi3_pair_errors(pred, true)
    assert errors.rotation.tolist()[0] == errors.translation.tolist()[2] == 1e6
    assert errors.worst[1] < 1e-5  # the pair (0, 2) is untouched
    still = true.clone()
    still[:, :3, 3] = 0
    # The published formula divides by |t| + 1e-15: no direction counts as 90 degrees, even for the truth.
    assert torch.allclose(pi3_pair_errors(still, still).translation, torch.full((3,), 90.0).double())


def test_worst_angles_and_baselines():
    worst = worst_angles(4)
    assert worst.rotation.tolist() == [180.0] * 6 and worst.translation.tolist() == [90.0] * 6
    true = torch.eye(4).repeat(3, 1, 1)
    true[:, 0, 3] = torch.tensor([0.0, 1.0, 3.0])
    assert pair_baselines(true).tolist() == [1.0, 3.0, 2.0]


def test_auc_worked_out_by_hand():
    worst = torch.tensor([0.5, 1.0, 4.0, 5.0, 5.0001, 80.0])
    # Bins [0,1) [1,2) [2,3) [3,4) [4,5]: counts 1 1 0 0 2 of six pairs; cumulative 1 2 2 2 4.
    assert auc_unit_bins(worst, 5) == pytest.approx(100 * (1 + 2 + 2 + 2 + 4) / 5 / 6)
    # Six bins of width 5/6: counts 1 1 0 0 1 1; cumulative 1 2 2 2 3 4.
    assert auc_torch_bins(worst, 5) == pytest.approx(100 * (1 + 2 + 2 + 2 + 3 + 4) / 6 / 6)


@pytest.mark.parametrize("threshold", [1, 5, 15, 30])
def test_auc_equals_library_histograms(threshold):
    rng = np.random.default_rng(threshold)
    worst = np.concatenate([rng.uniform(0, 45, 500), rng.integers(0, 40, 200).astype(float), [1e6]])
    counts, _ = np.histogram(worst, bins=np.arange(threshold + 1))
    assert auc_unit_bins(torch.from_numpy(worst), threshold) == pytest.approx(
        100 * np.mean(np.cumsum(counts / worst.size)), abs=1e-10
    )
    inner = torch.from_numpy(worst)
    inner = inner + 1e-7 * (inner > 0)  # no value on an edge, where histc rounds either way
    histogram = torch.histc(inner, bins=threshold + 1, min=0, max=threshold)
    expected = 100 * float(torch.cumsum(histogram / inner.numel(), 0).mean())
    assert auc_torch_bins(inner, threshold) == pytest.approx(expected, abs=1e-6)


def test_accuracy_is_strict():
    assert accuracy_percent(torch.tensor([1.0, 4.999, 5.0, 6.0]), 5) == 50.0


def evo_path(world_from_cam: torch.Tensor) -> Any:
    trajectory = pytest.importorskip("evo.core.trajectory")
    return trajectory.PosePath3D(poses_se3=list(world_from_cam.numpy()))


@pytest.mark.parametrize("seed", range(3))
def test_trajectory_errors_equal_evo(seed):
    evo_metrics = pytest.importorskip("evo.core.metrics")
    true = poses(12, 20 + seed)
    pred = disturbed(true, 30 + seed)
    reference, estimate = evo_path(true), evo_path(pred)
    estimate.align(reference, correct_scale=True)
    ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
    ape.process_data((reference, estimate))
    assert ate_sim3_rmse(pred, true) == pytest.approx(
        ape.get_statistic(evo_metrics.StatisticsType.rmse), abs=1e-9
    )
    for delta in (1, 3):
        got = rpe_sim3(pred, true, delta)
        for relation, value in (
            (evo_metrics.PoseRelation.translation_part, got.translation_rmse),
            (evo_metrics.PoseRelation.rotation_angle_deg, got.rotation_rmse_deg),
        ):
            rpe = evo_metrics.RPE(relation, delta, evo_metrics.Unit.frames, all_pairs=True)
            rpe.process_data((reference, estimate))
            assert value == pytest.approx(rpe.get_statistic(evo_metrics.StatisticsType.rmse), abs=1e-9)
            assert got.count == len(rpe.error) == 12 - delta
    rigid = evo_path(pred)
    rigid.align(reference, correct_scale=False)
    ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
    ape.process_data((reference, rigid))
    mean, rmse = (
        ape.get_statistic(s) for s in (evo_metrics.StatisticsType.mean, evo_metrics.StatisticsType.rmse)
    )
    assert ate_rigid_mean(pred, true) == pytest.approx(mean, abs=1e-9)
    assert abs(mean - rmse) > 1e-3  # the neighbouring rule would show


def test_bad_input():
    with pytest.raises(InputError, match="at least two views"):
        pi3_pair_errors(poses(1, 0), poses(1, 0))
    with pytest.raises(InputError, match="must both be"):
        map_anything_pair_errors(poses(3, 0), poses(2, 0))
    with pytest.raises(InputError, match="no pairs"):
        auc_unit_bins(torch.zeros(0), 5)
    with pytest.raises(InputError, match="no pairs"):
        accuracy_percent(torch.zeros(0), 5)
    with pytest.raises(InputError, match="whole number"):
        auc_unit_bins(torch.zeros(3), 0)
    with pytest.raises(InputError, match="three views"):
        ate_sim3_rmse(poses(2, 0), poses(2, 1))
    with pytest.raises(InputError, match="finite"):
        ate_rigid_mean(poses(3, 0) * math.nan, poses(3, 1))
    with pytest.raises(InputError, match="frames apart"):
        rpe_sim3(poses(3, 0), poses(3, 1), delta=5)


def test_poses_beyond_all_numbers_are_refused():
    poses = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 1.0, 2.0, 4.0])
    far = poses.clone()
    far[:, :3, 3] *= 1e300
    with pytest.raises(InputError, match="too far apart"):
        ate_sim3_rmse(far, poses)
