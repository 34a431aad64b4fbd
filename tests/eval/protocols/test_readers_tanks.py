"""The evaluation data of Tanks and Temples on tiny copies."""

import pytest
import torch

from corpora.scans import log_text, pose, wall, write_color, write_tanks
from relief3d.core.contract import Camera, Scene, View
from relief3d.core.errors import InputError
from relief3d.eval.protocols.surfaces.readers_tanks import (
    TAU,
    find_scenes,
    read_log,
    read_mapping,
    reference_poses,
    scene_mapping,
    scene_scan,
    scene_transform,
    tanks_pictures,
)
from relief3d.io.colmap import write_colmap_model

POSES = [pose(), pose(0.3), pose(0.0, 0.3, degrees=10.0), pose(0.3, 0.3, 0.1)]


@pytest.fixture
def data(tmp_path):
    trans = torch.eye(4)
    trans[:3, :3] *= 2.0
    write_tanks(tmp_path, "Truck", POSES, trans, wall().vertices)
    return tmp_path


def test_official_thresholds():
    assert TAU == {
        "Barn": 0.01, "Caterpillar": 0.005, "Church": 0.025, "Courthouse": 0.025, "Ignatius": 0.003,
        "Meetingroom": 0.01, "Truck": 0.005,
    }  # fmt: skip


def test_scene_files(data):
    (scene,) = find_scenes(data)
    pictures = tanks_pictures(scene)
    assert [v.name for v in pictures.views] == [f"{i:06d}.jpg" for i in (1, 2, 3, 4)] and not pictures.metric
    assert torch.allclose(torch.stack([v.camera.world_from_cam for v in pictures.views]), torch.stack(POSES))
    assert pictures.views[0].camera.K is None and tuple(pictures.views[0].load_image().shape) == (3, 24, 32)
    assert torch.allclose(reference_poses(scene), torch.stack(POSES), atol=1e-10)
    assert scene_transform(scene)[0, 0] == 2.0 and scene_mapping(scene) is None
    scan, crop = scene_scan(scene)
    assert scan.shape == (441, 3) and crop.axis == "Z" and crop.axis_max == 3.0


def test_intrinsics_come_from_a_colmap_model(data):
    K = torch.tensor([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]], dtype=torch.float64)
    views = tuple(View(f"{i + 1:06d}.jpg", Camera(32, 24, K, p)) for i, p in enumerate(POSES))
    write_colmap_model(Scene(views), data / "Truck" / "sparse" / "0")
    (scene,) = find_scenes(data)
    camera = tanks_pictures(scene).views[2].camera
    assert torch.allclose(camera.K, K) and torch.allclose(camera.world_from_cam, POSES[2])


def test_pictures_may_lie_beside_or_in_image_sets(data):
    for i in range(4):
        (data / "Truck" / "images" / f"{i + 1:06d}.jpg").unlink()
    with pytest.raises(InputError, match="no pictures"):
        find_scenes(data)
    for i in range(4):
        write_color(data / "image_sets" / "Truck" / f"{i:06d}.jpg", 8, 6)
    (scene,) = find_scenes(data)
    assert scene.images == data / "image_sets" / "Truck"
    write_color(data / "image_sets" / "Truck" / "9.jpg", 8, 6)
    with pytest.raises(InputError, match="5 pictures for 4"):
        tanks_pictures(scene)


def test_trajectory_and_mapping_files(tmp_path):
    path = tmp_path / "a.log"
    path.write_text(log_text(POSES) + "\n")
    assert torch.allclose(read_log(path), torch.stack(POSES), atol=1e-10)
    path.write_text("0 0 0\n1 0 0 0\n")
    with pytest.raises(InputError, match="five per camera"):
        read_log(path)
    path.write_text(log_text(POSES).replace("1 1 0", "1 x 0"))
    with pytest.raises(InputError, match="line 6"):
        read_log(path)
    path.write_text(log_text([2 * POSES[0]]))
    with pytest.raises(InputError, match="line 1: the pose"):
        read_log(path)
    mapping = tmp_path / "m.txt"
    mapping.write_text("3\n200\n1 1\n2 101\n3 200\n")
    assert read_mapping(mapping).tolist() == [0, 100, 199]
    mapping.write_text("3\n200\n1 1\n2 101\n3 201\n")
    with pytest.raises(InputError, match="outside"):
        read_mapping(mapping)
    mapping.write_text("3\n200\n1 1\n")
    with pytest.raises(InputError, match="pair"):
        read_mapping(mapping)


def test_what_is_missing_is_named(tmp_path, data):
    with pytest.raises(InputError, match="training scenes"):
        find_scenes(data / "Truck")
    with pytest.raises(InputError, match="not a folder"):
        find_scenes(tmp_path / "x")
    (data / "Truck" / "Truck_trans.txt").write_text("0 " * 16)
    with pytest.raises(InputError, match="similarity"):
        scene_transform(find_scenes(data)[0])
    (data / "Truck" / "Truck.json").unlink()
    with pytest.raises(InputError, match=r"Truck\.json"):
        find_scenes(data)
