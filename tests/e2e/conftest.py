"""One small reconstruction that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from corpora.e2e_support import CONFIG, VIEWS, Small
from relief3d.core.progress import SilentProgress
from relief3d.pipelines.demo import write_capture
from relief3d.pipelines.reconstruct import reconstruct


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos and truth of a small room; photos include a grey one, a PNG and one turned by EXIF."""
    root = tmp_path_factory.mktemp("capture")
    write_capture(root, seed=3, views=VIEWS, width=320, progress=SilentProgress())
    photos = root / "photos"
    turned = photos / "room_002.jpg"
    picture = Image.open(turned).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: upright after a quarter turn clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(turned, quality=95, exif=exif)
    grey = photos / "room_004.jpg"
    Image.open(grey).convert("L").save(grey, quality=95)
    return root


@pytest.fixture(scope="session")
def small(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The reconstruction of :func:`capture`."""
    out = tmp_path_factory.mktemp("result") / "größe 1"  # spaces and umlauts must not matter
    scene = reconstruct(capture / "photos", out, config=CONFIG)
    return Small(capture / "photos", capture / "truth" / "cameras.json", out, scene)
