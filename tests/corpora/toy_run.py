"""Program of tests that train in other processes: ``python -m tests.corpora.toy_run FOLDER OPTIONS-AS-JSON``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.corpora.toy_task import ToyTask
from torch import nn

from relief3d.nn.blocks import Block
from relief3d.train.config import CheckpointConfig, EmaConfig, LogConfig, OptimiserConfig, TrainConfig
from relief3d.train.distributed import AccelerateEngine, engine_for
from relief3d.train.loop import fit

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


def main(folder: Path, options: dict[str, Any]) -> None:
    stop, strategy = options.pop("stop_at", None), options.pop("strategy", "ddp")
    save = options.pop("save_every", None)
    config = replace(CONFIG, **options)
    if save:
        config = replace(config, checkpoint=CheckpointConfig(every=save, keep_last=2))
    task = ToyTask(dropout=0.0, norm=False, network=block_net)
    engine = engine_for(config, device="cpu", strategy=strategy)
    result = fit(task, config, folder, engine=engine, device="cpu", stop_at=stop)
    if engine.rank == 0:
        print("done", result.step, len(task.seen))
    if isinstance(engine, AccelerateEngine):
        engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})
