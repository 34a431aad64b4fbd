"""Sizes and variants of the volumetric network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from relief3d.core.errors import InputError
from relief3d.models.multiview.configs import Size
from relief3d.models.volume.back_projection import DepthWeight
from relief3d.models.volume.layers import IDENTITY_SLOPE, LEAK
from relief3d.models.volume.trunk2d import IMAGE_MULTIPLE, Trunk2d
from relief3d.models.volume.vfm_features import VfmConfig

Variant = Literal["vfm", "finerecon", "adapted-only", "naive", "cnn-only"]
VARIANTS: tuple[Variant, ...] = ("vfm", "finerecon", "adapted-only", "naive", "cnn-only")
Channel = Literal["tsdf", "density", "none"]


@dataclass(frozen=True)
class VolumeNetConfig:
    """A volumetric network; the defaults are FineRecon's.

    Attributes:
        trunk: of the picture features.
        trunk_widths: of a toy trunk.
        channels: of the picture features.
        unet_widths: at full, half and quarter resolution.
        head: width inside the two heads.
        act_slope: of inner activations: 0.01, or 1 as in the released FineRecon, where most activations do nothing.
        vfm: features of a foundation network, added to those of the pictures; None: without.
        vfm_points: add them in the point branch too.
        guidance: the channel made of the given depth: ``tsdf``, ``density``, or ``none``: depth is not used at all.
        margin: truncation of the guidance, voxels.
        depth_weight: of views in the means; FineRecon has it as an option, off.
        border_fade: feature pixels from the border within which the point branch fades, in evaluation mode.
        image_size: (H, W) of pictures that it is trained for.
        voxel_size: edge of a voxel it is trained for, world units (metres).
        truncation: distance that an output of 1 means, world units.
    """

    trunk: Trunk2d = "efficientnet_v2_s"
    trunk_widths: tuple[int, int, int] = (48, 64, 128)
    channels: int = 47
    unet_widths: tuple[int, int, int] = (64, 64, 128)
    head: int = 32
    act_slope: float = LEAK
    vfm: VfmConfig | None = None
    vfm_points: bool = True
    guidance: Channel = "tsdf"
    margin: float = 3.0
    depth_weight: DepthWeight = field(default_factory=DepthWeight)
    border_fade: float = 20.0
    image_size: tuple[int, int] = (480, 640)
    voxel_size: float = 0.04
    truncation: float = 0.04

    def __post_init__(self) -> None:
        if any(side < IMAGE_MULTIPLE or side % IMAGE_MULTIPLE for side in self.image_size):
            raise InputError(
                f"pictures of {self.image_size[1]} x {self.image_size[0]} do not fit the network",
                remedy=f"image_size: multiples of {IMAGE_MULTIPLE}",
            )
        if min(self.voxel_size, self.truncation, self.margin) <= 0 or self.border_fade < 0:
            raise InputError(
                "voxel_size, truncation and margin are positive, and border_fade is not negative"
            )
        if min(self.channels, self.head, *self.unet_widths, *self.trunk_widths) < 1:
            raise InputError("widths of a network are positive")

    @property
    def guided(self) -> int:
        """Number of guidance channels."""
        return 0 if self.guidance == "none" else 1


_TOY: Mapping[Size, tuple[tuple[int, int, int], int, tuple[int, int, int], int]] = {
    "nano": ((8, 12, 16), 8, (8, 8, 16), 8),
    "micro": ((16, 24, 32), 16, (16, 16, 32), 16),
    "mini": ((24, 32, 64), 24, (32, 32, 64), 24),
}
"""Trunk widths, channels, U-Net widths and head width."""
_VFM_SIZES: Mapping[Size, tuple[Size, int]] = {
    "nano": ("nano", 56), "micro": ("micro", 84), "mini": ("micro", 112), "small": ("small", 224),
    "full": ("full", 518),
}  # fmt: skip
"""Size of the VGGT, and the longer side of its pictures."""


def volume_config(size: Size, variant: Variant = "vfm", *, finerecon_compat: bool = False) -> VolumeNetConfig:
    """Sizes of a network.

    Args:
        size: nano to full; up to mini with a toy trunk.
        variant: ``vfm``: everything (VFM-Recon). ``finerecon``: without foundation features. ``adapted-only``: without
            depth guidance. ``naive``: that without adapters. ``cnn-only``: neither depth nor foundation features.
        finerecon_compat: activations as in the released FineRecon.

    Raises:
        InputError: unknown size or variant.
    """
    if size not in _VFM_SIZES or variant not in VARIANTS:
        raise InputError(
            f"there is no volumetric network '{size}' '{variant}'",
            remedy=f"sizes: {', '.join(_VFM_SIZES)}; variants: {', '.join(VARIANTS)}",
        )
    base = VolumeNetConfig(act_slope=IDENTITY_SLOPE if finerecon_compat else LEAK)
    if size in _TOY:
        widths, channels, unet, head = _TOY[size]
        base = replace(
            base, trunk="toy", trunk_widths=widths, channels=channels, unet_widths=unet, head=head,
            image_size=(96, 128), border_fade=0.0, voxel_size=0.08, truncation=0.08,
        )  # fmt: skip
    elif size == "small":
        base = replace(base, channels=32, unet_widths=(48, 48, 96), image_size=(240, 320), border_fade=10.0)
    foundation, side = _VFM_SIZES[size]
    vfm = VfmConfig(
        foundation,
        adapters="none" if variant == "naive" else "frame",
        head="tracks" if size == "full" else "depth",
        side=side,
    )
    return replace(
        base,
        vfm=None if variant in ("finerecon", "cnn-only") else vfm,
        guidance="tsdf" if variant in ("vfm", "finerecon") else "none",
    )
