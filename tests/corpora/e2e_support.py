"""What the end-to-end tests share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from relief3d.core.contract import Scene
from relief3d.pipelines.reconstruct import ReconstructConfig

VIEWS = 8
CONFIG = ReconstructConfig(quality="fast", depth_width=192)


@dataclass(frozen=True)
class Small:
    """A capture on disk, its truth, and what was reconstructed from the photos alone."""

    photos: Path
    truth: Path
    out: Path
    scene: Scene
