"""Samples and scores of students: cameras stay true, depth is never mixed, constants are the best there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.data.photometric import Photometric
from relief3d.methods.metric_anything.pictures import Pictures, PictureSet, PictureSource
from relief3d.methods.metric_anything.students import evaluation
from relief3d.methods.metric_anything.students.config import (
    DepthMapStudentConfig,
    LabelConfig,
    PointMapStudentConfig,
    StudentEvaluation,
)
from relief3d.methods.metric_anything.students.labels import PictureLabel
from relief3d.methods.metric_anything.students.samples import StudentStream, collate, split, student_sample

RULE = PictureSet(("room",), 2, views=2, size=(48, 64), lidar=(0, 0), texture_size=32)
PLAIN = Photometric(probability=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    PictureSource(folder, (RULE,)).fill()
    return folder


def config(root: Path, **options: object) -> DepthMapStudentConfig:
    base = DepthMapStudentConfig(
        pictures=(RULE,), folder=str(root), shape=(24, 32), batch=4, labels=LabelConfig("raw")
    )
    return replace(base, **options)  # type: ignore[arg-type]


def slanted() -> Pictures:
    """A plane before a camera of focal length 70."""
    height, width = 96, 128
    K = torch.tensor([[[70.0, 0, 64.0], [0, 70.0, 48.0], [0, 0, 1]]])
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    depth = 1 / (0.3 + 0.1 * (x - 64) / 70 + 0.05 * (y - 48) / 70)
    depth[:8] = 0
    empty = torch.zeros(1, 0, 3)
    return Pictures(
        torch.zeros(1, 3, height, width, dtype=torch.uint8), depth[None],
        torch.zeros(1, 3, height, width, dtype=torch.int8), torch.zeros(1, height, width, dtype=torch.uint8),
        K, empty, empty, ("plane",),
    )  # fmt: skip


def test_windows_keep_cameras_and_change_the_focal_length() -> None:
    """Depth at the pixels of a window fits the plane as its camera sees it; the plane's own slope tells mirrors."""
    picture, focals, turned = slanted(), [], set()
    options = DepthMapStudentConfig(shape=(24, 32), zoom=(0.4, 1.0), colours=PLAIN)
    for seed in range(16):
        made = student_sample(
            picture, PictureLabel(picture.depth[0], "rendered"), options, torch_generator(seed)
        )
        K, depth = made.K[0], made.depth[0]
        y, x = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(32) + 0.5, indexing="ij")
        mirrored = bool(depth[-1, 0] < depth[-1, -1])
        sign = -1 if mirrored else 1
        plane = 1 / (0.3 + sign * 0.1 * (x - K[0, 2]) / K[0, 0] + 0.05 * (y - K[1, 2]) / K[1, 1])
        known = depth > 0
        # The nearest pixel is at most half a pixel of the picture away.
        assert float((depth / plane - 1).abs()[known].max()) < 0.01
        assert torch.equal(made.sky[0], ~known)
        assert set(depth[known].tolist()) <= set(picture.depth[0].flatten().tolist())
        focals.append(float(K[0, 0]) / 32)
        turned.add(mirrored)
    assert turned == {True, False}
    assert min(focals) < 0.62 and max(focals) > 0.9  # full pictures have 70 / 128 = 0.547


def test_windows_of_the_point_map_stay_in_the_middle() -> None:
    picture = slanted()
    options = PointMapStudentConfig(shape=(24, 32), colours=PLAIN, mirror=0.0, place=0.0)
    for seed in range(6):
        label = PictureLabel(picture.depth[0], "rendered")
        K = student_sample(picture, label, options, torch_generator(seed)).K[0]
        assert abs(float(K[0, 2]) - 16) < 0.6 and abs(float(K[1, 2]) - 12) < 0.6


def test_batches_are_functions_of_their_position(root: Path) -> None:
    one, other = StudentStream(config(root)), StudentStream(config(root))
    other.batch(0)
    a, b = one.batch(3), other.batch(3)
    for name in ("image", "depth", "sky", "K"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert (a.kinds, a.names, a.rendered) == (b.kinds, b.names, b.rendered)
    assert not torch.equal(a.image, one.batch(4).image)
    parts = [one.batch(3, part, 2) for part in range(2)]
    assert torch.equal(torch.cat([p.depth for p in parts]), a.depth)
    assert collate(split(a, 4)).names == a.names and [len(p.names) for p in split(a, 3)] == [2, 2]
    with pytest.raises(InputError, match="cannot be shared"):
        one.batch(0, 0, 3)


def test_labels_are_what_the_configuration_says(root: Path) -> None:
    raw = StudentStream(config(root, labels=LabelConfig("raw", rendered=0.0, reconstructed=1.0))).batch(0)
    truth = StudentStream(config(root, labels=LabelConfig())).batch(0)
    assert set(raw.kinds) == {"B"} and set(truth.kinds) == {"A"} and all(truth.rendered)
    assert raw.names == truth.names and torch.equal(raw.image, truth.image)
    assert float((raw.depth > 0).float().mean()) < float((truth.depth > 0).float().mean())
    target = truth.targets()[0]
    assert target.synthetic and target.fx_over_width == pytest.approx(float(truth.K[0, 0, 0]) / 32)


def test_pictures_without_usable_labels_give_way_to_others(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = StudentStream(config(root, labels=LabelConfig()))
    label = stream.labels.label
    monkeypatch.setattr(
        stream.labels, "label", lambda i, p: replace(label(i, p), usable=not p.names[0].startswith("room-0"))
    )
    assert all(name.startswith("room-1") for name in stream.batch(0).names)
    monkeypatch.setattr(stream.labels, "label", lambda i, p: replace(label(i, p), usable=False))
    with pytest.raises(InputError, match="almost no label"):
        stream.batch(0)


# ---- scores ---------------------------------------------------------------------------------------------------------


def held_out() -> evaluation.HeldOutPictures:
    generator = torch_generator(0)
    depth = torch.rand(4, 16, 24, generator=generator).mul(3).exp() + 0.5
    depth[:, :3] = 0
    focal = torch.tensor([12.0, 14.0, 20.0, 30.0])
    K = torch.zeros(4, 3, 3)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 2, 2] = 1
    return evaluation.HeldOutPictures(
        torch.zeros(4, 3, 16, 24), depth, K, ("room", "room", "street", "street")
    )


def test_a_perfect_student_has_no_errors_and_a_scaled_one_its_factor() -> None:
    pictures = held_out()
    found = evaluation.score(pictures.depth.clamp_min(1e-3), pictures.K[:, 0, 0], pictures, ("street",), 5.0)
    assert found["abs_rel"] == found["unseen_rmse"] == found["fov"] == 0 and found["delta1"] == 100
    wrong = evaluation.score(1.2 * pictures.depth.clamp_min(1e-3), None, pictures, (), 5.0)
    assert wrong["abs_rel"] == pytest.approx(0.2, abs=1e-5) and "fov" not in wrong
    assert wrong["scaled_abs_rel"] == pytest.approx(0, abs=1e-5)
    assert wrong["near"] == pytest.approx(0.2, abs=1e-5) == wrong["far"] and "unseen_abs_rel" not in wrong


def test_distances_divide_the_errors() -> None:
    pictures = held_out()
    found = torch.where(pictures.depth > 5, 2 * pictures.depth, pictures.depth).clamp_min(1e-3)
    numbers = evaluation.depth_numbers(found, pictures, range(4), 5.0)
    assert numbers["near"] == 0 and numbers["far"] == pytest.approx(1.0)
    assert numbers["scaled_abs_rel"] > 0  # one factor does not mend two
    assert 0 < numbers["from_0m"] < 1 and numbers["from_10m"] == pytest.approx(1.0)
    assert "from_50m" not in numbers


def test_constants_are_the_best_ones() -> None:
    pictures = held_out()
    best = evaluation.constant_numbers(pictures, range(4), 5.0)
    for value in torch.linspace(0.6, 20, 80).tolist():
        other = evaluation.depth_numbers(torch.full_like(pictures.depth, value), pictures, range(4), 5.0)
        assert other["abs_rel"] > best["abs_rel"] - 0.03 and other["rmse"] > best["rmse"] - 0.15
        assert other["delta1"] < best["delta1"] + 4
    assert best["boundary"] == 0
    degrees = pictures.fov
    spread = min(float((degrees - v).abs().mean()) for v in torch.linspace(30, 100, 300))
    assert best["fov"] == pytest.approx(spread, abs=0.3)


def test_pictures_of_the_sky_are_not_judged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluation.held_out_pictures(root, StudentEvaluation((RULE,)))
    assert len(whole.families) == 4 and set(whole.families) == {"room"}
    monkeypatch.setattr(evaluation, "LEAST_SHARE", 1.1)
    with pytest.raises(InputError, match="sky"):
        evaluation.held_out_pictures(root, StudentEvaluation((RULE,)))
