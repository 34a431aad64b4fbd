"""Dense prediction head over four transformer layers (Ranftl et al. 2021), as VGGT and its relatives use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.core.tensor_memory import join_parts
from relief3d.nn.uv import uv_embedding_axes

STRIP_ROWS = 96
"""Rows of the result per pass of the last convolutions, when there are no gradients."""

HEAD_PIXELS = 2 * 224 * 224
"""Pixels per pass of a dense head on a CPU."""


def head_chunk(chunk: int | None, size: tuple[int, int], device: torch.device) -> int | None:
    """Views per pass of a dense head; on a CPU no more than keep its work space small, which costs no time there."""
    if device.type != "cpu" or torch.is_grad_enabled():
        return chunk
    few = max(1, HEAD_PIXELS // (size[0] * size[1]))
    return few if chunk is None else min(chunk, few)


@dataclass(frozen=True)
class DptConfig:
    """Sizes of a head.

    Attributes:
        dim_in: channels of the tokens.
        features: channels of the fused maps.
        out_channels: channels of the four levels, fine to coarse.
        output_dim: channels of the result, the last being confidence; None to return features.
        pos_embed: add an embedding of the pixel's position at several places.
        down_ratio: the result is the picture's size over this.
        patch: pixels per token side.
    """

    dim_in: int = 2048
    features: int = 256
    out_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    output_dim: int | None = 2
    pos_embed: bool = True
    down_ratio: int = 1
    patch: int = 14


class ResidualConvUnit(nn.Module):
    """``conv2(relu(conv1(relu(x)))) + relu(x)``.

    The skip carries relu(x), not x: the checkpoints were trained with an in-place ReLU.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(M, F, H, W) -> (M, F, H, W)."""
        x = x.relu()
        return self.conv2(self.conv1(x).relu_()).add_(x)


class FusionBlock(nn.Module):
    """Add the finer level, refine, resize, mix channels."""

    def __init__(self, features: int, *, with_skip: bool) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        if with_skip:
            self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """(M, F, H, W) -> (M, F, *size)."""
        return resize(self.mixed(x, skip), size)

    def mixed(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """The same before the resize: it and a convolution of single pixels may change places, and at the smaller
        size the convolution costs a quarter.
        """
        if skip is not None:
            x = self.resConfUnit1(skip).add_(x)
        return self.out_conv(self.resConfUnit2(x))


class Scratch(nn.Module):
    """The convolutions after the reassembly; the name is that of the checkpoints."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        f, oc = config.features, config.out_channels
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(channels, f, 3, padding=1, bias=False) for channels in oc
        )
        self.refinenet1, self.refinenet2, self.refinenet3 = (FusionBlock(f, with_skip=True) for _ in range(3))
        self.refinenet4 = FusionBlock(f, with_skip=False)
        if config.output_dim is None:
            self.output_conv1 = nn.Conv2d(f, f, 3, padding=1)
        else:
            self.output_conv1 = nn.Conv2d(f, f // 2, 3, padding=1)
            self.output_conv2 = nn.Sequential(
                nn.Conv2d(f // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, config.output_dim, 1)
            )


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, corners aligned. Very large maps are resized in parts, which some devices need."""
    return nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=True)


class DptHead(nn.Module):
    """Four layers of tokens to one map per view."""

    def __init__(self, config: DptConfig) -> None:
        super().__init__()
        self.config = config
        oc = config.out_channels
        self.norm = nn.LayerNorm(config.dim_in)
        self.projects = nn.ModuleList(nn.Conv2d(config.dim_in, c, 1) for c in oc)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(oc[0], oc[0], 4, 4),
                nn.ConvTranspose2d(oc[1], oc[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(oc[3], oc[3], 3, 2, 1),
            ]
        )
        self.scratch = Scratch(config)

    def forward(
        self,
        layers: Sequence[Tensor],
        size: tuple[int, int],
        chunk: int | None = 8,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """One map per view.

        Args:
            layers: four tensors (M, P, D) of patch tokens, row by row.
            size: (H, W) of the pictures.
            chunk: views computed at a time; only memory depends on it. None takes all.
            finish: applied to the maps of each chunk, for example to move them elsewhere.

        Returns:
            (M, output_dim, H / down_ratio, W / down_ratio), or ``features`` channels.
        """
        count = layers[0].shape[0]
        step = count if chunk is None else max(1, chunk)
        maps = (self._maps([layer[i : i + step] for layer in layers], size) for i in range(0, count, step))
        return join_parts(((m if finish is None else finish(m),) for m in maps), count)[0]

    def _maps(self, layers: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        s = self.scratch
        # From coarse to fine, so that the largest level exists for the shortest time.
        rn4 = s.layer4_rn(self._level(3, layers[3], size))
        rn3 = s.layer3_rn(self._level(2, layers[2], size))
        x = s.refinenet4(rn4, None, rn3.shape[-2:])
        rn2 = s.layer2_rn(self._level(1, layers[1], size))
        x = s.refinenet3(x, rn3, rn2.shape[-2:])
        rn1 = s.layer1_rn(self._level(0, layers[0], size))
        x = s.refinenet2(x, rn2, rn1.shape[-2:])
        del rn4, rn3, rn2
        x = s.refinenet1.mixed(x, rn1)
        del rn1
        out = self._output_size(size)
        if self.config.output_dim is None or torch.is_grad_enabled():
            return self._rows(x, size, (0, out[0]))
        return self._in_strips(x, size, out)

    def _level(self, index: int, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(M, channels, h, w) map of one layer of tokens at its own scale."""
        rows, cols = size[0] // self.config.patch, size[1] // self.config.patch
        x = self.norm(tokens).transpose(1, 2).unflatten(2, (rows, cols))
        x = self._positioned(self.projects[index](x), size, (0, rows), rows)
        return self.resize_layers[index](x)

    def _output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        down, patch = self.config.down_ratio, self.config.patch
        return size[0] // patch * patch // down, size[1] // patch * patch // down

    def _in_strips(self, x: Tensor, size: tuple[int, int], out: tuple[int, int]) -> Tensor:
        """The last convolutions, some rows at a time: they hold the largest maps of the whole network."""
        result = None
        for top in range(0, out[0], STRIP_ROWS):
            rows = (top, min(top + STRIP_ROWS, out[0]))
            part = self._rows(x, size, rows)
            result = part.new_empty(len(x), part.shape[1], *out) if result is None else result
            result[:, :, rows[0] : rows[1]] = part
        assert result is not None
        return result

    def _rows(self, x: Tensor, size: tuple[int, int], rows: tuple[int, int]) -> Tensor:
        """Rows [first, last) of the result from the fused map (M, F, h, w) before its last doubling.

        Without an output dimension there is no last convolution, so no neighbouring rows are needed.
        """
        s, out = self.scratch, self._output_size(size)
        double = (2 * x.shape[-2], 2 * x.shape[-1])
        whole = rows == (0, out[0])
        halo = 0 if self.config.output_dim is None or whole else 1
        wanted = (max(0, rows[0] - halo), min(out[0], rows[1] + halo))
        if whole:
            x = resize(s.output_conv1(resize(x, double)), out)
        else:
            needed = source_rows(wanted, double[0], out[0])
            around = (max(0, needed[0] - 1), min(double[0], needed[1] + 1))
            x = resize_rows(x, double, around)
            x = _convolve_rows(s.output_conv1, x, needed[0] - around[0], around[1] - needed[1])
            x = resize_rows(x, out, wanted, first=needed[0], height=double[0])
        x = self._positioned(x, size, wanted, out[0])
        if self.config.output_dim is None:
            return x
        first, *rest = s.output_conv2
        if whole:
            x = first(x)
        else:
            x = _convolve_rows(first, x, rows[0] - wanted[0], wanted[1] - rows[1])
        for layer in rest:
            x = layer(x)
        return x

    def _positioned(
        self, x: Tensor, size: tuple[int, int], rows: tuple[int, int], height: int, strength: float = 0.1
    ) -> Tensor:
        """Add the embedding of the position to rows [first, last) of a map of that height."""
        if not self.config.pos_embed:
            return x
        half = x.shape[1] // 2
        along_x, along_y = uv_embedding_axes(height, x.shape[-1], size[1] / size[0], x.shape[1], x.device)
        along_x, along_y = along_x.to(x.dtype), along_y[:, rows[0] : rows[1]].to(x.dtype)
        if torch.is_grad_enabled():
            return torch.cat([x[:, :half] + strength * along_x, x[:, half:] + strength * along_y], 1)
        x[:, :half] += strength * along_x
        x[:, half:] += strength * along_y
        return x


def source_rows(rows: tuple[int, int], height: int, target: int) -> tuple[int, int]:
    """Rows [first, last) of a map of some height from which rows of its resized version are interpolated."""
    ratio = (height - 1) / max(1, target - 1)
    return max(0, int(rows[0] * ratio) - 1), min(height, int((rows[1] - 1) * ratio) + 3)


def resize_rows(
    x: Tensor, size: tuple[int, int], rows: tuple[int, int], *, first: int = 0, height: int | None = None
) -> Tensor:
    """Rows [first, last) of what :func:`resize` would give.

    Args:
        x: (M, C, h, w), rows ``first``... of a map of ``height`` rows (all of it by default).
        size: (H, W) of the whole result.
        rows: which of its rows.
        first: row of the map at which ``x`` begins.
        height: of the whole map.
    """
    height = x.shape[-2] if height is None else height
    ratio = (height - 1) / (size[0] - 1) if size[0] > 1 else 0.0
    at = torch.arange(rows[0], rows[1], device=x.device, dtype=torch.float32) * ratio
    low = at.floor().clamp(max=height - 1)
    share = (at - low).to(x.dtype)[:, None]
    low_row = low.long() - first
    high_row = (low.long() + 1).clamp(max=height - 1) - first
    lines = torch.lerp(x[..., low_row, :], x[..., high_row, :], share)
    return resize(lines, (rows[1] - rows[0], size[1]))


def _convolve_rows(conv: nn.Module, x: Tensor, above: int, below: int) -> Tensor:
    """A 3x3 convolution of some rows of a larger map; ``above`` and ``below`` are 1 where x has its neighbours.

    Where it has none the map ends, and zeros are what padding puts there.
    """
    assert isinstance(conv, nn.Conv2d)
    x = nn.functional.pad(x, (0, 0, 1 - above, 1 - below)) if above + below < 2 else x
    return nn.functional.conv2d(x, conv.weight, conv.bias, padding=(0, 1))
