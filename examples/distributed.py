"""The smallest complete training program: the same file runs on one device and in many processes.

python examples/distributed.py runs/one
torchrun --nproc-per-node 2 examples/distributed.py runs/two
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.progress import ConsoleProgress
from relief3d.core.seeding import torch_generator
from relief3d.nn.blocks import Block
from relief3d.train.config import CheckpointConfig, EmaConfig, LogConfig, OptimiserConfig, TrainConfig
from relief3d.train.distributed import AccelerateEngine, engine_for
from relief3d.train.loop import fit
from relief3d.train.task import LossReport, StepInfo


class Doubling:
    """Learn y = 2 x from 8 samples per batch."""

    name = "doubling"

    def model(self) -> nn.Module:
        """Two transformer blocks; the same initial weights wherever it is called."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(4, 16), Block(16, 2), Block(16, 2), nn.Linear(16, 4))

    def batch(self, position: int, part: int = 0, parts: int = 1) -> dict[str, Any]:
        """A function of its arguments alone: every process takes its own share of the same batch."""
        x = torch.randn(8, 5, 4, generator=torch_generator(position))
        share = slice(part * 8 // parts, (part + 1) * 8 // parts)
        return {"x": x[share], "names": [f"{position}:{i}" for i in range(8)][share]}

    def samples(self, batch: Any) -> Sequence[str]:
        return batch["names"]

    def split(self, batch: Any, parts: int) -> Sequence[Any]:
        n = -(-len(batch["names"]) // parts)
        return [{k: v[i : i + n] for k, v in batch.items()} for i in range(0, len(batch["names"]), n)]

    def to(self, batch: Any, device: torch.device) -> Any:
        return {**batch, "x": batch["x"].to(device)}

    def loss(self, model: nn.Module, batch: Any, info: StepInfo, teacher: nn.Module | None) -> LossReport:
        each = (model(batch["x"]) - 2 * batch["x"]).square().mean((1, 2))
        return LossReport(each.mean(), {}, each)

    def evaluate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        return {}

    def panels(self, model: nn.Module, step: int) -> Mapping[str, Tensor]:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--strategy", choices=["ddp", "fsdp", "deepspeed"], default="ddp")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    config = TrainConfig(
        steps=options.steps,
        optimiser=OptimiserConfig(lr=1e-2, eps=1e-4),
        ema=EmaConfig(0.9),
        checkpoint=CheckpointConfig(every=10),
        log=LogConfig(every=1),
    )
    engine = engine_for(config, device=options.device, strategy=options.strategy)
    result = fit(Doubling(), config, options.folder, engine=engine, progress=ConsoleProgress())
    if engine.rank == 0:
        print(f"{result.step} steps in {engine.world} process(es)")
    if isinstance(engine, AccelerateEngine):
        engine.close()


if __name__ == "__main__":
    main()
