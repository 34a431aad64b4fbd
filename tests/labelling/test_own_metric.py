"""Metric networks of our own as labelers: units, what is held out, what is refused, and the account of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from corpora.depth_networks import weights as nano_weights
from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.errors import InputError
from relief3d.core.progress import SilentProgress
from relief3d.geometry.projection import intrinsics
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.depth import write_depth
from relief3d.io.images import write_image
from relief3d.labelling.base import LabelerSpec, Labels
from relief3d.labelling.labelers import own_metric
from relief3d.labelling.registry import make_labeler
from relief3d.models.metric.opening import MetricEstimator
from relief3d.pipelines.label.config import LabelConfig
from relief3d.pipelines.label.run import run_label

H, W = 36, 48


def scene(metric: bool = True, depth: bool = True, K: torch.Tensor | None = None, count: int = 1) -> Scene:
    """Pictures of a slanted plane with its depth, a third of it unknown."""
    plane = (2.0 + torch.linspace(0, 1, W)).expand(H, W).clone()
    plane[: H // 3] = 0
    raw = Depth(plane, plane > 0, metric)
    g = torch.Generator().manual_seed(0)
    views = [
        View(
            f"{i}.png", Camera(W, H, K), image=torch.rand(3, H, W, generator=g), depth=raw if depth else None
        )
        for i in range(count)
    ]
    return Scene(tuple(views))


def label(folder: Path, kind: str, view: Scene, **options: object) -> Labels:
    spec = LabelerSpec("own-metric", {"model": str(nano_weights(folder, kind)), **options})
    return make_labeler(spec).label(view, seed=3, work=folder)


@pytest.mark.parametrize("metric", [True, False])
def test_a_teacher_gives_dense_depth_in_the_unit_of_what_it_was_told(tmp_path: Path, metric: bool) -> None:
    found = label(tmp_path, "prompt-refiner", scene(metric))
    one = found.depth["0.png"]
    assert one.kind == ("metric" if metric else "scale") and bool(one.depth.valid.all())
    assert 1.5 < float(one.depth.values.median()) < 3.5
    assert one.depth.confidence is not None and 0 < float(one.depth.confidence.max()) <= 1
    quality = found.facts["quality"]["0.png"]
    assert quality["held_out"] == int(0.1 * W * (H - H // 3)) and 0 < quality["error"] < 0.15
    assert len(quality["raw_percentiles"]) == len(quality["label_percentiles"]) == 7
    assert not found.cameras and not found.facts["rejected"]


def test_what_is_held_out_is_not_told_and_points_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[torch.Tensor] = []
    held: list[torch.Tensor] = []
    ask, choose = MetricEstimator.estimate, own_metric.hold_out

    def spy(self: MetricEstimator, image, focal, prompt):  # type: ignore[no-untyped-def]
        told.append(prompt.mask)
        return ask(self, image, focal, prompt)

    def chosen(*args: object) -> torch.Tensor:
        held.append(choose(*args))  # type: ignore[arg-type]
        return held[-1]

    monkeypatch.setattr(MetricEstimator, "estimate", spy)
    monkeypatch.setattr(own_metric, "hold_out", chosen)
    raw = scene().views[0].load_depth()
    assert raw is not None
    label(tmp_path, "prompt-refiner", scene(), points=100)
    label(tmp_path, "prompt-refiner", scene(), points=0)
    assert int(told[0].sum()) == 100
    assert int(told[1].sum()) == int(raw.valid.sum()) - int(held[1].sum())
    assert not any(bool((t & h).any()) for t, h in zip(told, held, strict=True))


def test_a_label_that_the_raw_depth_speaks_against_is_left_out(tmp_path: Path) -> None:
    found = label(tmp_path, "prompt-refiner", scene(), max_error=1e-6)
    assert not found.depth and "hold-out error" in found.facts["rejected"]["0.png"]
    # Depth without any order cannot be learnt from its neighbours.
    view = scene().views[0]
    g = torch.Generator().manual_seed(1)
    wild = torch.exp(2 * torch.randn(H, W, generator=g))
    view = view.replace(depth=Depth(wild, wild > 0, True))
    assert not label(tmp_path, "prompt-refiner", Scene((view,))).depth


def test_students_and_focal_lengths(tmp_path: Path) -> None:
    K = intrinsics(50, 50, W / 2, H / 2)
    found = label(tmp_path, "depth_map", scene(K=K), max_error=1e9)
    assert found.depth["0.png"].kind == "metric" and found.cameras["0.png"].K_source == "given"
    assert found.facts["quality"]["0.png"]["error"] is not None
    guessed = label(tmp_path, "depth_map", scene(depth=False))
    assert guessed.depth["0.png"].kind == "scale" and guessed.cameras["0.png"].K_source == "guess"
    assert guessed.facts["quality"]["0.png"]["error"] is None
    own = label(tmp_path, "depth_pro", scene(depth=False))
    assert own.cameras["0.png"].K_source == "estimated" and own.depth["0.png"].kind == "metric"


def test_what_cannot_be_labelled(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no depth that the network could be told"):
        label(tmp_path, "prompt-refiner", scene(depth=False))
    few = torch.zeros(H, W)
    few[0, :4] = 2.0
    view = scene().views[0].replace(depth=Depth(few, few > 0, True))
    with pytest.raises(InputError, match="5 are needed"):
        label(tmp_path, "prompt-refiner", Scene((view,)))
    with pytest.raises(InputError, match="out of range"):
        label(tmp_path, "prompt-refiner", scene(), held_out=1.0)


def test_a_run_writes_labels_and_the_account_of_their_quality(tmp_path: Path) -> None:
    source = scene(count=9)
    views = []
    files = {}
    for k, view in enumerate(source.views):
        path = write_image(tmp_path / "in" / view.name, view.load_image())
        raw = view.load_depth()
        assert raw is not None
        values = raw.values
        if k == 8:
            values = values * torch.exp(0.12 * torch.randn(H, W, generator=torch.Generator().manual_seed(1)))
        write_depth(tmp_path / "in" / f"{k}.npz", Depth(values, raw.valid, True))
        files[view.name] = (f"{k}.npz", 1.0)
        views.append(view.replace(path=path))
    write_cameras_json(Scene(tuple(views), metric=True), tmp_path / "in" / "cameras.json", depth=files)
    model = nano_weights(tmp_path, "prompt-refiner")
    out = tmp_path / "out"
    config = LabelConfig(workers=0)
    text, complete = run_label(
        tmp_path / "in" / "cameras.json", out, "own-metric", [f"model={model}"], config, SilentProgress()
    )
    assert complete and "9 pictures, median error" in text
    report = json.loads((out / "quality.json").read_text())
    assert report["measured"] == 9 and report["median_error"] < 0.1 and not report["without_label"]
    assert [Path(n).name for n in report["doubtful"]] == ["8.png"]
    assert math.isfinite(report["median_error"])
