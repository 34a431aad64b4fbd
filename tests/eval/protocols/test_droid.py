"""DROID wrist cameras from a tiny copy of OmniWorld's layout."""

import json
import random

import numpy as np
import pytest

from corpora.video_layouts import check_video_rules, depth_map, frame_values, write_picture, write_png16
from relief3d.core.errors import InputError
from relief3d.eval.protocols.registry import find_protocol
from relief3d.eval.protocols.views.droid import choose_sequences, read_droid_videos

PROTOCOL = find_protocol("droid")


def stored(seed: int) -> np.ndarray:
    """9 m and more fill two rows: 9.5 m, which counts, and 10 m (the largest number), which does not."""
    depth = depth_map(seed)
    depth[2], depth[3] = 9.5, 10.0
    return np.round(depth / 10 * 65535)


def write_scene(root, scene, cameras, wrist, video=None, frames=25, subset="omniworld_droid_0_49"):
    base = root / "depths" / subset / "droid_processed" / scene
    for camera in cameras:
        pictures = root / "DROID_png_frames" / (video or f"droid_raw/{scene}") / "recordings/PNG" / camera
        for i in range(frames):
            write_png16(base / f"foundation_stereo/{camera}/{i:05d}.png", stored(i))
            write_picture(pictures / f"{i}.png", i)
    info = {"ext1_cam_serial": "111", "wrist_cam_serial": wrist, "note": "x"}
    (base / "meta_info.json").write_text(json.dumps(info))


@pytest.fixture
def droid(tmp_path):
    write_scene(tmp_path, "A/one", ["111", "222"], "222", frames=25)
    write_scene(
        tmp_path, "B/two", ["333"], 333, video="elsewhere/two", frames=41, subset="omniworld_droid_50_99"
    )
    write_scene(tmp_path, "C/three", ["444"], "555")  # no depth of the wrist camera
    (tmp_path / "omniworld_droid_metadata.csv").write_text(
        "UID,Annotation Path,Video Path\n1,droid_processed/B/two/,elsewhere/two\n"
    )
    return tmp_path


def test_wrist_cameras_with_their_pictures(droid):
    samples = PROTOCOL.open(droid)
    assert [s.name for s in samples] == [
        "omniworld_droid_0_49/droid_processed/A/one/222",
        "omniworld_droid_50_99/droid_processed/B/two/333",
    ]
    assert frame_values(samples[0]) == [0, 24] and frame_values(samples[1]) == [0, 13, 26, 40]
    truth = samples[1].load_truth().tensors
    np.testing.assert_allclose(truth["depth"][1], stored(13) / 65535 * 10, rtol=1e-6)
    assert truth["valid"][:, 2].all() and not truth["valid"][:, 3].any()  # 10 m is no measurement


def test_own_mask(droid):
    check_video_rules(PROTOCOL, PROTOCOL.open(droid), 10.0, None, [(70.0, None), (None, None), (10.0, 9.0)])


def test_two_hundred_of_the_sorted_names_with_seed_42(droid):
    names = [f"s{i:04d}" for i in range(1000)]
    shuffled = random.Random(0).sample(names, 1000)
    chosen = choose_sequences(shuffled)
    assert chosen == sorted(random.Random(42).sample(names, 200)) and chosen != names[:200]
    assert chosen[:3] == sorted(chosen)[:3] and len(set(chosen)) == 200
    assert choose_sequences(names[:200]) == names[:200]
    assert len(read_droid_videos(droid, most=1)) == 1


def test_missing_parts_are_named(droid):
    with pytest.raises(InputError, match="OmniWorld-DROID"):
        PROTOCOL.open(droid / "depths")
    (droid / "omniworld_droid_metadata.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="lacks the columns"):
        PROTOCOL.open(droid)
    (droid / "omniworld_droid_metadata.csv").unlink()
    with pytest.raises(InputError, match=r"droid_raw/B/two.*pictures is missing"):
        PROTOCOL.open(droid)
    for info in droid.rglob("meta_info.json"):
        info.write_text("{}")
    with pytest.raises(InputError, match="of a wrist camera"):
        PROTOCOL.open(droid)


def test_fewer_videos_are_not_the_benchmark(droid):
    samples = PROTOCOL.open(droid)
    assert PROTOCOL.deviation(droid, samples) == f"{len(samples)} of 200 videos"
    assert PROTOCOL.deviation(droid, samples * 200) is None
