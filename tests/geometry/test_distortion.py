from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck

from relief3d.core.contract import Camera, Distortion
from relief3d.core.errors import InputError
from relief3d.geometry import distortion as ds
from relief3d.geometry import projection as pj
from relief3d.geometry.lens_models import distort_fisheye, distort_opencv, distortion_params
from relief3d.geometry.projection import intrinsics, normalize_pixels, pixel_grid, project

from .draws import F64, close, generator, properties, seeds, uniform

K = intrinsics(520, 510, 322, 239)
LENSES = {
    "barrel": Distortion("opencv", (-0.28, 0.08, 0.0007, -0.0004)),
    "pincushion": Distortion("opencv", (0.15, 0.05, -0.001, 0.002, 0.01)),
    "rational": Distortion("opencv", (0.4, -0.1, 0.0005, 0.0003, 0.02, 0.7, -0.05, 0.01)),
    "folding": Distortion("opencv", (-0.4, 0.05, 0.0, 0.0)),
    "fisheye": Distortion("fisheye", (0.04, -0.01, 0.006, -0.002)),
}


def camera(name: str) -> Camera:
    return Camera(640, 480, K, torch.eye(4), LENSES[name])


def reference_distort(x: float, y: float, lens: Distortion) -> tuple[float, float]:
    """The model equations written out for one point."""
    if lens.model == "fisheye":
        r = math.hypot(x, y)
        t = math.atan(r)
        d = t + sum(k * t ** (2 * i + 3) for i, k in enumerate(lens.params))
        return (x * d / r, y * d / r) if r else (x, y)
    k1, k2, p1, p2, k3, k4, k5, k6 = (*lens.params, 0.0, 0.0, 0.0, 0.0)[:8]
    r2 = x * x + y * y
    f = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        x * f + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * f + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


@pytest.mark.parametrize("name", LENSES)
def test_models_follow_their_equations(name: str) -> None:
    xy = uniform(generator(0), -0.7, 0.7, 20, 2)
    xy[0] = 0
    expected = torch.tensor([reference_distort(*p, LENSES[name]) for p in xy.tolist()], dtype=F64)
    assert close(ds.distort_normalized(xy, LENSES[name]), expected, 1e-14)


@pytest.mark.parametrize("name", LENSES)
@properties
@given(seeds)
def test_undistort_inverts_distort(name: str, seed: int) -> None:
    lens = LENSES[name]
    g = generator(seed)
    limit = min(0.9, 0.95 * ds.monotonic_limit(lens))
    angle, r = uniform(g, 0, 2 * math.pi, 40), uniform(g, 0, limit, 40)
    r[0] = 0
    xy = torch.stack([r * angle.cos(), r * angle.sin()], dim=-1)
    back, valid = ds.undistort_normalized_checked(ds.distort_normalized(xy, lens), lens)
    assert bool(valid.all())
    assert close(back, xy, 1e-11)


@properties
@given(seeds)
def test_random_lenses_invert_wherever_they_claim_to(seed: int) -> None:
    g = generator(seed)
    count = (4, 5, 8)[seed % 3]
    size = torch.tensor([0.5, 0.3, 0.003, 0.003, 0.1, 0.3, 0.1, 0.05], dtype=F64)[:count]
    lens = Distortion("opencv", tuple((uniform(g, -1, 1, count) * size).tolist()))
    limit = ds.monotonic_limit(lens)
    xy = uniform(g, -1.5, 1.5, 400, 2)
    point, valid = ds.undistort_normalized_checked(xy, lens)
    assert bool(torch.isfinite(point).all())
    assert close(ds.distort_normalized(point, lens)[valid], xy[valid], 1e-10)
    assert bool((point.norm(dim=-1) <= limit * (1 + 1e-9)).all())
    # Points well inside the range are always found.
    inner = xy[xy.norm(dim=-1) < 0.9 * limit]
    if len(inner):
        found, ok = ds.undistort_normalized_checked(ds.distort_normalized(inner, lens), lens)
        assert bool(ok.all())
        assert close(found, inner, 1e-8)


def test_beyond_the_monotonic_range_is_reported_not_invented() -> None:
    lens = LENSES["folding"]
    limit = ds.monotonic_limit(lens)
    r = torch.linspace(0, 2, 20001, dtype=F64)
    profile = ds.distort_normalized(torch.stack([r, 0 * r], dim=-1), lens)[:, 0]
    assert limit == pytest.approx(r[int(torch.diff(profile).le(0).nonzero()[0])].item(), abs=2e-4)
    reach = reference_distort(limit, 0, lens)[0]
    xy = torch.tensor([[0.99 * reach, 0.0], [1.01 * reach, 0.0], [0.0, 5.0], [torch.nan, 0.0]], dtype=F64)
    point, valid = ds.undistort_normalized_checked(xy, lens)
    assert valid.tolist() == [True, False, False, False]
    assert bool(torch.isfinite(point).all())
    assert point[2].tolist() == pytest.approx([0.0, limit])  # confined to the edge, same direction


def test_identity_lenses_change_nothing() -> None:
    xy = uniform(generator(0), -300, 300, 10, 2)
    for lens in (None, Distortion("opencv", (0.0, 0.0, 0.0, 0.0))):
        assert torch.equal(ds.distort_normalized(xy, lens), xy)
        assert torch.equal(ds.undistort_normalized(xy, lens), xy)
    assert ds.monotonic_limit(None) == 100


@pytest.mark.parametrize("name", LENSES)
def test_gradients_of_both_directions(name: str) -> None:
    lens = LENSES[name]
    xy = torch.tensor([[0.0, 0.0], [0.3, -0.2], [-0.5, 0.1]], dtype=F64, requires_grad=True)
    assert gradcheck(lambda v: ds.distort_normalized(v, lens), xy)
    assert gradcheck(lambda v: ds.undistort_normalized(v, lens), xy)
    params = distortion_params(lens, xy).requires_grad_()
    model = distort_opencv if lens.model == "opencv" else distort_fisheye
    assert gradcheck(model, (xy, params))


def test_lens_models_take_batched_coefficients() -> None:
    g = generator(0)
    xy, params = uniform(g, -0.5, 0.5, 3, 7, 2), uniform(g, -0.1, 0.1, 3, 8)
    batched = distort_opencv(xy, params)
    assert close(batched, torch.stack([distort_opencv(a, b) for a, b in zip(xy, params)]), 1e-14)


@pytest.mark.parametrize("name", LENSES)
@properties
@given(seeds)
def test_pixels_rays_and_projection_agree(name: str, seed: int) -> None:
    cam = camera(name)
    g = generator(seed)
    # The corners of the "folding" picture lie beyond the radius its lens can produce.
    x_range, y_range = ((140, 500), (100, 380)) if name == "folding" else ((0, 640), (0, 480))
    xy = torch.stack([uniform(g, *x_range, 30), uniform(g, *y_range, 30)], dim=-1)
    flat = ds.undistort_points(xy, cam)
    assert close(ds.distort_points(flat, cam), xy, 1e-10)
    rays, valid = ds.unproject_rays(xy, K, cam.distortion)
    assert bool(valid.all())
    assert close(rays.norm(dim=-1), torch.ones(30, dtype=F64), 1e-14)
    points = rays * uniform(g, 0.5, 9, 30)[:, None]
    assert close(ds.project_distorted(points, K, cam.distortion)[0], xy, 1e-10)
    assert close(project(points, K)[0], flat, 1e-9)


def test_fisheye_sees_behind_itself() -> None:
    lens = Distortion("fisheye", (0.0, 0.0, 0.0, 0.0))
    rays = torch.tensor([[1.0, 0.0, -0.5], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]], dtype=F64)
    rays = rays / rays.norm(dim=-1, keepdim=True)
    xy, _ = ds.project_distorted(rays, K, lens)
    theta = math.atan2(1, -0.5)
    assert xy[0].tolist() == pytest.approx([322 + 520 * theta, 239])
    back, valid = ds.unproject_rays(xy, K, lens)
    assert bool(valid.all()) and close(back, rays, 1e-12)
    # A pinhole picture cannot hold such a ray: it is confined and reported.
    _, fits = ds.undistort_normalized_checked(normalize_pixels(xy, K), lens)
    assert fits.tolist() == [False, False, True]


def smooth(xy: torch.Tensor) -> torch.Tensor:
    """A picture as a function of normalised coordinates; (..., 2) -> (3, ...)."""
    x, y = xy.unbind(-1)
    return torch.stack([0.5 + 0.4 * torch.sin(6 * x), 0.5 + 0.4 * torch.cos(5 * y), 0.5 + 0.3 * x * y])


@pytest.mark.parametrize("name", LENSES)
def test_pictures_are_undistorted_and_redistorted(name: str) -> None:
    cam = camera(name)
    grid = normalize_pixels(pixel_grid(480, 640, dtype=F64).reshape(-1, 2), K)
    pinhole = smooth(grid.reshape(480, 640, 2)).float()
    distorted = smooth(ds.undistort_normalized(grid, cam.distortion).reshape(480, 640, 2)).float()
    flat, valid = ds.undistort_image(distorted, cam)
    assert flat.dtype == torch.float32 and valid.dtype == torch.bool
    assert valid.float().mean() > 0.6
    assert (flat - pinhole)[:, valid].abs().max() < 0.02
    assert (flat - pinhole)[:, valid].abs().mean() < 1e-4
    assert not flat[:, ~valid].any()
    again, covered = ds.distort_image(pinhole, cam)
    assert (again - distorted)[:, covered].abs().mean() < 1e-4
    with pytest.raises(InputError, match="does not fit"):
        ds.undistort_image(pinhole[:, :100], cam)


def test_undistorted_camera_keeps_K_and_pose_by_default() -> None:
    cam = camera("barrel")
    flat = ds.undistorted_camera(cam)
    assert flat.distortion is None and torch.equal(flat.K, cam.K)
    assert (flat.width, flat.height) == (640, 480)
    assert torch.equal(flat.world_from_cam, cam.world_from_cam)
    same = ds.undistorted_camera(flat, alpha=0.0)
    assert torch.equal(same.K, cam.K)


def test_pinhole_pictures_are_returned_untouched() -> None:
    picture = torch.rand(3, 480, 640)
    for cam in (Camera(640, 480, K), Camera(640, 480), camera("barrel").replace(distortion=None)):
        for resample in (ds.undistort_image, ds.distort_image):
            same, valid = resample(picture, cam)
            assert same is picture and bool(valid.all())
    # Another pinhole camera is still honoured.
    half = Camera(320, 240, pj.resize_intrinsics(K, (640, 480), (320, 240)))
    small, valid = ds.undistort_image(picture, Camera(640, 480, K), half)
    assert small.shape == (3, 240, 320) and bool(valid.all())
    assert torch.allclose(small, picture.reshape(3, 240, 2, 320, 2).mean(dim=(2, 4)), atol=1e-3)


@pytest.mark.parametrize("name", ["barrel", "pincushion", "rational", "fisheye"])
def test_alpha_and_crop(name: str) -> None:
    cam = camera(name)
    picture = torch.ones(1, 480, 640)
    tight = ds.undistorted_camera(cam, alpha=0.0)
    assert bool(ds.undistort_image(picture, cam, tight)[1].all())
    wide = ds.undistorted_camera(cam, alpha=1.0)
    border = torch.tensor([[0.0, 0.0], [640, 0], [0, 480], [640, 480], [320, 0], [0, 240]], dtype=F64)
    seen = ds.undistort_points(border, cam, wide)
    assert bool((seen >= -1e-6).all()) and bool((seen <= torch.tensor([640.0, 480.0]) + 1e-6).all())
    assert wide.K[0, 0] < tight.K[0, 0]
    assert wide.K[1, 1] / wide.K[0, 0] == pytest.approx(510 / 520)
    cut = ds.undistorted_camera(cam, crop=True)
    assert cut.K[0, 0] == 520 and cut.width <= 640 and cut.height <= 480
    assert bool(ds.undistort_image(picture, cam, cut)[1].all())


def test_undistortion_errors() -> None:
    cam = camera("barrel")
    with pytest.raises(InputError, match="alpha"):
        ds.undistorted_camera(cam, alpha=1.5)
    with pytest.raises(InputError, match="either"):
        ds.undistorted_camera(cam, alpha=0.5, crop=True)
    with pytest.raises(InputError, match="intrinsics"):
        ds.undistort_points(torch.zeros(1, 2), cam.replace(K=None))
    wide = Camera(640, 480, intrinsics(150, 150, 320, 240), None, LENSES["fisheye"])
    with pytest.raises(InputError, match="wide"):
        ds.undistorted_camera(wide, alpha=1.0)


@pytest.mark.parametrize("name", ["barrel", "pincushion", "rational", "fisheye"])
def test_single_precision_is_enough_for_pixels(name: str) -> None:
    cam = camera(name)
    xy = pixel_grid(480, 640)[::40, ::40].reshape(-1, 2)
    flat = ds.undistort_points(xy, cam)
    assert flat.dtype == torch.float32
    assert (flat - ds.undistort_points(xy.double(), cam)).abs().max() < 5e-3
    assert (ds.distort_points(flat, cam) - xy).abs().max() < 2e-3
    _, valid = ds.undistort_normalized_checked(normalize_pixels(xy, K.float()), cam.distortion)
    assert bool(valid.all())
