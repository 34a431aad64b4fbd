"""The same recording in every layout gives the same cameras, and sensor depth lands on the right pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from corpora.recordings import (
    FRAMES,
    WRITERS,
    recorded_cameras,
    recorded_depth,
    write_polycam,
    write_scannet,
    write_seven_scenes,
    write_tanks,
    write_tum_sequence,
)
from relief3d.core.errors import InputError
from relief3d.pipelines.mesh.config import MeshConfig
from relief3d.pipelines.mesh.inputs import read_recording
from relief3d.pipelines.mesh.layouts import find_layout

SIZE = (64, 48)
OWN_LENS = ("tum", "7scenes")
"""Layouts whose intrinsics are those of the published camera."""


def written(tmp_path: Path, name: str, size: tuple[int, int] = SIZE) -> Path:
    WRITERS[name](tmp_path, recorded_cameras((640, 480) if name in OWN_LENS else size))
    return tmp_path / "rgbd_dataset_freiburg1_x" if name == "tum" else tmp_path


def numbers(K: Tensor) -> str:
    return ",".join(repr(float(v)) for v in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_layout_gives_the_same_cameras(tmp_path: Path, name: str) -> None:
    root = written(tmp_path, name)
    truth = recorded_cameras((640, 480) if name in OWN_LENS else SIZE)
    given = MeshConfig(intrinsics=numbers(truth[0].K)) if name == "tanks" else MeshConfig()
    scene = read_recording(root, given)
    assert len(scene) == FRAMES
    assert scene.metric == (name not in ("tanks", "colmap", "colmap_text"))
    layout = find_layout(root)
    assert (layout.name if layout else None) == (None if "_" in name or name == "colmap" else name)
    for view, camera in zip(scene.views, truth, strict=True):
        assert torch.allclose(view.camera.world_from_cam, camera.world_from_cam, atol=1e-5)
        if name not in OWN_LENS:
            assert torch.allclose(view.camera.K, camera.K, atol=1e-4)
        assert tuple(view.load_image().shape) == (3, camera.height, camera.width)


def test_published_lenses(tmp_path: Path) -> None:
    """Principal points of TUM count from pixel centres; those of 7-Scenes are the middle of the picture."""
    camera = read_recording(written(tmp_path / "a", "tum"), MeshConfig()).views[0].camera
    assert torch.allclose(camera.K[:2, 2], torch.tensor([319.1, 255.8], dtype=torch.float64))
    assert camera.distortion is not None and camera.distortion.params[0] == 0.2624
    camera = read_recording(written(tmp_path / "b", "7scenes"), MeshConfig()).views[0].camera
    assert torch.allclose(camera.K[[0, 0, 1], [0, 2, 2]], torch.tensor([525.0, 320, 240]).double())


@pytest.mark.parametrize("name", ["tum", "scannet", "polycam", "record3d", "arkit"])
def test_sensor_depth_is_in_metres(tmp_path: Path, name: str) -> None:
    scene = read_recording(written(tmp_path, name), MeshConfig())
    for k, view in enumerate(scene.views):
        depth = view.load_depth()
        assert depth is not None and depth.metric
        size = (view.camera.width, view.camera.height)
        assert tuple(depth.values.shape) == size[::-1] and bool(depth.valid.all())
        # Half as many pixels hold the depth of the nearest one.
        assert float((depth.values - recorded_depth(k, size)).abs().max()) < 0.03


def test_seven_scenes_depth_has_its_own_focal_length_and_holes(tmp_path: Path) -> None:
    write_seven_scenes(tmp_path, recorded_cameras((640, 480)))
    from PIL import Image

    values = np.full((480, 640), 65535, np.uint16)
    values[:, 320 + 58 : 320 + 60] = 2000  # 59 pixels right of the middle at 585 are 53 at 525
    Image.fromarray(values).save(tmp_path / "frame-000000.depth.png")
    depth = read_recording(tmp_path, MeshConfig()).views[0].load_depth()
    assert depth is not None
    columns = torch.nonzero(depth.valid[240])[:, 0]
    assert columns.min() >= 371 and columns.max() <= 374 and len(columns) >= 1
    assert torch.all(depth.values[depth.valid] == 2.0)


def test_lost_tracking_keeps_its_place(tmp_path: Path) -> None:
    write_scannet(tmp_path, recorded_cameras(SIZE))
    (tmp_path / "pose" / "2.txt").write_text("-inf " * 16)
    scene = read_recording(tmp_path, MeshConfig())
    assert [v.camera.world_from_cam is None for v in scene.views] == [False, False, True, False]


def test_poses_and_pictures_of_different_number(tmp_path: Path) -> None:
    cameras = recorded_cameras(SIZE)
    write_tanks(tmp_path / "a", cameras)
    (tmp_path / "a" / "Ignatius" / "000003.png").unlink()
    with pytest.raises(InputError, match="4 poses, but there are 3 pictures"):
        read_recording(tmp_path / "a", MeshConfig())
    write_scannet(tmp_path / "b", cameras)
    (tmp_path / "b" / "color" / "3.png").unlink()
    with pytest.raises(InputError, match="4 poses, but there are 3 pictures"):
        read_recording(tmp_path / "b", MeshConfig())
    write_polycam(tmp_path / "c", cameras)
    (tmp_path / "c" / "keyframes" / "cameras" / "1002.json").unlink()
    with pytest.raises(InputError, match="3 cameras, but there are 4 pictures"):
        read_recording(tmp_path / "c", MeshConfig())


def test_missing_intrinsics_are_asked_for(tmp_path: Path) -> None:
    write_tanks(tmp_path / "a", recorded_cameras(SIZE))
    with pytest.raises(InputError, match="intrinsics") as error:
        read_recording(tmp_path / "a", MeshConfig())
    assert "--intrinsics" in str(error.value)
    write_tum_sequence(tmp_path / "b", recorded_cameras(SIZE), "my_own_camera")
    with pytest.raises(InputError, match="4 of 4 posed pictures have no intrinsics"):
        read_recording(tmp_path / "b" / "my_own_camera", MeshConfig())


def test_a_trajectory_beside_pictures(tmp_path: Path) -> None:
    cameras = recorded_cameras(SIZE)
    write_tanks(tmp_path, cameras)
    given = MeshConfig(
        layout="files",
        trajectory=tmp_path / "Ignatius_COLMAP_SfM.log",
        intrinsics=numbers(cameras[0].K),
        metres_per_unit=2.0,
    )
    scene = read_recording(tmp_path / "Ignatius", given)
    assert scene.metric
    assert torch.allclose(scene.views[3].camera.centre, 2 * cameras[3].centre)
    (tmp_path / "Ignatius" / "000000.png").unlink()
    with pytest.raises(InputError, match="4 poses, but there are 3 pictures"):
        read_recording(tmp_path / "Ignatius", given)


@pytest.mark.parametrize("reading", ["opengl", "inverse", "inverse-opengl"])
def test_other_conventions_can_be_named(tmp_path: Path, reading: str) -> None:
    from relief3d.geometry.conventions import convert_world_from_cam
    from relief3d.geometry.transforms import invert_rigid

    truth = recorded_cameras(SIZE)
    wrong = []
    for camera in truth:
        pose = camera.world_from_cam
        pose = convert_world_from_cam(pose, "opencv", "opengl") if "opengl" in reading else pose
        wrong.append(camera.replace(world_from_cam=invert_rigid(pose) if "inverse" in reading else pose))
    WRITERS["cameras_json"](tmp_path, wrong)
    scene = read_recording(tmp_path, MeshConfig(poses=reading))
    for view, camera in zip(scene.views, truth, strict=True):
        assert torch.allclose(view.camera.world_from_cam, camera.world_from_cam, atol=1e-8)


def test_a_layout_that_is_not_there(tmp_path: Path) -> None:
    write_tanks(tmp_path, recorded_cameras(SIZE))
    with pytest.raises(InputError, match="not laid out as TUM"):
        read_recording(tmp_path, MeshConfig(layout="tum"))
    with pytest.raises(InputError, match="unknown layout"):
        read_recording(tmp_path, MeshConfig(layout="kitti"))
