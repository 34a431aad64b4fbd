"""Pictures rendered ahead: repeatable, true to their cameras, safe on disk, nested sets."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.methods.metric_anything.pictures import PictureSet, PictureSource, set_folder

SMALL = PictureSet(("room",), 2, views=2, size=(32, 48), lidar=(8, 16), texture_size=32)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    PictureSource(folder, (SMALL,)).fill()
    return folder


def test_a_number_gives_the_same_picture_in_every_folder(root: Path, tmp_path: Path) -> None:
    here, there = PictureSource(root, (SMALL,)), PictureSource(tmp_path, (SMALL,))
    for index in (3, 0):
        one, other = here.picture(index), there.picture(index)
        assert one.names == other.names == (here.name(index),)
        for name, value in one.tensors.items():
            torch.testing.assert_close(value, other.tensors[name], rtol=0, atol=0, equal_nan=True)
    files = [p.read_bytes() for p in sorted(set_folder(root, SMALL).iterdir())]
    again = [p.read_bytes() for p in sorted(set_folder(tmp_path, SMALL).iterdir())]
    assert files == again


def test_raw_lidar_lies_on_the_surfaces_of_the_picture(root: Path) -> None:
    picture = PictureSource(root, (SMALL,)).picture(1)
    points = picture.lidar[0]
    points = points[torch.isfinite(points[:, 0]) & (points[:, 2] > 0.1)]
    pixels = points @ picture.K[0].T
    at = (pixels[:, :2] / pixels[:, 2:]).floor().long()
    inside = (at >= 0).all(1) & (at[:, 0] < 48) & (at[:, 1] < 32)
    assert int(inside.sum()) > 60
    true = picture.depth[0][at[inside, 1], at[inside, 0]]
    relative = (points[inside, 2] / true.clamp_min(0.1)).log().abs()
    # Most returns agree; some are hidden from the camera, which stands elsewhere.
    assert float(relative.median()) < 0.03


def test_normals_belong_to_the_depth(root: Path) -> None:
    picture = PictureSource(root, (SMALL,)).picture(0)
    known = picture.depth[0] > 0
    normals = picture.normals[0].float() / 127
    size = normals.norm(dim=0)
    assert float((size[known] - 1).abs().max()) < 0.03
    y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    rays = torch.linalg.inv(picture.K[0]) @ torch.stack([x, y, torch.ones_like(x)]).reshape(3, -1)
    facing = (rays.reshape(3, 32, 48) * normals).sum(0)
    assert float((facing[known] < 0).float().mean()) > 0.99
    assert len(picture.radar[0]) == 96


def test_a_small_set_is_the_first_part_of_a_larger_one(root: Path) -> None:
    larger = replace(SMALL, worlds=50)
    assert set_folder(root, larger) == set_folder(root, SMALL)
    assert PictureSource(root, (larger,)).name(3) == PictureSource(root, (SMALL,)).name(3) == "room-1-1"
    assert set_folder(root, replace(SMALL, seed=1)) != set_folder(root, SMALL)
    assert len(PictureSource(root, (larger,))) == 100


def test_sets_take_turns() -> None:
    source = PictureSource("nowhere", (SMALL, replace(SMALL, families=("street",))))
    assert [source.name(n) for n in range(5)] == [
        "room-0-0", "street-0-0", "room-0-1", "street-0-1", "room-1-0",
    ]  # fmt: skip
    assert pickle.loads(pickle.dumps(source)).name(4) == "room-1-0"
    with pytest.raises(InputError, match="no picture 8"):
        source.place(8)
    with pytest.raises(InputError, match="one number of pictures"):
        PictureSource("nowhere", (SMALL, replace(SMALL, families=("street",), worlds=3)))


def test_a_damaged_file_is_named(root: Path, tmp_path: Path) -> None:
    folder = set_folder(tmp_path, SMALL)
    folder.mkdir(parents=True)
    whole = next(iter(sorted(set_folder(root, SMALL).iterdir()))).read_bytes()
    (folder / "world-000000.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read") as caught:
        PictureSource(tmp_path, (SMALL,)).picture(0)
    assert "world-000000" in str(caught.value.path)


def test_an_impossible_set_is_refused() -> None:
    with pytest.raises(InputError, match="no camera"):
        PictureSet(fov=(100, 35))
    with pytest.raises(InputError, match="two views"):
        PictureSet(views=1)
