"""True depth made worse by a known rule, for experiments that ask what weak labels are worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.contract import Depth, Scene
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.labelling.base import DepthLabel, Grouping, Labels, Uses


@dataclass(frozen=True)
class CorruptionOptions:
    """The corruption; the defaults are those of the miniature experiments.

    Attributes:
        scale_sigma: standard deviation of the logarithm of the scale of each picture.
        shift_sigma: standard deviation of the offset of each picture, in units of its median true depth.
        shape_sigma: standard deviation of the smooth noise in log depth, at its grid points.
        shape_grid: grid points per side of the smooth noise.
        noise_sigma: standard deviation of independent noise per pixel in log depth.
    """

    scale_sigma: float = 0.5
    shift_sigma: float = 0.0
    shape_sigma: float = 0.06
    shape_grid: int = 4
    noise_sigma: float = 0.0

    def __post_init__(self) -> None:
        spreads = (self.scale_sigma, self.shift_sigma, self.shape_sigma, self.noise_sigma)
        if min(spreads) < 0 or self.shape_grid < 2:
            raise InputError("corruption options are out of range", remedy="sigmas >= 0, shape_grid >= 2")


def corrupt_depth(
    depth: Depth, options: CorruptionOptions, generator: torch.Generator
) -> tuple[Depth, Tensor]:
    """Corrupt a true depth map.

    With D the true depth, m its median over valid pixels, and independent standard normal numbers drawn in this order
    from ``generator``: a (one), b (one), g (``shape_grid`` squared, row by row), e (one per pixel)::

        D' = D * exp(scale_sigma a + shape_sigma S(g) + noise_sigma e) + shift_sigma b m

    S enlarges the grid to the picture bicubically, its corner points on the corner pixels. What is not positive
    afterwards becomes invalid. b and e are drawn even when their sigma is 0, so that the others do not change.

    Returns:
        The corrupted depth (not metric), and the relative error (H, W) in log depth that remains after the best scale
        of the picture, ``shape_sigma S(g) + noise_sigma e``, 0 where invalid.
    """
    height, width = depth.values.shape
    a, b = torch.randn(2, generator=generator).tolist()
    grid = torch.randn(options.shape_grid, options.shape_grid, generator=generator)
    pixel = torch.randn(height, width, generator=generator)
    smooth = F.interpolate(grid[None, None], (height, width), mode="bicubic", align_corners=True)[0, 0]
    residual = options.shape_sigma * smooth + options.noise_sigma * pixel
    known = depth.values[depth.valid]
    middle = float(known.median()) if len(known) else 0.0
    values = depth.values * torch.exp(options.scale_sigma * a + residual) + options.shift_sigma * b * middle
    valid = depth.valid & (values > 0)
    zero = torch.zeros(())
    corrupted = Depth(torch.where(valid, values, zero), valid, metric=False)
    return corrupted, torch.where(valid, residual, zero)


class ProceduralRelative:
    """Depth "as a relative network would give it", from the truth of a view."""

    name = "procedural-relative"
    version = 1
    grouping = Grouping("view")
    uses: frozenset[Uses] = frozenset({"depth"})

    def __init__(self, options: CorruptionOptions, device: str = "cpu") -> None:
        self.options = options

    def weights_digest(self) -> None:
        """No weights."""
        return

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Corrupted depth of the kind ``scale``; its confidence is 1 where valid, since the rule knows no doubt."""
        found = {}
        for view in scene.views:
            truth = view.load_depth()
            if truth is None:
                raise InputError(f"'{view.name}' has no true depth", remedy="give scenes with depth maps")
            generator = torch_generator(derive_seed(seed, "procedural-relative", view.name))
            depth, _ = corrupt_depth(truth, self.options, generator)
            with_confidence = Depth(depth.values, depth.valid, False, depth.valid.to(torch.float32))
            found[view.name] = DepthLabel(with_confidence, "scale")
        return Labels(depth=found)
