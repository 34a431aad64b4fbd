"""Reference tensors of the published networks, where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def golden(shared_data: Path, name: str) -> dict[str, torch.Tensor]:
    """All tensors of a golden file; skips where it is absent."""
    path = shared_data.parent / "golden" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"golden file {path.name} not found")
    return load_file(str(path))


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max())
