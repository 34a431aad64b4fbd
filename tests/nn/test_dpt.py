"""The dense head: strips, order of resize and mixing, and how much it holds at once."""

from __future__ import annotations

import pytest
import torch

from relief3d.core.tensor_memory import PeakTensorBytes
from relief3d.nn import dpt
from relief3d.nn.dpt import DptConfig, DptHead, resize, resize_rows, source_rows
from relief3d.nn.uv import uv_embedding, uv_embedding_axes


def _head(**changes: object) -> DptHead:
    torch.manual_seed(0)
    config = DptConfig(dim_in=24, features=16, out_channels=(8, 12, 16, 16), output_dim=2, **changes)  # type: ignore[arg-type]
    head = DptHead(config).eval()
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return head


def _tokens(rows: int, cols: int, views: int = 2) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(views, rows * cols, 24, generator=g) for _ in range(4)]


@pytest.mark.parametrize(("height", "target"), [(8, 30), (30, 52), (5, 7), (4, 4), (9, 3), (1, 6), (6, 1)])
def test_rows_of_a_resize_are_rows_of_the_whole(height: int, target: int) -> None:
    x = torch.randn(1, 3, height, 5, generator=torch.Generator().manual_seed(0))
    whole = resize(x, (target, 11))
    for first in range(target):
        for last in range(first + 1, target + 1):
            needed = source_rows((first, last), height, target)
            got = resize_rows(
                x[..., needed[0] : needed[1], :], (target, 11), (first, last), first=needed[0], height=height
            )
            torch.testing.assert_close(got, whole[..., first:last, :], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("strip", [1, 7, 32, 1000])
@pytest.mark.parametrize("grid", [(3, 5), (5, 2)])
def test_strips_equal_the_whole(monkeypatch: pytest.MonkeyPatch, strip: int, grid: tuple[int, int]) -> None:
    head, tokens = _head(), _tokens(*grid)
    size = (grid[0] * 14, grid[1] * 14)
    with torch.enable_grad():
        whole = head(tokens, size).detach()
    monkeypatch.setattr(dpt, "STRIP_ROWS", strip)
    with torch.no_grad():
        torch.testing.assert_close(head(tokens, size), whole, atol=1e-5, rtol=1e-5)


def test_features_at_a_smaller_scale_and_without_positions() -> None:
    head, tokens = _head(pos_embed=False, down_ratio=2), _tokens(4, 3)
    assert head(tokens, (56, 42)).shape == (2, 2, 28, 21)


def test_gradients_reach_every_weight() -> None:
    head, tokens = _head(), _tokens(3, 3)
    head(tokens, (42, 42)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.parameters())


def test_the_embedding_is_the_sum_of_its_axes() -> None:
    whole = uv_embedding(4, 6, 1.5, 8, torch.device("cpu"))
    x, y = uv_embedding_axes(4, 6, 1.5, 8, torch.device("cpu"))
    assert torch.equal(whole[:4], x.expand(4, 4, 6)) and torch.equal(whole[4:], y.expand(4, 4, 6))


def test_strips_hold_less(monkeypatch: pytest.MonkeyPatch) -> None:
    head, tokens = _head(), _tokens(12, 12, views=1)
    held = {}
    for strip in (16, 1000):
        monkeypatch.setattr(dpt, "STRIP_ROWS", strip)
        with torch.no_grad(), PeakTensorBytes() as memory:
            head(tokens, (168, 168))
        held[strip] = memory.peak
    assert held[16] < 0.5 * held[1000]
