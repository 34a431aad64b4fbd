"""Do the cameras of a model agree with the verified matches? The check that needs no ground truth.

Every verified pair of pictures brought matches that fit *some* relative pose. A sound model explains most of
them; a model grown from a wrong first pair, or a view attached by a handful of repeated windows, contradicts the
other pairs of that view. The same test tells whether poses given by the user belong to the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from relief3d.sfm.colmap import quiet
from relief3d.sfm.database import image_id

EXPLAINED_PX = 4.0
MIN_PAIR_MATCHES = 15
SUPPORT_SHARE = 0.7
SUPPORT_POINTS = 25


@dataclass(frozen=True)
class PairMatches:
    """Verified matches of one pair of views: (M, 2) pixels in each, centres at +0.5."""

    first: int
    second: int
    xy_first: np.ndarray
    xy_second: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """How a model fits the verified matches.

    Attributes:
        explained: share of matches within ``EXPLAINED_PX`` of their epipolar line, over all pairs of placed views.
        median_px: median Sampson distance of all matches, in pixels.
        matches: number of matches looked at.
        view_explained: view -> matches explained by its pose.
        view_matches: view -> matches with other placed views.
        view_points: view -> triangulated points it sees.
    """

    explained: float
    median_px: float
    matches: int
    view_explained: Mapping[int, int]
    view_matches: Mapping[int, int]
    view_points: Mapping[int, int]

    def supported(self) -> set[int]:
        """Views whose pose explains most of their matches and that see enough points."""
        return {
            v
            for v, n in self.view_matches.items()
            if n > 0 and self.view_explained[v] >= SUPPORT_SHARE * n and self.view_points[v] >= SUPPORT_POINTS
        }


def read_verified(pycolmap: ModuleType, database: Path, views: int) -> list[PairMatches]:
    """All verified pairs of a database with at least ``MIN_PAIR_MATCHES`` matches."""
    found: list[PairMatches] = []
    with quiet(pycolmap):
        handle = pycolmap.Database.open(database)
        try:
            points = [
                np.asarray(handle.read_keypoints(image_id(i)), np.float64).reshape(-1, 4)[:, :2]
                for i in range(views)
            ]
            for pair_id, geometry in zip(*handle.read_two_view_geometries(), strict=True):
                first, second = (k - 1 for k in pycolmap.pair_id_to_image_pair(pair_id))
                rows = np.asarray(geometry.inlier_matches).reshape(-1, 2).astype(int)
                if len(rows) >= MIN_PAIR_MATCHES:
                    found.append(
                        PairMatches(first, second, points[first][rows[:, 0]], points[second][rows[:, 1]])
                    )
        finally:
            handle.close()
    return found


def sampson_px(
    camera_a: Any, camera_b: Any, a_from_world: np.ndarray, b_from_world: np.ndarray, pair: PairMatches
) -> np.ndarray:
    """(M,) Sampson distance in pixels of matches under two COLMAP cameras and their (3, 4) ``cam_from_world``.

    Distances are measured on the undistorted unit plane and multiplied by the mean focal length. Matches
    behind both cameras are not treated specially.
    """
    a = np.asarray(camera_a.cam_from_img(pair.xy_first), np.float64)
    b = np.asarray(camera_b.cam_from_img(pair.xy_second), np.float64)
    one = np.ones((len(a), 1))
    a, b = np.hstack([a, one]), np.hstack([b, one])
    R = b_from_world[:, :3] @ a_from_world[:, :3].T
    t = b_from_world[:, 3] - R @ a_from_world[:, 3]
    cross = np.array([[0.0, -t[2], t[1]], [t[2], 0.0, -t[0]], [-t[1], t[0], 0.0]])
    E = cross @ R
    line_b, line_a = a @ E.T, b @ E
    scale = (line_b[:, :2] ** 2).sum(1) + (line_a[:, :2] ** 2).sum(1)
    residual = np.abs((b * line_b).sum(1)) / np.sqrt(np.maximum(scale, 1e-24))
    focal = 0.5 * (float(camera_a.mean_focal_length()) + float(camera_b.mean_focal_length()))
    return np.where(np.isfinite(residual), residual * focal, np.inf)


def agreement(model: Any, pairs: list[PairMatches]) -> Agreement:
    """Compare a COLMAP model with verified matches; pairs with a view that is not placed are left out."""
    placed = set(model.reg_image_ids())
    hits: dict[int, int] = {}
    seen: dict[int, int] = {}
    distances: list[np.ndarray] = []
    poses = {i: np.asarray(model.image(i).cam_from_world().matrix()) for i in placed}
    for pair in pairs:
        ia, ib = image_id(pair.first), image_id(pair.second)
        if ia not in placed or ib not in placed:
            continue
        camera_a = model.camera(model.image(ia).camera_id)
        camera_b = model.camera(model.image(ib).camera_id)
        distance = sampson_px(camera_a, camera_b, poses[ia], poses[ib], pair)
        distances.append(distance)
        good = int((distance < EXPLAINED_PX).sum())
        for view in (pair.first, pair.second):
            hits[view] = hits.get(view, 0) + good
            seen[view] = seen.get(view, 0) + len(distance)
    for i in placed:
        hits.setdefault(i - 1, 0)
        seen.setdefault(i - 1, 0)
    every = np.concatenate(distances) if distances else np.zeros(0)
    points = {i - 1: int(model.image(i).num_points3D) for i in placed}
    if not len(every):
        return Agreement(0.0, float("inf"), 0, hits, seen, points)
    share = float((every < EXPLAINED_PX).mean())
    return Agreement(share, float(np.median(every)), len(every), hits, seen, points)


def drop_unsupported(model: Any, pairs: list[PairMatches]) -> list[int]:
    """Take the pose from views that contradict their own matches, worst first; returns those views.

    After each removal the rest is judged again, since one wrong view makes its neighbours look bad.
    """
    dropped: list[int] = []
    while model.num_reg_images() > 2:
        facts = agreement(model, pairs)
        bad = sorted(set(facts.view_matches) - facts.supported())
        if not bad:
            break
        worst = min(
            bad, key=lambda v: (facts.view_explained[v] / max(facts.view_matches[v], 1), facts.view_points[v])
        )
        model.deregister_frame(model.image(image_id(worst)).frame_id)
        dropped.append(worst)
    if dropped:
        model.tear_down()  # forgets the views without pose, which COLMAP's covariance trips over
    return dropped
