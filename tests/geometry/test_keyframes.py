from __future__ import annotations

import math

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.geometry.keyframes import neighbour_penalty, pose_distance, select_keyframes
from relief3d.geometry.rotations import so3_exp
from relief3d.geometry.transforms import make_rigid

from .draws import F64, close, generator, poses


def walk(steps: list[float]) -> torch.Tensor:
    positions = torch.zeros(len(steps), 3, dtype=F64)
    positions[:, 0] = torch.tensor(steps, dtype=F64)
    return make_rigid(torch.eye(3, dtype=F64), positions)


def test_measures_follow_the_formula() -> None:
    angle = 2 * math.asin(0.1 / math.sqrt(8 / 3))
    turned = make_rigid(so3_exp(torch.tensor([0.0, angle, 0.0], dtype=F64)), torch.zeros(3, dtype=F64))
    combined, t, r = pose_distance(torch.eye(4, dtype=F64), turned)
    assert r.item() == pytest.approx(0.1) and t.item() == 0 and combined.item() == pytest.approx(0.1)
    assert math.degrees(angle) == pytest.approx(7.02, abs=0.01)
    moved = walk([0.0, 0.3])
    combined, t, r = pose_distance(moved[0], moved[1])
    assert (combined.item(), t.item(), r.item()) == pytest.approx((0.3, 0.3, 0.0))
    assert pose_distance(moved[0], moved[1], median_depth=4.0)[1].item() == pytest.approx(0.15)
    a, b = poses(generator(0)), poses(generator(1))
    for x, y in zip(pose_distance(a, b), pose_distance(b, a)):
        assert close(x, y, 1e-12)


def test_selection_compares_with_the_last_keyframe() -> None:
    assert select_keyframes(walk([0.0, 0.06, 0.09, 0.11, 0.15, 0.22])) == [[0, 3, 5]]
    assert select_keyframes(walk([0.0, 0.06, 0.12]), threshold=0.05) == [[0, 1, 2]]
    assert select_keyframes(walk([0.0, 0.06, 0.12]), median_depth=20.0) == [[0]]
    assert select_keyframes(walk([0.5] * 4)) == [[0]]


def test_long_losses_start_a_new_segment() -> None:
    path = walk([0.2 * i for i in range(70)])
    path[10:40] = torch.nan  # 30 frames are bridged
    assert select_keyframes(path) == [[*range(10), *range(40, 70)]]
    path[40] = torch.inf  # 31 are not
    assert select_keyframes(path) == [list(range(10)), list(range(41, 70))]
    path[0] = torch.nan
    assert select_keyframes(path)[0][0] == 1
    assert select_keyframes(torch.full((5, 4, 4), torch.nan, dtype=F64)) == []


def test_limit_raises_the_threshold() -> None:
    path = walk([0.1 * i for i in range(80)])
    chosen = select_keyframes(path, max_keyframes=20)
    assert len(chosen) == 1 and 14 <= len(chosen[0]) <= 20
    assert select_keyframes(path, max_keyframes=1) == [[0]]
    with pytest.raises(InputError):
        select_keyframes(path, threshold=0.0)
    with pytest.raises(InputError):
        select_keyframes(path, max_keyframes=0)


def test_neighbour_penalty() -> None:
    t = torch.tensor([0.15, 0.05, 0.25])
    assert neighbour_penalty(t, torch.zeros(3)).tolist() == pytest.approx([0.0, 0.05, 0.01])
    assert neighbour_penalty(t[:1], torch.tensor([0.5])).item() == pytest.approx(0.25)
