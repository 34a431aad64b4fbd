"""The main job: pictures in; cameras, depth, points, mesh and a report out.

Names load on first use, because the command line reads the options without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relief3d.pipelines.reconstruct.config import ReconstructConfig
    from relief3d.pipelines.reconstruct.plan import Plan, make_plan
    from relief3d.pipelines.reconstruct.run import load_scene, reconstruct

_LAZY = {
    "ReconstructConfig": "config",
    "Plan": "plan",
    "make_plan": "plan",
    "load_scene": "run",
    "reconstruct": "run",
}

__all__ = ["Plan", "ReconstructConfig", "load_scene", "make_plan", "reconstruct"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
