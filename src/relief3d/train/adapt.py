"""What a run changes around itself: transformer blocks of its network, and torch's global state for its duration."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from relief3d.core.errors import InputError
from relief3d.nn.blocks import Block
from relief3d.train.config import TrainConfig


def adapt_blocks(model: nn.Module, config: TrainConfig) -> None:
    """Recompute or translate the transformer blocks of a network, in place; names of parameters stay."""
    if not (config.checkpointing or config.compile):
        return
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    if not blocks:
        raise InputError(
            f"{type(model).__name__} has no transformer blocks to recompute or compile",
            remedy="switch checkpointing and compile off",
        )
    for block in blocks:
        block.recompute = config.checkpointing
        if config.compile:
            block.compile(dynamic=True, backend=config.compile_backend)


@contextmanager
def own_torch_state(device: torch.device, deterministic: bool) -> Iterator[None]:
    """Deterministic algorithms and random numbers of the run's own inside, as before outside."""
    # Not torch.use_deterministic_algorithms, which takes seconds because it loads the whole compiler.
    was = torch.get_deterministic_debug_mode()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    seeded = [] if device.type in ("cpu", "mps") else [device]
    with torch.random.fork_rng(devices=seeded, device_type=device.type if seeded else "cpu"):
        torch.set_deterministic_debug_mode("warn" if deterministic else "default")
        # Filling every new tensor with NaN finds reads of uninitialised memory, at the price of a pass over it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(was)
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
