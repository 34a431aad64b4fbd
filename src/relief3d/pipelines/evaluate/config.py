"""Options of ``relief3d eval PROTOCOL``; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class EvaluateConfig:
    """Options of ``relief3d eval PROTOCOL``."""

    predictions: Path | None = None
    """Folder of finished predictions, SAMPLE.safetensors (or .npz, .npy, .png, .ply, .json) each."""
    model: str | None = None
    """Name of a model; relief3d eval --list shows them."""
    data: Path | None = None
    """Folder of the data set in its public layout; without it, the procedural twin is measured."""
    subset: str | None = None
    """Whole number: that many scenes, spread evenly; else patterns of sample or scene names, divided by commas."""
    budget: Literal["smoke", "mini"] = "mini"
    """Size of the procedural twin: smoke (seconds) or mini (minutes)."""
    out: Path = Path("results/evaluation")
    """Folder for PROTOCOL.MODEL.json, .md, .html and panels."""
    cache: Path = Path("out/eval")
    """Folder for kept answers and measurements; a repeated or interrupted run continues from it."""
    name: str | None = None
    """Name in the table; the model's name or the predictions' folder when not given."""
    seed: int = 0
    """Seed of the twin, the model and the bootstrap."""
    workers: int = 0
    """Scenes measured side by side; 0 takes one per core for models that allow it."""
    panels: int = 3
    """Samples to draw; 0 for none."""
    again: bool = False
    """Ignore kept answers and measurements."""
    allow_missing: bool = False
    """Count samples without a prediction as failures instead of refusing."""
