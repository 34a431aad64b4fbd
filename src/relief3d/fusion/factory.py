"""Choosing a fusion back end."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from relief3d.core.errors import InputError
from relief3d.fusion.open3d_backend import Open3DFuser
from relief3d.fusion.protocols import Fuser
from relief3d.fusion.torch_backend import TorchFuser
from relief3d.render.open3d_backend import open3d_status

FuseBackend = Literal["auto", "open3d", "torch"]
_log = logging.getLogger(__name__)


def choose_backend(
    backend: FuseBackend = "auto", device: torch.device | str = "cpu"
) -> tuple[Literal["open3d", "torch"], str]:
    """The back end that :func:`make_fuser` would use, and the reason in words.

    Raises:
        InputError: for an unknown name.
    """
    if backend in ("open3d", "torch"):
        return backend, "asked for"
    if backend != "auto":
        raise InputError(f"unknown fusion back end '{backend}'", remedy="choose auto, open3d or torch")
    if torch.device(device).type != "cpu":
        return "torch", f"the work is on {device}"
    usable, why = open3d_status()
    return ("open3d", why) if usable else ("torch", why)


def make_fuser(
    backend: FuseBackend = "auto",
    voxel_size: float = 0.04,
    truncation_voxels: float = 4.0,
    *,
    max_depth: float = float("inf"),
    with_color: bool = True,
    max_bytes: int = 2 * 1024**3,
    device: torch.device | str = "cpu",
) -> Fuser:
    """A fuser; ``auto`` takes Open3D on the CPU when it can be loaded, otherwise torch, and logs why.

    Args:
        backend: ``auto``, ``open3d`` or ``torch``.
        voxel_size: in world units.
        truncation_voxels: half width of the band in voxels; 3 to 4 is best.
        max_depth: depths beyond are ignored, world units.
        with_color: keep colours.
        max_bytes: largest size of the volume.
        device: where torch works; Open3D is used on the CPU only.

    Raises:
        InputError: for an unknown back end or a size that is not positive.
        MissingExtraError: when Open3D was asked for by name and cannot be used.
    """
    chosen, why = choose_backend(backend, device)
    _log.info("fusion: %s (%s)", chosen, why)
    if chosen == "open3d":
        if torch.device(device).type != "cpu":
            raise InputError(
                f"the open3d back end works on the CPU, not on {device}", remedy="use --fusion torch"
            )
        return Open3DFuser(
            voxel_size, truncation_voxels, max_depth=max_depth, with_color=with_color, max_bytes=max_bytes
        )
    return TorchFuser(
        voxel_size,
        truncation_voxels,
        max_depth=max_depth,
        with_color=with_color,
        max_bytes=max_bytes,
        device=device,
    )
