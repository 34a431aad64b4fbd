"""Error pictures show what they say."""

from __future__ import annotations

import pytest
import torch

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.eval.panels import (
    boundary_overlay,
    cloud_panel,
    depth_error_map,
    depth_panel,
    fit,
    task_panels,
    trajectory_panel,
)
from relief3d.eval.protocols.base import Answer, Query, Truth
from relief3d.eval.twins.rendered import ClipPlan, query_scene, render_clip


def test_error_map_is_green_where_right_and_black_where_unknown() -> None:
    g = torch.full((4, 6), 2.0)
    p, valid = g.clone(), torch.ones(4, 6, dtype=torch.bool)
    p[:, 3:] = 4.0
    valid[0] = False
    picture = depth_error_map(p, g, valid).float()
    assert (picture[:, 0] == 0).all()
    right, wrong = picture[:, 1:, :3].mean((1, 2)), picture[:, 1:, 3:].mean((1, 2))
    assert right[1] > right[0] and right[1] > 150, "green"
    assert wrong[0] > wrong[1] + 30 and wrong.mean() < right.mean(), "dark red"


def test_depth_panel_scales_for_display_and_resizes() -> None:
    clip = render_clip(ClipPlan(1, 1, (24, 32)))
    g = clip.depth[0]
    one = depth_panel(clip.images[0], g, g, g > 0)
    two = depth_panel(clip.images[0], 7 * g, g, g > 0)
    # Median scaling undoes the factor up to rounding of single colours.
    assert one.shape == two.shape and (one.int() - two.int()).abs().float().mean() < 1
    assert one.shape == (3, 24, 4 * 32 + 3 * 4)
    small = depth_panel(None, g[::2, ::2], g, g > 0)
    assert small.shape == (3, 24, 3 * 32 + 2 * 4)


def test_boundaries_are_coloured_by_who_has_them() -> None:
    image = torch.zeros(3, 8, 9, dtype=torch.uint8)
    truth, ours = torch.ones(8, 9), torch.ones(8, 9)
    truth[:, 3:] = 2.0
    ours[:, 6:] = 2.0
    picture = boundary_overlay(image, ours, truth)
    assert (picture[:, 0, 3] == torch.tensor([0, 255, 0])).all()
    assert (picture[:, 0, 6] == torch.tensor([255, 0, 0])).all()
    both = boundary_overlay(image, truth, truth)
    assert (both[:, 0, 3] == torch.tensor([255, 255, 0])).all() and (picture[:, 0, 0] == 0).all()


def test_aligned_trajectories_cover_each_other() -> None:
    clip = render_clip(ClipPlan(2, 8, (12, 16)))
    moved = clip.world_from_cam.clone()
    moved[:, :3, 3] = 5 * moved[:, :3, 3] + 3
    same = trajectory_panel(moved, clip.world_from_cam)
    green = (same[1].int() - same[0].int() > 40) & (same[2] < 120)
    away = clip.world_from_cam.clone()
    away[3, :3, 3] += 1.0
    differs = trajectory_panel(away, clip.world_from_cam)
    green_then = (differs[1].int() - differs[0].int() > 40) & (differs[2] < 120)
    assert green_then.sum() > green.sum() + 50, (
        "the true path shows only where the estimate does not cover it"
    )


def test_clouds() -> None:
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    covered = cloud_panel(points, points)
    assert not ((covered[1].int() - covered[0].int()) > 40).any()
    assert ((cloud_panel(points[:0], points)[1].int() - cloud_panel(points[:0], points)[0].int()) > 40).any()
    with pytest.raises(InputError, match="no true points"):
        cloud_panel(points, points[:0])


def test_the_right_pictures_for_what_was_answered() -> None:
    clip = render_clip(ClipPlan(3, 3, (12, 16)))
    query = Query("x", "views", ("depth", "world_from_cam"), query_scene(clip.images))
    mesh = Mesh(torch.rand(9, 3), torch.zeros(1, 3, dtype=torch.int64))
    tensors = {"depth": clip.depth, "world_from_cam": clip.world_from_cam}
    pictures = task_panels(query, Truth(tensors, mesh), Answer(tensors, mesh))
    assert set(pictures) == {"depth", "trajectory", "surface"}
    assert all(p.dtype == torch.uint8 and p.ndim == 3 for p in pictures.values())
    assert task_panels(query, Truth(tensors), Answer()) == {}
    lost = clip.world_from_cam.clone()
    lost[1] = float("nan")
    assert "trajectory" in task_panels(query, Truth(tensors), Answer({"world_from_cam": lost}))


def test_coarse_surfaces_are_seen() -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    square = Mesh(corners, torch.tensor([[0, 1, 2], [0, 2, 3]]))
    query = Query("x", "object", ("mesh",))
    picture = task_panels(query, Truth(mesh=square), Answer(mesh=square))["surface"]
    drawn = (picture[:, 40:-40, 40:-40] < 250).any(0).double().mean()
    assert float(drawn) > 0.1, "four corners alone would leave the middle white"


def test_point_maps_are_drawn_after_a_similarity() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2, 6, 8, 3, generator=generator)
    query = Query("x", "views", ("world_points",))
    truth = Truth({"world_points": points})
    moved = task_panels(query, truth, Answer({"world_points": 3 * points + 1}))["points"]
    wrong = task_panels(query, truth, Answer({"world_points": points.flip(0)}))["points"]

    def green(picture: torch.Tensor) -> int:
        return int(((picture[1].int() - picture[0].int()) > 40).sum())

    assert green(moved) <= 2 < 30 < green(wrong)
    assert "points" not in task_panels(query, truth, Answer({"world_points": points[:1]}))


def test_large_pictures_shrink() -> None:
    assert max(fit(torch.zeros(3, 1000, 300, dtype=torch.uint8)).shape) <= 480
