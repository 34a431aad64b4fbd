"""Semi-global aggregation against an independent dynamic programme."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from relief3d.stereo.sgm import aggregate

DIRECTIONS = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]


def brute_force(
    cost: np.ndarray, grey: np.ndarray, p1: float, p2: float, scale: float, paths: int
) -> np.ndarray:
    H, W, D = cost.shape
    total = np.zeros_like(cost)
    for dy, dx in DIRECTIONS[:paths]:
        memo: dict[tuple[int, int], np.ndarray] = {}

        def path(y: int, x: int, dy: int = dy, dx: int = dx, memo: dict = memo) -> np.ndarray:
            if (y, x) not in memo:
                py, px = y - dy, x - dx
                here = cost[y, x].astype(np.float64)
                if 0 <= py < H and 0 <= px < W:
                    before = path(py, px)
                    jump = max(p1, p2 / (1 + abs(float(grey[y, x]) - float(grey[py, px])) / scale))
                    best = [
                        min(before[k] + (0 if k == d else p1 if abs(k - d) == 1 else jump) for k in range(D))
                        for d in range(D)
                    ]
                    here = here + np.array(best) - before.min()
                memo[(y, x)] = here
            return memo[(y, x)]

        for y in range(H):
            for x in range(W):
                total[y, x] += path(y, x)
    return total / paths


@pytest.mark.parametrize("paths", [4, 8])
def test_matches_brute_force(paths: int) -> None:
    generator = torch.Generator().manual_seed(3)
    cost = torch.rand(5, 6, 7, generator=generator)
    grey = torch.rand(5, 6, generator=generator)
    got = aggregate(cost, grey, p1=0.1, p2=0.6, edge_scale=0.2, paths=paths)
    want = brute_force(cost.numpy(), grey.numpy(), 0.1, 0.6, 0.2, paths)
    np.testing.assert_allclose(got.numpy(), want, atol=1e-5)


def test_zero_penalty_returns_the_cost() -> None:
    cost = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(0))
    got = aggregate(cost, torch.zeros(4, 5), p1=0.0, p2=0.0)
    # L = C + min(before) - min(before) on every path.
    torch.testing.assert_close(got, cost)


def test_fills_a_pixel_without_information() -> None:
    cost = torch.ones(7, 7, 9)
    cost[:, :, 4] = 0.1
    cost[3, 3] = 1.0
    got = aggregate(cost, torch.zeros(7, 7))
    assert int(got[3, 3].argmin()) == 4


def test_unknown_number_of_paths() -> None:
    with pytest.raises(ValueError, match="4 or 8"):
        aggregate(torch.zeros(2, 2, 2), torch.zeros(2, 2), paths=5)
