"""The fused renderer gives the eager renderer's pictures."""

import shutil

import pytest
import torch

from relief3d.worlds import WorldConfig, make_sequences, make_worlds
from relief3d.worlds.config import TEXTURES
from relief3d.worlds.layout import Kind

SIZE = (16, 24)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")),
    reason="torch.compile needs a C++ compiler",
)
@pytest.mark.timeout(
    900
)  # the first compilation takes about a minute of processor time, more on a busy machine
def test_compiled_equals_eager():
    config = WorldConfig(
        family="objects",
        texture_size=32,
        textures=dict.fromkeys(TEXTURES, 1),
        slots={Kind.SHELL: 1, Kind.BOX: 6, Kind.ELLIPSOID: 2, Kind.CYLINDER: 2},
        clutter=0,
    )
    world = make_worlds([4], config)
    sequence = make_sequences(world, views=1 + 1, seed=0, size=SIZE, kind="orbit")
    cameras = (sequence.K, sequence.world_from_cam)
    eager = world.render(cameras, SIZE, tile=None)
    fused = world.render(cameras, SIZE, compile=True)
    assert (eager.slot != fused.slot).float().mean() < 0.01
    same = eager.slot == fused.slot
    assert (eager.depth - fused.depth).abs()[same].max() < 1e-3
    difference = (eager.radiance - fused.radiance).abs().amax(2)[same]
    assert (difference < 1e-3).float().mean() > 0.98
    assert torch.isfinite(fused.radiance).all()
