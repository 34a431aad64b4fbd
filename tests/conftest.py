"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    # Two test workers on two cores: more threads per worker only get in each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def shared_root() -> Path | None:
    """The folder of real test images, or None when it is absent."""
    text = os.environ.get("RELIEF3D_SHARED", "../shared")
    root = Path(text) if Path(text).is_absolute() else REPO / text
    return root if (root / "data").is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """``data`` folder of the shared real images; skips where it is absent."""
    root = shared_root()
    if root is None:
        pytest.skip("real images not found: set RELIEF3D_SHARED to the folder that holds data/")
    return root / "data"


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO
