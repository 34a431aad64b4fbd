"""Boundary protocols: samples from files, and which mask, direction average and pooling they use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from corpora.evaluation import measure_samples, truthful
from relief3d.core.errors import InputError
from relief3d.eval.metrics.boundaries import boundary_thresholds
from relief3d.eval.protocols.base import Answer, Query, Truth
from relief3d.eval.protocols.metric.boundaries import PROTOCOLS, BoundaryProtocol
from relief3d.eval.twins.rendered import query_scene

BY_NAME = {p.name: p for p in PROTOCOLS}
IBIMS = BY_NAME["ibims_boundaries"]


def count_f1(predicted: np.ndarray, truth: np.ndarray, keep: np.ndarray, pooled: bool) -> float:
    """Depth Pro's F1 in a few lines; ``pooled`` counts all directions together instead of averaging shares."""
    x, y = 1 / np.maximum(predicted, 1e-6), 1 / np.maximum(truth, 1e-6)
    pairs = []
    for a, b, m in ((x, y, keep), (x.T, y.T, keep.T)):
        both = m[:, 1:] & m[:, :-1]
        pairs.append((a[:, 1:] / a[:, :-1], b[:, 1:] / b[:, :-1], both))
        pairs.append((a[:, :-1] / a[:, 1:], b[:, :-1] / b[:, 1:], both))
    limits, total = boundary_thresholds()[0].numpy(), 0.0
    for t in limits:
        counts = np.array(
            [[((p > t) & m).sum(), ((g > t) & m).sum(), ((p > t) & (g > t) & m).sum()] for p, g, m in pairs]
        )
        if pooled:
            counts = counts.sum(0, keepdims=True)
        precision = (counts[:, 2] / np.maximum(counts[:, 0], 1)).mean()
        recall = (counts[:, 2] / np.maximum(counts[:, 1], 1)).mean()
        total += t * (2 * precision * recall / (precision + recall) if precision + recall else 0)
    return float(total / limits.sum())


def shot(protocol: BoundaryProtocol, seed: int = 0) -> tuple[Query, Truth]:
    sample = protocol.twin("smoke", seed)[0]
    return sample.load_query(), sample.load_truth()


def blurred(truth: Truth) -> Tensor:
    depth = truth.tensors["depth"]
    filled = torch.where(depth > 0, depth, depth[depth > 0].median())
    return torch.nn.functional.avg_pool2d(filled[None], 3, 1, 1)[0]


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_rule_is_this_protocols_own(name: str) -> None:
    protocol = BY_NAME[name]
    query, truth = shot(protocol)
    predicted = blurred(truth)
    values = protocol.measure(query, truth, Answer({"depth": predicted})).values
    p, g = predicted[0].numpy(), truth.tensors["depth"][0].numpy()
    valid, everything = truth.tensors["valid"][0].numpy(), np.ones(g.shape, bool)
    assert 0.05 < values["f1"] < 0.99
    assert values["f1"] == pytest.approx(count_f1(p, g, valid, False), abs=1e-9)
    assert values["f1_unmasked"] == pytest.approx(count_f1(p, g, everything, False), abs=1e-9)
    assert values["f1"] != pytest.approx(
        count_f1(p, g, valid, True), abs=1e-4
    )  # pooled counts are another rule
    if protocol is IBIMS:
        assert values["f1"] != pytest.approx(values["f1_unmasked"], abs=1e-3)  # the mask matters here
        assert not valid.all()
    else:
        assert valid.all() and values["f1"] == values["f1_unmasked"]
    assert values["moge_f1_r1"] != pytest.approx(values["f1"], abs=1e-4)


def test_alignment_is_none_and_scale_is_free() -> None:
    query, truth = shot(IBIMS)
    predicted = blurred(truth)
    base = IBIMS.measure(query, truth, Answer({"depth": predicted})).values["f1"]
    scaled = IBIMS.measure(query, truth, Answer({"depth": 7.3 * predicted})).values["f1"]
    shifted = IBIMS.measure(query, truth, Answer({"depth": predicted + 1})).values["f1"]
    assert scaled == pytest.approx(base, abs=1e-3) and shifted != pytest.approx(base, abs=1e-3)


def test_pictures_count_the_same() -> None:
    samples = IBIMS.twin("smoke")
    first, second = measure_samples(IBIMS, samples, lambda q, t: Answer({"depth": blurred(t)}))
    both = [replace(first, weight=1.0), replace(second, weight=99.0)]
    expected = (first.values["f1"] + second.values["f1"]) / 2
    assert IBIMS.summarise(both)["f1"] == pytest.approx(expected)
    again = measure_samples(IBIMS, samples, truthful)
    assert IBIMS.summarise(again)["f1"] == pytest.approx(1.0)


def test_spring_twin_has_a_sky_and_sintel_a_matte() -> None:
    spring = BY_NAME["spring_boundaries"]
    _, truth = shot(spring)
    depth = truth.tensors["depth"]
    assert bool((depth == 1e6).any()) and bool(truth.tensors["valid"].all())
    query, truth = shot(BY_NAME["sintel_boundaries"])
    assert 0.01 <= float(truth.tensors["matte"].mean()) <= 0.4
    measured = BY_NAME["sintel_boundaries"].measure(query, truth, truthful(query, truth))
    assert 0 < measured.values["matte_recall"] <= 1


def test_failures_panels_and_sizes() -> None:
    query, truth = shot(IBIMS)
    worst = IBIMS.failure(query, truth, "no answer")
    assert worst.values["f1"] == 0 and worst.group == IBIMS.twin("smoke")[0].group
    assert "matte" not in truth.tensors
    panel = IBIMS.panels(query, truth, truthful(query, truth))["boundaries"]
    assert panel.dtype == torch.uint8 and panel.shape[0] == 3
    dark = panel.amax(0) < 200  # the darkened picture, where nothing is drawn
    image = query.scene.views[0].load_image()  # type: ignore[union-attr]
    image = image if image.dtype == torch.uint8 else (image * 255).round()
    assert torch.equal(panel[:, dark], (image.float() * 0.4).to(torch.uint8)[:, dark])
    with pytest.raises(InputError, match="shape"):
        IBIMS.measure(query, truth, Answer({"depth": truth.tensors["depth"][:, :-1]}))
    with pytest.raises(InputError, match="lacks 'depth'"):
        IBIMS.measure(query, truth, Answer({}))


def test_files_are_read_with_their_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "ibims1_core_raw"
    for sub in ("rgb", "depth", "mask_invalid", "mask_transp", "calib"):
        (folder / sub).mkdir(parents=True)
    stored = (rng.random((12, 16)) * 9000 + 3000).astype(np.uint16)
    mask = np.full((12, 16), 255, np.uint8)
    mask[2:5, 3:6] = 0
    for name in ("office_01", "office_02"):
        Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(
            folder / "rgb" / f"{name}.png"
        )
        Image.fromarray(stored).save(folder / "depth" / f"{name}.png")
        Image.fromarray(mask).save(folder / "mask_invalid" / f"{name}.png")
        Image.fromarray(np.full_like(mask, 255)).save(folder / "mask_transp" / f"{name}.png")
        (folder / "calib" / f"{name}.txt").write_text("550,550,8,6")
    samples = IBIMS.open(tmp_path)
    assert [s.name for s in samples] == ["office_01", "office_02"] and samples[0].group == "office"
    query, truth = samples[0].load_query(), samples[0].load_truth()
    assert query.wants == ("depth",) and query.scene is not None and query.scene.views[0].camera.K is None
    assert int((~truth.tensors["valid"]).sum()) == 9
    noisy = torch.from_numpy(stored.astype(np.float32) * 50 / 65535)[None]
    noisy = noisy * (1 + 0.1 * torch.from_numpy(rng.random((1, 12, 16))).float())
    measured = IBIMS.measure(query, truth, Answer({"depth": noisy}))
    assert measured.group == "office"
    g, valid = truth.tensors["depth"][0].numpy(), truth.tensors["valid"][0].numpy()
    assert measured.values["f1"] == pytest.approx(count_f1(noisy[0].numpy(), g, valid, False), abs=1e-6)
    wrong = Image.fromarray(rng.integers(0, 255, (11, 16, 3), dtype=np.uint8))
    wrong.save(folder / "rgb" / "office_01.png")
    with pytest.raises(InputError, match="16 x 12"):
        samples[0].load_truth()
    with pytest.raises(InputError, match=r"iBims-1|ibims1"):
        IBIMS.open(tmp_path / "ibims1_core_raw" / "rgb")


def test_unmeasured_query_scene_has_no_depth() -> None:
    scene = query_scene(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    assert scene.views[0].depth is None
    for protocol in PROTOCOLS:
        view = protocol.twin("smoke")[0].load_query().scene.views[0]  # type: ignore[union-attr]
        assert view.depth is None and view.camera.K is None and view.camera.world_from_cam is None


def test_published_rows() -> None:
    rows = {r.method: r.values for r in BY_NAME["spring_boundaries"].published()}
    assert rows["DepthPro"] == {"f1": 0.11} and "Marigold" not in rows and len(rows) == 9
    assert {r.method: r.values["f1"] for r in IBIMS.published()}["Student-DepthMap"] == 0.179
    assert len(BY_NAME["sintel_boundaries"].published()) == 13
