"""The command itself: where results go, and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora.commands import run, two_photos
from corpora.walk import write_walk


def test_mesh_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    walk = write_walk(tmp_path)
    out = tmp_path / "out"
    options = ("--submap", 4, "--overlap", 2, "--texture", "none", "--voxel-size", 0.08, "--width", 160)
    assert run("mesh", walk.folder, "-o", out, "--depth-files", walk.maps, *options) == 0
    said = capsys.readouterr().out
    assert "10 keyframes of 10 frames" in said and "report.html" in said
    assert {"mesh.ply", "mesh.glb", "scale.json", "report.json", "scene.json"} <= {
        p.name for p in out.iterdir()
    }


def test_bad_input_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = two_photos(tmp_path)
    assert run("mesh", photos, "-o", tmp_path / "out", "--quality", "refine", "-q") == 2
    assert "--weights" in capsys.readouterr().err
    assert run("mesh", photos / "a.png", "-o", tmp_path / "out", "-q") == 2
    assert "only one picture" in capsys.readouterr().err
    assert run("mesh", photos, "-o", tmp_path / "out", "--metres-per-unit", 2, "-q") == 2
    assert "given poses" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
