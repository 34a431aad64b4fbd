"""Speckles, depth edges, normals."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relief3d.stereo.filters import normals_from_inverse_depth, on_edge, remove_speckles


def test_small_regions_go_and_large_stay() -> None:
    inverse = torch.zeros(30, 30)
    inverse[2:12, 2:12] = 0.5
    inverse[20:23, 20:23] = 0.5  # nine pixels
    inverse[5:8, 5:8] = 0.9  # a bump of nine pixels inside the large region
    kept = remove_speckles(inverse, 0.01, 40)
    assert bool(kept[2, 2]) and not bool(kept[21, 21]) and not bool(kept[6, 6])
    assert int(kept.sum()) == 100 - 9


def test_a_ramp_is_one_region() -> None:
    inverse = (0.3 + 0.009 * torch.arange(40)).expand(3, 40).contiguous()
    assert bool(remove_speckles(inverse, 0.01, 100).all())
    assert not bool(remove_speckles(inverse, 0.005, 100).any())


def test_nothing_known() -> None:
    assert not bool(remove_speckles(torch.zeros(5, 5), 0.1, 3).any())


def test_edges_are_steps_not_slopes() -> None:
    slope = (0.2 + 0.02 * torch.arange(20)).expand(10, 20).contiguous()
    assert not bool(on_edge(slope, 0.01).any())
    step = slope.clone()
    step[:, 10:] += 0.3
    marked = on_edge(step, 0.05)
    assert marked[5].nonzero()[:, 0].tolist() == [9, 10]


@settings(max_examples=25, deadline=None)
@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0), st.floats(1.0, 8.0))
def test_normals_of_a_plane_are_exact(a: float, b: float, distance: float) -> None:
    K = torch.tensor([[60.0, 0, 32], [0, 62.0, 24], [0, 0, 1]], dtype=torch.float64)
    n = torch.nn.functional.normalize(torch.tensor([a * 0.5, b * 0.5, -1.0], dtype=torch.float64), dim=0)
    y, x = torch.meshgrid(torch.arange(48).double() + 0.5, torch.arange(64).double() + 0.5, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1) @ torch.linalg.inv(K).T
    inverse = (rays @ n / -distance).clamp_min(0).float()
    got = normals_from_inverse_depth(inverse, K, step=1.0)
    solved = got.norm(dim=-1) > 0.5
    assert float(solved.float().mean()) > 0.5
    assert float((got[solved] @ n.float()).min()) > 0.999


def test_normals_are_zero_where_unknown() -> None:
    inverse = torch.zeros(12, 12)
    inverse[3, 3] = 0.5  # a lonely pixel has no plane
    got = normals_from_inverse_depth(inverse, torch.eye(3, dtype=torch.float64), 0.1)
    assert float(got.abs().sum()) == 0
