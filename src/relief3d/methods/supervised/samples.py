"""Worlds as streams of training samples and as held-out sets."""

from __future__ import annotations

import torch

from relief3d.core.contract import Batch
from relief3d.core.seeding import derive_seed
from relief3d.data.batching import collate
from relief3d.data.mixtures import Mixture
from relief3d.data.sources import SampleSource
from relief3d.data.streams import BatchStream
from relief3d.data.view_groups import Grouping, ViewRequest
from relief3d.methods.supervised.config import EvaluationConfig, Family, SupervisedConfig, WorldShare
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.training import TabletopSource, WorldSource


def world_source(share: WorldShare, seed: int, device: str = "cpu") -> SampleSource:
    """Worlds of a family; another seed gives other worlds."""
    if share.family == "tabletop":
        return TabletopSource(share.family, seed=seed, count=share.count, pool=share.pool, device=device)
    config = WorldConfig(family=share.family, texture_size=share.texture_size)
    return WorldSource(share.family, config, seed=seed, count=share.count, pool=share.pool, device=device)


def training_stream(config: SupervisedConfig, device: str) -> BatchStream:
    """The micro-batches of a run, by position."""
    seed, where = config.train.seed, device if config.render_on == "device" else "cpu"
    sources = [
        world_source(share, derive_seed(seed, "training worlds", share.family), where)
        for share in config.worlds
    ]
    mixture = Mixture(sources, [share.weight for share in config.worlds], derive_seed(seed, "mixture"))
    return BatchStream(mixture, config.stream, derive_seed(seed, "stream"))


def held_out(config: EvaluationConfig, family: Family, size: tuple[int, int]) -> Batch:
    """Scenes of a family that training never sees, on the CPU: random views in random order, not augmented."""
    source = world_source(WorldShare(family), derive_seed(config.seed, "held-out worlds", family))
    request = ViewRequest(
        config.views, size, frozenset({"K", "pose", "depth"}), Grouping("random", shuffled=True)
    )
    with torch.no_grad():
        return collate(
            [source.sample(i, request, derive_seed(config.seed, "views", i)) for i in range(config.scenes)]
        )
