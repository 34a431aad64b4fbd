"""Training of the volumetric network as the loop sees it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.losses.volume import volume_loss
from relief3d.methods.vfm_recon.volume import evaluation
from relief3d.methods.vfm_recon.volume.config import VolumeConfig
from relief3d.methods.vfm_recon.volume.fragments import FragmentBatch, FragmentStream
from relief3d.methods.vfm_recon.volume.panels import fragment_panel
from relief3d.models.volume.config import VolumeNetConfig, volume_config
from relief3d.models.volume.network import VolumeNetwork, VolumeOutput
from relief3d.models.volume.opening import config_to_plain
from relief3d.models.volume.vfm_features import load_foundation
from relief3d.train.recipe import DataPlan, SourcePlan
from relief3d.train.task import LossReport, StepInfo

MIN_VIEWS = 2


def network_config(config: VolumeConfig) -> VolumeNetConfig:
    """The network of a run: its size, with the grid, pictures and truncation of the data."""
    base = volume_config(config.size, config.variant, finerecon_compat=config.finerecon_compat)
    scenes = config.scenes[0]
    return replace(base, voxel_size=config.voxel_size, truncation=scenes.truncation, image_size=scenes.size)


class VolumeTask:
    """The volumetric network on fragments of procedural scenes; see :class:`relief3d.train.task.Task`.

    Args:
        config: of the run.
        device: where it will run; scenes are rendered on the CPU in any case, ahead of it.
    """

    name = "volume"

    def __init__(self, config: VolumeConfig, device: str = "cpu") -> None:
        self.config = config

    @cached_property
    def stream(self) -> FragmentStream:
        """The micro-batches by position."""
        return FragmentStream(self.config)

    def model(self) -> nn.Module:
        """The network with weights drawn from the run's seed, and a foundation network from its file.

        Raises:
            InputError: the variant has a foundation network and none was given, or its file does not fit.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.train.seed, "weights"))
            network = VolumeNetwork(network_config(self.config))
        if network.vfm is None:
            return network
        foundation = self.config.foundation
        if foundation.weights:
            load_foundation(network.vfm, foundation.weights)
        elif not foundation.untrained:
            assert network.config.vfm is not None
            raise InputError(
                f"the network '{self.config.variant}' reads features of a frozen VGGT "
                f"('{network.config.vfm.size}'), and its weights were not given",
                remedy="give foundation.weights=FILE (relief3d train multiview-supervised-vggt makes one), take "
                "variant=finerecon, or say foundation.untrained=true for features that mean nothing",
            )
        return network

    def batch(self, position: int, part: int = 0, parts: int = 1) -> FragmentBatch:
        """Micro-batch number ``position``."""
        return self.stream.batch(position, part, parts)

    def samples(self, batch: FragmentBatch) -> Sequence[str]:
        """``family-scene/number`` of each."""
        return batch.names

    def split(self, batch: FragmentBatch, parts: int) -> Sequence[FragmentBatch]:
        """Fragments in order."""
        size = math.ceil(len(batch) / min(parts, len(batch)))
        return [batch[i : i + size] for i in range(0, len(batch), size)]

    def to(self, batch: FragmentBatch, device: torch.device) -> FragmentBatch:
        """On a device."""
        return batch.to(device)

    def loss(
        self, model: nn.Module, batch: FragmentBatch, info: StepInfo, teacher: nn.Module | None
    ) -> LossReport:
        """See :func:`relief3d.losses.volume.volume_loss`."""
        found: VolumeOutput = model(batch.input, MIN_VIEWS)
        with torch.autocast(batch.tsdf.device.type, enabled=False):
            loss = volume_loss(
                found.occupancy, found.distance, batch.occupancy, batch.tsdf, found.valid, found.seen
            )
        parts = {
            "distance": loss.distance.detach(),
            "occupancy": loss.occupancy.detach(),
            "points": loss.points.float(),
            "surface_points": loss.surface_points.float(),
        }
        return LossReport(loss.total, parts)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @cached_property
    def _held_out(self) -> Mapping[str, FragmentBatch]:
        return {f: evaluation.held_out(self.config, f) for f in self.config.evaluation.families}

    @cached_property
    def depth_alone(self) -> Mapping[str, float]:
        """What the given depth says by itself, and a constant; it never changes."""
        net = network_config(self.config)
        return {
            f"{family}_{name}": value
            for family, batch in self._held_out.items()
            for name, value in evaluation.score_depth(
                batch, net.voxel_size, net.margin, net.truncation
            ).items()
        }

    def evaluate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """Numbers on held-out fragments of every family, and those of the depth alone."""
        truncation = self.config.scenes[0].truncation
        found = {
            f"{family}_{name}": value
            for family, batch in self._held_out.items()
            for name, value in evaluation.score(model, batch, truncation).items()
        }
        return {**found, **self.depth_alone}

    @torch.no_grad()
    def panels(self, model: nn.Module, step: int) -> Mapping[str, Tensor]:
        """The first held-out fragment of every family."""
        device = next(model.parameters()).device
        out = {}
        for family, batch in self._held_out.items():
            one = batch[0:1]
            found = model(one.to(device).input, 1)
            moved = VolumeOutput(
                found.occupancy.cpu(), found.distance.cpu(), found.valid.cpu(), found.seen.cpu()
            )
            out[family] = fragment_panel(one, moved)
        return out

    # ---- what a person asks -----------------------------------------------------------------------------------------

    def forward(self, model: nn.Module, batch: FragmentBatch | Batch) -> Any:
        """What the network says, without a loss. Of plain pictures (for plans of networks too large to be run, where no
        values exist that could say which points a view sees): feature maps, and features of an empty volume.
        """
        if isinstance(batch, FragmentBatch):
            return model(batch.input, MIN_VIEWS)
        assert isinstance(model, VolumeNetwork)
        empty = batch.images.new_zeros(len(batch.images), model.config.channels, *self.config.crop)
        return model.encode(batch.images), model.volume(empty, empty[:, 0])

    def data_plan(self) -> DataPlan:
        """Sets and shares, fragments and pictures per micro-batch."""
        config = self.config
        total = sum(s.count for s in config.scenes)
        return DataPlan(
            tuple(SourcePlan(s.family, s.count / total, s.count) for s in config.scenes),
            float(config.batch),
            float(config.batch * config.views),
            (config.scenes[0].size,),
            (config.batch,),
        )

    def model_card(self) -> Mapping[str, Any]:
        """Architecture, what it gives, and which depth it was trained with."""
        config = self.config
        net = network_config(config)
        given = "none"
        if net.vfm is not None:
            given = config.foundation.weights or "UNTRAINED: its features mean nothing"
        return {
            "architecture": "volume",
            "size": config.size,
            "variant": config.variant,
            "configuration": config_to_plain(net),
            "foundation": given,
            "gives": "occupancy and signed distance (positive in front, 1 = truncation) from posed pictures"
            + (" and depth" if net.guided else ""),
            "unit": "metres",
            "training_depth": "exact depth with errors of scale, smooth noise and holes (not of the real pipeline)",
            "sizes": [list(config.scenes[0].size)],
        }
