"""Options of ``relief3d label``; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LabelConfig:
    """Options of ``relief3d label``. None but reader, split, seed, max_frames and ordered changes a label."""

    reader: str | None = None
    """INPUT is the folder of a public data set: name of its reader (tartanair, scannetpp, ...; docs/datasets.md)."""
    split: str | None = None
    """With --reader: only this split of the data set."""
    workers: int | None = None
    """Processes of one thread each; one per core by default, a single one on an accelerator. 0 works in this process
    (slower to recover)."""
    cluster: Literal["none", "ray"] = "none"
    """ray: work on the Ray cluster of RAY_ADDRESS, or a local one."""
    device: str = "cpu"
    """Where networks run: auto, cpu, or an accelerator's name."""
    seed: int = 0
    """Of everything random in the labels."""
    max_frames: int | None = None
    """Frames to choose of a video, or pictures to keep, evenly spaced."""
    ordered: bool | None = None
    """Pictures follow each other in time; by default only those of videos do."""
    attempts: int = 3
    """How often an item whose labeler fails is tried in all."""
    max_kills: int = 3
    """After so many lost workers an item is quarantined."""
    item_timeout: float | None = None
    """Seconds after which the worker of an item is killed."""
    retry_failed: bool = False
    """Try items again that failed for good."""
    lease: float = 120.0
    """Seconds without a sign of life after which a run on another machine counts as dead."""
