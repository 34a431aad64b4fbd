"""Named sizes of the multi-view networks: the published ones and small ones of the same classes.

``nano`` is for tests, ``micro`` and ``mini`` for training on a laptop, ``small`` has a ViT-S encoder, ``full`` is what
the papers published.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from relief3d.models.multiview.aggregator import AggregatorConfig
from relief3d.models.multiview.camera_head import CameraHeadConfig
from relief3d.models.multiview.pi3 import Pi3Config
from relief3d.models.multiview.pi3x import Pi3XConfig
from relief3d.models.multiview.reliev3r import Reliev3rConfig
from relief3d.models.multiview.tracker import TrackerConfig
from relief3d.models.multiview.vggt import VggtConfig
from relief3d.nn.vit import VitConfig

Size = Literal["nano", "micro", "mini", "small", "full"]
SIZES: tuple[Size, ...] = ("nano", "micro", "mini", "small", "full")

_VITS: dict[Size, VitConfig] = {
    "nano": VitConfig(48, 2, 4, img_size=70),
    "micro": VitConfig(96, 4, 4, img_size=140),
    "mini": VitConfig(192, 6, 6, img_size=224),
    "small": VitConfig(384, 12, 6),
    "full": VitConfig(),
}


def _vit(size: Size, *, mask_token: bool) -> VitConfig:
    v = _VITS[size]
    return VitConfig(v.dim, v.depth, v.heads, v.patch, v.registers, v.img_size, v.channels, mask_token)


def vggt_config(size: Size) -> VggtConfig:
    """Sizes of a VGGT."""
    if size == "full":
        return VggtConfig()
    vit = _vit(size, mask_token=True)
    depth = {"nano": 4, "micro": 6, "mini": 8, "small": 12}[size]
    features = {"nano": 24, "micro": 32, "mini": 64, "small": 128}[size]
    layers = tuple(round((i + 1) * depth / 4) - 1 for i in range(4))
    tracker = TrackerConfig(
        latent=max(24, features // 2 // 4 * 4),
        hidden={"nano": 32, "micro": 64, "mini": 96, "small": 192}[size],
        heads=4,
        depth=2 if size == "nano" else 4,
        virtual=16,
        levels=3,
        radius=3,
    )
    return VggtConfig(
        aggregator=AggregatorConfig(vit, depth, vit.heads),
        camera=CameraHeadConfig(2 * vit.dim, 2, vit.heads),
        layers=(layers[0], layers[1], layers[2], layers[3]),
        features=features,
        out_channels=(features, features, 2 * features, 2 * features),
        tracker=tracker,
    )


def pi3_config(size: Size) -> Pi3Config:
    """Sizes of a pi3; full is the released "large" decoder on ViT-L."""
    if size == "full":
        return Pi3Config()
    vit = _vit(size, mask_token=False)
    return Pi3Config(
        vit=vit,
        depth={"nano": 4, "micro": 8, "mini": 12, "small": 24}[size],
        heads=vit.heads,
        head_dim=vit.dim,
        head_depth={"nano": 2, "micro": 2, "mini": 3, "small": 5}[size],
        head_heads=vit.heads,
        camera_dim=max(32, vit.dim // 2),
    )


def pi3x_config(size: Size) -> Pi3XConfig:
    """Sizes of a Pi3X; full is the released one. Small ones inject poses as often, counted in decoder blocks."""
    if size == "full":
        return Pi3XConfig()
    decoder = pi3_config(size)
    if size == "nano":
        # Known poses act on groups of channels, which heads of 12 channels cannot hold.
        decoder = replace(decoder, heads=3)
    width = {"nano": 32, "micro": 32, "mini": 64, "small": 128}[size]
    return Pi3XConfig(
        decoder,
        inject_after=tuple(range(1, decoder.depth, max(2, decoder.depth // 4))),
        widths=(width, max(32, width // 2), 32),
        metric_dim=decoder.vit.dim,
        metric_heads=decoder.vit.heads,
        metric_depth=decoder.head_depth,
    )


def reliev3r_config(size: Size, *, fov_head: bool = False) -> Reliev3rConfig:
    """Sizes of a Reliev3R network; full is the 450 M configuration of the paper."""
    if size == "full":
        return Reliev3rConfig(fov_head=fov_head)
    return Reliev3rConfig(pi3_config(size), fov_head)
