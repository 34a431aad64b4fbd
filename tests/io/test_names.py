"""Which files are pictures, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora.pictures import encode_picture
from relief3d.core.errors import InputError
from relief3d.io.images import read_image
from relief3d.io.names import list_images, natural_key, scan_images, view_name

JPEG = encode_picture("jpeg")


@pytest.mark.parametrize(
    "wanted",
    [
        ["img1.jpg", "img2.jpg", "img10.jpg", "img100.jpg"],
        ["DSC_0009.JPG", "dsc_0010.jpg", "DSC_0011.JPG"],
        ["a", "a1", "a1b2", "a1b10", "a02", "b"],
        ["frame_9.5.png", "frame_9.10.png", "frame_10.png"],
    ],
)
def test_natural_order(wanted: list[str]) -> None:
    assert sorted(sorted(wanted, reverse=True), key=natural_key) == wanted


@given(st.lists(st.text(max_size=20)))
def test_natural_order_is_total(names: list[str]) -> None:
    ordered = sorted(names, key=natural_key)
    backwards = ordered[::-1]
    assert sorted(backwards, key=natural_key) == ordered


@pytest.mark.parametrize(
    "name",
    [
        "日本語 ünïcode.jpg",
        "with space.jpg",
        "-leading-dash.jpg",
        "UPPER.JPG",
        "x" * 251 + ".jpg",
        "two.dots.jpg",
        "[brackets]*.jpg",
        "quote'\".jpg",
        "no_suffix",
        "new\nline.jpg",
    ],
)
def test_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(JPEG)
    found = list_images(tmp_path)
    assert [p.name for p in found] == [name]
    assert read_image(found[0]).rgb.shape == (3, 32, 48)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    with open(raw, "wb") as stream:
        stream.write(JPEG)
    (path,) = list_images(tmp_path)
    assert read_image(path).rgb.shape == (3, 32, 48)
    assert view_name(path, tmp_path) == "caf\ufffd.jpg"


def test_hidden_and_foreign_files(tmp_path: Path) -> None:
    for name in ("b.jpg", ".hidden.jpg", "._b.jpg", "Thumbs.db", "notes.txt", "a.png"):
        (tmp_path / name).write_bytes(JPEG if name.endswith(("jpg", "png")) else b"text")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "looks.jpg").write_bytes(b"not a picture")
    listing = scan_images(tmp_path)
    assert [p.name for p in listing.images] == ["a.png", "b.jpg", "empty.jpg", "looks.jpg"]
    assert [(p.name, reason) for p, reason in listing.skipped] == [("notes.txt", "not a picture")]


def test_pipes_folders_and_loops_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "sub" / "down").symlink_to(tmp_path / "sub")
    (tmp_path / "sub" / "good.jpg").write_bytes(JPEG)
    (tmp_path / "link.jpg").symlink_to(tmp_path / "sub" / "good.jpg")
    listing = scan_images(tmp_path, recursive=True)
    assert [view_name(p, tmp_path) for p in listing.images] == ["link.jpg", "sub/good.jpg"]
    reasons = {p.name: reason for p, reason in listing.skipped}
    assert "pipe" in reasons["pipe.jpg"] and "folder" in reasons["folder.jpg"]
    assert "leads back" in reasons["loop.jpg"] and "no such file" in reasons["dangling.jpg"]
    found = list_images(tmp_path / "**" / "*.jpg")
    assert {p.name for p in found} == {"link.jpg", "good.jpg"}


@pytest.mark.parametrize("name", ["pipe.jpg", "folder.jpg", "loop.jpg", "missing.jpg", "nul\0.jpg"])
def test_reading_what_is_no_file(tmp_path: Path, name: str) -> None:
    if name == "pipe.jpg":
        os.mkfifo(tmp_path / name)
    if name == "folder.jpg":
        (tmp_path / name).mkdir()
    if name == "loop.jpg":
        (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError):
        read_image(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)
    path.chmod(0)
    with pytest.raises(InputError, match="permission"):
        read_image(path)


def test_globs(tmp_path: Path) -> None:
    for name in ("img2.jpg", "img10.jpg", "other.png", ".hidden.jpg", "img3.txt"):
        (tmp_path / name).write_bytes(JPEG)
    assert [p.name for p in list_images(str(tmp_path / "img*.jpg"))] == ["img2.jpg", "img10.jpg"]
    assert [p.name for p in list_images(str(tmp_path / "*.jpg"))] == ["img2.jpg", "img10.jpg"]
    assert list_images(str(tmp_path / "none*.jpg")) == []
    odd = tmp_path / "set[1]"
    odd.mkdir()
    (odd / "a.jpg").write_bytes(JPEG)
    assert [p.name for p in list_images(odd)] == ["a.jpg"]


def test_relative_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_bytes(JPEG)
    (tmp_path / "b.jpg").write_bytes(JPEG)
    monkeypatch.chdir(tmp_path)
    assert list_images("*.jpg") == [Path("b.jpg")]
    listing = scan_images("p/*.jpg")
    assert listing.root == Path("p") and listing.images == (Path("p/a.jpg"),)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "nowhere")
