"""Do the poses belong to the matches, and if not, under which other convention would they (specification 2.9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera
from relief3d.core.errors import InputError
from relief3d.geometry.transforms import invert_rigid
from relief3d.methods.vfm_recon.config import PriorConfig
from relief3d.methods.vfm_recon.inputs import MatchSource
from relief3d.methods.vfm_recon.priors import Samples, collect_samples
from relief3d.methods.vfm_recon.submaps import Submap

BEHIND = 0.5
"""More matches than this share meeting behind a camera: something is wrong with the poses."""

EXPLAINED = 0.25
"""Poses that explain a smaller share of the matches are suspected."""

LEAST_MATCHES = 50
CHECKED_PAIRS = 40


@dataclass(frozen=True)
class PoseCheck:
    """How well poses explain matches.

    Attributes:
        matches: that were looked at, those with a degree between their rays; fewer than 50 say nothing.
        behind: share whose rays meet behind a camera.
        explained: share that meets in front of both and projects back within the gate.
        alternatives: the explained share under each other convention; empty unless the poses were suspected.
        warning: a sentence for the user, or None.
    """

    matches: int
    behind: float
    explained: float
    alternatives: dict[str, float]
    warning: str | None = None


def _turned(pose: Tensor) -> Tensor:
    """The pose of an OpenGL camera (y up, z backward) as an OpenCV one."""
    return pose @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=pose.dtype))


ALTERNATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "world-to-camera (inverse) poses": invert_rigid,
    "OpenGL camera axes (y up, z backward)": _turned,
    "world-to-camera (inverse) poses of OpenGL cameras": lambda pose: _turned(invert_rigid(pose)),
}
"""How poses are usually mistaken, by the name under which the error recommends it."""


def check_poses(
    samples: Sequence[Samples],
    submaps: Sequence[Submap],
    pairs: Sequence[Sequence[tuple[int, int]]],
    cameras: Sequence[Camera],
    matches: MatchSource,
    config: PriorConfig,
) -> PoseCheck:
    """Compare what the given poses explain with what three other readings of them would.

    Args:
        samples: of every submap, under the given poses.
        submaps: all of them.
        pairs: matched keyframes of every submap.
        cameras: of all keyframes.
        matches: see :data:`MatchSource`.
        config: gates.

    Raises:
        InputError: another convention explains the matches and the given one does not, or most points lie behind
            the cameras under all of them.
    """
    total = sum(s.judged for s in samples)
    if total < LEAST_MATCHES:
        return PoseCheck(total, 0.0, 0.0, {})
    behind, explained = sum(s.behind for s in samples) / total, sum(s.explained for s in samples) / total
    if behind <= BEHIND and explained >= EXPLAINED:
        return PoseCheck(total, behind, explained, {})
    found = {
        name: _explained(turn, submaps, pairs, cameras, matches, config)
        for name, turn in ALTERNATIVES.items()
    }
    best = max(found, key=lambda name: found[name])
    listed = ", ".join(f"{name}: {100 * share:.0f} %" for name, share in found.items())
    if found[best] >= max(0.3, 2 * explained):
        raise InputError(
            f"the given poses explain {100 * explained:.0f} % of the matches ({100 * behind:.0f} % meet behind the "
            f"cameras), but read as {best} they explain {100 * found[best]:.0f} % ({listed})",
            remedy="convert the poses to camera-to-world with OpenCV axes (x right, y down, z forward)",
        )
    said = (
        f"the given poses explain {100 * explained:.0f} % of the matches and {100 * behind:.0f} % meet behind the "
        f"cameras; no other convention fits better ({listed})"
    )
    if behind > BEHIND:
        raise InputError(
            said, remedy="check that poses and pictures are of the same recording and in the same order"
        )
    return PoseCheck(total, behind, explained, found, said + ": poses, intrinsics or matches are poor")


def _explained(
    turn: Callable[[Tensor], Tensor],
    submaps: Sequence[Submap],
    pairs: Sequence[Sequence[tuple[int, int]]],
    cameras: Sequence[Camera],
    matches: MatchSource,
    config: PriorConfig,
) -> float:
    """Share of the matches of some pairs that poses explain after ``turn``."""
    turned = [
        c if c.world_from_cam is None else c.replace(world_from_cam=turn(c.world_from_cam)) for c in cameras
    ]
    step = max(1, sum(len(p) for p in pairs) // CHECKED_PAIRS)
    count = total = 0
    for submap, own in zip(submaps, pairs, strict=True):
        found = collect_samples(submap, list(own)[::step], turned, matches, config)
        count, total = count + found.explained, total + found.judged
    return count / max(1, total)
