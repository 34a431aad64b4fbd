"""Which pairs of views to match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from relief3d.sfm.colmap import quiet
from relief3d.sfm.config import PairKind
from relief3d.sfm.database import image_id

EXHAUSTIVE_UP_TO = 60
"""Views up to which all pairs are matched: 1770 pairs, a few minutes on one core."""

SIMILAR_PER_VIEW = 24
LOOPS_PER_VIEW = 4
_PROBE_FEATURES = 300
_PROBE_RATIO = 0.85


def all_pairs(count: int) -> list[tuple[int, int]]:
    """Every pair i < j."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def sequential_pairs(count: int, overlap: int) -> list[tuple[int, int]]:
    """Each view with its ``overlap`` followers and with those 2, 4, 8, ... places on, up to ``2**overlap``."""
    steps = set(range(1, overlap + 1)) | {2**k for k in range(overlap + 1)}
    return sorted({(i, i + s) for s in steps for i in range(count - s)})


def probe_similarity(pycolmap: ModuleType, database: Path, count: int) -> Tensor:
    """How many of the largest keypoints of two views match mutually: (count, count) int64, symmetric.

    A cheap stand-in for image retrieval (preemptive matching, Wu 2013): only the
    largest SIFT keypoints of each view are compared.
    """
    descriptors: list[Tensor] = []
    with quiet(pycolmap):
        handle = pycolmap.Database.open(database)
        try:
            for index in range(count):
                rows = np.asarray(handle.read_keypoints(image_id(index)), np.float32)
                data = np.asarray(handle.read_descriptors(image_id(index)).data, np.float32)
                size = np.hypot(rows[:, 2], rows[:, 4]) if rows.shape[1] == 6 else rows[:, 2]
                top = np.argsort(-size, kind="stable")[:_PROBE_FEATURES]
                chosen = torch.from_numpy(data[top])
                descriptors.append(torch.nn.functional.normalize(chosen, dim=1))
        finally:
            handle.close()
    counts = torch.zeros(count, count, dtype=torch.int64)
    for i in range(count):
        for j in range(i + 1, count):
            counts[i, j] = counts[j, i] = _mutual_matches(descriptors[i], descriptors[j])
    return counts


def _mutual_matches(a: Tensor, b: Tensor) -> int:
    if min(a.shape[0], b.shape[0]) < 2:
        return 0
    similarity = (a @ b.T).clamp(-1.0, 1.0)
    best = torch.acos(similarity.topk(2, dim=1).values)
    clear = best[:, 0] < _PROBE_RATIO * best[:, 1]
    forward = similarity.argmax(1)
    backward = similarity.argmax(0)
    mutual = backward[forward] == torch.arange(a.shape[0])
    return int((clear & mutual).sum())


def similar_pairs(counts: Tensor, per_view: int, *, min_gap: int = 1) -> list[tuple[int, int]]:
    """Each view with the ``per_view`` views of most probe matches that are at least ``min_gap`` places away."""
    n = counts.shape[0]
    found: set[tuple[int, int]] = set()
    place = torch.arange(n)
    for i in range(n):
        row = torch.where((place - i).abs() >= min_gap, counts[i], torch.full_like(counts[i], -1))
        for j in torch.argsort(row, descending=True, stable=True)[:per_view].tolist():
            if int(row[j]) > 0:
                found.add((min(i, j), max(i, j)))
    return sorted(found)


def choose_pairs(
    pycolmap: ModuleType,
    database: Path,
    count: int,
    *,
    kind: PairKind,
    ordered: bool,
    overlap: int,
    can_probe: bool = True,
) -> list[tuple[int, int]]:
    """The pairs to match.

    Args:
        pycolmap: the module.
        database: with the keypoints of all views.
        count: number of views.
        kind: see :class:`relief3d.sfm.SfmConfig`.
        ordered: consecutive views follow each other in time.
        overlap: followers matched in ordered sets.
        can_probe: the database holds SIFT descriptors.
    """
    small: Sequence[tuple[int, int]] = all_pairs(count)
    if kind == "exhaustive" or (kind == "auto" and count <= EXHAUSTIVE_UP_TO):
        return list(small)
    if kind == "sequential" or ordered:
        pairs = set(sequential_pairs(count, overlap))
        if can_probe:
            pairs |= set(
                similar_pairs(
                    probe_similarity(pycolmap, database, count), LOOPS_PER_VIEW, min_gap=2 * overlap
                )
            )
        return sorted(pairs)
    if not can_probe:
        return list(small)
    return similar_pairs(probe_similarity(pycolmap, database, count), SIMILAR_PER_VIEW)
