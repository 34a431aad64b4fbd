"""Panoramas of a procedural room with exact distances: directions, views, merging of views that disagree in scale."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.panorama import (
    icosahedron_views,
    merge_distances,
    panorama_directions,
    panorama_pixels,
    split_panorama,
)
from relief3d.geometry.projection import pixel_rays
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.generate import make_world
from relief3d.worlds.ranging import lidar_scan

SIDE, SIZE = 48, (64, 128)


@cache
def room() -> tuple[Tensor, Tensor, Tensor]:
    """True panorama (H, W), and distances (12, side, side) of the views, both by casting rays; metres."""
    world = make_world(5, WorldConfig(texture_size=32)).compact()
    # The panorama's down is the world's -z.
    pose = torch.eye(4)
    pose[:3, :3] = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    pose[:3, 3] = torch.tensor([0.3, -0.2, 1.5])

    def cast(directions: Tensor) -> Tensor:
        flat = torch.nn.functional.normalize(directions.reshape(-1, 3), dim=-1).float()
        scan = lidar_scan(world, pose[None], flat, torch.Generator().manual_seed(0))
        return scan.true_range[0].reshape(directions.shape[:-1])

    views = icosahedron_views(SIDE)
    rays = pixel_rays(views.K, SIDE, SIDE) @ views.pano_from_view.mT[:, None]
    truth, seen = cast(panorama_directions(*SIZE)), cast(rays)
    return truth, seen, seen > 0


def errors(found: Tensor, truth: Tensor) -> Tensor:
    """Absolute log ratios, largest last."""
    return (found / truth).log().abs().flatten().sort().values


def test_directions_and_pixels_belong_together() -> None:
    d = panorama_directions(*SIZE)
    torch.testing.assert_close(d.norm(dim=-1), torch.ones(SIZE, dtype=torch.float64))
    xy = panorama_pixels(3 * d, *SIZE)
    assert float((xy[..., 0] - (torch.arange(128) + 0.5)).abs().max()) < 1e-9
    assert float((xy[..., 1] - (torch.arange(64) + 0.5)[:, None]).abs().max()) < 1e-9
    axes = torch.eye(3, dtype=torch.float64)
    # Right is a quarter further, down is the last row, forward is the middle.
    assert panorama_pixels(axes, 64, 128)[[0, 2]].tolist() == [[96, 32], [64, 32]]
    assert float(panorama_pixels(axes[1], 64, 128)[1]) == 64
    assert float(panorama_pixels(-axes[2] + 1e-9 * axes[0], 64, 128)[0]) == pytest.approx(128)


def test_views_are_upright_rotations_that_cover_the_sphere() -> None:
    views = icosahedron_views(90)
    R = views.pano_from_view
    eye = torch.eye(3, dtype=torch.float64).expand(12, 3, 3)
    torch.testing.assert_close(R @ R.mT, eye)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(12, dtype=torch.float64))
    assert bool((R[:, 1, 0].abs() < 1e-12).all()) and bool((R[:, 1, 1] > 0).all())
    angles = (R[:, :, 2] @ R[:, :, 2].mT).clamp(-1, 1).acos()
    nearest = angles.sort(dim=-1).values[:, 1:6]
    torch.testing.assert_close(nearest, torch.full_like(nearest, math.acos(1 / math.sqrt(5))))
    assert float(views.K[0, 0]) == pytest.approx(45) and float(views.K[0, 2]) == 45
    local = panorama_directions(60, 120) @ R[:, None]
    inside = (local[..., :2].abs() <= local[..., 2:]).all(-1)
    assert bool(inside.any(0).all()) and float(inside.sum(0).double().mean()) > 1.5


def test_pictures_of_views_show_what_lies_there() -> None:
    """A panorama coloured by direction, coarse and fine (which is reduced first), also across its seam."""
    views = icosahedron_views(24)
    rays = pixel_rays(views.K, 24, 24) @ views.pano_from_view.mT[:, None]
    expected = torch.nn.functional.normalize(rays, dim=-1).movedim(-1, 1)
    for height, limit in ((90, 0.02), (400, 0.04)):
        image = panorama_directions(height, 2 * height).movedim(-1, 0)
        found = split_panorama(image, views, 24)
        assert found.shape == (12, 3, 24, 24)
        assert float((found - expected).abs().max()) < limit


def test_views_that_agree_give_the_true_distances() -> None:
    truth, seen, valid = room()
    assert bool(valid.all()) and float(truth.max() / truth.min()) > 3
    merged = merge_distances(seen, valid, icosahedron_views(SIDE), SIZE)
    wrong = errors(merged.distance, truth)
    assert bool(merged.valid.all()) and merged.distance.dtype == seen.dtype
    assert float(wrong[len(wrong) // 2]) < 0.004 and float(wrong[int(0.9 * len(wrong))]) < 0.04
    torch.testing.assert_close(merged.scales, torch.ones(12), rtol=0.01, atol=0)


def test_views_that_disagree_in_scale_are_brought_together_and_metres_survive() -> None:
    truth, seen, valid = room()
    views = icosahedron_views(SIDE)
    scales = (0.4 * torch.randn(12, generator=torch.Generator().manual_seed(1))).exp()
    merged = merge_distances(seen * scales[:, None, None], valid, views, SIZE)
    ratio = (merged.distance / truth).log()
    spread = (ratio - ratio.median()).abs().flatten().sort().values
    assert float(spread[len(spread) // 2]) < 0.01 and float(spread[int(0.9 * len(spread))]) < 0.06
    # One factor is left: that of the views as a whole, by the median of their distances over the merged ones.
    found = merged.scales / merged.scales.log().mean().exp()
    torch.testing.assert_close(found, scales / scales.log().mean().exp(), rtol=0.02, atol=0)
    # A quarter of the views is far off: metres are those of the others, because the median says how large all is.
    few = torch.where(torch.arange(12) % 4 == 1, 4.0, 1.0)
    others = merge_distances(seen * few[:, None, None], valid, views, SIZE)
    assert float((others.distance / truth).log().median().abs()) < 0.02
    torch.testing.assert_close(others.scales, few, rtol=0.03, atol=0)
    # Twice the distances are twice the result.
    twice = merge_distances(2 * seen * scales[:, None, None], valid, views, SIZE)
    torch.testing.assert_close(twice.distance, 2 * merged.distance, rtol=1e-3, atol=0)


def test_sky_is_left_out_and_parts_without_neighbours_keep_their_distance() -> None:
    truth, seen, valid = room()
    views = icosahedron_views(SIDE)
    rays = (
        torch.nn.functional.normalize(pixel_rays(views.K, SIDE, SIDE), dim=-1)
        @ views.pano_from_view.mT[:, None]
    )
    island = rays[..., 1] < -0.92  # up
    ground = rays[..., 1] > -0.4
    merged = merge_distances(seen, valid & (island | ground), views, SIZE)
    y = panorama_directions(*SIZE)[..., 1]
    assert not bool(merged.valid[(y > -0.85) & (y < -0.45)].any())
    assert not bool(merged.distance[~merged.valid].any())
    assert bool(merged.valid[y < -0.96].all()) and bool(merged.valid[y > -0.3].all())
    wrong = errors(merged.distance[y < -0.96], truth[y < -0.96])
    assert float(wrong[len(wrong) // 2]) < 0.02


def test_bad_input_is_refused() -> None:
    _, seen, valid = room()
    views = icosahedron_views(SIDE)
    with pytest.raises(InputError, match="12 distance maps"):
        merge_distances(seen[:3], valid[:3], views, SIZE)
    with pytest.raises(InputError, match="no valid pixels"):
        merge_distances(seen, valid & False, views, SIZE)
