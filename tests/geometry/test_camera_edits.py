from __future__ import annotations

import pytest
import torch
from hypothesis import given

from relief3d.core.contract import Camera, Distortion
from relief3d.core.errors import InputError
from relief3d.geometry import camera_edits as ce
from relief3d.geometry.distortion import project_distorted
from relief3d.geometry.projection import intrinsics, pixel_grid
from relief3d.geometry.transforms import transform_points

from .draws import F64, close, generator, normal, poses, properties, seeds

LENSES = [
    None,
    Distortion("opencv", (-0.2, 0.05, 0.003, -0.002)),
    Distortion("opencv", (-0.2, 0.05, 0.003, -0.002, 0.01, 0.02, 0.01, 0.005)),
    Distortion("fisheye", (0.03, -0.01, 0.002, -0.001)),
]


def camera(seed: int, lens: Distortion | None = None) -> Camera:
    return Camera(640, 480, intrinsics(500, 520, 310, 250), poses(generator(seed))[seed % 16], lens)


def see(cam: Camera, world: torch.Tensor) -> torch.Tensor:
    assert cam.K is not None and cam.cam_from_world is not None
    return project_distorted(transform_points(cam.cam_from_world, world), cam.K, cam.distortion)[0]


def points_before(cam: Camera, seed: int) -> torch.Tensor:
    assert cam.world_from_cam is not None
    local = 0.7 * normal(generator(seed), 12, 3) + torch.tensor([0.0, 0.0, 4.0], dtype=F64)
    return transform_points(cam.world_from_cam, local)


@pytest.mark.parametrize("lens", LENSES, ids=["pinhole", "opencv", "rational", "fisheye"])
@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 4])
@properties
@given(seeds)
def test_quarter_turns_move_pixels_with_the_picture(lens: Distortion | None, turns: int, seed: int) -> None:
    cam = camera(seed, lens)
    turned = ce.rotate90_camera(cam, turns)
    world = points_before(cam, seed)
    pixels = see(cam, world)
    homogeneous = torch.cat([pixels, torch.ones(12, 1, dtype=F64)], dim=-1)
    expected = (homogeneous @ ce.quarter_turn_matrix(turns, 640, 480).T)[:, :2]
    assert close(see(turned, world), expected, 1e-9)
    assert (turned.width, turned.height) == ((480, 640) if turns % 2 else (640, 480))
    assert turned.K is not None and turned.K[0, 0] > 0 and turned.K[1, 1] > 0
    assert turned.centre is not None and cam.centre is not None and close(turned.centre, cam.centre, 1e-12)
    back = ce.rotate90_camera(turned, -turns)
    assert back.K is not None and cam.K is not None and close(back.K, cam.K, 1e-12)
    assert back.world_from_cam is not None and cam.world_from_cam is not None
    assert close(back.world_from_cam, cam.world_from_cam, 1e-12)
    assert back.distortion == cam.distortion


def upright(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """EXIF orientations by their definition: where row 0 and column 0 of the stored picture are when upright."""
    return {
        1: lambda x: x,
        2: lambda x: x.flip(-1),
        3: lambda x: x.flip(-1).flip(-2),
        4: lambda x: x.flip(-2),
        5: lambda x: x.mT,
        6: lambda x: x.mT.flip(-1),
        7: lambda x: x.flip(-1).flip(-2).mT,
        8: lambda x: x.mT.flip(-2),
    }[orientation](image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("lens", LENSES, ids=["pinhole", "opencv", "rational", "fisheye"])
def test_exif_orientation_of_picture_and_camera_agree(orientation: int, lens: Distortion | None) -> None:
    positions = pixel_grid(480, 640, dtype=F64).permute(2, 0, 1)
    picture = ce.orient_image(positions, orientation)
    assert torch.equal(picture, upright(positions, orientation))
    mirrored = orientation in (2, 4, 5, 7)
    stored = camera(3, lens)
    if mirrored:
        with pytest.raises(InputError, match="mirrored"):
            ce.orient_camera(stored, orientation)
        stored = stored.replace(world_from_cam=None)
    turned = ce.orient_camera(stored, orientation)
    assert tuple(picture.shape[-2:]) == (turned.height, turned.width)
    # A camera-frame point lands, in the upright camera, on the pixel that shows its stored position.
    assert stored.K is not None and turned.K is not None
    local = torch.tensor([[0.3, -0.2, 2.0], [-0.5, 0.4, 2.0], [0.0, 0.1, 1.0]], dtype=F64)
    source = project_distorted(local, stored.K, lens)[0]
    columns = [picture[:, 0, 1] - picture[:, 0, 0], picture[:, 1, 0] - picture[:, 0, 0]]
    linear = torch.linalg.inv(torch.stack(columns, dim=-1))  # upright pixel steps from stored pixel steps
    expected = (source - picture[:, 0, 0]) @ linear.T + 0.5
    moved = local.clone()
    moved[:, :2] = local[:, :2] @ linear.T
    assert close(project_distorted(moved, turned.K, turned.distortion)[0], expected, 1e-9)


def test_wrong_orientation() -> None:
    with pytest.raises(InputError, match="1 to 8"):
        ce.orient_camera(camera(0), 9)
    with pytest.raises(InputError, match="1 to 8"):
        ce.orient_image(torch.zeros(3, 4, 5), 0)


@pytest.mark.parametrize("lens", LENSES, ids=["pinhole", "opencv", "rational", "fisheye"])
def test_resize_and_crop(lens: Distortion | None) -> None:
    cam = camera(5, lens)
    world = points_before(cam, 5)
    small = ce.resize_camera(cam, 200, 333)
    assert (small.width, small.height) == (200, 333)
    scale = torch.tensor([200 / 640, 333 / 480], dtype=F64)
    assert close(see(small, world), see(cam, world) * scale, 1e-10)
    window = ce.crop_camera(cam, 100, -20, 300, 400)
    assert (window.width, window.height) == (300, 400)
    assert close(see(window, world), see(cam, world) - torch.tensor([100.0, -20.0], dtype=F64), 1e-10)
    a = ce.rotate90_camera(ce.crop_camera(cam, 10, 30, 500, 400), 1)
    b = ce.crop_camera(ce.rotate90_camera(cam, 1), 480 - 430, 10, 400, 500)
    assert close(see(a, world), see(b, world), 1e-10)


def test_unknown_parts_stay_unknown() -> None:
    bare = Camera(640, 480)
    for edited in (
        ce.resize_camera(bare, 320, 240),
        ce.crop_camera(bare, 1, 2, 3, 4),
        ce.rotate90_camera(bare, 1),
        ce.mirror_camera(bare),
        ce.orient_camera(bare, 6),
    ):
        assert edited.K is None and edited.world_from_cam is None
    guess = Camera(640, 480, intrinsics(500, 500, 320, 240), K_source="guess")
    assert ce.rotate90_camera(guess, 1).K_source == "guess"
