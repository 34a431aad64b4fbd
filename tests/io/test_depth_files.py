"""Depth maps and masks: every format, every kind of bad value."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corpora.pictures import depth_values, encode_picture
from relief3d.core.contract import Depth
from relief3d.core.errors import InputError
from relief3d.io.depth import read_depth, read_mask, write_depth
from relief3d.io.exr import write_exr
from relief3d.io.pfm import read_pfm, write_pfm

DEPTH = depth_values()
HOLED = DEPTH.copy()
HOLED[3:6, 4:9] = 0


@pytest.mark.parametrize(
    ("suffix", "error"), [("png", 5.1e-4), ("npz", 0), ("npy", 0), ("exr", 0), ("pfm", 0)]
)
def test_write_and_read_back(tmp_path: Path, suffix: str, error: float) -> None:
    path = write_depth(tmp_path / f"a.{suffix}", torch.from_numpy(HOLED))
    back = read_depth(path, size=(40, 30))
    assert torch.equal(back.valid, torch.from_numpy(HOLED > 0))
    assert float((back.values - torch.from_numpy(HOLED)).abs().max()) <= error
    assert float(back.values[~back.valid].abs().max()) == 0
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["npz", "exr"])
def test_confidence_survives(tmp_path: Path, suffix: str) -> None:
    confidence = torch.rand(30, 40, generator=torch.Generator().manual_seed(0))
    depth = Depth.from_values(torch.from_numpy(HOLED), confidence=confidence)
    back = read_depth(write_depth(tmp_path / f"a.{suffix}", depth))
    assert back.confidence is not None and torch.equal(back.confidence, confidence)


BAD_VALUES = {
    "nan": np.nan,
    "plus infinity": np.inf,
    "minus infinity": -np.inf,
    "negative": -1.0,
    "zero": 0.0,
    "subnormal": 1e-42,
    "far": 1e9,
}


@pytest.mark.parametrize("suffix", ["npy", "pfm", "exr", "npz"])
@pytest.mark.parametrize("kind", list(BAD_VALUES))
def test_bad_values_become_invalid(tmp_path: Path, suffix: str, kind: str) -> None:
    values = DEPTH.copy()
    values[::3, ::2] = BAD_VALUES[kind]
    path = save_raw(tmp_path / f"a.{suffix}", values)
    depth = read_depth(path)
    expected = np.ones(DEPTH.shape, bool)
    expected[::3, ::2] = False
    assert np.array_equal(depth.valid.numpy(), expected)
    assert bool(torch.isfinite(depth.values).all()) and float(depth.values[0, 0]) == 0
    with pytest.raises(InputError, match="no valid pixels"):
        read_depth(save_raw(tmp_path / f"b.{suffix}", np.full_like(DEPTH, BAD_VALUES[kind])))


def save_raw(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, depth=values)
    elif path.suffix == ".pfm":
        write_pfm(path, values)
    else:
        write_exr(path, {"Z": values})
    return path


def save_png16(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values.astype(np.uint16)).save(path)
    return path


def test_png_scale(tmp_path: Path) -> None:
    path = save_png16(tmp_path / "a.png", np.array([[1000, 2000], [0, 65535]]))
    assert read_depth(path).values.flatten().tolist() == pytest.approx([1, 2, 0, 65.535])
    tum = read_depth(path, scale=1 / 5000)
    assert tum.values.flatten().tolist() == pytest.approx([0.2, 0.4, 0, 13.107])
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="scale"):
            read_depth(path, scale=scale)
        with pytest.raises(InputError, match="scale"):
            write_depth(tmp_path / "x.png", torch.ones(2, 2), scale=scale)
    assert not (tmp_path / "x.png").exists()


def test_png_overflow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not fit 16 bits"):
        write_depth(tmp_path / "a.png", torch.tensor([[70.0]]))
    back = read_depth(write_depth(tmp_path / "a.png", torch.tensor([[70.0]]), scale=0.01), scale=0.01)
    assert float(back.values) == pytest.approx(70)


def test_wrong_unit(tmp_path: Path) -> None:
    path = save_raw(tmp_path / "mm.npy", DEPTH * 2000)
    with pytest.raises(InputError, match=r"probably not metres.*scale"):
        read_depth(path)
    assert float(read_depth(path, scale=0.001).values.max()) == pytest.approx(float(DEPTH.max()) * 2)
    assert float(read_depth(path, metric=False).values.max()) == pytest.approx(float(DEPTH.max()) * 2000)
    with pytest.raises(InputError, match="probably not metres"):
        read_depth(save_png16(tmp_path / "a.png", np.full((4, 4), 3)))


def test_wrong_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="40 x 30 pixels, its picture 30 x 40"):
        read_depth(save_raw(tmp_path / "a.npy", DEPTH), size=(30, 40))


@pytest.mark.parametrize(
    "kind", ["8 bit", "colour", "jpeg", "text", "three dimensions", "complex", "strings"]
)
def test_not_a_depth_map(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "8 bit":
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path, "PNG")
    elif kind in ("colour", "jpeg"):
        path.write_bytes(encode_picture("png" if kind == "colour" else "jpeg"))
    elif kind == "text":
        path.write_text("1 2 3")
    else:
        array = {
            "three dimensions": np.ones((4, 5, 3), np.float32),
            "complex": np.ones((4, 4), np.complex64),
            "strings": np.array([["a"]]),
        }[kind]
        with path.open("wb") as stream:
            np.save(stream, array)
    with pytest.raises(InputError):
        read_depth(path)


def test_one_channel_dimension_is_dropped(tmp_path: Path) -> None:
    for i, array in enumerate((DEPTH[..., None], DEPTH[None], np.asfortranarray(DEPTH), DEPTH.astype(">f8"))):
        np.save(tmp_path / f"{i}.npy", array)
        assert np.allclose(read_depth(tmp_path / f"{i}.npy").values.numpy(), DEPTH)


class Canary:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("canary"),))


def test_pickles_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.array([[Canary()]], dtype=object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "b.npz", depth=array)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Canary()))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("depth.npy", pickle.dumps(Canary()))
    (tmp_path / "d.npz").write_bytes(stream.getvalue())
    for name in ("a.npy", "b.npz", "c.npy", "d.npz"):
        with pytest.raises(InputError):
            read_depth(tmp_path / name)
    assert not (tmp_path / "canary").exists()


def test_npz_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, first=DEPTH, second=DEPTH * 2)
    with pytest.raises(InputError, match="several arrays"):
        read_depth(path)
    with pytest.raises(InputError, match="no array 'third'"):
        read_depth(path, key="third")
    assert np.allclose(read_depth(path, key="second").values.numpy(), DEPTH * 2)
    np.savez(path, depth=DEPTH, valid=DEPTH > 2)
    assert np.array_equal(read_depth(path).valid.numpy(), DEPTH > 2)


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 1000))
def test_pfm_round_trip(
    tmp_path_factory: pytest.TempPathFactory, w: int, h: int, colour: bool, seed: int
) -> None:
    path = tmp_path_factory.mktemp("pfm") / "a.pfm"
    shape = (h, w, 3) if colour else (h, w)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    assert np.array_equal(read_pfm(write_pfm(path, values)), values)


def test_pfm_byte_order_and_row_order(tmp_path: Path) -> None:
    path = tmp_path / "a.pfm"
    path.write_bytes(b"Pf\n2 2\n1.0\n" + np.array([1, 2, 3, 4], ">f4").tobytes())
    assert read_pfm(path).tolist() == [[3, 4], [1, 2]]
    for bad in (
        b"Pf\n2 2\n0\n" + bytes(16),
        b"Pf\n2 x\n1\n",
        b"Pf\n2 2\n1e999\n" + bytes(16),
        b"Pf\n0 2\n1\n",
    ):
        path.write_bytes(bad)
        with pytest.raises(InputError):
            read_pfm(path)


def test_masks(tmp_path: Path) -> None:
    grey = np.array([[0, 127], [128, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[False, False], [True, True]]
    rgba = np.dstack([np.zeros((2, 2, 3), np.uint8), grey])
    Image.fromarray(rgba).save(tmp_path / "b.png")
    assert read_mask(tmp_path / "b.png").tolist() == [[False, False], [True, True]]
    Image.fromarray(grey > 0).save(tmp_path / "c.png")
    assert read_mask(tmp_path / "c.png").tolist() == [[False, True], [True, True]]
    with pytest.raises(InputError, match="2 x 2 pixels, its picture 3 x 2"):
        read_mask(tmp_path / "a.png", size=(3, 2))


def test_shared_depth_maps(shared_data: Path) -> None:
    path = sorted((shared_data / "rendered_room8" / "depth").iterdir())[0]
    depth = read_depth(path)
    assert 0.1 < float(depth.values[depth.valid].median()) < 50
