"""Diagnostics of scale alignment: what is scaled, what is pooled, which frames count."""

import math

import numpy as np
import pytest
import torch

from corpora.evaluation import measure_samples, truthful
from corpora.scans import pose, write_scannet
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Measurement, Query, Truth
from relief3d.eval.protocols.registry import find_protocol
from relief3d.eval.protocols.surfaces.alignment_diagnostics import keyframes_of

PROTOCOL = find_protocol("scale_alignment")
QUERY = Query("s", "views", ("depth",))
K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]], dtype=torch.float64)


def truth_of(frames=3, z=2.0):
    depth = torch.full((frames, 48, 64), z)
    poses = torch.stack([pose(0.1 * i) for i in range(frames)])
    return Truth({"depth": depth, "valid": depth > 0, "K": K.expand(frames, 3, 3), "world_from_cam": poses})


def test_only_raw_depth_is_scaled():
    truth = truth_of()
    depth = truth.tensors["depth"]
    answer = Answer({"depth": depth * 1.1, "raw_depth": depth * 17, "refined_depth": depth * 0.95})
    got = PROTOCOL.summarise([PROTOCOL.measure(QUERY, truth, answer)])
    assert got["scale_error"] == pytest.approx(100 * math.log(1.1), rel=1e-6)
    assert got["abs_rel"] == pytest.approx(10.0, rel=1e-5)
    assert got["abs_rel_raw"] == pytest.approx(0.0, abs=1e-5)
    assert got["abs_rel_refined"] == pytest.approx(5.0, rel=1e-5)
    assert got["agree_2"] == got["agree_5"] == 100.0  # consistent with each other, though wrong
    alone = PROTOCOL.summarise([PROTOCOL.measure(QUERY, truth, Answer({"depth": depth}))])
    assert math.isnan(alone["abs_rel_raw"]) and alone["abs_rel"] == 0.0


def test_keyframes_are_pooled_over_scenes_and_the_tail_is_the_95th_percentile():
    truth = truth_of(4)
    factors = torch.tensor([1.0, 1.02, 1.5, 1.0])[:, None, None]
    short = truth_of(1)
    ms = [
        PROTOCOL.measure(QUERY, truth, Answer({"depth": truth.tensors["depth"] * factors})),
        PROTOCOL.measure(QUERY, short, Answer({"depth": short.tensors["depth"] * 2.0})),
    ]
    errors = np.log([1.0, 1.02, 1.5, 1.0, 2.0])
    got = PROTOCOL.summarise(ms)
    assert got["scale_error"] == pytest.approx(100 * errors.mean(), rel=1e-6)
    assert got["scale_error_95"] == pytest.approx(100 * np.quantile(errors, 0.95), rel=1e-6)
    by_scene = 100 * (errors[:4].mean() + errors[4]) / 2
    assert abs(got["scale_error"] - by_scene) > 5


def test_neighbours_at_two_scales_disagree():
    truth = truth_of(2)
    depth = truth.tensors["depth"].clone()
    depth[1] *= 1.03
    got = PROTOCOL.summarise([PROTOCOL.measure(QUERY, truth, Answer({"depth": depth}))])
    assert got["agree_2"] == 0.0 and got["agree_5"] == 100.0


def test_blind_frames_are_left_out_and_counted():
    truth = truth_of(3)
    depth = truth.tensors["depth"].clone()
    depth[1] = 0
    got = PROTOCOL.summarise([PROTOCOL.measure(QUERY, truth, Answer({"depth": depth}))])
    assert got["unmeasured"] == 1.0 and got["abs_rel"] == 0.0 and math.isnan(got["agree_2"])
    with pytest.raises(InputError, match="no valid pixels"):
        PROTOCOL.measure(QUERY, truth, Answer({"depth": torch.zeros_like(depth)}))
    with pytest.raises(InputError, match="shape"):
        PROTOCOL.measure(QUERY, truth, Answer({"depth": depth[:2]}))
    with pytest.raises(InputError, match="lacks 'depth'"):
        PROTOCOL.measure(QUERY, truth, Answer())


def test_keyframes_move_a_tenth_and_restart_after_a_long_loss():
    track = [pose(0.04 * i) for i in range(7)]  # 0, 0.12, 0.24
    assert keyframes_of(track) == [0, 3, 6]
    assert keyframes_of([*track[:4], None, *track[4:]]) == [0, 3, 6]
    lost = [None] * 31
    assert keyframes_of([*track[:4], *lost, *track[4:]]) == [0, 3, 4]
    assert keyframes_of([*track[:4], *lost[:30], *track[4:]]) == [0, 3, 6]


def test_scannet_layout(tmp_path):
    lost = torch.full((4, 4), -torch.inf)
    poses = {0: pose(), 1: pose(0.05), 2: lost, 3: pose(0.2)}
    write_scannet(tmp_path, poses=poses, depths={3: np.full((480, 640), 2.5)})
    (sample,) = PROTOCOL.open(tmp_path)
    query, truth = sample.load_query(), sample.load_truth()
    assert [v.name for v in query.scene.views] == ["0.jpg", "3.jpg"]
    camera = query.scene.views[0].camera
    assert (camera.width, camera.height) == (640, 480) and camera.K[0, 2] == 320.0 and camera.K[0, 0] == 500.0
    assert tuple(query.scene.views[1].load_image().shape) == (3, 480, 640)
    assert truth.tensors["depth"].shape == (2, 480, 640) and float(truth.tensors["depth"][1].max()) == 2.5
    got = PROTOCOL.measure(query, truth, truthful(query, truth))
    assert got.values["unmeasured"] == 0.0 and float(got.arrays["abs_rel"].max()) == 0.0


def test_twin():
    samples = PROTOCOL.twin("smoke", 1)
    query, truth = samples[0].load_query(), samples[0].load_truth()
    assert len(query.scene) == truth.tensors["depth"].shape[0] > 1
    ms = measure_samples(PROTOCOL, samples, truthful)
    got = PROTOCOL.summarise(ms)
    assert got["scale_error"] == got["abs_rel"] == got["abs_rel_raw"] == got["abs_rel_refined"] == 0.0
    assert got["agree_5"] > got["agree_2"] > PROTOCOL.floors["agree_2"]
    assert isinstance(ms[0], Measurement) and PROTOCOL.published() == ()
