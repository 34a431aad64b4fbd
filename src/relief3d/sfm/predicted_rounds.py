"""One plan of refinement: rounds of triangulation and adjustment, then the verdict on held-out tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from relief3d.core.contract import Camera, View
from relief3d.sfm.colmap import quiet, run_interruptible
from relief3d.sfm.lenses import Lens
from relief3d.sfm.model import FIELD_OF_VIEW_RANGE_DEG
from relief3d.sfm.predicted_adjustment import (
    RELOCATE_SHARE,
    Freedom,
    Sharing,
    adjust,
    cameras_with,
    frame_alignment,
    lenses_of,
    move_cameras,
    relocate,
)
from relief3d.sfm.predicted_points import (
    depth_at,
    depth_ratios,
    parallax_px,
    points_from_depth,
    triangulate_tracks,
)
from relief3d.sfm.predicted_report import GOOD_SHARE, SHARE_PX, Held, judge, measure, pose_change, worse_views
from relief3d.sfm.predicted_tracks import Observations

ScaleSource = Literal["depth", "cameras"]

WIDEST_SHARE = 0.15
"""Of the longer side: the widest first threshold."""

RELOCATE_ROUNDS = 2
MIN_DEPTH_VIEWS = 2
"""Views with enough predicted depth that set the scale."""


@dataclass(frozen=True)
class RoundOptions:
    """See the fields of the same names of :class:`relief3d.sfm.refine_predicted.RefineConfig`."""

    rounds: int
    max_error_px: float
    loss_px: float
    min_views: int
    min_view_observations: int
    min_parallax_px: float
    max_focal_std: float
    max_focal_change: float
    max_turn_deg: float
    max_shift: float
    scale_from: ScaleSource
    seed: int
    threads: int


@dataclass(frozen=True)
class Plan:
    """One way to adjust."""

    name: str
    sharing: Sharing
    freedom: Freedom


@dataclass(frozen=True)
class Outcome:
    """What one plan brought.

    Attributes:
        name: of the plan.
        accepted, reason: the verdict.
        hopeless: no other plan can do better (no parallax, or nothing to gain).
        cameras: refined, in the predicted frame; empty when the plan came to no cameras.
        active: views that took part and whose refined camera is used.
        relocated: views placed anew.
        after: held-out errors.
        observations: sightings per view in the last round.
        lens_facts, parallax_px: for the report.
    """

    name: str
    accepted: bool
    reason: str
    hopeless: bool = False
    cameras: tuple[Camera, ...] = ()
    active: frozenset[int] = frozenset()
    relocated: frozenset[int] = frozenset()
    after: Held | None = None
    observations: tuple[int, ...] = ()
    lens_facts: tuple[dict[str, Any], ...] = ()
    parallax_px: float | None = None

    @property
    def share(self) -> float:
        """Share of the held-out sightings that fit."""
        return 0.0 if self.after is None else self.after.summary(SHARE_PX).share_2px


@dataclass
class _State:
    cameras: list[Camera]
    lenses: list[Lens]
    active: frozenset[int]
    relocated: frozenset[int]
    deviation: dict[int, float]
    counts: tuple[int, ...]


def run_plan(
    pycolmap: ModuleType,
    views: Sequence[View],
    used: Observations,
    before: Held,
    plan: Plan,
    options: RoundOptions,
) -> Outcome:
    """Adjust the posed ``views`` to the tracks ``used`` and judge the result by the held-out ones.

    Args:
        pycolmap: the module.
        views: all posed, with predicted depth where known.
        used: tracks of the adjustment.
        before: held-out errors of the predicted cameras.
        plan: which lenses are shared and what may change.
        options: thresholds.
    """
    predicted = [v.camera for v in views]

    def work(_token: Any) -> _State | str:
        return _rounds(pycolmap, views, used, plan, options)

    with quiet(pycolmap):
        state = run_interruptible(pycolmap, work, seed=options.seed, what="refining predicted cameras")
    if isinstance(state, str):
        return Outcome(plan.name, False, state)
    if plan.freedom.poses and options.scale_from == "depth":
        state.cameras = _scaled_to_depth(views, used, state, plan.freedom, options)
    cameras = [c if i in state.active else predicted[i] for i, c in enumerate(state.cameras)]
    facts = _lens_facts(predicted, state, plan.freedom)
    outcome = Outcome(
        plan.name, False, "", False, tuple(cameras), state.active, state.relocated, None, state.counts, facts,
        min(parallax_px(c, before.observations) for c in (cameras, predicted)),
    )  # fmt: skip
    return _verdict(predicted, before, state, outcome, options, plan.freedom)


def _rounds(
    pycolmap: ModuleType, views: Sequence[View], used: Observations, plan: Plan, options: RoundOptions
) -> _State | str:
    predicted = [v.camera for v in views]
    lenses = lenses_of(views, plan.sharing, plan.freedom.lens)
    cameras = cameras_with(predicted, lenses, pycolmap)
    depth = depth_at(views, used)
    widest = WIDEST_SHARE * max(max(c.width, c.height) for c in cameras)
    first = triangulate_tracks(cameras, used, widest / 4, points_from_depth(cameras, used, depth))
    middle = float(first.error.median())
    start = min(max(4.0 * middle, options.max_error_px), max(widest, options.max_error_px))
    thresholds = np.geomspace(start, options.max_error_px, max(options.rounds, 2))[-options.rounds :]
    state = _State(cameras, lenses, frozenset(), frozenset(), {}, ())
    for step, threshold in enumerate(thresholds.tolist()):
        candidates = points_from_depth(state.cameras, used, depth)
        points = triangulate_tracks(state.cameras, used, threshold / 2, candidates)
        if step < RELOCATE_ROUNDS and plan.freedom.poses:
            error = _relocate_lost(pycolmap, state, used, points.error, threshold, plan, options)
            if error:
                points = triangulate_tracks(state.cameras, used, threshold / 2, candidates)
        kept, active = _well_seen(used.keep(points.error <= threshold), len(views), options)
        if len(active) < options.min_views:
            return f"only {len(active)} views share enough tracks that fit (at least {options.min_views})"
        last = step == len(thresholds) - 1
        loss = options.loss_px if last else max(threshold / 4, options.loss_px)
        state.cameras, state.lenses, state.deviation = adjust(
            pycolmap, state.cameras, state.lenses, kept, points.xyz, plan.freedom,
            loss_px=loss, final=last, threads=options.threads,
        )  # fmt: skip
        state.active, state.counts = active, tuple(kept.per_view(len(views)).tolist())
        # Depth offers points in the predicted frame and scale, so every round starts there.
        state.cameras = cameras_with(_laid_back(predicted, state, plan.freedom), state.lenses, pycolmap)
    return state


def _relocate_lost(
    pycolmap: ModuleType,
    state: _State,
    used: Observations,
    error: Tensor,
    threshold: float,
    plan: Plan,
    options: RoundOptions,
) -> bool:
    """Place the views anew that miss most of their tracks, worst first; True when one moved."""
    counts = used.per_view(len(state.cameras))
    shares = {
        v: float((error[used.view == v] <= threshold).double().mean())
        for v in range(len(state.cameras))
        if v not in plan.freedom.fixed and int(counts[v]) >= options.min_view_observations
    }
    lost = sorted((v for v, share in shares.items() if share < RELOCATE_SHARE), key=lambda v: shares[v])
    if not lost or len(lost) > len(state.cameras) // 2:
        return False
    trusted = used.keep(~torch.isin(used.view, torch.tensor(lost)))
    points = triangulate_tracks(state.cameras, trusted, threshold / 2)
    bad = torch.zeros(used.count, dtype=torch.bool)
    bad[trusted.track[points.error > threshold]] = True
    good = torch.isfinite(points.xyz).all(-1) & ~bad & (trusted.lengths() >= 2)
    lens_of = {v: lens for lens in state.lenses for v in lens.views}
    moved = set()
    for v in lost:
        mine = (used.view == v) & good[used.track]
        found = relocate(
            pycolmap, state.cameras[v], lens_of[v], used.xy[mine], points.xyz[used.track[mine]],
            max_error_px=threshold, seed=options.seed,
        )  # fmt: skip
        if found is not None:
            state.cameras[v] = found
            moved.add(v)
    state.relocated |= moved
    return bool(moved)


def _well_seen(kept: Observations, views: int, options: RoundOptions) -> tuple[Observations, frozenset[int]]:
    """Sightings of the largest group of views tied together by tracks, each with enough sightings."""
    while True:
        kept = kept.keep(kept.lengths()[kept.track] >= 2)
        counts = kept.per_view(views)
        weak = (counts > 0) & (counts < options.min_view_observations)
        if not bool(weak.any()):
            break
        kept = kept.keep(~weak[kept.view])
    if len(kept) == 0:
        return kept, frozenset()
    size = views + kept.count
    ones = np.ones(len(kept))
    graph = coo_matrix((ones, (kept.view.numpy(), kept.track.numpy() + views)), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    mine = torch.from_numpy(label[:views].astype(np.int64))
    seen = counts > 0
    largest = int(torch.bincount(mine[seen]).argmax())
    inside = seen & (mine == largest)
    return kept.keep(inside[kept.view]), frozenset(inside.nonzero()[:, 0].tolist())


def _laid_back(predicted: Sequence[Camera], state: _State, freedom: Freedom) -> list[Camera]:
    """The cameras in the predicted frame and scale; views that took no part and given poses as predicted."""
    fixed = sorted(freedom.fixed & state.active)
    cameras = list(state.cameras)
    if freedom.poses and len(fixed) < 2:
        trusted = sorted(state.active - state.relocated) or sorted(state.active)
        source = torch.stack([_matrix(cameras[i]) for i in trusted])
        target = torch.stack([_matrix(predicted[i]) for i in trusted])
        scale, rotation, translation = frame_alignment(source, target)
        if fixed:  # the given camera stays; only the scale about its centre is free
            centre = _matrix(predicted[fixed[0]])[:3, 3]
            rotation, translation = torch.eye(3, dtype=torch.float64), centre - scale * centre
        cameras = move_cameras(cameras, scale, rotation, translation)
    still = freedom.fixed | (frozenset(range(len(cameras))) - state.active)
    return [
        c.replace(world_from_cam=predicted[i].world_from_cam) if i in still or not freedom.poses else c
        for i, c in enumerate(cameras)
    ]


def _scaled_to_depth(
    views: Sequence[View], used: Observations, state: _State, freedom: Freedom, options: RoundOptions
) -> list[Camera]:
    """The cameras scaled so that the median view's points lie at its predicted depth.

    About their mean centre, or about the given camera; as they are with two given cameras or too little depth.
    """
    fixed = sorted(freedom.fixed & state.active)
    inside = used.keep(torch.isin(used.view, torch.tensor(sorted(state.active))))
    measured = depth_ratios(views, state.cameras, inside, options.max_error_px)
    ratios = torch.tensor([r for r in measured if r is not None], dtype=torch.float64)
    if len(fixed) >= 2 or len(ratios) < MIN_DEPTH_VIEWS:
        return state.cameras
    scale = 1.0 / float(ratios.quantile(0.5))
    about = fixed or sorted(state.active)
    centre = torch.stack([_matrix(state.cameras[i])[:3, 3] for i in about]).mean(0)
    moved = move_cameras(state.cameras, scale, torch.eye(3, dtype=torch.float64), centre - scale * centre)
    return [c if i in freedom.fixed else m for i, (c, m) in enumerate(zip(state.cameras, moved, strict=True))]


def _matrix(camera: Camera) -> Tensor:
    assert camera.world_from_cam is not None
    return camera.world_from_cam


def _lens_facts(predicted: Sequence[Camera], state: _State, freedom: Freedom) -> tuple[dict[str, Any], ...]:
    facts = []
    for number, lens in enumerate(state.lenses):
        mine = [i for i in lens.views if i in state.active]
        if lens.fixed or not mine:
            continue
        old = torch.tensor([_focal(predicted[i]) for i in mine])
        deviation = state.deviation.get(number)
        facts.append(
            {
                "views": mine,
                "focal_before": round(float(old.quantile(0.5)), 3),
                "focal_after": round(_focal(state.cameras[mine[0]]), 3),
                "focal_std": None if deviation is None or not np.isfinite(deviation) else round(deviation, 5),
                "adjusted": freedom.focal,
            }
        )
    return tuple(facts)


def _focal(camera: Camera) -> float:
    assert camera.K is not None
    return float(camera.K[0, 0] + camera.K[1, 1]) / 2.0


def _verdict(
    predicted: Sequence[Camera],
    before: Held,
    state: _State,
    outcome: Outcome,
    options: RoundOptions,
    freedom: Freedom,
) -> Outcome:
    cameras = list(outcome.cameras)
    after = measure(cameras, before.observations)
    worse = worse_views(before, after, sorted(state.active))
    if worse and len(worse) < len(state.active) / 2:
        trial = [predicted[i] if i in worse else c for i, c in enumerate(cameras)]
        judged = measure(trial, before.observations)
        if judge(after.summary(SHARE_PX), judged.summary(SHARE_PX))[0]:
            cameras, after = trial, judged
            outcome = replace(outcome, active=outcome.active - set(worse))
    outcome = replace(outcome, cameras=tuple(cameras), after=after)
    if outcome.parallax_px is not None and outcome.parallax_px < options.min_parallax_px:
        return replace(
            outcome,
            reason=f"the pictures were taken from one place: a pure rotation explains the matches to "
            f"{outcome.parallax_px:.1f} px, so poses cannot be measured",
            hopeless=True,
        )
    better, reason = judge(before.summary(options.max_error_px), after.summary(options.max_error_px))
    if better:
        problem = _insane(predicted, state, outcome, options, freedom)
        return replace(outcome, accepted=problem is None, reason=problem or reason)
    no_gain = reason.startswith("there was nothing") and outcome.share >= GOOD_SHARE
    return replace(outcome, reason=reason, hopeless=no_gain)


def _insane(
    predicted: Sequence[Camera], state: _State, outcome: Outcome, options: RoundOptions, freedom: Freedom
) -> str | None:
    """Why the change of the cameras cannot be believed, or None."""
    low, high = FIELD_OF_VIEW_RANGE_DEG
    moves = []
    for i in sorted(outcome.active):
        old, new = predicted[i], outcome.cameras[i]
        factor = _focal(new) / _focal(old)
        field = 2 * np.degrees(np.arctan(max(new.width, new.height) / (2 * _focal(new))))
        if old.K_source != "given" and (
            max(factor, 1 / factor) > options.max_focal_change or not low <= field <= high
        ):
            return f"the adjusted focal length is {factor:.2f} times the predicted one, which is not believed"
        if i not in outcome.relocated and i not in freedom.fixed:
            moves.append(pose_change(old, new))
    loose = max(state.deviation.values(), default=0.0)
    if freedom.focal and loose > options.max_focal_std:
        return f"the views leave the focal length open by {100 * min(loose, 1.0):.0f} %"
    if not moves or not freedom.poses:
        return None
    turn, shift = (float(v) for v in torch.tensor(moves, dtype=torch.float64).quantile(0.5, dim=0))
    centres = torch.stack([_matrix(c)[:3, 3] for c in predicted])
    spread = float((centres - centres.mean(0)).norm(dim=1).square().mean().sqrt())
    if turn > options.max_turn_deg or shift > options.max_shift * spread:
        return (
            f"half of the cameras would turn by more than {turn:.0f} degrees and move by {shift:.3g} units, "
            f"which is not believed"
        )
    return None
