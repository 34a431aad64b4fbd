"""Optional bundle adjustment of cameras that a network predicted, which must not make things worse.

Tracks come from classical matches or from the caller (a network's track head) and are verified without the
predicted cameras. Points start from robust triangulation, or from the predicted depth where rays are too
parallel. Adjustment and re-triangulation alternate while the threshold shrinks from what the prediction needs to
a few pixels; the result is laid back onto the predicted frame and scale. A seeded share of the tracks is
held out, and the refined cameras are returned only when these tracks fit them better.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import torch

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.matching.registry import make_matcher
from relief3d.sfm import colmap
from relief3d.sfm.attempts import Run, prepare
from relief3d.sfm.config import FeatureRecipe, Recipe, SfmConfig
from relief3d.sfm.consistency import read_verified
from relief3d.sfm.predicted_adjustment import Freedom, Sharing, shared_focal_spread
from relief3d.sfm.predicted_outcome import as_given, refined_scene
from relief3d.sfm.predicted_report import GOOD_SHARE, Held, RefineReport, judge, measure
from relief3d.sfm.predicted_rounds import Outcome, Plan, RoundOptions, ScaleSource, run_plan
from relief3d.sfm.predicted_tracks import (
    Observations,
    Tracks,
    hold_out,
    limit_tracks,
    link_pairs,
    verify_tracks,
)
from relief3d.sfm.work_files import view_fingerprint

__all__ = ["RefineConfig", "RefineReport", "RefineResult", "Tracks", "refine_predicted"]

SAME_LENS_SPREAD = 1.1
"""Predicted focal lengths further apart leave open whether the views share a lens, so both are tried:
a wrongly shared lens can fit most tracks with senseless poses."""


@dataclass(frozen=True)
class RefineConfig:
    """Options of :func:`refine_predicted`.

    Attributes:
        matching: features, pairs and picture size of classical matching (unused with given tracks).
        refine_focal, refine_centre, refine_distortion, refine_poses: what is adjusted. Intrinsics with
            ``K_source == "given"`` stay in any case. The principal point is rarely observable from a few
            views; the distortion is one radial coefficient.
        sharing: whether views of one picture size share a lens: ``"auto"`` (unless the predicted focal
            lengths differ by half; each view gets its own when sharing fails), ``"size"``, ``"none"``.
        fixed_views: names of views whose pose is given: it stays to the last bit and holds the frame.
        holdout: share of the tracks that only judges.
        rounds: of adjustment and re-triangulation.
        max_error_px: last threshold of an inlier, and of track verification.
        loss_px: residual at which the last round's Cauchy loss turns over.
        max_tracks, min_tracks: tracks used at most; fewer than the minimum are no basis.
        min_views: fewer views than this are not adjusted (two views leave focal length and depth open).
        min_view_observations: a view with fewer sightings keeps its predicted camera.
        min_parallax_px: when a pure rotation explains the matches better than this, nothing can be gained.
        max_focal_std: a focal length less certain than this (relative standard deviation) is not adjusted.
        max_focal_change: largest believed factor between predicted and adjusted focal length, either way.
        max_turn_deg: largest believed median change of orientation.
        max_shift: largest believed median change of position, relative to the spread of the predicted centres.
        scale_from: what keeps the predicted scale when fewer than two poses are given: the depth of the median view
            (a thousand measurements per view, and it stays metric), or the distances between the camera centres,
            which also serve without depth.
        seed: of every random choice.
        threads: results are reproducible bit for bit only with 1.
    """

    matching: SfmConfig = field(default_factory=lambda: SfmConfig(max_features=4096))
    refine_focal: bool = True
    refine_centre: bool = False
    refine_distortion: bool = False
    refine_poses: bool = True
    sharing: Sharing = "auto"
    fixed_views: tuple[str, ...] = ()
    holdout: float = 0.2
    rounds: int = 5
    max_error_px: float = 4.0
    loss_px: float = 0.75
    max_tracks: int = 12_000
    min_tracks: int = 60
    min_views: int = 3
    min_view_observations: int = 20
    min_parallax_px: float = 2.0
    max_focal_std: float = 0.06
    max_focal_change: float = 1.5
    max_turn_deg: float = 30.0
    max_shift: float = 0.5
    scale_from: ScaleSource = "depth"
    seed: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        if not 0.05 <= self.holdout <= 0.5 or self.rounds < 1 or self.max_error_px <= 0 or self.min_views < 2:
            raise InputError(
                "refinement options are out of range",
                remedy="0.05 <= holdout <= 0.5, rounds >= 1, max_error_px > 0, min_views >= 2",
            )

    def round_options(self) -> RoundOptions:
        """The part that the adjustment rounds read."""
        return RoundOptions(
            self.rounds, self.max_error_px, self.loss_px, self.min_views, self.min_view_observations,
            self.min_parallax_px, self.max_focal_std, self.max_focal_change, self.max_turn_deg, self.max_shift,
            self.scale_from, self.seed, self.threads,
        )  # fmt: skip


@dataclass(frozen=True)
class RefineResult:
    """What :func:`refine_predicted` returns.

    Attributes:
        scene: refined, or with the cameras and depth as given; in both cases with triangulated ``sparse`` points
            when there are any.
        report: before, after and why.
    """

    scene: Scene
    report: RefineReport


def refine_predicted(
    scene: Scene,
    config: RefineConfig,
    work: Path,
    progress: Progress | None = None,
    *,
    tracks: Tracks | None = None,
) -> RefineResult:
    """Bundle-adjust the predicted cameras of a scene; keep them when that brings nothing.

    Views without intrinsics or pose take no part. Depth maps are multiplied by the robust ratio between the
    refined points and their predicted depth, so that they fit the refined cameras.

    Args:
        scene: views with pictures (not needed with ``tracks``), predicted cameras, and perhaps depth in scene units.
        config: options.
        work: folder for the matching's work files, made when absent; a second call with the same
            pictures reuses them.
        progress: receives stages and steps.
        tracks: from a network's track head, over all views of the scene in their order.

    Returns:
        The scene and the report; weak content (no matches, no parallax, no gain) is a reason in
        the report, not an error.

    Raises:
        InputError: for tracks of another number of views, an unknown name among ``fixed_views``, or without ``tracks``
            a view without a picture or with one whose size is not its camera's.
        MissingExtraError: when pycolmap is not installed.
    """
    progress = progress or SilentProgress()
    began = time.monotonic()
    pycolmap = colmap.load()
    _check(scene, config, tracks)
    posed = scene.posed
    views = [scene.views[i] for i in posed]

    def given(reason: str, **facts: object) -> RefineResult:
        seen = facts.pop("observations", None)
        assert seen is None or isinstance(seen, Observations)
        kept, changes = as_given(scene, posed, seen, config.max_error_px, progress)
        report = RefineReport(False, reason, views=changes, seconds=_seconds(began))
        return RefineResult(kept, replace(report, **facts))  # type: ignore[arg-type]

    if len(views) < config.min_views:
        return given(f"{len(views)} predicted cameras are too few to adjust (at least {config.min_views})")
    observations = _observations(pycolmap, views, scene, config, Path(work), progress, tracks)
    if observations.count < config.min_tracks:
        return given(
            f"{observations.count} verified tracks are too few to judge an adjustment (at least {config.min_tracks})",
            tracks=observations.count,
            observations=observations,
        )
    used, held = hold_out(observations, config.holdout, config.seed)
    before = measure([v.camera for v in views], held)
    outcomes = _outcomes(pycolmap, views, used, before, config, progress)
    best = _best(outcomes, config.max_error_px)
    facts = {
        "before": before.summary(config.max_error_px),
        "after": None if best.after is None else best.after.summary(config.max_error_px),
        "tracks": observations.count,
        "lenses": best.lens_facts,
        "parallax_px": best.parallax_px,
        "attempts": tuple(f"{o.name}: {o.reason}" for o in outcomes),
    }
    if not best.accepted:
        return given(best.reason, observations=observations, **facts)
    refined, changes = refined_scene(scene, posed, observations, before, best, config.max_error_px, progress)
    report = RefineReport(True, best.reason, views=changes, seconds=_seconds(began))
    return RefineResult(refined, replace(report, **facts))  # type: ignore[arg-type]


def _seconds(began: float) -> float:
    return round(time.monotonic() - began, 2)


def _check(scene: Scene, config: RefineConfig, tracks: Tracks | None) -> None:
    unknown = sorted(set(config.fixed_views) - {v.name for v in scene.views})
    if unknown:
        raise InputError(f"no view is called '{unknown[0]}', whose pose should stay fixed")
    if tracks is not None and tracks.xy.shape[1] != len(scene):
        raise InputError(
            f"the tracks are of {tracks.xy.shape[1]} views, the scene has {len(scene)}",
            remedy="give tracks over all views of the scene in their order",
        )


def _observations(
    pycolmap: ModuleType,
    views: Sequence[View],
    scene: Scene,
    config: RefineConfig,
    work: Path,
    progress: Progress,
    tracks: Tracks | None,
) -> Observations:
    """Verified tracks over the posed views, numbered as in ``views``."""
    if tracks is not None:
        chosen = torch.tensor(scene.posed)
        part = Tracks(tracks.xy.cpu()[:, chosen], tracks.seen()[:, chosen])
        with stage(progress, "track verification"):
            pairs = verify_tracks(
                pycolmap, part, seed=config.seed, max_error_px=config.max_error_px, threads=config.threads
            )
    else:
        matching = replace(config.matching, seed=config.seed, threads=config.threads)
        # Matches are verified without the predicted intrinsics, which may be off by a fifth.
        blind = tuple(v.replace(camera=_blind(v.camera)) for v in views)
        matcher = None
        if matching.features != "sift":
            matcher = make_matcher(matching.features, matching.weights, resolve_device(matching.device))
        work.mkdir(parents=True, exist_ok=True)
        run = Run(
            pycolmap, Scene(blind, ordered=scene.ordered), matching, work, progress, matcher,
            [view_fingerprint(v) for v in views],
        )  # fmt: skip
        features = FeatureRecipe(matching.features, matching.max_features, matching.max_image_size)
        _, database = prepare(run, Recipe("predicted cameras", features))
        pairs = read_verified(pycolmap, database, len(views))
    return limit_tracks(link_pairs(pairs), config.max_tracks, config.seed)


def _blind(camera: Camera) -> Camera:
    if camera.K_source == "given":
        return camera.replace(world_from_cam=None)
    return Camera(camera.width, camera.height)


def _outcomes(
    pycolmap: ModuleType,
    views: Sequence[View],
    used: Observations,
    before: Held,
    config: RefineConfig,
    progress: Progress,
) -> list[Outcome]:
    """Adjust with shared lenses; with own lenses and with fixed focal lengths only where that left much to wish."""
    fixed = frozenset(i for i, v in enumerate(views) if v.name in config.fixed_views)
    freedom = Freedom(
        config.refine_focal, config.refine_centre, config.refine_distortion, config.refine_poses, fixed
    )
    rigid = replace(freedom, focal=False, centre=False, lens=False)
    doubt = config.sharing == "auto" and shared_focal_spread(views) > SAME_LENS_SPREAD
    plans = [Plan("own lenses" if config.sharing == "none" else "shared lenses", config.sharing, freedom)]
    if config.sharing == "auto":
        plans.append(Plan("own lenses", "none", freedom))
    if config.refine_focal:
        plans.append(Plan("predicted lenses", "none", rigid))
    found: list[Outcome] = []
    with stage(progress, "refinement", len(plans)):
        for plan in plans:
            try:
                outcome = run_plan(pycolmap, views, used, before, plan, config.round_options())
            except RunError as exc:
                outcome = Outcome(plan.name, False, exc.message)
            found.append(outcome)
            progress.advance(note=outcome.reason)
            good = outcome.accepted and outcome.share >= GOOD_SHARE
            if outcome.hopeless or (good and not (doubt and len(found) == 1)):
                break
    return found


def _best(outcomes: Sequence[Outcome], inlier_px: float) -> Outcome:
    """The first accepted outcome, unless a later one fits the held-out tracks better; else the first."""
    best = outcomes[0]
    for other in outcomes[1:]:
        if not other.accepted or other.after is None:
            continue
        if (
            not best.accepted
            or best.after is None
            or judge(best.after.summary(inlier_px), other.after.summary(inlier_px))[0]
        ):
            best = other
    return best
