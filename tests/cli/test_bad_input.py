"""Bad input through the command: exit code 2, one sentence with file and remedy, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corpora.commands import photo, run, two_photos
from corpora.pictures import bomb_png, encode_picture, smooth_rgb


def empty(folder: Path) -> None:
    """Nothing in it."""


def only_text(folder: Path) -> None:
    (folder / "notes.txt").write_text("no pictures here")


def one_image(folder: Path) -> None:
    photo(folder / "only.png")


def identical(folder: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        photo(folder / name)


def no_overlap(folder: Path) -> None:
    photo(folder / "a.png", 1)
    photo(folder / "b.png", 2)


def blank(folder: Path) -> None:
    for name, grey in (("a.png", 90), ("b.png", 120)):
        Image.new("RGB", (320, 240), (grey, grey, grey)).save(folder / name)


def corrupt(folder: Path) -> None:
    photo(folder / "a.png")
    (folder / "bad.jpg").write_bytes(bytes(range(256)) * 8)


def truncated(folder: Path) -> None:
    photo(folder / "a.png")
    data = encode_picture("jpeg", smooth_rgb(200, 150))
    (folder / "bad.jpg").write_bytes(data[: len(data) // 2])


def zero_byte(folder: Path) -> None:
    photo(folder / "a.png")
    (folder / "bad.jpg").write_bytes(b"")


def text_as_jpeg(folder: Path) -> None:
    photo(folder / "a.png")
    (folder / "bad.jpg").write_text("this is not a picture")


def bomb(folder: Path) -> None:
    photo(folder / "a.png")
    (folder / "bad.png").write_bytes(bomb_png())


CASES: list[tuple[Callable[[Path], None], str]] = [
    (empty, "the folder is empty"),
    (only_text, "no pictures in this folder"),
    (one_image, "only one picture"),
    (identical, "all pictures are identical copies"),
    (no_overlap, "show enough of the same surface"),
    (blank, "almost no detail"),
    (corrupt, "bad.jpg"),
    (truncated, "bad.jpg"),
    (zero_byte, "bad.jpg"),
    (text_as_jpeg, "bad.jpg"),
    (bomb, "bad.png"),
]


@pytest.mark.parametrize(("make", "expected"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_bad_folders(
    make: Callable[[Path], None],
    expected: str,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path_factory.mktemp("shelf")  # messages hold paths: the test's own name must not be in them
    folder, out = root / "in", root / "out"
    folder.mkdir()
    make(folder)
    before = sorted(p.name for p in folder.iterdir())
    assert run("reconstruct", folder, "-o", out, "-q") == 2
    message = capsys.readouterr().err.strip()
    assert expected in message
    assert len(message.splitlines()) == 1 and "Traceback" not in message
    assert message.endswith(")"), "every refusal ends with a remedy in brackets"
    assert not out.exists(), "nothing half-written"
    assert sorted(p.name for p in folder.iterdir()) == before


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(*arguments) == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


def test_missing_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(capsys, "reconstruct", tmp_path / "nowhere", "-o", tmp_path / "out", "-q")


def test_output_inside_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = two_photos(tmp_path)
    assert "lies inside the input folder" in refused(
        capsys, "reconstruct", folder, "-o", folder / "out", "-q"
    )
    assert sorted(p.name for p in folder.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("extra", [[], ["--overwrite"]])
def test_input_inside_output(extra: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = two_photos(tmp_path)
    out = tmp_path / "out"
    (out / ".relief3d").mkdir(parents=True)
    (out / ".relief3d" / "state.json").write_text('{"stages": {}}')
    inner = folder.rename(out / "images")
    assert "lies inside the output folder" in refused(capsys, "reconstruct", inner, "-o", out, "-q", *extra)
    assert sorted(p.name for p in inner.iterdir()) == ["a.png", "b.png"], "the user's pictures stay"


def test_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = two_photos(tmp_path)
    (tmp_path / "file").write_text("x")
    message = refused(capsys, "reconstruct", folder, "-o", tmp_path / "file" / "out", "-q")
    assert "out" in message or "file" in message


def test_foreign_output_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = two_photos(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    for extra in ([], ["--overwrite"]):
        refused(capsys, "reconstruct", folder, "-o", out, "-q", *extra)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


def test_depth_without_valid_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, depth = two_photos(tmp_path), tmp_path / "depth"
    depth.mkdir()
    for name in ("a", "b"):
        np.savez(depth / f"{name}.npz", depth=np.full((240, 320), np.nan, np.float32))
    message = refused(capsys, "reconstruct", folder, "-o", tmp_path / "out", "-q", "--depth", depth)
    assert ".npz" in message and "no valid pixels" in message
    assert not (tmp_path / "out").exists()


def test_depth_of_another_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, depth = two_photos(tmp_path), tmp_path / "depth"
    depth.mkdir()
    for name in ("a", "b"):
        np.savez(depth / f"{name}.npz", depth=np.ones((7, 320), np.float32))
    message = refused(capsys, "reconstruct", folder, "-o", tmp_path / "out", "-q", "--depth", depth)
    assert ".npz" in message


@pytest.mark.parametrize("change", ["size", "K", "pose", "missing", "syntax", "nan"])
def test_inconsistent_cameras_file(change: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = two_photos(tmp_path)
    K = [[300, 0, 160], [0, 300, 120], [0, 0, 1]]
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    frames = [
        {"image": f"{n}.png", "width": 320, "height": 240, "K": K, "T_cam_to_world": pose, "depth": None}
        for n in "ab"
    ]
    if change == "size":
        frames[1]["width"] = 640
    elif change == "K":
        frames[1]["K"] = [[-300, 0, 160], [0, 300, 120], [0, 0, 1]]
    elif change == "pose":
        frames[1]["T_cam_to_world"] = [[2, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    elif change == "missing":
        frames[1]["image"] = "c.png"
    elif change == "nan":
        frames[1]["K"] = [[float("nan"), 0, 160], [0, 300, 120], [0, 0, 1]]
    text = json.dumps({"frames": frames, "units": "metres"})
    path = folder / "cameras.json"
    path.write_text(text[:-20] if change == "syntax" else text)
    message = refused(capsys, "reconstruct", path, "-o", tmp_path / "out", "-q")
    assert "cameras.json" in message
    assert not (tmp_path / "out").exists()


def test_cameras_of_other_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = two_photos(tmp_path)
    frame = {"image": "z.png", "width": 320, "height": 240, "K": None, "T_cam_to_world": None, "depth": None}
    known = tmp_path / "cameras.json"
    known.write_text(json.dumps({"frames": [frame]}))
    message = refused(capsys, "reconstruct", folder, "-o", tmp_path / "out", "-q", "--cameras", known)
    assert "cameras.json" in message


def test_cut_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    from corpora.videos import panning_frames, write_video

    path = tmp_path / "clip.mp4"
    write_video(path, panning_frames(24))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    message = refused(capsys, "reconstruct", path, "-o", tmp_path / "out", "-q")
    assert "clip.mp4" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["reconstruct"],
        ["reconstruct", "x", "-o", "y", "--quality", "superb"],
        ["reconstruct", "x", "-o", "y", "--no-such-option"],
        ["nonsense"],
        ["eval", "reference"],
    ],
)
def test_usage_errors_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--voxel-size", "-1"), ("--depth-width", "3"), ("--device", "warp-drive"), ("--seed", "-1")],
)
def test_impossible_values_exit_2(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = two_photos(tmp_path)
    assert run("reconstruct", folder, "-o", tmp_path / "out", "-q", option, value) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_view_and_eval_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "view", tmp_path)
    refused(capsys, "eval", "reference", tmp_path, tmp_path)
    refused(capsys, "plan", tmp_path)
