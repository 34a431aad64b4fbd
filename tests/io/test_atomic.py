"""Outputs are complete or absent; output folders follow the rules."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relief3d.core.errors import InputError, RunError
from relief3d.io import atomic
from relief3d.io.atomic import (
    TEMP_PREFIX,
    atomic_folder,
    atomic_path,
    check_not_inside,
    prepare_output_folder,
    remove_leftovers,
    write_bytes,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    assert write_text(target, "one\n").read_bytes() == b"one\n"
    write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_temporary_name_keeps_the_suffix_and_fits_long_names(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 250 + ".png")
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        temporary.write_bytes(b"x")
    assert target.exists()
    with pytest.raises(InputError, match="too long"):
        write_bytes(tmp_path / ("n" * 300), b"x")


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nothing was written"), atomic_path(tmp_path / "a"):
        pass


def test_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_bytes(tmp_path / "a", b"")
    write_bytes(tmp_path / "file", b"x")
    with pytest.raises(InputError, match="a file, not a folder"):
        write_bytes(tmp_path / "file" / "below", b"x")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EDQUOT, "quota"),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_full_and_read_only_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, call: str
) -> None:
    target = write_text(tmp_path / "a.txt", "old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    where = {"write": (Path, "write_bytes"), "fsync": (os, "fsync"), "rename": (Path, "replace")}[call]
    with monkeypatch.context() as patched:
        patched.setattr(*where, fail)
        with pytest.raises(InputError, match=words) as caught:
            write_text(target, "new")
    assert caught.value.exit_code == 2 and "a.txt" in str(caught.value)
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_other_system_errors_are_run_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(RunError, match="Input/output error"):
        write_text(tmp_path / "a", "x")


KILLED = """
import sys, time
from relief3d.io.atomic import atomic_path
from pathlib import Path
with atomic_path(Path(sys.argv[1])) as temporary:
    with temporary.open("wb") as stream:
        for _ in range(400):
            stream.write(b"x" * 1000)
            stream.flush()
            print("written", flush=True)
            time.sleep(0.005)
"""


def test_kill_during_writing_leaves_the_old_file(tmp_path: Path) -> None:
    target = write_text(tmp_path / "a.bin", "old")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert target.read_text() == "old"
    left = [name for name in names(tmp_path) if name != "a.bin"]
    assert len(left) == 1 and left[0].startswith(TEMP_PREFIX)
    assert remove_leftovers(tmp_path) == 1 and names(tmp_path) == ["a.bin"]


def test_folder_is_complete_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(ValueError), atomic_folder(target) as temporary:
        (temporary / "a").write_text("x")
        raise ValueError
    assert names(tmp_path) == []
    for text in ("one", "two"):
        with atomic_folder(target, overwrite=True) as temporary:
            (temporary / text).write_text(text)
        assert names(target) == [text]
    with pytest.raises(InputError, match="exists already"), atomic_folder(target):
        pass
    assert names(tmp_path) == ["model"]


def test_folder_replacement_that_fails_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        (temporary / "old").write_text("x")
    replace: Callable[[Path, Path], Path] = Path.replace

    def fail(self: Path, other: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError(errno.ENOSPC, "full")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="full"), atomic_folder(target, overwrite=True) as temporary:
        (temporary / "new").write_text("x")
    assert names(target) == ["old"] and names(tmp_path) == ["model"]


def test_output_folder_is_made_and_proved(tmp_path: Path) -> None:
    out = prepare_output_folder(tmp_path / "a" / "b")
    assert out.is_dir() and names(out) == []


def test_output_with_files_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mesh.ply").write_text("precious")
    with pytest.raises(InputError, match=r"not empty.*--overwrite"):
        prepare_output_folder(out)
    prepare_output_folder(out, overwrite=True)
    prepare_output_folder(out, resumable=lambda folder: (folder / "mesh.ply").exists())
    assert (out / "mesh.ply").read_text() == "precious"
    with pytest.raises(InputError, match="not empty"):
        prepare_output_folder(out, resumable=lambda folder: False)


def test_output_inside_input_is_refused(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "link").symlink_to(photos)
    for out in (photos, photos / "out", photos / "x" / ".." / "out", tmp_path / "link" / "out"):
        with pytest.raises(InputError, match="inside the input"):
            prepare_output_folder(out, inputs=[photos])
    assert names(photos) == []
    check_not_inside(tmp_path / "photos_out", [photos])
    check_not_inside(tmp_path, [photos])
    (photos / "clip.mp4").write_text("x")
    check_not_inside(photos / "out", [photos / "clip.mp4"])


def test_output_that_is_a_file(tmp_path: Path) -> None:
    write_text(tmp_path / "out", "x")
    with pytest.raises(InputError, match="is a file"):
        prepare_output_folder(tmp_path / "out")
    with pytest.raises(InputError):
        prepare_output_folder(tmp_path / "out" / "below")


def test_read_only_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, data: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match="read-only"):
        prepare_output_folder(tmp_path / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_output_without_permission(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(InputError, match="no permission"):
        prepare_output_folder(locked / "out")


def test_too_little_space(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are needed"):
        prepare_output_folder(tmp_path / "out", need_bytes=1 << 60)


def test_module_has_no_state() -> None:
    assert not [n for n, v in vars(atomic).items() if isinstance(v, (list, set)) and not n.startswith("__")]
