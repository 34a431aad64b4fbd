"""Test-time prompt patterns: golden values, counts, determinism, naive re-computation of each rule."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.prompt_alignment import fill_holes, nearest_known
from relief3d.data.prompt_patterns import (
    downscale_prompt,
    image_seed,
    lidar_hits,
    low_resolution_prompt,
    make_prompt,
    parse_pattern,
)


@pytest.fixture
def golden(shared_data: Path) -> dict[str, Tensor]:
    return load_file(shared_data.parent / "golden" / "metric_functions.safetensors")


def depth_map(size: tuple[int, int] = (48, 64), holes: float = 0.1, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    depth = 1 + 4 * torch.rand(size, generator=g)
    return torch.where(torch.rand(size, generator=g) < holes, torch.zeros_like(depth), depth)


@pytest.mark.shared
@pytest.mark.parametrize("pattern", ["LiDAR_8", "LiDAR_64", "downscale_8", "downscale_16"])
def test_patterns_have_the_golden_values(golden: dict[str, Tensor], pattern: str) -> None:
    depth = golden["in/prior_depth_with_holes"]
    ours = make_prompt(pattern, depth)
    assert torch.equal(ours.mask, golden[f"priorda/{pattern}_mask"])
    error = (ours.depth - golden[f"priorda/{pattern}_depth"]).abs()
    if pattern.startswith("LiDAR"):
        assert float(error.max()) == 0.0
        return
    # A filled hole with a tie at its fifth neighbour may differ; so may the small pixels it reaches.
    valid = depth > 1e-4
    _, far = nearest_known(valid, torch.nonzero(~valid).flip(-1), 6)
    tied = torch.zeros_like(depth)
    tied[~valid] = ((far[:, 5] - far[:, 4]) < 1e-9).float()
    factor = int(pattern.split("_")[1])
    small = (depth.shape[0] // factor, depth.shape[1] // factor)
    reach = F.interpolate(tied[None, None], small, mode="bilinear", align_corners=True)[0, 0]
    touched = low_resolution_prompt(reach, *depth.shape).mask
    assert float(error[~touched].max()) < 1e-5
    assert float(error.max()) < 0.02


def test_extreme_draws_that_many_valid_pixels_without_replacement() -> None:
    depth = depth_map()
    a, b, c = (make_prompt("100", depth, seed=s) for s in (7, 7, 8))
    assert int(a.mask.sum()) == 100 and bool((a.depth[a.mask] == depth[a.mask]).all())
    assert bool((depth[a.mask] > 0).all()) and float(a.depth[~a.mask].abs().max()) == 0.0
    assert torch.equal(a.mask, b.mask) and not torch.equal(a.mask, c.mask)
    assert int(make_prompt("64000", depth).mask.sum()) == int((depth > 0).sum())


def test_extreme_is_uniform_over_valid_pixels() -> None:
    depth = depth_map((20, 20), holes=0.0)
    hits = sum(make_prompt("40", depth, seed=s).mask.double() for s in range(600))
    assert float(hits.min()) > 20 and float(hits.max()) < 110  # expected 60 each, deviation 7.3


def test_seed_of_a_picture_is_its_crc() -> None:
    assert image_seed("nyu/00001") == zlib.crc32(b"nyu/00001") == image_seed("nyu/00001")


def test_downscale_fills_resizes_and_places_on_a_grid() -> None:
    depth = depth_map((50, 61))
    ours = make_prompt("downscale_8", depth)
    small = F.interpolate(fill_holes(depth)[None, None], (6, 7), mode="bilinear", align_corners=True)[0, 0]
    expected = torch.zeros_like(depth)
    for i in range(6):
        for j in range(7):
            row, col = math.floor(i * 50 / 6), math.floor(j * 61 / 7)
            if depth[row, col] > 0:
                expected[row, col] = small[i, j]
    torch.testing.assert_close(ours.depth, expected)
    assert torch.equal(ours.mask, expected > 0)
    neighbour = F.interpolate(fill_holes(depth)[None, None], (6, 7), mode="bilinear", align_corners=False)[
        0, 0
    ]
    assert float((small - neighbour).abs().max()) > 0.1
    with pytest.raises(InputError, match="cannot be made 64 times smaller"):
        downscale_prompt(depth, depth > 0, 64)


@pytest.mark.parametrize("size", [(50, 61), (375, 1242), (8, 9), (17, 40), (16, 24)])
@pytest.mark.parametrize("factor", [2, 8])
def test_holes_that_the_resize_does_not_read_need_no_filling(size: tuple[int, int], factor: int) -> None:
    depth = depth_map(size, holes=0.3)
    small = F.interpolate(
        fill_holes(depth)[None, None],
        (size[0] // factor, size[1] // factor),
        mode="bilinear",
        align_corners=True,
    )[0, 0]
    whole = low_resolution_prompt(small, *size)
    ours = downscale_prompt(depth, depth > 0, factor)
    torch.testing.assert_close(ours.depth, torch.where(depth > 0, whole.depth, torch.zeros_like(depth)))


def test_low_resolution_sensor_goes_to_the_same_grid() -> None:
    small = depth_map((12, 16), holes=0.2)
    prompt = low_resolution_prompt(small, 48, 64)
    assert int(prompt.mask.sum()) == int((small > 0).sum())
    torch.testing.assert_close(prompt.depth[::4, ::4], small)
    with pytest.raises(InputError, match="does not fit"):
        low_resolution_prompt(depth_map((50, 64)), 48, 64)
    with pytest.raises(InputError, match="already small"):
        make_prompt("downscale_", small)


def test_lidar_lines_hit_what_the_virtual_camera_sees() -> None:
    height, width, lines = 60, 80, 16
    hits = lidar_hits(height, width, lines)
    expected = torch.zeros(height, width, dtype=torch.bool)
    for pitch in np.linspace(-0.5, 0.5, lines):
        for yaw in np.linspace(-np.pi / 2.1, np.pi / 2.1, 200):
            y, x = np.sin(pitch), np.cos(pitch) * np.sin(yaw)
            z = np.sqrt(1 - x * x - y * y)
            u, v = round(height * x / (z + 1e-8) + width / 2), round(height * y / (z + 1e-8) + height / 2)
            if 0 <= u < width and 0 <= v < height:
                expected[v, u] = True
    assert torch.equal(hits, expected)
    depth = depth_map((60, 80))
    prompt = make_prompt("LiDAR_16", depth)
    assert torch.equal(prompt.mask, expected & (depth > 0))
    assert int(make_prompt("LiDAR_8", depth).mask.sum()) < int(prompt.mask.sum())


def test_keypoints_and_their_fallback() -> None:
    depth = depth_map((80, 100), holes=0.05)
    g = torch.Generator().manual_seed(0)
    image = torch.zeros(3, 80, 100)
    for _ in range(60):  # bright blobs are keypoints
        r, c = int(torch.randint(6, 74, (1,), generator=g)), int(torch.randint(6, 94, (1,), generator=g))
        image[:, r : r + 4, c : c + 4] = torch.rand(1, generator=g)
    for kind in ("sift", "orb"):
        prompt = make_prompt(kind, depth, image=image)
        assert 20 <= int(prompt.mask.sum()) < 600, kind
        assert bool((depth[prompt.mask] > 0).all())
        flat = make_prompt(kind, depth, image=torch.full((3, 80, 100), 0.5), seed=3)
        assert torch.equal(flat.mask, make_prompt("2000", depth, seed=3).mask)
    with pytest.raises(InputError, match="needs the picture"):
        make_prompt("sift", depth)
    with pytest.raises(InputError, match="resize the picture"):
        make_prompt("orb", depth, image=image[:, 1:])


def test_square_hole_and_distance_range_keep_the_known_area_whole() -> None:
    depth = depth_map((90, 120), holes=0.05)
    hole = make_prompt("cubic_40", depth, seed=5)
    assert hole.cover is not None
    missing = torch.nonzero((depth > 0) & ~hole.cover)
    span = missing.amax(0) - missing.amin(0) + 1
    assert int(span[0]) <= 40 and int(span[1]) <= 40 and len(missing) > 0.8 * 1600
    assert int(hole.mask.sum()) == 2000 and bool((hole.cover | ~hole.mask).all())
    torch.testing.assert_close(hole.depth[hole.cover], depth[hole.cover])
    near = make_prompt("distance_1.5_2", depth)
    assert near.cover is not None
    assert torch.equal(near.cover, (depth > 1.5) & (depth < 2))
    depth[:3], depth[3:6] = 1.5, 2.0  # the ends do not belong to it
    at_ends = make_prompt("distance_1.5_2", depth).cover
    assert at_ends is not None and not bool(at_ends[:6].any())


def test_radar_like_points_are_few_and_keep_their_column() -> None:
    depth = depth_map((90, 120), holes=0.0)
    depth[:, :60] += 200  # beyond the reach
    prompt = make_prompt("radar", depth, seed=1)
    assert 5 <= int(prompt.mask.sum()) <= 100
    assert float(prompt.depth.max()) < 80 and not bool(prompt.mask[:, :60].any())
    for r, c in torch.nonzero(prompt.mask).tolist():
        assert bool((depth[30:60, c] == prompt.depth[r, c]).any())


def test_patterns_that_leave_too_little_or_do_not_exist() -> None:
    depth = depth_map()
    with pytest.raises(InputError, match="not enough known points: 0 of at least 5"):
        make_prompt("distance_90_99", depth)
    with pytest.raises(InputError, match="not enough known points"):
        make_prompt("100", torch.zeros(10, 10))
    with pytest.raises(InputError, match="not enough known points: 3"):
        make_prompt("3", depth)
    for bad in ("", "0", "8x", "LiDAR_0", "distance_1", "cubic_"):
        with pytest.raises(InputError, match="no prompt pattern"):
            parse_pattern(bad)
    assert parse_pattern("LiDAR_64") == ("lidar", (64.0,))
    outside = make_prompt("50", depth, valid=depth > 3)
    assert float(outside.depth[outside.mask].min()) > 3
