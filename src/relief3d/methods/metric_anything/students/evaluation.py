"""How well students see metric depth, near and far, its edges, and the field of view; beside the best constants."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.metrics.boundaries import boundary_f1
from relief3d.eval.metrics.depth_errors import depth_errors
from relief3d.eval.metrics.intrinsics import fov_degrees
from relief3d.geometry.alignment import scale_median
from relief3d.methods.metric_anything.pictures import PictureSource
from relief3d.methods.metric_anything.students.config import StudentEvaluation

BINS = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, math.inf)
"""Metres that divide the distances at which errors are also given, as in the paper's table 14."""
MIDDLE = 40.0
"""Metres of its table 15."""
LIMITS = (1e-3, 1e3)
LEAST_SHARE = 0.05
"""Pictures with a smaller share of surface are not judged."""
_CHUNK = 8
_CANDIDATES = 120


@dataclass(frozen=True)
class HeldOutPictures:
    """N held-out pictures.

    Attributes:
        images: (N, 3, H, W) in [0, 1].
        depth: (N, H, W) metres, 0 for sky.
        K: (N, 3, 3) pixels.
        families: of the worlds.
    """

    images: Tensor
    depth: Tensor
    K: Tensor
    families: tuple[str, ...]

    @property
    def fov(self) -> Tensor:
        """(N,) true horizontal field of view in degrees."""
        return fov_degrees(self.K[:, 0, 0], int(self.images.shape[-1]))

    def of(self, families: Sequence[str]) -> list[int]:
        """Numbers of the pictures of some families."""
        return [n for n, f in enumerate(self.families) if f in families]


def held_out_pictures(root: str | Path, config: StudentEvaluation) -> HeldOutPictures:
    """The held-out pictures, of one size; those that show almost nothing but sky are left out.

    Raises:
        InputError: a damaged file, or nothing is left.
    """
    found = []
    for rule in config.pictures:
        source = PictureSource(root, (rule,))
        for n in range(len(source)):
            picture = source.picture(n)
            if float((picture.depth > 0).float().mean()) >= LEAST_SHARE:
                found.append((picture, rule.place(source.place(n)[1])[0]))
    if not found:
        raise InputError("the held-out pictures show almost nothing but sky", remedy="evaluation.pictures")
    return HeldOutPictures(
        torch.cat([p.image for p, _ in found]).float() / 255,
        torch.cat([p.depth for p, _ in found]),
        torch.cat([p.K for p, _ in found]),
        tuple(f for _, f in found),
    )


Predictor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Pictures (B, 3, H, W) and true K (B, 3, 3) to depth (B, H, W) and focals (B,) in pixels, None where K is used."""


def predict_all(predict: Predictor, pictures: HeldOutPictures) -> tuple[Tensor, Tensor | None]:
    """Depth (N, H, W) within :data:`LIMITS` and focal lengths (N,), or None."""
    depths, focals = [], []
    for at in range(0, len(pictures.images), _CHUNK):
        rows = slice(at, at + _CHUNK)
        depth, focal = predict(pictures.images[rows], pictures.K[rows])
        depths.append(depth.float().cpu().nan_to_num(LIMITS[0]).clamp(*LIMITS))
        if focal is not None:
            focals.append(focal.float().cpu())
    return torch.cat(depths), torch.cat(focals) if focals else None


def depth_numbers(
    found: Tensor, pictures: HeldOutPictures, which: Sequence[int], near: float
) -> dict[str, float]:
    """AbsRel, the same after scaling every picture by its median ratio, delta1 (%), RMSE (m), boundary F1: means over
    pictures. AbsRel by distance: over all pixels together.
    """
    some = list(which)
    p, g = found[some], pictures.depth[some]
    known = g > 0
    errors = depth_errors(p, g, known)
    out = {
        "abs_rel": float(errors.abs_rel.mean()),
        "scaled_abs_rel": float(depth_errors(_scaled(p, g, known), g, known).abs_rel.mean()),
        "delta1": 100 * float(errors.delta1.mean()),
        "rmse": float(errors.rmse.mean()),
        "boundary": sum(boundary_f1(a, b, m).score for a, b, m in zip(p, g, known, strict=True)) / len(some),
    }
    relative = torch.where(known, (p - g).abs() / g.clamp_min(1e-6), 0.0).double()
    ranges = {f"from_{a:g}m": (a, b) for a, b in itertools.pairwise(BINS)}
    ranges |= {"to_middle": (0.0, MIDDLE), "beyond_middle": (MIDDLE, math.inf)}
    for name, (low, high) in {**ranges, "near": (0.0, near), "far": (near, math.inf)}.items():
        inside = known & (g >= low) & (g < high)
        if bool(inside.any()):
            out[name] = float(relative[inside].mean())
    return out


def _scaled(found: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """(V, H, W) every picture times its median ratio of truth and result."""
    ratio = scale_median(found.flatten(1), truth.flatten(1), known.flatten(1).to(found.dtype))
    return found * ratio.nan_to_num(1.0)[:, None, None]


def fov_numbers(focal: Tensor, pictures: HeldOutPictures, which: Sequence[int]) -> dict[str, float]:
    """Mean and median error of the horizontal field of view in degrees."""
    some = list(which)
    error = (fov_degrees(focal[some], int(pictures.images.shape[-1])) - pictures.fov[some]).abs()
    return {"fov": float(error.mean()), "fov_median": float(error.median())}


def constant_numbers(pictures: HeldOutPictures, which: Sequence[int], near: float) -> dict[str, float]:
    """What the best constants reach that see the truth: one depth for AbsRel and its ranges, one each for delta1 and
    RMSE, and the field of view with the smallest mean error. A constant has no boundaries.
    """
    some = list(which)
    depth = pictures.depth[some][:, ::2, ::2]
    known = depth > 0
    count = known.flatten(1).sum(1).clamp_min(1)
    low, high = float(depth[known].min()), float(depth[known].max())
    best = {"abs_rel": (math.inf, 1.0), "delta1": (math.inf, 1.0), "rmse": (math.inf, 1.0)}
    for value in torch.logspace(math.log10(low), math.log10(high), _CANDIDATES).tolist():
        safe = torch.where(known, depth, value)
        off = (safe - value).abs()
        ratio = torch.maximum(safe / value, value / safe)
        right = (known & (ratio < 1.25)).flatten(1).sum(1)
        costs = {
            "abs_rel": float(((off / safe).flatten(1).sum(1) / count).mean()),
            "delta1": -float((right / count).mean()),
            "rmse": float((off.square().flatten(1).sum(1) / count).sqrt().mean()),
        }
        best = {k: min(best[k], (cost, value)) for k, cost in costs.items()}
    out: dict[str, float] = {}
    for name, (_, value) in best.items():
        numbers = depth_numbers(torch.full_like(pictures.depth, value), pictures, some, near)
        out |= numbers if name == "abs_rel" else {}
        out[name] = numbers[name]
    fov = pictures.fov[some]
    return {**out, "fov": float((fov - fov.median()).abs().mean())}


def score(
    found: Tensor, focal: Tensor | None, pictures: HeldOutPictures, held_out: Sequence[str], near: float
) -> dict[str, float]:
    """All numbers: of the families that training saw, with ``unseen_`` of those that it did not, AbsRel by family."""
    groups: Mapping[str, list[int]] = {
        "": [n for n, f in enumerate(pictures.families) if f not in held_out],
        "unseen_": pictures.of(held_out),
    }
    out: dict[str, float] = {}
    for prefix, which in groups.items():
        if not which:
            continue
        numbers = depth_numbers(found, pictures, which, near)
        if focal is not None:
            numbers |= fov_numbers(focal, pictures, which)
        out |= {prefix + k: v for k, v in numbers.items()}
    for family in dict.fromkeys(pictures.families):
        which = pictures.of([family])
        errors = depth_errors(found[which], pictures.depth[which], pictures.depth[which] > 0)
        out[f"{family}_abs_rel"] = float(errors.abs_rel.mean())
    return out


def score_constants(pictures: HeldOutPictures, held_out: Sequence[str], near: float) -> dict[str, float]:
    """The same of the best constants."""
    out = constant_numbers(pictures, [n for n, f in enumerate(pictures.families) if f not in held_out], near)
    if unseen := pictures.of(held_out):
        out |= {f"unseen_{k}": v for k, v in constant_numbers(pictures, unseen, near).items()}
    return out
