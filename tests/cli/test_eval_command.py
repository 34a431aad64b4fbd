"""``relief3d eval`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from corpora.commands import run
from relief3d.eval.protocols.registry import find_protocol

PROTOCOL = "eth3d_mono"


def arguments(tmp_path: Path, *more: object) -> tuple[object, ...]:
    folders = ("--out", tmp_path / "results", "--cache", tmp_path / "cache")
    return ("eval", PROTOCOL, "--budget", "smoke", "-q", *folders, *more)


def test_list_shows_every_protocol_and_its_published_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", "--list") == 0
    shown = capsys.readouterr().out
    for name in (
        "dl3dv_8view",
        "sintel_video",
        "kitti_completion",
        "scannet_mesh",
        "sa3dao_shape",
        "runtime",
    ):
        assert f"\n{name}: " in shown
    assert "Map-Anything" in shown and "prompt-linear" in shown
    assert run("eval", PROTOCOL, "--list") == 0
    one = capsys.readouterr().out
    assert one.startswith(f"{PROTOCOL}: ") and "dl3dv_8view" not in one and "layout:" in one


def test_a_model_on_the_twin_writes_result_table_and_panels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments(tmp_path, "--model", "constant")) == 0
    out = tmp_path / "results"
    record = json.loads((out / f"{PROTOCOL}.constant.json").read_text())
    assert record["model"] == "constant" and not record["comparable"]
    assert record["provenance"]["command"].startswith(f"relief3d eval {PROTOCOL} --model constant")
    assert run(*arguments(tmp_path, "--model", "best-constant")) == 0
    table = (out / f"{PROTOCOL}.md").read_text()
    assert "| constant |" in table and "best-constant (sees the truth)" in table and "DepthPro" in table
    html = (out / f"{PROTOCOL}.html").read_text()
    assert "data:image/png;base64," in html and "http" not in html.split("<style>")[0]
    assert list((out / "panels").rglob("*.png"))
    assert "table:" in capsys.readouterr().out


def test_own_predictions_from_other_programs(tmp_path: Path) -> None:
    samples = find_protocol(PROTOCOL).twin("smoke")
    folder = tmp_path / "mine"
    for i, sample in enumerate(samples):
        depth = sample.load_truth().need("depth")
        path = folder / sample.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if i % 2:
            np.save(path.with_name(path.name + ".npy"), depth[0].numpy().clip(min=0.01))
        else:
            save_file(
                {"depth": depth.clamp_min(0.01).contiguous()}, str(path.with_name(path.name + ".safetensors"))
            )
    assert run(*arguments(tmp_path, "--predictions", folder)) == 0
    record = json.loads((tmp_path / "results" / f"{PROTOCOL}.mine.json").read_text())
    assert record["summary"]["abs_rel"] == pytest.approx(0, abs=1e-5)


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*args: object) -> str:
        assert run(*args) == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text and len(text.strip().splitlines()) == 1
        return text

    assert "did you mean" in refused("eval", "eth3d_mon", "--model", "constant")
    assert "--list" in refused("eval")
    assert "--predictions DIR or --model NAME" in refused(*arguments(tmp_path))
    assert "models that do" in refused(*arguments(tmp_path, "--model", "ball"))
    assert "did you mean constant" in refused(*arguments(tmp_path, "--model", "konstant"))
    assert "not a folder" in refused(*arguments(tmp_path, "--model", "constant", "--data", tmp_path / "no"))
    (tmp_path / "empty").mkdir()
    assert refused(*arguments(tmp_path, "--model", "constant", "--data", tmp_path / "empty"))
    assert "for none of the" in refused(*arguments(tmp_path, "--predictions", tmp_path / "empty"))
    assert "no sample matches" in refused(*arguments(tmp_path, "--model", "constant", "--subset", "zebra*"))
    assert "two places" in refused("eval", "reference", tmp_path)
    assert not (tmp_path / "results").exists(), "nothing half-written"


def test_sizes_and_units_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = find_protocol(PROTOCOL).twin("smoke")

    def write(change: object) -> Path:
        folder = tmp_path / "predictions"
        for sample in samples:
            path = folder / f"{sample.name}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            depth = sample.load_truth().need("depth").clamp_min(0.01)
            save_file({"depth": change(depth).contiguous()}, str(path))  # type: ignore[operator]
        return folder

    assert run(*arguments(tmp_path, "--predictions", write(lambda d: torch.cat([d, d])))) == 2
    shown = capsys.readouterr().err
    assert any(s.name in shown for s in samples) and "one map" in shown
    folders = ("--out", tmp_path / "results", "--cache", tmp_path / "cache")
    loud = ("eval", PROTOCOL, "--budget", "smoke", *folders, "--predictions", write(lambda d: 1000 * d))
    run(*loud)
    shown = capsys.readouterr()
    assert "millimetres" in shown.out + shown.err


def test_all_measures_what_a_model_can_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ("--out", tmp_path / "results", "--cache", tmp_path / "cache")
    assert run("eval", "all", "--model", "ball", "--budget", "smoke", "-q", *folders) == 0
    made = sorted(p.name.split(".")[0] for p in (tmp_path / "results").glob("*.json"))
    assert {"sa3dao_shape", "sa3dao_layout", "adt_layout"} <= set(made) and "sintel_video" not in made
    assert "table:" in capsys.readouterr().out
    assert run("eval", "all", "--data", tmp_path) == 2
    assert "procedural twins" in capsys.readouterr().err
