"""Depth at the picture's size: exact on planes, nothing between surfaces, colours decide where an edge lies."""

from __future__ import annotations

import torch

from relief3d.geometry.projection import pixel_rays
from relief3d.pipelines.multiview.upsampling import upsample_depth

SIZE, FACTOR = (48, 64), 4


def affine(shift: float = 0.0) -> torch.Tensor:
    return torch.tensor([[1 / FACTOR, 0, 0], [0, 1 / FACTOR, shift], [0, 0, 1]], dtype=torch.float64)


def plane(K: torch.Tensor, size: tuple[int, int], normal: tuple[float, float, float]) -> torch.Tensor:
    """z of n . X = 2 at every pixel."""
    return (2 / (pixel_rays(K, *size) * torch.tensor(normal, dtype=torch.float64)).sum(-1)).float()


def large_K() -> torch.Tensor:
    return torch.tensor([[60.0, 0, 30], [0, 60, 26], [0, 0, 1]], dtype=torch.float64)


def test_slanted_planes_are_exact_also_at_a_grazing_angle() -> None:
    small = (SIZE[0] // FACTOR, SIZE[1] // FACTOR)
    for normal in ((0.0, 0.0, 1.0), (0.3, -0.2, 1.0), (0.9, 0.3, 1.0)):
        low = plane(affine() @ large_K(), small, normal)
        out = upsample_depth(low, low > 0, affine(), SIZE)
        truth = plane(large_K(), SIZE, normal)
        inner = (slice(FACTOR, -FACTOR), slice(FACTOR, -FACTOR))
        assert torch.allclose(out[inner], truth[inner], rtol=2e-5), normal


def two_walls(edge: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth 1 left of ``edge`` (original pixels), 3 on the right; dark and bright. Small and large of both."""
    x = torch.arange(SIZE[1]) + 0.5
    depth = torch.where(x < edge, 1.0, 3.0).expand(SIZE[0], -1)
    picture = torch.where(x < edge, 0.2, 0.8).expand(3, SIZE[0], -1)
    centres = torch.arange(FACTOR // 2, SIZE[1], FACTOR)
    low = depth[: SIZE[0] // FACTOR, centres]
    small = torch.nn.functional.avg_pool2d(picture[None], FACTOR)[0]
    return depth, picture, low, small


def test_nothing_lies_between_the_surfaces() -> None:
    for edge in (29.0, 30.0, 31.0, 32.0):
        depth, picture, low, small = two_walls(edge)
        for guide in (None, picture):
            out = upsample_depth(low, low > 0, affine(), SIZE, guide=guide, small_guide=small)
            assert set(out.unique().tolist()) <= {1.0, 3.0} or bool(
                (((out - 1).abs() < 1e-5) | ((out - 3).abs() < 1e-5)).all()
            )
        assert torch.allclose(out, depth, atol=1e-5), "colours say exactly where the edge is"


def test_without_colours_the_edge_is_off_by_less_than_a_small_pixel() -> None:
    depth, _, low, _ = two_walls(29.0)
    out = upsample_depth(low, low > 0, affine(), SIZE)
    assert 0 < int(((out - depth).abs() > 0.1)[0].sum()) < FACTOR


def test_unknown_stays_unknown() -> None:
    low = torch.full((12, 16), 2.0)
    keep = torch.ones(12, 16, dtype=torch.bool)
    keep[:, :4] = False
    low[6, 10] = 0.0
    # The original is taller than what the network saw: its first 8 rows lie above.
    out = upsample_depth(low, keep, affine(-2.0), (64, 64))
    assert not bool(out[:8].any()) and not bool(out[56:].any()), "outside the network's crop"
    assert not bool(out[:, :16].any()), "not kept"
    assert not bool(out[32:36, 40:44].any()), "no depth"
    rest = out[8:56, 16:].clone()
    rest[24:28, 24:28] = 2.0
    assert torch.allclose(rest, torch.full_like(rest, 2.0))
