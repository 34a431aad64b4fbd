"""Corners, their motion, and the epipolar check, against motions that are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relief3d.core.seeding import torch_generator
from relief3d.geometry.sampling import sample_image
from relief3d.labelling.epipolar import epipolar_agreement, fundamental_inliers, verify
from relief3d.labelling.labelers.lk_tracks import LkTrackOptions, track_window, verified_tracks
from relief3d.labelling.lucas_kanade import find_corners, follow, follow_there_and_back, pyramid

WIDTH, HEIGHT = 120, 90


def waves(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch_generator(seed)
    frequency = (torch.rand(24, 2, generator=g) - 0.5) * 1.6
    return frequency, torch.rand(24, generator=g) * 2 * math.pi, torch.rand(24, generator=g)


def texture(xy: Tensor, seed: int = 0) -> Tensor:
    """A smooth random picture (*,) that can be read at any position (*, 2)."""
    frequency, phase, weight = waves(seed)
    value = (weight * torch.sin((xy[..., None, :] * frequency).sum(-1) + phase)).sum(-1)
    return 0.5 + 0.08 * value


def picture(offset: tuple[float, float] = (0.0, 0.0), scale: float = 1.0) -> Tensor:
    """(H, W); what stands at p in the plain picture stands at ``scale * p + offset`` here."""
    ys, xs = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    xy = torch.stack([xs, ys], dim=-1)
    return texture((xy - torch.tensor(offset)) / scale)


@pytest.mark.parametrize("offset", [(0.37, -0.61), (7.3, -5.2), (-8.6, 4.1)])
def test_shifts_are_found_to_a_fiftieth_of_a_pixel(offset: tuple[float, float]) -> None:
    a, b = pyramid(picture(), 4), pyramid(picture(offset), 4)
    corners = find_corners(picture(), 120, border=20, distance=2)
    xy, good = follow(a, b, corners)
    error = (xy - corners - torch.tensor(offset)).norm(dim=1)
    assert len(corners) >= 12 and good.float().mean() > 0.9
    assert float(error[good].median()) < 0.02 and float(error[good].max()) < 0.1


def test_positions_are_pixel_centres_on_every_level() -> None:
    # A zoom about the origin moves every point by its own amount; half a pixel of offset per level would show.
    a, b = pyramid(picture(), 4), pyramid(picture(scale=1.05), 4)
    corners = find_corners(picture(), 120, border=16, distance=2)
    xy, good = follow(a, b, corners)
    inside = good & (corners[:, 0] < 95) & (corners[:, 1] < 70)
    error = (xy - 1.05 * corners)[inside]
    assert int(inside.sum()) > 10
    assert error.mean(0).abs().max() < 0.03 and error.norm(dim=1).median() < 0.08


def test_flat_regions_and_edges_have_no_corners() -> None:
    flat = torch.full((HEIGHT, WIDTH), 0.5)
    assert len(find_corners(flat, 50)) == 0
    edge = flat.clone()
    edge[:, 60:] = 0.9
    assert len(find_corners(edge, 50, border=10)) == 0
    square = flat.clone()
    square[30:60, 40:80] = 0.9
    found = find_corners(square, 4, border=5)
    truth = torch.tensor([[40.0, 30.0], [80.0, 30.0], [40.0, 60.0], [80.0, 60.0]])
    # The whole neighbourhood whose window holds the corner is equally good.
    assert torch.cdist(found, truth).min(0).values.max() < 5.5 * 2**0.5


def test_what_does_not_return_is_lost() -> None:
    a = picture()
    b = picture((3.0, 1.0))
    b[:, 60:] = torch.rand(HEIGHT, 60, generator=torch_generator(1))  # the right half is something else now
    corners = find_corners(a, 200, border=16)
    xy, good, error = follow_there_and_back(pyramid(a, 4), pyramid(b, 4), corners, 0.7)
    left = corners[:, 0] < 42
    assert good[left].float().mean() > 0.9 and good[corners[:, 0] > 75].float().mean() < 0.1
    assert float(error[good].max()) <= 0.7
    middle = float(error[good].median())
    _, strict, same = follow_there_and_back(pyramid(a, 4), pyramid(b, 4), corners, middle)
    assert torch.equal(strict, good & (same <= middle)) and int(strict.sum()) < int(good.sum())
    assert (xy - corners - torch.tensor([3.0, 1.0]))[good & left].norm(dim=1).max() < 0.3


def two_views(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Projections of random points into two cameras, float64."""
    g = torch_generator(seed)
    points = torch.rand(count, 3, generator=g, dtype=torch.float64) * torch.tensor([4.0, 3.0, 4.0])
    points = points - torch.tensor([2.0, 1.5, -3.0])
    angle = 0.15
    R = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]],
        dtype=torch.float64,
    )
    moved = points @ R.T + torch.tensor([0.5, 0.05, 0.1])
    centre = torch.tensor([60.0, 45.0], dtype=torch.float64)
    return points[:, :2] / points[:, 2:] * 100 + centre, moved[:, :2] / moved[:, 2:] * 100 + centre


def test_ransac_keeps_what_fits_and_drops_what_does_not() -> None:
    a, b = two_views(120)
    g = torch_generator(3)
    b = b + 0.1 * torch.randn(b.shape, generator=g, dtype=torch.float64)
    wrong = torch.arange(120) % 3 == 0
    b[wrong] = torch.rand(40, 2, generator=g, dtype=torch.float64) * 90
    inside = fundamental_inliers(a, b, 1.0, seed=0)
    assert inside[~wrong].float().mean() > 0.97
    assert inside[wrong].float().mean() < 0.2  # some land by chance beside their epipolar line
    assert torch.equal(inside, fundamental_inliers(a, b, 1.0, seed=0))


def test_agreement_counts_partners_and_lonely_pairs_are_not_judged() -> None:
    a, b = two_views(60)
    xy = torch.stack([a, b, a + 3.0], dim=1)
    visible = torch.ones(60, 3, dtype=torch.bool)
    visible[5:, 2] = False  # too few for a judgement
    agreement, judged = epipolar_agreement(xy, visible, 1.0, seed=0)
    assert judged[:, :2].eq(1).all() and judged[:, 2].eq(0).all()
    assert agreement[:, :2].eq(1).all() and agreement[:, 2].eq(0).all()
    kept, confidence = verify(xy, visible, threshold=1.0, seed=0)
    assert not kept[:, 2].any() and kept[:, :2].all() and confidence[:, 2].eq(0).all()


def test_a_window_is_followed_both_ways_from_its_middle() -> None:
    shifts = [(-4.0, 2.0), (-1.5, 1.0), (0.0, 0.0), (2.5, -1.0), (5.0, -1.5)]
    images = [picture(s)[None].expand(3, -1, -1) for s in shifts]
    xy, seen, error = track_window(images, LkTrackOptions(window=5, step=4, points=60))
    assert seen[:, 2].all() and seen.float().mean() > 0.8
    truth = xy[:, 2:3] + torch.tensor(shifts)
    miss = (xy - truth).norm(dim=-1)[seen]
    assert float(miss.median()) < 0.03 and float(miss.quantile(0.98)) < 0.3
    assert (error[:, 2] == 0).all() and (error[seen] <= 0.7).all()
    tracks = verified_tracks(xy, seen, error, max_return_px=0.7, max_epipolar_px=1.5, seed=0)
    assert len(tracks) > 15 and (tracks.confidence[tracks.visible] > 0.3).all()
    assert (tracks.confidence[~tracks.visible] == 0).all() and (tracks.visible.sum(1) >= 2).all()


def test_bilinear_reading_agrees_with_the_texture() -> None:
    xy = torch.tensor([[40.5, 30.5], [70.25, 20.75]])
    assert (sample_image(picture()[None], xy)[0] - texture(xy)).abs().max() < 0.01
