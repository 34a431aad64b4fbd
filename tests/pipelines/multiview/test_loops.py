"""Loops are found in rendered pictures, and places that only look alike are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.matching.base import Features
from relief3d.pipelines.multiview.loops import LoopOptions, SiftMatcher, find_loops, verify
from relief3d.worlds.config import demo_config
from relief3d.worlds.generate import make_world
from relief3d.worlds.paths import look_at

pytest.importorskip("pycolmap")
SIZE = (120, 160)


def looking(x: float, y: float, angle: float) -> torch.Tensor:
    eye = torch.tensor([x, y, 1.4]).double().numpy()
    a = torch.tensor(angle)
    return torch.from_numpy(look_at(eye, eye + torch.stack([a.cos(), a.sin(), torch.tensor(-0.1)]).numpy()))


@pytest.fixture(scope="module")
def pictures() -> dict[str, torch.Tensor]:
    """``a`` and ``near`` are one place; ``turned`` looks elsewhere; ``other`` is a room with the same textures."""
    config = replace(demo_config(), room_size=(4.0, 5.0, 2.6), texture_size=128, texture_seed=7)
    poses = {"a": (0.0, 0.0, 0.2), "near": (0.25, 0.1, 0.3), "turned": (0.0, 0.0, 3.3)}
    K = torch.tensor([[112.0, 0, 80], [0, 112, 60], [0, 0, 1]])
    out = {}
    room = make_world(0, config).compact()
    seen = room.render((K.expand(1, 3, 3, 3), torch.stack([looking(*p) for p in poses.values()])[None]), SIZE)
    out.update(zip(poses, seen.image[0]))
    other = make_world(1, config).compact()
    out["other"] = other.render((K.expand(1, 1, 3, 3), looking(*poses["a"])[None, None]), SIZE).image[0, 0]
    return out


def check(first: torch.Tensor, second: torch.Tensor, **changes: float) -> object:
    matcher = SiftMatcher()
    sides = [(matcher.extract(i), (i.shape[-1], i.shape[-2])) for i in (first, second)]
    return verify((0, 1), sides[0], sides[1], matcher, replace(LoopOptions(), **changes))  # type: ignore[arg-type]


def test_the_same_place_is_verified(pictures: dict[str, torch.Tensor]) -> None:
    found = check(pictures["a"], pictures["near"])
    assert found.accepted and found.inliers >= 40 and found.coverage > 0.5  # type: ignore[attr-defined]


def test_places_that_look_alike_are_not(pictures: dict[str, torch.Tensor]) -> None:
    assert not check(pictures["a"], pictures["turned"]).accepted  # type: ignore[attr-defined]
    assert not check(pictures["a"], pictures["other"]).accepted  # type: ignore[attr-defined]


def test_one_poster_in_two_rooms_is_not_a_place(pictures: dict[str, torch.Tensor]) -> None:
    """The poster alone matches perfectly; only that it covers little of the pictures gives it away."""
    poster = torch.rand(3, 16, 20, generator=torch.Generator().manual_seed(0))
    poster = torch.nn.functional.interpolate(poster[None], size=(52, 60), mode="bicubic")[0].clamp(0, 1)
    first, second = pictures["a"].clone(), pictures["other"].clone()
    first[:, 4:56, 10:70], second[:, 40:92, 95:155] = poster, poster
    found = check(first, second)
    assert found.inliers >= LoopOptions().min_inliers and not found.accepted  # type: ignore[attr-defined]
    assert check(first, second, min_coverage=0.0).accepted, "the rule that refuses it is coverage"  # type: ignore[attr-defined]


def test_a_pattern_that_repeats_is_not_a_place() -> None:
    """Every tile looks like every other: no match is clearly the nearest."""
    tile = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    tile = torch.nn.functional.interpolate(tile[None], size=(24, 24), mode="bicubic")[0].clamp(0, 1)
    wall = tile.repeat(1, 6, 8)
    assert not check(wall[:, :120, :160], wall[:, 7:127, 11:171]).accepted  # type: ignore[attr-defined]


class Numbered:
    """Keypoints that say which place they are of; matches are known, so that only the search is tested."""

    name = "numbered"

    def __init__(self) -> None:
        self.extracted = 0

    def extract(self, image: torch.Tensor) -> Features:
        self.extracted += 1
        place = int(image[0, 0, 0])
        generator = torch.Generator().manual_seed(place)
        xy = torch.rand(60, 2, generator=generator) * 30 + 1
        return Features(xy + 0.5 * float(image[1, 0, 0]), torch.full((60, 1), float(place)))

    def match(self, first: Features, second: Features) -> torch.Tensor:
        if float(first.descriptors[0]) != float(second.descriptors[0]):
            return torch.zeros(0, 2, dtype=torch.int64)
        return torch.arange(60)[:, None].expand(-1, 2)


def test_the_search_is_thrifty_and_keeps_loops_apart() -> None:
    frames, lap = 200, 120
    places = torch.arange(frames) % lap
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(lap, 256, generator=generator)
    descriptors = own[places]
    descriptors[90] = descriptors[190] = own[5]  # looks alike, is not: 190 is place 70

    def load(numbers: Sequence[int]) -> torch.Tensor:
        out = torch.zeros(len(numbers), 3, 32, 32)
        out[:, 0] = places[list(numbers)].float()[:, None, None]
        out[:, 1] = torch.tensor([n >= lap for n in numbers]).float()[:, None, None]
        return out

    matcher = Numbered()
    loops, checks = find_loops(load, descriptors, options=LoopOptions(min_gap=60), matcher=matcher)
    assert loops and all(j - i == lap for i, j in loops)
    assert all(abs(a[0] - b[0]) > 20 for a in loops for b in loops if a != b)
    assert len(checks) <= 20, "a few checks per place, not one per pair"
    few, _ = find_loops(load, descriptors, options=LoopOptions(min_gap=60, per_hundred=1), matcher=matcher)
    assert len(few) <= 2
    none, _ = find_loops(load, descriptors, options=LoopOptions(min_gap=150), matcher=matcher)
    assert none == []
    with pytest.raises(InputError, match=r"\(N, D\)"):
        find_loops(load, descriptors[0], matcher=matcher)


def unlike(numbers: Sequence[int]) -> torch.Tensor:
    """Every frame is a place of its own, whatever its descriptor says."""
    return torch.tensor(numbers).float()[:, None, None, None].expand(-1, 3, 32, 32)


def test_the_search_is_linear_where_everything_looks_alike() -> None:
    counts = {}
    for frames in (200, 400, 800):
        generator = torch.Generator().manual_seed(0)
        descriptors = 1 + 0.3 * torch.randn(frames, 32, generator=generator)
        matcher = Numbered()
        loops, checks = find_loops(unlike, descriptors, options=LoopOptions(min_gap=30), matcher=matcher)
        assert loops == [] and len({c.pair for c in checks}) == len(checks)
        counts[frames] = len(checks), matcher.extracted
    assert all(checks <= 0.2 * frames for frames, (checks, _) in counts.items()), counts
    for what in (0, 1):
        assert counts[800][what] <= 4.4 * counts[200][what], counts
    assert all(extracted <= 1.8 * checks for checks, extracted in counts.values()), (
        counts,
        "frames are shared",
    )


def test_a_pair_of_places_is_given_up_after_failures() -> None:
    """Frames 0 to 19 and 150 to 169 look alike and are not; 60 to 65 are seen again, but look less alike."""
    generator = torch.Generator().manual_seed(0)
    descriptors = torch.randn(240, 256, generator=generator)
    descriptors[150:170] = descriptors[:20]
    descriptors[210:216] = descriptors[60:66] + 0.3 * torch.randn(6, 256, generator=generator)
    places = torch.arange(240)
    places[210:216] = places[60:66]

    def load(numbers: Sequence[int]) -> torch.Tensor:
        out = unlike(places[list(numbers)].tolist()).clone()
        out[:, 1] = torch.tensor([n >= 200 for n in numbers]).float()[:, None, None]
        return out

    for failures in (1, 2):
        options = LoopOptions(min_gap=60, failures=failures)
        loops, checks = find_loops(load, descriptors, options=options, matcher=Numbered())
        wrong = [c.pair for c in checks if c.pair[0] < 20 and 150 <= c.pair[1] < 170]
        assert len(wrong) == failures, wrong
        assert len(loops) == 1 and loops[0][1] - loops[0][0] == 150
