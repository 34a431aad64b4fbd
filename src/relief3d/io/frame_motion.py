"""How sharp is a frame and how far has the picture moved: small NumPy measures on shrunk frames."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

BLOCK = 32
"""Side of the square blocks of the shrunk frame whose motion is measured, in pixels."""

LOST = 0.3
"""Motion, as a fraction of the frame width, that stands for "nothing in common any more"."""

CHANGED = 0.1
"""Motion that stands for a block whose content cannot be found again."""

_ANCHOR_REACH = 0.05
_MIN_SIMILARITY = 0.7
_MIN_PEAK = 0.08
_MIN_TEXTURE = 2e-4


def sharpness(grey: Float) -> float:
    """Variance of the Laplacian divided by the variance of the brightness; larger is sharper.

    The division makes frames of different contrast and exposure comparable.

    Args:
        grey: (h, w) brightness in [0, 1].
    """
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return float(laplacian.var() / (grey.var() + 1e-4))


def _windows(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows = np.linspace(0, height - BLOCK, max(1, round(2 * height / BLOCK) - 1)).round().astype(np.int64)
    columns = np.linspace(0, width - BLOCK, max(1, round(2 * width / BLOCK) - 1)).round().astype(np.int64)
    return rows, columns


def _correlate(a: Float, b: Float) -> tuple[Float, Float]:
    """Phase correlation of pairs (n, h, w): shift (n, 2) as (dx, dy) from a to b, peak height (n,).

    Source: Kuglin and Hines, "The phase correlation image alignment method", 1975.
    """
    height, width = a.shape[-2:]
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    a = (a - a.mean(axis=(-2, -1), keepdims=True)) * window
    b = (b - b.mean(axis=(-2, -1), keepdims=True)) * window
    cross = np.fft.rfft2(b) * np.conj(np.fft.rfft2(a))
    surface = np.fft.irfft2(cross / (np.abs(cross) + 1e-9), s=(height, width))
    flat = surface.reshape(len(surface), -1)
    best = flat.argmax(axis=1)
    peak = flat[np.arange(len(flat)), best]
    y, x = np.divmod(best, width)
    dx = np.where(x > width // 2, x - width, x).astype(np.float32)
    dy = np.where(y > height // 2, y - height, y).astype(np.float32)
    index = np.arange(len(flat))
    dx += _parabola(surface[index, y, (x - 1) % width], peak, surface[index, y, (x + 1) % width])
    dy += _parabola(surface[index, (y - 1) % height, x], peak, surface[index, (y + 1) % height, x])
    return np.stack([dx, dy], axis=1).astype(np.float32), peak.astype(np.float32)


def _parabola(left: NDArray[np.float64], mid: NDArray[np.float64], right: NDArray[np.float64]) -> Float:
    bend = left - 2 * mid + right
    offset = np.where(np.abs(bend) > 1e-12, 0.5 * (left - right) / np.where(bend == 0, 1, bend), 0.0)
    return np.clip(offset, -0.5, 0.5).astype(np.float32)


def block_motion(before: Float, after: Float) -> Float | None:
    """Motion of each block between two shrunk frames, as a fraction of the frame width.

    A global shift is found first and taken out, then the rest per block; blocks without texture or
    without a clear peak take the median of the others.

    Args:
        before: (h, w) brightness in [0, 1], both sides at least :data:`BLOCK`.
        after: the same size.

    Returns:
        (blocks, 3) float32: (dx, dy) / w, and :data:`CHANGED` for blocks with texture whose content is
        gone (a camera that moves forward magnifies the rim beyond recognition); or None when the frames
        have nothing in common.
    """
    height, width = before.shape
    rows, columns = _windows(height, width)
    shift, peak = _correlate(before[None], after[None])
    gx, gy = (round(float(v)) for v in shift[0])
    gx, gy = (0, 0) if float(peak[0]) < _MIN_PEAK else (gx, gy)
    gx = int(np.clip(gx, BLOCK - width, width - BLOCK))
    gy = int(np.clip(gy, BLOCK - height, height - BLOCK))
    starts = [(r, c) for r in rows for c in columns]
    first, second, known = [], [], []
    for r, c in starts:
        r1, c1 = int(r) + gy, int(c) + gx
        inside = 0 <= r1 <= height - BLOCK and 0 <= c1 <= width - BLOCK
        r1, c1 = (r1, c1) if inside else (int(r), int(c))
        a = before[r : r + BLOCK, c : c + BLOCK]
        first.append(a)
        second.append(after[r1 : r1 + BLOCK, c1 : c1 + BLOCK])
        known.append(inside and float(a.var()) > _MIN_TEXTURE)
    rest, peaks = _correlate(np.stack(first), np.stack(second))
    good = np.array(known) & (peaks > 2 * _MIN_PEAK) & (np.abs(rest).max(axis=1) < BLOCK * 0.4)
    motion = rest + np.array([gx, gy], dtype=np.float32)
    related = float(peak[0]) >= _MIN_PEAK
    if good.sum() < max(2, len(starts) // (10 if related else 3)):
        if related:
            fill = shift[0]
        elif float(before.var()) < _MIN_TEXTURE and float(after.var()) < _MIN_TEXTURE:
            fill = np.zeros(2, dtype=np.float32)  # nothing to see in either
        else:
            return None
    else:
        fill = np.median(motion[good], axis=0)
    changed = np.array(known) & ~good & (_similarity(np.stack(first), np.stack(second)) < _MIN_SIMILARITY)
    moved = np.where(good[:, None], motion, fill).astype(np.float32) / np.float32(width)
    return np.concatenate([moved, (CHANGED * changed[:, None]).astype(np.float32)], axis=1)


def _similarity(a: Float, b: Float) -> Float:
    """(n,) normalised correlation of pairs of blocks (n, h, w)."""
    a = a - a.mean(axis=(1, 2), keepdims=True)
    b = b - b.mean(axis=(1, 2), keepdims=True)
    norm = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    return np.asarray((a * b).sum(axis=(1, 2)) / np.maximum(norm, 1e-9))


class MotionTrack:
    """Where the picture has moved since the first frame, block by block.

    Each frame is compared with an anchor rather than with its predecessor: slow motion of a fraction
    of a pixel per frame would otherwise be rounded away and errors would pile up.
    """

    def __init__(self) -> None:
        self._positions: list[Float] = []
        self._anchor: Float | None = None
        self._anchor_position: Float = np.zeros((1, 3), dtype=np.float32)
        self._last: Float | None = None
        self._breaks = 0

    def add(self, grey: Float) -> None:
        """Append the next frame: (h, w) brightness in [0, 1], both sides at least :data:`BLOCK`."""
        if self._anchor is None or self._last is None:
            blocks = np.prod([len(side) for side in _windows(*grey.shape)])
            self._anchor_position = np.zeros((int(blocks), 3), dtype=np.float32)
            self._restart(grey, self._anchor_position)
            self._append(self._anchor_position)
            return
        motion = self._from(self._anchor, grey)
        if motion is None and self._last is not self._anchor:
            self._restart(self._last, self._positions[-1][:, :3])
            motion = self._from(self._last, grey)
        if motion is None:
            self._breaks += 1
            self._restart(grey, self._anchor_position)
            motion = np.zeros_like(self._anchor_position)
        position = self._anchor_position + motion
        self._append(position)
        self._last = grey
        if float(np.quantile(np.linalg.norm(motion, axis=1), 0.75)) > _ANCHOR_REACH:
            self._restart(grey, position)

    def positions(self) -> Float:
        """(n, blocks, 4) float32 sums of :func:`block_motion`, then :data:`LOST` times the breaks.

        The last number keeps frames on both sides of a break apart, whichever way the picture moves.
        """
        return np.stack(self._positions) if self._positions else np.zeros((0, 1, 4), dtype=np.float32)

    def _append(self, position: Float) -> None:
        breaks = np.full((len(position), 1), LOST * self._breaks, dtype=np.float32)
        self._positions.append(np.concatenate([position, breaks], axis=1))

    def _restart(self, grey: Float, position: Float) -> None:
        self._anchor, self._anchor_position, self._last = grey, position, grey

    def _from(self, anchor: Float, grey: Float) -> Float | None:
        if anchor.shape != grey.shape:
            return None
        motion = block_motion(anchor, grey)
        if motion is None or motion.shape == self._anchor_position.shape:
            return motion
        return np.broadcast_to(np.median(motion, axis=0), self._anchor_position.shape).astype(np.float32)
