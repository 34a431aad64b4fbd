"""Making worlds from seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.worlds.builder import WorldBuilder, stack_worlds
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.families.arrangement import build_objects
from relief3d.worlds.families.outdoor import build_outdoor
from relief3d.worlds.families.room import build_room
from relief3d.worlds.families.street import build_street
from relief3d.worlds.noise import noise_volume
from relief3d.worlds.textures import TextureBank, make_texture_bank
from relief3d.worlds.world import World

BUILDERS: dict[str, Callable[[WorldBuilder, WorldConfig], None]] = {
    "room": build_room,
    "objects": build_objects,
    "outdoor": build_outdoor,
    "street": build_street,
}


def make_bank(config: WorldConfig, seed: int = 0, photos: Sequence[Tensor] = ()) -> TextureBank:
    """The texture bank a configuration asks for; share one among many worlds.

    Args:
        config: its texture fields are read.
        seed: used when ``config.texture_seed`` is None.
        photos: user pictures, (3, H, W) RGB in [0, 1], added to the bank.
    """
    own = config.texture_seed if config.texture_seed is not None else derive_seed(seed, "textures")
    return make_texture_bank(own % (1 << 32), config.textures, size=config.texture_size, photos=photos)


def make_worlds(
    seeds: Sequence[int],
    config: WorldConfig | None = None,
    *,
    bank: TextureBank | None = None,
    photos: Sequence[Tensor] = (),
    device: torch.device | str = "cpu",
) -> World:
    """A batch of worlds, one per seed.

    Args:
        seeds: one per world; the same seed and configuration give the same bytes.
        config: what to make; a room when None.
        bank: a bank to share; made from the configuration when None.
        photos: user pictures for a bank made here.
        device: where the result lives; generation itself runs on the CPU.

    Raises:
        InputError: without seeds or for an unknown family.
    """
    config = config or WorldConfig()
    if not seeds:
        raise InputError("no seed to make a world from")
    if config.family not in BUILDERS:
        raise InputError(
            f"unknown world family '{config.family}'", remedy=f"use one of {', '.join(BUILDERS)}"
        )
    if bank is None:
        bank = make_bank(config, seeds[0], photos)
    builders = []
    for seed in seeds:
        rng = np.random.default_rng(derive_seed(seed, "world", config.family))
        builder = WorldBuilder(rng, config.layout, bank, config.max_materials, config.plain_things)
        BUILDERS[config.family](builder, config)
        builders.append(builder)
    return stack_worlds(builders, noise_volume(0), bank).to(device)


def make_world(
    seed: int,
    config: WorldConfig | None = None,
    *,
    bank: TextureBank | None = None,
    photos: Sequence[Tensor] = (),
    device: torch.device | str = "cpu",
) -> World:
    """One world; see :func:`make_worlds`."""
    return make_worlds([seed], config, bank=bank, photos=photos, device=device)
