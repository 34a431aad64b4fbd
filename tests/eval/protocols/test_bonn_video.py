"""Bonn as videos from tiny copies of both layouts."""

import shutil

import numpy as np
import pytest

from corpora.video_layouts import check_video_rules, depth_map, frame_values, write_picture, write_png16
from relief3d.core.errors import InputError
from relief3d.eval.protocols.registry import find_protocol
from relief3d.eval.protocols.views.bonn_video import RECORDINGS

PROTOCOL = find_protocol("bonn_video")


def stored(seed: int) -> np.ndarray:
    """Stored integers reach 13 m only, so the far rows are made nearer here."""
    return np.round(depth_map(seed, far=13.1).clip(max=13.1) * 5000)


def write_recording(folder, pictures, depths, colour="rgb_110", depth="depth_110"):
    for i in range(pictures):
        write_picture(folder / colour / f"{1500 + i}.25.png", i)
    for i in range(depths):
        write_png16(folder / depth / f"{1500 + i}.31.png", stored(i))


@pytest.fixture
def bonn(tmp_path):
    for k, name in enumerate(RECORDINGS):
        write_recording(tmp_path / f"rgbd_bonn_dataset/rgbd_bonn_{name}", 3 + k, 3 + k)
    write_recording(tmp_path / "rgbd_bonn_dataset/rgbd_bonn_static", 2, 2)
    return tmp_path


def test_prepared_folders_are_taken_whole(bonn):
    samples = PROTOCOL.open(bonn)
    assert [s.name for s in samples] == list(RECORDINGS)
    assert frame_values(samples[1]) == [0, 1, 2, 3]
    truth = samples[1].load_truth().tensors
    np.testing.assert_allclose(truth["depth"][3], stored(3) / 5000, rtol=1e-6)
    assert not truth["valid"][1, 0, 0] and truth["valid"][1, 3].all()


def test_raw_recordings_give_frames_30_to_139(tmp_path):
    for name in RECORDINGS:
        folder = tmp_path / f"rgbd_bonn_{name}"
        for i in range(145):
            (folder / "rgb").mkdir(parents=True, exist_ok=True)
            (folder / "depth").mkdir(parents=True, exist_ok=True)
            (folder / f"rgb/{i}.5.png").touch()
            (folder / f"depth/{i}.6.png").touch()
    for i in (30, 139):
        write_picture(tmp_path / f"rgbd_bonn_balloon2/rgb/{i}.5.png", i)
    video = PROTOCOL._reader(tmp_path)[0]
    assert len(video.frames) == 110 and video.frames[0] == "30.5.png" and video.frames[-1] == "139.5.png"
    assert video.pictures([0, 109]).float().mean((1, 2, 3)).tolist() == [30, 139]
    (tmp_path / "rgbd_bonn_crowd2/depth/139.6.png").unlink()
    (tmp_path / "rgbd_bonn_crowd2/depth/140.6.png").unlink()
    for i in range(141, 145):
        (tmp_path / f"rgbd_bonn_crowd2/depth/{i}.6.png").unlink()
    with pytest.raises(InputError, match="110 pictures and 109 depth maps"):
        PROTOCOL.open(tmp_path)


def test_own_mask_without_clip(bonn):
    # A largest depth of 70 m cannot be stored in 16 bits at this scale; neighbours differ by nearer limits and clips.
    assert PROTOCOL.rules.max_depth == 70 and PROTOCOL.rules.post_clip_max is None
    check_video_rules(PROTOCOL, PROTOCOL.open(bonn)[:3], 70.0, None, [(10.0, None), (70.0, 10.0)])


def test_a_frame_without_depth_carries_no_pixels(bonn):
    folder = bonn / "rgbd_bonn_dataset/rgbd_bonn_balloon2"
    write_png16(folder / "depth_110/1501.31.png", np.zeros((12, 16)))
    truth = PROTOCOL.open(bonn)[0].load_truth().tensors
    assert truth["valid"].flatten(1).any(1).tolist() == [True, False, True]
    for i in (0, 2):
        write_png16(folder / f"depth_110/{1500 + i}.31.png", np.zeros((12, 16)))
    with pytest.raises(InputError, match="no valid pixels"):
        PROTOCOL.open(bonn)[0].load_truth()


def test_missing_parts_are_named(bonn):
    shutil.rmtree(bonn / "rgbd_bonn_dataset/rgbd_bonn_crowd3/depth_110")
    with pytest.raises(InputError, match=r"crowd3.*depth_110.*missing"):
        PROTOCOL.open(bonn)
    shutil.rmtree(bonn / "rgbd_bonn_dataset/rgbd_bonn_crowd3")
    with pytest.raises(InputError, match=r"rgbd_bonn_crowd3.*recording is missing"):
        PROTOCOL.open(bonn)


def test_maps_of_different_sizes_are_refused(bonn):
    write_png16(bonn / "rgbd_bonn_dataset/rgbd_bonn_balloon2/depth_110/1501.31.png", np.full((5, 5), 9000))
    with pytest.raises(InputError, match="5x5 pixels"):
        PROTOCOL.open(bonn)[0].load_truth()
