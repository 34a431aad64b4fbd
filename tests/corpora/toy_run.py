"""The toy run with transformer blocks, for tests of training in several processes."""

from __future__ import annotations

import torch
from torch import nn

from relief3d.nn.blocks import Block
from relief3d.train.config import CheckpointConfig, EmaConfig, LogConfig, OptimiserConfig, TrainConfig

CONFIG = TrainConfig(
    steps=20,
    ema=EmaConfig(0.9),
    # Key biases have no gradient but rounding; a small eps would turn that into steps of full size.
    optimiser=OptimiserConfig(lr=1e-2, eps=1e-4),
    checkpoint=CheckpointConfig(every=5, keep_last=2),
    log=LogConfig(every=1, utilisation=False),
)


class BlockNet(nn.Module):
    """Two transformer blocks over the 8 numbers as 4 tokens of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(2, 8), nn.Linear(8, 1)
        self.blocks = nn.ModuleList([Block(8, 2) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 8) -> (B, 4)."""
        x = self.stem(x.view(-1, 4, 2))
        for block in self.blocks:
            x = block(x)
        return self.out(x)[..., 0]


def block_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return BlockNet()
