"""`relief3d label` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from corpora.commands import photo, run
from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.depth import write_depth
from relief3d.io.images import write_image

WIDTH, HEIGHT = 24, 16


def scene_with_depth(folder: Path, views: int = 2) -> Path:
    folder.mkdir(parents=True)
    made, depths = [], {}
    for k in range(views):
        path = write_image(folder / f"{k}.png", torch.full((3, HEIGHT, WIDTH), 0.3 + 0.1 * k))
        values = 2.0 + torch.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) / 100 + k
        write_depth(folder / f"{k}.npz", Depth.from_values(values))
        made.append(View(f"{k}.png", Camera(WIDTH, HEIGHT), path=path))
        depths[f"{k}.png"] = (f"{k}.npz", 1.0)
    write_cameras_json(Scene(tuple(made), metric=True), folder, depth=depths)
    return folder


def test_list_names_all_labelers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("label", "--list") == 0
    shown = capsys.readouterr().out
    for name in ("transformers-depth", "moge", "correspondences", "tracks-lk", "masks-sam", "sfm-cameras"):
        assert f"{name}: " in shown
    assert "scale_sigma=0.5" in shown and "needs: " in shown


def test_a_folder_of_scenes_is_labelled_and_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene_with_depth(tmp_path / "in" / "a")
    scene_with_depth(tmp_path / "in" / "b", views=3)
    command = ("label", tmp_path / "in", "-o", tmp_path / "out", "--labeler", "procedural-relative", "-q")
    assert run(*command, "--set", "scale_sigma=0.2", "--workers", "0") == 0
    assert "5 of 5 items" in capsys.readouterr().out
    assert run(*command, "--set", "scale_sigma=0.2", "--workers", "0") == 0
    assert "complete" in capsys.readouterr().out
    labels = [json.loads(p.read_text()) for p in (tmp_path / "out").glob("items/*/*/label.json")]
    assert sorted((x["item"]["scene"], x["item"]["views"][0]) for x in labels) == [
        ("a", "0.png"), ("a", "1.png"), ("b", "0.png"), ("b", "1.png"), ("b", "2.png"),
    ]  # fmt: skip
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "out").rglob("*.json*"))


def test_failed_items_are_listed_with_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    photo(tmp_path / "in" / "a.png", 1)
    code = run(
        "label",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "--labeler",
        "procedural-relative",
        "-q",
        "--workers",
        0,
    )
    assert code == 1
    assert "cannot be labelled" in (shown := capsys.readouterr().out) and "has no true depth" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--labeler"),
        (("IN", "-o", "OUT", "--labeler", "tracks-kl"), "did you mean tracks-lk"),
        (("IN", "-o", "OUT", "--labeler", "tracks-lk", "--set", "windw=3"), "did you mean window"),
        (("IN", "-o", "OUT", "--labeler", "tracks-lk", "--set", "window=x"), "must be a int"),
        (("IN", "-o", "IN/out", "--labeler", "procedural-relative"), "inside the input"),
        (("NOWHERE", "-o", "OUT", "--labeler", "procedural-relative"), "NOWHERE"),
    ],
)
def test_bad_usage_is_one_sentence(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene_with_depth(tmp_path / "IN")
    paths = [str(tmp_path / a) if a.split("/")[0] in ("IN", "OUT", "NOWHERE") else a for a in arguments]
    assert run("label", *paths) == 2
    assert said in capsys.readouterr().err
