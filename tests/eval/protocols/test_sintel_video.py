"""Sintel as videos from a tiny copy of its layout, and its camera paths against evo."""

import struct

import numpy as np
import pytest
import torch

from corpora.video_layouts import SIZE, check_video_rules, depth_map, frame_values, write_picture
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.registry import find_protocol
from relief3d.eval.protocols.views.sintel_video import SEQUENCES
from relief3d.geometry.rotations import matrix_from_axis_angle

TAG = 202021.25


def pose(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = np.eye(4)
    out[:3, :3] = matrix_from_axis_angle(torch.from_numpy(rng.normal(size=3))).numpy()
    out[:3, 3] = rng.normal(size=3)
    return out


@pytest.fixture
def sintel(tmp_path):
    for k, name in enumerate(SEQUENCES):
        for i in range(1, 4 + k % 2):
            stem = f"frame_{i:04d}"
            write_picture(tmp_path / f"training/final/{name}/{stem}.png", 10 * i)
            write_picture(tmp_path / f"training/clean/{name}/{stem}.png", 200)
            depth = tmp_path / f"training/depth/{name}/{stem}.dpt"
            depth.parent.mkdir(parents=True, exist_ok=True)
            values = depth_map(5 * k + i)
            depth.write_bytes(struct.pack("<fii", TAG, SIZE[1], SIZE[0]) + values.tobytes())
            camera = tmp_path / f"training/camdata_left/{name}/{stem}.cam"
            camera.parent.mkdir(parents=True, exist_ok=True)
            K = np.array([[20, 0, 7.5], [0, 20, 5.5], [0, 0, 1.0]])
            cam_from_world = np.linalg.inv(pose(100 * k + i))
            camera.write_bytes(struct.pack("<f", TAG) + K.tobytes() + cam_from_world[:3].tobytes())
    write_picture(tmp_path / "training/final/bandage_1/frame_0001.png", 1)  # not among the fourteen
    return tmp_path


def test_the_fourteen_sequences_of_the_final_pass(sintel):
    samples = find_protocol("sintel_video").open(sintel)
    assert [s.name for s in samples] == list(SEQUENCES) and len(SEQUENCES) == 14
    assert frame_values(samples[0]) == [10, 20, 30] and frame_values(samples[1]) == [10, 20, 30, 40]
    truth = samples[0].load_truth()
    np.testing.assert_array_equal(truth.tensors["depth"][1], depth_map(2))
    valid = truth.tensors["valid"]
    assert not valid[:, 3].any() and valid[:, 2, 8:].all() and not valid[1, 0, 0]


def test_own_mask_and_clip(sintel):
    protocol = find_protocol("sintel_video")
    neighbours = [(70.0, None), (None, 70.0), (None, None), (10.0, None)]
    check_video_rules(protocol, protocol.open(sintel)[:4], 70.0, 70.0, neighbours)


def test_missing_files_are_named(sintel):
    (sintel / "training/depth/alley_2/frame_0002.dpt").unlink()
    with pytest.raises(InputError, match=r"frame_0002\.dpt.*depth map is missing"):
        find_protocol("sintel_video").open(sintel)
    (sintel / "training/camdata_left/cave_4/frame_0001.cam").unlink()
    with pytest.raises(InputError, match=r"frame_0001\.cam.*camera file is missing"):
        find_protocol("sintel_trajectory").open(sintel)
    with pytest.raises(InputError, match="MPI Sintel"):
        find_protocol("sintel_video").open(sintel / "training/depth")


def test_paths_against_evo(sintel):
    metrics = pytest.importorskip("evo.core.metrics")
    from evo.core.trajectory import PosePath3D

    protocol = find_protocol("sintel_trajectory")
    samples = protocol.open(sintel)
    measured, expected = [], []
    for k, sample in enumerate(samples):
        query, truth = sample.load_query(), sample.load_truth()
        true = truth.tensors["world_from_cam"]
        torch.testing.assert_close(true[1], torch.from_numpy(pose(100 * k + 2)))
        assert query.scene.ordered and query.wants == ("world_from_cam",)
        pred = torch.stack([torch.from_numpy(pose(7000 + 10 * k + i)) for i in range(len(true))])
        measured.append(protocol.measure(query, truth, Answer({"world_from_cam": pred})))
        reference, estimate = (PosePath3D(poses_se3=list(x.numpy())) for x in (true, pred))
        estimate.align(reference, correct_scale=True)
        row = []
        ape = metrics.APE(metrics.PoseRelation.translation_part)
        ape.process_data((reference, estimate))
        row.append(ape.get_statistic(metrics.StatisticsType.rmse))
        for relation in (metrics.PoseRelation.translation_part, metrics.PoseRelation.rotation_angle_deg):
            rpe = metrics.RPE(relation, delta=1, delta_unit=metrics.Unit.frames, all_pairs=True)
            rpe.process_data((reference, estimate))
            row.append(rpe.get_statistic(metrics.StatisticsType.rmse))
        expected.append(row)
    summary = protocol.summarise(measured)
    got = [summary[c] for c in ("ate", "rpe_translation", "rpe_rotation")]
    np.testing.assert_allclose(got, np.mean(expected, 0), rtol=1e-9)
    # Sequences of different length: a mean over frames would be another number.
    lengths = [4 if k % 2 else 3 for k in range(14)]
    assert abs(got[0] - np.average([r[0] for r in expected], weights=lengths)) > 1e-4


def test_a_rigid_alignment_would_give_another_number(sintel):
    from relief3d.eval.metrics.camera_conventions import ate_rigid_mean

    protocol = find_protocol("sintel_trajectory")
    sample = protocol.open(sintel)[0]
    query, truth = sample.load_query(), sample.load_truth()
    scaled = truth.tensors["world_from_cam"].clone()
    scaled[:, :3, 3] *= 3
    assert protocol.measure(query, truth, Answer({"world_from_cam": scaled})).values["ate"] < 1e-9
    assert ate_rigid_mean(scaled, truth.tensors["world_from_cam"]) > 0.1
