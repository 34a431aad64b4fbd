"""Imitated depth sources: the errors they are said to make are there, in the size they are said to have."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.geometry.projection import fov_from_intrinsics
from relief3d.worlds.depth_sources import (
    CapturedErrors,
    ReconstructedErrors,
    draw_family,
    observe,
    random_camera,
    reconstruct_like,
    source_statistics,
    texture_of,
)
from relief3d.worlds.ranging_pictures import Rig, cam_from_sensor, scan_pictures
from relief3d.worlds.sequences import make_sequences

SIZE = (120, 160)
QUIET = ReconstructedErrors(holes=0, failures=0, fattened=0, thin=0, drift=0, noise=0)


def scene() -> tuple[Tensor, Tensor, Tensor]:
    """Picture, depth and K: a wall at 4 m with a box at 2 m, sky above; left half textured, right half plain."""
    g = torch_generator(9)
    image = torch.full((3, *SIZE), 0.5)
    image[:, :, :80] += 0.4 * (torch.rand(1, SIZE[0], 80, generator=g) - 0.5)
    depth = torch.full(SIZE, 4.0)
    depth[50:90, 60:110] = 2.0
    depth[:15] = 0.0
    K = torch.tensor([[150.0, 0, 80], [0, 150, 60], [0, 0, 1]])
    return image, depth, K


def reconstructed(errors: ReconstructedErrors, seed: int = 0) -> Tensor:
    image, depth, _ = scene()
    return reconstruct_like(image, depth, torch_generator(seed), errors)


def test_rendered_depth_is_exact_and_sources_repeat_under_a_seed() -> None:
    image, depth, K = scene()
    clean = observe("rendered", image, depth, K, torch_generator(0))
    assert (
        torch.equal(clean.depth, depth)
        and clean.synthetic
        and source_statistics(clean.depth, depth)["edge"] == 0
    )
    for family in ("reconstructed", "captured"):
        one, two, other = (observe(family, image, depth, K, torch_generator(s)) for s in (1, 1, 2))
        assert torch.equal(one.depth, two.depth) and one.device == two.device and not one.synthetic
        assert not torch.equal(one.depth, other.depth)
        assert bool(torch.isfinite(one.depth).all()) and float(one.depth.min()) == 0
    with pytest.raises(InputError, match="unknown family"):
        observe("imagined", image, depth, K, torch_generator(0))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no sensor"):
        CapturedErrors(devices={"sonar": 1.0})  # type: ignore[dict-item]


def test_holes_are_where_texture_is_weak() -> None:
    image, _, _ = scene()
    assert float(texture_of(image)[60, 20]) > 0.05 > 0.001 > float(texture_of(image)[60, 140])
    lost = torch.stack([reconstructed(replace(QUIET, holes=0.8), s) == 0 for s in range(8)]).float().mean(0)
    left, right = float(lost[20:, :72].mean()), float(lost[20:, 96:].mean())
    assert right == pytest.approx(0.8, abs=0.1) and left == pytest.approx(0.08, abs=0.06)
    assert float(lost[:10].min()) == 1.0  # the sky has no depth
    one = (reconstructed(replace(QUIET, holes=0.8), 3) == 0)[20:, 96:]
    changes = (one[:, 1:] != one[:, :-1]).float().mean()
    assert float(changes) < 0.15  # connected patches, not single pixels


def test_foreground_grows_by_the_pixels_it_is_said_to() -> None:
    grown = reconstructed(replace(QUIET, fattened=1.0, fatten=16.0))  # 16 of 640 pixels are 4 of 160
    near = (grown > 0) & (grown < 3)
    rows, cols = near.nonzero().T
    assert (int(rows.min()), int(rows.max()), int(cols.min()), int(cols.max())) == (46, 93, 56, 113)
    stats = source_statistics(grown, scene()[1])
    assert stats["nearer"] > 0.3 and stats["flat"] < 0.05
    half = source_statistics(reconstructed(replace(QUIET, fattened=0.5, fatten=16.0)), scene()[1])
    assert 0.1 < half["nearer"] < 0.9 * stats["nearer"]


def test_wrong_patches_drift_noise_and_lost_thin_things() -> None:
    _, depth, _ = scene()
    stats = [source_statistics(reconstructed(replace(QUIET, failures=0.06), s), depth) for s in range(8)]
    off = sum(s["outliers"] for s in stats) / 8
    assert 0.02 < off < 0.1 and max(s["median"] for s in stats) < 1e-6
    log = torch.stack(
        [(reconstructed(replace(QUIET, drift=0.05), s)[20:] / depth[20:]).log() for s in range(6)]
    )
    assert float(log.std()) == pytest.approx(0.05, rel=0.25)
    assert float((log[..., 1:] - log[..., :-1]).abs().max()) < 0.01  # low frequency
    noisy = 1 / reconstructed(replace(QUIET, noise=0.02))[20:] - 1 / depth[20:]
    assert float(noisy.std()) == pytest.approx(0.02 * 0.25, rel=0.1)
    thin, image = depth.clone(), scene()[0]
    thin[20:, 30] = 2.0
    vanished = reconstruct_like(image, thin, torch_generator(0), replace(QUIET, thin=8.0))
    gone = float((vanished[20:, 30] == 4.0).float().mean())
    assert 0.1 < gone < 0.9  # in places; the box stays
    assert float((vanished[55:85, 65:105] == 2.0).float().mean()) == 1.0


def captured(device: str, seed: int = 0, **changes) -> Tensor:
    image, depth, K = scene()
    errors = CapturedErrors(devices={device: 1.0}, **changes)
    albedo = torch.full_like(image, 0.5)
    return observe("captured", image, depth, K, torch_generator(seed), albedo=albedo, captured=errors).depth


def test_lidar_has_lines_and_is_displaced() -> None:
    _, depth, _ = scene()
    made = captured("lidar", lines=(16, 16), shift=0.0, dropout=0.0, noise=0.0, range_share=(1.0, 1.0))
    known = made > 0
    assert 0.02 < float(known.float().mean()) < 0.2
    assert float(known.any(1).float().mean()) < 0.6  # rows between the lines are empty
    assert torch.equal(made[known], depth[known])
    thinned = captured("lidar", lines=(16, 16), shift=0.0, dropout=0.4, noise=0.0, range_share=(1.0, 1.0)) > 0
    assert float(thinned.sum() / known.sum()) == pytest.approx(0.6, abs=0.06)
    wrong = []
    for seed in range(8):
        moved = captured(
            "lidar", seed, lines=(40, 40), shift=16.0, dropout=0.0, noise=0.0, range_share=(1.0, 1.0)
        )
        wrong.append(source_statistics(moved, depth))
    assert sum(s["edge"] for s in wrong) / 8 > 0.03 and max(s["flat"] for s in wrong) < 0.04
    image, depth, K = scene()
    albedo = torch.full_like(image, 0.5)
    albedo[:, :, 80:] = 0.003
    only = CapturedErrors(devices={"lidar": 1.0})
    dark = observe("captured", image, depth, K, torch_generator(0), albedo=albedo, captured=only).depth
    assert int((dark[:, 90:] > 0).sum()) < 0.15 * int((dark[:, :70] > 0).sum())


def test_time_of_flight_has_a_range_and_soft_edges() -> None:
    _, depth, _ = scene()
    made = captured("tof", noise=0.004)
    stats = source_statistics(made, depth)
    assert 0.02 < stats["holes"] < 0.35 and stats["median"] < 0.02
    assert stats["edge"] > 3 * stats["flat"]
    slope = torch.linspace(1, 9, 160).expand(SIZE)
    image, _, K = scene()
    cut = observe(
        "captured",
        image,
        slope,
        K,
        torch_generator(0),
        captured=CapturedErrors({"tof": 1.0}, range_share=(0.5, 0.5)),
    ).depth
    assert 4.8 < float(cut.max()) < 5.2


def test_sparse_sources_know_little_and_some_of_it_is_wrong() -> None:
    _, depth, _ = scene()
    made = captured("sparse", sparse=(0.04, 0.04), outliers=0.1, noise=0.01)
    stats = source_statistics(made, depth)
    assert 1 - stats["holes"] == pytest.approx(0.04, abs=0.008)
    assert 0.04 < stats["outliers"] < 0.12 and stats["median"] == pytest.approx(0.0067, rel=0.35)


def test_families_are_drawn_by_the_root_of_their_size() -> None:
    g = torch_generator(0)
    sizes = {"reconstructed": 10_000, "captured": 2_500, "rendered": 2_500}
    drawn = [draw_family(sizes, g) for _ in range(2000)]
    assert drawn.count("reconstructed") / 2000 == pytest.approx(0.5, abs=0.04)
    few = [draw_family({**sizes, "rendered": 1}, g) for _ in range(2000)]
    assert few.count("rendered") / 2000 == pytest.approx(0.15, abs=0.025)
    assert few.count("reconstructed") / 2000 == pytest.approx(0.85 * 2 / 3, abs=0.04)
    assert {draw_family({"captured": 3, "rendered": 0}, g) for _ in range(60)} == {"captured"}
    assert draw_family({"captured": 0, "rendered": 5}, g) == "rendered"
    with pytest.raises(InputError, match="no family has samples"):
        draw_family({"captured": 0}, g)


def test_cameras_differ_within_their_ranges() -> None:
    g = torch_generator(1)
    cameras = [random_camera(g) for _ in range(300)]
    for c in cameras:
        (height, width), K = c.size, c.K
        assert height % 8 == width % 8 == 0 and 0.75 < height * width / 128**2 < 1.3
        assert 0.45 <= width / height <= 2.2 and K[0, 0] == K[1, 1]
        full = 2 * math.degrees(math.atan(max(c.size) / 2 / float(K[0, 0])))
        assert 30 <= full <= 110
        assert abs(float(K[0, 2]) / width - 0.5) <= 0.03 and abs(float(K[1, 2]) / height - 0.5) <= 0.03
    angles = torch.stack([fov_from_intrinsics(c.K, c.size[1], c.size[0]).max() for c in cameras]).rad2deg()
    assert float(angles.min()) < 35 and float(angles.max()) > 105
    ratios = [c.size[1] / c.size[0] for c in cameras]
    assert min(ratios) < 0.6 and max(ratios) > 1.8 and len({c.size for c in cameras}) > 20
    assert len({float(c.K[0, 0]) for c in cameras}) == 300


@pytest.fixture(scope="module")
def views(room):
    path = make_sequences(room, views=2, seed=2, size=(72, 96))
    K, pose = path.K[:, 0], path.world_from_cam[:, 0]
    depth = room.render((K[:, None], pose[:, None]), (72, 96)).depth[:, 0]
    return K, pose, depth


def test_a_lidar_beside_the_camera_lands_on_the_surfaces(room, views) -> None:
    K, pose, depth = views
    at_camera = Rig(offset=(0.0, 0.0, 0.0), noise=0.0)
    made, _ = scan_pictures(room, K, pose, (72, 96), torch_generator(0), at_camera)
    both = (made[0] > 0) & (depth[0] > 0)
    error = (made[0] / depth[0] - 1)[both].abs()
    assert int(both.sum()) > 800 and float(error.median()) < 0.01
    assert float((error > 0.1).float().mean()) < 0.02  # the same point of view: nothing is seen through
    aside = Rig(offset=(0.4, -0.3, 0.0), noise=0.0)
    beside, _ = scan_pictures(room, K, pose, (72, 96), torch_generator(0), aside)
    known = (beside[0] > 0) & (depth[0] > 0)
    assert float((beside[0] / depth[0] - 1)[known].abs().median()) < 0.01
    cleaned, _ = scan_pictures(room, K, pose, (72, 96), torch_generator(0), replace(aside, occlusion=True))
    kept = cleaned > 0
    assert torch.equal(cleaned[kept], beside[kept])
    assert 0.9 < float(kept.sum() / (beside > 0).sum()) < 0.999  # some points lie behind a nearer one


def test_calibration_errors_and_radar(room, views) -> None:
    K, pose, depth = views
    exact, wrong = (
        scan_pictures(room, K, pose, (72, 96), torch_generator(0), Rig(noise=0.0, angle_error=a))[0][0]
        for a in (0.0, 2.0)
    )
    errors = [(m / depth[0] - 1)[(m > 0) & (depth[0] > 0)].abs().mean() for m in (exact, wrong)]
    assert float(errors[1]) > 1.2 * float(errors[0])
    radar, scan = scan_pictures(room, K, pose, (72, 96), torch_generator(0), Rig("radar"))
    assert 5 < int((radar[0] > 0).sum()) <= int(scan.valid.sum()) <= 96
    rows = radar[0].nonzero()[:, 0]
    assert int(rows.max()) - int(rows.min()) < 30  # height is not measured: all in a band
    looking = cam_from_sensor((0.0, 0.0, 0.0))[:3, :3] @ torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert looking.tolist() == [0.0, 0.0, 1.0]
