"""ZeRO-2's configuration; and where DeepSpeed is installed, two processes under it train as one does."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.corpora.forked import preload
from tests.corpora.toy_pair import SETS, assert_same, lines, one, spoilt, toy, two
from tests.corpora.toy_run import CONFIG

from relief3d.core.errors import InputError, MissingExtraError
from relief3d.core.optional import available
from relief3d.train.checkpoint import load_checkpoint, save_checkpoint
from relief3d.train.deepspeed import deepspeed_config, validate_deepspeed
from relief3d.train.distributed import engine_for
from relief3d.train.zero import ZeroEngine

os.environ.setdefault("DS_ACCELERATOR", "cpu")
preload("deepspeed")
REPO = Path(__file__).resolve().parents[2]
needs_deepspeed = pytest.mark.skipif(
    not (available("deepspeed") and available("accelerate")), reason="deepspeed is not installed"
)


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
    with pytest.raises(InputError, match="bfloat16"):
        deepspeed_config(CONFIG, samples=8, world=4, dtype=torch.float16)


def test_the_python_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPO / "docs" / "distributed.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)\n```", text, flags=re.DOTALL)
    exec(block, {})
    assert json.loads(capsys.readouterr().out)["train_batch_size"] == 128


def test_what_cannot_run_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="strategy ddp"):
        ZeroEngine(CONFIG, torch.float16, cpu=True)
    if not available("deepspeed"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(MissingExtraError, match=r"relief3d\[deepspeed\]"):
            engine_for(CONFIG, device="cpu", strategy="deepspeed")


@needs_deepspeed
def test_a_run_goes_from_one_process_to_deepspeed_and_back(tmp_path: Path) -> None:
    one(tmp_path / "one")
    mixed = tmp_path / "mixed"
    # Begun here, so that the moments are of its own making; then in one process, here again, and to the end.
    assert two(mixed, "deepspeed", stop_at=2).codes == [0, 0]
    one(mixed, stop_at=12)
    ended = two(mixed, "deepspeed", stop_at=14)
    assert ended.codes == [0, 0] and ended.out[1] == "", ended.err
    one(mixed)
    assert_same(tmp_path / "one", mixed)


@needs_deepspeed
def test_eight_steps_equal_those_of_one_process(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=8)
    one(tmp_path / "one", config=config)
    ended = two(tmp_path / "two", "deepspeed", config=config)
    assert ended.codes == [0, 0] and ended.out == ["8 32 0/28\n", ""], ended.err
    assert_same(tmp_path / "one", tmp_path / "two", steps=8)


@needs_deepspeed
def test_micro_batches_sets_frozen_parts_and_left_out_steps(tmp_path: Path) -> None:
    one(tmp_path / "one", config=SETS, task=toy(hook=spoilt))
    ended = two(tmp_path / "two", "deepspeed", config=SETS, task=lambda: toy(hook=spoilt))
    assert ended.codes == [0, 0], ended.err
    assert_same(tmp_path / "one", tmp_path / "two", steps=SETS.steps)
    (left_out,) = lines(tmp_path / "two", "not_finite")
    assert left_out["step"] == 4 and left_out["samples"] == ["7:6"]


@needs_deepspeed
def test_bfloat16_computes_what_one_process_computes(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=4, precision="bfloat16")
    one(tmp_path / "one", config=config)
    assert two(tmp_path / "two", "deepspeed", config=config).codes == [0, 0]
    left, right = ([line["loss"] for line in lines(tmp_path / name)] for name in ("one", "two"))
    assert left == pytest.approx(right, rel=2e-3)
    exact = tmp_path / "exact"
    one(exact, config=replace(CONFIG, steps=4))
    assert left != pytest.approx([line["loss"] for line in lines(exact)], rel=1e-5)


@needs_deepspeed
def test_moments_that_it_cannot_hold_are_refused(tmp_path: Path) -> None:
    one(tmp_path, stop_at=5)
    saved = load_checkpoint(tmp_path / "checkpoints/step_00000005")
    moments = dict(saved.tensors["optimiser"])
    moments["out.weight:step"] = moments["out.weight:step"] - 1
    save_checkpoint(tmp_path, replace(saved, step=6, tensors={**saved.tensors, "optimiser": moments}))
    ended = two(tmp_path, "deepspeed")
    assert ended.codes[0] in (1, 2) and ended.codes[1] in (1, 2)
    assert "different numbers of updates" in "".join(ended.err)
