"""Dense prediction head over four transformer layers (Ranftl et al. 2021), as VGGT and its relatives use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.nn.uv import uv_embedding


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
        return self.conv2(self.conv1(x).relu()) + x


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
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        x = self.resConfUnit2(x)
        return self.out_conv(resize(x, size))


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
        parts = []
        for i in range(0, count, step):
            part = self._maps([layer[i : i + step] for layer in layers], size)
            parts.append(part if finish is None else finish(part))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _maps(self, layers: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        rows, cols = size[0] // self.config.patch, size[1] // self.config.patch
        levels = []
        for tokens, project, rescale in zip(layers, self.projects, self.resize_layers):
            x = self.norm(tokens).transpose(1, 2).unflatten(2, (rows, cols))
            levels.append(rescale(self._positioned(project(x), size)))
        s = self.scratch
        convolutions = (s.layer1_rn, s.layer2_rn, s.layer3_rn, s.layer4_rn)
        rn1, rn2, rn3, rn4 = (conv(x) for conv, x in zip(convolutions, levels))
        del levels
        x = s.refinenet4(rn4, None, rn3.shape[-2:])
        x = s.refinenet3(x, rn3, rn2.shape[-2:])
        x = s.refinenet2(x, rn2, rn1.shape[-2:])
        x = s.refinenet1(x, rn1, (2 * rn1.shape[-2], 2 * rn1.shape[-1]))
        x = s.output_conv1(x)
        down = self.config.down_ratio
        x = resize(x, (rows * self.config.patch // down, cols * self.config.patch // down))
        x = self._positioned(x, size)
        return x if self.config.output_dim is None else s.output_conv2(x)

    def _positioned(self, x: Tensor, size: tuple[int, int], strength: float = 0.1) -> Tensor:
        if not self.config.pos_embed:
            return x
        rows, cols = x.shape[-2:]
        embedding = uv_embedding(rows, cols, size[1] / size[0], x.shape[1], x.device)
        return x + strength * embedding.to(x.dtype)
