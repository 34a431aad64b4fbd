"""A tiny copy of the DL3DV-benchmark layout."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from corpora.evaluation import measure_samples, truthful
from corpora.video_layouts import byte
from relief3d.core.contract import Distortion
from relief3d.core.errors import InputError
from relief3d.eval.protocols.views.dl3dv import PROTOCOLS
from relief3d.eval.protocols.views.nview_rules import choose_contiguous, to_world
from relief3d.geometry.distortion import project_distorted
from relief3d.geometry.transforms import invert_rigid

(PROTOCOL,) = PROTOCOLS
FULL = (48, 32)  # (width, height) in transforms.json
SMALL = (12, 8)  # images_4
LENS = {"k1": -0.05, "k2": 0.01, "p1": 0.0, "p2": 0.0}


def opengl_pose(index: int) -> np.ndarray:
    """Camera at (index, 0, 2) looking along -y of the file's world, up along its z."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # columns: right, up, back
    pose[:3, 3] = (index, 0.0, 2.0)
    return pose


def write_scene(
    root, name: str, frames: int = 10, depth: bool = True, ending: str = ".npy", folder="images_4"
):
    base = root / name / "nerfstudio"
    (base / folder).mkdir(parents=True)
    entries = []
    for i in reversed(range(1, frames + 1)):  # not in order of time, as in the release
        stem = f"frame_{i:05d}"
        entries.append({"file_path": f"images/{stem}.png", "transform_matrix": opengl_pose(i).tolist()})
        pixels = np.full((SMALL[1], SMALL[0], 3), i, dtype=np.uint8)
        Image.fromarray(pixels).save(base / folder / f"{stem}.png")
        if depth:
            (root / name / "depth").mkdir(exist_ok=True)
            values = np.full((SMALL[1], SMALL[0]), i + 0.5, dtype=np.float32)
            values[0, 0] = 0
            if ending == ".png":
                Image.fromarray((values * 1000).astype(np.uint16)).save(root / name / "depth" / f"{stem}.png")
            else:
                np.save(root / name / "depth" / f"{stem}.npy", values)
    camera = {
        "camera_model": "OPENCV",
        "w": FULL[0],
        "h": FULL[1],
        "fl_x": 40.0,
        "fl_y": 44.0,
        "cx": 24.0,
        "cy": 17.0,
    }
    (base / "transforms.json").write_text(json.dumps(camera | LENS | {"frames": entries}))
    return base


def test_frames_cameras_and_depth(tmp_path):
    write_scene(tmp_path, "aaa")
    write_scene(tmp_path, "bbb", frames=8, ending=".png")
    samples = PROTOCOL.open(tmp_path)
    assert [s.name for s in samples] == ["aaa", "bbb"]
    query, truth = samples[0].load_query(), samples[0].load_truth()
    start = choose_contiguous(8)("aaa", 10)[0]
    numbers = [start + 1 + i for i in range(8)]
    assert [v.name for v in query.scene.views] == [f"frame_{i:05d}.png" for i in numbers]
    assert [byte(v, 0, 0) for v in query.scene.views] == numbers
    # Intrinsics of the small picture; nerfstudio counts pixel centres at +0.5 already.
    expected = torch.tensor([[10.0, 0, 6.0], [0, 11.0, 4.25], [0, 0, 1]], dtype=torch.float64)
    for view, i, pose, depth in zip(
        query.scene.views, numbers, truth.tensors["world_from_cam"], truth.tensors["depth"]
    ):
        assert torch.allclose(view.camera.K, expected) and view.camera.world_from_cam is None
        assert (view.camera.width, view.camera.height) == SMALL
        assert pose[:3, 3].tolist() == [i, 0.0, 2.0]
        assert torch.allclose(pose[:3, 2], torch.tensor([0.0, 1.0, 0.0]).double())  # looks along +y
        assert torch.allclose(pose[:3, 1], torch.tensor([0.0, 0.0, -1.0]).double())  # down
        assert depth[0, 0] == 0 and float(depth[3, 3]) == pytest.approx(i + 0.5)
    assert not truth.tensors["valid"][:, 0, 0].any() and bool(truth.tensors["valid"][:, 1:].all())
    assert float(samples[1].load_truth().tensors["depth"][0, 1, 1]) == pytest.approx(1.5)


def test_true_points_follow_the_lens(tmp_path):
    write_scene(tmp_path, "aaa")
    truth = PROTOCOL.open(tmp_path)[0].load_truth().tensors
    local = to_world(truth["world_points"], invert_rigid(truth["world_from_cam"]))
    lens = Distortion("opencv", (LENS["k1"], LENS["k2"], LENS["p1"], LENS["p2"]))
    xy, z = project_distorted(local[:, 7, 11], truth["K"][0], lens)
    assert torch.allclose(xy, torch.tensor([11.5, 7.5]).double().expand(8, 2), atol=1e-6)
    assert torch.allclose(z, truth["depth"][:, 7, 11].double())
    pinhole, _ = project_distorted(local[:, 7, 11], truth["K"][0], None)
    assert (pinhole - xy).abs().max() > 0.01


def test_truth_scores_perfectly_on_files(tmp_path):
    write_scene(tmp_path, "aaa")
    summary = PROTOCOL.summarise(measure_samples(PROTOCOL, PROTOCOL.open(tmp_path), truthful))
    assert summary["pm_rel"] < 1e-9 and summary["auc_30"] == 100 and summary["pm_tau"] == 1


def test_depth_of_another_size_is_taken_at_the_nearest_pixel(tmp_path):
    write_scene(tmp_path, "aaa")
    for file in (tmp_path / "aaa" / "depth").iterdir():
        np.save(file, np.arange(16 * 24, dtype=np.float32).reshape(16, 24) + 1)
    depth = PROTOCOL.open(tmp_path)[0].load_truth().tensors["depth"][0]
    assert depth.shape == (8, 12) and float(depth[0, 0]) == 1 + 24 + 1  # centre of the 2 x 2 block
    np.save(tmp_path / "aaa" / "depth" / "frame_00004.npy", np.ones((8, 8), dtype=np.float32))
    with pytest.raises(InputError, match="8 x 8 pixels"):
        PROTOCOL.open(tmp_path)[0].load_truth()


def test_scenes_without_the_nerfstudio_folder(tmp_path):
    base = write_scene(tmp_path, "aaa", folder="images_8")
    for entry in list(base.iterdir()):
        entry.rename(tmp_path / "aaa" / entry.name)
    base.rmdir()
    sample = PROTOCOL.open(tmp_path)[0]
    assert len(sample.load_query().scene) == 8 and sample.load_truth().tensors["depth"].shape == (8, 8, 12)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="does not look like the DL3DV benchmark"):
        PROTOCOL.open(tmp_path)
    write_scene(tmp_path, "aaa")
    write_scene(tmp_path, "bbb", depth=False)
    with pytest.raises(
        InputError, match=r"1 of 2 scenes have no folder 'depth' \(the first is bbb\)"
    ) as caught:
        PROTOCOL.open(tmp_path)
    assert "map-anything" in caught.value.remedy
    write_scene(tmp_path / "other", "ccc", folder="pictures")
    with pytest.raises(InputError, match="none of the picture folders images_4"):
        PROTOCOL.open(tmp_path / "other")
    write_scene(tmp_path / "third", "ddd", frames=7)
    with pytest.raises(InputError, match="7 frames, 8 are needed"):
        PROTOCOL.open(tmp_path / "third")
    base = write_scene(tmp_path / "fourth", "eee", frames=8)
    (tmp_path / "fourth" / "eee" / "depth" / "frame_00003.npy").unlink()
    with pytest.raises(InputError, match="depth map is missing"):
        PROTOCOL.open(tmp_path / "fourth")[0].load_truth()
    (base / "images_4" / "frame_00003.png").unlink()
    with pytest.raises(InputError, match="missing"):
        PROTOCOL.open(tmp_path / "fourth")[0].load_query()


def test_published_rows():
    rows = {(r.method, r.source): r.values for r in PROTOCOL.published()}
    assert len(rows) == 9 + 3 + 4
    assert rows["VGGT", "Reliev3R, Table 1"]["auc_30"] == 94.795
    assert rows["RayZer", "Reliev3R, Table 3"] == {"ate": 0.786, "auc_30": 0.362}
    assert rows["Reliev3R, alpha 0.2", "Reliev3R, Table 4"]["d_tau"] == 0.606
