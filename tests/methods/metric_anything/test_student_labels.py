"""Labels of students: repeatable, kept on disk under a name that tells what decides them, honest about their source."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from relief3d.core.errors import InputError
from relief3d.methods.metric_anything.pictures import PictureSet, PictureSource
from relief3d.methods.metric_anything.students.config import LabelConfig
from relief3d.methods.metric_anything.students.labels import (
    LabelSource,
    PictureLabel,
    decode_depth,
    encode_depth,
    source_errors,
)
from relief3d.methods.metric_anything.students.samples import chosen_pictures
from relief3d.models.metric.refiner import PromptRefiner, refiner_config

RULE = PictureSet(("room",), 2, views=2, size=(48, 64), lidar=(0, 0), texture_size=32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    PictureSource(folder, (RULE,)).fill()
    return folder


def weights(folder: Path, seed: int) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PromptRefiner(refiner_config("nano"))
    path = folder / f"teacher{seed}.safetensors"
    save_file(network.state_dict(), path)
    return str(path)


def labelled(root: Path, **options: object) -> LabelSource:
    return LabelSource(PictureSource(root, (RULE,)), LabelConfig(**options))  # type: ignore[arg-type]


def test_depth_in_sixteen_bits_is_exact_to_a_fiftieth_of_a_percent() -> None:
    depth = torch.tensor([[0.0, 0.001, 0.5], [3.7, 123.4, 1000.0]])
    found = decode_depth(encode_depth(depth))
    assert found[0, 0] == 0 and encode_depth(depth).dtype == np.uint16
    torch.testing.assert_close(found[depth > 0], depth[depth > 0], rtol=2e-4, atol=0)


def test_truth_is_taught_as_it_is_and_writes_nothing(root: Path) -> None:
    source = labelled(root)
    picture = source.pictures.picture(1)
    label = source.label(1, picture)
    assert torch.equal(label.depth, picture.depth[0]) and label.source == "rendered" and label.usable
    assert not list(root.glob("labels-*"))


def test_raw_labels_repeat_and_have_holes_and_errors(root: Path, tmp_path: Path) -> None:
    source = labelled(root, kind="raw", rendered=0.0, reconstructed=1.0)
    picture = source.pictures.picture(2)
    label = source.label(2, picture)
    truth = picture.depth[0]
    known = label.depth > 0
    assert label.source == "reconstructed" and label.kind(source.config) == "B"
    assert 0.2 < float(known.float().mean()) < 0.98
    assert 0.005 < float(((label.depth - truth).abs() / truth)[known].mean()) < 0.3
    kept = list(root.glob("labels-*/world-000001.safetensors"))
    assert len(kept) == 1
    elsewhere = labelled(tmp_path, kind="raw", rendered=0.0, reconstructed=1.0)
    assert torch.equal(elsewhere.label(2, elsewhere.pictures.picture(2)).depth, label.depth)
    assert next(iter(tmp_path.glob("labels-*/world-000001.safetensors"))).read_bytes() == kept[0].read_bytes()
    other = labelled(root, kind="raw", rendered=0.0, reconstructed=1.0, seed=1)
    assert not torch.equal(other.label(2, picture).depth, label.depth)


def test_sources_come_in_the_asked_shares() -> None:
    many = PictureSource("nowhere", (replace(RULE, worlds=400),))
    source = LabelSource(many, LabelConfig("raw", rendered=0.15, reconstructed=0.6))
    found = [source.source(i) for i in range(len(many))]
    assert abs(found.count("rendered") / 800 - 0.15) < 0.04
    assert abs(found.count("reconstructed") / 800 - 0.85 * 0.6) < 0.06
    captured = PictureLabel(torch.zeros(1, 1), "captured")
    assert captured.kind(source.config) == "C"


def test_severity_multiplies_errors_within_bounds() -> None:
    stereo, sensor = source_errors(1.0)
    twice, worse = source_errors(2.0)
    assert (twice.drift, twice.failures) == (2 * stereo.drift, 2 * stereo.failures)
    assert worse.range_share[0] == pytest.approx(0.4) and sensor.range_share[0] == pytest.approx(0.7)
    extreme, _ = source_errors(100.0)
    assert extreme.holes <= 0.95 and extreme.fattened <= 0.95


def test_a_teacher_labels_every_surface_from_raw_points(root: Path, tmp_path: Path) -> None:
    source = labelled(
        root, kind="teacher", teacher=weights(tmp_path, 0), rendered=0.0, reconstructed=1.0, points=60
    )
    picture = source.pictures.picture(0)
    label = source.label(0, picture)
    truth, raw = picture.depth[0], source.raw(0, picture)
    assert torch.equal(label.depth > 0, truth > 0)  # dense, and nothing in the sky
    assert float((raw > 0).float().mean()) < 0.98
    assert label.kind(source.config) == "A" and 0 < label.error < math.inf
    # A network without training interpolates its prompt, so its label is near the raw depth.
    known = raw > 0
    assert float(((label.depth - raw).abs() / raw)[known].median()) < 0.2


def test_the_name_of_labels_tells_the_teacher(root: Path, tmp_path: Path) -> None:
    one, two = (labelled(root, kind="teacher", teacher=weights(tmp_path, s)) for s in (0, 1))
    (tmp_path / "moved").mkdir()
    moved = labelled(root, kind="teacher", teacher=weights(tmp_path / "moved", 0))
    assert one.digest(0) == moved.digest(0) != two.digest(0)
    stricter = labelled(root, kind="teacher", teacher=weights(tmp_path, 0), max_error=0.1)
    assert stricter.digest(0) == one.digest(0)  # the same labels, fewer of them used
    with pytest.raises(InputError, match="weights cannot be read"):
        labelled(root, kind="teacher", teacher=str(tmp_path / "absent")).digest(0)
    with pytest.raises(InputError, match="need its weights"):
        LabelConfig("teacher")


def test_the_quality_rule_leaves_pictures_out(root: Path, tmp_path: Path) -> None:
    options = {"kind": "teacher", "teacher": weights(tmp_path, 0), "rendered": 0.0, "points": 60}
    picture = PictureSource(root, (RULE,)).picture(0)
    error = labelled(root, **options).label(0, picture).error
    assert labelled(root, **options, max_error=1.01 * error).label(0, picture).usable
    assert not labelled(root, **options, max_error=0.99 * error).label(0, picture).usable


def test_a_damaged_file_of_labels_is_named(root: Path) -> None:
    source = labelled(root, kind="raw", rendered=0.0, seed=7)
    picture = source.pictures.picture(0)
    source.label(0, picture)
    path = next(iter(root.glob(f"labels-{source.digest(0)}/world-000000.safetensors")))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        source.label(0, picture)


def test_filling_makes_all_labels_once(root: Path) -> None:
    source = labelled(root, kind="raw", rendered=0.0, seed=8)
    source.fill([0, 1, 2, 3])
    files = sorted(root.glob(f"labels-{source.digest(0)}/*"))
    assert [f.name for f in files] == ["world-000000.safetensors", "world-000001.safetensors"]
    times = [f.stat().st_mtime_ns for f in files]
    source.fill([0, 1, 2, 3])
    assert [f.stat().st_mtime_ns for f in files] == times


def test_shares_are_nested_and_balanced_and_families_can_be_held_out() -> None:
    rules = (
        PictureSet(("room", "street"), 40, views=2),
        PictureSet(("objects", "outdoor"), 40, views=2),
    )
    source = PictureSource("nowhere", rules)
    parts = [chosen_pictures(source, s) for s in (0.05, 0.1, 0.4, 1.0)]
    assert [len(p) for p in parts] == [16, 32, 128, 320]
    assert all(set(a) < set(b) for a, b in itertools.pairwise(parts))
    names = [source.name(i).split("-")[0] for i in parts[1]]
    assert {names.count(f) for f in ("room", "street", "objects", "outdoor")} == {8}
    rest = chosen_pictures(source, 0.1, ("outdoor",))
    assert set(rest) == {i for i in parts[1] if not source.name(i).startswith("outdoor")}
