"""Metric networks as models of protocols: what is asked is answered, given cameras are used, caches follow weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from corpora.depth_networks import sparse, weights
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Query
from relief3d.eval.twins.rendered import query_scene
from relief3d.geometry.projection import depth_to_points, intrinsics
from relief3d.models import packaged as packaged_models
from relief3d.pipelines.evaluate.models import find_model, named_model
from relief3d.pipelines.evaluate.networks import metric_key

H, W = 36, 48
K = intrinsics(40, 40, W / 2, H / 2)


def query(task: str, wants: tuple[str, ...], K: torch.Tensor | None = None, **tensors: torch.Tensor) -> Query:
    g = torch.Generator().manual_seed(0)
    images = (torch.rand(2, 3, H, W, generator=g) * 255).to(torch.uint8)
    known = None if K is None else K.expand(2, 3, 3)
    return Query("scene/1", task, wants, query_scene(images, K=known), tensors)  # type: ignore[arg-type]


def ask(name: str, asked: Query) -> dict[str, torch.Tensor]:
    model = find_model(name, asked.task)
    assert model.make is not None
    return dict(model.make(Path())(asked).tensors)


def test_a_prompted_network_completes_depth(tmp_path: Path) -> None:
    name = f"metric:{weights(tmp_path, 'prompt-refiner')}"
    prompt = torch.stack([sparse(H, W, 0), 3 * sparse(H, W, 1)])
    found = ask(name, query("prompted_depth", ("depth",), prompt=prompt))
    assert set(found) == {"depth"} and found["depth"].shape == (2, H, W)
    assert 1.5 < float(found["depth"][0].median()) < 4 and 4.5 < float(found["depth"][1].median()) < 12
    with pytest.raises(InputError, match="gives no prompt"):
        ask(name, query("prompted_depth", ("depth",)))
    with pytest.raises(InputError, match="does not do the task 'mono_depth'"):
        find_model(name, "mono_depth")


def test_given_intrinsics_are_used_and_unknown_ones_answered(tmp_path: Path) -> None:
    name = f"metric:{weights(tmp_path, 'depth_map')}"
    wants = ("cam_points", "depth", "K")
    given = ask(name, query("mono_points", wants, K))
    guess = ask(name, query("mono_points", wants))
    assert torch.allclose(given["K"][0], K) and float(guess["K"][0, 0, 0]) == W
    assert torch.allclose(guess["depth"], given["depth"] * W / 40, rtol=1e-4)
    assert torch.allclose(given["cam_points"], depth_to_points(given["depth"].double(), given["K"]).float())
    only = ask(f"metric:{weights(tmp_path, 'pointmap')}", query("intrinsics", ("K",)))
    assert set(only) == {"K"} and bool((only["K"][:, 0, 0] > 0).all())


def test_caches_follow_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights(tmp_path, "depth_map")
    model = named_model(f"metric:{path}")
    assert model.name == "metric:depth_map.safetensors" and str(tmp_path) not in model.cache_name
    before = metric_key(str(path))
    assert model.cache_name == before
    path.write_bytes(weights(tmp_path / "..", "teacher").read_bytes())
    assert metric_key(str(path)) != before
    assert find_model("metric-student-mini", "intrinsics").key is not None
    monkeypatch.setattr(packaged_models, "weights_root", lambda: tmp_path / "none")
    for name in ("metric-teacher-mini", "metric-student-mini"):
        with pytest.raises(InputError, match="not part of this copy"):
            _ = named_model(name).cache_name
    assert named_model("constant").cache_name == "constant"
