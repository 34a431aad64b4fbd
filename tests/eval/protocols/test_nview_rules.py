"""Rules of the dense N-view protocols against a few lines of numpy, and against their neighbours' rules."""

import math

import numpy as np
import pytest
import torch

from corpora.evaluation import measure_samples, truthful
from relief3d.core.errors import InputError
from relief3d.eval.metrics.camera_conventions import auc_torch_bins, auc_unit_bins, map_anything_pair_errors
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.views.nview_rules import (
    NViewProtocol,
    PosedSequence,
    choose_contiguous,
    load_truth,
    to_world,
)
from relief3d.geometry.projection import depth_to_points
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid, make_rigid

SIZE = (6, 8)


def sequence(name: str = "a", count: int = 8, seed: int = 0) -> PosedSequence:
    generator = torch.Generator().manual_seed(seed)
    depth = 2 + torch.rand(count, *SIZE, generator=generator)
    depth[torch.rand(count, *SIZE, generator=generator) < 0.2] = 0
    turn = matrix_from_axis_angle(0.2 * torch.randn(count, 3, generator=generator, dtype=torch.float64))
    poses = make_rigid(turn, torch.randn(count, 3, generator=generator, dtype=torch.float64))
    K = torch.tensor([[7.0, 0, 4.1], [0, 7.5, 2.9], [0, 0, 1]], dtype=torch.float64)
    return PosedSequence(
        name,
        [f"{i:03d}.png" for i in range(count)],
        pictures=lambda chosen: torch.zeros(len(chosen), 3, *SIZE, dtype=torch.uint8),
        K=lambda chosen: K.expand(len(chosen), 3, 3),
        world_from_cam=lambda chosen: poses[list(chosen)],
        depth=lambda chosen: depth[list(chosen)],
    )


def protocol(*sequences: PosedSequence, **changes) -> NViewProtocol:
    return NViewProtocol("some", "t", "s", lambda root: list(sequences), choose_contiguous(8), **changes)


def opened(p: NViewProtocol, tmp_path, index: int = 0):
    sample = p.open(tmp_path)[index]
    return sample.load_query(), sample.load_truth()


def disturbed(truth, seed: int = 1) -> Answer:
    """Points, depth and poses with independent errors, in another gauge and 3 times as large."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    t = truth.tensors
    gauge = make_rigid(
        matrix_from_axis_angle(torch.tensor([0.3, -1.0, 0.5]).double()), torch.ones(3).double()
    )
    wobble = make_rigid(matrix_from_axis_angle(0.1 * noise(8, 3)), 0.1 * noise(8, 3))
    poses = gauge @ (t["world_from_cam"] @ wobble)
    points = t["world_points"] * (1 + 0.05 * noise(8, *SIZE, 1)) + 0.05 * noise(8, *SIZE, 3)
    points = points @ gauge[:3, :3].T + gauge[:3, 3]
    poses[:, :3, 3] *= 3
    depth = 3 * t["depth"] * (1 + 0.06 * noise(8, *SIZE))
    return Answer({"world_points": 3 * points, "depth": depth, "world_from_cam": poses})


def in_first_view(points: np.ndarray, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = np.linalg.inv(poses[0])
    return points @ first[:3, :3].T + first[:3, 3], first @ poses


def test_numbers_equal_a_few_lines_of_numpy(tmp_path):
    p = protocol(sequence())
    query, truth = opened(p, tmp_path)
    answer = disturbed(truth)
    got = p.measure(query, truth, answer).values
    valid = truth.tensors["valid"].numpy()
    points, poses, depth = ({k: v.double().numpy() for k, v in s.items()} for s in ({}, {}, {}))
    for name, t in (("p", answer.tensors), ("g", truth.tensors)):
        points[name], poses[name] = in_first_view(
            t["world_points"].double().numpy(), t["world_from_cam"].numpy()
        )
        factor = np.linalg.norm(points[name][valid], axis=-1).mean()
        points[name] = points[name] / factor
        poses[name][:, :3, 3] /= factor
        depth[name] = t["depth"].double().numpy() / factor
    rel, tau, near, drel, dtau = [], [], [], [], []
    for i in range(8):
        a, b = points["p"][i][valid[i]], points["g"][i][valid[i]]
        size = np.linalg.norm(b, axis=-1)
        ratio = np.linalg.norm(a, axis=-1) / size
        rel.append((np.linalg.norm(a - b, axis=-1) / size).mean())
        tau.append((np.maximum(ratio, 1 / ratio) < 1.10).mean())
        near.append((np.linalg.norm(a - b, axis=-1) < 0.1 * size).mean())
        u, v = depth["p"][i][valid[i]], depth["g"][i][valid[i]]
        drel.append((np.abs(u - v) / v).mean())
        dtau.append((np.maximum(u / v, v / u) < 1.10).mean())
    assert got["pm_rel"] == pytest.approx(np.mean(rel), rel=1e-6)
    assert got["pm_tau"] == pytest.approx(np.mean(tau))
    assert got["pm_tau_distance"] == pytest.approx(np.mean(near))
    assert got["d_rel"] == pytest.approx(np.mean(drel), rel=1e-6)
    assert got["d_tau"] == pytest.approx(np.mean(dtau))
    assert got["pm_tau"] - got["pm_tau_distance"] > 0.05
    evo_metrics = pytest.importorskip("evo.core.metrics")
    trajectory = pytest.importorskip("evo.core.trajectory")
    reference, estimate = (trajectory.PosePath3D(poses_se3=list(poses[k])) for k in ("g", "p"))
    estimate.align(reference, correct_scale=False)
    ape = evo_metrics.APE(evo_metrics.PoseRelation.translation_part)
    ape.process_data((reference, estimate))
    assert got["ate"] == pytest.approx(ape.get_statistic(evo_metrics.StatisticsType.mean), abs=1e-9)
    assert abs(got["ate"] - ape.get_statistic(evo_metrics.StatisticsType.rmse)) > 1e-3
    worst = map_anything_pair_errors(torch.from_numpy(poses["p"]), torch.from_numpy(poses["g"])).worst
    assert got["auc_30"] == pytest.approx(auc_unit_bins(worst, 30))
    assert abs(got["auc_30"] - auc_torch_bins(worst, 30)) > 1e-3


def test_neighbouring_rules_give_other_numbers(tmp_path):
    query, truth = opened(protocol(sequence()), tmp_path)
    answer = disturbed(truth)
    base = protocol(sequence()).measure(query, truth, answer).values
    release = protocol(sequence(), tau=1.03, auc_degrees=5).measure(query, truth, answer).values
    assert release["pm_tau"] < base["pm_tau"] - 0.1 and release["auc_5"] < base["auc_30"]
    # A similarity fit before measuring would hide an error of the first pose; this protocol does not fit one.
    turned = dict(answer.tensors)
    turn = make_rigid(matrix_from_axis_angle(torch.tensor([0.0, 0.4, 0.0]).double()), torch.zeros(3).double())
    turned["world_from_cam"] = turned["world_from_cam"].clone()
    turned["world_from_cam"][0] = turned["world_from_cam"][0] @ turn
    assert protocol(sequence()).measure(query, truth, Answer(turned)).values["pm_rel"] > base["pm_rel"] + 0.15
    # No scale per view: a single view twice as large stays wrong.
    scaled = dict(answer.tensors)
    scaled["depth"] = scaled["depth"].clone()
    scaled["depth"][3] *= 2
    assert protocol(sequence()).measure(query, truth, Answer(scaled)).values["d_rel"] > base["d_rel"] + 0.05


def test_only_one_common_scale_is_free(tmp_path):
    p = protocol(sequence(), metric=True)
    query, truth = opened(p, tmp_path)
    t = truth.tensors
    poses = t["world_from_cam"].clone()
    poses[:, :3, 3] *= 2
    doubled = {"world_points": 2 * t["world_points"], "depth": 2 * t["depth"], "world_from_cam": poses}
    got = p.measure(query, truth, Answer(doubled)).values
    assert got["pm_rel"] < 1e-9 and got["d_rel"] < 1e-6 and got["ate"] < 1e-9
    assert got["scale_rel"] == pytest.approx(1.0)
    # Depth in another unit than the points: not repaired, it is divided by the points' factor.
    mixed = p.measure(query, truth, Answer(doubled | {"depth": t["depth"]})).values
    assert mixed["d_rel"] == pytest.approx(0.5, abs=1e-6) and mixed["d_tau"] == 0


def test_pixels_without_truth_do_not_count(tmp_path):
    p = protocol(sequence())
    query, truth = opened(p, tmp_path)
    t, hidden = truth.tensors, ~truth.tensors["valid"]
    assert bool(hidden.any())
    points, depth = t["world_points"].clone(), t["depth"].clone()
    points[hidden], depth[hidden] = math.nan, math.nan
    answer = Answer({"world_points": points, "depth": depth, "world_from_cam": t["world_from_cam"]})
    assert p.measure(query, truth, answer).values["pm_rel"] < 1e-12
    with pytest.raises(InputError, match="no valid pixels"):
        p.measure(query, type(truth)(t | {"valid": torch.zeros_like(t["valid"])}), answer)


def test_answers_may_hold_depth_or_camera_points_alone(tmp_path):
    p = protocol(sequence())
    query, truth = opened(p, tmp_path)
    t = truth.tensors
    local = depth_to_points(t["depth"].double(), t["K"])
    assert torch.allclose(to_world(local, t["world_from_cam"]), t["world_points"])
    poses = {"world_from_cam": t["world_from_cam"]}
    for tensors in (
        {"depth": t["depth"]},
        {"cam_points": local},
        {"world_points": t["world_points"]},
        {"depth": t["depth"], "K": t["K"]},
    ):
        values = p.measure(query, truth, Answer(poses | tensors)).values
        assert values["pm_rel"] < 1e-6 and values["d_rel"] < 1e-6 and values["d_tau"] == 1, set(tensors)
    wider = t["K"].clone()
    wider[:, 0, 0] *= 0.5
    assert p.measure(query, truth, Answer(poses | {"depth": t["depth"], "K": wider})).values["pm_rel"] > 0.1
    with pytest.raises(InputError, match="world_points"):
        p.measure(query, truth, Answer(poses))
    with pytest.raises(InputError, match="world_from_cam"):
        p.measure(query, truth, Answer({"depth": t["depth"]}))
    with pytest.raises(InputError, match="one map per frame"):
        p.measure(query, truth, Answer(poses | {"depth": t["depth"][:, ::2]}))


def test_truth_of_a_lens(tmp_path):
    rays = torch.rand(8, *SIZE, 3, dtype=torch.float64)
    rays[..., 2] = 1
    s = sequence()
    lens = PosedSequence(
        s.name, s.frames, s.pictures, s.K, s.world_from_cam, s.depth, rays=lambda chosen: rays[list(chosen)]
    )
    truth = load_truth(lens, range(8))
    local = to_world(truth["world_points"], invert_rigid(truth["world_from_cam"]))
    assert torch.allclose(local, rays * truth["depth"][..., None])
    assert not torch.allclose(load_truth(s, range(8))["world_points"], truth["world_points"])


def test_contiguous_frames():
    choose = choose_contiguous(8)
    chosen = choose("scene", 100)
    assert list(chosen) == list(range(chosen[0], chosen[0] + 8)) and chosen == choose("scene", 100)
    assert len({choose(f"scene{i}", 100)[0] for i in range(20)}) > 10
    assert {choose(f"scene{i}", 9)[0] for i in range(20)} == {0, 1}
    assert list(choose("scene", 8)) == list(range(8))
    with pytest.raises(InputError, match="has 7 frames, 8 are needed"):
        choose("scene", 7)


def test_sets_count_the_same_and_failures_too(tmp_path):
    p = protocol(sequence("a", seed=0), sequence("b", seed=1))
    samples = p.open(tmp_path)
    perfect = measure_samples(p, samples[:1], truthful)[0]
    query, truth = samples[1].load_query(), samples[1].load_truth()
    failed = p.failure(query, truth, "crashed")
    # The same as an answer with all points and cameras in one place.
    _, poses = in_first_view(truth.tensors["world_points"].numpy(), truth.tensors["world_from_cam"].numpy())
    points, _ = in_first_view(truth.tensors["world_points"].numpy(), truth.tensors["world_from_cam"].numpy())
    factor = np.linalg.norm(points[truth.tensors["valid"].numpy()], axis=-1).mean()
    centres = poses[:, :3, 3] / factor
    assert failed.values["ate"] == pytest.approx(np.linalg.norm(centres - centres.mean(0), axis=-1).mean())
    assert failed.values["pm_rel"] == 1 and failed.values["auc_30"] == 0
    got = p.summarise([perfect, failed])
    assert got["pm_rel"] == pytest.approx(0.5) and got["pm_tau"] == pytest.approx(0.5)
    assert got["auc_30"] == pytest.approx(50) and got["ate"] == pytest.approx(failed.values["ate"] / 2)
    assert set(got) == {c.key for c in p.columns}


def test_query_gives_intrinsics_and_no_poses(tmp_path):
    query, truth = opened(protocol(sequence(count=20)), tmp_path)
    assert len(query.scene) == 8
    for view, K in zip(query.scene.views, truth.tensors["K"]):
        assert torch.equal(view.camera.K, K) and view.camera.world_from_cam is None and view.depth is None
    start = choose_contiguous(8)("a", 20)[0]
    assert [v.name for v in query.scene.views] == [f"{start + i:03d}.png" for i in range(8)]
