"""The synthetic room of the report tests, as a module and as an output folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_ROOM = Path(__file__).resolve().parents[1] / "report" / "ball_room.py"


@pytest.fixture(scope="session")
def room() -> ModuleType:
    """``tests/report/ball_room.py``."""
    spec = importlib.util.spec_from_file_location("ball_room_for_viewer", _ROOM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def output(room: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete output folder; tests must not change it."""
    return room.write_output(
        room.make_scene(views=3, lost=1, steps=10), tmp_path_factory.mktemp("out") / "OUT"
    )
