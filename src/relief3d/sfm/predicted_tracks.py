"""Tracks that link the views of a network's prediction: from its own track head, or from classical matches.

Every track is verified without the predicted cameras (epipolar geometry of pairs, found by RANSAC), so that
wrong cameras cannot throw out right tracks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.sfm.colmap import quiet, run_interruptible
from relief3d.sfm.consistency import MIN_PAIR_MATCHES, PairMatches

MIN_INLIER_RATIO = 0.35
MAX_TRIALS = 2000
"""Enough for half of a pair's matches being wrong; noise would take ten thousand."""


@dataclass(frozen=True)
class Tracks:
    """Points followed through the views, as the track head of a network gives them.

    Attributes:
        xy: (T, V, 2) pixels of each view's camera (not of the network's resized input), centres at +0.5.
        visible: (T, V) bool, or the probability of being visible in [0, 1] (0.5 counts as seen).
    """

    xy: Tensor
    visible: Tensor

    def __post_init__(self) -> None:
        if self.xy.ndim != 3 or self.xy.shape[-1] != 2 or self.visible.shape != self.xy.shape[:2]:
            raise InputError(
                f"tracks need positions (T, V, 2) and visibility (T, V), got {tuple(self.xy.shape)} and "
                f"{tuple(self.visible.shape)}"
            )

    def seen(self) -> Tensor:
        """(T, V) bool: visible and at a finite position."""
        visible = self.visible if self.visible.dtype == torch.bool else self.visible >= 0.5
        return visible.cpu() & torch.isfinite(self.xy).all(-1).cpu()


@dataclass(frozen=True)
class Observations:
    """Sightings of tracks, ordered by track.

    Attributes:
        track: (M,) int64 in [0, count).
        view: (M,) int64; a track has at most one sighting per view.
        xy: (M, 2) float64 pixels, centres at +0.5.
        count: number of tracks.
    """

    track: Tensor
    view: Tensor
    xy: Tensor
    count: int

    def __len__(self) -> int:
        return int(self.track.shape[0])

    def keep(self, mask: Tensor) -> Observations:
        """The sightings where ``mask`` (M,) is True; tracks keep their numbers and may become empty."""
        return Observations(self.track[mask], self.view[mask], self.xy[mask], self.count)

    def tracks(self, mask: Tensor) -> Observations:
        """The tracks where ``mask`` (count,) is True, renumbered."""
        number = torch.cumsum(mask.long(), 0) - 1
        inside = mask[self.track]
        return Observations(number[self.track[inside]], self.view[inside], self.xy[inside], int(mask.sum()))

    def lengths(self) -> Tensor:
        """(count,) int64 sightings per track."""
        return torch.bincount(self.track, minlength=self.count)

    def per_view(self, views: int) -> Tensor:
        """(views,) int64 sightings per view."""
        return torch.bincount(self.view, minlength=views)


def no_observations() -> Observations:
    """No tracks at all."""
    empty = torch.zeros(0, dtype=torch.int64)
    return Observations(empty, empty.clone(), torch.zeros(0, 2, dtype=torch.float64), 0)


def link_pairs(pairs: Sequence[PairMatches]) -> Observations:
    """Tracks from verified matches: connected keypoints.

    Two keypoints of one view in one track contradict each other; the track loses that view. Keypoints at
    the same pixel are one.
    """
    if not pairs:
        return no_observations()

    def rows(view: int, xy: np.ndarray) -> np.ndarray:
        return np.column_stack([np.full(len(xy), float(view)), xy])

    ends = [rows(p.first, p.xy_first) for p in pairs] + [rows(p.second, p.xy_second) for p in pairs]
    nodes, number = np.unique(np.concatenate(ends), axis=0, return_inverse=True)
    number = number.reshape(-1)
    half = len(number) // 2
    links = coo_matrix((np.ones(half), (number[:half], number[half:])), shape=(len(nodes), len(nodes)))
    _, label = connected_components(links, directed=False)
    view = nodes[:, 0].astype(np.int64)
    _, slot, times = np.unique(
        label.astype(np.int64) * (view.max() + 1) + view, return_inverse=True, return_counts=True
    )
    single = times[slot.reshape(-1)] == 1
    label, view, xy = label[single], view[single], nodes[single, 1:]
    order = np.lexsort((view, label))
    _, track = np.unique(label[order], return_inverse=True)
    track = track.reshape(-1).astype(np.int64)
    count = int(track.max()) + 1 if len(track) else 0
    found = Observations(
        torch.from_numpy(track), torch.from_numpy(view[order]), torch.from_numpy(xy[order].copy()), count
    )
    return found.tracks(found.lengths() >= 2)


def verify_tracks(
    pycolmap: ModuleType, tracks: Tracks, *, seed: int, max_error_px: float = 4.0, threads: int = 1
) -> list[PairMatches]:
    """The sightings of a track head that agree with one epipolar geometry per pair of views.

    Args:
        pycolmap: the module.
        tracks: T tracks in V views.
        seed: of RANSAC.
        max_error_px: largest Sampson distance of an inlier.
        threads: of RANSAC.

    Returns:
        Pairs of views with at least ``MIN_PAIR_MATCHES`` inliers.
    """
    seen = tracks.seen().numpy()
    xy = tracks.xy.detach().cpu().to(torch.float64).numpy()
    options = pycolmap.RANSACOptions()
    options.max_error = max_error_px
    options.random_seed = seed
    options.num_threads = threads
    options.min_inlier_ratio = MIN_INLIER_RATIO
    options.max_num_trials = MAX_TRIALS

    def work(_token: Any) -> list[PairMatches]:
        found = []
        for first in range(seen.shape[1]):
            for second in range(first + 1, seen.shape[1]):
                both = seen[:, first] & seen[:, second]
                if int(both.sum()) < MIN_PAIR_MATCHES:
                    continue
                a, b = xy[both, first], xy[both, second]
                fit = pycolmap.estimate_fundamental_matrix(a, b, options)
                inside = None if fit is None else np.asarray(fit["inlier_mask"], bool)
                if inside is not None and int(inside.sum()) >= MIN_PAIR_MATCHES:
                    found.append(PairMatches(first, second, a[inside], b[inside]))
        return found

    with quiet(pycolmap):
        return run_interruptible(pycolmap, work, seed=seed, what="verifying tracks")


def limit_tracks(observations: Observations, most: int, seed: int) -> Observations:
    """At most ``most`` tracks, longer ones first, at random among equals."""
    if observations.count <= most:
        return observations
    noise = torch.rand(observations.count, generator=torch_generator(seed), dtype=torch.float64)
    order = torch.argsort(observations.lengths() + noise, descending=True)
    chosen = torch.zeros(observations.count, dtype=torch.bool)
    chosen[order[:most]] = True
    return observations.tracks(chosen)


def hold_out(observations: Observations, share: float, seed: int) -> tuple[Observations, Observations]:
    """Split the tracks at random into those used and the ``share`` held out."""
    order = torch.randperm(observations.count, generator=torch_generator(seed))
    held = torch.zeros(observations.count, dtype=torch.bool)
    held[order[: round(share * observations.count)]] = True
    return observations.tracks(~held), observations.tracks(held)
