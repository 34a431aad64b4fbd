"""Known points through known cameras and every reader and writer: the pixels must not move.

Each channel writes with our writer and reads twice: with our reader, and with a foreign program or a
few lines here that follow the format's own documentation. The projection is the naive one of
``tests.corpora.known_scene``, not relief3d's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.corpora.known_scene import (
    FISHEYE_LENSES,
    PERSPECTIVE_LENSES,
    RATIONAL_LENS,
    Array,
    known_points,
    known_scene,
    project,
    project_camera,
    rotation,
)

from relief3d.core.contract import Distortion, Mesh, PointCloud, Scene
from relief3d.geometry.conventions import world_up_rotation
from relief3d.io.cameras_json import read_cameras_json, write_cameras_json
from relief3d.io.colmap import read_colmap_model, write_colmap_model
from relief3d.io.glb import read_glb, write_glb
from relief3d.io.ply import read_ply, write_ply
from relief3d.io.scene_json import read_scene_json, write_scene_json
from relief3d.io.splat import read_splat_ply, write_splat_ply
from relief3d.io.trajectories import read_kitti, read_tum, scene_trajectory, write_kitti, write_tum
from relief3d.io.transforms_json import read_transforms_json, write_transforms_json

PIXELS = 1e-3
ALL_LENSES = (*PERSPECTIVE_LENSES, RATIONAL_LENS, *FISHEYE_LENSES)

Reading = tuple[str, list[Array]]
"""What read it, and the pixels of the points in every view."""


def ours(scene: Scene, xyz: Array | None = None) -> list[Array]:
    points = known_points() if xyz is None else xyz
    return [project_camera(points, view.camera) for view in scene.views]


def via_cameras_json(scene: Scene, folder: Path) -> Iterator[Reading]:
    path = write_cameras_json(scene, folder)
    yield "our reader", ours(read_cameras_json(path, require_images=False))
    foreign = []
    for frame, view in zip(json.loads(path.read_text())["frames"], scene.views):
        pixels = project(
            known_points(), np.array(frame["K"]), np.array(frame["T_cam_to_world"]), view.camera.distortion
        )
        foreign.append(pixels + 0.5)  # the file's pixel centres lie at integers
    yield "documentation", foreign


def via_scene_json(scene: Scene, folder: Path) -> Iterator[Reading]:
    yield "our reader", ours(read_scene_json(write_scene_json(folder, scene)).scene)


def via_transforms_json(scene: Scene, folder: Path) -> Iterator[Reading]:
    path = write_transforms_json(scene, folder)
    yield "our reader", ours(read_transforms_json(path, require_images=False))
    document = json.loads(path.read_text())
    foreign = []
    for frame in document["frames"]:
        value = document | frame
        K = np.array([[value["fl_x"], 0, value["cx"]], [0, value["fl_y"], value["cy"]], [0, 0, 1]])
        pose = np.array(frame["transform_matrix"])
        pose[:3, 1:3] *= -1  # OpenGL camera: y up, z backward
        k1, k2, k3, k4, p1, p2 = (value.get(key, 0.0) for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
        fisheye = value["camera_model"] == "OPENCV_FISHEYE"
        lens = (
            Distortion("fisheye", (k1, k2, k3, k4)) if fisheye else Distortion("opencv", (k1, k2, p1, p2, k3))
        )
        foreign.append(project(known_points(), K, pose, lens))
    yield "documentation", foreign


def via_applied_transform(scene: Scene, folder: Path) -> Iterator[Reading]:
    """A file as nerfstudio's converter makes it: the whole world turned and scaled, points with it."""
    path = write_transforms_json(scene, folder, ply_file_path="points.ply")
    document = json.loads(path.read_text())
    A = np.array([[1.0, 0, 0, 0.3], [0, 0, 1, -0.2], [0, -1, 0, 0.1]])
    scale = 0.25
    for frame in document["frames"]:
        pose = np.array(frame["transform_matrix"])
        pose = np.vstack([A, [0, 0, 0, 1]]) @ pose
        pose[:3, 3] *= scale
        frame["transform_matrix"] = pose.tolist()
    document |= {"applied_transform": A.tolist(), "applied_scale": scale}
    path.write_text(json.dumps(document))
    moved = scale * (known_points() @ A[:, :3].T + A[:, 3])
    write_ply(folder / "points.ply", PointCloud(torch.from_numpy(moved).to(torch.float32)))
    again = read_transforms_json(path, require_images=False)
    yield "our reader, cameras", ours(again)
    assert again.points is not None
    yield "our reader, points", ours(scene, again.points.xyz.to(torch.float64).numpy())


def via_colmap(scene: Scene, folder: Path, *, binary: bool) -> Iterator[Reading]:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed (extra sfm)")
    write_colmap_model(scene, folder / "sparse", binary=binary)
    again = read_colmap_model(folder / "sparse")
    assert again.sparse is not None and scene.sparse is not None
    yield "our reader, cameras", ours(again)
    yield "our reader, points", ours(scene, again.sparse.xyz.numpy())
    stored = [again.sparse.obs_xy[again.sparse.obs_view == i].numpy() for i in range(len(scene))]
    yield "our reader, observations", stored
    model = pycolmap.Reconstruction(str(folder / "sparse"))
    by_name = {image.name: image for image in model.images.values()}
    foreign, errors = [], []
    for view in scene.views:
        image = by_name[view.name]
        camera = model.cameras[image.camera_id]
        foreign.append(np.array([camera.img_from_cam(image.cam_from_world() * p) for p in known_points()]))
        errors += [
            np.linalg.norm(
                camera.img_from_cam(image.cam_from_world() * model.points3D[o.point3D_id].xyz) - o.xy
            )
            for o in image.points2D
        ]
    yield "pycolmap", foreign
    assert len(errors) == len(scene.sparse.obs_xy) and max(errors) < PIXELS


def via_colmap_text(scene: Scene, folder: Path) -> Iterator[Reading]:
    yield from via_colmap(scene, folder, binary=False)
    assert len((folder / "sparse/images.txt").read_text().splitlines()) % 2 == 0


def via_colmap_binary(scene: Scene, folder: Path) -> Iterator[Reading]:
    yield from via_colmap(scene, folder, binary=True)


def via_pycolmap_with_rigs(scene: Scene, folder: Path) -> Iterator[Reading]:
    """What pycolmap writes itself (with rigs and frames), text and binary, comes back the same."""
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed (extra sfm)")
    write_colmap_model(scene, folder / "ours")
    model = pycolmap.Reconstruction(str(folder / "ours"))
    for kind in ("text", "binary"):
        (folder / kind).mkdir()
        getattr(model, f"write_{kind}")(str(folder / kind))
        again = read_colmap_model(folder / kind)
        cameras = {view.name: view.camera for view in again.views}
        yield (
            f"pycolmap's {kind}",
            [project_camera(known_points(), cameras[view.name]) for view in scene.views],
        )


def via_tum(scene: Scene, folder: Path) -> Iterator[Reading]:
    path = write_tum(folder / "path.txt", scene_trajectory(scene))
    yield "our reader", with_poses(scene, read_tum(path).world_from_cam.numpy())
    poses = []
    for row in np.loadtxt(path):
        x, y, z, w = row[4:]
        pose = np.eye(4)
        pose[:3, 3] = row[1:4]
        pose[:3, :3] = rotation((x, y, z), 2 * np.rad2deg(np.arctan2(np.linalg.norm([x, y, z]), w)))
        poses.append(pose)
    yield "documentation", with_poses(scene, np.array(poses))


def via_kitti(scene: Scene, folder: Path) -> Iterator[Reading]:
    path = write_kitti(folder / "poses.txt", scene_trajectory(scene))
    yield "our reader", with_poses(scene, read_kitti(path).world_from_cam.numpy())
    rows = np.loadtxt(path).reshape(-1, 3, 4)
    yield (
        "documentation",
        with_poses(scene, np.concatenate([rows, np.tile([[[0, 0, 0, 1.0]]], (len(rows), 1, 1))], 1)),
    )


def with_poses(scene: Scene, poses: Array) -> list[Array]:
    cameras = [view.camera for view in scene.views]
    return [
        project(known_points(), camera.K.numpy(), pose, camera.distortion)
        for camera, pose in zip(cameras, poses)
        if camera.K is not None
    ]


def via_ply(scene: Scene, folder: Path) -> Iterator[Reading]:
    trimesh = pytest.importorskip("trimesh")
    assert scene.points is not None and scene.mesh is not None
    for encoding in ("ascii", "binary_little_endian", "binary_big_endian"):
        for kind, geometry in (("points", scene.points), ("mesh", scene.mesh)):
            path = write_ply(folder / f"{kind}_{encoding}.ply", geometry, format=encoding)
            again = read_ply(path)
            xyz = again.vertices if isinstance(again, Mesh) else again.xyz
            yield f"our reader, {kind} {encoding}", ours(scene, xyz.to(torch.float64).numpy())
            foreign = trimesh.load(path, process=False)
            yield f"trimesh, {kind} {encoding}", ours(scene, np.asarray(foreign.vertices, np.float64))


def via_glb(scene: Scene, folder: Path) -> Iterator[Reading]:
    trimesh = pytest.importorskip("trimesh")
    assert scene.mesh is not None
    for up in ("-y", "z", "y", "x", "-x", "-z"):
        path = write_glb(folder / f"mesh_{up}.glb", scene.mesh, up=up)
        yield f"our reader, up {up}", ours(scene, read_glb(path).vertices.to(torch.float64).numpy())
        # A foreign reader sees the glTF world: +Y up. Undo the documented rotation.
        R = world_up_rotation(up, "y")[:3, :3].numpy()
        foreign = trimesh.load_scene(path, process=False).to_geometry()
        yield f"trimesh, up {up}", ours(scene, np.asarray(foreign.vertices, np.float64) @ R)
        axis = {"x": 0, "y": 1, "z": 2}[up[-1]]
        highest = np.argmax(known_points()[:, axis] * (-1 if up[0] == "-" else 1))
        assert np.argmax(np.asarray(foreign.vertices)[:, 1]) == highest


def via_splats(scene: Scene, folder: Path) -> Iterator[Reading]:
    trimesh = pytest.importorskip("trimesh")
    assert scene.points is not None
    path = write_splat_ply(folder / "splats.ply", scene.points)
    yield "our reader", ours(scene, read_splat_ply(path).xyz.to(torch.float64).numpy())
    yield "trimesh", ours(scene, np.asarray(trimesh.load(path, process=False).vertices, np.float64))


CHANNELS: dict[str, tuple[Callable[[Scene, Path], Iterator[Reading]], tuple[Distortion | None, ...]]] = {
    "cameras.json": (via_cameras_json, ALL_LENSES),
    "scene.json": (via_scene_json, ALL_LENSES),
    "transforms.json": (via_transforms_json, PERSPECTIVE_LENSES),
    "transforms.json fisheye": (via_transforms_json, FISHEYE_LENSES),
    "transforms.json shared": (via_transforms_json, PERSPECTIVE_LENSES[1:2]),
    "transforms.json applied": (via_applied_transform, PERSPECTIVE_LENSES),
    "colmap text": (via_colmap_text, ALL_LENSES),
    "colmap binary": (via_colmap_binary, ALL_LENSES),
    "pycolmap rigs": (via_pycolmap_with_rigs, ALL_LENSES),
    "tum": (via_tum, ALL_LENSES),
    "kitti": (via_kitti, ALL_LENSES),
    "ply": (via_ply, ALL_LENSES),
    "glb": (via_glb, ALL_LENSES),
    "splats": (via_splats, ALL_LENSES),
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_pixels_survive_every_reader_and_writer(channel: str, tmp_path: Path) -> None:
    way, lenses = CHANNELS[channel]
    scene = known_scene(lenses)
    truth = ours(scene)
    readings = 0
    for reader, pixels in way(scene, tmp_path):
        readings += 1
        assert len(pixels) == len(truth), reader
        for index, (expected, got) in enumerate(zip(truth, pixels)):
            off = float(np.abs(expected - got).max())
            assert off < PIXELS, f"{channel} read by {reader}: view {index} is off by {off:.2g} px"
    assert readings > 0


def test_the_test_would_notice_half_a_pixel() -> None:
    scene = known_scene()
    view = scene.views[0]
    K = view.camera.K
    assert K is not None
    moved = K.clone()
    moved[0, 2] += 0.5
    there = project_camera(known_points(), view.camera.replace(K=moved))
    assert np.abs(there - project_camera(known_points(), view.camera)).max() > 0.4
