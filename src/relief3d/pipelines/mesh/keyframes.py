"""Which frames of a recording become keyframes, and in which order they are worked on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.geometry.keyframes import KEYFRAME_DISTANCE, pose_distance, select_keyframes

MANY = 400
"""Keyframes beyond which the user is told that this takes long."""
JUMPY = 2.0
"""Photos are put in another order when their own is longer than the greedy path by this factor."""


@dataclass(frozen=True)
class Keyframes:
    """The chosen frames.

    Attributes:
        frames: indices into the scene's views; keyframe k is view ``frames[k]``.
        segments: keyframe numbers of uninterrupted parts.
        spacing: combined pose distance between neighbouring keyframes of a segment.
        notes: what a user should know.
    """

    frames: tuple[int, ...]
    segments: tuple[tuple[int, ...], ...]
    spacing: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """For ``keyframes.json``."""
        return {
            "frames": [{"number": k, "frame": f, "name": names[f]} for k, f in enumerate(self.frames)],
            "segments": [list(s) for s in self.segments],
            "spacing_histogram": histogram(self.spacing),
            "notes": list(self.notes),
        }


def choose_keyframes(
    scene: Scene,
    distance: float = KEYFRAME_DISTANCE,
    most: int | None = None,
    median_depth: float | None = None,
) -> Keyframes:
    """Keyframes of a posed scene: by movement along a recording, all of a photo collection.

    Args:
        scene: posed views in time order when ``scene.ordered``.
        distance: see :func:`relief3d.geometry.keyframes.select_keyframes`.
        most: keyframes at most.
        median_depth: of the scene in the unit of the poses, where that unit is unknown.

    Raises:
        InputError: fewer than two views have a pose and intrinsics.
    """
    posed = set(scene.posed)
    if len(posed) < 2:
        raise InputError(
            f"{len(posed)} of {len(scene)} pictures have a camera, two are needed",
            remedy="give cameras, or take overlapping pictures while moving sideways",
        )
    notes: list[str] = []
    nowhere = torch.full((4, 4), float("nan"), dtype=torch.float64)
    poses = torch.stack(
        [_pose(scene, i) if i in posed else nowhere for i in range(len(scene))]  # posed: has a pose
    )
    if scene.ordered:
        found = select_keyframes(poses, distance, median_depth, most)
        if sum(len(s) for s in found) < 2:
            # A recording that hardly moves still has two ends.
            order = sorted(posed)
            found = [[order[0], order[-1]]]
            notes.append("the camera hardly moves: only the first and the last frame are used")
    else:
        order = _walk(poses, sorted(posed))
        if order != sorted(posed):
            notes.append("photos were put in walking order by their poses")
        if most is not None and len(order) > most:
            order = [order[round(k * (len(order) - 1) / (most - 1))] for k in range(most)]
            notes.append(f"{most} photos were kept, evenly spaced (--max-keyframes)")
        found = [order]
    frames = tuple(i for segment in found for i in segment)
    segments, at = [], 0
    for segment in found:
        segments.append(tuple(range(at, at + len(segment))))
        at += len(segment)
    if len(frames) > MANY:
        notes.append(f"{len(frames)} keyframes take long; --max-keyframes takes fewer")
    if len(segments) > 1:
        notes.append(f"tracking was lost {len(segments) - 1} times; the parts are aligned separately")
    steps = [
        pose_distance(poses[a], poses[b], median_depth)[0] for s in found for a, b in itertools.pairwise(s)
    ]
    return Keyframes(frames, tuple(segments), tuple(float(d) for d in steps), tuple(notes))


def _pose(scene: Scene, index: int) -> Tensor:
    pose = scene.views[index].camera.world_from_cam
    assert pose is not None
    return pose


def _walk(poses: Tensor, posed: list[int]) -> list[int]:
    """The given order, or a greedy path through the poses where that is much shorter."""
    P = poses[posed]
    centres = P[:, :3, 3]
    unit = float((centres - centres.mean(0)).norm(dim=1).mean()) or 1.0
    D = torch.stack([pose_distance(P, p[None].expand_as(P), 2.0 * unit)[0] for p in P])
    left, path = set(range(1, len(P))), [0]
    while left:
        nearest = min(left, key=lambda k: float(D[path[-1], k]))
        path.append(nearest)
        left.remove(nearest)

    def length(order: Sequence[int]) -> float:
        return sum(float(D[a, b]) for a, b in itertools.pairwise(order))

    if length(range(len(P))) <= JUMPY * length(path):
        return posed
    return [posed[k] for k in path]


def histogram(values: Sequence[float], bins: int = 8) -> dict[str, list[float]]:
    """Edges and counts; empty lists without values."""
    if not values:
        return {"edges": [], "counts": []}
    data = torch.tensor(values, dtype=torch.float64)
    low, high = float(data.min()), float(data.max())
    high = high if high > low else low + 1e-6
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    where = torch.bucketize(data, edges[1:-1], right=True)
    counts = torch.bincount(where, minlength=bins)
    return {"edges": [round(v, 6) for v in edges.tolist()], "counts": [float(c) for c in counts.tolist()]}
