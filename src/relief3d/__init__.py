"""relief3d: ordinary images and video into 3D, trained without 3D labels.

The public names below load on first use, so ``import relief3d`` stays fast and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "Camera": "relief3d.core.contract",
    "View": "relief3d.core.contract",
    "Scene": "relief3d.core.contract",
    "Batch": "relief3d.core.contract",
    "Prediction": "relief3d.core.contract",
    "Depth": "relief3d.core.contract",
    "SparseDepth": "relief3d.core.contract",
    "PointCloud": "relief3d.core.contract",
    "Mesh": "relief3d.core.contract",
    "ReliefError": "relief3d.core.errors",
    "InputError": "relief3d.core.errors",
    "load_scene": "relief3d.pipelines.reconstruct",
    "reconstruct": "relief3d.pipelines.reconstruct",
    "ReconstructConfig": "relief3d.pipelines.reconstruct",
    "open_depth_model": "relief3d.pipelines.depth.api",
    "open_viewer": "relief3d.viewer",
}

__all__ = [
    "Batch",
    "Camera",
    "Depth",
    "InputError",
    "Mesh",
    "PointCloud",
    "Prediction",
    "ReconstructConfig",
    "ReliefError",
    "Scene",
    "SparseDepth",
    "View",
    "__version__",
    "load_scene",
    "open_depth_model",
    "open_viewer",
    "reconstruct",
]

if TYPE_CHECKING:
    from relief3d.core.contract import (
        Batch,
        Camera,
        Depth,
        Mesh,
        PointCloud,
        Prediction,
        Scene,
        SparseDepth,
        View,
    )
    from relief3d.core.errors import InputError, ReliefError
    from relief3d.pipelines.depth.api import open_depth_model
    from relief3d.pipelines.reconstruct import ReconstructConfig, load_scene, reconstruct
    from relief3d.viewer import open_viewer


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'relief3d' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
