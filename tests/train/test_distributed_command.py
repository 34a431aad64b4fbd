"""``relief3d train`` in two processes: one writes, one speaks, all end alike; and the commands of the guide."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.corpora.forked import Ended, forked, preload
from tests.corpora.toy_pair import here, lines

from relief3d.cli.main import main
from relief3d.core.errors import InputError
from relief3d.core.optional import available
from relief3d.methods.supervised.task import SupervisedTask
from relief3d.pipelines.train.registry import load_recipes

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not available("accelerate"), reason="accelerate is not installed")
RECIPE = "multiview-supervised"
preload("relief3d.pipelines.train.run")
load_recipes()
SMALL = (
    "stream.images=8",
    "stream.divisible_by=2",
    "evaluation.scenes=1",
    "evaluation.constants=2",
    "train.log.every=1",
    "train.log.panels=0",
    "train.log.evaluate=0",
)


def command(*words: object, before: Callable[[], None] | None = None, **options: Any) -> Ended:
    """``relief3d train`` in two processes on the CPU, of which only the first may write files in the run's folder."""

    def work() -> None:
        folder = next((str(w) for w in words if isinstance(w, Path)), "")
        if here() > 0:
            sys.addaudithook(lambda event, about: _may_read(event, about, folder))
        if before is not None:
            before()
        main(["train", *map(str, words), "--device", "cpu"])

    return forked(work, **options)


def _may_read(event: str, about: Sequence[Any], folder: str) -> None:
    if (
        event == "open"
        and folder
        and str(about[0]).startswith(folder)
        and about[2] & (os.O_WRONLY | os.O_RDWR)
    ):
        sys.stderr.write(f"process {here()} writes {about[0]}\n")
        os._exit(99)


def test_batches_that_do_not_divide_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    ended = command(RECIPE, "-o", tmp_path / "run")
    assert ended.codes == [2, 2] and ended.out == ["", ""]
    (said,) = "".join(ended.err).splitlines()
    assert said == (
        "relief3d: a batch of 5 samples does not divide among 2 processes "
        "(begin the run with --set stream.divisible_by=2)"
    )
    assert not (tmp_path / "run").exists()


def test_a_run_is_interrupted_in_one_process_and_goes_on_in_another_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def interrupt(pids: Sequence[int]) -> None:
        end = time.monotonic() + 180
        while not (run / "log.jsonl").is_file() or not lines(run):
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(pids[1], signal.SIGTERM)

    options = (*SMALL, "train.steps=12", "train.checkpoint.every=1000")
    ended = command(RECIPE, "-o", run, "--strategy", "fsdp", "--set", *options, meanwhile=interrupt)
    assert ended.codes == [130, 130], ended.err
    assert ended.out == ["", ""] and "".join(ended.err).count("interrupted; run the same command") == 1
    assert f"to go on: relief3d train --resume {run}" in ended.err[0]
    saved = int((run / "checkpoints" / "latest").read_text().strip().removeprefix("step_"))
    assert 1 <= saved < 12 and not (run / "model.json").exists()
    before = lines(run)
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", str(run), "--device", "cpu", "-q"])
    assert end.value.code == 0
    assert "12 steps" in capsys.readouterr().out
    assert lines(run)[: len(before)] == before and [line["step"] for line in lines(run)] == list(range(1, 13))


def test_spread_weights_are_exported_whole_by_the_first_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = command(RECIPE, "-o", run, "--strategy", "fsdp", "-q", "--set", *SMALL, "train.steps=2")
    assert ended.codes == [0, 0], ended.err
    assert ended.out[0].startswith(f"{RECIPE}, size nano, budget smoke: 2 steps") and ended.out[1] == ""
    assert ended.err[1] == ""
    shipped, saved = (
        load_file(run / name) for name in ("model.safetensors", "checkpoints/step_00000002/model.safetensors")
    )
    assert set(shipped) == set(saved) and all(bool((shipped[k] == saved[k]).all()) for k in saved)
    card = json.loads((run / "model.json").read_text())
    assert card["samples"] == sum(line["samples"] for line in lines(run)[-1:])


def test_an_error_in_one_process_ends_all_with_its_sentence_and_code(tmp_path: Path) -> None:
    def damage() -> None:
        whole = SupervisedTask.batch

        def batch(self: SupervisedTask, position: int, part: int = 0, parts: int = 1) -> Any:
            if part == 1 and position == 1:
                raise InputError("is damaged", path="pictures/7.png", remedy="restore it")
            return whole(self, position, part, parts)

        SupervisedTask.batch = batch  # type: ignore[method-assign]

    ended = command(RECIPE, "-o", tmp_path / "run", "-q", "--set", *SMALL, "train.steps=3", before=damage)
    assert ended.codes == [2, 2] and ended.out == ["", ""]
    assert ended.err == ["", "relief3d: pictures/7.png: is damaged (restore it)\n"]


def test_what_is_for_one_process_or_for_several_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = command(RECIPE, "--dry-run")
    assert ended.codes == [2, 2] and "".join(ended.err).count("--dry-run is for one process") == 1
    with pytest.raises(SystemExit) as end:
        main(["train", RECIPE, "-o", str(tmp_path / "run"), "--device", "cpu", "--strategy", "fsdp"])
    assert end.value.code == 2 and not (tmp_path / "run").exists()
    assert "'fsdp' is for several processes (start with torchrun" in capsys.readouterr().err
    ended = command("--list")
    assert ended.codes == [0, 0] and RECIPE in ended.out[0] and ended.out[1] == ""


# ---- the guide ------------------------------------------------------------------------------------------------------


def documented() -> list[list[str]]:
    """The commands of the guide that are said to be tested, by word."""
    text = (REPO / "docs" / "distributed.md").read_text()
    found = re.findall(r"```bash\n(.*?)\n```", text, flags=re.DOTALL)
    return [shlex.split(block.replace("\\\n", " ")) for block in found]


def launched(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    starts = {
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone"],
        "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"],
    }
    rest = words[1:] if words[0] == "torchrun" else [*words[1:2], "--main_process_port", "0", *words[2:]][1:]
    return subprocess.run(
        [*starts[words[0]], *(w.replace("runs/", f"{folder}/") for w in rest)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_the_command_of_the_guide_runs_under_torchrun(tmp_path: Path) -> None:
    (words,) = [w for w in documented() if w[0] == "torchrun" and "relief3d" in w]
    assert words[-2] == "--set" or "=" in words[-1]
    ended = launched([*words, *SMALL[:1], *SMALL[2:], "train.steps=2"], tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.count("2 steps") == 1 and (tmp_path / "two" / "model.safetensors").is_file()


def test_the_program_of_the_guide_runs_under_accelerate(tmp_path: Path) -> None:
    (words,) = [w for w in documented() if w[0] == "accelerate"]
    ended = launched([*words, "--steps", "6"], tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.splitlines()[-1] == "6 steps in 2 process(es)"


def test_the_other_commands_of_the_guide_run(tmp_path: Path) -> None:
    others = [w for w in documented() if w[0] != "accelerate" and "relief3d" not in w]
    assert [w[0] for w in others] == ["torchrun", "python"]
    for words, processes in zip(others, (2, 1)):
        at = next(i for i, w in enumerate(words) if w.endswith(".py"))
        program, *rest = [w.replace("runs/", f"{tmp_path}/") for w in words[at:]]

        def work(program: str = program, rest: list[str] = rest) -> None:
            sys.argv = [program, *rest, "--steps", "6"]
            runpy.run_path(str(REPO / program), run_name="__main__")

        ended = forked(work, processes=processes)
        assert set(ended.codes) == {0}, ended.err
        assert ended.out[0] == f"6 steps in {processes} process(es)\n"
