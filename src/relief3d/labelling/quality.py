"""Are a teacher's labels good enough to learn from? Hold-out error, agreement of prior and prompt, ranges of depth.

A tenth of the valid pixels is kept out of the prompt; a picture whose median relative error there exceeds 15 %, or
whose global fit leaves more than three robust standard deviations above its source's usual residual, is left out (our
choice, MetricAnything specification 19). Percentiles of depth allow the comparison of raw and pseudo labels of the
paper (Fig. 3).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.data.prompt_alignment import GlobalOptions, align_global, inverse

HELD_OUT = 0.1
MAX_ERROR = 0.15
MAX_SIGMAS = 3.0
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_ENOUGH = 8
"""Pictures of a source from which on its usual residual is known."""


@dataclass(frozen=True)
class LabelQuality:
    """What is known about one labelled picture.

    Attributes:
        name: of the picture.
        source: of the data it comes from.
        error: median relative error at the held-out pixels; NaN when there were none.
        held_out: their number.
        residual: median residual of the global fit of prior and prompt over the prompt's median inverse depth.
        raw, label: metres at :data:`PERCENTILES` of the raw depth and of the label; empty for a map without depth.
    """

    name: str
    source: str
    error: float
    held_out: int
    residual: float
    raw: tuple[float, ...] = ()
    label: tuple[float, ...] = ()


def hold_out(valid: Tensor, seed: int, share: float = HELD_OUT) -> Tensor:
    """(H, W) bool, the share of valid pixels (rounded down) that the prompt must not contain.

    Raises:
        InputError: the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise InputError(f"the share of held-out pixels is {share}, not in [0, 1)")
    flat = torch.nonzero(valid.reshape(-1))[:, 0]
    order = torch.randperm(len(flat), generator=torch_generator(seed))[: int(share * len(flat))]
    out = torch.zeros(valid.numel(), dtype=torch.bool, device=valid.device)
    out[flat[order.to(flat.device)]] = True
    return out.reshape(valid.shape)


def hold_out_error(label: Tensor, depth: Tensor, held: Tensor) -> float:
    """Median of |label - depth| / depth over held-out pixels of (H, W) maps; a label that is no number counts as 1."""
    truth, found = depth[held].double(), label[held].double()
    if not truth.numel():
        return math.nan
    usable = torch.isfinite(found) & (found > 0)
    error = torch.where(usable, (found - truth).abs() / truth, torch.ones_like(truth))
    return float(error.median())


def fit_residual(prior: Tensor, prompt: Tensor, options: GlobalOptions | None = None) -> float:
    """Median residual of the global fit of a prior (H, W) disparity to a prompt (H, W) metres, relative.

    Raises:
        InputError: the prompt is empty or of another size.
    """
    y = inverse(prompt)
    fit = align_global(prior, y, prompt > 0, options or GlobalOptions())
    return fit.residual / float(y[prompt > 0].median())


def depth_percentiles(depth: Tensor, valid: Tensor | None = None) -> tuple[float, ...]:
    """Metres at :data:`PERCENTILES` of (H, W), linear between pixels; empty when no pixel is valid."""
    known = torch.isfinite(depth) & (depth > 0)
    known = known if valid is None else known & valid
    values = depth[known].double().sort().values
    if not values.numel():
        return ()
    place = torch.tensor(PERCENTILES, dtype=torch.float64) / 100 * (len(values) - 1)
    low = place.floor().long()
    high = (low + 1).clamp_max(len(values) - 1)
    part = (place - low).to(values.device)
    return tuple((values[low] * (1 - part) + values[high] * part).tolist())


def rejections(
    labels: Sequence[LabelQuality], *, max_error: float = MAX_ERROR, sigmas: float = MAX_SIGMAS
) -> dict[str, str]:
    """Why pictures are left out: name to reason, in the order given; pictures that stay do not appear.

    The usual residual of a source is its median, its spread 1.4826 times the median distance from it; sources with
    fewer than eight pictures are judged by the hold-out error alone.
    """
    limits: dict[str, float] = {}
    for source in {q.source for q in labels}:
        values = [q.residual for q in labels if q.source == source and math.isfinite(q.residual)]
        if len(values) >= _ENOUGH:
            middle = statistics.median(values)
            spread = 1.4826 * statistics.median(abs(v - middle) for v in values)
            limits[source] = middle + sigmas * spread
    out: dict[str, str] = {}
    for q in labels:
        if math.isnan(q.error):
            out[q.name] = "no pixel was held out that tells the error"
        elif q.error > max_error:
            out[q.name] = f"hold-out error {100 * q.error:.1f} % above {100 * max_error:.0f} %"
        elif math.isnan(q.residual):
            out[q.name] = "the residual of the global fit is no number"
        elif q.residual > limits.get(q.source, math.inf):
            out[q.name] = (
                f"residual of the global fit {q.residual:.3g} above {limits[q.source]:.3g} of '{q.source}'"
            )
    return out
