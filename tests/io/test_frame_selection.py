"""Frames are sharp, far enough apart and close enough together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from corpora.videos import panning_frames, texture
from relief3d.core.errors import InputError
from relief3d.io.frame_motion import LOST, MotionTrack, block_motion, sharpness
from relief3d.io.frame_selection import MIN_MOTION, choose_frames


def grey(array: np.ndarray) -> np.ndarray:
    return (array.mean(axis=2) / 255).astype(np.float32)


def noise(width: int, height: int, seed: int) -> np.ndarray:
    """Smooth noise without a grid: unlike two blocky textures, two of these share nothing."""
    return gaussian_filter(np.random.default_rng(seed).random((height, width)), 1.5).astype(np.float32) * 4


def line(speeds: list[float], blocks: int = 6) -> np.ndarray:
    """(n, blocks, 2) track of a picture that moves to the right by ``speeds`` frame widths."""
    x = np.concatenate([[0.0], np.cumsum(speeds)])
    return np.repeat(np.stack([x, 0 * x], axis=1)[:, None], blocks, axis=1).astype(np.float32)


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (-7, 2), (20, -6), (0, 11)])
def test_block_motion_of_a_shift(shift: tuple[int, int]) -> None:
    big = grey(texture(300, 200))
    before = big[40:130, 60:220]
    after = big[40 - shift[1] : 130 - shift[1], 60 - shift[0] : 220 - shift[0]]
    motion = block_motion(before, after)
    assert motion is not None
    assert np.median(motion, axis=0)[:2] * 160 == pytest.approx(shift, abs=0.3)


def test_block_motion_sees_parallax() -> None:
    far, near = grey(texture(300, 100, 1)), grey(texture(300, 100, 2))

    def view(d: int) -> np.ndarray:
        out = far[:90, 50 + d : 210 + d].copy()
        out[:, :64] = near[:90, 100 + 4 * d : 164 + 4 * d]
        return out

    motion = block_motion(view(0), view(2))
    assert motion is not None
    x = np.sort(motion[:, 0] * 160)
    assert x[2] == pytest.approx(-8, abs=0.5) and x[-3] == pytest.approx(-2, abs=0.5)


def test_unrelated_and_empty_frames() -> None:
    a, b = (noise(160, 90, seed) for seed in (1, 2))
    assert block_motion(a, b) is None
    flat = np.full((90, 160), 0.5, np.float32)
    still = block_motion(flat, flat)
    assert still is not None and not still.any()


@pytest.mark.parametrize("speed", [0.25, 1.0, 6.0])
def test_track_adds_up_slow_motion(speed: float) -> None:
    big = grey(texture(700, 96))
    track = MotionTrack()
    for i in range(40):
        x = i * speed
        whole, part = int(x), x - int(x)
        track.add((1 - part) * big[:, whole : whole + 160] + part * big[:, whole + 1 : whole + 161])
    last = np.median(track.positions()[-1, :, :2], axis=0) * 160
    assert last == pytest.approx((-39 * speed, 0), abs=0.05 * 39 * speed + 0.3)


def test_track_survives_cuts_and_size_changes() -> None:
    track = MotionTrack()
    for seed, size in ((1, (90, 160)), (2, (90, 160)), (2, (64, 64)), (2, (64, 64))):
        track.add(noise(size[1], size[0], seed))
    steps = np.linalg.norm(np.diff(np.median(track.positions(), axis=1), axis=0), axis=1)
    assert steps == pytest.approx([LOST, LOST, 0], abs=1e-4)


def test_forward_motion_counts() -> None:
    """A zoom leaves the middle in place; its rim must still count."""
    big = noise(480, 288, 3)
    track = MotionTrack()
    for i in range(12):
        margin = 10 * i
        crop = big[margin * 3 // 5 : 288 - margin * 3 // 5, margin : 480 - margin]
        rows = np.linspace(0, crop.shape[0] - 1, 96).round().astype(int)
        columns = np.linspace(0, crop.shape[1] - 1, 160).round().astype(int)
        track.add(crop[rows][:, columns])
    choice = choose_frames(np.ones(12, np.float32), track.positions(), max_frames=12, min_frames=2)
    assert len(choice.kept) >= 4


def test_noise_on_the_spot_is_no_motion() -> None:
    generator = np.random.default_rng(0)
    track = MotionTrack()
    for _ in range(12):
        track.add(noise(160, 96, 3) + generator.normal(0, 0.01, (96, 160)).astype(np.float32))
    choice = choose_frames(np.ones(12, np.float32), track.positions(), max_frames=12)
    assert len(choice.kept) <= 2


def test_sharpness_falls_with_blur_and_ignores_contrast() -> None:
    sharp, blurred = panning_frames(2, blurred=(1,), speed=0)
    assert sharpness(grey(sharp)) > 1.5 * sharpness(grey(blurred))
    assert sharpness(grey(sharp) * 0.5) == pytest.approx(sharpness(grey(sharp)), rel=0.05)


def test_even_motion_gives_even_frames() -> None:
    path = line([0.02] * 99)
    choice = choose_frames(np.ones(100, np.float32), path, max_frames=50)
    steps = np.diff(choice.kept)
    assert set(steps[:-1].tolist()) == {4} and choice.kept[-1] >= 95
    assert choice.largest_step <= 0.3 and choice.notes == ()


def test_blurred_frames_are_avoided() -> None:
    sharp = np.ones(100, np.float32)
    blurred = np.arange(100) % 3 != 0
    sharp[blurred] = 0.1
    choice = choose_frames(sharp, line([0.02] * 99), max_frames=50)
    assert not blurred[list(choice.kept)].any()


def test_shaking_on_the_spot_is_no_motion() -> None:
    shaking = np.random.default_rng(0).normal(0, 0.004, 200)
    path = line(np.diff(shaking).tolist())
    choice = choose_frames(np.ones(200, np.float32), path, max_frames=50)
    assert len(choice.kept) <= 20
    still = choose_frames(np.ones(50, np.float32), line([0.0] * 49), max_frames=50)
    assert len(still.kept) == 1 and "hardly moves" in still.notes[0]


def test_slow_video_still_gives_enough_frames() -> None:
    choice = choose_frames(np.ones(100, np.float32), line([0.002] * 99), max_frames=50, min_frames=8)
    assert 8 <= len(choice.kept) <= 20 and choice.threshold >= MIN_MOTION


def test_long_video_is_covered_to_the_end() -> None:
    choice = choose_frames(np.ones(3000, np.float32), line([0.02] * 2999), max_frames=20)
    assert 15 <= len(choice.kept) <= 20
    assert choice.kept[0] < 100 and choice.kept[-1] > 2800
    assert "overlap" in choice.notes[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(2, 20), st.integers(0, 10_000))
def test_limits_always_hold(count: int, most: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    path = np.cumsum(generator.normal(0, 0.05, (count, 4, 2)), axis=0).astype(np.float32)
    choice = choose_frames(generator.random(count).astype(np.float32), path, max_frames=most)
    assert 1 <= len(choice.kept) <= most
    assert list(choice.kept) == sorted(set(choice.kept))
    assert choice.kept[0] >= 0 and choice.kept[-1] < count


def test_bad_requests() -> None:
    with pytest.raises(InputError, match="max_frames"):
        choose_frames(np.ones(5, np.float32), line([0.1] * 4), max_frames=1)
    with pytest.raises(InputError, match="no frame"):
        choose_frames(np.zeros(0, np.float32), np.zeros((0, 1, 2), np.float32), max_frames=5)
