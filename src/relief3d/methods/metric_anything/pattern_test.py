"""Held-out pictures under every pattern of prompts, for comparing ways of spreading them.

Prompts are the same for all that are compared: they depend on the pictures, the pattern and the test's seed alone.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.data.prompt_alignment import NEIGHBOURS
from relief3d.data.prompt_candidates import PromptCandidates, prompt_candidates
from relief3d.data.prompt_interpolation import INTERPOLATORS, spread_prior
from relief3d.data.prompt_patterns import make_prompt, parse_pattern
from relief3d.eval.metrics.boundaries import boundary_f1
from relief3d.eval.metrics.depth import evaluate_depth
from relief3d.methods.metric_anything.config import RETURNS
from relief3d.methods.metric_anything.evaluation import CLASSICAL
from relief3d.methods.metric_anything.pictures import Pictures, PictureSet, PictureSource
from relief3d.methods.metric_anything.pyramid import pyramid_depth
from relief3d.methods.metric_anything.samples import named_prompt, returns_prompt
from relief3d.models.metric.networks import Teacher
from relief3d.models.metric.prompted import PromptedDepth
from relief3d.models.metric.refiner import refiner_config

_LEAST_KNOWN = 500
"""Pixels of surface without which a picture (of 128 x 160, in proportion elsewhere) is left out."""


@dataclass(frozen=True)
class PatternTestConfig:
    """Which pictures; every value is plain.

    Attributes:
        pictures: held-out sets.
        views: the first views of every world.
        seed: of the prompts.
        reaches: metres up to which absolute errors count.
    """

    pictures: tuple[PictureSet, ...]
    views: int = 1
    seed: int = 0
    reaches: tuple[float, ...] = (80.0,)

    def __post_init__(self) -> None:
        if any(not 1 <= self.views <= p.views for p in self.pictures):
            raise InputError(f"the test's pictures do not have {self.views} views per world")


class Case:
    """A picture with a prompt.

    Args:
        view: one picture (V = 1) with a float image.
        prompt: (H, W) metres, 0 where unknown.
    """

    def __init__(self, view: Pictures, prompt: Tensor) -> None:
        self.view, self.prompt = view, prompt

    @property
    def image(self) -> Tensor:
        """(3, H, W) in [0, 1]."""
        return self.view.image[0]

    @property
    def family(self) -> str:
        """Of the world."""
        return self.view.names[0].split("-")[0]

    @cached_property
    def candidates(self) -> PromptCandidates:
        """Of the prompt, for the lean network."""
        return prompt_candidates(self.prompt)


Spread = Callable[[Case], Tensor]
"""(H, W) metres of a case."""


@dataclass(frozen=True)
class Measured:
    """Numbers of one picture.

    Attributes:
        family: of its world.
        abs_rel: mean relative error.
        mae: mean absolute error in metres up to each of the test's reaches; NaN where nothing is that near.
        rmse: likewise.
        f1: boundary F1 (Depth Pro), unknown pixels left out.
        points: of the prompt.
    """

    family: str
    abs_rel: float
    mae: tuple[float, ...]
    rmse: tuple[float, ...]
    f1: float
    points: int


class PatternTest:
    """The test.

    Args:
        root: folder of rendered sets.
        config: which pictures.
    """

    def __init__(self, root: Path, config: PatternTestConfig) -> None:
        self.root, self.config = root, config
        self._cases: dict[str, list[Case]] = {}

    @cached_property
    def views(self) -> list[Pictures]:
        """The pictures, images as float in [0, 1]."""
        out = []
        for rule in self.config.pictures:
            source = PictureSource(self.root, (rule,))
            least = _LEAST_KNOWN * rule.size[0] * rule.size[1] / (128 * 160)
            for number in range(len(source)):
                if number % rule.views >= self.config.views:
                    continue
                picture = source.picture(number)
                if int((picture.depth > 0).sum()) >= least:
                    out.append(replace(picture, image=picture.image.float() / 255))
        return out

    def cases(self, pattern: str) -> list[Case]:
        """All pictures that give at least five points under a pattern."""
        if pattern not in self._cases:
            found = []
            for view in self.views:
                seed = derive_seed(self.config.seed, pattern, zlib.crc32(view.names[0].encode()))
                prompt = pattern_prompt(pattern, view, seed)
                if int((prompt > 0).sum()) >= NEIGHBOURS:
                    found.append(Case(view, prompt))
            if not found:
                raise InputError(f"no picture of the test gives a prompt of the pattern '{pattern}'")
            self._cases[pattern] = found
        return self._cases[pattern]

    def measure(self, pattern: str, spread: Spread) -> list[Measured]:
        """Numbers of every picture that has the pattern."""
        out = []
        for case in self.cases(pattern):
            truth = case.view.depth[0]
            with torch.no_grad():
                found = spread(case)
            near = [_within(found, truth, reach) for reach in self.config.reaches]
            out.append(
                Measured(
                    case.family,
                    float(evaluate_depth(found, truth).abs_rel),
                    tuple(mae for mae, _ in near),
                    tuple(rmse for _, rmse in near),
                    boundary_f1(found, truth, truth > 0).score,
                    int((case.prompt > 0).sum()),
                )
            )
        return out


def _within(found: Tensor, truth: Tensor, reach: float) -> tuple[float, float]:
    """MAE and RMSE in metres of what is no farther than a reach."""
    if not bool(((truth > 0) & (truth <= reach)).any()):
        return math.nan, math.nan
    numbers = evaluate_depth(found, truth, max_depth=reach)
    return float(numbers.mae), float(numbers.rmse)


def family_mean(measured: Sequence[Measured], value: Callable[[Measured], float], family: str = "") -> float:
    """Mean over families of the mean over their pictures, so that each counts the same; or of one family.

    Values that are not numbers are left out; NaN when nothing is left.
    """
    by: dict[str, list[float]] = {}
    for m in measured:
        if math.isfinite(value(m)) and family in ("", m.family):
            by.setdefault(m.family, []).append(value(m))
    return fmean(fmean(values) for values in by.values()) if by else math.nan


def pattern_prompt(pattern: str, view: Pictures, seed: int) -> Tensor:
    """(H, W) sparse depth of a view (V = 1, float image) by the name of a pattern.

    Names are ``every_8`` for every 8th pixel in both directions, those of
    :func:`relief3d.data.prompt_patterns.make_prompt` (``LiDAR_16``, ``20``, ``downscale_8`` ...), of
    :func:`relief3d.methods.metric_anything.samples.named_prompt` (``keypoints-200-noisy`` ...), and ``lidar_returns``
    and ``radar_returns`` for the raw returns that are stored with the picture. A pattern that finds fewer than five
    points in the picture may give none.

    Raises:
        InputError: no such pattern.
    """
    if pattern in RETURNS:
        return returns_prompt(view, pattern)
    if found := re.fullmatch(r"every_([1-9]\d*)", pattern):
        step = int(found[1])
        out = torch.zeros_like(view.depth[0])
        rows, cols = slice(step // 2, None, step), slice(step // 2, None, step)
        out[rows, cols] = view.depth[0][rows, cols]
        return out
    if "-" in pattern:
        return named_prompt(pattern, view.depth[0], view.image[0], seed)
    parse_pattern(pattern)
    try:
        made = make_prompt(pattern, view.depth[0], seed=seed, image=view.image[0])
    except InputError:  # of fewer than five points: the caller leaves the picture out
        return torch.zeros_like(view.depth[0])
    return torch.where(made.mask, made.depth, torch.zeros_like(made.depth))


# ---- ways of spreading ----------------------------------------------------------------------------------------------


def lean(model: nn.Module) -> Spread:
    """The lean network."""
    device = next(model.parameters()).device

    def spread(case: Case) -> Tensor:
        told = case.candidates.to(device)
        found = model(case.view.image.to(device), told)
        return torch.exp(-(found.log_inverse.float() + told.middle[:, None, None]))[0].cpu()

    return spread


def lean_at(model: nn.Module, size: str, side: int) -> Spread:
    """The lean network on a picture whose longer side is brought to that many pixels, the result to full size.

    Args:
        model: the network.
        size: its name.
        side: pixels; pictures are never enlarged.
    """
    whole = PromptedDepth(refiner_config(size))
    whole.net.load_state_dict(model.state_dict())
    whole = whole.to(next(model.parameters()).device).eval()

    def spread(case: Case) -> Tensor:
        image = case.view.image.to(next(whole.parameters()).device)
        return whole.predict_sparse(image, [case.prompt], side=side).depth[0].cpu()

    return spread


def pyramid(model: nn.Module, *, blind: bool = False) -> Spread:
    """The pyramid teacher, with the true focal length; ``blind``: it is not told the prompt."""
    assert isinstance(model, Teacher)
    return lambda case: pyramid_depth(model, case.image, case.prompt, case.view.K[0, 0, 0], blind=blind)


def aligned(model: nn.Module) -> Spread:
    """A pyramid network that sees no prompt; its inverse depth is fitted to the prompt by one affine map."""
    assert isinstance(model, Teacher)

    def spread(case: Case) -> Tensor:
        alone = pyramid_depth(model, case.image, case.prompt, case.view.K[0, 0, 0], blind=True)
        return spread_prior(case.prompt, 1 / alone)

    return spread


def classical(name: str) -> Spread:
    """One of :data:`relief3d.methods.metric_anything.evaluation.CLASSICAL`."""
    return lambda case: INTERPOLATORS[CLASSICAL[name]](case.prompt, case.image)


def constant(case: Case) -> Tensor:
    """The prompt's median inverse depth everywhere."""
    return torch.full_like(case.prompt, float(case.prompt[case.prompt > 0].median()))
