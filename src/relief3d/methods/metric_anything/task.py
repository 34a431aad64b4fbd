"""Training on sparse metric prompts as the loop sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.seeding import derive_seed
from relief3d.losses.prompted import prompted_loss, unlikelihood
from relief3d.methods.metric_anything import evaluation
from relief3d.methods.metric_anything.config import PicturesConfig, PromptedConfig
from relief3d.methods.metric_anything.panels import prompted_panel
from relief3d.methods.metric_anything.samples import (
    PromptedBatch,
    PromptedStream,
    pictures_root,
    split,
)
from relief3d.models.checkpoints import load_weights, read_state
from relief3d.models.metric.prompted import CLOSE
from relief3d.models.metric.refiner import PromptRefiner, refiner_config
from relief3d.train.recipe import DataPlan, SourcePlan
from relief3d.train.task import LossReport, StepInfo

PANELS = 2


def started(network: nn.Module, weights: str) -> nn.Module:
    """A network with the weights of a file; an empty name leaves it as it is.

    Raises:
        InputError: the file is missing, damaged or of another network.
    """
    if weights:
        load_weights(network, read_state(weights), source=weights)
    return network


def data_plan(config: PicturesConfig) -> DataPlan:
    """Sets and shares, samples and pictures per micro-batch."""
    sets = config.pictures
    names = ["+".join(rule.families) for rule in sets]
    return DataPlan(
        tuple(SourcePlan(n, 1 / len(sets), rule.count) for n, rule in zip(names, sets, strict=True)),
        float(config.batch),
        float(config.batch),
        (config.crop,),
        (config.batch,),
    )


class PromptedTask:
    """The lean prompted network on rendered pictures; see :class:`relief3d.train.task.Task`.

    Args:
        config: of the run.
        device: where it will run; pictures are rendered on the CPU in any case, ahead of it.
    """

    name = "metric-teacher"

    def __init__(self, config: PromptedConfig, device: str = "cpu") -> None:
        self.config = config

    @cached_property
    def stream(self) -> PromptedStream:
        """The micro-batches by position."""
        return PromptedStream(self.config)

    def model(self) -> nn.Module:
        """The network with weights drawn from the run's seed, or those that it starts from."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.train.seed, "weights"))
            network = PromptRefiner(refiner_config(self.config.size))
        return started(network, self.config.start)

    def batch(self, position: int, part: int = 0, parts: int = 1) -> PromptedBatch:
        """Micro-batch number ``position``."""
        return self.stream.batch(position, part, parts)

    def samples(self, batch: PromptedBatch) -> Sequence[str]:
        """``family-world-view`` of each."""
        return batch.names

    def split(self, batch: PromptedBatch, parts: int) -> Sequence[PromptedBatch]:
        """Samples in order."""
        return split(batch, parts)

    def to(self, batch: PromptedBatch, device: torch.device) -> PromptedBatch:
        """On a device."""
        return batch.to(device)

    def loss(
        self, model: nn.Module, batch: PromptedBatch, info: StepInfo, teacher: nn.Module | None
    ) -> LossReport:
        """See :func:`relief3d.losses.prompted.prompted_loss`."""
        found = model(batch.image, batch.candidates)
        with torch.autocast(batch.image.device.type, enabled=False):
            loss = prompted_loss(
                found.log_inverse,
                found.log_error,
                found.mixture,
                found.doubt,
                batch.truth,
                batch.depth > 0,
                batch.exact,
                batch.off,
                batch.known,
                batch.candidates.maps[:, 0],
                unlikelihood(found.candidates, found.log_weight, batch.truth),
                self.config.losses,
            )
        parts = {
            name: getattr(loss, name).mean()
            for name in ("value", "error", "mixture", "choice", "edges", "doubt")
        }
        return LossReport(loss.total.mean(), parts, loss.total)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @cached_property
    def _held_out(self) -> Mapping[str, evaluation.HeldOut]:
        config, root = self.config.evaluation, pictures_root(self.config)
        return {family: evaluation.HeldOut(root, config, family) for family in config.families}

    @cached_property
    def classical(self) -> Mapping[str, float]:
        """What interpolation says; it never changes."""
        return evaluation.score_classical(self._held_out)

    def evaluate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """AbsRel by family and prompt, and that of the interpolators."""
        return {**evaluation.score(model, self._held_out), **self.classical}

    def panels(self, model: nn.Module, step: int) -> Mapping[str, Tensor]:
        """Two held-out pictures of every family with the last prompt."""
        out: dict[str, Tensor] = {}
        device = next(model.parameters()).device
        for family, scenes in self._held_out.items():
            text = list(scenes.prompts)[-1]
            few = scenes.candidates(text)[:PANELS].to(device)
            with torch.no_grad():
                found = model(scenes.images[:PANELS].to(device), few)
            depth = torch.exp(-(found.log_inverse.float() + few.middle[:, None, None])).cpu()
            sure = (1 - torch.exp(-CLOSE * torch.exp(-found.log_error.float()))).cpu()
            for n in range(len(depth)):
                out[f"{family}_{n}"] = prompted_panel(
                    scenes.images[n], scenes.prompts[text][n], depth[n], scenes.depth[n], sure[n]
                )
        return out

    # ---- what a person asks -----------------------------------------------------------------------------------------

    def forward(self, model: nn.Module, batch: PromptedBatch) -> Any:
        """What the network says, without a loss."""
        return model(batch.image, batch.candidates)

    def data_plan(self) -> DataPlan:
        """Sets and shares, samples and pictures per micro-batch."""
        return data_plan(self.config)

    def model_card(self) -> Mapping[str, Any]:
        """Architecture and what it gives."""
        return {
            "architecture": "prompt-refiner",
            "size": self.config.size,
            "gives": "dense depth in the unit of the sparse prompt, with confidence",
            "unit": "that of the prompt",
            "prompts": [self.config.prompts.low, self.config.prompts.high],
            "sizes": [list(self.config.crop)],
        }
