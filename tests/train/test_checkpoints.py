"""A save is complete or absent, whatever fails in it; damage is noticed; the right checkpoints are kept."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file

from relief3d.core.errors import InputError, ReliefError
from relief3d.train import checkpoint as module
from relief3d.train.checkpoint import (
    Checkpoint,
    DamagedError,
    checkpoint_name,
    find_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    tensors_digest,
    tidy_checkpoints,
)
from relief3d.train.config import CheckpointConfig

FILES = ("model", "optimiser", "random", "ema")


def state_of(step: int) -> Checkpoint:
    tensors = {
        name: {"w": torch.full((64, 8), float(step + i)), "n": torch.tensor(step)}
        for i, name in enumerate(FILES)
    }
    return Checkpoint(step, tensors, {"counters": {"step": step}})


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return (a.step, dict(a.state)) == (b.step, dict(b.state)) and all(
        tensors_digest(a.tensors[n]) == tensors_digest(b.tensors[n]) for n in FILES
    )


def loaded(run: Path) -> Checkpoint:
    found = newest_checkpoint(run, lambda text: None)
    assert found is not None
    return found[0]


def leftovers(run: Path) -> list[str]:
    return [p.name for p in run.rglob(".relief3d-*")]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state_of(5))
    assert same(load_checkpoint(path), state_of(5)) and find_checkpoint(tmp_path) == path
    assert sorted(p.name for p in path.iterdir()) == sorted(
        [*(f"{n}.safetensors" for n in FILES), "state.json"]
    )


def test_shared_and_strided_tensors_are_stored(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"model": {"a": base, "b": base, "c": base.T, "d": base[:, 1]}, "none": {}}
    back = load_checkpoint(save_checkpoint(tmp_path, Checkpoint(1, tensors, {}))).tensors["model"]
    assert all(torch.equal(back[k], v) for k, v in tensors["model"].items())


# ---- faults inside a save -----------------------------------------------------------------------------------------

CALLS: dict[str, tuple[Any, str]] = {
    "fsync": (os, "fsync"),
    "open for fsync": (os, "open"),
    "rename": (Path, "replace"),
    "make folder": (Path, "mkdir"),
    "write text": (Path, "write_bytes"),
    "write tensors": (module, "save_file"),
    "digest": (module, "file_digest"),
}


@contextmanager
def counted(
    owner: Any, name: str, fail_at: int | None, error: Callable[[], Exception]
) -> Iterator[list[int]]:
    """Count the calls of a function; the call number ``fail_at`` raises instead."""
    real, count = getattr(owner, name), [0]

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] - 1 == fail_at:
            raise error()
        return real(*args, **kwargs)

    setattr(owner, name, wrapper)
    try:
        yield count
    finally:
        setattr(owner, name, real)


def full_disk() -> Exception:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", CALLS)
def test_any_failing_call_of_a_save_leaves_the_previous_checkpoint(tmp_path: Path, call: str) -> None:
    owner, name = CALLS[call]
    (tmp_path / "probe").mkdir()
    save_checkpoint(tmp_path / "probe", state_of(1))
    with counted(owner, name, None, full_disk) as count:
        save_checkpoint(tmp_path / "probe", state_of(2))
    assert count[0] >= 1
    for number in range(count[0]):
        run = tmp_path / str(number)
        save_checkpoint(run, state_of(1))
        with counted(owner, name, number, full_disk):
            try:
                save_checkpoint(run, state_of(2))
                failed = (
                    False  # a folder that cannot be opened for fsync is tolerated: some systems refuse it
                )
            except ReliefError as exc:
                failed = True
                assert "the disk is full" in str(exc), (call, number)
        assert failed or call == "open for fsync"
        # The last call flushes the folder after the pointer was renamed: by then the new checkpoint counts.
        late = call in ("fsync", "open for fsync") and number + 1 == count[0]
        assert same(loaded(run), state_of(1 if failed and not late else 2)), (call, number)
        assert same(load_checkpoint(run / "checkpoints" / checkpoint_name(1)), state_of(1))
        assert leftovers(run) == [], (call, number)
        save_checkpoint(run, state_of(2))  # with space again
        assert same(loaded(run), state_of(2))


@pytest.mark.parametrize("tenth", range(10))
def test_a_disk_that_fills_up_at_any_offset(
    tmp_path: Path, tenth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, state_of(1))
    sizes = [len(save(dict(t))) for t in state_of(2).tensors.values()]
    budget = [sum(sizes) * tenth // 10]

    def short(tensors: dict[str, torch.Tensor], name: str) -> None:
        data = save(tensors)
        Path(name).write_bytes(data[: max(0, budget[0])])
        budget[0] -= len(data)
        if budget[0] < 0:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", short)
    with pytest.raises(InputError, match="the disk is full"):
        save_checkpoint(tmp_path, state_of(2))
    assert leftovers(tmp_path) == [] and same(loaded(tmp_path), state_of(1))


@pytest.mark.parametrize("limit", [0, 100, 1000, 2000])
def test_real_failures_of_the_writer_are_one_sentence(tmp_path: Path, limit: int) -> None:
    save_checkpoint(tmp_path, state_of(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ReliefError, match="cannot be written"):
            save_checkpoint(tmp_path, state_of(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert leftovers(tmp_path) == [] and same(loaded(tmp_path), state_of(1))


# ---- damage -------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink], ids=["cut", "flipped", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimiser.safetensors", "state.json"])
def test_damage_goes_back_one_checkpoint_aloud(
    tmp_path: Path, harm: Callable[[Path], None], name: str
) -> None:
    for step in (3, 6):
        save_checkpoint(tmp_path, state_of(step))
    broken = tmp_path / "checkpoints" / checkpoint_name(6)
    if name == "state.json" and harm is flip:
        text = (broken / name).read_text()
        (broken / name).write_text(text.replace('"sha256"', '"sha257"', 1))
    else:
        harm(broken / name)
    with pytest.raises(DamagedError) as caught:
        load_checkpoint(broken)
    assert name in str(caught.value) and "remove this checkpoint" in str(caught.value)
    heard: list[str] = []
    found = newest_checkpoint(tmp_path, heard.append)
    assert found is not None and same(found[0], state_of(3))
    # Said in every case: an older checkpoint is never taken in silence.
    assert len(heard) == 1 and "going back" in heard[0] and name in heard[0]
    # The run goes on, passes the damaged step and replaces it.
    save_checkpoint(tmp_path, state_of(6))
    assert same(loaded(tmp_path), state_of(6))


@pytest.mark.parametrize(("old", "new"), [('"step": 6', '"step": 7'), ('"count": 0.1', '"count": 0.3')])
def test_a_changed_number_of_the_state_is_damage(tmp_path: Path, old: str, new: str) -> None:
    for step in (3, 6):
        state = {"counters": {"count": 0.1, "tiny": 1e-300, "best": [1, -0.0, "a"]}}
        path = save_checkpoint(tmp_path, Checkpoint(step, state_of(step).tensors, state))
    assert load_checkpoint(path).state == state
    text = (path / "state.json").read_text()
    assert old in text
    (path / "state.json").write_text(text.replace(old, new))
    heard: list[str] = []
    found = newest_checkpoint(tmp_path, heard.append)
    assert found is not None and found[0].step == 3
    assert "state.json: was changed or damaged" in heard[0]


def test_checkpoints_without_a_digest_of_their_state_are_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state_of(3))
    entry = json.loads((path / "state.json").read_text())
    del entry["content"]
    (path / "state.json").write_text(json.dumps(entry))
    assert same(loaded(tmp_path), state_of(3))


@pytest.mark.parametrize("function", ["file_digest", "load_file"])
def test_a_disk_that_cannot_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    for step in (3, 6):
        save_checkpoint(tmp_path, state_of(step))
    real = getattr(module, function)

    def failing(path: Any) -> Any:
        if checkpoint_name(6) in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    monkeypatch.setattr(module, function, failing)
    heard: list[str] = []
    found = newest_checkpoint(tmp_path, heard.append)
    assert found is not None and found[0].step == 3
    assert "cannot be read (Input/output error)" in heard[0]


def test_what_a_run_went_back_from_gives_way(tmp_path: Path) -> None:
    """A kill between rename and pointer, then another attempt at the same step: the later one counts, whole."""
    for step in (3, 6):
        save_checkpoint(tmp_path, state_of(step))
    (tmp_path / "checkpoints" / "latest").write_text(checkpoint_name(3) + "\n")
    assert loaded(tmp_path).step == 3
    other = Checkpoint(6, state_of(60).tensors, {"counters": {"step": 6, "second": True}})
    save_checkpoint(tmp_path, other)
    assert same(loaded(tmp_path), other) and leftovers(tmp_path) == []


def test_all_damaged_is_an_error_and_never_a_fresh_start(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state_of(3))
    flip(path / "model.safetensors")
    with pytest.raises(DamagedError, match="changed or damaged"):
        newest_checkpoint(tmp_path, lambda text: None)
    cut(path / "model.safetensors")
    with pytest.raises(InputError, match="no checkpoint here is complete"):
        newest_checkpoint(tmp_path, lambda text: None)


@pytest.mark.parametrize(
    "content", [None, "", "step_00000099\n", "../../etc\n", "\0\xff garbage", "step_00000003"]
)
def test_a_lost_or_strange_pointer(tmp_path: Path, content: str | None) -> None:
    for step in (3, 6):
        save_checkpoint(tmp_path, state_of(step))
    pointer = tmp_path / "checkpoints" / "latest"
    pointer.unlink() if content is None else pointer.write_text(content, encoding="latin-1")
    heard: list[str] = []
    found = newest_checkpoint(tmp_path, heard.append)
    assert found is not None and found[0].step == (3 if content == "step_00000003" else 6)
    assert ["step_00000099" in text for text in heard] == ([True] if content == "step_00000099\n" else [])


def test_a_later_format_is_refused_and_kept(tmp_path: Path) -> None:
    for step in (3, 6):
        path = save_checkpoint(tmp_path, state_of(step))
    content = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(InputError, match=r"format 2, this version reads 1.*update relief3d"):
        newest_checkpoint(tmp_path, lambda text: None)
    assert path.is_dir()


def test_an_empty_folder_begins(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, lambda text: None) is None


# ---- what is kept -------------------------------------------------------------------------------------------------


def names(run: Path) -> set[str]:
    return {p.name for p in (run / "checkpoints").iterdir()}


def test_thirty_saves_keep_the_newest_and_the_best(tmp_path: Path) -> None:
    config, best = CheckpointConfig(keep_last=3, best="x"), None
    for step in range(1, 31):
        if step in (4, 11, 12):
            best = step
        save_checkpoint(tmp_path, state_of(step))
        tidy_checkpoints(tmp_path, config, step, best)
        wanted = {step - i for i in range(3) if step - i > 0} | ({best} if best else set())
        assert names(tmp_path) == {checkpoint_name(s) for s in wanted} | {"latest"}
        assert loaded(tmp_path).step == step


def test_the_only_valid_checkpoint_is_never_removed(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=1)
    for step in (5, 9):
        save_checkpoint(tmp_path, state_of(step))
    flip(tmp_path / "checkpoints" / checkpoint_name(9) / "model.safetensors")
    assert loaded(tmp_path).step == 5  # the run goes on from here and saves at 7, before the damaged 9
    save_checkpoint(tmp_path, state_of(7))
    removed = tidy_checkpoints(tmp_path, config, 7)
    assert set(removed) == {checkpoint_name(5), checkpoint_name(9)}
    assert same(loaded(tmp_path), state_of(7))
    # Nothing is removed on account of a checkpoint that is not there.
    assert tidy_checkpoints(tmp_path, config, 8) == [] and names(tmp_path) == {checkpoint_name(7), "latest"}


def test_what_killed_saves_left_goes_away(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state_of(1))
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / checkpoint_name(1), folder / ".relief3d-0123.new")
    (folder / ".relief3d-4567").write_text("step_0")
    (folder / checkpoint_name(0)).mkdir()
    tidy_checkpoints(tmp_path, CheckpointConfig(), 1)
    assert names(tmp_path) == {checkpoint_name(1), "latest"}


def test_at_least_one_is_kept() -> None:
    for wrong in ({"keep_last": 0}, {"every": 0}):
        with pytest.raises(InputError):
            CheckpointConfig(**wrong)  # type: ignore[arg-type]


def test_digest_sees_names_types_and_bits() -> None:
    a = {"x": torch.tensor([0.0, 1.0])}
    others = (
        {"y": a["x"]},
        {"x": a["x"].double()},
        {"x": a["x"].view(2, 1)},
        {"x": torch.tensor([-0.0, 1.0])},
        {},
    )
    assert all(tensors_digest(a) != tensors_digest(o) for o in others)
    assert tensors_digest({"b": a["x"], "a": a["x"]}) == tensors_digest({"a": a["x"], "b": a["x"]})


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state_of(2))
    again = tmp_path / "again.safetensors"
    save_file(dict(state_of(2).tensors["model"]), str(again))
    assert again.read_bytes() == (path / "model.safetensors").read_bytes()
