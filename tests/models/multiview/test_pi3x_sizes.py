"""Pi3X of every named size takes known poses, whose channels come in groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.models.multiview.configs import SIZES, pi3x_config
from relief3d.models.multiview.interface import Known, wrap
from relief3d.models.multiview.pi3x import Pi3X


def test_the_smallest_network_takes_known_poses() -> None:
    torch.manual_seed(0)
    model = wrap(Pi3X(pi3x_config("nano")))
    images = torch.rand(1, 2, 3, 28, 42)
    poses = torch.eye(4).repeat(1, 2, 1, 1)
    poses[0, 1, 0, 3] = 0.5
    K = torch.tensor([[40.0, 0, 21], [0, 40, 14], [0, 0, 1]]).repeat(1, 2, 1, 1)
    known = Known(K=K, world_from_cam=poses, has_pose=torch.ones(1, 2, dtype=torch.bool), metric=True)
    out = model.predict(images, known)
    assert out.depth is not None and bool(torch.isfinite(out.depth).all())


@pytest.mark.parametrize("size", SIZES)
def test_heads_of_every_size_can_carry_poses(size: str) -> None:
    with torch.device("meta"):
        Pi3X(pi3x_config(size))  # type: ignore[arg-type]


def test_heads_that_cannot_are_refused_at_once() -> None:
    config = pi3x_config("nano")
    wrong = replace(config, decoder=replace(config.decoder, heads=4))
    with pytest.raises(InputError, match="4 heads of 12 channels"):
        Pi3X(wrong)
    Pi3X(replace(wrong, multimodal=False))
