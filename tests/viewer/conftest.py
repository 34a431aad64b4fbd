"""The synthetic room of the report tests as an output folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from report.ball_room import make_scene, write_output


@pytest.fixture(scope="session")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete output folder; tests must not change it."""
    return write_output(make_scene(views=3, lost=1, steps=10), tmp_path_factory.mktemp("out") / "OUT")
