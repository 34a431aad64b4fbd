"""Frames of a video keep their scale, and real changes stay."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relief3d.pipelines.depth.steady import SteadyFrame, change_of_scale, look_at, steady_shift

HEIGHT, WIDTH = 48, 64


def room(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A picture, and depth with a step in the middle."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, HEIGHT, WIDTH, generator=generator)
    depth = 2.0 + torch.linspace(0, 1, WIDTH).expand(HEIGHT, WIDTH).clone()
    depth[:, WIDTH // 2 :] += 3.0
    return image, depth


def run(frames: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[float]]:
    before: SteadyFrame | None = None
    out, shifts = [], []
    for image, depth in frames:
        now = look_at(image, depth)
        shift = steady_shift(before, now)
        before = look_at(image, depth, shift)
        out.append(depth * math.exp(shift))
        shifts.append(shift)
    return out, shifts


def flicker(depths: list[Tensor]) -> float:
    """Standard deviation of the change of log depth at one still pixel."""
    log = torch.stack([d[5, 5] for d in depths]).log()
    return float(log.diff().std())


def with_flicker(count: int, amount: float = 0.15) -> list[tuple[Tensor, Tensor]]:
    image, depth = room()
    generator = torch.Generator().manual_seed(1)
    factors = torch.exp(amount * torch.randn(count, generator=generator))
    return [(image, depth * f) for f in factors]


def test_flicker_of_the_scale_falls_by_more_than_five() -> None:
    frames = with_flicker(40)
    steady, _ = run(frames)
    assert flicker([d for _, d in frames]) > 5 * flicker(steady)


def test_what_moves_keeps_its_own_depth() -> None:
    frames = with_flicker(20)
    image, depth = room()
    truth = []
    for k, (_, flickering) in enumerate(frames):
        factor = float(flickering[5, 5] / depth[5, 5])
        now, moved = image.clone(), depth.clone()
        now[:, 10:30, 4:14] = 0.05 * (k % 20)
        moved[10:30, 4:14] = 1.0 + 0.1 * k
        frames[k] = (now, moved * factor)
        truth.append(moved)
    steady, _ = run(frames)
    ratio = [
        float(d[20, 8] / d[5, 5]) / float(t[20, 8] / t[5, 5]) for d, t in zip(steady, truth, strict=True)
    ]
    assert max(abs(r - 1) for r in ratio) < 1e-5
    assert flicker([d for _, d in frames]) > 5 * flicker(steady)


def test_a_lasting_change_comes_through() -> None:
    image, depth = room()
    frames = [(image, depth)] * 3 + [(image, depth * 1.5)] * 60
    steady, _ = run(frames)
    assert float(steady[3][5, 5] / depth[5, 5]) < 1.1
    assert abs(float(steady[-1][5, 5] / depth[5, 5]) - 1.5) < 0.01


def test_a_change_fades_in_over_about_ten_frames() -> None:
    image, depth = room()
    _, shifts = run([(image, depth)] + [(image, depth * 2)] * 12)
    left = [-s / math.log(2) for s in shifts[1:]]
    assert left[0] == 0.9 or abs(left[0] - 0.9) < 1e-6
    assert 0.3 < left[9] < 0.4 and abs(left[9] - 0.9**10) < 1e-6


def test_things_that_change_their_depth_alone_do_not_move_the_scale() -> None:
    """A third of the pixels, of unchanged colour: the median does not see them."""
    image, depth = room()
    other = depth.clone()
    other[:, WIDTH // 2 + 4 :] *= 2.0
    found = change_of_scale(look_at(image, depth), look_at(image, other * 1.1))
    assert found is not None and abs(found - math.log(1.1)) < 1e-6


def test_nothing_is_carried_over_a_cut() -> None:
    frames = with_flicker(5)
    image, depth = room(seed=9)
    steady, shifts = run([*frames, (image, depth * 4)])
    assert abs(shifts[4]) > 0 and shifts[5] == 0
    assert torch.equal(steady[5], depth * 4)


def test_changed_colours_and_edges_of_depth_do_not_count() -> None:
    image, depth = room()
    changed, other = image.clone(), depth.clone()
    changed[:, :, : WIDTH // 2 - 4] = 1 - changed[:, :, : WIDTH // 2 - 4].round()
    other[:, : WIDTH // 2 - 4] *= 3.0  # more than a third of the picture, and its colours changed
    now = look_at(changed, other * 1.2)
    found = change_of_scale(look_at(image, depth), now)
    assert found is not None and abs(found - math.log(1.2)) < 1e-6
    assert not bool(now.smooth[:, WIDTH // 2 - 1 : WIDTH // 2 + 1].any())


def test_tiny_empty_and_resized_frames_are_left_alone() -> None:
    image, depth = room()
    one = look_at(torch.rand(3, 1, 1), torch.ones(1, 1))
    assert steady_shift(look_at(image, depth), one) == 0 and steady_shift(one, one) == 0
    nothing = look_at(image, torch.zeros_like(depth))
    assert change_of_scale(look_at(image, depth), nothing) is None
    large = look_at(image.repeat(1, 8, 8), depth.repeat(8, 8))
    assert max(large.log_depth.shape) == 256
