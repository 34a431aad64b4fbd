"""Damaged, missing and absurd files of every data set become one error that names a file; nothing else is raised."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data.readers import test_pose_and_depth_sets as depth_sets
from data.readers import test_ray_length_sets as ray_sets
from data.readers import test_sensor_sets as sensor_sets
from data.readers import test_video_and_camera_sets as video_sets
from relief3d.core.errors import InputError
from relief3d.data.readers.registry import dataset_names, open_dataset

COPIES: dict[str, tuple[Any, Callable[..., None], dict[str, Any]]] = {
    "tartanair": (depth_sets, depth_sets.test_tartanair, {}),
    "tartanair v2": (depth_sets, depth_sets.test_tartanair_v2_depth_is_a_float_in_four_bytes, {}),
    "blendedmvs": (depth_sets, depth_sets.test_blendedmvs, {}),
    "mvs_synth": (depth_sets, depth_sets.test_mvs_synth_turns_its_left_handed_world, {}),
    "omniworld_game": (depth_sets, depth_sets.test_omniworld_game, {}),
    "bedlam2": (depth_sets, depth_sets.test_bedlam2, {}),
    "moge": (depth_sets, depth_sets.test_moge, {}),
    "hypersim": (ray_sets, ray_sets.test_hypersim, {"M": ray_sets.TILTED}),
    "aria_synthetic": (ray_sets, ray_sets.test_aria_synthetic, {}),
    "scannet": (sensor_sets, sensor_sets.test_scannet, {}),
    "scannetpp": (sensor_sets, sensor_sets.test_scannetpp, {}),
    "arkitscenes": (sensor_sets, sensor_sets.test_arkitscenes, {}),
    "kitti": (sensor_sets, sensor_sets.test_kitti, {}),
    "nuscenes": (sensor_sets, sensor_sets.test_nuscenes, {}),
    "dl3dv": (video_sets, video_sets.test_dl3dv, {}),
    "realestate10k": (video_sets, video_sets.test_realestate10k, {}),
    "droid": (video_sets, video_sets.test_droid, {}),
    "egocentric10k": (video_sets, video_sets.test_egocentric10k, {}),
    "glb_objects": (video_sets, video_sets.test_glb_objects, {}),
    "generic": (video_sets, video_sets.test_generic_by_hand, {}),
}
"""The test that writes each tiny copy, with its arguments."""

NUMBER = re.compile(rb"-?\d+\.\d+(e[-+]?\d+)?")


class _Written(BaseException):
    """The copy is complete: its test is about to open it."""


def tiny_copy(name: str, folder: Path, patch: pytest.MonkeyPatch) -> tuple[str, Path, dict[str, Any]]:
    """Write a copy by running its test up to the first look at it: name of the reader, root and options."""
    module, write, arguments = COPIES[name]

    def stop(reader: str, root: Path, **options: Any) -> None:
        raise _Written(reader, root, options)

    with patch.context() as inner:
        inner.setattr(module, "open_dataset", stop)
        with pytest.raises(_Written) as caught:
            write(**{**arguments, "tmp_path": folder})
    reader, root, options = caught.value.args
    return reader, Path(root), options


def look_at_everything(reader: str, root: Path, options: dict[str, Any]) -> int:
    """Load all there is, of all scenes; number of views. Whatever comes out is finite."""
    count = 0
    for scene in open_dataset(reader, root, **options):
        for view in scene.views:
            if view.image is not None:
                view.load_image()
            view.load_mask()
            depth, sparse = view.load_depth(), view.sparse_depth
            values = [view.camera.K, view.camera.world_from_cam, depth and depth.values, sparse and sparse.z]
            values += [None if view.time is None else torch.tensor(view.time)]
            assert all(bool(torch.isfinite(v).all()) for v in values if v is not None), view.name
            count += 1
    return count


def damages(path: Path) -> Iterator[bytes]:
    """What may have become of a file."""
    data = path.read_bytes()
    yield from (b"", data[: len(data) // 2], bytes((37 * i + 11) % 256 for i in range(300)))
    if path.suffix in (".txt", ".json", ".csv", ".traj", ".pincam"):
        for word in (b"nan", b"1e400", b"0.0", b"1e300", b'"word"'):
            yield NUMBER.sub(word, data)
        yield from (re.sub(rb"(?<![\d.-])(\d+\.\d+)", rb"-\1", data), b"[]", b"{}")


def test_every_data_set_has_a_copy_to_damage() -> None:
    assert {name.split()[0] for name in COPIES} == set(dataset_names())


@pytest.mark.parametrize("name", COPIES)
def test_damage_is_one_error_that_names_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, root, options = tiny_copy(name, tmp_path, monkeypatch)
    if reader == "egocentric10k":
        options = {**options, "cache": tmp_path / "fresh"}
    elif reader == "glb_objects":
        options = {**options, "views": 1}
    views, refused = look_at_everything(reader, root, options), 0
    seen: set[tuple[str, str]] = set()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and tmp_path / "fresh" not in p.parents):
        kind = (re.sub(r"\d+", "#", path.name), path.parent.name)
        if kind in seen or (len(path.suffixes) > 0 and path.name.endswith("_masked.jpg")):
            continue  # one file of each kind
        seen.add(kind)
        intact = path.read_bytes()
        for number, damaged in enumerate((None, *damages(path))):
            if damaged == intact:
                continue
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            if reader == "egocentric10k":
                options["cache"] = tmp_path / "fresh" / f"{path.name} {number}"
            try:
                assert look_at_everything(reader, root, options) <= views
            except InputError as error:
                assert error.path is not None, error
                refused += 1
            path.write_bytes(intact)
    assert refused >= 3 and look_at_everything(reader, root, options) == views
