"""What the training loop costs over a bare one, on a network of 5 million parameters.

Both do the same: the same batches, AdamW, clipping, learning rate. The bare loop is the ten lines one writes without a
library; the engine's loop does its guard, log, progress and moving of counters besides. They run in turns in one
process, a few steps each, in changing order, and the ratio is that of the medians; on a CPU it is the time of this
process, since other work may share the cores. Saving is measured apart, as its cost is the disk's.

    python benchmarks/training_overhead.py --json results/training/overhead.json
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.device import resolve_device, synchronize
from relief3d.core.progress import SilentProgress
from relief3d.core.provenance import commit, hardware, versions
from relief3d.core.seeding import torch_generator
from relief3d.io.json_file import write_json
from relief3d.nn.blocks import Block
from relief3d.train.adapt import own_torch_state
from relief3d.train.config import CheckpointConfig, LogConfig, OptimiserConfig, TrainConfig
from relief3d.train.engine import SingleEngine
from relief3d.train.interrupt import StopWish
from relief3d.train.loop import _Run
from relief3d.train.task import LossReport, StepInfo

SEED, WIDTH, DEPTH, TOKENS, BATCH = 0, 256, 6, 64, 4


class Net(nn.Module):
    """Transformer blocks between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(48, WIDTH), nn.Linear(WIDTH, 48)
        self.blocks = nn.ModuleList(Block(WIDTH, 4) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 48) -> (B, T, 48)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class Copying:
    """Reproduce the tokens; batches are made once, so that only loops are compared."""

    name = "overhead"

    def __init__(self) -> None:
        generator = torch_generator(SEED)
        self.batches = [
            (torch.randn(BATCH, TOKENS, 48, generator=generator), [f"{i}:{j}" for j in range(BATCH)])
            for i in range(4)
        ]

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return Net()

    def batch(self, position: int, part: int = 0, parts: int = 1) -> Any:
        return self.batches[position % 4]

    def samples(self, batch: Any) -> Sequence[str]:
        return batch[1]

    def split(self, batch: Any, parts: int) -> Sequence[Any]:
        raise NotImplementedError

    def to(self, batch: Any, device: torch.device) -> Any:
        return batch[0].to(device), batch[1]

    def loss(self, model: nn.Module, batch: Any, info: StepInfo, teacher: nn.Module | None) -> LossReport:
        each = (model(batch[0]) - batch[0]).square().mean((1, 2))
        return LossReport(each.mean(), {}, each)

    def evaluate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        return {}

    def panels(self, model: nn.Module, step: int) -> Mapping[str, Tensor]:
        return {}


def bare_stepper(task: Copying, config: TrainConfig, device: torch.device) -> Callable[[], None]:
    """One step of a plain loop."""
    model = task.model().to(device).train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=config.optimiser.lr,
    )
    steps = itertools.count()

    def step() -> None:
        x = task.batch(next(steps))[0].to(device)
        loss = (model(x) - x).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def engine_stepper(
    task: Copying, config: TrainConfig, device: torch.device, folder: Path
) -> Callable[[], None]:
    """One step of the engine's loop, as ``fit`` does it."""
    run = _Run(task, config, folder, SingleEngine(device, None), SilentProgress(), {}, StopWish())
    run.begin()

    def step() -> None:
        run.one_step([task.batch(run.count.step)])
        run.after_step(config.steps)

    return step


def measure(device: torch.device, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds per step of both loops by round."""
    task = Copying()
    config = TrainConfig(
        steps=10**9,
        optimiser=OptimiserConfig(lr=1e-4),
        log=LogConfig(every=20),
        checkpoint=CheckpointConfig(every=10**9),
        deterministic=device.type == "cpu",
    )
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {"bare": [], "engine": []}
    with tempfile.TemporaryDirectory() as folder, own_torch_state(device, config.deterministic):
        arms = {
            "bare": bare_stepper(task, config, device),
            "engine": engine_stepper(task, config, device, Path(folder)),
        }
        for step in (*arms.values(), *arms.values()):
            step()
        for number in range(rounds):
            for name in sorted(arms, reverse=number % 2 == 1):
                synchronize(device)
                began = clock()
                for _ in range(steps):
                    arms[name]()
                synchronize(device)
                seconds[name].append((clock() - began) / steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = sorted(e / b for e, b in zip(seconds["engine"], seconds["bare"]))
    return {
        "parameters": sum(p.numel() for p in task.model().parameters()),
        "batch": [BATCH, TOKENS, 48],
        "rounds": rounds,
        "steps_per_round": steps,
        "seconds_per_step": medians,
        "ratio": medians["engine"] / medians["bare"],
        "ratio_of_pairs": {"median": statistics.median(pairs), "lowest": pairs[0], "highest": pairs[-1]},
        "clock": "of this process" if device.type == "cpu" else "wall",
        "every_round": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    began = time.perf_counter()
    result = measure(device, options.rounds, options.steps)
    result |= {
        "command": " ".join(["python", "benchmarks/training_overhead.py", *sys.argv[1:]]),
        "seed": SEED,
        "device": device.type,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }
    print(f"engine over bare: {result['ratio']:.4f} ({result['parameters'] / 1e6:.2f} M parameters)")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, result)


if __name__ == "__main__":
    main()
