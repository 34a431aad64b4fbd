"""Networks shared between tables: trained once per configuration, found again, resumed, named without places."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.core.progress import SilentProgress
from relief3d.methods.metric_anything.config import EvaluationConfig, PromptedConfig
from relief3d.methods.metric_anything.pictures import PictureSet, PictureSource
from relief3d.methods.metric_anything.recipes import prompted
from relief3d.pipelines.repro import trained as module
from relief3d.pipelines.repro.experiment import ArmRun
from relief3d.pipelines.repro.trained import network_name, shared_result, trained_network
from relief3d.pipelines.train.registry import find_recipe

SMALL = PictureSet(("room",), 1, views=2, size=(24, 32), lidar=(0, 0), texture_size=32)
NAME = "metric-teacher"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PromptedConfig:
    folder = tmp_path_factory.mktemp("sets")
    held = EvaluationConfig(("room",), worlds=1, size=(24, 32), prompts=("uniform-30",))
    PictureSource(folder, (SMALL,)).fill()
    made = replace(prompted("nano", "smoke"), pictures=(SMALL,), folder=str(folder), crop=(16, 24), batch=2)
    log = replace(made.train.log, panels=0, utilisation=False)
    return replace(made, evaluation=held, train=replace(made.train, steps=2, log=log))


def job(shared: Path, seed: int = 0) -> ArmRun:
    return ArmRun(shared / "arm", seed, "cpu", SilentProgress(), shared)


def test_a_network_is_trained_once_and_found_again(
    config: PromptedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = module.train

    def counted(spec: Any, *rest: Any) -> Any:
        calls.append(spec.seed)
        return real(spec, *rest)

    monkeypatch.setattr(module, "train", counted)
    first = trained_network(job(tmp_path), NAME, "nano", config)
    again = trained_network(job(tmp_path), NAME, "nano", config)
    assert calls == [0] and again.weights == first.weights and not again.model.training
    assert again.seconds == first.seconds > 0 and again.card["steps"] == 2 and again.config.train.seed == 0
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert trained_network(job(tmp_path, 5), NAME, "nano", config).weights != first.weights
    assert calls == [0, 5]
    first.weights.write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read"):
        trained_network(job(tmp_path), NAME, "nano", config)


def test_an_interrupted_training_goes_on(
    config: PromptedConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    real = module.train
    monkeypatch.setattr(module, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        trained_network(job(tmp_path), NAME, "nano", config)
    monkeypatch.setattr(module, "train", real)
    assert trained_network(job(tmp_path), NAME, "nano", config).card["steps"] == 2


def test_names_hold_what_decides_the_weights_and_no_places(config: PromptedConfig, tmp_path: Path) -> None:
    recipe = find_recipe(NAME)
    name = network_name(recipe, "nano", config, tmp_path)
    assert name.startswith("metric-teacher-nano-seed0-")
    other = replace(config, batch=1)
    assert network_name(recipe, "nano", other, tmp_path) != name
    workers = replace(config, train=replace(config.train, workers=3))
    assert network_name(recipe, "nano", workers, tmp_path) == name  # decides nothing
    here = network_name(recipe, "nano", replace(config, folder=str(tmp_path / "a")), tmp_path)
    there = network_name(recipe, "nano", replace(config, folder="/elsewhere/a"), Path("/elsewhere"))
    assert here == there != network_name(recipe, "nano", replace(config, folder="/x/a"), tmp_path)


def test_other_shared_things_are_made_once(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "label").write_text("1")
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shared_result(job(tmp_path), "labels-x", make)
    for _ in range(2):
        assert (shared_result(job(tmp_path), "labels-x", make) / "label").read_text() == "1"
    assert len(calls) == 2
