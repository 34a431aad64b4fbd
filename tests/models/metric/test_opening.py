"""Opening any network for metric depth: whose configuration counts, and prompts that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corpora.depth_networks import sparse, weights
from relief3d.core.errors import InputError
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.models.metric.interface import Focal, FocalSource
from relief3d.models.metric.networks import DepthMap, Teacher
from relief3d.models.metric.opening import find_metric, open_metric, with_prior
from relief3d.models.metric.prompted import PromptedDepth
from relief3d.models.metric.pyramid_loading import save_pyramid
from relief3d.models.metric.refiner import PromptRefiner, refiner_config
from relief3d.models.metric.refiner_loading import CONFIG_KEY, config_to_dict
from relief3d.models.metric.sizes import depth_map_config, teacher_config
from relief3d.models.metric.stored import save_network

CPU = torch.device("cpu")


def opened(path: Path, **more: Any) -> Any:
    return open_metric(find_metric(str(path), **more), CPU)


@pytest.mark.parametrize("told", ["card", "option"])
def test_a_file_that_carries_its_configuration_is_not_taken_for_the_usual_one_of_its_size(
    tmp_path: Path, told: str
) -> None:
    """A U-Net student has the names and shapes of the published one: only the configuration tells them apart."""
    path = tmp_path / "model.safetensors"
    if told == "card":
        (tmp_path / "model.json").write_text(json.dumps({"size": "nano", "file": path.name}))
    more = {} if told == "card" else {"size": "nano"}
    for network in (
        DepthMap(depth_map_config("nano", skip_order="unet")),
        Teacher(teacher_config("nano", injection="adaln")),
    ):
        save_pyramid(network, path)
        assert opened(path, **more).module.config == network.config
    guided = replace(refiner_config("nano"), guides=2)
    save_network(PromptRefiner(guided), path, CONFIG_KEY, config_to_dict(guided))
    found = opened(path, **more).network
    assert isinstance(found, PromptedDepth) and found.net.config == guided


@pytest.mark.parametrize("kind", ["teacher", "prompt-refiner"])
def test_prompts_of_another_size_are_refused_not_stretched(tmp_path: Path, kind: str) -> None:
    model, focal = opened(weights(tmp_path, kind)), Focal.given(50.0)
    image = torch.rand(3, 36, 48, generator=torch.Generator().manual_seed(0))
    turned = MetricPrompt.from_depth_map(sparse(48, 36))
    with pytest.raises(InputError, match="the prompt has 36x48 pixels, the picture 48x36"):
        model.estimate(image, focal, turned)
    fits = MetricPrompt.from_depth_map(sparse(36, 48))
    assert model.estimate(image, focal, fits).depth.shape == (1, 36, 48)


def test_a_prior_of_guessed_focal_length_cannot_tell_the_unit(tmp_path: Path) -> None:
    model = opened(weights(tmp_path, "depth_map"))
    image = torch.rand(3, 36, 48, generator=torch.Generator().manual_seed(0))
    said = model.estimate(image, Focal.unknown(1))
    assert said.focal_sources == ("guessed",)
    far = replace(said, depth=torch.full((1, 36, 48), 0.025))
    prompt = MetricPrompt.from_depth_map(sparse(36, 48))
    assert with_prior(prompt, far).facts.ratio == pytest.approx(100, rel=0.2)
    known: tuple[FocalSource, ...] = ("given",)
    with pytest.raises(InputError, match="centimetres"):
        with_prior(prompt, replace(far, focal_sources=known))
