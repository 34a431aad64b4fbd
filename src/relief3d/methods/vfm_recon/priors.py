"""The scale of one submap from triangulated matches (VFM-Recon, Eq. 1; specification 2.3-2.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relief3d.core.contract import Camera, SparseDepth
from relief3d.geometry.alignment import weighted_median
from relief3d.geometry.epipolar import fundamental_from_poses, homogeneous, sampson_distance
from relief3d.geometry.keyframes import KEYFRAME_DISTANCE, neighbour_penalty, pose_distance
from relief3d.geometry.projection import normalize_pixels
from relief3d.geometry.sampling import sample_depth
from relief3d.geometry.transforms import invert_rigid
from relief3d.geometry.triangulation import sample_confidence, triangulate_two_views, two_view_gates
from relief3d.methods.vfm_recon.config import AlignConfig, PairConfig, PriorConfig, Units
from relief3d.methods.vfm_recon.inputs import MatchSource, PairMatches, matches_of
from relief3d.methods.vfm_recon.masks import BelievedDepth
from relief3d.methods.vfm_recon.submaps import Submap

LEAST_BASELINE = 1e-6
"""Pairs nearer than this share of the longest baseline of their submap are not triangulated."""

JUDGED_DEG = 1.0

Masks = Callable[[int], Tensor | None]


@dataclass(frozen=True)
class Samples:
    """Known depth at pixels of the frames of a submap, in the unit of the poses.

    Attributes:
        place: (S,) int64 place of the frame in the submap.
        xy: (S, 2) float64 pixels at the size of the frame's camera.
        z: (S,) float64 z-depth.
        confidence: (S,) float64 positive weight.
        matches: matches of all pairs.
        pairs: pairs with matches and a baseline.
        judged: matches whose rays differ by a degree or more, so that where they meet says something about the poses.
        behind: of these, matches whose rays meet behind one of the cameras.
        explained: of these, matches that meet in front of both and project back within the gate.
        kept: points that passed all gates.
        relaxed: the relaxed parallax gate was used.
        parallax_deg: quartiles of the parallax of explained points in degrees, NaN without any.
    """

    place: Tensor
    xy: Tensor
    z: Tensor
    confidence: Tensor
    matches: int = 0
    pairs: int = 0
    judged: int = 0
    behind: int = 0
    explained: int = 0
    kept: int = 0
    relaxed: bool = False
    parallax_deg: tuple[float, float, float] = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Prior:
    """Scale of a submap from its samples.

    Attributes:
        log_scale: ln s, NaN without usable samples.
        count: N, samples behind it.
        spread: robust deviation of the log ratios, NaN without samples.
        frame_medians: (n,) median log ratio of every frame, NaN without samples.
        frame_counts: (n,) samples of every frame.
        samples: what it was made from.
        log_ratio: (S,) ln(z / D) of the samples that hit usable depth, with their ``place`` and ``xy`` in
            ``used`` (S,) indices into the samples; for corrections after the solve.
    """

    log_scale: float
    count: int
    spread: float
    frame_medians: Tensor
    frame_counts: Tensor
    samples: Samples
    log_ratio: Tensor
    used: Tensor

    def inconsistent_places(self) -> list[int]:
        """Places of frames whose own median is off by more than three deviations (and by more than 2 %)."""
        off = (self.frame_medians - self.log_scale).abs()
        enough = self.frame_counts >= 10
        limit = max(3 * self.spread, 0.02)
        return torch.nonzero(enough & (off > limit))[:, 0].tolist()


def choose_pairs(
    submap: Submap, cameras: Sequence[Camera], config: PairConfig, units: Units = "metric"
) -> list[tuple[int, int]]:
    """Keyframe pairs (a, b), a < b, of a submap to match: posed, apart, at most ``reach`` places from each other.

    The best by the keyframe penalty of DeepVideoMVS are taken. Where the unit of the poses is unknown, translations
    are scaled so that the median step between neighbours is the usual keyframe distance.
    """
    posed = [k for k, t in enumerate(submap.frames) if cameras[t].world_from_cam is not None]
    if len(posed) < 2:
        return []
    poses = {k: cameras[submap.frames[k]].world_from_cam for k in posed}
    candidates = [(i, j) for n, i in enumerate(posed) for j in posed[n + 1 :] if j - i <= config.reach]
    if submap.kind == "loop":
        candidates = [(i, j) for n, i in enumerate(posed) for j in posed[n + 1 :]]
    if not candidates:
        return []
    first = torch.stack([poses[i] for i, _ in candidates])  # type: ignore[misc]
    second = torch.stack([poses[j] for _, j in candidates])  # type: ignore[misc]
    _, translation, rotation = pose_distance(first, second)
    if units != "metric":
        neighbours = torch.tensor([j - i == 1 for i, j in candidates])
        step = translation[neighbours].median() if bool(neighbours.any()) else translation.median()
        scaled = translation * (KEYFRAME_DISTANCE / step) if float(step) > 0 else translation
    else:
        scaled = translation
    apart = translation > LEAST_BASELINE * translation.max()
    order = torch.argsort(neighbour_penalty(scaled, rotation), stable=True).tolist()
    chosen = [candidates[k] for k in order if bool(apart[k])][: config.limit(len(submap.frames))]
    named = [(submap.frames[i], submap.frames[j]) for i, j in chosen]
    return sorted((min(p), max(p)) for p in named)


def collect_samples(
    submap: Submap,
    pairs: Sequence[tuple[int, int]],
    cameras: Sequence[Camera],
    matches: MatchSource,
    config: PriorConfig,
    *,
    sparse: Mapping[int, SparseDepth] | None = None,
    masks: Masks | None = None,
) -> Samples:
    """Triangulate the matches of a submap and keep what passes the gates; add known sparse depth of its frames.

    Args:
        submap: which frames.
        pairs: keyframe pairs (a, b) of the submap, from :func:`choose_pairs`.
        cameras: of all keyframes.
        matches: see :data:`MatchSource`.
        config: gates.
        sparse: depth at some pixels per keyframe, in the unit of the poses (points of structure from motion).
        masks: (H, W) bool per keyframe at the size of its camera, True where pixels may be used.
    """
    found = [(p, m) for p in pairs if (m := matches_of(matches, *p)) is not None]
    samples = _triangulated(submap, found, cameras, config) if found else _no_samples()
    extra = _sparse_samples(submap, sparse or {})
    samples = replace(
        samples,
        place=torch.cat([samples.place, extra.place]),
        xy=torch.cat([samples.xy, extra.xy]),
        z=torch.cat([samples.z, extra.z]),
        confidence=torch.cat([samples.confidence, extra.confidence]),
    )
    return samples if masks is None else _masked(samples, submap, masks)


def _no_samples() -> Samples:
    none = torch.zeros(0, dtype=torch.float64)
    return Samples(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.float64), none, none)


def _sparse_samples(submap: Submap, sparse: Mapping[int, SparseDepth]) -> Samples:
    out = _no_samples()
    for place, frame in enumerate(submap.frames):
        points = sparse.get(frame)
        if points is None:
            continue
        good = torch.isfinite(points.z) & (points.z > 0) & torch.isfinite(points.xy).all(-1)
        z = points.z[good].double()
        # A point's deviation counts like the noise of a match; 1 % is a typical one.
        sure = torch.ones_like(z) if points.sigma is None else 0.01 * z / points.sigma[good].double()
        out = replace(
            out,
            place=torch.cat([out.place, torch.full((len(z),), place)]),
            xy=torch.cat([out.xy, points.xy[good].double()]),
            z=torch.cat([out.z, z]),
            confidence=torch.cat([out.confidence, 0.1 * sure.clamp(0.1, 1.0)]),
        )
    return out


def _padded(found: Sequence[tuple[tuple[int, int], PairMatches]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels (B, N, 2) twice, scores (B, N) and which are real (B, N)."""
    count = max(len(m) for _, m in found)
    xy_a = torch.zeros(len(found), count, 2, dtype=torch.float64)
    xy_b, score = torch.zeros_like(xy_a), torch.zeros(len(found), count, dtype=torch.float64)
    real = torch.zeros(len(found), count, dtype=torch.bool)
    for k, (_, m) in enumerate(found):
        n = len(m)
        xy_a[k, :n], xy_b[k, :n], real[k, :n] = m.xy_a.double(), m.xy_b.double(), True
        score[k, :n] = 1.0 if m.score is None else m.score.double()
    real &= torch.isfinite(xy_a).all(-1) & torch.isfinite(xy_b).all(-1)
    return xy_a.nan_to_num(0.0), xy_b.nan_to_num(0.0), score, real


def _triangulated(
    submap: Submap,
    found: Sequence[tuple[tuple[int, int], PairMatches]],
    cameras: Sequence[Camera],
    config: PriorConfig,
) -> Samples:
    xy_a, xy_b, score, real = _padded(found)
    first, second = [cameras[a] for (a, _), _ in found], [cameras[b] for (_, b), _ in found]
    K_a, K_b = (torch.stack([c.K for c in side if c.K is not None]) for side in (first, second))
    pose_a, pose_b = (
        torch.stack([c.world_from_cam for c in side if c.world_from_cam is not None])
        for side in (first, second)
    )
    b_from_a = invert_rigid(pose_b) @ pose_a
    here = torch.eye(4, dtype=torch.float64).expand_as(b_from_a)
    ray_a, ray_b = normalize_pixels(xy_a, K_a), normalize_pixels(xy_b, K_b)
    points = triangulate_two_views(ray_a, ray_b, b_from_a)
    turned = homogeneous(ray_a) @ b_from_a[:, :3, :3].mT
    judged = real & (_angle(turned, homogeneous(ray_b)) >= math.radians(JUDGED_DEG))
    width = float(min(c.width for c in (*first, *second)))
    usable = real
    if config.sampson_px > 0:
        F = fundamental_from_poses(here, b_from_a, K_a, K_b)
        limit = config.sampson_px * width / config.gates.reference_width
        usable = real & (sampson_distance(F, xy_a, xy_b) <= limit)
    gated = two_view_gates(points, xy_a, xy_b, K_a, K_b, here, b_from_a, width, config.gates, usable)
    keep, explained = gated.keep, gated.other_gates
    confidence = sample_confidence(gated.parallax, score) if config.weighted else torch.ones_like(score)
    places = torch.tensor([[submap.position(a), submap.position(b)] for (a, b), _ in found])
    row = torch.nonzero(keep)[:, 0]
    degrees = gated.parallax[explained] * (180 / math.pi)
    quartiles = degrees.quantile(torch.tensor([0.25, 0.5, 0.75]).double()) if degrees.numel() else None
    return Samples(
        place=torch.cat([places[row, 0], places[row, 1]]),
        xy=torch.cat([xy_a[keep], xy_b[keep]]),
        z=torch.cat([gated.z_a[keep], gated.z_b[keep]]),
        confidence=torch.cat([confidence[keep]] * 2).clamp_min(1e-6),
        matches=int(real.sum()),
        pairs=len(found),
        judged=int(judged.sum()),
        behind=int((judged & ((gated.z_a <= 0) | (gated.z_b <= 0))).sum()),
        explained=int((judged & explained).sum()),
        kept=int(keep.sum()),
        relaxed=bool(gated.relaxed) and int(explained.sum()) > 0,
        parallax_deg=(math.nan,) * 3 if quartiles is None else tuple(quartiles.tolist()),
    )


def _angle(first: Tensor, second: Tensor) -> Tensor:
    """(*,) radians between directions (*, 3)."""
    return torch.atan2(torch.linalg.cross(first, second).norm(dim=-1), (first * second).sum(-1))


def _masked(samples: Samples, submap: Submap, masks: Masks) -> Samples:
    keep = torch.ones(len(samples.z), dtype=torch.bool)
    for place, frame in enumerate(submap.frames):
        mask, here = masks(frame), samples.place == place
        if mask is None or not bool(here.any()):
            continue
        column, row = samples.xy[here].floor().long().unbind(-1)
        height, width = mask.shape
        keep[here] = mask[row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return replace(
        samples,
        place=samples.place[keep],
        xy=samples.xy[keep],
        z=samples.z[keep],
        confidence=samples.confidence[keep],
    )


def submap_prior(
    depth: BelievedDepth, samples: Samples, cameras: Sequence[Camera], config: AlignConfig
) -> Prior:
    """Weighted median of ln(z / D) over the samples that hit believed depth, in one or two passes.

    Args:
        depth: of the submap, any scale.
        samples: from :func:`collect_samples`.
        cameras: of all keyframes, for the size of the pictures.
        config: masks and options of the prior.
    """
    n, height, width = depth.maps.depth.shape
    ratios, used = [], []
    for place, frame in enumerate(depth.submap.frames):
        index = torch.nonzero(samples.place == place)[:, 0]
        if not index.numel():
            continue
        camera = cameras[frame]
        scale = torch.tensor([width / camera.width, height / camera.height], dtype=torch.float64)
        xy = samples.xy[index] * scale
        value, good = sample_depth(depth.maps.depth[place], xy, config.mask.neighbour_ratio)
        column = xy[:, 0].floor().long().clamp(0, width - 1)
        row = xy[:, 1].floor().long().clamp(0, height - 1)
        good &= depth.at(place, row, column)
        used.append(index[good])
        ratios.append((samples.z[index[good]] / value[good].double()).log())
    log_ratio = torch.cat(ratios) if ratios else torch.zeros(0, dtype=torch.float64)
    kept = torch.cat(used) if used else torch.zeros(0, dtype=torch.int64)
    medians = torch.full((n,), math.nan, dtype=torch.float64)
    where = samples.place[kept]
    for k in range(n):
        if bool((where == k).any()):
            medians[k] = log_ratio[where == k].median()
    counts = torch.bincount(where, minlength=n)
    middle, spread, count = robust_median(log_ratio, samples.confidence[kept], config.priors.second_pass)
    return Prior(middle, count, spread, medians, counts, samples, log_ratio, kept)


def robust_median(values: Tensor, weights: Tensor, second_pass: bool = True) -> tuple[float, float, int]:
    """Weighted median, robust deviation and number of values; the second pass drops what lies beyond 3 deviations.

    Args:
        values: (S,).
        weights: (S,) positive.
        second_pass: see above.

    Returns:
        NaN, NaN, 0 without values.
    """
    if not values.numel():
        return math.nan, math.nan, 0
    middle = weighted_median(values, weights)
    spread = 1.4826 * (values - middle).abs().median()
    if second_pass:
        near = (values - middle).abs() <= 3 * spread + 1e-12
        values, weights = values[near], weights[near]
        middle = weighted_median(values, weights)
    return float(middle), float(spread), int(values.numel())
