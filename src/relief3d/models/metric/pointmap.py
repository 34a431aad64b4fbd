"""Point maps from one picture: the network of MoGe-2, which is MetricAnything's Student-PointMap.

A DINOv2 encoder, a convolutional neck, a head per map, and one number for the scale. The point map is affine: metric
points are ``scale * (points + (0, 0, t))`` with t from the solver (:mod:`relief3d.models.metric.pointmap_infer`).
Source: MoGe-2 (Wang et al. 2025); MetricAnything specification 6.1, 6.2, 6.6, 15.3.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.nn.conv_stack import ConvStack, ConvStackConfig
from relief3d.nn.uv import uv_map
from relief3d.nn.vit import VisionTransformer, VitConfig

Remap = Literal["linear", "sinh", "exp", "sinh_exp"]
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVELS = 9
"""Resolution levels of :meth:`PointMap.tokens_of_level`: 0 is the least number of tokens, this the most."""


@dataclass(frozen=True)
class PointMapConfig:
    """Sizes of a :class:`PointMap`.

    Attributes:
        vit: encoder.
        layers: blocks of the encoder whose outputs are summed; the class token is that of the last one named.
        dim: channels of the sum.
        neck: its first level takes the sum and two coordinates, the others two coordinates.
        points: head of three channels.
        mask: head of one channel, or None.
        normals: head of three channels, or None.
        scale: widths of the perceptron from the class token to the logarithm of the scale, or None.
        remap: what turns the raw channels into points.
        tokens: fewest and most tokens that the network was trained with.
    """

    vit: VitConfig
    layers: tuple[int, ...]
    dim: int
    neck: ConvStackConfig
    points: ConvStackConfig
    mask: ConvStackConfig | None
    normals: ConvStackConfig | None
    scale: tuple[int, ...] | None
    remap: Remap = "exp"
    tokens: tuple[int, int] = (1200, 3600)


@dataclass(frozen=True)
class PointMapOutput:
    """What the network says about B pictures of H x W pixels.

    Attributes:
        points: (B, H, W, 3) affine point map in the camera frame.
        normals: (B, H, W, 3) unit, camera frame, or None.
        mask: (B, H, W) probability that there is a surface, or None.
        scale: (B,) metres per unit of the points, or None.
    """

    points: Tensor
    normals: Tensor | None = None
    mask: Tensor | None = None
    scale: Tensor | None = None


def token_grid(height: int, width: int, tokens: int) -> tuple[int, int]:
    """Rows and columns of about so many tokens for a picture of a shape (rounded half to even, at least 1)."""
    aspect = width / height
    return max(1, round(math.sqrt(tokens / aspect))), max(1, round(math.sqrt(tokens * aspect)))


def native_tokens(height: int, width: int) -> int:
    """One token per 14 x 14 pixels of the picture itself: how published run times were taken (10.8)."""
    return max(1, round(height * width / 14**2))


class PointMapEncoder(nn.Module):
    """Picture to a sum of projected transformer layers.

    State keys: ``image_mean, image_std, backbone, output_projections.k``.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, vit: VitConfig, layers: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.layers = layers
        self.backbone = VisionTransformer(vit)
        self.output_projections = nn.ModuleList(nn.Conv2d(vit.dim, dim, 1) for _ in layers)
        self.register_buffer("image_mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1))
        self.register_buffer("image_std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Features (B, C, rows, cols) and class token (B, D).

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            grid: rows and columns of tokens, to which the picture is resized.
        """
        patch = self.backbone.config.patch
        size = (grid[0] * patch, grid[1] * patch)
        x = nn.functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        layers = self.backbone.layers((x - self.image_mean) / self.image_std, self.layers)
        maps = (
            project(tokens.transpose(1, 2).unflatten(2, grid))
            for project, (tokens, _) in zip(self.output_projections, layers)
        )
        return torch.stack(list(maps)).sum(0), layers[-1][1]


class PointMap(nn.Module):
    """The network.

    State keys: ``encoder, neck, points_head, normal_head, mask_head, scale_head``.
    """

    def __init__(self, config: PointMapConfig) -> None:
        super().__init__()
        c = self.config = config
        self.encoder = PointMapEncoder(c.vit, c.layers, c.dim)
        self.neck = ConvStack(c.neck)
        self.points_head = ConvStack(c.points)
        self.mask_head = None if c.mask is None else ConvStack(c.mask)
        self.normal_head = None if c.normals is None else ConvStack(c.normals)
        self.scale_head = None if c.scale is None else _perceptron(c.scale)

    def tokens_of_level(self, level: float) -> int:
        """Number of tokens at a resolution level of 0 to 9.

        Raises:
            InputError: another level.
        """
        if not 0 <= level <= LEVELS:
            raise InputError(f"the resolution level must be from 0 to {LEVELS}, not {level}")
        least, most = self.config.tokens
        return int(least + level / LEVELS * (most - least))

    def forward(self, images: Tensor, tokens: int | tuple[int, int]) -> PointMapOutput:
        """Maps of the size of the pictures.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            tokens: their number, spread over the shape of the picture (more see finer), or rows and columns.

        Raises:
            InputError: no tokens.
        """
        height, width = int(images.shape[-2]), int(images.shape[-1])
        grid = token_grid(height, width, tokens) if isinstance(tokens, int) else tokens
        if min(grid) < 1 or (isinstance(tokens, int) and tokens < 1):
            raise InputError(f"the number of tokens must be positive, not {tokens}")
        features, summary = self.encoder(images, grid)
        pyramid: list[Tensor] = []
        for level in range(len(self.config.neck.widths)):
            rows, cols = grid[0] << level, grid[1] << level
            uv = uv_map(rows, cols, width / height, features.device, features.dtype)
            pyramid.append(uv.expand(len(images), -1, -1, -1))
        pyramid[0] = torch.cat([features, pyramid[0]], 1)
        shared = self.neck(pyramid)
        points = self._map(self.points_head, shared, (height, width))
        normals = self._map(self.normal_head, shared, (height, width))
        mask = self._map(self.mask_head, shared, (height, width))
        assert points is not None
        return PointMapOutput(
            points=remapped(points, self.config.remap),
            normals=None if normals is None else nn.functional.normalize(normals, dim=-1),
            mask=None if mask is None else mask[..., 0].sigmoid(),
            scale=None if self.scale_head is None else self.scale_head(summary)[..., 0].float().exp(),
        )

    @staticmethod
    def _map(head: nn.Module | None, shared: list[Tensor], size: tuple[int, int]) -> Tensor | None:
        """Last level of a head at the size of the picture, (B, H, W, channels) in at least float32."""
        if head is None:
            return None
        x = head(shared)[-1]
        # Before the exponential, and in full precision even under autocast.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
        return x.movedim(1, -1)


def remapped(raw: Tensor, remap: Remap) -> Tensor:
    """Points (..., 3) from raw channels; "exp": (x e^z, y e^z, e^z).

    Raises:
        InputError: an unknown way.
    """
    if remap == "linear":
        return raw
    if remap == "sinh":
        return raw.sinh()
    xy, z = raw[..., :2], raw[..., 2:].exp()
    if remap == "exp":
        return torch.cat([xy * z, z], -1)
    if remap == "sinh_exp":
        return torch.cat([xy.sinh(), z], -1)
    raise InputError(f"there is no output '{remap}'", remedy="use linear, sinh, exp or sinh_exp")


def _perceptron(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with ReLU between; keys 0, 2, 4, ..."""
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])
