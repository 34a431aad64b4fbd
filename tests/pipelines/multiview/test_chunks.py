"""Passes of a reconstruction in chunks: what they are given, what they depend on, what they say about metres."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from corpora.multiview_oracle import Oracle, Room, make_room, scaling
from relief3d.core.contract import Depth, Prediction
from relief3d.models.multiview.interface import InferenceOptions, Known
from relief3d.models.multiview.preprocess import prepare
from relief3d.pipelines.multiview import solve as module
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.solve import predict_scene

VIEWS, SIZE = 5, (84, 56)
CONFIG = MultiviewConfig(side=84, refine="off", loops=False, chunk=3, overlap=2)


@pytest.fixture(scope="module")
def room() -> Room:
    return make_room([SIZE] * VIEWS)


@dataclass
class Listening(Oracle):
    """Keeps a picture of the depth it is given, and looks for tensors of all views' depth."""

    given: list[torch.Tensor] = field(default_factory=list)
    metric: bool = False
    allowed: int = 100
    whole: int = 0

    def predict(self, images: torch.Tensor, known: Known | None = None) -> Prediction:
        if len(self.passes) >= self.allowed:
            raise KeyboardInterrupt
        if known is not None and known.depth is not None:
            self.given.append(known.depth[0, :, 30, 40].clone())
            shapes = [tuple(t.shape[-3:]) for t in gc.get_objects() if type(t) is torch.Tensor and t.ndim > 2]
            self.whole += shapes.count((VIEWS, SIZE[1], SIZE[0]))
        return replace(super().predict(images, known), metric=self.metric)


def listening(room: Room, **changes: Any) -> Listening:
    prepared = prepare(room.images, "keep", side=84).images
    return Listening(room, prepared, lambda i: scaling(1, 1), **changes)


def test_a_pass_is_given_the_depth_of_its_own_views_only(room: Room, tmp_path: Path) -> None:
    loads = [0] * VIEWS

    def lazy(index: int) -> Callable[[], Depth]:
        def load() -> Depth:
            loads[index] += 1
            return Depth.from_values(room.depth(room.cameras[index]))

        return load

    scene = room.scene()
    views = tuple(v if i == 1 else v.replace(depth=lazy(i)) for i, v in enumerate(scene.views))
    network = listening(room, takes=frozenset({"depth"}))
    found = predict_scene(scene.replace(views=views), CONFIG, tmp_path, network=network, device="cpu")
    truth = torch.stack([room.depth(c)[30, 40] for c in room.cameras])
    truth[1] = 0.0
    assert len(network.given) == 3 and found.scene.metric
    for numbers, depth in zip(network.passes, network.given):
        assert torch.allclose(depth, truth[numbers].float(), rtol=1e-4)
    assert network.whole == 0, "no tensor holds the depth of all views"
    assert loads[1] == 0


def test_metres_do_not_come_from_another_run(room: Room, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_scene(room.scene(), CONFIG, tmp_path, network=listening(room, allowed=2), device="cpu")
    network = listening(room, metric=True)
    found = predict_scene(room.scene(), CONFIG, tmp_path, network=network, device="cpu", seed=1)
    assert len(network.passes) == 3 and found.scene.metric


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("table", torch.tensor([3.0, 4.0]), persistent=False)


def test_fingerprints_see_all_that_changes_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Small()

    def mark(device: str = "cpu", precision: Any = "float32") -> str:
        model = SimpleNamespace(name="small", network=network, options=InferenceOptions(precision))
        framing = SimpleNamespace(width=28, height=14, mode="keep")
        views = [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
        asker = SimpleNamespace(model=model, views=views, framing=framing, device=torch.device(device))
        return module._fingerprint(asker, CONFIG, 0)  # type: ignore[arg-type]

    seen = [mark()]
    assert mark() == seen[0]
    seen += [mark(device="mps"), mark(precision="bfloat16")]
    with torch.no_grad():
        network.weight.copy_(torch.tensor([2.0, 1.0]))
        seen.append(mark())
        network.table.copy_(torch.tensor([3.0, 5.0]))  # type: ignore[operator]
        seen.append(mark())
    monkeypatch.setattr(module, "__version__", "another")
    seen.append(mark())
    assert len(set(seen)) == len(seen)
