"""The toy run in one process and in two, and what has to be equal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.corpora.forked import Ended, forked, preload
from tests.corpora.toy_run import CONFIG, block_net
from tests.corpora.toy_task import ToyTask
from torch.distributed.tensor import DTensor

from relief3d.train.config import GroupConfig, TrainConfig
from relief3d.train.distributed import AccelerateEngine, Strategy, engine_for
from relief3d.train.loop import fit
from relief3d.train.processes import one_voice

preload("accelerate")

SETS = replace(
    CONFIG,
    steps=6,
    accumulate=2,
    optimiser=replace(
        CONFIG.optimiser,
        clip_norm=0.05,
        groups=(GroupConfig("blocks.0.*", clip="first"), GroupConfig("stem.*", frozen=True)),
    ),
)
"""Two micro-batches per step, two sets of parameters that are clipped by themselves, and a frozen part."""


def toy(**options: Any) -> ToyTask:
    return ToyTask(dropout=0.0, norm=False, network=block_net, **options)


def spoilt(position: int, batch: dict[str, Any]) -> None:
    """One sample that is not finite, in the share of process 1 of two."""
    if "7:6" in batch["names"]:
        batch["x"][batch["names"].index("7:6")] = torch.nan


def one(
    folder: Path, stop_at: int | None = None, config: TrainConfig = CONFIG, task: ToyTask | None = None
) -> None:
    fit(task or toy(), config, folder, device="cpu", stop_at=stop_at)


def two(
    folder: Path,
    strategy: Strategy = "ddp",
    stop_at: int | None = None,
    config: TrainConfig = CONFIG,
    task: Callable[[], ToyTask] = toy,
    **options: Any,
) -> Ended:
    """In two processes; the first prints steps, samples that it saw, and how many of its parameters are spread."""

    def work() -> None:
        with one_voice():
            engine = engine_for(config, device="cpu", strategy=strategy)
            made = task()
            result = fit(made, config, folder, engine=engine, stop_at=stop_at)
            if engine.rank == 0:
                kinds = [isinstance(p, DTensor) for p in result.model.parameters()]
                print(result.step, len(made.seen), f"{sum(kinds)}/{len(kinds)}")
            assert isinstance(engine, AccelerateEngine)
            engine.close()

    return forked(work, **options)


def here() -> int:
    """Number of this process."""
    return int(os.environ.get("RANK", "0"))


def lines(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def assert_same(a: Path, b: Path, bound: float = 1e-6, steps: int = 20) -> None:
    left, right = ([line["loss"] for line in lines(f)] for f in (a, b))
    assert len(left) == len(right) == steps
    assert max(abs(x - y) for x, y in zip(left, right) if x is not None or y is not None) <= bound
    for name in ("model", "ema", "optimiser"):
        first, second = (load_file(f / f"checkpoints/step_{steps:08d}/{name}.safetensors") for f in (a, b))
        assert {k: (v.shape, v.dtype) for k, v in first.items()} == {
            k: (v.shape, v.dtype) for k, v in second.items()
        }
        assert max(float((first[k] - second[k]).abs().max()) for k in first) <= bound, name
