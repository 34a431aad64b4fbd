"""The one place that asks for accelerators."""

from __future__ import annotations

from typing import Literal

import torch

from relief3d.core.errors import InputError
from relief3d.core.memory import peak_rss, reset_peak_rss

DEVICE_CHOICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str = "auto") -> torch.device:
    """Turn a device name into a device that exists on this machine.

    ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: when the named device is unknown or absent.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise InputError(
            f"unknown device '{name}'", remedy=f"choose one of {', '.join(DEVICE_CHOICES)}"
        ) from exc
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise InputError(
            f"device '{name}' is not available on this machine",
            remedy="use --device auto or --device cpu",
        )
    return device


Precision = Literal["auto", "float32", "bfloat16", "float16"]


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type for autocast, or None for none; ``auto`` is the fastest type that trains and runs safely.

    Raises:
        InputError: float16 on a CPU, which computes it slowly and overflows.
    """
    if precision == "float32":
        return None
    if precision == "auto":
        if device.type == "cpu" or device.type == "mps":
            return None
        supported = torch.cuda.is_bf16_supported()
        return torch.bfloat16 if supported else torch.float16
    if precision == "float16" and device.type == "cpu":
        raise InputError("float16 is not for CPUs", remedy="use float32 or bfloat16")
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def synchronize(device: torch.device) -> None:
    """Wait for queued work on ``device``; needed before reading a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_memory(device: torch.device) -> None:
    """Hand cached blocks of a device back, so that smaller pieces fit after the memory ran out."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def peak_memory(device: torch.device) -> int:
    """Most memory in use so far, in bytes: of tensors on an accelerator, of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return peak_rss()


def reset_peak_memory(device: torch.device) -> bool:
    """Let :func:`peak_memory` count from now on; False where that cannot be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    return device.type == "cpu" and reset_peak_rss()


def accelerator_name() -> str | None:
    """Name of the first accelerator of this machine, or None."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return "Apple GPU" if torch.backends.mps.is_available() else None
