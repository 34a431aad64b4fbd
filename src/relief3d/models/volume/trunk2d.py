"""Features of single pictures at a quarter of their size: EfficientNetV2-S stages 0-4 or a toy trunk, and a pyramid.

Sources: EfficientNetV2 (Tan and Le 2021), keys and padding of torchvision; FineRecon (specification 4.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.models.multiview.aggregator import IMAGE_MEAN, IMAGE_STD
from relief3d.models.volume.layers import Residual, activation, convolution

Trunk2d = Literal["efficientnet_v2_s", "toy"]
IMAGE_MULTIPLE = 16
"""Sides of pictures are multiples of this."""
STRIDE = 4
"""Picture pixels per feature pixel."""
NORM_EPS = 1e-3


def _conv_norm(
    channels: int, out: int, side: int, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, side, stride, (side - 1) // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=NORM_EPS),
    ]
    return nn.Sequential(*layers, *([nn.SiLU(inplace=True)] if act else []))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole picture says; keys ``fc1``, ``fc2``."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> the same."""
        weight = self.fc1(x.mean((2, 3), keepdim=True))
        return x * self.fc2(nn.functional.silu(weight)).sigmoid()


class FusedMbConv(nn.Module):
    """Fused inverted bottleneck: a 3x3 convolution that widens, a 1x1 that narrows; one 3x3 where nothing widens."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels * expand
        if expand == 1:
            self.block = nn.Sequential(_conv_norm(channels, out, 3, stride))
        else:
            self.block = nn.Sequential(
                _conv_norm(channels, wide, 3, stride), _conv_norm(wide, out, 1, act=False)
            )
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, C', H / stride, W / stride)."""
        return self.block(x) + x if self.residual else self.block(x)


class MbConv(nn.Module):
    """Inverted bottleneck with a depthwise convolution and squeeze-excite."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels * expand
        self.block = nn.Sequential(
            _conv_norm(channels, wide, 1),
            _conv_norm(wide, wide, 3, stride, groups=wide),
            SqueezeExcite(wide, max(1, channels // 4)),
            _conv_norm(wide, out, 1, act=False),
        )
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(M, C, H, W) -> (M, C', H / stride, W / stride)."""
        return self.block(x) + x if self.residual else self.block(x)


class EfficientTrunk(nn.Module):
    """Stages 0-4 of EfficientNetV2-S; keys ``features.i`` as in torchvision. Later stages do not exist here."""

    widths = (48, 64, 128)

    def __init__(self) -> None:
        super().__init__()

        def stage(
            kind: type[FusedMbConv] | type[MbConv],
            channels: int,
            out: int,
            stride: int,
            expand: int,
            count: int,
        ) -> nn.Sequential:
            first = kind(channels, out, stride, expand)
            return nn.Sequential(first, *(kind(out, out, 1, expand) for _ in range(count - 1)))

        self.features = nn.Sequential(
            _conv_norm(3, 24, 3, 2),
            stage(FusedMbConv, 24, 24, 1, 1, 2),
            stage(FusedMbConv, 24, 48, 2, 4, 4),
            stage(FusedMbConv, 48, 64, 2, 4, 4),
            stage(MbConv, 64, 128, 2, 4, 6),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(M, 3, H, W) normalised -> maps of 48, 64 and 128 channels at 1/4, 1/8 and 1/16."""
        fine = self.features[2](self.features[1](self.features[0](images)))
        middle = self.features[3](fine)
        return fine, middle, self.features[4](middle)


class ToyTrunk(nn.Module):
    """A few strided convolutions with the same strides, for small sizes; keys ``features.i``."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        self.widths = widths
        a, b, c = widths
        self.features = nn.Sequential(
            _conv_norm(3, a, 3, 2),
            nn.Sequential(_conv_norm(a, a, 3, 2), _conv_norm(a, a, 3)),
            nn.Sequential(_conv_norm(a, b, 3, 2), _conv_norm(b, b, 3)),
            nn.Sequential(_conv_norm(b, c, 3, 2), _conv_norm(c, c, 3)),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(M, 3, H, W) normalised -> maps at 1/4, 1/8 and 1/16."""
        fine = self.features[1](self.features[0](images))
        middle = self.features[2](fine)
        return fine, middle, self.features[3](middle)


class FeaturePyramid(nn.Module):
    """Trunk, one convolution per level, sum at a quarter of the size, one residual block.

    Args:
        trunk: which.
        widths: of a toy trunk.
        channels: of the result.
        slope: of inner activations.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, trunk: Trunk2d, widths: tuple[int, int, int], channels: int, slope: float) -> None:
        super().__init__()
        self.trunk: EfficientTrunk | ToyTrunk = (
            EfficientTrunk() if trunk == "efficientnet_v2_s" else ToyTrunk(widths)
        )

        def level(width: int) -> nn.Sequential:
            return nn.Sequential(
                convolution(2, width, channels, 3), nn.BatchNorm2d(channels), activation(slope)
            )

        self.out0, self.out1, self.out2 = (level(width) for width in self.trunk.widths)
        self.out3 = Residual(2, channels, slope)
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) in [0, 1] -> (M, channels, H / 4, W / 4).

        Raises:
            InputError: a side is no multiple of 16.
        """
        height, width = images.shape[-2:]
        if height % IMAGE_MULTIPLE or width % IMAGE_MULTIPLE:
            raise InputError(
                f"pictures of {width} x {height} do not fit the network",
                remedy=f"resize them to multiples of {IMAGE_MULTIPLE}",
            )
        maps = self.trunk((images - self.image_mean) / self.image_std)
        total = self.out0(maps[0])
        for out, level in ((self.out1, maps[1]), (self.out2, maps[2])):
            total = total + nn.functional.interpolate(
                out(level), size=total.shape[-2:], mode="bilinear", align_corners=False
            )
        return self.out3(total)


# ---- weights of others ----------------------------------------------------------------------------------------------

_STAGE_CONV = {
    "conv_exp": "block.0.0", "conv_pwl": "block.1.0", "conv": "block.0.0",
    "bn1": "block.0.1", "bn2": "block.1.1",
}  # fmt: skip
_STAGE_MB = {
    "conv_pw": "block.0.0", "conv_dw": "block.1.0", "conv_pwl": "block.3.0", "bn1": "block.0.1", "bn2": "block.1.1",
    "bn3": "block.3.1", "se.conv_reduce": "block.2.fc1", "se.conv_expand": "block.2.fc2",
}  # fmt: skip
_TIMM = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)\.(\w+)")
_LAST_STAGE = 4


def trunk_key(key: str) -> str | None:
    """Our key of a torchvision or timm key of EfficientNetV2-S; None for what stages 0-4 do not need.

    timm's ``tf_efficientnetv2_s`` pads its strided convolutions at one side only, so its weights fit and see positions
    shifted by up to a pixel per stage.
    """
    if key.startswith("features."):  # torchvision
        stage = key.split(".")[1]
        return key if stage.isdigit() and int(stage) <= _LAST_STAGE else None
    first = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
    head, _, leaf = key.rpartition(".")
    if head in first:
        return f"{first[head]}.{leaf}"
    found = _TIMM.fullmatch(key)
    if found is None or int(found.group(1)) + 1 > _LAST_STAGE:
        return None
    names = _STAGE_MB if int(found.group(1)) + 1 == _LAST_STAGE else _STAGE_CONV
    inner = names.get(found.group(3))
    if inner is None:
        return None
    return f"features.{int(found.group(1)) + 1}.{found.group(2)}.{inner}.{found.group(4)}"


def trunk_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an :class:`EfficientTrunk` from those of a whole EfficientNetV2-S in torchvision's or timm's names.

    Raises:
        InputError: the state is of another network.
    """
    out = {own: value for key, value in state.items() if (own := trunk_key(key)) is not None}
    with torch.device("meta"):
        wanted = EfficientTrunk().state_dict()
    missing = [k for k in wanted if k not in out and not k.endswith("num_batches_tracked")]
    wrong = [k for k, v in out.items() if k not in wanted or v.shape != wanted[k].shape]
    if missing or wrong:
        raise InputError(
            f"holds no EfficientNetV2-S: {len(missing)} values are missing, {len(wrong)} of another kind",
            remedy="use torchvision's efficientnet_v2_s or timm's tf_efficientnetv2_s",
        )
    for key in wanted:
        out.setdefault(key, torch.zeros((), dtype=torch.long))  # the counters, which nothing reads
    return out
