"""How well held-out fragments are told, beside what the given depth says by itself and a constant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from relief3d.core.seeding import derive_seed
from relief3d.losses.volume import volume_loss
from relief3d.methods.vfm_recon.volume.config import VolumeConfig
from relief3d.methods.vfm_recon.volume.fragments import FragmentBatch, joined, make_fragment, scenes_root
from relief3d.methods.vfm_recon.volume.scenes import SceneSource
from relief3d.models.volume.guidance import Guidance
from relief3d.models.volume.network import VolumeOutput
from relief3d.worlds.config import Family

NUMBERS = ("loss", "occupancy_f1", "distance_error")
_TRIES = 60


def held_out(config: VolumeConfig, family: Family) -> FragmentBatch:
    """Fragments of a family that training never sees; colours are not changed, depth has its errors."""
    rule = replace(
        config.scenes[0], family=family, count=config.evaluation.scenes, seed=config.evaluation.seed
    )
    source = SceneSource(scenes_root(config), rule)
    plain = replace(config, colours=replace(config.colours, probability=0.0))
    found: list[FragmentBatch] = []
    for number in range(config.evaluation.scenes):
        of_scene: list[FragmentBatch] = []
        for attempt in range(_TRIES):
            if len(of_scene) == config.evaluation.fragments:
                break
            seed = derive_seed(config.evaluation.seed, "fragment", number, attempt)
            made = make_fragment(source.scene(number), plain, seed)
            if made is not None:
                of_scene.append(made)
        found += of_scene
    return joined(found)


def _f1(said: Tensor, truth: Tensor) -> float:
    right = float((said & truth).sum())
    return 2 * right / max(float(said.sum() + truth.sum()), 1.0)


def numbers_of(found: VolumeOutput, batch: FragmentBatch, truncation: float) -> dict[str, float]:
    """``loss``, ``occupancy_f1``, and ``distance_error``: mean |distance - truth| in metres near surfaces."""
    loss = volume_loss(found.occupancy, found.distance, batch.occupancy, batch.tsdf, found.valid, found.seen)
    judged = found.valid & ~torch.isnan(batch.occupancy)
    truth = judged & (batch.occupancy > 0.5)
    near = truth & ~torch.isnan(batch.tsdf) & found.seen
    off = (torch.tanh(found.distance.float()) - torch.where(near, batch.tsdf, 0.0)).abs()
    return {
        "loss": float(loss.total),
        "occupancy_f1": _f1((found.occupancy > 0) & judged, truth),
        "distance_error": truncation * float(torch.where(near, off, 0.0).sum() / near.sum().clamp_min(1)),
    }


@torch.no_grad()
def score(model: nn.Module, batch: FragmentBatch, truncation: float, chunk: int = 2) -> dict[str, float]:
    """Numbers of a network on the CPU or wherever it is."""
    device = next(model.parameters()).device
    parts = [model(batch[i : i + chunk].to(device).input, 1) for i in range(0, len(batch), chunk)]
    whole = VolumeOutput(
        *(
            torch.cat([getattr(p, name).cpu() for p in parts])
            for name in ("occupancy", "distance", "valid", "seen")
        )
    )
    return numbers_of(whole, batch, truncation)


@torch.no_grad()
def score_depth(
    batch: FragmentBatch, voxel_size: float, margin: float, truncation: float
) -> Mapping[str, float]:
    """The same numbers of the given depth alone, averaged over the views with the same rule as the guidance, and of a
    constant: everything occupied at distance 0.
    """
    x = batch.input
    assert x.depth is not None
    width = margin * voxel_size
    said = []
    for b in range(len(batch)):
        run = Guidance(x.queries[b], width)
        run.add(x.depth[b], x.views(b))
        said.append(-run.value() * width / truncation)
    distance = torch.stack(said)
    known = ~torch.isnan(batch.occupancy)
    truth = known & (batch.occupancy > 0.5)
    near = truth & ~torch.isnan(batch.tsdf)
    target = torch.where(near, batch.tsdf, 0.0)

    def error(value: Tensor) -> float:
        off = (value.clamp(-1, 1) - target).abs()
        return truncation * float(torch.where(near, off, 0.0).sum() / near.sum().clamp_min(1))

    return {
        "occupancy_f1_depth": _f1((distance.abs() < 1) & known, truth),
        "distance_error_depth": error(distance),
        "occupancy_f1_constant": _f1(known, truth),
        "distance_error_constant": error(torch.zeros_like(distance)),
    }
