"""Hypersim and Aria Synthetic Environments: distances along rays, tilted lenses, a fisheye lens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.readers import tiny_world as tw
from relief3d.core.errors import InputError
from relief3d.data.readers.registry import open_dataset

UNIT = 0.0254  # metres per asset unit


def write_h5(path: Path, values: np.ndarray) -> None:
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset"] = values


def hypersim_copy(root: Path, M: np.ndarray, width: int, height: int) -> list[np.ndarray]:
    """Two frames of a walk whose lens is M (rays of (u, v, 1), OpenGL axes); returns a marked world point per frame."""
    folder = root / "ai_001_002"
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    uv1 = np.stack([2 * x / width - 1, 1 - 2 * y / height, np.ones_like(x)], -1)
    rays = uv1 @ M.T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    rotations, positions, marks = [], [], []
    for i in range(2):
        T = tw.camera(i)
        R, at = T[:3, :3] @ np.diag([1, -1, -1]), T[:3, 3]  # x right, y up, z back
        rotations.append(R)
        positions.append(at / UNIT)
        world = rays @ R.T
        length = (tw.OFFSET - tw.NORMAL @ at) / (world @ tw.NORMAL)
        row, column = 9, 30
        marks.append(at + 4.0 * world[row, column])
        pixels = np.full((height, width, 3), tw.GREY, np.uint8)
        pixels[row, column] = tw.RED
        images = folder / "images"
        tw.save(
            Image.fromarray(pixels), images / "scene_cam_00_final_preview" / f"frame.{i + 3:04d}.tonemap.jpg"
        )
        length = length.astype(np.float32)
        length[0, 0] = np.nan
        write_h5(images / "scene_cam_00_geometry_hdf5" / f"frame.{i + 3:04d}.depth_meters.hdf5", length)
    detail = folder / "_detail"
    # Frames 3 and 4 are the second and first keyframe: the list of indices counts, not the position.
    write_h5(detail / "cam_00" / "camera_keyframe_orientations.hdf5", np.stack(rotations[::-1]))
    write_h5(detail / "cam_00" / "camera_keyframe_positions.hdf5", np.stack(positions[::-1]))
    write_h5(detail / "cam_00" / "camera_keyframe_frame_indices.hdf5", np.array([4, 3]))
    tw.save_text(
        f"parameter_name,parameter_value\nmeters_per_asset_unit,{UNIT}\n", detail / "metadata_scene.csv"
    )
    return marks


def camera_table(root: Path, M: np.ndarray) -> None:
    names = [f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3)]
    values = ",".join(repr(float(v)) for v in M.ravel())
    tw.save_text(
        f"scene_name,{','.join(names)}\nai_001_002,{values}\n", root / "metadata_camera_parameters.csv"
    )


STRAIGHT = np.array([[np.tan(np.pi / 6), 0, 0], [0, np.tan(np.pi / 6) * 0.75, 0], [0, 0, -1]])
TILTED = STRAIGHT + np.array([[0.01, 0, 0.02], [0, 0.02, -0.15], [0.015, 0.12, 0]])


@pytest.mark.parametrize("M", [STRAIGHT, TILTED], ids=["straight", "tilted"])
def test_hypersim(tmp_path: Path, M: np.ndarray) -> None:
    marks = hypersim_copy(tmp_path, M, 64, 48)
    camera_table(tmp_path, M)
    data = open_dataset("hypersim", tmp_path)
    assert data.names == ("ai_001_002/cam_00",)
    for view, mark in zip(data[0].views, marks):
        K = view.camera.K.numpy()
        assert np.allclose(K[2], [0, 0, 1]) and abs(K[1, 0]) < 1e-9
        tw.check_plane(view, 1e-4)
        tw.check_landmark(view, mark)
        assert not bool(view.load_depth().valid[0, 0])


def test_hypersim_without_the_table_of_lenses_and_with_a_split(tmp_path: Path) -> None:
    hypersim_copy(tmp_path, STRAIGHT, 64, 48)
    for view in open_dataset("hypersim", tmp_path)[0].views:
        tw.check_plane(view, 1e-3)  # the focal length is known to five digits
    header = (
        "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name\n"
    )
    rows = "ai_001_002,cam_00,3,True,,val\nai_001_002,cam_00,4,False,people,val\nai_001_003,cam_00,0,True,,train\n"
    tw.save_text(header + rows, tmp_path / "metadata_images_split_scene_v1.csv")
    assert [v.name for v in open_dataset("hypersim", tmp_path, split="val")[0].views] == [
        "frame.0003.tonemap.jpg"
    ]
    with pytest.raises(InputError, match="train"):
        open_dataset("hypersim", tmp_path, split="train")
    (tmp_path / "ai_001_002/_detail/cam_00/camera_keyframe_positions.hdf5").write_bytes(b"no hdf5 at all")
    with pytest.raises(InputError, match=r"positions\.hdf5.*copy it again"):
        open_dataset("hypersim", tmp_path)[0]


SIDE = 176
_F, _C = 297.6375381033778 / 4, (np.array([357.6599197217746, 349.1922497127481]) + 0.5) / 4 - 0.5
_K6 = (
    0.3650890375644368,
    -0.1738082418112771,
    -0.7534945484033189,
    2.434788882752295,
    -2.57786220300886,
    0.8788483538598834,
)
_P = (0.0008005198595407136, -0.000294237814554143)


def aria_pixel(ray: np.ndarray) -> np.ndarray:
    """Pixels (centres at integers) of rays (*, 3): radial, then tangential, as in the published model."""
    a, b = ray[..., 0] / ray[..., 2], ray[..., 1] / ray[..., 2]
    r = np.hypot(a, b)
    theta = np.arctan(r)
    radial = theta + sum(k * theta ** (2 * n + 3) for n, k in enumerate(_K6))
    u, v = radial * a / r, radial * b / r
    rr = u**2 + v**2
    du = _P[0] * (2 * u**2 + rr) + 2 * _P[1] * u * v
    dv = _P[1] * (2 * v**2 + rr) + 2 * _P[0] * u * v
    return _F * np.stack([u + du, v + dv], -1) + _C


def aria_rays() -> np.ndarray:
    """(SIDE, SIDE, 3) unit rays of the fisheye pixels by fixed-point iteration on the forward model."""
    goal = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).astype(float)
    guess = (goal - _C) / _F
    m = guess.copy() * 0.9
    for _ in range(40):
        r = np.hypot(m[..., 0], m[..., 1]) + 1e-12
        ray = np.concatenate(
            [m / r[..., None] * np.tan(np.minimum(r, 1.3))[..., None], np.ones_like(m[..., :1])], -1
        )
        m = m + 0.7 * (goal - aria_pixel(ray)) / _F  # m is angle times direction
    return ray / np.linalg.norm(ray, axis=-1, keepdims=True)


def test_aria_synthetic(tmp_path: Path) -> None:
    folder = tmp_path / "17"
    q = np.array([0.9441858687689326, 0.32640934382849085, 0.029274992008313648, 0.033361059956531547])
    w, x, y, z = q / np.linalg.norm(q)
    R = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    camera_from_device = np.eye(4)
    camera_from_device[:3, :3] = R
    camera_from_device[:3, 3] = [-0.007530096566173914, -0.010908549841580260, -0.003598063315542823]
    T = tw.camera(1)
    world_from_device = T @ camera_from_device
    qw, qx, qy, qz = tw.quat_wxyz(world_from_device[:3, :3])
    numbers = [
        "0",
        "1500000",
        "-1",
        *map(repr, map(float, [*world_from_device[:3, 3], qx, qy, qz, qw])),
        "0.1",
    ]
    head = "graph_uid,tracking_timestamp_us,utc_timestamp_ns,tx,ty,tz,qx,qy,qz,qw,quality_score\n"
    tw.save_text(head + ",".join(numbers) + "\n", folder / "trajectory.csv")
    rays = aria_rays()
    seen = np.arccos(rays[..., 2]) < 1.0
    length = (tw.OFFSET - tw.NORMAL @ T[:3, 3]) / (rays @ T[:3, :3].T @ tw.NORMAL)
    length = np.where(seen & (length > 0), length, 0)
    tw.save16(length * 1000, folder / "depth" / "depth0000000.png")
    mark = tw.landmark(T)
    column, row = np.round(aria_pixel((np.linalg.inv(T) @ np.append(mark, 1))[:3])).astype(int)
    pixels = np.full((SIDE, SIDE, 3), tw.GREY, np.uint8)
    pixels[row - 1 : row + 2, column - 1 : column + 2] = tw.RED
    tw.save(Image.fromarray(pixels), folder / "rgb" / "vignette0000000.jpg")
    view = open_dataset("aria_synthetic", tmp_path, size=(96, 80), focal=60.0)[0].views[0]
    assert view.camera.distortion is None and np.allclose(view.camera.world_from_cam.numpy(), T, atol=1e-6)
    # Nearest pixels of the fisheye map are up to 0.7 pixels away; a systematic shift would show in the mean.
    tw.check_plane(view, 0.09)
    depth = view.load_depth()
    X = tw.rays(view.camera.K.numpy(), 0.5, 96, 80) * depth.values.numpy()[..., None] @ T[:3, :3].T + T[:3, 3]
    assert abs((X @ tw.NORMAL - tw.OFFSET)[depth.valid.numpy()].mean()) < 0.002
    image, cam = view.load_image().numpy(), (np.linalg.inv(T) @ np.append(mark, 1))[:3]
    u, v = (view.camera.K.numpy() @ (cam / cam[2]))[:2]
    red = image[0] - image[1] > 0.3
    rows, columns = np.nonzero(red)
    assert abs(rows.mean() + 0.5 - v) < 0.8 and abs(columns.mean() + 0.5 - u) < 0.8
    assert view.load_mask().float().mean() > 0.95
    (folder / "rgb" / "vignette0000001.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="1 poses for 2 pictures"):
        open_dataset("aria_synthetic", tmp_path)[0]
