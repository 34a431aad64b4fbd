"""OmniGeo and OmniVideo from a tiny copy of the benchmark's layout."""

import numpy as np
import pytest
import torch

from corpora.video_layouts import check_video_rules, depth_map, frame_values, write_picture
from relief3d.core.errors import InputError
from relief3d.eval.metrics.camera_conventions import auc_unit_bins, pi3_pair_errors
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.registry import find_protocol
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid

FOLDER = {"omnigeo": "geometric_prediction", "omnivideo": "video_generation"}
COUNTS = {"a_0": 47, "b_1": 25, "c_0": 12}


def poses(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    out = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    turn = 0.2 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    out[:, :3, :3] = matrix_from_axis_angle(turn)
    out[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return out


@pytest.fixture
def benchmark_root(tmp_path):
    for part, folder in FOLDER.items():
        for k, (name, count) in enumerate(COUNTS.items()):
            base = tmp_path / folder / name
            (base / "depth").mkdir(parents=True)
            for i in range(count):
                write_picture(base / f"image/{i:06d}.png", i + (100 if part == "omnivideo" else 0))
                np.save(base / f"depth/{i:06d}.npy", depth_map(7 * k + i))
            np.save(base / "camera_poses.npy", poses(count, k).numpy().astype(np.float32))
            np.save(base / "intrinsics.npy", np.tile(np.eye(3), (count, 1, 1)))
    return tmp_path


@pytest.mark.parametrize("part", FOLDER)
def test_every_tenth_frame_without_limit_or_clip(benchmark_root, part):
    protocol = find_protocol(part)
    for root in (benchmark_root, benchmark_root / FOLDER[part]):
        samples = protocol.open(root)
        assert [s.name for s in samples] == sorted(COUNTS)
    shift = 100 if part == "omnivideo" else 0
    assert [v - shift for v in frame_values(samples[0])] == [0, 15, 30, 46]
    assert [v - shift for v in frame_values(samples[2])] == [0]  # at least one
    truth = samples[0].load_truth().tensors
    np.testing.assert_array_equal(truth["depth"][2], depth_map(30))
    assert truth["valid"][:, 3].all()
    check_video_rules(protocol, samples[:2], None, None, [(70.0, None), (None, 70.0)])


@pytest.mark.parametrize("part", FOLDER)
def test_cameras_pool_all_pairs(benchmark_root, part):
    protocol = find_protocol(f"{part}_cameras")
    samples = protocol.open(benchmark_root)
    assert [len(s.load_query().scene) for s in samples] == [4, 2, 2]  # at least two
    measured, rotation, translation = [], [], []
    for k, sample in enumerate(samples):
        query, truth = sample.load_query(), sample.load_truth()
        true = truth.tensors["world_from_cam"]
        count = COUNTS[sample.name]
        chosen = np.linspace(0, count - 1, max(2, count // 10)).astype(int)
        torch.testing.assert_close(true, poses(count, k)[chosen], atol=1e-5, rtol=1e-5)
        pred = true @ poses(len(true), 50 + k)
        measured.append(protocol.measure(query, truth, Answer({"world_from_cam": pred})))
        errors = pi3_pair_errors(invert_rigid(pred), invert_rigid(true))
        rotation.append(errors.rotation)
        translation.append(errors.translation)
    worst = torch.maximum(torch.cat(rotation), torch.cat(translation))
    summary = protocol.summarise(measured)
    for t in (5, 15, 30):
        assert summary[f"auc_{t}"] == pytest.approx(auc_unit_bins(worst, t), abs=1e-4)
    per_sequence = np.mean([m.values["rra_30"] for m in measured])
    assert abs(summary["rra_30"] - per_sequence) > 1e-3


def test_incomplete_sequences_are_named(benchmark_root):
    protocol = find_protocol("omnigeo_cameras")
    base = benchmark_root / "geometric_prediction"
    np.save(base / "a_0/camera_poses.npy", np.zeros((5, 3)))
    with pytest.raises(InputError, match=r"camera_poses\.npy.*expected \(N, 4, 4\)"):
        protocol.open(benchmark_root)
    (base / "a_0/camera_poses.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="not a readable array"):
        protocol.open(benchmark_root)
    np.save(base / "a_0/camera_poses.npy", np.zeros((47, 4, 4)))
    with pytest.raises(InputError, match="camera pose"):
        protocol.open(benchmark_root)[0].load_truth()
    with pytest.raises(InputError, match="no folder here holds depth"):
        find_protocol("omnigeo").open(base / "a_0" / "image")


def test_fewer_poses_than_pictures_shorten_the_sequence(benchmark_root):
    base = benchmark_root / "geometric_prediction"
    np.save(base / "a_0/camera_poses.npy", poses(30, 0).numpy())
    sample = find_protocol("omnigeo_cameras").open(benchmark_root)[0]
    assert frame_values(sample) == [0, 14, 29]


def test_published_rows():
    rows = find_protocol("omnigeo_cameras").published()
    assert rows[0].method == "VGGT" and rows[0].values == {
        "auc_5": 45.093,
        "auc_15": 64.659,
        "auc_30": 72.649,
    }
    dropping = next(r for r in find_protocol("omnivideo").published() if r.method.endswith("dropping"))
    assert dropping.values["abs_rel_scale_shift"] == 0.111 and dropping.source == "SelfEvo, Table 12"


def test_doubtful_figures_are_marked_beside_the_table():
    for name, number in (("omnigeo", 7), ("omnivideo", 13), ("omnivideo_cameras", 13)):
        notes = find_protocol(name).notes
        assert any(n.startswith(f"SelfEvo, Table {number}: Doubtful") for n in notes)
