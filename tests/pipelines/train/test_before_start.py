"""What is refused before anything is written, and folders of one run at a time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from corpora.commands import run as command
from relief3d.core.errors import InputError
from relief3d.io.folder_lock import lock_folder, locked_folder
from relief3d.pipelines.repro import run as repro
from relief3d.pipelines.train import check, run
from relief3d.pipelines.train.configuration import dump_yaml, to_plain
from relief3d.pipelines.train.registry import find_recipe
from relief3d.pipelines.train.run_folder import RunSpec, claim, read_run, resolve
from relief3d.train.checkpoint import FOLDER, Checkpoint, save_checkpoint

NAME = "multiview-supervised"


def spec_of(*changes: str) -> RunSpec:
    return resolve(NAME, "nano", "smoke", None, changes, "abc")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("worlds=[]", "training needs worlds"),
        ("worlds=[{weight: 0}]", "'worlds[0]': the weight of a family must be positive"),
        ("worlds=[{weight: .inf}]", "must be positive"),
        ("worlds=[{count: 0}]", "needs a world (count)"),
        ("worlds=[{pool: 1}]", "two cameras in each (pool)"),
        ("worlds=[{family: room, texture_size: 100}]", "power of two"),
        ("stream.sizes=[[0, 0]]", "multiples of 14"),
        ("stream.sizes=[[43, 42]]", "multiples of 14"),
        ("evaluation.families=[room, room]", "held out twice"),
        ("losses.confidence=-1", "must not be negative"),
        ("losses.camera=-1", "must not be negative"),
        ("train.optimiser.lr=-1", "'train.optimiser': a learning rate"),
        ("train.optimiser.lr=.inf", "a learning rate"),
        ("train.optimiser.betas=[0.9, 1]", "betas (0.9, 1.0)"),
        ("train.optimiser.eps=-1", "eps"),
        ("train.optimiser.weight_decay=-0.1", "weight_decay"),
        ("train.optimiser.clip_norm=0", "clip_norm"),
        ("train.optimiser.groups=[{pattern: zzz}]", "no parameter of Pi3 fits 'zzz'"),
        ("train.optimiser.groups=[{pattern: '*', frozen: true}]", "every parameter is frozen"),
        ("train.schedule.warmup=-5", "must not be negative"),
        ("train.guard.patience=0", "patience"),
        ("train.workers=-1", "workers must not be negative"),
        ("train.log.panels=-1", "0 means never"),
        ("train.log.evaluate=-1", "0 means never"),
        ("train.checkpoint.seconds=-1", "0 means never"),
        ("train.checkpoint.best=auc", "use one of tabletop_auc30"),
        ("train.checkpoint.best=tabletop_auc30", "a larger 'tabletop_auc30' is better"),
        ("train.steps=true", "must be a whole number, not true"),
        ("train=null", "a mapping of options, not null"),
        ("size=micro", "use --size"),
        ("network=vggt", "use another recipe"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    change: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", NAME, "-o", tmp_path / "run", "--device", "cpu", "--set", change) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said
    assert "SupervisedConfig" not in said
    assert not list(tmp_path.iterdir())


def test_the_best_by_depth_is_the_smallest() -> None:
    assert spec_of("train.checkpoint.best=tabletop_abs_rel").config.train.checkpoint.best
    assert spec_of("train.checkpoint={best: tabletop_auc30, higher: true}").config.train.checkpoint.higher
    with pytest.raises(InputError, match="a smaller 'tabletop_abs_rel' is better"):
        spec_of("train.checkpoint={best: tabletop_abs_rel, higher: true}")


@pytest.mark.parametrize("verb", [["train", NAME], ["repro", "training", "--budget", "smoke"]])
def test_absent_devices_leave_nothing_behind(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*verb, "-o", tmp_path / "run", "--device", "gpu") == 2
    said = capsys.readouterr().err
    assert "unknown device 'gpu'" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_networks_that_do_not_fit_in_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("train.ema.decay=0.9")
    need = sum(check.state_bytes(spec.recipe.task(spec.config, "cpu").model(), spec.config.train).values())
    monkeypatch.setattr(check, "available_memory", lambda: int(1.2 * need))
    with pytest.raises(InputError, match=r"size 'nano' take .* are free \(choose a smaller --size"):
        check.check_run(spec, "cpu")
    monkeypatch.setattr(check, "available_memory", lambda: int(1.3 * need))
    check.check_run(spec, "cpu")
    check.check_run(spec_of(), "cpu")  # without an average it is less
    monkeypatch.setattr(check, "available_memory", lambda: None)
    check.check_run(spec, "cpu")


def test_a_file_s_names_and_the_command_s_agree(tmp_path: Path) -> None:
    stored = spec_of()
    file = tmp_path / "mine.yaml"
    file.write_text(dump_yaml({**stored.header(), "config": to_plain(stored.config)}))
    assert resolve(NAME, "nano", "smoke", file, (), "abc") == stored
    with pytest.raises(InputError, match=r"mine\.yaml: is of the size 'nano', not 'micro'"):
        resolve(NAME, "micro", None, file, (), None)
    with pytest.raises(InputError, match=r"mine\.yaml: is of the budget 'smoke', not 'mini'"):
        resolve(NAME, None, "mini", file, (), None)
    file.write_text("size: micro\ntrain: {steps: 3}\n")
    with pytest.raises(InputError, match=r"no key 'train'.*options stand below 'config'"):
        resolve(NAME, None, None, file, (), None)
    file.write_text(dump_yaml({"size": "micro", "config": {"size": "nano"}}))
    with pytest.raises(InputError, match="the option 'size' is 'nano', but the run's is 'micro'"):
        resolve(NAME, None, None, file, (), None)


def test_a_file_with_two_seeds_is_refused(tmp_path: Path) -> None:
    """The copy of a config.yaml in which only one of the two was changed."""
    file = tmp_path / "mine.yaml"
    file.write_text(dump_yaml({"seed": 0, "config": {"train": {"seed": 5}}}))
    with pytest.raises(InputError, match=r"mine\.yaml: says seed 0 and train\.seed 5"):
        resolve(NAME, None, None, file, (), None)
    file.write_text(dump_yaml({"seed": 5, "config": {"train": {"seed": 5, "steps": 3}}}))
    assert resolve(NAME, None, None, file, (), None).seed == 5
    assert resolve(NAME, None, None, file, ("train.seed=6",), None).seed == 6
    file.write_text(dump_yaml({"seed": 7, "config": {"losses": {"normals": True}}}))
    assert resolve(NAME, None, None, file, (), None).seed == 7


def test_tensorboard_is_asked_for_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert (
        command(
            "train", NAME, "-o", tmp_path / "run", "--device", "cpu", "--set", "train.log.tensorboard=true"
        )
        == 2
    )
    assert "tensorboard" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_run_that_saved_nothing_takes_other_settings(tmp_path: Path) -> None:
    said: list[str] = []
    claim(tmp_path, spec_of("train.steps=7"), said.append)
    again = claim(tmp_path, spec_of("train.steps=8"), said.append)
    assert read_run(tmp_path).config.train.steps == 8 == again.config.train.steps
    assert len(said) == 1 and "'train.steps' was 7 and is 8 now" in said[0]
    save_checkpoint(tmp_path, Checkpoint(1, {"model": {}}, {}))
    assert (tmp_path / FOLDER).is_dir()
    with pytest.raises(InputError, match="holds a run with other settings"):
        claim(tmp_path, spec_of("train.steps=9"), said.append)
    assert read_run(tmp_path).config.train.steps == 8


def test_two_runs_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl")
    monkeypatch.setattr(run, "PATIENCE", 0.0)
    monkeypatch.setattr(repro, "PATIENCE", 0.0)
    claim(tmp_path, spec_of(), print)
    with locked_folder(tmp_path):
        before = sorted(p.name for p in tmp_path.iterdir())
        for start in (
            lambda: run.start_run(run.TrainRequest(NAME, device="cpu"), tmp_path),
            lambda: run.resume_run(tmp_path, "cpu"),
        ):
            with pytest.raises(InputError, match="another relief3d run is working"):
                start()
        assert sorted(p.name for p in tmp_path.iterdir()) == before
    runs = tmp_path / "out" / "runs" / "training" / "smoke"
    runs.mkdir(parents=True)
    with locked_folder(runs), pytest.raises(InputError, match="another relief3d run is working"):
        repro.reproduce("training", "smoke", tmp_path / "out", device="cpu", command=[])
    assert not list(runs.iterdir())


def test_a_folder_is_waited_for_and_left_unlocked(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    import os
    import threading

    said: list[str] = []
    handle = lock_folder(tmp_path)
    assert handle is not None
    threading.Timer(0.1, os.close, (handle,)).start()
    with locked_folder(tmp_path, 20.0, said.append):
        assert len(said) == 1 and "in use" in said[0]
        with pytest.raises(InputError), locked_folder(tmp_path):
            raise AssertionError
    with locked_folder(tmp_path, 0.0, said.append):
        assert len(said) == 1


def test_every_recipe_keeps_its_names() -> None:
    for name in (NAME, f"{NAME}-vggt", f"{NAME}-reliev3r"):
        recipe = find_recipe(name)
        assert resolve(name, "micro", "mini", None, (), None).config == recipe.make("micro", "mini")
