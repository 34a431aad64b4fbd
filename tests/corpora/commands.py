"""Run the command in this process, and the smallest inputs for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relief3d.cli.main import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (320, 240)) -> Path:
    """A photo full of corners; other seeds share nothing with it."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def two_photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    photo(folder / "a.png", 1)
    photo(folder / "b.png", 2)
    return folder
