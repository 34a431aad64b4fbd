"""KITTI as videos from tiny copies of both layouts."""

import numpy as np
import pytest

from corpora.video_layouts import check_video_rules, depth_map, frame_values, write_picture, write_png16
from relief3d.core.errors import InputError
from relief3d.eval.protocols.registry import find_protocol

PROTOCOL = find_protocol("kitti_video")
DRIVES = ("2011_09_26_drive_0002_sync_02", "2011_09_26_drive_0005_sync_02", "2011_10_03_drive_0047_sync_02")


@pytest.fixture
def gathered(tmp_path):
    base = tmp_path / "depth_selection/val_selection_cropped"
    for k, drive in enumerate(DRIVES):
        for i in range(3 + k):
            write_picture(base / f"image_gathered/{drive}/{i + 5:010d}.png", 9 * i)
            write_png16(base / f"groundtruth_depth_gathered/{drive}/{i + 5:010d}.png", depth_map(i + k) * 256)
    return tmp_path


def test_gathered_drives(gathered):
    for root in (gathered, gathered / "depth_selection", gathered / "depth_selection/val_selection_cropped"):
        samples = PROTOCOL.open(root)
        assert [s.name for s in samples] == list(DRIVES)
    assert frame_values(samples[1]) == [0, 9, 18, 27]
    truth = samples[1].load_truth().tensors
    np.testing.assert_allclose(truth["depth"][2], depth_map(3), atol=1 / 256)
    assert truth["valid"][:, 3].all()  # 80 m count: there is no largest depth


def test_own_mask_has_no_limit_and_no_clip(gathered):
    check_video_rules(
        PROTOCOL, PROTOCOL.open(gathered), None, None, [(70.0, None), (None, 70.0), (70.0, 70.0)]
    )


def test_plain_selection_is_grouped_by_drive(tmp_path):
    base = tmp_path / "val_selection_cropped"
    for drive, number in (
        ("2011_09_26_drive_0002_sync", 20),
        ("2011_09_26_drive_0002_sync", 8),
        ("d_sync", 3),
    ):
        write_picture(base / f"image/{drive}_image_{number:010d}_image_02.png", number)
        depth = base / f"groundtruth_depth/{drive}_groundtruth_depth_{number:010d}_image_02.png"
        write_png16(depth, depth_map(number) * 256)
    samples = PROTOCOL.open(tmp_path)
    assert [s.name for s in samples] == ["2011_09_26_drive_0002_sync_02", "d_sync_02"]
    assert frame_values(samples[0]) == [8, 20]
    depth.unlink()
    with pytest.raises(InputError, match="depth map is missing"):
        PROTOCOL.open(tmp_path)


def test_frames_are_paired_by_name_where_numbers_differ(gathered):
    base = gathered / "depth_selection/val_selection_cropped/image_gathered" / DRIVES[0]
    write_picture(base / "0000000001.png", 200)
    samples = PROTOCOL.open(gathered)
    assert frame_values(samples[0]) == [0, 9, 18]
    for i in range(3):
        (base / f"{i + 5:010d}.png").rename(base / f"x{i}.png")
    with pytest.raises(InputError, match="3 depth maps for 4 pictures"):
        PROTOCOL.open(gathered)


def test_other_layouts_are_refused(tmp_path):
    with pytest.raises(InputError, match="KITTI's depth selection"):
        PROTOCOL.open(tmp_path)
    (tmp_path / "val_selection_cropped/image_gathered").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no drives"):
        PROTOCOL.open(tmp_path)


def test_the_sparse_selection_is_not_the_benchmark(gathered, tmp_path_factory):
    assert PROTOCOL.deviation(gathered, PROTOCOL.open(gathered)) is None
    plain = tmp_path_factory.mktemp("plain")
    (plain / "image").mkdir()
    assert "sparse selection" in PROTOCOL.deviation(plain, [])
