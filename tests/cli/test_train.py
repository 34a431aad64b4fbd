"""``relief3d train`` and ``relief3d repro`` from the outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora.commands import run


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--list") == 0
    assert "multiview-supervised:" in capsys.readouterr().out
    assert run("repro", "--list") == 0
    assert "training:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "name a recipe"),
        (["train", "multiview-supervised"], "this needs -o DIR"),
        (["train", "multiview-supervise", "--dry-run"], "did you mean 'multiview-supervised'"),
        (
            ["train", "multiview-supervised", "--dry-run", "--set", "train.step=1"],
            "did you mean 'train.steps'",
        ),
        (["train", "multiview-supervised", "--dry-run", "--set", "train.steps=x"], "train.steps"),
        (["train", "--resume", "nowhere"], "holds no training run"),
        (["train", "multiview-supervised", "--resume", "nowhere"], "leave the rest away"),
        (["train", "--config", "absent.yaml", "--dry-run"], "absent.yaml"),
        (["repro"], "name a reproduction"),
        (["repro", "sam3d"], "there are"),
        (["repro", "training", "--budget", "gpu"], "has no budget 'gpu'"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_2(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_dry_run_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["stream.images=4", "stream.views=[2, 2]", "evaluation.scenes=1", "evaluation.constants=1"]
    code = run(
        "train",
        "multiview-supervised",
        "--dry-run",
        "-v",
        "--device",
        "cpu",
        "--set",
        *small,
        "train.steps=50",
    )
    said = capsys.readouterr().out
    assert code == 0 and "activations" in said and "100 samples in all" in said
    assert "tabletop: 100 %, 100 samples, endless" in said and "steps: 50" in said
    assert not list(tmp_path.iterdir())
