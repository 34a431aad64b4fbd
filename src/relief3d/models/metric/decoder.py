"""From encodings to canonical inverse depth: fusion from coarse to fine, prompt branches, head.

Sources: Depth Pro (specification 3.4, 3.5), MetricAnything (4.4, 5.4, 5.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.models.metric.tiles import resize


@dataclass(frozen=True)
class PromptConfig:
    """Sizes of the prompt branch of every fusion block.

    Attributes:
        hidden: channels inside the wide branch, which works on maps no larger than the fine level's token grid.
        thin: channels inside the thin branch, which works at the block's own size and keeps fine structure; 0 for none.
        antialias: low-pass the condition before it is made smaller, so that a sparse mask becomes a true density
            instead of a sample of its pixels.
    """

    hidden: int = 768
    thin: int = 32
    antialias: bool = False


def _zero_last(*layers: nn.Module) -> nn.Sequential:
    """A sequence whose last convolution starts as zero."""
    last = layers[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers)


def _prompt_branch(hidden: int, features: int) -> nn.Sequential:
    return _zero_last(
        nn.Conv2d(3, hidden, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(hidden, features, 3, padding=1),
    )


class PromptBranch(nn.Module):
    """Features to add to a fusion block's, from the condition; zero at first. Keys ``wide`` and ``thin``.

    PromptDA's branch (Lin et al. 2025) for three channels, split in a wide part at low and a thin part at full size.
    """

    def __init__(self, features: int, config: PromptConfig) -> None:
        super().__init__()
        self.antialias = config.antialias
        self.wide = _prompt_branch(config.hidden, features)
        if config.thin:
            self.thin = _prompt_branch(config.thin, features)

    def forward(self, condition: Tensor, size: int, limit: int) -> Tensor:
        """(B, F, size, size) from the condition (B, 3, S, S).

        Args:
            condition: PDSA, GMDR, mask.
            size: of the features.
            limit: largest side that the wide part works on.
        """
        x = resize(self.wide(resize(condition, min(size, limit), self.antialias)), size)
        if hasattr(self, "thin"):
            x = x + self.thin(resize(condition, size, self.antialias))
        return x


class Residual(nn.Module):
    """``x + conv(relu(conv(relu(x))))``; keys ``residual.{1, 3}``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, H, W) -> (B, F, H, W)."""
        return x + self.residual(x)


class Fusion(nn.Module):
    """Add a level, refine, add the prompt, double, mix channels.

    Args:
        features: channels.
        with_skip: whether it has weights for a level to be added (``resnet1``).
        double: whether the result has twice the size.
        prompt: sizes of the prompt branch, or None.
    """

    def __init__(self, features: int, *, with_skip: bool, double: bool, prompt: PromptConfig | None) -> None:
        super().__init__()
        if with_skip:
            self.resnet1 = Residual(features)
        self.resnet2 = Residual(features)
        if double:
            self.deconv = nn.ConvTranspose2d(features, features, 2, 2, bias=False)
        self.doubles = double
        self.out_conv = nn.Conv2d(features, features, 1)
        if prompt is not None:
            self.prompt = PromptBranch(features, prompt)

    def forward(
        self, x: Tensor, skip: Tensor | None = None, condition: Tensor | None = None, limit: int = 0
    ) -> Tensor:
        """(B, F, h, h) -> (B, F, 2 h or h, ...); ``condition`` and ``limit`` as in :class:`PromptBranch`."""
        if skip is not None:
            x = x + self.resnet1(skip)
        x = self.resnet2(x)
        if condition is not None:
            x = x + self.prompt(condition, x.shape[-1], limit)
        return self.out_conv(self.deconv(x) if self.doubles else x)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the decoder; levels count from fine to coarse.

    Attributes:
        widths: channels of the encodings.
        doubles: whether the block of a level doubles the size.
        features: channels inside.
        project_first: the finest level is projected as the others are; otherwise by a 1x1 convolution, or not at all
            where the widths agree (Depth Pro).
        spare_skip: the coarsest block has weights for a level to be added, which nothing uses (Depth Pro).
        prompt: sizes of the prompt branches, or None.
    """

    widths: tuple[int, ...]
    doubles: tuple[bool, ...]
    features: int
    project_first: bool
    spare_skip: bool
    prompt: PromptConfig | None = None


class MultiresDecoder(nn.Module):
    """Fuses levels from coarse to fine; keys ``convs``, ``fusions``."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config, f = config, config.features
        first, *rest = config.widths
        if config.project_first:
            finest: nn.Module = nn.Conv2d(first, f, 3, padding=1, bias=False)
        else:
            finest = nn.Identity() if first == f else nn.Conv2d(first, f, 1, bias=False)
        self.convs = nn.ModuleList([finest, *(nn.Conv2d(w, f, 3, padding=1, bias=False) for w in rest)])
        last = len(config.widths) - 1
        self.fusions = nn.ModuleList(
            Fusion(f, with_skip=config.spare_skip or i < last, double=config.doubles[i], prompt=config.prompt)
            for i in range(len(config.widths))
        )

    def forward(
        self, encodings: Sequence[Tensor], condition: Tensor | None = None, limit: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Features of the finest level (after its block), and the projected coarsest encoding.

        Args:
            encodings: fine to coarse.
            condition: (B, 3, S, S) for decoders with prompt branches.
            limit: see :class:`PromptBranch`.
        """
        low = self.convs[-1](encodings[-1])
        x = self.fusions[-1](low, None, condition, limit)
        for i in reversed(range(len(encodings) - 1)):
            x = self.fusions[i](x, self.convs[i](encodings[i]), condition, limit)
        return x, low


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of the head.

    Attributes:
        features: channels of the decoder.
        extra: further 3x3 convolutions at full size.
        hidden: channels at full size.
        bias: of the last convolution at first. The published networks start from 0; a positive value keeps a network
            that learns from scratch from starting with all pixels cut off by the last ReLU.
    """

    features: int
    extra: int = 0
    hidden: int = 32
    bias: float = 0.0


def make_head(config: HeadConfig) -> nn.Sequential:
    """(B, F, h, h) -> (B, 1, 2 h, 2 h) canonical inverse depth, >= 0; keys 0, 1, 2, 4, ... as published."""
    half, hidden = config.features // 2, config.hidden
    layers: list[nn.Module] = [
        nn.Conv2d(config.features, half, 3, padding=1),
        nn.ConvTranspose2d(half, half, 2, 2),
        nn.Conv2d(half, hidden, 3, padding=1),
        nn.ReLU(),
    ]
    for _ in range(config.extra):
        layers += [nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU()]
    last = nn.Conv2d(hidden, 1, 1)
    assert last.bias is not None
    nn.init.constant_(last.bias, config.bias)
    return nn.Sequential(*layers, last, nn.ReLU())


def run_head(head: nn.Sequential, x: Tensor, rows: int | None) -> Tensor:
    """The head over strips of ``rows`` rows of its input, with the neighbours that its convolutions see.

    Its largest maps have four times the pixels of its input; strips bound them. Without strips where gradients are
    wanted or ``rows`` is None. The result is the same up to rounding.
    """
    height = x.shape[-2]
    if rows is None or torch.is_grad_enabled() or rows >= height:
        return _whole_head(head, x)
    # One row before the doubling, and half a row for each of the 3x3 convolutions after it.
    after = sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in head) - 1
    halo = 1 + -(-after // 2)
    out = None
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(0, top - halo), min(height, bottom + halo)
        part = _whole_head(head, x[..., first:last, :])
        out = part.new_empty(len(x), 1, 2 * height, 2 * x.shape[-1]) if out is None else out
        out[..., 2 * top : 2 * bottom, :] = part[..., 2 * (top - first) : 2 * (bottom - first), :]
    assert out is not None
    return out


def _whole_head(head: nn.Sequential, x: Tensor) -> Tensor:
    """The head with its last sum over channels in the type of the weights, also under autocast: the result of a sum in
    bfloat16 would have steps of 0.4 %.
    """
    *first, last, relu = head
    for layer in first:
        x = layer(x)
    assert isinstance(last, nn.Conv2d)
    # The meta device, on which costs are counted, has no autocast.
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        return relu(last(x.to(last.weight.dtype)))
