"""The one place that asks for accelerators."""

from __future__ import annotations

import torch

from relief3d.core.errors import InputError

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


def synchronize(device: torch.device) -> None:
    """Wait for queued work on ``device``; needed before reading a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def accelerator_name() -> str | None:
    """Name of the first accelerator of this machine, or None."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return "Apple GPU" if torch.backends.mps.is_available() else None
