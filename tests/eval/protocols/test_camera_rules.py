"""Rules of the camera protocols: frames, pooling over pairs, thresholds, failures, and answers that do not fit."""

import numpy as np
import pytest
import torch
from PIL import Image

from corpora.evaluation import measure_samples, truthful
from relief3d.core.errors import InputError
from relief3d.eval.metrics.camera_conventions import map_anything_pair_errors, pi3_pair_errors
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.views.camera_rules import (
    CameraProtocol,
    CameraSequence,
    CameraTwin,
    choose_sparse,
    read_pictures,
    sparse_indices,
)
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid, make_rigid


def path(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    turn = matrix_from_axis_angle(0.5 * torch.randn(count, 3, generator=generator, dtype=torch.float64))
    return make_rigid(turn, torch.randn(count, 3, generator=generator, dtype=torch.float64))


def sequence(name: str, count: int, seed: int, chosen: tuple[int, ...] | None = None) -> CameraSequence:
    poses = path(count, seed)
    return CameraSequence(
        name,
        [f"{i}.png" for i in range(count)],
        pictures=lambda frames: torch.zeros(len(frames), 3, 4, 6, dtype=torch.uint8),
        world_from_cam=lambda frames: poses[list(frames)],
        chosen=chosen,
    )


def protocol(*sequences: CameraSequence, **changes) -> CameraProtocol:
    return CameraProtocol("some_cameras", "t", "s", reader=lambda root: list(sequences), **changes)


def noisy(seed: int, degrees: float = 6.0):
    """An oracle whose rotations and centres are off."""

    def answer(query, truth):
        true = truth.tensors["world_from_cam"]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.deg2rad(degrees * torch.randn(len(true), 3, generator=generator, dtype=torch.float64))
        shift = 0.1 * torch.randn(len(true), 3, generator=generator, dtype=torch.float64)
        return Answer({"world_from_cam": true @ make_rigid(matrix_from_axis_angle(noise), shift)})

    return answer


@pytest.mark.parametrize(
    ("count", "expected"),
    [(2, [0, 1]), (15, [0, 14]), (20, [0, 19]), (35, [0, 17, 34]), (40, [0, 13, 26, 39])],
)
def test_sparse_frames(count, expected):
    """max(2, n // 10) frames from the first to the last, truncated to whole indices."""
    assert sparse_indices(count) == expected
    assert choose_sparse(sequence("a", count, 0)) == expected


def test_too_few_frames():
    with pytest.raises(InputError, match="at least two frames"):
        sparse_indices(1)


def test_query_shows_the_chosen_frames_only(tmp_path):
    p = protocol(sequence("a", 35, 1))
    (sample,) = p.open(tmp_path)
    query, truth = sample.load_query(), sample.load_truth()
    assert [v.name for v in query.scene.views] == ["0.png", "17.png", "34.png"]
    assert all(v.camera.world_from_cam is None and v.camera.K is None for v in query.scene.views)
    assert not query.scene.ordered
    assert torch.equal(truth.tensors["world_from_cam"], path(35, 1)[[0, 17, 34]])


def test_frames_fixed_by_the_data_win(tmp_path):
    (sample,) = protocol(sequence("a", 35, 1, chosen=(9, 3, 20))).open(tmp_path)
    assert [v.name for v in sample.load_query().scene.views] == ["9.png", "3.png", "20.png"]
    for bad, message in (((3, 3), "two different"), ((3,), "two different"), ((3, 35), "frame 35")):
        with pytest.raises(InputError, match=message):
            protocol(sequence("a", 35, 1, chosen=bad)).open(tmp_path)


def test_errors_are_pooled_over_pairs_not_averaged_over_sequences(tmp_path):
    """A sequence with 15 pairs and one with a single pair: the pooled numbers are not the means of both."""
    p = protocol(sequence("long", 60, 2), sequence("short", 12, 3))
    samples = p.open(tmp_path)
    oracle = noisy(4, degrees=9.0)
    measurements = measure_samples(p, samples, oracle)
    assert [m.weight for m in measurements] == [15.0, 1.0]
    worst, rotation = [], []
    for sample in samples:
        query, truth = sample.load_query(), sample.load_truth()
        pred = oracle(query, truth).tensors["world_from_cam"]
        errors = pi3_pair_errors(invert_rigid(pred), invert_rigid(truth.tensors["world_from_cam"]))
        worst += errors.worst.tolist()
        rotation += errors.rotation.tolist()
    got = p.summarise(measurements)
    for t in (5, 15, 30):
        counts, _ = np.histogram(worst, bins=np.arange(t + 1))
        assert got[f"auc_{t}"] == pytest.approx(100 * np.mean(np.cumsum(counts) / len(worst)), abs=1e-4)
        assert got[f"rra_{t}"] == pytest.approx(100 * np.mean(np.array(rotation) < t))
    averaged = np.mean([m.values["auc_30"] for m in measurements])
    assert abs(averaged - got["auc_30"]) > 0.5


def test_the_translation_convention_is_that_of_pi3(tmp_path):
    p = protocol(sequence("a", 50, 5))
    (sample,) = p.open(tmp_path)
    query, truth = sample.load_query(), sample.load_truth()
    answer = noisy(6)(query, truth)
    pred, true = answer.tensors["world_from_cam"], truth.tensors["world_from_cam"]
    got = p.measure(query, truth, answer).arrays["translation"]
    ours = pi3_pair_errors(invert_rigid(pred), invert_rigid(true)).translation.numpy()
    np.testing.assert_allclose(got, ours, rtol=1e-6)
    assert np.abs(got - map_anything_pair_errors(pred, true).translation.numpy()).max() > 0.1


def test_pairs_of_short_baseline_may_be_left_out(tmp_path):
    s = sequence("a", 60, 7)
    plain, strict = protocol(s), protocol(s, min_baseline=1.5)
    oracle = noisy(8)
    (all_pairs,), (kept,) = (measure_samples(p, p.open(tmp_path), oracle) for p in (plain, strict))
    centres = path(60, 7)[sparse_indices(60), :3, 3]
    far = [float((centres[i] - centres[j]).norm()) >= 1.5 for i in range(6) for j in range(i + 1, 6)]
    assert 0 < sum(far) < 15
    np.testing.assert_array_equal(kept.arrays["rotation"], all_pairs.arrays["rotation"][far])
    failed = strict.failure(
        *[f() for f in (strict.open(tmp_path)[0].load_query, strict.open(tmp_path)[0].load_truth)], "x"
    )
    assert failed.arrays["rotation"].size == sum(far)


def test_failures_and_frames_without_a_pose_count(tmp_path):
    p = protocol(sequence("good", 40, 9), sequence("bad", 40, 10))
    samples = p.open(tmp_path)
    good = measure_samples(p, samples[:1], truthful)[0]
    failed = p.failure(samples[1].load_query(), samples[1].load_truth(), "crashed")
    assert (
        failed.arrays["rotation"].tolist() == [180.0] * 6
        and failed.arrays["translation"].tolist() == [90.0] * 6
    )
    assert p.summarise([good, failed])["auc_5"] == pytest.approx(50)
    query, truth = samples[1].load_query(), samples[1].load_truth()
    partly = truth.tensors["world_from_cam"].clone()
    partly[0] = torch.nan
    m = p.measure(query, truth, Answer({"world_from_cam": partly}))
    assert p.summarise([m])["auc_30"] == pytest.approx(50)  # three of six pairs hold the frame


def test_answers_that_do_not_fit(tmp_path):
    p = protocol(sequence("a", 40, 11))
    (sample,) = p.open(tmp_path)
    query, truth = sample.load_query(), sample.load_truth()
    with pytest.raises(InputError, match="lacks 'world_from_cam'"):
        p.measure(query, truth, Answer())
    with pytest.raises(InputError, match="shape"):
        p.measure(query, truth, Answer({"world_from_cam": torch.eye(4)[None]}))
    assert all(np.isnan(v) for v in p.summarise([]).values())


def test_twin_uses_the_chooser():
    p = protocol(
        twin=CameraTwin(
            clips={"smoke": 2, "mini": 2},
            frames={"smoke": 30, "mini": 30},
            size={"smoke": (12, 16), "mini": (12, 16)},
        )
    )
    samples = p.twin("smoke")
    assert [v.name for v in samples[0].load_query().scene.views] == ["000000.png", "000014.png", "000029.png"]
    summary = p.summarise(measure_samples(p, samples, truthful))
    assert summary == pytest.approx(dict.fromkeys(summary, 100.0))


def test_reading_pictures(tmp_path):
    Image.new("RGB", (6, 4), (10, 20, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 6)).save(tmp_path / "b.png")
    got = read_pictures([tmp_path / "a.png"])
    assert got.shape == (1, 3, 4, 6) and got.dtype == torch.uint8 and got[0, :, 0, 0].tolist() == [10, 20, 30]
    with pytest.raises(InputError, match="4x6 pixels"):
        read_pictures([tmp_path / "a.png", tmp_path / "b.png"])
    with pytest.raises(InputError, match="missing"):
        read_pictures([tmp_path / "c.png"])
