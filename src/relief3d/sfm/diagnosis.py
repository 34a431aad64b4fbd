"""Why there is no model: the likely reason, from pictures and match statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from relief3d.core.errors import InputError
from relief3d.sfm.colmap import quiet
from relief3d.sfm.database import image_id

FEW_KEYPOINTS = 60
FEW_INLIERS = 15
IDENTICAL_SHIFT_PX = 0.25
ROTATING_SHARE = 0.8
_ROTATION_CONFIGS = ("PANORAMIC", "PLANAR_OR_PANORAMIC")


@dataclass(frozen=True)
class MatchStats:
    """What matching found.

    Attributes:
        keypoints: per view.
        inliers: (i, j) -> verified matches.
        raw: (i, j) -> matches before verification.
        shift_px: (i, j) -> median distance of the matched pixels.
        rotating: pairs explained by a pure rotation (or one plane).
    """

    keypoints: tuple[int, ...]
    inliers: dict[tuple[int, int], int]
    raw: dict[tuple[int, int], int]
    shift_px: dict[tuple[int, int], float]
    rotating: tuple[tuple[int, int], ...]

    @property
    def turned_on_the_spot(self) -> bool:
        """Nearly all overlapping pairs are explained by a rotation (or by one plane)."""
        return bool(self.connected) and len(self.rotating) >= ROTATING_SHARE * len(self.connected)

    @property
    def connected(self) -> dict[tuple[int, int], int]:
        """Pairs with enough verified matches."""
        return {pair: n for pair, n in self.inliers.items() if n >= FEW_INLIERS}

    def components(self) -> list[list[int]]:
        """Groups of views linked by verified matches, largest first."""
        parent = list(range(len(self.keypoints)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for i, j in self.connected:
            parent[root(i)] = root(j)
        groups: dict[int, list[int]] = {}
        for i in range(len(parent)):
            groups.setdefault(root(i), []).append(i)
        return sorted(groups.values(), key=lambda g: (-len(g), g))


def match_stats(pycolmap: ModuleType, database: Path, views: int) -> MatchStats:
    """Read the statistics from a matched database."""
    inliers: dict[tuple[int, int], int] = {}
    raw: dict[tuple[int, int], int] = {}
    shift: dict[tuple[int, int], float] = {}
    rotating: list[tuple[int, int]] = []
    names = {getattr(pycolmap.TwoViewGeometryConfiguration, name) for name in _ROTATION_CONFIGS}
    with quiet(pycolmap):
        handle = pycolmap.Database.open(database)
        try:
            points = [np.asarray(handle.read_keypoints(image_id(i)))[:, :2] for i in range(views)]
            for pair_id, found in zip(*handle.read_all_matches(), strict=True):
                raw[_pair(pycolmap, pair_id)] = len(found)
            for pair_id, geometry in zip(*handle.read_two_view_geometries(), strict=True):
                pair = _pair(pycolmap, pair_id)
                rows = np.asarray(geometry.inlier_matches).reshape(-1, 2).astype(int)
                inliers[pair] = len(rows)
                if len(rows):
                    moved = points[pair[0]][rows[:, 0]] - points[pair[1]][rows[:, 1]]
                    shift[pair] = float(np.median(np.linalg.norm(moved, axis=1)))
                if geometry.config in names:
                    rotating.append(pair)
        finally:
            handle.close()
    return MatchStats(tuple(len(p) for p in points), inliers, raw, shift, tuple(sorted(rotating)))


def _pair(pycolmap: ModuleType, pair_id: int) -> tuple[int, int]:
    first, second = pycolmap.pair_id_to_image_pair(pair_id)
    return (min(first, second) - 1, max(first, second) - 1)


def explain_failure(stats: MatchStats, names: Sequence[str]) -> InputError:
    """The likely reason why no model could be built, as the error to raise."""
    total = len(names)
    identical = [
        p for p, px in stats.shift_px.items() if px < IDENTICAL_SHIFT_PX and stats.inliers[p] >= FEW_INLIERS
    ]
    poor = [names[i] for i, n in enumerate(stats.keypoints) if n < FEW_KEYPOINTS]
    if identical and len(identical) == len(stats.connected):
        a, b = (names[k] for k in identical[0])
        return InputError(
            f"'{a}' and '{b}' show the same picture, so there is no parallax to measure",
            remedy="give photos taken from different places",
        )
    if len(poor) > total // 2:
        return InputError(
            f"{len(poor)} of {total} pictures have almost no detail to match (the first is '{poor[0]}')",
            remedy="use sharp, well-lit pictures of textured surfaces",
        )
    if not stats.connected:
        return InputError(
            f"no two of the {total} pictures show enough of the same surface",
            remedy="take pictures that overlap by at least two thirds",
        )
    if stats.turned_on_the_spot:
        return InputError(
            "the camera seems to have turned on the spot (or looks at one flat surface), so depth cannot be measured",
            remedy="move sideways between the pictures",
        )
    largest = stats.components()[0]
    if len(largest) < total:
        return InputError(
            f"only {len(largest)} of {total} pictures overlap, and too little to place them",
            remedy="add pictures between those that do not overlap",
        )
    return InputError(
        "the pictures overlap but no pair has enough parallax and matches to start from",
        remedy="move further between the pictures, or give the camera's intrinsics",
    )
