"""Seeded random geometry for property tests: every example is a batch that mixes easy and hard cases."""

from __future__ import annotations

import math

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import look_at, make_rigid

F64 = torch.float64
seeds = st.integers(0, 2**31 - 1)
# Each example holds a batch of 16 or more cases, so 30 examples are about 500 cases.
properties = settings(max_examples=30, deadline=None, derandomize=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=F64)


def uniform(g: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=g, dtype=F64)


def axis_angles(g: torch.Generator, n: int = 16) -> Tensor:
    """(n, 3) vectors shorter than pi: zero, tiny, small, generic and just below pi."""
    axis = normal(g, n, 3)
    axis = axis / axis.norm(dim=-1, keepdim=True)
    angle = uniform(g, 0, math.pi, n)
    special = torch.tensor([0.0, 1e-12, 1e-8, 1e-4, 0.1, 0.999999, 1.0, 3.0, math.pi - 1e-4, math.pi - 1e-7])
    angle[: len(special)] = special[:n].to(F64)
    return axis * angle[:, None]


def rotations(g: torch.Generator, n: int = 16) -> Tensor:
    return matrix_from_axis_angle(axis_angles(g, n))


def poses(g: torch.Generator, n: int = 16, spread: float = 3.0) -> Tensor:
    return make_rigid(rotations(g, n), spread * normal(g, n, 3))


def intrinsics(g: torch.Generator, n: int = 16) -> Tensor:
    """(n, 3, 3) for pictures of about 640 x 480, a little skew included."""
    K = torch.zeros(n, 3, 3, dtype=F64)
    K[:, 0, 0] = uniform(g, 300, 900, n)
    K[:, 1, 1] = K[:, 0, 0] * uniform(g, 0.9, 1.1, n)
    K[:, 0, 1] = uniform(g, -2, 2, n)
    K[:, 0, 2] = uniform(g, 280, 360, n)
    K[:, 1, 2] = uniform(g, 200, 280, n)
    K[:, 2, 2] = 1
    return K


def stereo_rig(g: torch.Generator, views: int = 2, points: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """World points (N, 3) around the origin, K (V, 3, 3) and cam_from_world (V, 4, 4) that see them in front."""
    world = uniform(g, -1, 1, points, 3)
    eye = uniform(g, -1.5, 1.5, views, 3) + torch.tensor([0.0, 0.0, -5.0], dtype=F64)
    eye[:, 0] += torch.linspace(-1, 1, views, dtype=F64)
    target = uniform(g, -0.3, 0.3, views, 3)
    world_from_cam = look_at(eye, target, torch.tensor([0.0, -1.0, 0.0], dtype=F64))
    return world, intrinsics(g, views), torch.linalg.inv(world_from_cam)


def close(a: Tensor, b: Tensor, tol: float = 1e-9) -> bool:
    """Largest difference within ``tol`` times the larger of 1 and the largest value; NaN fails."""
    a, b = a.detach(), b.detach()
    return bool((a - b).abs().max() <= tol * max(1.0, float(b.abs().max())))
