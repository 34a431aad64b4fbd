"""The line of least absolute deviations through very many points, exactly.

Linear programming solves this for thousands of points; a video has millions of pixels. See :func:`fit_line`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_SAMPLE = 1 << 17


class _Line(NamedTuple):
    slope: float
    offset: float


def fit_line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope s and offset t that minimise sum |s x + t - y|.

    For a given s the best t is a median of y - s x; what remains is convex in s and is bisected by its slope. Once s
    and with it t are bracketed, values whose residual has the same sign in the whole bracket only count; few are left
    after some halvings. The first bracket comes from a subset. The line errs by less than about 1e-8 of the mean |y|.

    Args:
        x: (P,) finite, P >= 1.
        y: (P,) finite.

    Returns:
        (s, t); slope 1 where all x are equal.
    """
    low = float(x.min())
    if float(x.max()) - low <= 1e-12 * abs(low):
        return 1.0, float(y.double().median()) - low
    q, g = x.double() - low, y.double()  # q >= 0: a larger slope then never needs a larger offset
    if g.numel() > 4 * _SAMPLE:
        # Neighbouring values (pixels) are alike: a regular step through all of them is a fair sample.
        step = g.numel() // _SAMPLE | 1
        few_q, few_g = q[::step], g[::step]
        guess = _Bracket(few_q, few_g).solve(*_scale_range(few_q, few_g))
        residual = float((guess.slope * few_q + guess.offset - few_g).abs().mean())
        top = float(q.max())
        spread = max(float(few_q.std()), 1e-9 * top)
        width = 6 * residual / (spread * math.sqrt(few_q.numel()))
        # Never 0, or the interval could not be widened.
        width += 1e-9 * (abs(guess.slope) + float(g.abs().max()) / top + 1e-300)
        start, end = guess.slope - width, guess.slope + width
    else:
        start, end = _scale_range(q, g)
    fit = _Bracket(q, g).solve(start, end)
    return fit.slope, fit.offset - fit.slope * low


def _scale_range(q: Tensor, g: Tensor) -> tuple[float, float]:
    """A first guess of where the slope lies; widened where it does not."""
    spread_q, spread_g = float(q.std()), float(g.std())
    guess = spread_g / max(spread_q, 1e-300)
    return -0.1 * guess, 1.5 * guess


class _Bracket:
    """Bisection of the slope for values q >= 0; see :func:`fit_line`."""

    def __init__(self, q: Tensor, g: Tensor) -> None:
        self._q, self._g = q, g
        self._rank = (g.numel() - 1) // 2
        self._below, self._slope = 0, 0.0  # values left out: how many have r > 0, and their sum of sign * q
        self._sign = 0.0
        self._top = float(q.max())
        self._size = float(g.abs().mean())

    def solve(self, start: float, end: float) -> _Line:
        """The optimum; the interval is widened until it holds it."""
        while (low := self._probe(start))[1] > 0:
            start, end = start - 4 * (end - start), start
        if low[1] == 0:
            return _Line(start, low[0])
        while (high := self._probe(end))[1] < 0:
            start, end, low = end, end + 4 * (end - start), high
        if high[1] == 0:
            return _Line(end, high[0])
        t_low, t_high = low[0], high[0]
        while (end - start) * self._top + (t_low - t_high) > 1e-8 * self._size:
            self._drop(start, end, t_low, t_high)
            middle = 0.5 * (start + end)
            if not start < middle < end:
                break
            t, side = self._probe(middle)
            if side == 0:
                return _Line(middle, t)
            if side < 0:
                start, t_low = middle, t
            else:
                end, t_high = middle, t
        return _Line(0.5 * (start + end), 0.5 * (t_low + t_high))

    def _probe(self, s: float) -> tuple[float, int]:
        """Best t for s, and on which side of the optimum s lies: -1 below, 1 above, 0 on it."""
        values = self._g - s * self._q
        t = float(values.kthvalue(self._rank - self._below + 1).values)
        residual = t - values
        sign = residual.sign().masked_fill_(residual.abs() <= 1e-13 * (abs(t) + self._size), 0.0)
        slope, total = self._slope + float(sign @ self._q), self._sign + float(sign.sum())
        # Residuals of 0 may take any sign in [-1, 1] as long as all signs sum to 0: t is optimal for s.
        free = self._q[sign == 0].sort().values
        ups = (free.numel() - total) / 2  # how many of them count +1, the others -1
        prefix = torch.cat([free.new_zeros(1), free.cumsum(0)])
        least = slope + _split(prefix, ups, lowest=True)
        most = slope + _split(prefix, ups, lowest=False)
        return t, (1 if least > 0 else -1 if most < 0 else 0)

    def _drop(self, start: float, end: float, t_low: float, t_high: float) -> None:
        """Leave out values whose residual keeps its sign for all s in [start, end] and t in [t_high, t_low]."""
        positive = start * self._q + t_high - self._g > 0
        keep = ~positive & (end * self._q + t_low - self._g >= 0)
        dropped = ~keep
        self._below += int(positive.sum())
        sign = torch.where(positive, 1.0, -1.0).to(self._q) * dropped
        self._slope += float(sign @ self._q)
        self._sign += float(sign.sum())
        self._q, self._g = self._q[keep], self._g[keep]


def _split(prefix: Tensor, ups: float, lowest: bool) -> float:
    """Smallest or largest sum of sign * q when ``ups`` of the sorted q count +1 and the rest -1 (a part is allowed)."""
    count, total = prefix.numel() - 1, float(prefix[-1])
    take = min(max(ups if lowest else count - ups, 0.0), float(count))
    whole = int(take)
    part = float(prefix[whole])
    if whole < count:
        part += (take - whole) * float(prefix[whole + 1] - prefix[whole])
    return 2 * part - total if lowest else total - 2 * part
