"""One small recording written in every layout that ``relief3d mesh`` reads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from relief3d.core.contract import Camera, Scene, View
from relief3d.geometry.conventions import convert_world_from_cam
from relief3d.geometry.projection import intrinsics
from relief3d.geometry.transforms import look_at
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.colmap import write_colmap_model
from relief3d.io.depth import write_depth
from relief3d.io.trajectories import Trajectory, write_tum
from relief3d.io.transforms_json import write_transforms_json

FRAMES = 4


def recorded_cameras(size: tuple[int, int] = (64, 48), count: int = FRAMES) -> list[Camera]:
    """On an arc, looking inwards; principal point off the middle, focal lengths that differ."""
    K = intrinsics(1.1 * size[0], 1.05 * size[0], 0.48 * size[0], 0.53 * size[1])
    out = []
    for k in range(count):
        a = 0.3 * k
        eye = torch.tensor([2 * math.sin(a), -0.3 * k, -2 * math.cos(a)], dtype=torch.float64)
        up = torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)
        out.append(Camera(*size, K, look_at(eye, torch.zeros(3, dtype=torch.float64), up)))
    return out


def recorded_depth(k: int, size: tuple[int, int]) -> Tensor:
    """(h, w) metres, a slope that differs from frame to frame."""
    y, x = torch.meshgrid(torch.arange(size[1]) + 0.5, torch.arange(size[0]) + 0.5, indexing="ij")
    return (1.0 + 0.25 * k + x / size[0] + 0.5 * y / size[1]).float()


def picture(path: Path, k: int, size: tuple[int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(k)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def integers(path: Path, values: Tensor, per_metre: float) -> Path:
    """16-bit depth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((values * per_metre + 0.5).numpy().astype(np.uint16)).save(path)
    return path


def _size(cameras: list[Camera]) -> tuple[int, int]:
    return cameras[0].width, cameras[0].height


def _pose(camera: Camera) -> Tensor:
    assert camera.world_from_cam is not None
    return camera.world_from_cam


def _K(camera: Camera) -> Tensor:
    assert camera.K is not None
    return camera.K


def _rows(matrix: Tensor) -> str:
    return "\n".join(" ".join(repr(float(v)) for v in row) for row in matrix) + "\n"


def scene_of(root: Path, cameras: list[Camera]) -> Scene:
    views = []
    for k, camera in enumerate(cameras):
        path = picture(root / "images" / f"{k:03d}.png", k, _size(cameras))
        views.append(View(f"images/{k:03d}.png", camera, path=path))
    return Scene(tuple(views), metric=True, ordered=True)


def write_json_cameras(root: Path, cameras: list[Camera]) -> None:
    write_cameras_json(scene_of(root, cameras), root / "cameras.json")


def write_transforms(root: Path, cameras: list[Camera]) -> None:
    write_transforms_json(scene_of(root, cameras), root / "transforms.json")


def write_colmap(root: Path, cameras: list[Camera], binary: bool = True) -> None:
    scene = scene_of(root, cameras)
    named = tuple(v.replace(name=v.name.removeprefix("images/")) for v in scene.views)
    write_colmap_model(scene.replace(views=named), root / "sparse" / "0", binary=binary)


def write_colmap_text(root: Path, cameras: list[Camera]) -> None:
    write_colmap(root, cameras, binary=False)


def write_tum_sequence(root: Path, cameras: list[Camera], name: str = "rgbd_dataset_freiburg1_x") -> None:
    folder = root / name
    rgb, depth = ["# colour"], ["# depth"]
    for k in range(len(cameras)):
        time = 100.0 + k
        picture(folder / "rgb" / f"{time:.6f}.png", k, _size(cameras))
        rgb.append(f"{time:.6f} rgb/{time:.6f}.png")
        integers(folder / "depth" / f"{time + 0.01:.6f}.png", recorded_depth(k, _size(cameras)), 5000)
        depth.append(f"{time + 0.01:.6f} depth/{time + 0.01:.6f}.png")
    (folder / "rgb.txt").write_text("\n".join(rgb))
    (folder / "depth.txt").write_text("\n".join(depth))
    times = torch.arange(len(cameras), dtype=torch.float64) + 99.995
    write_tum(folder / "groundtruth.txt", Trajectory(torch.stack([_pose(c) for c in cameras]), times))


def write_scannet(root: Path, cameras: list[Camera]) -> None:
    for k, camera in enumerate(cameras):
        picture(root / "color" / f"{k}.png", k, _size(cameras))
        integers(root / "depth" / f"{k}.png", recorded_depth(k, _size(cameras)), 1000)
        (root / "pose").mkdir(exist_ok=True)
        (root / "pose" / f"{k}.txt").write_text(_rows(_pose(camera)))
    stored = torch.eye(4, dtype=torch.float64)
    stored[:3, :3] = _K(cameras[0])
    stored[:2, 2] -= 0.5
    (root / "intrinsic").mkdir()
    for which in ("color", "depth"):
        (root / "intrinsic" / f"intrinsic_{which}.txt").write_text(_rows(stored))


def write_seven_scenes(root: Path, cameras: list[Camera]) -> None:
    for k, camera in enumerate(cameras):
        picture(root / f"frame-{k:06d}.color.png", k, _size(cameras))
        integers(root / f"frame-{k:06d}.depth.png", recorded_depth(k, _size(cameras)), 1000)
        (root / f"frame-{k:06d}.pose.txt").write_text(_rows(_pose(camera)))


def write_tanks(root: Path, cameras: list[Camera]) -> None:
    lines = ""
    for k, camera in enumerate(cameras):
        picture(root / "Ignatius" / f"{k:06d}.png", k, _size(cameras))
        lines += f"{k} {k} 0\n{_rows(_pose(camera))}"
    (root / "Ignatius_COLMAP_SfM.log").write_text(lines)


def write_polycam(root: Path, cameras: list[Camera]) -> None:
    for k, camera in enumerate(cameras):
        folder = root / "keyframes"
        picture(folder / "images" / f"{1000 + k}.jpg", k, _size(cameras))
        integers(folder / "depth" / f"{1000 + k}.png", recorded_depth(k, (32, 24)), 1000)
        pose, K = convert_world_from_cam(_pose(camera), "opencv", "opengl"), _K(camera)
        values = {f"t_{i}{j}": float(pose[i, j]) for i in range(3) for j in range(4)}
        values |= {"fx": float(K[0, 0]), "fy": float(K[1, 1]), "cx": float(K[0, 2]), "cy": float(K[1, 2])}
        values |= {"width": camera.width, "height": camera.height}
        (folder / "cameras").mkdir(exist_ok=True)
        (folder / "cameras" / f"{1000 + k}.json").write_text(json.dumps(values))


def write_record3d(root: Path, cameras: list[Camera]) -> None:
    from relief3d.geometry.rotations import quat_wxyz_from_matrix

    poses = []
    for k, camera in enumerate(cameras):
        picture(root / "rgb" / f"{k}.jpg", k, _size(cameras))
        write_depth(root / "depth" / f"{k}.exr", recorded_depth(k, (32, 24)))
        pose = convert_world_from_cam(_pose(camera), "opencv", "opengl")
        quat = quat_wxyz_from_matrix(pose[:3, :3]).roll(-1)
        poses.append([*quat.tolist(), *pose[:3, 3].tolist()])
    K = _K(cameras[0]).mT.reshape(-1).tolist()
    document = {"K": K, "w": cameras[0].width, "h": cameras[0].height, "poses": poses}
    (root / "metadata.json").write_text(json.dumps(document))


def write_arkit(root: Path, cameras: list[Camera]) -> None:
    for k, camera in enumerate(cameras):
        picture(root / f"frame_{k:05d}.jpg", k, _size(cameras))
        integers(root / f"depth_{k:05d}.png", recorded_depth(k, (32, 24)), 1000)
        pose = convert_world_from_cam(_pose(camera), "opencv", "opengl")
        document = {
            "cameraPoseARFrame": pose.reshape(-1).tolist(),
            "intrinsics": _K(camera).reshape(-1).tolist(),
            "time": 5.0 + k,
        }
        (root / f"frame_{k:05d}.json").write_text(json.dumps(document))


WRITERS: dict[str, Callable[[Path, list[Camera]], None]] = {
    "cameras_json": write_json_cameras,
    "transforms_json": write_transforms,
    "colmap": write_colmap,
    "colmap_text": write_colmap_text,
    "tum": write_tum_sequence,
    "scannet": write_scannet,
    "7scenes": write_seven_scenes,
    "tanks": write_tanks,
    "polycam": write_polycam,
    "record3d": write_record3d,
    "arkit": write_arkit,
}
