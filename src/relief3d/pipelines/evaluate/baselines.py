"""Plain baselines: what every method must beat. They answer any protocol of their task."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.data.prompt_interpolation import spread_linear, spread_nearest
from relief3d.eval.protocols.base import Answer, Query, Truth
from relief3d.geometry.projection import depth_to_points, intrinsics_from_fov

CONSTANT_METRES = 2.0
DEFAULT_FOV_DEG = 60.0


def picture_sizes(query: Query) -> tuple[int, int, int]:
    """Number, height and width of the pictures of a query.

    Raises:
        InputError: there are none, or they differ in size.
    """
    if query.scene is None or not len(query.scene):
        raise InputError(f"{query.name} shows no pictures")
    sizes = {(v.camera.height, v.camera.width) for v in query.scene.views}
    if len(sizes) > 1:
        raise InputError(f"the pictures of {query.name} differ in size")
    return len(query.scene), *sizes.pop()


def _intrinsics(query: Query, count: int, height: int, width: int) -> Tensor:
    """Given intrinsics where there are any, else 60 degrees across."""
    assert query.scene is not None
    guess = intrinsics_from_fov(width, height, math.radians(DEFAULT_FOV_DEG))
    return torch.stack([guess if v.camera.K is None else v.camera.K.double() for v in query.scene.views])


def _geometry(query: Query, depth: Tensor) -> dict[str, Tensor]:
    """Every tensor a task may want, from depth (N, H, W) and cameras that stand still."""
    count, height, width = depth.shape
    K = _intrinsics(query, count, height, width)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    # Cameras in one place have no directions between them; a small step sideways gives them one.
    poses[:, 0, 3] = torch.arange(count, dtype=torch.float64) * 0.01
    points = depth_to_points(depth.double(), K)
    world = points + poses[:, None, None, :3, 3]
    normals = torch.zeros_like(points)
    normals[..., 2] = -1.0
    return {
        "depth": depth,
        "K": K,
        "world_from_cam": poses,
        "cam_points": points.float(),
        "world_points": world.float(),
        "normals": normals.float(),
    }


def _wanted(query: Query, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in tensors.items() if k in query.wants}


def constant(query: Query) -> Answer:
    """One depth everywhere (2 m), cameras side by side, a field of view of 60 degrees, a ball for an object."""
    if query.task == "object" or "mesh" in query.wants:
        return _ball(query)
    depth = torch.full(picture_sizes(query), CONSTANT_METRES)
    return Answer(_wanted(query, _geometry(query, depth)))


def best_constant(query: Query, truth: Truth) -> Answer:
    """The constant depth with the smallest AbsRel on this very sample; it sees the truth."""
    depth = truth.need("depth")
    valid = truth.tensors["valid"].bool() if "valid" in truth.tensors else depth > 0
    g = depth[valid & (depth > 0)].double()
    if not g.numel():
        raise InputError(f"{query.name} has no valid pixels")
    # sum |c - g| / g is smallest at the median of g weighted by 1 / g.
    g = g.sort().values
    share = torch.cumsum(1 / g, 0)
    value = float(g[int(torch.searchsorted(share, share[-1] / 2))])
    return Answer(_wanted(query, _geometry(query, torch.full(picture_sizes(query), value))))


def truth_itself(query: Query, truth: Truth) -> Answer:
    """The truth: the best any method can score under the protocol."""
    tensors = {}
    for name in query.wants:
        if name in truth.tensors:
            tensors[name] = truth.tensors[name]
    facts: dict[str, Any] = {name: truth.facts[name] for name in query.wants if name in truth.facts}
    return Answer(tensors, truth.mesh if "mesh" in query.wants else None, facts)


def prompt_interpolation(query: Query) -> Answer:
    """Sparse depth spread over the picture: linear in inverse depth inside the points' hull, nearest outside."""
    prompt = query.tensors.get("prompt")
    if prompt is None:
        raise InputError(f"{query.name} gives no prompt")
    return Answer({"depth": torch.stack([spread_linear(p) for p in prompt.float()])})


def prompt_nearest(query: Query) -> Answer:
    """The depth of the nearest given pixel."""
    prompt = query.tensors.get("prompt")
    if prompt is None:
        raise InputError(f"{query.name} gives no prompt")
    return Answer({"depth": spread_nearest(prompt.float())})


def first_option(query: Query) -> Answer:
    """The first choice of a question, always the left one of a pair, the number 2, no success: no thought at all."""
    facts: dict[str, Any] = {}
    for name in query.wants:
        if name == "winners":
            facts[name] = ["left"] * len(query.facts["pairs"])
            continue
        options = query.facts.get("options")
        facts[name] = options[0] if options else query.facts.get("default_answer", 2.0)
    return Answer(facts=facts)


def _ball(query: Query) -> Answer:
    """A unit ball in front of the camera, with the object frame's identity pose where a pose is wanted."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=3)
    mesh = Mesh(
        torch.from_numpy(np.asarray(ball.vertices)).float(), torch.from_numpy(np.asarray(ball.faces)).long()
    )
    pose = torch.eye(4, dtype=torch.float64)
    if query.scene is not None and len(query.scene):
        pose[2, 3] = CONSTANT_METRES
    tensors = {name: pose for name in query.wants if name in ("cam_from_object", "pose")}
    return Answer(tensors, mesh)
