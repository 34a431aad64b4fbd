"""Holes of stereo depth filled by a prompted network: what may change, what must not, in which unit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from corpora.depth_networks import weights as nano_weights
from relief3d.core.contract import Camera, Depth, Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.core.progress import SilentProgress
from relief3d.geometry.projection import intrinsics
from relief3d.io.depth import read_depth
from relief3d.models import packaged as packaged_models
from relief3d.models.metric.opening import MetricWeights, find_metric
from relief3d.models.metric.refiner import PromptRefiner, refiner_config
from relief3d.pipelines.reconstruct import completion
from relief3d.pipelines.reconstruct import depth as depth_stage
from relief3d.pipelines.reconstruct.completion import (
    StereoMap,
    complete,
    completion_weights,
    point_prompt,
    stereo_prompt,
)
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.stereo.neighbours import DepthRange, Neighbour
from relief3d.stereo.result import StereoDepth, StereoReport, StereoResult
from relief3d.stereo.views import PreparedView

H, W = 48, 64
HOLE = (slice(16, 32), slice(20, 40))
K = intrinsics(60, 60, W / 2, H / 2)


def plain_network(folder: Path) -> MetricWeights:
    """A nano network that corrects nothing: it mixes its candidates, and says a confidence of about 0.1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PromptRefiner(refiner_config("nano"))
    state = {k: v.clone().contiguous() for k, v in network.state_dict().items()}
    for name in state:
        if name.startswith(("last.", "judge.2.")):
            state[name].zero_()
    path = folder / "w.safetensors"
    save_file(state, str(path))
    return find_metric(str(path))


@pytest.fixture(autouse=True)
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a network says is sure enough."""
    monkeypatch.setattr(completion, "LEAST_CONFIDENCE", 0.01)


def wall(scale: float = 1.0, seen: float | None = None, views: int = 3) -> dict[int, StereoMap]:
    """Views of a wall 2 units away, side by side; view 0 has a hole, where the others see ``seen`` units."""
    out = {}
    for i in range(views):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = 0.1 * i * scale
        camera = Camera(W, H, K, pose)
        values = torch.full((H, W), 2.0 * scale)
        if i == 0:
            values[HOLE] = 0
        elif seen is not None:
            values[HOLE[0], 10:40] = seen * scale
        g = torch.Generator().manual_seed(i)
        view = View(f"{i}.png", camera, image=0.5 + 0.1 * torch.rand(3, H, W, generator=g))
        depth = Depth(values, values > 0, False, 0.9 * (values > 0).float())
        others = tuple(j for j in range(views) if j != i)
        out[i] = StereoMap(view, PreparedView(i, view.name, camera, torch.zeros(0)), depth, others)
    return out


def scene_of(maps: dict[int, StereoMap]) -> Scene:
    return Scene(tuple(m.view for m in maps.values()))


def run(maps: dict[int, StereoMap], weights: MetricWeights) -> tuple[dict[int, Depth], dict[int, float]]:
    return complete(maps, scene_of(maps), weights, "cpu", SilentProgress())


def test_only_holes_are_filled_with_less_confidence_and_in_the_unit_of_the_scene(tmp_path: Path) -> None:
    weights = plain_network(tmp_path)
    found, shares = run(wall(), weights)
    first = found[0]
    own = wall()[0].depth
    assert torch.equal(first.values[own.valid], own.values[own.valid])
    assert first.confidence is not None and own.confidence is not None
    assert torch.equal(first.confidence[own.valid], own.confidence[own.valid])
    assert bool(first.valid[HOLE].all()) and not first.metric
    assert float((first.values[HOLE] - 2).abs().max()) < 0.04
    inside = first.confidence[HOLE]
    assert float(inside.min()) > 0 and float(inside.max()) <= 0.5
    assert shares == pytest.approx({0: 16 * 20 / (H * W), 1: 0, 2: 0})
    assert torch.equal(found[1].values, wall()[1].depth.values)
    large, _ = run(wall(1000.0), weights)
    assert torch.allclose(large[0].values, 1000 * first.values, rtol=1e-4)


@pytest.mark.parametrize("seen", [4.0, 1.0])
def test_what_other_views_contradict_or_do_not_confirm_stays_open(tmp_path: Path, seen: float) -> None:
    found, shares = run(wall(seen=seen), plain_network(tmp_path))
    assert not bool(found[0].valid[HOLE].any()) and shares[0] == 0


def test_unsure_lonely_or_masked_pixels_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sure = plain_network(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(completion, "LEAST_CONFIDENCE", 0.99)
        assert run(wall(), sure)[1][0] == 0
    assert run(wall(views=1), sure)[1][0] == 0
    maps = wall()
    mask = torch.ones(H, W, dtype=torch.bool)
    mask[:, :30] = False
    maps[0] = replace(maps[0], view=maps[0].view.replace(mask=mask))
    found, _ = run(maps, sure)
    assert not bool(found[0].valid[16:32, 20:30].any()) and bool(found[0].valid[16:32, 30:40].all())
    few = wall()
    values = torch.zeros(H, W)
    values[0, :10] = 2.0
    few[0] = replace(few[0], depth=Depth(values, values > 0, False, values / 2))
    assert run(few, sure)[1][0] == 0


def test_prompts_from_stereo_and_from_points() -> None:
    own = wall()[0]
    g = torch.Generator().manual_seed(0)
    score = torch.rand(H, W, generator=g) * own.depth.valid
    depth = replace(own.depth, confidence=score, values=own.depth.values + score)
    prompt = stereo_prompt(depth, points=(H // 8) * (W // 8))
    assert int((prompt > 0).sum()) == sum(
        bool(depth.valid[r : r + 8, c : c + 8].any()) for r in range(0, H, 8) for c in range(0, W, 8)
    )
    block = score[:8, 8:16]
    r, c = divmod(int(block.argmax()), 8)
    assert prompt[r, 8 + c] == depth.values[r, 8 + c]
    points = SparsePoints(
        torch.tensor(
            [[0.0, 0.0, 2.0], [0.1, 0.1, 3.0], [0.2, 0.0, 2.0], [0.0, 0.0, 5.0]], dtype=torch.float64
        ),
        torch.zeros(4, 3, dtype=torch.uint8),
        torch.tensor([0.5, 0.5, 9.0, 0.5], dtype=torch.float64),
        torch.tensor([0, 1, 2, 3, 0]),
        torch.tensor([0, 0, 0, 1, 1]),
        torch.zeros(5, 2, dtype=torch.float64),
    )
    seen = point_prompt(points, 0, own.prepared)
    # The third is badly triangulated, the fourth not observed by this view.
    assert seen.nonzero().tolist() == [[H // 2, W // 2], [H // 2 + 2, W // 2 + 2]]
    assert float(seen[H // 2, W // 2]) == 2 and float(seen.max()) == 3
    assert not bool(point_prompt(None, 0, own.prepared).any())


def stereo_result(maps: dict[int, StereoMap]) -> StereoResult:
    views = []
    for i, m in maps.items():
        near = tuple(Neighbour(j, 1.0, 1.0, 5.0) for j in m.neighbours)
        blank = torch.zeros(H, W)
        views.append(
            StereoDepth(
                i, m.view.name, m.prepared.camera, m.depth, torch.zeros(H, W, 3), blank.to(torch.int16), blank, near,
                DepthRange(1.0, 4.0, "given"), float(m.depth.valid.float().mean()), 1.0,
            )
        )  # fmt: skip
    report = StereoReport(False, None, 1.0, len(views), 0.9, 0.0)
    return StereoResult(tuple(views), (None,) * len(views), report)


def test_the_depth_stage_writes_completed_maps_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = wall()
    monkeypatch.setattr(depth_stage, "estimate_depths", lambda *_: stereo_result(maps))
    scene = scene_of(maps)
    for name, weights in (("plain", None), ("filled", plain_network(tmp_path))):
        config = ReconstructConfig(completion="none" if weights is None else "teacher", device="cpu")
        out = tmp_path / name
        _, facts = depth_stage.solve_depth(scene, config, out, SilentProgress(), tmp_path, weights)
        valid: Tensor = read_depth(out / "depth" / "0.png.npz", 1.0, metric=False).valid
        assert bool(valid[HOLE].all()) == (weights is not None)
        assert ("completion" in facts) == (weights is not None)
    assert facts["completion"]["network"] == "w.safetensors"
    assert facts["completion"]["filled"]["0.png"] == pytest.approx(16 * 20 / (H * W))


def test_options_that_make_no_sense_and_networks_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="--depth-source stereo"):
        ReconstructConfig(completion="teacher", depth_source="given").check()
    with pytest.raises(InputError, match="--depth-source stereo"):
        ReconstructConfig.of(completion="teacher", model="vggt").check()
    with pytest.raises(InputError, match="--completion teacher"):
        ReconstructConfig(completion_model="x").check()
    ReconstructConfig.of(completion="teacher", model="vggt", depth_source="stereo").check()
    assert completion_weights(ReconstructConfig(), SilentProgress()) is None
    monkeypatch.setattr(packaged_models, "weights_root", lambda: tmp_path / "none")
    with pytest.raises(InputError, match="'metric-teacher-mini' is not part of this copy"):
        completion_weights(ReconstructConfig(completion="teacher"), SilentProgress())
    wrong = str(nano_weights(tmp_path, "teacher"))
    with pytest.raises(InputError, match="cannot complete stereo depth"):
        completion_weights(ReconstructConfig(completion="teacher", completion_model=wrong), SilentProgress())
    base = ReconstructConfig().fingerprint()
    other = ReconstructConfig(completion="teacher").fingerprint()
    assert base["cameras"] == other["cameras"] and base["depth"] != other["depth"]
    assert completion.MOST_CONFIDENCE < 0.8
