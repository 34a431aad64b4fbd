"""Candidates of sparse prompts: planes, neighbours, outliers, triangles, few points, padding."""

from __future__ import annotations

import math

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.data.prompt_candidates import PromptCandidates, prompt_candidates

H, W = 24, 32


def plane_depth() -> torch.Tensor:
    """(H, W) z-depth of a plane: inverse depth is linear in pixels."""
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    return 1 / (0.3 + 0.004 * x + 0.006 * y)


def sparse(depth: torch.Tensor, count: int, seed: int = 0, corners: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    keep = torch.zeros(depth.numel(), dtype=torch.bool)
    keep[torch.randperm(depth.numel(), generator=generator)[:count]] = True
    keep = keep.reshape(depth.shape)
    if corners:
        keep[0, 0] = keep[0, -1] = keep[-1, 0] = keep[-1, -1] = True
    return torch.where(keep, depth, 0.0)


def test_planes_are_followed_exactly_by_triangles_and_slopes() -> None:
    depth = plane_depth()
    found = prompt_candidates(sparse(depth, 60, corners=True))
    y, x = torch.meshgrid(torch.arange(12) * 2 + 1.0, torch.arange(16) * 2 + 1.0, indexing="ij")
    truth = (0.3 + 0.004 * x + 0.006 * y).log() - found.middle
    torch.testing.assert_close(found.maps[0, 0], truth, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.maps[0, 1], truth, atol=2e-5, rtol=0)
    inverse = (found.value[0] + found.middle).exp()
    slope = torch.stack([0.004 / inverse, 0.006 / inverse], -1)
    # The ridge and the log bend slopes a little.
    torch.testing.assert_close(found.slope[0], slope, atol=3e-4, rtol=0.12)
    assert float(found.features[0, :, 1].max()) < 0.03


def test_neighbours_are_the_nearest_ones() -> None:
    found = prompt_candidates(sparse(plane_depth(), 40), nearest=5, around=6)
    xy = found.xy[0]
    assert bool((xy % 1 == 0.5).all())
    far = torch.cdist(xy, xy)
    far.fill_diagonal_(math.inf)
    torch.testing.assert_close(far.gather(1, found.around[0]), far.sort(1).values[:, :6], atol=1e-6, rtol=0)
    cells = (
        torch.stack(torch.meshgrid(torch.arange(12), torch.arange(16), indexing="ij"), -1).flip(-1) * 2 + 1.0
    )
    distance = torch.cdist(cells.reshape(-1, 2), xy)
    chosen = distance.gather(1, found.nearest[0].reshape(5, -1).T)
    torch.testing.assert_close(chosen, distance.sort(1).values[:, :5], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.maps[0, 3].reshape(-1), distance.amin(1) / math.sqrt(H * W / 40), atol=1e-5, rtol=0
    )


def test_a_wrong_point_stands_out_and_is_left_out_of_the_second_triangulation() -> None:
    depth = plane_depth()
    given = sparse(depth, 80, corners=True)
    rows, cols = torch.nonzero(given > 0, as_tuple=True)
    middle = int(((rows - H / 2) ** 2 + (cols - W / 2) ** 2).argmin())
    given[rows[middle], cols[middle]] *= 1.6
    found = prompt_candidates(given)
    off = found.features[0, :, 1]
    assert int(off.argmax()) == middle
    assert abs(float(off[middle]) - math.log(1.6)) < 0.05
    y, x = torch.meshgrid(torch.arange(12) * 2 + 1.0, torch.arange(16) * 2 + 1.0, indexing="ij")
    truth = (0.3 + 0.004 * x + 0.006 * y).log() - found.middle
    assert float((found.maps[0, 0] - truth).abs().max()) > 0.2
    assert float((found.maps[0, 1] - truth).abs().max()) < 1e-3


def test_the_unit_changes_nothing_but_the_middle() -> None:
    given = sparse(plane_depth(), 50)
    metres, millimetres = prompt_candidates(given), prompt_candidates(given * 1000)
    for name in ("value", "slope", "features", "maps"):
        torch.testing.assert_close(getattr(metres, name), getattr(millimetres, name), atol=1e-5, rtol=1e-5)
    assert abs(float(metres.middle - millimetres.middle) - math.log(1000)) < 1e-5


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_few_points_give_finite_candidates(count: int) -> None:
    found = prompt_candidates(sparse(plane_depth(), count, seed=3))
    for name in ("value", "slope", "features", "maps", "spacing"):
        assert bool(torch.isfinite(getattr(found, name)).all()), name
    assert int(found.nearest.max()) < count and int(found.around.max()) < count
    if count == 1:
        assert float(found.maps[0, :3].abs().max()) == 0


def test_points_on_a_line_fall_back_to_the_nearest() -> None:
    given = torch.zeros(H, W)
    given[10] = torch.linspace(1, 3, W)
    found = prompt_candidates(given)
    torch.testing.assert_close(found.maps[:, 0], found.maps[:, 2])


def test_batches_pad_points_and_keep_grids_apart() -> None:
    few, many = prompt_candidates(sparse(plane_depth(), 7)), prompt_candidates(sparse(plane_depth(), 30))
    both = PromptCandidates.stack([few, many])
    assert both.value.shape == (2, 30) and both.count.tolist() == [7, 30]
    torch.testing.assert_close(both.value[0, :7], few.value[0])
    assert int(both.nearest[0].max()) < 7
    assert PromptCandidates.stack([few, many], 16).value.shape == (2, 32)
    assert PromptCandidates.stack([many], 30).value.shape == (1, 30)
    other = prompt_candidates(torch.ones(H, W // 2))
    with pytest.raises(InputError, match="one grid"):
        PromptCandidates.stack([few, other])


def test_a_limit_keeps_points_all_over_the_picture() -> None:
    found = prompt_candidates(plane_depth(), limit=100)
    assert found.value.shape == (1, 100)
    assert float(found.xy[0, :, 1].min()) < 1 and float(found.xy[0, :, 1].max()) > H - 1


def test_bad_prompts_are_refused() -> None:
    with pytest.raises(InputError, match="no points"):
        prompt_candidates(torch.zeros(H, W))
    bad = torch.zeros(H, W)
    bad[3, 3] = -1
    with pytest.raises(InputError, match="negative"):
        prompt_candidates(bad)
    bad[3, 3] = torch.nan
    with pytest.raises(InputError, match="non-finite"):
        prompt_candidates(bad)
    with pytest.raises(InputError, match="does not divide"):
        prompt_candidates(torch.ones(H, W + 1))


def test_the_middle_is_the_median_which_single_far_points_do_not_move() -> None:
    depth = torch.zeros(24, 32)
    for n in range(9):
        depth[2 * n + 1, 3 * n + 1] = 2.0 + 0.1 * n
    moved = depth.clone()
    moved[1, 1], moved[17, 25] = 0.01, 900.0
    found = [prompt_candidates(d) for d in (depth, moved)]
    for one in found:
        assert float(one.middle) == pytest.approx(-math.log(2.4), abs=1e-6)
    doubled = prompt_candidates(2 * depth)
    assert float(doubled.middle) == pytest.approx(-math.log(4.8), abs=1e-6)
    torch.testing.assert_close(doubled.value, found[0].value, rtol=0, atol=1e-5)
