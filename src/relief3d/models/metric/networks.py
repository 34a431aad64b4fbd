"""Depth Pro, Student-DepthMap and the prompted teacher: a tile pyramid, a decoder and a head (specification 3, 4, 5).

All take square RGB pictures in [0, 1], normalise them inside, and give canonical inverse depth ``fx / (width * z)``.
Resizing, focal lengths and metres are in :mod:`relief3d.models.metric.inference`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from relief3d.models.metric.decoder import (
    DecoderConfig,
    HeadConfig,
    MultiresDecoder,
    PromptConfig,
    make_head,
    run_head,
)
from relief3d.models.metric.encoder import (
    EncoderConfig,
    PyramidEncoder,
    TileVitConfig,
    Upsampling,
    encode_tiles,
    make_vit,
)
from relief3d.models.metric.injection import InjectionKind, make_injection
from relief3d.models.metric.tiles import resize
from relief3d.nn.dinov3 import DinoV3Config
from relief3d.nn.vit import VitConfig

SkipOrder = Literal["inverse", "unet"]
Normalisation = Literal["half", "imagenet"]
_STATISTICS: dict[Normalisation, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_FINE = 2
"""A merged fine map has 2 ** 2 token grids per side; sizes below are exponents of that kind."""


def normalise(images: Tensor, kind: Normalisation) -> Tensor:
    """(B, 3, H, W) RGB in [0, 1] to what the transformer was trained on."""
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in _STATISTICS[kind])
    return (images - mean) / std


@dataclass(frozen=True)
class PyramidOutput:
    """What a pyramid network says.

    Attributes:
        canonical: (B, s, s) canonical inverse depth, >= 0; float32.
        fov_deg: (B,) horizontal field of view in degrees, or None without that head.
    """

    canonical: Tensor
    fov_deg: Tensor | None = None


@dataclass(frozen=True)
class PyramidConfig:
    """What all pyramid networks share.

    Attributes:
        vit: the transformer over tiles.
        tile: side of a tile in pixels; pictures have 4 of them per side.
        hooks: blocks whose outputs are decoded besides the last one's.
        dims: channels of the hooked encodings, then of the fine, middle and coarse ones.
        features: channels of the decoder.
        normalisation: of the pictures.
        coarser: doublings left out at the fine end of the decoder, 0 to 2. With patches of 16 pixels and none left out
            the result has the size of the picture; each halving of the patch doubles it.
        head_hidden: channels of the head at full size.
        head_bias: see :class:`~relief3d.models.metric.decoder.HeadConfig`.
    """

    vit: TileVitConfig
    tile: int
    hooks: tuple[int, ...]
    dims: tuple[int, int, int, int]
    features: int = 256
    normalisation: Normalisation = "half"
    coarser: int = 0
    head_hidden: int = 32
    head_bias: float = 0.0

    def __post_init__(self) -> None:
        if self.tile % (8 * self.vit.patch):
            raise ValueError(
                f"tiles of {self.tile} pixels do not hold a multiple of 8 patches of {self.vit.patch} pixels per side"
            )
        if not 0 <= self.coarser <= 2:
            raise ValueError(f"coarser must be 0, 1 or 2, not {self.coarser}")

    @property
    def side(self) -> int:
        """Side of the pictures in pixels."""
        return 4 * self.tile

    @property
    def finest(self) -> int:
        """Exponent of the finest level: its side is 2 ** finest token grids."""
        return 5 - self.coarser

    @property
    def output_side(self) -> int:
        """Side of the result for pictures of :attr:`side`."""
        return (self.tile // self.vit.patch) << (self.finest + 1)

    def doublings(self, level: int) -> int:
        """From a merged fine map to a level, no finer than the finest."""
        return min(level, self.finest) - _FINE


@dataclass(frozen=True)
class DepthProConfig(PyramidConfig):
    """Sizes of Depth Pro; the defaults are the published ones. ``fov`` adds the field-of-view head."""

    vit: TileVitConfig = field(
        default_factory=lambda: VitConfig(patch=16, registers=0, img_size=384, mask_token=False)
    )
    tile: int = 384
    hooks: tuple[int, ...] = (5, 11)
    dims: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    fov: bool = True


@dataclass(frozen=True)
class DepthMapConfig(PyramidConfig):
    """Sizes of Student-DepthMap; the defaults are the published ones.

    Attributes:
        skip_order: "inverse" lets shallow features enter early (at low resolution) and deep ones last, as published;
            "unet" is the usual order with the same sizes and the same number of parameters.
    """

    vit: TileVitConfig = field(default_factory=DinoV3Config)
    tile: int = 384
    hooks: tuple[int, ...] = (7, 13, 19, 25)
    dims: tuple[int, int, int, int] = (320, 256, 320, 640)
    normalisation: Normalisation = "imagenet"
    skip_order: SkipOrder = "inverse"


@dataclass(frozen=True)
class TeacherConfig(PyramidConfig):
    """Sizes of the teacher; the defaults are our reading of the unreleased network (specification 4.3, 4.4).

    Attributes:
        injection: how the condition enters: prompt branches in the decoder, or one of the alternatives.
        prompt: sizes of the prompt branches.
    """

    vit: TileVitConfig = field(default_factory=DinoV3Config)
    tile: int = 384
    hooks: tuple[int, ...] = (7, 15)
    dims: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    normalisation: Normalisation = "imagenet"
    injection: InjectionKind = "dpt"
    prompt: PromptConfig = field(default_factory=PromptConfig)


def _level_doubles(levels: Sequence[int]) -> tuple[bool, ...]:
    """Which fusion blocks double the size, from the exponents of the levels, fine to coarse."""
    return (False, *(finer == own + 1 for finer, own in itertools.pairwise(levels)))


class PyramidNetwork(nn.Module):
    """Encoder, decoder, head; keys ``encoder``, ``decoder``, ``head``.

    Args:
        config: what all share.
        encoder: of this network.
        order: which encoding each level of the decoder takes, fine to coarse.
        levels: exponents of the levels' sizes before any is left out.
        decoder: ``project_first``, ``spare_skip``, ``prompt``.
        extra: see :class:`~relief3d.models.metric.decoder.HeadConfig`.
    """

    def __init__(
        self,
        config: PyramidConfig,
        encoder: EncoderConfig,
        order: Sequence[int],
        levels: Sequence[int],
        *,
        project_first: bool,
        spare_skip: bool,
        prompt: PromptConfig | None = None,
        extra: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.order = config, tuple(order)
        self.encoder = PyramidEncoder(encoder)
        encodings = (*encoder.latents, encoder.fine, encoder.middle, encoder.coarse)
        self.decoder = MultiresDecoder(
            DecoderConfig(
                tuple(_width(encodings[i]) for i in order),
                _level_doubles([min(level, config.finest) for level in levels]),
                config.features,
                project_first,
                spare_skip,
                prompt,
            )
        )
        self.head = make_head(HeadConfig(config.features, extra, config.head_hidden, config.head_bias))
        self.injection: nn.Module | None = None

    def forward(
        self,
        images: Tensor,
        condition: Tensor | None = None,
        *,
        tile: int | None = None,
        chunk: int | None = None,
        rows: int | None = None,
    ) -> PyramidOutput:
        """Canonical inverse depth.

        Args:
            images: (B, 3, S, S) RGB in [0, 1]; S is 4 tiles, or 7, 10 ... of a given size.
            condition: (B, 3, S, S) in canonical inverse depth (times ``fx / width``), for the teacher; None for none.
            tile: side of a tile; None for a quarter of the picture.
            chunk: tiles per pass of the transformer; only memory depends on it. None takes all.
            rows: rows per pass of the head, where no gradients are wanted. None takes all.

        Raises:
            ValueError: the picture's side does not fit, or a condition for a network that takes none.
        """
        if condition is not None and not isinstance(self, Teacher):
            raise ValueError(f"{type(self).__name__} takes no condition")
        tile = tile or images.shape[-1] // 4
        if tile % (8 * self.config.vit.patch):
            raise ValueError(
                f"tiles of {tile} pixels are no multiple of 8 patches of {self.config.vit.patch} pixels"
            )
        x = normalise(images, self.config.normalisation)
        encodings = self.encoder(x, tile, chunk, self.injection, condition)
        limit = images.shape[-1] // self.config.vit.patch
        inside = condition if self.injection is None else None
        levels = [encodings[i] for i in self.order]
        del encodings
        features, low = self.decoder(levels, inside, limit)
        del levels
        canonical = run_head(self.head, features, rows)[:, 0].float()
        return PyramidOutput(canonical, self._fov_deg(x, low))

    def _fov_deg(self, x: Tensor, low: Tensor) -> Tensor | None:
        return None


def _width(upsampling: Upsampling) -> int:
    return upsampling.outer if upsampling.doublings else upsampling.inner


class FovHead(nn.Module):
    """Horizontal field of view from the picture and the decoder's coarsest features (specification 3.6).

    Keys ``encoder.0`` (a transformer of its own), ``encoder.1``, ``downsample.0``, ``head.{0, 2, 4}``.
    """

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        f = config.features
        self.cells = config.tile // config.vit.patch
        self.tile = config.tile
        self.encoder = nn.Sequential(make_vit(config.vit), nn.Linear(config.vit.dim, f // 2))
        self.downsample = nn.Sequential(nn.Conv2d(f, f // 2, 3, 2, 1), nn.ReLU())
        self.head = nn.Sequential(
            nn.Conv2d(f // 2, f // 4, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(f // 4, f // 8, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(f // 8, 1, self.cells // 4),
        )

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        """(B,) degrees from the normalised picture and (B, F, 2 T, 2 T) features, which get no gradient.

        At other resolutions than the network's own both are brought to it: the last convolution spans the whole map.
        """
        vit, project = self.encoder
        picture = resize(resize(x, 4 * self.tile), self.tile)
        (tokens,) = encode_tiles(vit, picture)  # type: ignore[arg-type]
        tokens = project(tokens.flatten(2).transpose(1, 2)).transpose(1, 2)
        low = self.downsample(resize(low.detach(), 2 * self.cells))
        return self.head(tokens.unflatten(2, (self.cells, self.cells)) + low).flatten().float()


class DepthPro(PyramidNetwork):
    """Depth Pro (Bochkovskii et al. 2024); state keys as published."""

    def __init__(self, config: DepthProConfig | None = None) -> None:
        config = config or DepthProConfig()
        encoder = _classic_encoder(config, image_encoder=True)
        super().__init__(config, encoder, range(5), (5, 4, 3, 2, 1), project_first=False, spare_skip=True)
        if config.fov:
            self.fov = FovHead(config)

    def _fov_deg(self, x: Tensor, low: Tensor) -> Tensor | None:
        return self.fov(x, low) if hasattr(self, "fov") else None


def _classic_encoder(config: PyramidConfig, *, image_encoder: bool) -> EncoderConfig:
    """Depth Pro's: shallow features at the highest resolution."""
    first, second, third, last = config.dims
    return EncoderConfig(
        config.vit,
        config.hooks,
        (
            Upsampling(first, config.doublings(5), config.features),
            Upsampling(first, config.doublings(4), first),
        ),
        fine=Upsampling(second, config.doublings(3), second),
        middle=Upsampling(third, 1, third),
        coarse=Upsampling(last, 1, last),
        image_encoder=image_encoder,
    )


class DepthMap(PyramidNetwork):
    """Student-DepthMap of MetricAnything; state keys as published."""

    def __init__(self, config: DepthMapConfig | None = None) -> None:
        config = config or DepthMapConfig()
        latent, fine, middle, coarse = config.dims
        count = len(config.hooks)
        # Sizes of the levels are the same in both orders: one at 32 T, all but one hook at 16 T, one at 8 T.
        large, small = (
            Upsampling(fine, config.doublings(5), fine),
            Upsampling(latent, config.doublings(3), latent),
        )
        between = [Upsampling(latent, config.doublings(4), latent)] * (count - 1)
        inverse = config.skip_order == "inverse"
        encoder = EncoderConfig(
            config.vit,
            config.hooks,
            (small, *between) if inverse else (large, *between),
            fine=large if inverse else small,
            middle=Upsampling(middle, 1, middle),
            coarse=Upsampling(coarse, 1, coarse),
        )
        # Fine to coarse: final tokens, then hooks from deep to shallow; or hooks from shallow to deep, then the final.
        order = [count, *reversed(range(count))] if inverse else [0, *range(1, count), count]
        super().__init__(
            config,
            encoder,
            (*order, count + 1, count + 2),
            (5, *([4] * (count - 1)), 3, 2, 1),
            project_first=True,
            spare_skip=False,
            extra=4,
        )


class Teacher(PyramidNetwork):
    """The prompted teacher of MetricAnything as we read it: Depth Pro with one shared transformer, without field of
    view, and a condition whose influence starts at exactly zero.

    State keys are those of Depth Pro without ``encoder.image_encoder`` and ``fov``, and ``decoder.fusions.i.prompt`` or
    ``injection``.
    """

    def __init__(self, config: TeacherConfig | None = None) -> None:
        config = config or TeacherConfig()
        decoder_prompt = config.prompt if config.injection == "dpt" else None
        super().__init__(
            config,
            _classic_encoder(config, image_encoder=False),
            range(5),
            (5, 4, 3, 2, 1),
            project_first=False,
            spare_skip=True,
            prompt=decoder_prompt,
        )
        self.injection = make_injection(config.injection, self.encoder.patch_encoder)


def focal_from_fov(fov_deg: Tensor, width: int) -> Tensor:
    """(B,) pixels from horizontal fields of view in degrees and the picture's width."""
    return 0.5 * width / torch.tan(0.5 * math.pi / 180 * fov_deg)
