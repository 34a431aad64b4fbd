"""Which frames of a video to keep: sharp ones, with real motion and enough overlap between them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from relief3d.core.errors import InputError

Float = NDArray[np.float32]

DEFAULT_MOTION = 0.08
"""Wanted picture motion between kept frames, as a fraction of the frame width."""

MIN_MOTION = 0.01
"""Below this, two frames count as taken from the same place."""

MAX_MOTION = 0.3
"""Above this, neighbouring frames share too little for matching to be safe."""

_WINDOWS = ((0.7, 1.3), (0.5, 1.7), (0.35, 2.2))
_SHARP_ENOUGH = 0.7
_AROUND = 15


@dataclass(frozen=True)
class Choice:
    """Chosen frames.

    Attributes:
        kept: positions among the analysed frames, ascending.
        threshold: picture motion asked for between neighbours, as a fraction of the frame width.
        largest_step: largest motion between neighbours.
        notes: remarks for the user.
    """

    kept: tuple[int, ...]
    threshold: float
    largest_step: float
    notes: tuple[str, ...] = ()


def choose_frames(
    sharpness: Float,
    path: Float,
    *,
    max_frames: int,
    min_frames: int = 8,
    motion: float = DEFAULT_MOTION,
) -> Choice:
    """Choose at most ``max_frames`` frames that are sharp and ``motion`` apart.

    Motion is signed and accumulated, so shaking cancels out and only net motion counts.
    From a kept frame, the next is the sharpest among those whose net motion (upper quartile over blocks) lies
    near the threshold. When that gives too many frames the threshold grows, so the whole video stays
    covered; when it gives fewer than ``min_frames`` it shrinks, down to :data:`MIN_MOTION`.

    Args:
        sharpness: (n,) of the analysed frames.
        path: (n, blocks, 2 to 4) accumulated block motion since the first frame, in frame widths
            (:meth:`relief3d.io.frame_motion.MotionTrack.positions`).
        max_frames: upper limit, at least 2.
        min_frames: wanted at least, if the video moves enough.
        motion: wanted motion between kept frames.

    Raises:
        InputError: ``max_frames`` below 2, or no frame.
    """
    if max_frames < 2:
        raise InputError(f"at least 2 frames are needed, max_frames is {max_frames}")
    if len(sharpness) == 0:
        raise InputError("there is no frame to choose from")
    if len(sharpness) == 1:
        return Choice((0,), motion, 0.0)
    threshold = motion
    kept = _greedy(sharpness, path, threshold)
    if len(kept) < min_frames:
        for smaller in np.geomspace(motion, MIN_MOTION, 12):
            threshold = float(smaller)
            kept = _greedy(sharpness, path, threshold)
            if len(kept) >= min(min_frames, max_frames):
                break
    low, high = threshold, threshold
    while len(kept) > max_frames:
        low, high = high, high * 1.5
        kept = _greedy(sharpness, path, high)
    if high > low:
        for _ in range(12):
            middle = 0.5 * (low + high)
            trial = _greedy(sharpness, path, middle)
            low, high, kept = (low, middle, trial) if len(trial) <= max_frames else (middle, high, kept)
        threshold = high
    gaps = [float(_net(path, a, slice(b, b + 1))[0]) for a, b in pairwise(kept)]
    largest = max(gaps, default=0.0)
    notes = []
    if largest > MAX_MOTION:
        notes.append(
            f"neighbouring frames move by up to {100 * largest:.0f} % of the picture width; "
            "more frames (max_frames) would overlap better"
        )
    if float(_net(path, 0, slice(None)).max()) < MIN_MOTION:
        notes.append("the camera hardly moves, so there is little to reconstruct from")
    return Choice(tuple(kept), threshold, largest, tuple(notes))


def _net(path: Float, start: int, frames: slice) -> Float:
    """Net motion from frame ``start`` to each of ``frames``: upper quartile over the blocks.

    The median would be nearly zero for a camera that moves forward, where only the rim of the picture
    moves; the maximum would follow passing people.
    """
    lengths = np.linalg.norm(path[frames] - path[start], axis=-1)
    rank = (3 * lengths.shape[-1]) // 4
    return np.asarray(np.partition(lengths, rank, axis=-1)[:, rank])


def _reach(path: Float, start: int, threshold: float) -> tuple[int | None, Float]:
    """First frame whose net motion from ``start`` is at least ``threshold``, and the motion up to there.

    Returns:
        (frame or None, net motion of the frames start + 1, start + 2, ... as far as they were looked at).
    """
    seen: list[Float] = []
    position, chunk = start + 1, 32
    while position < len(path):
        net = _net(path, start, slice(position, position + chunk))
        seen.append(net)
        hits = np.flatnonzero(net >= threshold)
        if len(hits):
            return position + int(hits[0]), np.concatenate(seen)
        position += chunk
        chunk = min(2 * chunk, 1024)
    return None, np.concatenate(seen) if seen else np.zeros(0, np.float32)


def _greedy(sharpness: Float, path: Float, threshold: float) -> list[int]:
    reached, _ = _reach(path, 0, threshold * (1 - _WINDOWS[0][0]))
    first = len(path) if reached is None else max(1, reached)
    kept = [int(np.argmax(sharpness[:first]))]
    while True:
        last = kept[-1]
        reached, net = _reach(path, last, threshold * (1 - 1e-4))
        if reached is None:
            break
        kept.append(_best_near(sharpness, path, last, reached, threshold))
    rest = np.flatnonzero(net >= 0.5 * threshold) if len(net) else np.zeros(0, np.int64)
    if len(rest):
        tail = rest + last + 1
        best = int(tail[np.argmax(sharpness[tail])])
        if sharpness[best] >= _SHARP_ENOUGH * np.median(sharpness[kept]):
            kept.append(best)
    return kept


def _best_near(sharpness: Float, path: Float, last: int, reached: int, threshold: float) -> int:
    """The sharpest frame about ``threshold`` away from ``last``; looks further while all are blurred."""
    span = reached - last
    end = min(len(path), reached + span + 2)
    net = _net(path, last, slice(last + 1, end))
    sharp = sharpness[last + 1 : end]
    typical = float(np.median(sharpness[max(0, last - _AROUND) : end + _AROUND]))
    position = np.arange(len(net))
    best = span - 1
    for low, high in _WINDOWS:
        # Without these bounds a picture that comes back to where it was would be entered from behind.
        first_far = np.flatnonzero((net > threshold * high) & (position >= span))
        stop = int(first_far[0]) if len(first_far) else len(net)
        start = max(0, span - 1 - int(np.ceil(span * (1 - low))))
        inside = position[max(start, 0) : max(stop, span)]
        inside = inside[net[inside] >= min(threshold * low, net[span - 1])]
        score = sharp[inside] * (1 - 0.3 * np.minimum(1.0, np.abs(net[inside] / threshold - 1)))
        best = int(inside[np.argmax(score)])
        if sharp[best] >= _SHARP_ENOUGH * typical:
            break
    return last + 1 + best
