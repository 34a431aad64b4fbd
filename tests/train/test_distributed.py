"""Two processes on this machine (gloo) train as one does, and their checkpoints are the same files."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.corpora.toy_run import CONFIG, block_net
from tests.corpora.toy_task import ToyTask

from relief3d.core.errors import InputError, MissingExtraError
from relief3d.core.optional import available
from relief3d.train.checkpoint import tensors_digest
from relief3d.train.deepspeed import deepspeed_config, validate_deepspeed
from relief3d.train.distributed import AccelerateEngine
from relief3d.train.loop import fit

REPO = Path(__file__).resolve().parents[2]
needs_accelerate = pytest.mark.skipif(not available("accelerate"), reason="accelerate is not installed")


def two(folder: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The toy run in two processes started by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    return subprocess.run(
        [*command, "-m", "tests.corpora.toy_run", str(folder), json.dumps(options)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
        cwd=REPO,
        check=False,
    )


def one(folder: Path, stop_at: int | None = None) -> None:
    task = ToyTask(dropout=0.0, norm=False, network=block_net)
    fit(task, CONFIG, folder, device="cpu", stop_at=stop_at)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def assert_same(a: Path, b: Path, bound: float = 1e-6) -> None:
    assert len(losses(a)) == len(losses(b)) == 20
    assert max(abs(x - y) for x, y in zip(losses(a), losses(b))) <= bound
    for name in ("model", "ema", "optimiser"):
        left, right = (load_file(f / f"checkpoints/step_00000020/{name}.safetensors") for f in (a, b))
        assert {k: (v.shape, v.dtype) for k, v in left.items()} == {
            k: (v.shape, v.dtype) for k, v in right.items()
        }
        assert max(float((left[k] - right[k]).abs().max()) for k in left) <= bound, name


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    one(folder)
    return folder


@needs_accelerate
def test_two_processes_equal_one_and_one_goes_on(tmp_path: Path, single: Path) -> None:
    ended = two(tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    # 20 steps of 8 samples, half of them here; one line of output, because one process writes.
    assert ended.stdout.splitlines() == ["done 20 80"]
    assert_same(single, tmp_path)


@needs_accelerate
@pytest.mark.parametrize("first", [1, 2])
def test_another_number_of_processes_goes_on(tmp_path: Path, single: Path, first: int) -> None:
    if first == 1:
        one(tmp_path, stop_at=9)
        ended = two(tmp_path)
    else:
        ended = two(tmp_path, stop_at=9)
        one(tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert_same(single, tmp_path)


@needs_accelerate
def test_spread_weights_train_and_one_process_goes_on(tmp_path: Path, single: Path) -> None:
    ended = two(tmp_path, strategy="fsdp", stop_at=9)
    assert ended.returncode == 0, ended.stderr[-2000:]
    one(tmp_path)
    assert_same(single, tmp_path)


@needs_accelerate
def test_spread_weights_go_on_from_one_process(tmp_path: Path, single: Path) -> None:
    one(tmp_path, stop_at=9)
    ended = two(tmp_path, strategy="fsdp")
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert_same(single, tmp_path)


def test_without_a_launcher_the_remedy_is_named() -> None:
    if not available("accelerate"):
        with pytest.raises(MissingExtraError, match=r"relief3d\[train\]"):
            AccelerateEngine(cpu=True)
        return
    with pytest.raises(InputError, match="torchrun or accelerate launch"):
        AccelerateEngine(cpu=True)


@needs_accelerate
def test_half_precision_with_spread_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="bfloat16"):
        AccelerateEngine(torch.float16, strategy="fsdp", cpu=True)


def test_the_deepspeed_file_is_valid_and_follows_the_run() -> None:
    config = deepspeed_config(CONFIG, samples=8, world=4, dtype=torch.bfloat16)
    assert config["zero_optimization"]["stage"] == 2
    # Weights stay float32, and no module is named, so that gradients are exchanged in float32.
    cast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert config["torch_autocast"] == cast and "bf16" not in config
    assert config["train_batch_size"] == 8 and config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_clipping"] == 0  # done by the engine, set by set
    validate_deepspeed(config)
    for wrong, said in (
        ({**config, "zero_optimisation": {}}, "'zero_optimisation' is unknown.*zero_optimization"),
        ({**config, "train_batch_size": 9}, "train_batch_size"),
        ({**config, "fp16": {"enabled": True}, "bf16": {"enabled": True}}, "both"),
        ({**config, "zero_optimization": {"stage": 7}}, "stage"),
        ({**config, "zero_optimization": {"stage": 2, "overlap": True}}, "'zero_optimization.overlap'"),
    ):
        with pytest.raises(InputError, match=said):
            validate_deepspeed(wrong)
    with pytest.raises(InputError, match="do not divide"):
        deepspeed_config(CONFIG, samples=6, world=4)


def documented() -> list[str]:
    """The commands of the guide that are said to be tested."""
    text = (REPO / "docs" / "distributed.md").read_text()
    return re.findall(r"```bash\n(.*?)\n```", text, flags=re.DOTALL)


@needs_accelerate
def test_the_commands_of_the_guide_run(tmp_path: Path) -> None:
    commands = documented()
    assert len(commands) == 4
    starts = {
        "torchrun": [sys.executable, "-m", "torch.distributed.run"],
        "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"],
        "python": [sys.executable],
    }
    said = []
    for command in commands:
        words = [w.replace("runs/", f"{tmp_path}/") for w in shlex.split(command)]
        if words[0] == "torchrun":
            words.insert(1, "--standalone")  # a free port, since other tests may run beside this one
        if words[0] == "accelerate":
            words[2:2] = ["--main_process_port", "0"]
        ended = subprocess.run(
            [*starts[words[0]], *words[1:], "--steps", "6"],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert ended.returncode == 0, (command, ended.stderr[-2000:])
        said.append(ended.stdout.splitlines()[-1])
    assert said == [f"6 steps in {n} process(es)" for n in (2, 2, 2, 1)]
    digests = {
        name: tensors_digest(load_file(tmp_path / name / "checkpoints/step_00000006/model.safetensors"))
        for name in ("two", "launched")
    }
    assert digests["two"] == digests["launched"]


def test_the_python_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPO / "docs" / "distributed.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)\n```", text, flags=re.DOTALL)
    exec(block, {})
    assert json.loads(capsys.readouterr().out)["train_batch_size"] == 128
