"""Supervised training as the loop sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.contract import Batch
from relief3d.core.device import resolve_device
from relief3d.core.seeding import derive_seed
from relief3d.data.streams import BatchStream, StreamConfig, sample_names, split_batch
from relief3d.data.view_groups import Grouping
from relief3d.methods.supervised import evaluation
from relief3d.methods.supervised.config import Family, SupervisedConfig
from relief3d.methods.supervised.losses import forward, supervised_loss
from relief3d.methods.supervised.panels import scene_panel
from relief3d.methods.supervised.samples import held_out, training_stream
from relief3d.models.multiview.configs import pi3_config, reliev3r_config, vggt_config
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Vggt
from relief3d.train.recipe import DataPlan, SourcePlan
from relief3d.train.task import LossReport, StepInfo

PANELS = 2


class SupervisedTask:
    """A multi-view network on worlds with full truth; see :class:`relief3d.train.task.Task`.

    Args:
        config: of the run.
        device: where it will run; only worlds that are rendered there use it.
    """

    name = "multiview-supervised"

    def __init__(self, config: SupervisedConfig, device: str = "cpu") -> None:
        self.config = config
        self.device = str(resolve_device(device)) if config.render_on == "device" else "cpu"

    @cached_property
    def stream(self) -> BatchStream:
        """The micro-batches by position."""
        return training_stream(self.config, self.device)

    def model(self) -> nn.Module:
        """The network with weights drawn from the run's seed."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.train.seed, "weights"))
            if config.network == "vggt":
                heads = ("camera", "depth", "points") if config.points else ("camera", "depth")
                return Vggt(replace(vggt_config(config.size), heads=heads))  # type: ignore[arg-type]
            if config.network == "reliev3r":
                return Reliev3rNet(reliev3r_config(config.size))
            return Pi3(pi3_config(config.size))

    def batch(self, position: int, part: int = 0, parts: int = 1) -> Batch:
        """Micro-batch number ``position``."""
        return self.stream.batch(position, part, parts)

    def samples(self, batch: Batch) -> Sequence[str]:
        """``family/world`` of each."""
        return sample_names(batch)

    def split(self, batch: Batch, parts: int) -> Sequence[Batch]:
        """Scenes in order."""
        return split_batch(batch, parts)

    def to(self, batch: Batch, device: torch.device) -> Batch:
        """On a device."""
        return batch.to(device)

    def loss(self, model: nn.Module, batch: Batch, info: StepInfo, teacher: nn.Module | None) -> LossReport:
        """See :func:`supervised_loss`."""
        return supervised_loss(model, batch, self.config.losses, info.generator)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @cached_property
    def _held_out(self) -> Mapping[Family, Batch]:
        config = self.config.evaluation
        return {family: held_out(config, family, self.config.stream.sizes[0]) for family in config.families}

    @cached_property
    def constants(self) -> Mapping[str, float]:
        """Constant answers come from training scenes, are scored on held-out ones, and never change."""
        views, size = self.config.evaluation.views, self.config.stream.sizes[0]
        plain = StreamConfig(
            (views, views),
            scenes=self.config.evaluation.constants,
            sizes=(size,),
            need=frozenset({"K", "pose", "depth"}),
            grouping=Grouping("random"),
        )
        batch = BatchStream(self.stream.mixture, plain, derive_seed(self.config.train.seed, "constants"))
        constants = evaluation.constants_of(batch.batch(0).to("cpu"))
        return {
            f"{family}_{name}": value
            for family, scenes in self._held_out.items()
            for name, value in evaluation.score_constants(constants, scenes).items()
        }

    def evaluate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Numbers on every held-out family, and those of constant answers."""
        out: dict[str, float] = {}
        for family, scenes in self._held_out.items():
            found = evaluation.score(model, scenes, self.config.evaluation.chunk)
            out |= {f"{family}_{name}": value for name, value in found.items()}
        return {**out, **self.constants}

    def panels(self, model: nn.Module, step: int) -> Mapping[str, Tensor]:
        """Two held-out scenes of every family."""
        out: dict[str, Tensor] = {}
        for family, scenes in self._held_out.items():
            few = split_batch(scenes, len(scenes.images))[:PANELS]
            for number, scene in enumerate(few):
                found = evaluation.predict(model, scene, 1)[0]
                out[f"{family}_{number}"] = scene_panel(scene, found)
        return out

    # ---- what a person asks -----------------------------------------------------------------------------------------

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """What the network says, without a loss."""
        return forward(model, batch)

    def data_plan(self) -> DataPlan:
        """Families and shares, samples and pictures per micro-batch."""
        config = self.config
        weights = [share.weight for share in config.worlds]
        low, high = config.stream.views
        scenes = [config.stream.scenes_of(views) for views in range(low, high + 1)]
        images = [n * views for n, views in zip(scenes, range(low, high + 1))]
        return DataPlan(
            tuple(SourcePlan(s.family, s.weight / sum(weights), s.count) for s in config.worlds),
            sum(scenes) / len(scenes),
            sum(images) / len(images),
            config.stream.sizes,
            tuple(sorted(set(scenes))),
        )

    def model_card(self) -> Mapping[str, Any]:
        """Architecture and what it gives."""
        config = self.config
        return {
            "architecture": config.network,
            "size": config.size,
            "heads": ["camera", "depth", *(["points"] if config.points else [])]
            if config.network == "vggt"
            else None,
            "unit": "unscaled: lengths are relative to each other only",
            "patch": 14,
            "sizes": config.stream.sizes,
            "views": config.stream.views,
        }
