"""Nano networks with random weights, and pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from relief3d.models.metric.networks import DepthMap, DepthPro, Teacher
from relief3d.models.metric.pointmap import PointMap
from relief3d.models.metric.pointmap_configs import pointmap_config
from relief3d.models.metric.pointmap_loading import save_pointmap
from relief3d.models.metric.pyramid_loading import save_pyramid
from relief3d.models.metric.refiner import PromptRefiner, refiner_config
from relief3d.models.metric.sizes import depth_map_config, depth_pro_config, teacher_config


def weights(folder: Path, kind: str) -> Path:
    """A file of weights of a nano network."""
    path = folder / f"{kind}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "prompt-refiner":
            state = PromptRefiner(refiner_config("nano")).state_dict()
            save_file({k: v.clone().contiguous() for k, v in state.items()}, str(path))
        elif kind == "pointmap":
            save_pointmap(PointMap(pointmap_config("nano")), path)
        elif kind == "depth_pro":
            save_pyramid(DepthPro(depth_pro_config("nano")), path)
        elif kind == "teacher":
            save_pyramid(Teacher(teacher_config("nano")), path)
        else:
            save_pyramid(DepthMap(depth_map_config("nano")), path)
    return path


def sparse(height: int, width: int, seed: int = 0, count: int = 60) -> torch.Tensor:
    """(H, W) metres at some pixels of a slanted plane, 0 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    plane = 2.0 + torch.linspace(0, 1, width).expand(height, width)
    chosen = torch.randperm(height * width, generator=generator)[:count]
    out = torch.zeros(height * width)
    out[chosen] = plane.reshape(-1)[chosen]
    return out.reshape(height, width)
