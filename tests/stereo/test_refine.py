"""Slanted-plane refinement."""

from __future__ import annotations

import torch

from relief3d.stereo.refine import _moved, refine_slanted
from relief3d.stereo.views import PreparedView, prepare_view
from relief3d.stereo.winner import Winner
from stereo.analytic_scenes import ARC, Plane, make_scene

SLANTED = [Plane((0.4, 0.3, 1.0), 3.0)]
FLOOR = 2.0 / 255.0**2


def _views() -> tuple[list[PreparedView], torch.Tensor]:
    scene = make_scene(SLANTED, ARC)
    depth = scene.views[2].load_depth()
    assert depth is not None
    return [prepare_view(v, i, 128, "cpu") for i, v in enumerate(scene.views)], 1 / depth.values


def _refine(views: list[PreparedView], start: torch.Tensor, seed: int = 0, iterations: int = 1) -> Winner:
    return refine_slanted(
        views[2],
        [views[1], views[3]],
        Winner(start, torch.zeros_like(start), 0.02),
        iterations=iterations,
        best=1,
        limits=(0.1, 1.0),
        variance_floor=FLOOR,
        generator=torch.Generator().manual_seed(seed),
    )


def test_moving_a_hypothesis_is_exact_on_a_plane() -> None:
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(9.0), indexing="ij")
    rho = 0.5 + 0.01 * x - 0.02 * y
    plane = torch.stack([rho, torch.full_like(rho, 0.01), torch.full_like(rho, -0.02)])
    for dy, dx in ((1, 0), (0, -1), (-5, 0), (0, 5)):
        moved = _moved(plane, dy, dx)
        inside = moved[0] > 0
        torch.testing.assert_close(moved[:, inside], plane[:, inside])
        assert int(inside.sum()) == (8 - abs(dy)) * (9 - abs(dx))


def test_moves_from_unknown_or_outside_stay_unknown() -> None:
    assert float(_moved(torch.zeros(3, 4, 4), 1, 0).abs().sum()) == 0
    assert float(_moved(torch.ones(3, 4, 4), 5, 0).abs().sum()) == 0


def test_removes_the_stairs_of_a_sweep() -> None:
    views, truth = _views()
    stairs = (truth / 0.02).round() * 0.02
    got = _refine(views, stairs, iterations=2)
    inner = (slice(8, -8), slice(16, -16))
    before = (stairs / truth - 1).abs()[inner].mean()
    after = (got.inverse_depth / truth - 1).abs()[inner].mean()
    assert float(after) < 0.25 * float(before)
    assert float(got.zncc[inner].median()) > 0.9


def test_fills_pixels_without_depth_from_their_neighbours() -> None:
    views, truth = _views()
    start = truth.clone()
    start[40:44, 60:64] = 0
    got = _refine(views, start)
    error = (got.inverse_depth[40:44, 60:64] / truth[40:44, 60:64] - 1).abs()
    assert float(error.max()) < 0.02


def test_seed_decides() -> None:
    views, truth = _views()
    start = (truth / 0.02).round() * 0.02
    a, b, c = (_refine(views, start, seed).inverse_depth for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_masks_and_limits_are_kept() -> None:
    views, truth = _views()
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[:20] = False
    masked = PreparedView(2, "m", views[2].camera, views[2].grey, mask)
    got = _refine([*views[:2], masked, *views[3:]], truth)
    assert float(got.inverse_depth[:20].abs().sum()) == 0 and float(got.inverse_depth[25:].median()) > 0
    blind = [PreparedView(i, "b", v.camera, v.grey, torch.zeros_like(mask)) for i, v in enumerate(views)]
    nothing = _refine([blind[0], blind[1], views[2], blind[3]], truth)
    assert float(nothing.inverse_depth.abs().sum()) == 0 and bool(torch.isfinite(nothing.zncc).all())
