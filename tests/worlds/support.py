"""Small configurations and cameras for the tests of worlds."""

import torch

from relief3d.core.contract import Camera
from relief3d.worlds import WorldConfig
from relief3d.worlds.config import TEXTURES

FAMILIES = ("room", "objects", "outdoor", "street")


def small_config(family, **changes):
    return WorldConfig(family=family, texture_size=32, textures=dict.fromkeys(TEXTURES, 1), **changes)


def cameras_of(world, sequence, size):
    return [
        Camera(size[1], size[0], K.double(), pose_float64(pose))
        for K, pose in zip(sequence.K[0], sequence.world_from_cam[0], strict=True)
    ]


def pose_float64(pose):
    """Float32 poses re-orthonormalised in double precision."""
    out = pose.double().clone()
    u, _, v = torch.linalg.svd(out[:3, :3])
    out[:3, :3] = u @ v
    return out
