"""How much of a device a run uses: operations of a step over the device's peak (Chowdhery et al. 2022, section 4.1)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from relief3d.core.device import synchronize

T = TypeVar("T")


def count_flops(work: Callable[[], T]) -> tuple[T, int]:
    """Result of ``work`` and its floating-point operations: products and convolutions, forward and backward.

    One multiplication with addition counts as two. Recomputed activations count too, so with them the utilisation is
    that of the hardware rather than of the model.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        result = work()
    return result, int(counter.get_total_flops())


def count_multiply_adds(work: Callable[[], T]) -> tuple[T, int]:
    """Result of ``work`` and the multiply-adds of its linear layers and convolutions, without the products inside
    attention: what MetricAnything's table calls FLOPs. Runs on the meta device as well.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        result = work()
    attention = ("scaled_dot_product", "bmm")
    counts = counter.get_flop_counts().get("Global", {})
    return result, sum(n for op, n in counts.items() if not any(a in str(op) for a in attention)) // 2


def measure_peak(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.05) -> float:
    """Operations per second of large matrix products on a device, the best of a few: what the peak is in practice."""
    side = 512 if device.type == "cpu" else 8192
    a = torch.full((side, side), 0.5, dtype=dtype, device=device)
    best, began = 0.0, time.perf_counter()
    while True:
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, a)
        synchronize(device)
        now = time.perf_counter()
        best = max(best, 2.0 * side**3 / max(now - start, 1e-9))
        if now - began >= seconds:
            return best
