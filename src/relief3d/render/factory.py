"""Choosing a renderer."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from relief3d.core.errors import InputError
from relief3d.render.open3d_backend import Open3DRenderer, open3d_status
from relief3d.render.protocols import DepthRenderer
from relief3d.render.rasterizer import TorchRenderer

RenderBackend = Literal["auto", "open3d", "torch"]
_log = logging.getLogger(__name__)


def make_renderer(backend: RenderBackend = "auto", device: torch.device | str = "cpu") -> DepthRenderer:
    """A depth renderer.

    ``auto`` takes Open3D on the CPU when it can be loaded, otherwise the torch rasteriser; the choice
    and its reason are logged.

    Raises:
        InputError: for an unknown back end, or Open3D asked for by name and absent.
    """
    if backend == "torch":
        return TorchRenderer(device=device)
    if backend == "open3d":
        return Open3DRenderer()
    if backend != "auto":
        raise InputError(f"unknown renderer '{backend}'", remedy="choose auto, open3d or torch")
    if torch.device(device).type != "cpu":
        _log.info("renderer: torch, because the work is on %s", device)
        return TorchRenderer(device=device)
    usable, why = open3d_status()
    _log.info("renderer: %s (%s)", "open3d" if usable else "torch", why)
    return Open3DRenderer() if usable else TorchRenderer()
