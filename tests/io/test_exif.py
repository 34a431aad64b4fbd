"""EXIF orientation and focal length: pixels, cameras, masks and depth turn together, exactly once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from corpora.pictures import depth_values, encode_picture, smooth_rgb
from relief3d.core.contract import Camera, Distortion
from relief3d.core.errors import InputError
from relief3d.io.depth import write_depth
from relief3d.io.exif import (
    MIRRORED,
    ExifInfo,
    camera_from_exif,
    focal_pixels,
    inverse_orientation,
    orient_array,
    orient_camera,
    orient_points,
    orientation_from_matrix,
    oriented_size,
    parse_exif,
)
from relief3d.io.images import image_size, read_image
from relief3d.io.view_files import load_view_depth, load_view_mask

ORIENTATIONS = range(1, 9)
# What each orientation means for the stored first row and first column (EXIF 2.32, table 6).
PILLOW = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Pillow's own transposition, independent of ours."""
    picture = Image.fromarray(array)
    return np.asarray(picture if orientation == 1 else picture.transpose(PILLOW[orientation]))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "heic"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_are_turned_exactly_once(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = smooth_rgb()
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(encode_picture(kind, stored, orientation))
    wanted = upright(stored, orientation)
    loaded = read_image(path)
    assert image_size(path) == (wanted.shape[1], wanted.shape[0])
    assert tuple(loaded.rgb.shape) == (3, *wanted.shape[:2])
    error = np.abs(loaded.rgb.permute(1, 2, 0).numpy() - wanted / 255).mean()
    assert error < (0.02 if kind == "heic" else 0.008)
    if kind != "heic":  # HEIC containers are turned by their decoder
        raw = read_image(path, orient=False)
        assert np.abs(raw.rgb.permute(1, 2, 0).numpy() - stored / 255).mean() < 0.008
        assert loaded.original_size == (48, 32)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_array_and_points_agree(orientation: int) -> None:
    stored = torch.arange(5 * 7, dtype=torch.float64).reshape(5, 7)
    turned = orient_array(stored, orientation)
    assert tuple(turned.shape[::-1]) == oriented_size(orientation, 7, 5)
    for row in range(5):
        for column in range(7):
            xy = torch.tensor([column + 0.5, row + 0.5], dtype=torch.float64)
            x, y = orient_points(xy, orientation, 7, 5).tolist()
            assert turned[int(y), int(x)] == stored[row, column]
            assert x % 1 == 0.5 and y % 1 == 0.5
    assert torch.equal(orient_array(turned, inverse_orientation(orientation)), stored)


@given(
    orientation=st.sampled_from([1, 3, 6, 8]),
    seed=st.integers(0, 10_000),
    lens=st.tuples(*[st.floats(-0.1, 0.1)] * 4),
)
def test_projected_points_follow_the_pixels(
    orientation: int, seed: int, lens: tuple[float, float, float, float]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    K = torch.tensor([[500.0, 1.5, 310.0], [0, 480.0, 250.0], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    pose[:3, 0] *= torch.sign(torch.det(pose[:3, :3]))
    pose[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64)
    camera = Camera(640, 480, K=K, world_from_cam=pose, distortion=Distortion("opencv", lens))
    turned = orient_camera(camera, orientation)
    in_cam = torch.rand(20, 3, generator=generator, dtype=torch.float64) - 0.5
    in_cam[:, 2] += 2
    world = in_cam @ pose[:3, :3].T + pose[:3, 3]
    expected = orient_points(project(camera, world), orientation, 640, 480)
    assert torch.allclose(project(turned, world), expected, atol=1e-8)
    assert (turned.width, turned.height) == oriented_size(orientation, 640, 480)


def project(camera: Camera, world: torch.Tensor) -> torch.Tensor:
    """Independent projection with OpenCV's distortion polynomial, written out."""
    assert camera.cam_from_world is not None and camera.K is not None and camera.distortion is not None
    X = world @ camera.cam_from_world[:3, :3].T + camera.cam_from_world[:3, 3]
    x, y = X[:, 0] / X[:, 2], X[:, 1] / X[:, 2]
    k1, k2, p1, p2 = camera.distortion.params
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return torch.stack([xd, yd, torch.ones_like(xd)], dim=1) @ camera.K.T[:, :2]


@pytest.mark.parametrize("orientation", sorted(MIRRORED))
def test_mirrored_pictures_keep_intrinsics_but_no_pose(orientation: int) -> None:
    K = torch.tensor([[500.0, 0, 310], [0, 480.0, 250], [0, 0, 1]], dtype=torch.float64)
    turned = orient_camera(Camera(640, 480, K=K), orientation)
    assert turned.K is not None and turned.K[0, 0] > 0 and turned.K[1, 1] > 0
    corner = orient_points(torch.tensor([[310.0, 250.0]], dtype=torch.float64), orientation, 640, 480)
    assert torch.allclose(turned.K[:2, 2], corner[0])
    with pytest.raises(InputError, match="mirrored"):
        orient_camera(Camera(640, 480, K=K, world_from_cam=torch.eye(4)), orientation)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["jpeg", "tiff"])
def test_masks_and_depth_of_the_stored_pixels_turn_with_the_picture(
    tmp_path: Path, kind: str, orientation: int
) -> None:
    photo = tmp_path / f"photo.{kind}"
    photo.write_bytes(encode_picture(kind, smooth_rgb(40, 30), orientation))
    size = image_size(photo)
    depth = depth_values(40, 30)
    write_depth(tmp_path / "d.npz", torch.from_numpy(depth))
    mask = depth > 2.5
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "m.png")
    if orientation < 5:
        return  # such a depth map already has the upright size and is taken as upright
    turned = load_view_depth(tmp_path / "d.npz", size, orientation, None, True, 10**6)
    assert np.array_equal(turned.values.numpy(), upright(depth, orientation))
    turned_mask = load_view_mask(tmp_path / "m.png", size, orientation, 10**6)
    assert np.array_equal(turned_mask.numpy(), upright(mask.astype(np.uint8), orientation) > 0)


def exif_of(**values: object) -> Image.Exif:
    tags = {"focal": 0x920A, "focal35": 0xA405, "xres": 0xA20E, "yres": 0xA20F, "unit": 0xA210}
    tags |= {"width": 0xA002, "height": 0xA003}
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({tags[key]: value for key, value in values.items()})
    return exif


def test_focal_from_35mm_equivalent(tmp_path: Path) -> None:
    exif = exif_of(focal35=26, width=640, height=480)
    exif[0x010F] = "Maker \x00"
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth_rgb(640, 480)).save(path, exif=exif)
    camera = read_image(path).header.camera()
    assert camera.K is not None and camera.K_source == "exif"
    assert float(camera.K[0, 0]) == pytest.approx(26 / math.hypot(36, 24) * 800)
    assert camera.K[0, 2] == 320 and camera.K[1, 2] == 240
    assert read_image(path).exif.make == "Maker"


def test_focal_from_sensor_density_survives_resizing() -> None:
    # 4000 pixels over 20 mm: 200 pixels per mm; later shrunk to 1000 pixels.
    exif = parse_exif(exif_of(focal=25.0, xres=200.0, yres=200.0, unit=4, width=4000, height=3000))
    assert exif.sensor_mm == pytest.approx((20.0, 15.0))
    assert focal_pixels(exif, 1000, 750) == pytest.approx(25 / 20 * 1000)
    assert focal_pixels(exif, 750, 1000) == pytest.approx(25 / 20 * 1000)


@pytest.mark.parametrize(
    "exif",
    [
        ExifInfo(),
        ExifInfo(focal_35mm=26.0, pixel_size=(4000, 3000)),  # cropped to a square since
        ExifInfo(focal_35mm=2.0),
        ExifInfo(focal_35mm=100_000.0),
        ExifInfo(focal_mm=5.0),
    ],
)
def test_no_focal_when_unknown_or_implausible(exif: ExifInfo) -> None:
    assert focal_pixels(exif, 1000, 1000) is None
    assert camera_from_exif(exif, 1000, 1000).K is None


@pytest.mark.parametrize("value", [0, 9, -1, "6", None, 6.5, True])
def test_invalid_orientation_is_upright(value: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert parse_exif(exif).orientation == 1


def test_zero_denominators_do_not_raise() -> None:
    from PIL.TiffImagePlugin import IFDRational

    info = parse_exif(exif_of(focal=IFDRational(1, 0), focal35=0, xres=IFDRational(0, 0), yres=1.0))
    assert info.focal_mm is None and info.focal_35mm is None and info.sensor_mm is None


def test_display_matrix_to_orientation() -> None:
    assert orientation_from_matrix(((0, -65536), (65536, 0))) == 6
    assert orientation_from_matrix(((65536, 0), (0, 65536))) == 1
    assert orientation_from_matrix(((-65536, 0), (0, 65536))) == 2
    assert orientation_from_matrix(((0, 0), (0, 0))) == 1
    assert orientation_from_matrix(((46341, -46341), (46341, 46341))) == 1
