"""Runs of recipes: folders that are continued or refused, weights that load, plans that measure."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from corpora.commands import run as command
from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.io.json_file import read_json_object
from relief3d.methods.supervised.task import SupervisedTask
from relief3d.models.multiview.configs import pi3_config
from relief3d.models.multiview.loading import load_multiview
from relief3d.models.multiview.pi3 import Pi3
from relief3d.pipelines.train import run
from relief3d.pipelines.train.configuration import dump_yaml, read_yaml
from relief3d.pipelines.train.plan import make_plan
from relief3d.pipelines.train.run_folder import read_run, resolve
from relief3d.train.checkpoint import file_digest

TINY = (
    "train.steps=4",
    "stream.images=4",
    "stream.views=[2, 2]",
    "evaluation.scenes=2",
    "evaluation.constants=2",
    "evaluation.views=2",
    "train.log.panels=0",
    "train.log.evaluate=0",
    "train.log.utilisation=false",
    "train.checkpoint.every=2",
)


def request(*changes: str) -> run.TrainRequest:
    return run.TrainRequest("multiview-supervised", "nano", "smoke", changes=(*TINY, *changes), device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "run"
    run.start_run(request("train.ema.decay=0.5"), folder)
    return folder


def test_weights_load_and_the_card_says_what_they_are(finished: Path) -> None:
    network = load_multiview(finished / "model.safetensors", network=Pi3(pi3_config("nano")))
    card = read_json_object(finished / "model.json")
    assert card["sha256"] == file_digest(finished / "model.safetensors")
    assert card["parameters"] == sum(p.numel() for p in network.parameters())
    assert (card["recipe"], card["size"], card["budget"], card["seed"]) == (
        "multiview-supervised",
        "nano",
        "smoke",
        0,
    )
    # Whoever may read the card may read the weights.
    modes = [(finished / name).stat().st_mode for name in ("model.safetensors", "model.json")]
    assert modes[0] == modes[1]
    assert card["commit_at_the_end"] == run.commit()
    assert card["weights"] == "moving average" and card["steps"] == 4 and card["samples"] == 8
    assert {"tabletop_auc30", "tabletop_abs_rel_constant", "tabletop_auc30_constant"} <= set(card["numbers"])
    # The average, not the last weights, is what was exported.
    step = finished / "checkpoints" / "step_00000004"
    name = "camera_head.fc_t.weight"
    exported = load_file(str(finished / "model.safetensors"))[name]
    assert torch.equal(exported, load_file(str(step / "ema.safetensors"))[name])
    assert not torch.equal(exported, load_file(str(step / "model.safetensors"))[name])


def test_the_folder_says_what_it_is(finished: Path) -> None:
    stored = read_yaml(finished / "config.yaml")
    assert list(stored) == ["recipe", "size", "budget", "seed", "commit", "config"]
    spec = read_run(finished)
    assert spec.config.train.steps == 4 and spec.config.train.ema.decay == 0.5
    # The file is a configuration: the same run comes out of it.
    assert resolve("", None, None, finished / "config.yaml", (), spec.commit) == spec


def test_pieces_equal_one_run(finished: Path, tmp_path: Path) -> None:
    from relief3d.pipelines.train.run_folder import claim
    from relief3d.train.loop import fit

    folder = tmp_path / "pieces"
    spec = claim(folder, read_run(finished), print)
    settings = {k: v for k, v in run.to_plain(spec.config).items() if k != "train"}
    fit(
        spec.recipe.task(spec.config, "cpu"),
        spec.config.train,
        folder,
        device="cpu",
        settings=settings,
        stop_at=3,
    )
    assert not (folder / "model.safetensors").exists()
    run.resume_run(folder, "cpu")
    assert file_digest(folder / "model.safetensors") == file_digest(finished / "model.safetensors")
    # Once more changes nothing.
    run.start_run(request("train.ema.decay=0.5"), folder)
    assert file_digest(folder / "model.safetensors") == file_digest(finished / "model.safetensors")


def test_other_settings_are_refused_by_name(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'train\.steps' was 4 and is 5 now"):
        run.start_run(request("train.ema.decay=0.5", "train.steps=5"), finished)
    with pytest.raises(InputError, match=r"'train\.ema\.decay' was 0\.5"):
        run.start_run(request("train.ema.decay=0.25"), finished)
    other = run.TrainRequest("multiview-supervised", "micro", "smoke", changes=TINY, device="cpu")
    with pytest.raises(InputError, match="'size' was 'nano' and is 'micro' now"):
        run.start_run(other, finished)
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="is not empty and holds no training run"):
        run.start_run(request(), tmp_path)
    with pytest.raises(InputError, match="holds no training run"):
        run.resume_run(tmp_path)


def test_what_decides_nothing_may_change(finished: Path) -> None:
    run.start_run(request("train.ema.decay=0.5", "train.log.every=1"), finished)
    assert read_run(finished).config.train.log.every == 1


def test_files_go_before_single_changes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(dump_yaml({"train": {"steps": 9, "seed": 4}}))
    spec = resolve("multiview-supervised", "micro", "mini", file, ("train.seed=5",), None)
    assert (spec.config.train.steps, spec.seed, spec.size) == (9, 5, "micro")
    assert spec.config.train.ema is not None  # what neither names is the recipe's
    file.write_text("recipe: multiview-supervised-vggt\nsize: micro\n")
    assert resolve("", None, None, file, (), None).config.network == "vggt"
    with pytest.raises(InputError, match="is of the recipe"):
        resolve("multiview-supervised", None, None, file, (), None)
    file.write_text("recipe: multiview-supervised\nsise: micro\n")
    with pytest.raises(InputError, match="did you mean 'size'"):
        resolve("", None, None, file, (), None)
    file.write_text("train: {stepps: 3}\n")
    with pytest.raises(InputError, match=r"mine\.yaml.*did you mean 'train\.steps'"):
        resolve("multiview-supervised", None, None, file, (), None)


def test_plan_counts_memory_and_data() -> None:
    spec = resolve("multiview-supervised", "nano", "smoke", None, (*TINY, "train.ema.decay=0.9"), None)
    plan = make_plan(spec, "cpu")
    network = Pi3(pi3_config("nano"))
    parameters = 4 * sum(p.numel() for p in network.parameters())
    buffers = 4 * sum(b.numel() for b in network.buffers())
    assert plan.weights == parameters + buffers and plan.gradients == parameters
    assert plan.moments == 2 * parameters and plan.average == plan.weights
    assert plan.measured and plan.seconds_per_step is not None and plan.seconds_per_step > 0
    twice = make_plan(
        resolve("multiview-supervised", "nano", "smoke", None, (*TINY, "stream.images=8"), None), "cpu"
    )
    assert 1.6 < twice.activations / plan.activations < 2.2
    assert (plan.data.samples, plan.data.images, twice.data.samples) == (2, 4, 4)
    assert twice.average == 0


def test_plan_of_a_large_network_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import relief3d.pipelines.train.plan as module

    monkeypatch.setattr(module, "LARGE", 1000)
    for name in ("multiview-supervised", "multiview-supervised-reliev3r", "multiview-supervised-vggt"):
        spec = resolve(name, "nano", "smoke", None, TINY, None)
        plan = make_plan(spec, "cpu")
        assert not plan.measured and plan.seconds is None and plan.activations > 0
        assert "not measured" in module.format_plan(spec, plan)


def test_control_c_saves_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a run"
    real = SupervisedTask.batch

    def batch(task: SupervisedTask, position: int, *share: int) -> Batch:
        if position == 2:
            signal.raise_signal(signal.SIGINT)
        return real(task, position, *share)

    monkeypatch.setattr(SupervisedTask, "batch", batch)
    arguments = ["train", "multiview-supervised", "-o", folder, "--device", "cpu", "--set", *TINY]
    assert command(*arguments, "train.steps=400", "train.checkpoint.every=50") == 130
    errors = capsys.readouterr().err
    assert f"relief3d train --resume '{folder}'" in errors and "step 3 of 400 is saved" in errors
    assert [p.name for p in (folder / "checkpoints").glob("step_*")] == ["step_00000003"]
    assert not (folder / "model.safetensors").exists()
