"""The set of commands is a promise; doctor and plan answer without doing work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from corpora.commands import run, two_photos
from relief3d.cli.main import main

PROMISED = {"reconstruct", "depth", "view", "eval", "models", "plan", "doctor", "demo"}
ALLOWED = PROMISED | {
    "mesh",
    "object",
    "adapt",
    "train",
    "label",
    "annotate",
    "repro",
    "app",
}


def test_commands_are_a_subset_of_the_frozen_list(capsys: pytest.CaptureFixture[str]) -> None:
    from relief3d.cli.main import _COMMANDS

    assert PROMISED <= set(_COMMANDS) <= ALLOWED
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PROMISED)


@pytest.mark.parametrize("command", sorted(PROMISED))
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert "usage" in capsys.readouterr().out.lower()


def test_doctor_finds_this_installation_ready(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--json") == 0
    found = {f["name"]: f for f in json.loads(capsys.readouterr().out)}
    assert found["torch"]["ok"] and found["python"]["ok"] and found["[sfm]"]["ok"]


def test_plan_states_time_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", two_photos(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "total" in shown and "GiB" in shown and "cameras" in shown


def test_too_little_memory_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("reconstruct", two_photos(tmp_path), "-o", tmp_path / "out", "-q", "--max-memory", "0.1")
    assert run(*arguments) == 2
    assert "GiB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("relief3d ")


def test_closed_pipe_is_not_an_error() -> None:
    reader = subprocess.run(
        f"{sys.executable} -m relief3d doctor | true", shell=True, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in reader.stderr and reader.returncode == 0


def test_models_are_listed_with_licence_size_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "list") == 0
    shown = capsys.readouterr().out
    for name in (
        "facebook/VGGT-1B",
        "yyfz233/Pi3",
        "yyfz233/Pi3X",
        "Changearthmore/SelfEvoVGGT",
        "apple/DepthPro",
    ):
        assert name in shown
    assert "licence" in shown and "GB" in shown and "1257 M parameters" in shown
    assert run("models", "info", "yyfz233/Pi3") == 0
    assert "CC BY-NC" in capsys.readouterr().out


def test_models_info_reads_files_and_refuses_junk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save_file

    from relief3d.models.multiview.configs import pi3_config
    from relief3d.models.multiview.pi3 import Pi3

    path = tmp_path / "w.safetensors"
    save_file({k: v.clone() for k, v in Pi3(pi3_config("nano")).state_dict().items()}, str(path))
    assert run("models", "info", path) == 0
    assert "w.safetensors: pi3" in capsys.readouterr().out
    save_file({"x": torch.zeros(2)}, str(path))
    assert run("models", "info", path) == 2
    assert "none of the networks" in capsys.readouterr().err
    assert run("models", "info", "nobody/nothing") == 2 and run("models", "pull") == 2
    assert run("models", "list", "pi3") == 2 and run("models", "list", "--overwrite") == 2
    assert "no published model" in capsys.readouterr().err
