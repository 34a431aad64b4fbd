"""`relief3d depth` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from corpora.commands import photo, run
from corpora.depth_networks import weights
from relief3d.models import packaged as packaged_models
from relief3d.pipelines.depth import run as depth_run


def test_pictures_and_globs_and_a_second_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(2):
        photo(tmp_path / f"{k}.png", k, (48, 36))
    model = weights(tmp_path, "depth_map")
    command = ("depth", tmp_path / "?.png", "-o", tmp_path / "out", "--model", model, "--device", "cpu", "-q")
    assert run(*command) == 0
    assert "2 depth map(s)" in capsys.readouterr().out
    assert run(*command, "--intrinsics", "50,50,24,18", "--format", "png", "--points") == 0
    shown = capsys.readouterr().out
    assert "0 kept" in shown and "2 given" in shown
    assert json.loads((tmp_path / "out" / "depth.json").read_text())["state"] == "done"
    assert (tmp_path / "out" / "depth" / "0.png").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "'metric-student-mini' is not part of this copy"),
        (("--prompt", "p.npz"), "'metric-teacher-mini' is not part of this copy"),
        (("--model", "nothing.safetensors"), "no file and no packaged or published network"),
        (("--model", "MODEL", "--prompt", "p.npz"), "takes no prompt"),
        (("--model", "MODEL", "--side", "64"), "--side is not for"),
        (("--model", "MODEL", "--pixels", "0"), "--pixels must be positive"),
        (("--model", "MODEL", "--intrinsics", "1,2,3"), "four numbers"),
        (("--model", "MODEL", "--intrinsics", "-5,5,3,3"), "positive"),
        (("--model", "MODEL", "--intrinsics", "50,50,400,18"), "principal point"),
        (("--model", "MODEL", "--device", "abacus"), "abacus"),
        (("--model", "REFINER"), "needs sparse metric depth"),
        (("--model", "JUNK"), "no network for metric depth"),
    ],
)
def test_one_sentence_for_what_cannot_be_done(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.setattr(packaged_models, "weights_root", lambda: tmp_path / "none")
    photo(tmp_path / "a.png", 1, (48, 36))
    named: dict[str, object] = {}
    if "MODEL" in options:
        named["MODEL"] = weights(tmp_path, "depth_map")
    if "REFINER" in options:
        named["REFINER"] = weights(tmp_path, "prompt-refiner")
    if "JUNK" in options:
        save_file({"x": torch.zeros(2)}, str(tmp_path / "junk.safetensors"))
        named["JUNK"] = tmp_path / "junk.safetensors"
    extra = [named.get(o, o) for o in options]
    assert run("depth", tmp_path / "a.png", "-o", tmp_path / "out", "-q", *extra) == 2
    shown = capsys.readouterr().err
    assert says in shown and "Traceback" not in shown and not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(tmp_path / "a.png", 1, (48, 36))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    model = weights(tmp_path, "depth_map")
    assert run("depth", tmp_path / "a.png", "-o", tmp_path / "out", "--model", model, "-q") == 2
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "a.png", 1, (48, 36))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(depth_run, "write_outputs", stop)
    model = weights(tmp_path, "depth_map")
    assert run("depth", tmp_path / "a.png", "-o", tmp_path / "out", "--model", model, "-q") == 130
