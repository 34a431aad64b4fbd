"""Depth errors over an explicit mask, exactly as the papers define them: no alignment, no clamping, no clipping.

The functions take predicted and true depth of any equal shape (*, H, W) or (*, P) and a mask of that shape; they
reduce the last two (or, for (P,) tensors, all) dimensions given by ``dims`` and never see what the mask leaves out.
Sources: MetricAnything 9.1 in its appendix, monodepth evaluation (Eigen et al. 2014), KITTI for SILog.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from relief3d.core.errors import InputError

DELTA_BASE = 1.25


@dataclass(frozen=True)
class DepthErrors:
    """Errors of one set of pixels, or of a batch of sets (all fields share the leading shape), float64.

    Attributes:
        abs_rel: mean |p - g| / g.
        sq_rel: mean (p - g)^2 / g.
        rmse, mae: in the unit of the depth.
        rmse_log: natural logarithm.
        log10: mean |log10 p - log10 g|.
        silog: sqrt(mean e^2 - 0.5 mean(e)^2) with e = ln p - ln g (a plain ratio; the KITTI server multiplies by 100
            and subtracts the whole squared mean).
        delta1, delta2, delta3: share with max(p/g, g/p) < 1.25^k, strict.
        delta_105: the same with 1.05.
        inlier_103, inlier_110: share with max(p/g, g/p) < 1.03 and < 1.10, strict.
        pixels: number of pixels.
    """

    abs_rel: Tensor
    sq_rel: Tensor
    rmse: Tensor
    mae: Tensor
    rmse_log: Tensor
    log10: Tensor
    silog: Tensor
    delta1: Tensor
    delta2: Tensor
    delta3: Tensor
    delta_105: Tensor
    inlier_103: Tensor
    inlier_110: Tensor
    pixels: Tensor

    def as_dict(self) -> dict[str, float]:
        """Plain numbers of a single set.

        Raises:
            InputError: this is a batch.
        """
        if self.pixels.ndim:
            raise InputError("as_dict is for one set of pixels; index the batch first")
        return {f.name: float(getattr(self, f.name)) for f in fields(self)}


def check_maps(predicted: Tensor, truth: Tensor, mask: Tensor) -> None:
    """Refuse maps of different shapes, an empty mask, or predictions that are not positive numbers inside it.

    Raises:
        InputError: says which, with a hint on the unit when depths differ a thousandfold.
    """
    if predicted.shape != truth.shape or mask.shape != truth.shape:
        raise InputError(
            f"prediction {tuple(predicted.shape)}, truth {tuple(truth.shape)} and mask {tuple(mask.shape)} "
            "must have one shape",
            remedy="resize the prediction to the size of the truth first",
        )


def check_truth(truth: Tensor) -> None:
    """Refuse true depths (P,) that are not positive numbers: every relative error would be meaningless.

    Raises:
        InputError: there are some.
    """
    if truth.numel() and not (float(truth.min()) > 0 and float(truth.max()) < float("inf")):
        raise InputError(
            "the mask holds pixels whose true depth is not a positive number",
            remedy="leave pixels with unknown depth out of the mask",
        )


def unit_hint(predicted: Tensor, truth: Tensor) -> str | None:
    """A sentence when the median depths differ by about a thousandfold (metres against millimetres), else None."""
    if predicted.numel() == 0 or truth.numel() == 0:
        return None
    ratio = float(predicted.double().median() / truth.double().median())
    if 300 < ratio < 3000:
        return "the predicted depth is about 1000 times the truth: is it in millimetres? give metres"
    if 1 / 3000 < ratio < 1 / 300:
        return "the predicted depth is about a thousandth of the truth: is the truth in millimetres?"
    return None


def depth_errors(predicted: Tensor, truth: Tensor, mask: Tensor) -> DepthErrors:
    """All errors over the mask.

    Args:
        predicted: (*, H, W), (P,) or any shape; positive and finite inside the mask.
        truth: the same shape; positive inside the mask.
        mask: bool, the same shape. For three or more dimensions one set per leading index (reducing the last
            two); for one or two dimensions a single set.

    Raises:
        InputError: shapes differ, "no valid pixels", or depths inside the mask are not positive and finite.
    """
    check_maps(predicted, truth, mask)
    lead = truth.shape[:-2] if truth.ndim > 2 else truth.shape[:0]
    if not truth.numel():
        raise InputError("no valid pixels", remedy="the batch is empty")
    p, g, m = (t.reshape(lead.numel(), -1) for t in (predicted, truth, mask))
    # One set at a time: the few million numbers of a map stay in the processor's cache, and memory stays small.
    sets = [_errors_of_pixels(p[i][m[i]].double(), g[i][m[i]].double()) for i in range(len(p))]
    return DepthErrors(*(torch.stack(values).reshape(lead) for values in zip(*sets)))


def _errors_of_pixels(p: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """The numbers of :class:`DepthErrors`, in its order, over (P,) pixels."""
    if not p.numel():
        raise InputError("no valid pixels", remedy="check the depth range, the unit and the mask")
    if not bool((torch.isfinite(p) & (p > 0)).all()):
        raise InputError(
            "the prediction holds values that are not positive numbers where the truth is known",
            remedy="fill or clamp the prediction, or leave those pixels out of the mask on purpose",
        )
    check_truth(g)
    quotient = p / g
    ratio = torch.maximum(quotient, g / p)
    log_error = quotient.log_()
    error = (p - g).abs_()
    relative = error / g
    mean_log, mean_log_square = log_error.mean(), log_error.square().mean()

    def share(limit: float) -> Tensor:
        return (ratio < limit).double().mean()

    return (
        relative.mean(),
        (error * relative).mean(),
        error.square().mean().sqrt(),
        error.mean(),
        mean_log_square.sqrt(),
        log_error.abs().mean() / torch.log(torch.tensor(10.0, dtype=torch.float64)),
        (mean_log_square - 0.5 * mean_log.square()).clamp_min(0).sqrt(),
        share(DELTA_BASE),
        share(DELTA_BASE**2),
        share(DELTA_BASE**3),
        share(1.05),
        share(1.03),
        share(1.10),
        p.new_tensor(float(p.numel())),
    )
