"""BEDLAM2.0 from a tiny copy of its layout; Unreal's cameras by hand."""

import json

import numpy as np
import pytest
import torch

from corpora.video_layouts import check_video_rules, depth_map, frame_values, write_picture
from relief3d.core.errors import InputError
from relief3d.eval.protocols.registry import find_protocol
from relief3d.eval.protocols.views.bedlam2 import (
    read_bedlam2_cameras,
    read_world_depth,
    strided_subsequences,
    unreal_world_from_cam,
)
from relief3d.io.exr import write_exr

DEPTH, CAMERAS = find_protocol("bedlam2"), find_protocol("bedlam2_cameras")
CHANNEL = "FinalImageMovieRenderQueue_WorldDepth.R"
FRAMES = {("s1", "seq_000000"): 25, ("s1", "seq_000001"): 41, ("s2", "seq_000000"): 20}


def meta(i: int) -> dict[str, str]:
    numbers = {"curPos/x": 100.0 * i, "curPos/y": 20.0 * i, "curPos/z": 150.0, "curRot/pitch": 2.0 * i}
    numbers |= {"curRot/yaw": 3.0 * i, "curRot/roll": -1.0 * i}
    return {f"unreal/camera/{k}": str(v) for k, v in numbers.items()}


@pytest.fixture
def bedlam2(tmp_path):
    pytest.importorskip("OpenEXR")
    for k, ((session, sequence), count) in enumerate(FRAMES.items()):
        base = tmp_path / session
        chosen = set(np.linspace(0, count - 1, max(1, count // 10)).astype(int).tolist())
        for i in range(count):
            stem = f"{sequence}/{sequence}_{i:04d}"
            write_picture(base / f"png/{session}/png/{stem}.png", i)
            truth = base / f"groundtruth/{session}/ground_truth/meta_exr_depth/{stem}_meta.json"
            truth.parent.mkdir(parents=True, exist_ok=True)
            truth.write_text(json.dumps(meta(i)))
            exr = base / f"depth/{session}/exr_depth/{stem}.exr"
            exr.parent.mkdir(parents=True, exist_ok=True)
            if i in chosen:
                colour = np.full((12, 16), 0.5, np.float32)
                values = depth_map(k + i) * 100
                values[5, 5] = 65504.0
                write_exr(exr, {CHANNEL: values, "R": colour, "G": colour, "B": colour})
            else:
                exr.touch()  # must not be opened
    return tmp_path


def test_depth_in_metres_of_every_tenth_frame(bedlam2):
    samples = DEPTH.open(bedlam2)
    assert [s.name for s in samples] == [f"{a}/{b}" for a, b in FRAMES]
    assert frame_values(samples[1]) == [0, 13, 26, 40]
    truth = samples[1].load_truth().tensors
    expected = depth_map(14)
    expected[5, 5] = 0
    np.testing.assert_allclose(truth["depth"][1], expected, rtol=1e-6)
    assert truth["valid"][:, 3].all() and not truth["valid"][:, 5, 5].any()


def test_own_mask_has_no_limit_and_no_clip(bedlam2):
    check_video_rules(DEPTH, DEPTH.open(bedlam2), None, None, [(70.0, None), (None, 70.0)])


def test_the_list_of_test_sequences_is_followed(bedlam2):
    (bedlam2 / "test_sequences.json").write_text(json.dumps({"s1": ["seq_000001"]}))
    assert [s.name for s in DEPTH.open(bedlam2)] == ["s1/seq_000001"]
    (bedlam2 / "test_sequences.json").write_text(json.dumps({"s3": ["seq_000001"]}))
    with pytest.raises(InputError, match=r"named in test_sequences\.json"):
        CAMERAS.open(bedlam2)


def test_sparse_cameras_and_strided_subsequences(bedlam2):
    samples = CAMERAS.open(bedlam2)
    assert [len(s.load_query().scene) for s in samples] == [2, 4, 2]
    poses = samples[1].load_truth().tensors["world_from_cam"]
    torch.testing.assert_close(poses[2], unreal_world_from_cam(meta(26), bedlam2))
    strided = read_bedlam2_cameras(bedlam2, stride=12, subsequences=3)
    assert [(s.name, s.chosen) for s in strided[:3]] == [
        ("s1/seq_000000/from0000", (0, 12, 24)),
        ("s1/seq_000001/from0000", (0, 12, 24, 36)),
        ("s1/seq_000001/from0006", (6, 18, 30)),
    ]
    assert {s.group for s in strided} == {"s1/seq_000000", "s1/seq_000001"}


def test_strided_subsequences():
    assert strided_subsequences(10, 3, 2) == [(0, 3, 6, 9), (2, 5, 8)]
    assert strided_subsequences(10, 3, 9) == [(0, 3, 6, 9), (1, 4, 7), (2, 5, 8)]
    assert strided_subsequences(4, 2, 2) == [] and strided_subsequences(3, 1, 5) == [(0, 1, 2)]
    with pytest.raises(InputError):
        strided_subsequences(10, 0, 1)


def camera(pitch=0.0, yaw=0.0, roll=0.0, x=0.0, y=0.0, z=0.0, path="m.json"):
    numbers = {"curPos/x": x, "curPos/y": y, "curPos/z": z}
    numbers |= {"curRot/pitch": pitch, "curRot/yaw": yaw, "curRot/roll": roll}
    return unreal_world_from_cam({f"unreal/camera/{k}": v for k, v in numbers.items()}, path)


def test_cameras_of_unreal_by_hand():
    torch.testing.assert_close(camera(), torch.eye(4, dtype=torch.float64))
    # Forward, right and up of Unreal are z, x and -y of the world here, in metres.
    torch.testing.assert_close(
        camera(x=300, y=100, z=50)[:3, 3], torch.tensor([1, -0.5, 3], dtype=torch.float64)
    )
    ahead = torch.tensor([0, 0, 1.0], dtype=torch.float64)
    right, down = torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 1.0, 0]).double()
    turned = camera(yaw=90)[:3, :3]
    torch.testing.assert_close(turned @ ahead, right)  # yaw turns to the right
    raised = camera(pitch=90)[:3, :3]
    torch.testing.assert_close(raised @ ahead, -down)  # pitch lifts
    torch.testing.assert_close(raised @ right, right)
    rolled = camera(roll=90)[:3, :3]
    torch.testing.assert_close(rolled @ ahead, ahead)
    torch.testing.assert_close(rolled @ right, down)  # roll lowers the right side
    both = camera(pitch=20, yaw=30, roll=10)[:3, :3]
    torch.testing.assert_close(both @ both.T, torch.eye(3, dtype=torch.float64))
    assert float(torch.det(both)) == pytest.approx(1)
    # Yaw acts in the world, then pitch, then roll in the camera.
    parts = [camera(yaw=30), camera(pitch=20), camera(roll=10)]
    torch.testing.assert_close(both, (parts[0] @ parts[1] @ parts[2])[:3, :3])


def test_damaged_files_are_named(bedlam2, tmp_path):
    with pytest.raises(InputError, match="curRot/roll"):
        unreal_world_from_cam({k: v for k, v in meta(1).items() if "roll" not in k}, "m.json")
    with pytest.raises(InputError, match="not finite"):
        camera(yaw=float("nan"))
    picture = {k: np.ones((4, 4), np.float32) for k in "RGB"}
    write_exr(tmp_path / "picture.exr", picture)
    with pytest.raises(InputError, match="no depth channel, only B, G, R"):
        read_world_depth(tmp_path / "picture.exr")
    (bedlam2 / "s1/depth/s1/exr_depth/seq_000000/seq_000000_0003.exr").unlink()
    with pytest.raises(InputError, match=r"0003\.exr.*depth map is missing"):
        DEPTH.open(bedlam2)
    (bedlam2 / "s1/groundtruth/s1/ground_truth/meta_exr_depth/seq_000000/seq_000000_0003_meta.json").unlink()
    with pytest.raises(InputError, match=r"0003_meta\.json.*camera file is missing"):
        CAMERAS.open(bedlam2)
    with pytest.raises(InputError, match="picture archives"):
        DEPTH.open(bedlam2 / "s1")
