from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.corpora.known_scene import (
    PERSPECTIVE_LENSES,
    Array,
    known_points,
    known_scene,
    project,
    project_camera,
)

from relief3d.core.contract import Camera, Distortion, Scene, SparsePoints
from relief3d.core.errors import InputError
from relief3d.io.colmap import write_colmap_model
from relief3d.io.images import write_image
from relief3d.io.original_resolution import OriginalPicture, original_resolution

POLICIES: dict[str, tuple[int, tuple[float, float, float, float] | None, tuple[int, int]]] = {
    # quarter turns, box in the turned picture, working size
    "same": (0, None, (640, 480)),
    "resize": (0, None, (320, 240)),
    "resize unevenly": (0, None, (224, 224)),
    "crop": (0, (40.0, 30.0, 600.0, 450.0), (560, 420)),
    "crop and resize": (0, (40.0, 30.0, 600.0, 450.0), (280, 210)),
    "pad to square": (0, (0.0, -80.0, 640.0, 560.0), (518, 518)),
    "turn left": (1, None, (480, 640)),
    "upside down": (2, None, (640, 480)),
    "turn right, crop, resize": (3, (10.0, 20.0, 470.0, 620.0), (230, 300)),
}


def work_pixels(xy: Array, policy: str, width: int, height: int) -> Array:
    """What preparation does to pixel positions, step by step."""
    turns, box, (w, h) = POLICIES[policy]
    for _ in range(turns):  # counter-clockwise: the right edge becomes the top
        xy = np.stack([xy[:, 1], width - xy[:, 0]], axis=1)
        width, height = height, width
    x0, y0, x1, y1 = box or (0.0, 0.0, float(width), float(height))
    return np.stack([(xy[:, 0] - x0) * w / (x1 - x0), (xy[:, 1] - y0) * h / (y1 - y0)], axis=1)


def work_camera(camera: Camera, policy: str) -> Camera:
    """The camera of the working picture, solved for from the pixels of a few points by least squares."""
    turns, _, (w, h) = POLICIES[policy]
    assert camera.K is not None and camera.world_from_cam is not None
    angle = np.deg2rad(90 * turns)
    Rz = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]]).round()
    pose = camera.world_from_cam.numpy().copy()
    pose[:3, :3] = pose[:3, :3] @ Rz.T
    rays = np.random.default_rng(0).uniform([-0.3, -0.3, 1], [0.3, 0.3, 1], (20, 3))
    xy = project(rays, camera.K.numpy(), np.eye(4), None)
    target = work_pixels(xy, policy, camera.width, camera.height)
    turned = rays @ Rz.T
    fx, cx = np.polyfit(turned[:, 0], target[:, 0], 1)
    fy, cy = np.polyfit(turned[:, 1], target[:, 1], 1)
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
    return Camera(w, h, K, torch.from_numpy(pose), _turn_lens(camera.distortion, turns))


def _turn_lens(lens: Distortion | None, turns: int) -> Distortion | None:
    if lens is None or lens.model == "fisheye":
        return lens
    k1, k2, p1, p2, *rest = lens.params
    for _ in range(turns):
        # Counter-clockwise (x, y) -> (y, -x) for the vector (p2, p1).
        p2, p1 = p1, -p2
    return Distortion("opencv", (k1, k2, p1, p2, *rest))


def prepared(policy: str, lens: Distortion | None) -> tuple[Scene, Scene]:
    """The truth at original resolution, and the same scene on working pictures."""
    truth = known_scene((lens, lens, None))
    views, sparse = [], truth.sparse
    assert sparse is not None
    xy = sparse.obs_xy.clone()
    for index, view in enumerate(truth.views):
        camera = view.camera.replace(width=640, height=480)
        views.append(view.replace(camera=camera))
        mine = sparse.obs_view == index
        xy[mine] = torch.from_numpy(work_pixels(xy[mine].numpy(), policy, 640, 480))
    truth = truth.replace(views=tuple(views))
    small = [view.replace(camera=work_camera(view.camera, policy)) for view in truth.views]
    return truth, truth.replace(views=tuple(small), sparse=dataclasses.replace(sparse, obs_xy=xy))


@pytest.mark.parametrize("lens", [None, PERSPECTIVE_LENSES[1]], ids=["pinhole", "distorted"])
@pytest.mark.parametrize("policy", POLICIES)
def test_cameras_and_observations_return_to_the_original(policy: str, lens: Distortion | None) -> None:
    truth, small = prepared(policy, lens)
    turns, box, _ = POLICIES[policy]
    for index, view in enumerate(small.views):  # the set-up itself must be consistent
        seen = small.sparse.obs_xy[small.sparse.obs_view == index].numpy() if small.sparse else None
        assert seen is not None and np.abs(project_camera(known_points(), view.camera) - seen).max() < 1e-6
    origin = OriginalPicture(640, 480, turns, box)
    again = original_resolution(small, {view.name: origin for view in small.views})
    for before, after in zip(truth.views, again.views):
        assert (after.camera.width, after.camera.height) == (640, 480)
        expected, got = (
            project_camera(known_points(), before.camera),
            project_camera(known_points(), after.camera),
        )
        assert np.abs(expected - got).max() < 1e-6
    assert truth.sparse is not None and again.sparse is not None
    assert torch.allclose(again.sparse.obs_xy, truth.sparse.obs_xy, atol=1e-6)
    assert torch.equal(again.sparse.xyz, truth.sparse.xyz)


def test_a_camera_means_resized_and_unnamed_views_stay() -> None:
    _, small = prepared("resize", None)
    name = small.views[0].name
    again = original_resolution(small, {name: Camera(640, 480)})
    assert again.views[0].camera.K is not None and small.views[0].camera.K is not None
    assert torch.allclose(again.views[0].camera.K[:2], 2 * small.views[0].camera.K[:2])
    assert again.views[1] is small.views[1]


def test_errors_scale_with_the_pixels() -> None:
    _, small = prepared("resize", None)
    assert small.sparse is not None
    ones = dataclasses.replace(small.sparse, error=torch.ones(len(small.sparse), dtype=torch.float64))
    again = original_resolution(small.replace(sparse=ones), {v.name: Camera(640, 480) for v in small.views})
    assert again.sparse is not None and torch.allclose(
        again.sparse.error, torch.tensor(2.0, dtype=torch.float64)
    )


def test_undistorted_work_returns_to_the_distorted_original() -> None:
    lens = PERSPECTIVE_LENSES[1]
    assert lens is not None
    truth = known_scene((lens,))
    camera = truth.views[0].camera
    pinhole = camera.replace(distortion=None)
    sparse = truth.sparse
    assert sparse is not None
    flat: SparsePoints = dataclasses.replace(
        sparse, obs_xy=torch.from_numpy(project_camera(known_points(), pinhole))
    )
    work = truth.replace(views=(truth.views[0].replace(camera=pinhole),), sparse=flat)
    origin = OriginalPicture(camera.width, camera.height, distortion=lens)
    again = original_resolution(work, {work.views[0].name: origin})
    assert again.views[0].camera.distortion == lens
    assert again.sparse is not None and torch.allclose(again.sparse.obs_xy, sparse.obs_xy, atol=1e-6)


def test_pictures_are_reopened_at_full_size(tmp_path: Path) -> None:
    _, small = prepared("resize", None)
    path = write_image(tmp_path / "a.png", torch.rand(3, 480, 640))
    views = (small.views[0].replace(path=path, image=torch.zeros(3, 240, 320)), *small.views[1:])
    again = original_resolution(small.replace(views=views), {views[0].name: Camera(640, 480)})
    assert again.views[0].load_image().shape == (3, 480, 640)
    write_image(path, torch.rand(3, 48, 64))
    with pytest.raises(InputError, match="64x48"):
        again.views[0].load_image()


def test_pycolmap_sees_the_original_pixels(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap is not installed (extra sfm)")
    truth, small = prepared("turn right, crop, resize", PERSPECTIVE_LENSES[1])
    turns, box, _ = POLICIES["turn right, crop, resize"]
    origin = OriginalPicture(640, 480, turns, box)
    again = original_resolution(small, {view.name: origin for view in small.views})
    model = pycolmap.Reconstruction(str(write_colmap_model(again, tmp_path / "m")))
    model.update_point_3d_errors()
    assert {(c.width, c.height) for c in model.cameras.values()} == {(640, 480)}
    assert model.compute_mean_reprojection_error() < 1e-6
    assert truth.sparse is not None and model.num_points3D() == len(truth.sparse)


def test_bad_origins() -> None:
    _, small = prepared("resize", None)
    name = small.views[0].name
    for origin in (OriginalPicture(0, 480), OriginalPicture(640, 480, box=(5.0, 5.0, 5.0, 9.0))):
        with pytest.raises(InputError, match=name):
            original_resolution(small, {name: origin})
