"""The lean prompted network: it starts as a strong classical answer and learns to correct it.

Points are judged and corrected from their neighbours and from the picture (a small point network); features on a grid
at half the picture's size say how well the planes of the nearest points and the triangulated maps suit (a small network
per candidate); every pixel decides among them, by its own colour too, so that outlines stay sharp; a U-Net corrects.
Everything runs in log inverse depth relative to the prompt's median: results scale with the prompt, in any unit.
It takes the place of the pyramid teacher where parameters and training are few (small-model study, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.data.prompt_candidates import MAP_FEATURES, POINT_FEATURES, PromptCandidates

_FLAT = 4
"""Nearest points whose own value is a candidate too, beside their plane: planes of points at an outline lean."""
_REACH = 0.7
"""Largest change of log inverse depth that a plane may carry from a point to a cell."""
_FAR = 4.0
_COLOUR = 100.0
"""Weight of a squared difference of colour in the choice among candidates at the start."""
_DISTANCE = 2.0
"""Likewise of a squared distance, in spacings of the prompt."""
_DENSE = -1.0
"""Logit of the triangulated maps at the start, beside 0 for a point of the same colour at no distance."""
_GAP = 8.0
"""What speaks against a triangulated map where the points of a pixel's colour say something else: weight of the
difference. Triangles span outlines."""
_AGREE = 0.05
"""Candidates this close to the chosen one (log inverse depth, plus the prompt's noise) count much in the mixture."""
_GLOBAL = 2
"""Maps of one value: how noisy the prompt is, and how dense."""


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes of the network.

    Attributes:
        widths: channels at strides 2, 4, 8, ...
        blocks: residual blocks at every stride, on the way down.
        key: channels by which cells and points are compared.
        fine: channels by which pixels and points are compared.
        point: channels of the point network.
        guides: further dense maps of log inverse depth that it may choose from (PDSA and GMDR of a prior: 2).
    """

    widths: tuple[int, ...] = (24, 48, 96, 128, 160)
    blocks: tuple[int, ...] = (1, 1, 2, 2, 2)
    key: int = 16
    fine: int = 8
    point: int = 48
    guides: int = 0


SIZES: dict[str, RefinerConfig] = {
    "nano": RefinerConfig((8, 12, 16), (1, 1, 1), key=4, fine=4, point=8),
    "micro": RefinerConfig((16, 32, 64, 96), (1, 1, 1, 1), key=8, point=32),
    "mini": RefinerConfig(),
    "small": RefinerConfig((32, 64, 128, 192, 256), (1, 2, 2, 3, 3), key=24, point=64),
    "full": RefinerConfig((64, 128, 256, 384, 512), (2, 2, 4, 6, 6), key=32, point=128),
}


def refiner_config(size: str) -> RefinerConfig:
    """Configuration of a named size; there is no published one, ``full`` is the largest worth training.

    Raises:
        InputError: no such size.
    """
    if size not in SIZES:
        raise InputError(f"there is no size '{size}'", remedy=f"use {', '.join(SIZES)}")
    return SIZES[size]


@dataclass(frozen=True)
class Refined:
    """What the network says.

    Attributes:
        log_inverse: (B, H, W) log inverse depth relative to the prompt's median.
        log_error: (B, H, W) log of the expected absolute error of it (Laplace).
        mixture: (B, H, W) the choice among candidates, before correction.
        doubt: (B, P) logit that a point is wrong; padding holds whatever comes out.
        candidates: (B, C, H, W) log inverse depth of all candidates.
        log_weight: (B, C, H, W) log probability of each of them.
    """

    log_inverse: Tensor
    log_error: Tensor
    mixture: Tensor
    doubt: Tensor
    candidates: Tensor
    log_weight: Tensor


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(max(1, channels // 16), channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(self.norm(x))))


class _Pyramid(nn.Module):
    """U-Net from stride 2 to the coarsest stride and back; (B, C, h, w) -> (B, widths[0], h, w)."""

    def __init__(self, inputs: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.encode = nn.ModuleList(
            nn.Sequential(*(_Residual(c) for _ in range(n))) for c, n in zip(widths, blocks)
        )
        self.lift = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decode = nn.ModuleList(_Residual(c) for c in widths[:-1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        kept = []
        for level, encode in enumerate(self.encode):
            x = encode(x if level == 0 else self.down[level - 1](F.relu(x)))
            kept.append(x)
        for level in range(len(kept) - 2, -1, -1):
            fine = kept[level]
            coarse = F.interpolate(self.lift[level](x), fine.shape[-2:], mode="bilinear", align_corners=False)
            x = self.decode[level](fine + coarse)
        return x


def _mlp(*channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(channels):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PromptRefiner(nn.Module):
    """See the module.

    Args:
        config: sizes.
    """

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        base, key, point = config.widths[0], config.key, config.point
        dense = MAP_FEATURES + config.guides
        self.features = _Pyramid(12 + dense + _GLOBAL, config.widths, config.blocks)
        self.to_key = nn.Conv2d(base, key, 1)
        self.to_fine = nn.Conv2d(base, 4 * config.fine, 1)
        self.see = nn.Conv2d(base, point, 1)
        self.message = _mlp(2 * POINT_FEATURES + 3, point, point)
        self.judge = _mlp(2 * point + point + POINT_FEATURES, point, 3 + key + config.fine)
        self.choose = _mlp(10, 24, 2)
        # What speaks against a candidate before anything is learned: another colour, and distance.
        self.against_colour = nn.Parameter(torch.tensor(math.log(_COLOUR)))
        self.against_distance = nn.Parameter(torch.tensor(math.log(_DISTANCE)))
        self.dense_logits = nn.Conv2d(base, 4 * (2 + config.guides), 1)
        self.against_gap = nn.Parameter(torch.tensor(math.log(_GAP)))
        self.suit = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))
        self.correct = _Pyramid(base + dense + _GLOBAL + 7, config.widths[:3], (1,) * len(config.widths[:3]))
        self.last = nn.Conv2d(base, 8, 3, padding=1)
        for layer in (self.last, self.judge[-1], self.choose[-1], self.suit[-1]):
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            with torch.no_grad():
                layer.weight.mul_(0.05)
        nn.init.zeros_(self.last.weight)  # the choice alone is the answer at the start
        assert self.dense_logits.bias is not None
        nn.init.constant_(self.dense_logits.bias, _DENSE)

    def forward(self, image: Tensor, prompt: PromptCandidates, guides: Tensor | None = None) -> Refined:
        """Dense log inverse depth.

        Args:
            image: (B, 3, H, W) in [0, 1].
            prompt: its candidates at stride 2.
            guides: (B, guides, h, w) further maps in log inverse depth relative to the prompt's median.
        """
        pixels = F.pixel_unshuffle(image - 0.5, 2)
        maps = prompt.maps if guides is None else torch.cat([prompt.maps, guides], 1)
        maps = torch.cat([maps[:, :3].clamp(-_FAR, _FAR), maps[:, 3:4].clamp(max=_FAR), maps[:, 4:]], 1)
        told = torch.cat([maps, _told(prompt, maps)], 1)
        seen = self.features(torch.cat([pixels, told], 1))
        table, doubt = self._points(image, seen, prompt)
        values, log_weight = self._choice(image, seen, table, prompt, maps)
        mixture, spread, certain = _settled(values, log_weight, prompt.noise)
        coarse = F.avg_pool2d(torch.stack([spread, certain, mixture], 1), 2)
        coarse[:, 2] = coarse[:, 2] - maps[:, 1]
        inside = torch.cat([F.pixel_unshuffle(mixture[:, None], 2), coarse], 1)
        out = self.last(F.relu(self.correct(torch.cat([F.relu(seen), told, inside], 1))))
        return Refined(
            mixture + F.pixel_shuffle(out[:, :4], 2)[:, 0],
            F.pixel_shuffle(out[:, 4:].clamp(-8, 3), 2)[:, 0],
            mixture,
            doubt,
            values,
            log_weight,
        )

    def _points(self, image: Tensor, seen: Tensor, prompt: PromptCandidates) -> tuple[Tensor, Tensor]:
        """(B, P, 9 + key + fine) table: x, y, value, slope (2), trust, colour (3), keys; and (B, P) doubt."""
        B, P = prompt.value.shape
        stride = prompt.stride
        h, w = seen.shape[-2:]
        cell = (prompt.xy / stride).long()
        cell = cell[..., 1].clamp(0, h - 1) * w + cell[..., 0].clamp(0, w - 1)
        looks = _rows(self.see(seen).flatten(2).transpose(1, 2), cell)
        features = prompt.features
        M = prompt.around.shape[-1]
        around = prompt.around.reshape(B, P * M)
        theirs = _rows(torch.cat([features, prompt.value[..., None], prompt.xy], 2), around).reshape(
            B, P, M, -1
        )
        step = (theirs[..., -2:] - prompt.xy[:, :, None]) / prompt.spacing[:, None, None, None]
        other = (theirs[..., -3] - prompt.value[:, :, None]).clamp(-2, 2)
        mine = features[:, :, None].expand(-1, -1, M, -1)
        message = self.message(
            torch.cat([mine, theirs[..., :-3], other[..., None], step.clamp(-_FAR, _FAR)], -1)
        )
        pooled = torch.cat([message.mean(2), message.amax(2)], -1)
        judged = self.judge(torch.cat([pooled, looks, features], -1))
        pixel = prompt.xy.long()
        pixel = pixel[..., 1] * image.shape[-1] + pixel[..., 0]
        colour = _rows(image.flatten(2).transpose(1, 2), pixel.clamp(0, image[0, 0].numel() - 1))
        value = prompt.value + judged[..., 1]
        keep = torch.sigmoid(judged[..., 2:3] + 2)
        table = torch.cat(
            [prompt.xy, value[..., None], prompt.slope * keep, judged[..., :1], colour, judged[..., 3:]], -1
        )
        return table, judged[..., 0]

    def _choice(
        self, image: Tensor, seen: Tensor, table: Tensor, prompt: PromptCandidates, maps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) each: log inverse depth of the candidates and the log of their weights, which sum to one."""
        B, K, h, w = prompt.nearest.shape
        stride = prompt.stride
        rows = _rows(table, prompt.nearest.reshape(B, -1)).reshape(B, K, h * w, -1)
        ys, xs = torch.meshgrid(
            torch.arange(h, device=image.device), torch.arange(w, device=image.device), indexing="ij"
        )
        centre = torch.stack([xs, ys], -1).reshape(1, 1, -1, 2) * stride + stride / 2
        step = centre - rows[..., :2]
        carried = (rows[..., 3:5] * step).sum(-1).clamp(-_REACH, _REACH)
        value = rows[..., 2] + carried
        colour = F.avg_pool2d(image, stride).flatten(2).transpose(1, 2)[:, None]
        key = self.to_key(seen).flatten(2).transpose(1, 2)[:, None]
        dense = torch.cat([maps[:, 0:2], maps[:, 4:]], 1)
        offset = value - dense.flatten(2)[:, 1:2]
        keys = self.config.key
        said = torch.stack(
            [
                (rows[..., 6:9] - colour).abs().sum(-1),
                (rows[..., 6:9] - colour).square().sum(-1),
                (rows[..., 9 : 9 + keys] - key).square().mean(-1),
                (rows[..., 9 : 9 + keys] * key).mean(-1),
                step.norm(dim=-1) / prompt.spacing[:, None, None],
                rows[..., 5],
                offset.clamp(-2, 2),
                offset.abs().clamp(max=2),
                (value - value.mean(1, keepdim=True)).clamp(-2, 2),
                carried,
            ],
            -1,
        )
        near = self.against_distance.exp() * said[..., 4] ** 2
        plane, flat = (logits - near for logits in self.choose(said).unbind(-1))
        # The four pixels of every cell: (B, K, 4, h * w).
        within = torch.tensor([(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)], device=image.device)
        fine_carried = ((step[:, :, None] + within[:, None]) * rows[:, :, None, :, 3:5]).sum(-1)
        fine_value = rows[:, :, None, :, 2] + fine_carried.clamp(-_REACH, _REACH)
        pixels = F.pixel_unshuffle(image, 2).reshape(B, 3, 1, 4, h * w)
        theirs = rows[..., 6:9].permute(3, 0, 1, 2)
        unlike = sum((theirs[c][:, :, None] - pixels[:, c]).square() for c in range(3))
        looks = self.to_fine(seen).reshape(B, -1, 4, h * w)
        alike = torch.einsum("bkpe,besp->bksp", rows[..., 9 + keys :].to(looks.dtype), looks)
        suits = alike - self.against_colour.exp() * unlike
        fine = torch.cat([plane[:, :, None] + suits, flat[:, :_FLAT, None] + suits[:, :_FLAT]], 1)
        fine_value = torch.cat([fine_value, rows[:, :_FLAT, None, :, 2].expand(-1, -1, 4, -1)], 1)
        points, fine = _pixels(fine_value, h, w), _pixels(fine, h, w)
        tight = (-near).softmax(1)
        around = (tight * (value - (tight * value).sum(1, keepdim=True)).abs()).sum(1).reshape(B, 1, h, w)
        lifted = F.interpolate(
            torch.cat([around, maps[:, 3:4], dense], 1), scale_factor=2, mode="bilinear", align_corners=False
        ).float()
        dense_logits = F.pixel_shuffle(self.dense_logits(seen), 2).float()
        dense_logits = dense_logits + self._suiting(points, fine, lifted)
        return torch.cat([points, lifted[:, 2:]], 1), torch.cat([fine, dense_logits], 1).log_softmax(1)

    def _suiting(self, points: Tensor, logits: Tensor, lifted: Tensor) -> Tensor:
        """(B, D, H, W): how well each of D dense maps suits what the points of a pixel's own colour say.

        Args:
            points: (B, K, H, W) their values.
            logits: (B, K, H, W) of them.
            lifted: (B, 2 + D, H, W) spread of the points around, distance to the nearest, the dense maps.
        """
        weight = logits.softmax(1)
        level = (weight * points).sum(1, keepdim=True)
        spread = (weight * (points - level).abs()).sum(1, keepdim=True)
        maps = lifted[:, 2:].unbind(1)
        gaps = [(m[:, None] - level).abs().clamp(max=2) for m in maps]
        told = torch.cat([torch.cat([gap, spread.clamp(max=2), lifted[:, :2]], 1) for gap in gaps])
        learned = (
            self.suit(told).float().reshape(len(maps), *points.shape[:1], *points.shape[2:]).transpose(0, 1)
        )
        return learned - self.against_gap.exp() * torch.cat(gaps, 1)


def _pixels(values: Tensor, height: int, width: int) -> Tensor:
    """(B, K, 4, h * w), the pixels of every cell, to (B, K, 2h, 2w)."""
    B, K = values.shape[:2]
    return F.pixel_shuffle(values.reshape(B, 4 * K, height, width).float(), 2)


def _settled(values: Tensor, log_weight: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mixture of those candidates that agree with the weighted median: a mean of two surfaces lies on neither.

    Args:
        values: (B, C, h, w).
        log_weight: (B, C, h, w).
        noise: (B,) of the prompt.

    Returns:
        (B, h, w) each: the mixture, the mean distance of all candidates from it, the largest weight.
    """
    weight = log_weight.exp()
    with torch.no_grad():
        plain = values.float()
        below = torch.stack(
            [torch.where(plain <= v[:, None], weight, 0.0).sum(1) for v in plain.unbind(1)], 1
        )
        middle = torch.where(below >= 0.5 - 1e-4, plain, torch.inf).amin(1, keepdim=True)
        width = _AGREE + noise.clamp(max=2 * _AGREE)[:, None, None, None]
        near = torch.exp(-0.5 * ((plain - middle) / width) ** 2)
    agreeing = weight * near
    mixture = (agreeing * values).sum(1) / agreeing.sum(1).clamp_min(1e-6)
    spread = (weight * (values - mixture[:, None]).abs()).sum(1)
    return mixture, spread, weight.amax(1)


def _told(prompt: PromptCandidates, maps: Tensor) -> Tensor:
    """(B, 2, h, w): log of the prompt's noise and of its spacing, each about 0 and of size 1."""
    noise = (torch.log(prompt.noise + 1e-3) + 4) / 2
    spacing = torch.log(prompt.spacing) - 2
    return torch.stack([noise, spacing], 1)[..., None, None].expand(-1, -1, *maps.shape[-2:]).to(maps)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) and (B, Q) int64 -> (B, Q, C); one ``index_select`` of rows, which is much faster than ``gather``."""
    B, N, C = table.shape
    flat = (index + torch.arange(B, device=index.device)[:, None] * N).reshape(-1)
    return table.reshape(B * N, C).index_select(0, flat).reshape(B, -1, C)
