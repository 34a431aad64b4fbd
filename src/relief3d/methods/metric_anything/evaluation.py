"""How well prompts are spread, beside the classical ways of doing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from relief3d.core.seeding import derive_seed
from relief3d.data.prompt_candidates import PromptCandidates, prompt_candidates
from relief3d.data.prompt_interpolation import INTERPOLATORS
from relief3d.methods.metric_anything.config import EvaluationConfig
from relief3d.methods.metric_anything.pictures import PictureSet, PictureSource
from relief3d.methods.metric_anything.samples import named_prompt

CLASSICAL = {
    "nearest": "nearest",
    "linear": "linear in 1/z",
    "bilateral": "bilateral 16-NN",
    "guided": "guided filter",
}
"""Short names of :data:`relief3d.data.prompt_interpolation.INTERPOLATORS`."""


class HeldOut:
    """Held-out pictures of one family with every prompt.

    Args:
        root: folder of rendered sets.
        config: of the evaluation.
        family: of worlds.
    """

    def __init__(self, root: str | Path, config: EvaluationConfig, family: str) -> None:
        rule = PictureSet((family,), config.worlds, 2, config.size, seed=config.seed)  # type: ignore[arg-type]
        source = PictureSource(root, (rule,))
        pictures = [source.picture(2 * n) for n in range(config.worlds)]
        keep = [p for p in pictures if int((p.depth > 0).sum()) >= 500]
        self.images = torch.cat([p.image for p in keep]).float() / 255
        self.depth = torch.cat([p.depth for p in keep])
        self.focal = torch.cat([p.K[:, 0, 0] for p in keep])
        self.prompts: dict[str, Tensor] = {}
        for text in config.prompts:
            maps = [
                named_prompt(text, d, image, derive_seed(config.seed, text, n))
                for n, (d, image) in enumerate(zip(self.depth, self.images, strict=True))
            ]
            self.prompts[text] = torch.stack(maps)

    def candidates(self, text: str) -> PromptCandidates:
        """Of one prompt for all pictures."""
        return PromptCandidates.stack([prompt_candidates(p) for p in self.prompts[text]])


def abs_rel(found: Tensor, truth: Tensor) -> float:
    """Mean over pictures of the mean relative error; (V, H, W) metres, 0 where truth is unknown."""
    error = (found - truth).abs() / truth.clamp_min(1e-6)
    known = truth > 0
    each = torch.where(known, error, 0.0).flatten(1).sum(1) / known.flatten(1).sum(1).clamp_min(1)
    return float(each.mean())


def refined_depth(model: nn.Module, images: Tensor, candidates: PromptCandidates, chunk: int = 4) -> Tensor:
    """(V, H, W) depth in the unit of the prompts."""
    device = next(model.parameters()).device
    out = []
    for at in range(0, len(images), chunk):
        some = candidates[at : at + chunk].to(device)
        found = model(images[at : at + chunk].to(device), some)
        out.append(torch.exp(-(found.log_inverse.float() + some.middle[:, None, None])).cpu())
    return torch.cat(out)


def score(model: nn.Module, held_out: Mapping[str, HeldOut]) -> dict[str, float]:
    """``<family>_<prompt>`` to AbsRel of the network."""
    was = model.training
    model.eval()
    out: dict[str, float] = {}
    with torch.no_grad():
        for family, scenes in held_out.items():
            for text in scenes.prompts:
                depth = refined_depth(model, scenes.images, scenes.candidates(text))
                out[f"{family}_{text}"] = abs_rel(depth, scenes.depth)
    model.train(was)
    return out


def score_classical(
    held_out: Mapping[str, HeldOut], names: Sequence[str] = tuple(CLASSICAL)
) -> dict[str, float]:
    """``<family>_<prompt>_<interpolator>`` to AbsRel."""
    out: dict[str, float] = {}
    for family, scenes in held_out.items():
        for text, prompts in scenes.prompts.items():
            for name in names:
                spread: Callable[[Tensor, Tensor], Tensor] = INTERPOLATORS[CLASSICAL[name]]
                maps = [spread(p, image) for p, image in zip(prompts, scenes.images, strict=True)]
                out[f"{family}_{text}_{name}"] = abs_rel(torch.stack(maps), scenes.depth)
    return out
