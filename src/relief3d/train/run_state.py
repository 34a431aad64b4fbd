"""What of a run goes into a checkpoint, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError, RunError
from relief3d.train.checkpoint import Checkpoint
from relief3d.train.ema import MovingAverage
from relief3d.train.engine import Engine, Optimizer
from relief3d.train.fingerprint import first_difference

BROKEN_REMEDY = (
    "the last checkpoint is finite, so resuming goes on from it; a lower learning rate needs another folder"
)


@dataclass
class Counters:
    """Numbers of a run that are no tensors.

    Attributes:
        step: optimiser steps done, those that the guard left out included.
        samples: seen, over all processes.
        parts: pieces that a batch goes through in, since the memory ran out.
        skipped: steps that the guard left out.
        in_a_row: of these, since the last good one.
        flops_per_sample: counted in the first step; 0 before.
        best: step, value and name of the best evaluation; None before.
        numbers: of the last evaluation.
        due: evaluation and pictures of this step that failed and have to be made again.
    """

    step: int = 0
    samples: int = 0
    parts: int = 1
    skipped: int = 0
    in_a_row: int = 0
    flops_per_sample: float = 0.0
    best: tuple[int, float, str] | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    due: list[bool] = field(default_factory=lambda: [False, False])


@dataclass(frozen=True)
class Trained:
    """Everything of a run that changes while it trains; ``model`` may be wrapped."""

    engine: Engine
    model: nn.Module
    optimiser: Optimizer
    average: MovingAverage | None

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors, whole, by the names of the files of a checkpoint. All processes have to ask."""
        plain = self.engine.plain(self.model)
        out = {
            "model": self.engine.weights(plain),
            "optimiser": self.engine.moments(plain, self.optimiser),
            "random": {"cpu": torch.get_rng_state()},
        }
        if self.average is not None:
            out["ema"] = dict(self.average.network.state_dict())
        return out

    def broken(self) -> str | None:
        """The first tensor that is not finite, in words."""
        return first_not_finite(self.tensors())


def first_not_finite(tensors: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """Which tensor of a run is not finite, in words; moments first, because weights follow them."""
    words = {"optimiser": "the optimiser's state", "model": "the weights", "ema": "the average"}
    for kind, what in words.items():
        for name, value in tensors.get(kind, {}).items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                return f"{what} '{name}'"
    return None


def snapshot(run: Trained, counters: Counters, identity: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint of a run. All processes have to ask.

    Raises:
        RunError: a tensor is not finite; such a state is never written.
    """
    tensors = run.tensors()
    broken = first_not_finite(tensors)
    if broken is not None:
        raise RunError(
            f"{broken} is not finite after step {counters.step}, so nothing is saved",
            remedy=BROKEN_REMEDY,
        )
    state = {
        "counters": dataclasses.asdict(counters),
        "ema_updates": 0 if run.average is None else run.average.updates,
        "scaler": run.engine.scaler_state(),
        "config": dict(identity),
    }
    return Checkpoint(counters.step, tensors, state)


def restore(run: Trained, saved: Checkpoint, path: Path, identity: Mapping[str, Any]) -> Counters:
    """Put a checkpoint's content back.

    Raises:
        InputError: it belongs to a run with other settings or another network.
    """
    state = saved.state
    try:
        difference = first_difference(state["config"], identity)
        if difference is not None:
            raise InputError(
                f"holds a run with other settings: {difference}",
                path=path,
                remedy="use another folder, or the old value",
            )
        plain = run.engine.plain(run.model)
        run.engine.load_weights(plain, saved.tensors["model"])
        run.engine.load_moments(plain, run.optimiser, saved.tensors["optimiser"])
        if run.average is not None:
            run.average.network.load_state_dict(saved.tensors["ema"])
            run.average.updates = int(state["ema_updates"])
        torch.set_rng_state(saved.tensors["random"]["cpu"])
        run.engine.load_scaler_state(state["scaler"])
        values = dict(state["counters"])
        best = values.pop("best")
        numbers = {k: math.nan if v is None else float(v) for k, v in values.pop("numbers").items()}
        return Counters(
            **values,
            best=None if best is None else (int(best[0]), float(best[1]), str(best[2])),
            numbers=numbers,
        )
    except (RuntimeError, KeyError, TypeError, ValueError) as exc:
        raise InputError(
            "belongs to another network or other frozen parts", path=path, remedy="use another folder"
        ) from exc
