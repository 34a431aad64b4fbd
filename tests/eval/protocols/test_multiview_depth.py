"""Metric depth of several views: samples, resize, clip, no alignment, given priors, and both readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from corpora.evaluation import measure_samples, truthful
from corpora.video_layouts import byte
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Measurement, Query, Truth
from relief3d.eval.protocols.metric import eth3d_multiview, scannet_multiview
from relief3d.eval.protocols.metric.multiview_depth import (
    MultiViewDepthProtocol,
    by_distance,
    read_prior,
    spread_keys,
    windows,
)

PROTOCOLS = {p.name: p for m in (eth3d_multiview, scannet_multiview) for p in m.PROTOCOLS}


def get(name: str) -> MultiViewDepthProtocol:
    protocol = PROTOCOLS[name]
    assert isinstance(protocol, MultiViewDepthProtocol)
    return protocol


def measure(answer: Answer, truth: Tensor, name: str = "eth3d_multiview") -> Measurement:
    facts = {"group": "g"}
    held = Truth({"depth": truth[None], "valid": truth[None] > 0}, facts=facts)
    return PROTOCOLS[name].measure(Query("a", "views", ("depth",)), held, answer)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_numbers_follow_the_rules_and_not_a_neighbours(name: str) -> None:
    rng = np.random.default_rng(0)
    protocol = PROTOCOLS[name]
    truths = [torch.from_numpy(np.exp(rng.uniform(-3, 5, (9, 14))).astype(np.float32)) for _ in range(2)]
    truths[0][:6] = 0
    answers = [torch.from_numpy(np.exp(rng.uniform(-4, 6, (3, 4, 7))).astype(np.float32)) for _ in range(2)]
    got = protocol.summarise([measure(Answer({"depth": a}), t, name) for a, t in zip(answers, truths)])

    def numbers(
        view: int = 0, mode: str = "nearest-exact", clip: tuple[float, float] = (0.1, 100.0)
    ) -> list[np.ndarray]:
        out = []
        for a, t in zip(answers, truths):
            big = F.interpolate(a[view][None, None], size=(9, 14), mode=mode)[0, 0].double()
            g = t.double()
            out.append(((big.clamp(*clip) - g).abs() / g)[g > 0].numpy())
        return out

    right = numbers()
    assert got["abs_rel"] == pytest.approx(100 * np.mean([e.mean() for e in right]), rel=1e-6)
    for wrong in (numbers(view=1), numbers(mode="bilinear"), numbers(clip=(1e-3, 1e3))):
        assert abs(100 * np.mean([e.mean() for e in wrong]) - got["abs_rel"]) > 0.1
    assert abs(100 * np.concatenate(right).mean() - got["abs_rel"]) > 0.1  # pooling
    p = [
        F.interpolate(a[:1][None], size=(9, 14), mode="nearest-exact")[0, 0].clamp(0.1, 100).double()
        for a in answers
    ]
    aligned = [x * (t[t > 0].median() / x[t > 0].median()) for x, t in zip(p, truths)]
    scaled = [((x - t).abs() / t)[t > 0].mean() for x, t in zip(aligned, truths)]
    assert abs(100 * float(torch.stack(scaled).mean()) - got["abs_rel"]) > 0.1
    shares = [(torch.maximum(x / t, t / x) < 1.25)[t > 0].double().mean() for x, t in zip(p, truths)]
    assert got["delta1"] == pytest.approx(100 * float(torch.stack(shares).mean()))


def test_key_view_in_every_form() -> None:
    truth = torch.full((4, 5), 2.0)
    key, other = torch.full((4, 5), 2.2), torch.full((4, 5), 9.0)
    points = torch.stack([key, other])[..., None] * torch.tensor([5.0, -3.0, 1.0])
    forms = [
        {"depth": torch.stack([key, other])},
        {"depth": key[None]},
        {"depth": key},
        {"cam_points": points},
    ]
    for form in forms:
        assert measure(Answer(form), truth).values["abs_rel"] == pytest.approx(0.1, rel=1e-5)
    with pytest.raises(InputError, match="shape"):
        measure(Answer({"depth": key[None, None]}), truth)
    with pytest.raises(InputError, match="no valid pixels"):
        measure(Answer({"depth": key}), torch.zeros(4, 5))
    with pytest.raises(InputError, match="positive numbers"):
        measure(Answer({"depth": key * float("nan")}), truth)


def test_which_views() -> None:
    assert by_distance(20, 5) == (5, 4, 6, 3, 7, 2, 8, 1)
    assert by_distance(4, 0) == (0, 1, 2, 3)
    samples = spread_keys(8)(38)
    assert len(samples) == 8 and [s[0] for s in samples] == [0, 5, 11, 16, 21, 26, 32, 37]
    assert all(len(s) == len(set(s)) == 8 for s in samples)
    assert len(spread_keys(8)(3)) == 3
    first, second = windows(2)(1000)
    assert sorted(first) == list(range(310, 381, 10)) and first[0] == 340  # a third of the way, fourth frame
    assert second[0] == 619 + 30 and first[1:3] == (330, 350)
    (short,) = windows(2)(8)
    assert short[0] == 3 and sorted(short) == list(range(8))
    assert all(max(s) < 30 and len(s) == 8 for s in windows(2)(30))
    with pytest.raises(InputError, match="at least two"):
        windows()(1)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_twin(name: str) -> None:
    protocol = get(name)
    samples = protocol.twin("smoke")
    query = samples[0].load_query()
    assert query.scene is not None and 2 <= len(query.scene) <= 8 and query.facts["key_view"] == 0
    assert all(v.camera.K is None and v.camera.world_from_cam is None for v in query.scene.views)
    assert query.scene.views[0].name == samples[0].name.split("/")[1]
    assert query.scene.views[0].load_image().shape == (3, 36, 48)
    summary = protocol.summarise(measure_samples(protocol, samples, truthful))
    assert summary == {"abs_rel": 0.0, "delta1": 100.0, "inlier_103": 100.0}
    assert [r.method for r in protocol.published()] == ["MapAnything", "MapAnything + ours"]


def scannet(root: Path, frames: int = 12) -> None:
    for scan in ("scene0707_00", "scene0708_00"):
        folder = root / "scans_test" / scan
        for part in ("color", "depth", "pose", "intrinsic"):
            (folder / part).mkdir(parents=True)
        for i in range(frames):
            rgb = np.full((97, 130, 3), 10 * i, np.uint8)
            Image.fromarray(rgb).save(folder / "color" / f"{i}.jpg", format="PNG")
            Image.fromarray(np.full((480, 640), 1000 + i, np.uint16)).save(folder / "depth" / f"{i}.png")
        matrix = "577.9 0 319.5 0 0 578.7 239.5 0 0 0 1 0 0 0 0 1"
        (folder / "intrinsic" / "intrinsic_depth.txt").write_text(matrix)


def test_scannet(tmp_path: Path) -> None:
    scannet(tmp_path)
    protocol = PROTOCOLS["scannet_multiview"]
    samples = protocol.open(tmp_path)
    assert {s.group for s in samples} == {"scene0707_00", "scene0708_00"}
    sample = samples[0]
    key = int(sample.name.split("/")[1])
    query, truth = sample.load_query(), sample.load_truth()
    assert query.scene is not None and len(query.scene) == 8
    assert query.scene.views[0].load_image().shape == (3, 480, 640)
    assert byte(query.scene.views[0], 0, 0) == 10 * key
    assert float(truth.need("depth").unique()) == pytest.approx((1000 + key) / 1000)
    assert not query.tensors


def test_samples_and_priors_can_be_given(tmp_path: Path) -> None:
    scannet(tmp_path, 3)
    protocol = PROTOCOLS["scannet_multiview"]
    (tmp_path / "samples.txt").write_text("# key first\nscene0708_00 2 0\n")
    (sample,) = protocol.open(tmp_path)
    assert sample.name == "scene0708_00/2"
    prior = tmp_path / "metric_prior" / "scene0708_00"
    prior.mkdir(parents=True)
    depth = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    K = np.tile(np.array([[4.0, 0, 2], [0, 4, 1.5], [0, 0, 1]]), (2, 1, 1))
    np.savez(prior / "2.npz", depth=depth, K=K)
    query = sample.load_query()
    assert query.scene is not None and len(query.scene) == 2
    given = query.tensors["prompt"]
    assert given.shape == (2, 480, 640) and torch.equal(given.unique(), torch.arange(24.0))
    assert query.scene.views[0].camera.K is not None
    assert query.scene.views[0].camera.K.tolist() == [[640, 0, 320], [0, 640, 240], [0, 0, 1]]
    np.savez(prior / "2.npz", depth=depth)
    with pytest.raises(InputError, match="lacks 'depth' or 'K'"):
        sample.load_query()
    np.savez(prior / "2.npz", depth=depth[:1], K=K)
    with pytest.raises(InputError, match="key view first"):
        read_prior(prior / "2.npz", torch.zeros(2, 3, 6, 8))
    for line, message in (
        ("scene9 1 2", "no scene"),
        ("scene0708_00 1 7", "no picture '7'"),
        ("scene0708_00 1", "key view"),
    ):
        (tmp_path / "samples.txt").write_text(line)
        with pytest.raises(InputError, match=message):
            protocol.open(tmp_path)


def test_eth3d(tmp_path: Path) -> None:
    scene = tmp_path / "courtyard"
    pictures, calibration = scene / "images" / "dslr_images", scene / "dslr_calibration_jpg"
    depths = scene / "ground_truth_depth" / "dslr_images"
    for folder in (pictures, calibration, depths):
        folder.mkdir(parents=True)
    (calibration / "cameras.txt").write_text("0 PINHOLE 60 40 50 50 30 20\n")
    lines = []
    for i in range(10):
        name = f"DSC_{i:04d}.JPG"
        Image.fromarray(np.full((40, 60, 3), 20 * i, np.uint8)).save(pictures / name, format="PNG")
        np.full((40, 60), 1.0 + i, "<f4").tofile(depths / name)
        lines += [f"{i} 1 0 0 0 0 0 0 0 dslr_images/{name}", ""]
    (calibration / "images.txt").write_text("\n".join(lines) + "\n")
    samples = PROTOCOLS["eth3d_multiview"].open(tmp_path)
    assert len(samples) == 8 and {s.group for s in samples} == {"courtyard"}
    query, truth = samples[1].load_query(), samples[1].load_truth()
    assert samples[1].name == "courtyard/DSC_0001" and float(truth.need("depth").max()) == 2.0
    assert query.scene is not None
    assert [v.name for v in query.scene.views][:3] == ["DSC_0001", "DSC_0000", "DSC_0002"]
    assert query.scene.views[0].load_image().shape == (3, 1024, 1536)
