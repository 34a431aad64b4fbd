"""Cameras and sparse points from pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relief3d.core.contract import Scene, View
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress
from relief3d.matching.registry import LICENCE_NOTICE, make_matcher
from relief3d.sfm import colmap
from relief3d.sfm.attempts import Attempt, Run, run_ladder
from relief3d.sfm.config import SfmConfig
from relief3d.sfm.consistency import agreement, read_verified
from relief3d.sfm.convert import scene_from_model
from relief3d.sfm.diagnosis import explain_failure, match_stats
from relief3d.sfm.known import known_poses, some_poses
from relief3d.sfm.model import model_stats
from relief3d.sfm.refine import LensUncertainty, refine_model
from relief3d.sfm.work_files import pixel_digest, view_fingerprint, write_report

POSE_ERROR_PX = 1.0
"""Median distance of matches from the epipolar lines of given poses above which a warning is given."""

MIN_ANGLE_DEG = 0.7
"""Median angle between the rays to a point below which the scene has no measurable depth."""


@dataclass(frozen=True)
class SfmResult:
    """What :func:`estimate_cameras` returns.

    Attributes:
        scene: the input with cameras and ``sparse``; views that could not be placed keep no pose.
        report: JSON-ready facts: ``registered``, ``total``, ``points``, ``track_length``, ``reprojection_px``,
            ``angle_deg``, ``explained``, ``mode``, ``chosen``, ``attempts``, ``lenses``, ``seconds``,
            ``unplaced``, ``warnings``.
    """

    scene: Scene
    report: dict[str, Any]


def estimate_cameras(
    scene: Scene,
    config: SfmConfig | None = None,
    workdir: Path | str = "sfm",
    progress: Progress | None = None,
) -> SfmResult:
    """Find intrinsics and poses of a scene's views, and sparse points.

    What is known is used: given intrinsics (``K_source == "given"``) stay fixed, focal lengths from EXIF start the
    solver, and when every view has intrinsics and a pose only points are triangulated (and the poses adjusted
    with ``refine_poses``). When some views are posed, the others are added to them in the given world.

    Args:
        scene: views with pictures; lens distortion is part of the camera, pictures are used as they are.
        config: options.
        workdir: folder for work files; an interrupted call with the same input goes on from them.
        progress: receives stages and steps.

    Returns:
        The scene with cameras and points, and a report.

    Raises:
        InputError: when no model can be built or the best one cannot be trusted, with the likely reason.
        MissingExtraError: when pycolmap is not installed.
    """
    config = config or SfmConfig()
    progress = progress or SilentProgress()
    pycolmap = colmap.load()
    _check_input(scene)
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    matcher = None
    if config.features != "sift":
        matcher = make_matcher(config.features, config.weights, resolve_device(config.device))
    if config.features in LICENCE_NOTICE:
        progress.message(f"note: {LICENCE_NOTICE[config.features]}")
    run = Run(pycolmap, scene, config, folder, progress, matcher, [view_fingerprint(v) for v in scene.views])
    if len(scene.posed) == len(scene):
        return _finish(run, known_poses(run), "known poses", [], {})
    if len(scene.posed) >= 2:
        return _finish(run, some_poses(run), "some poses", [], {})
    return _unknown_poses(run)


def _check_input(scene: Scene) -> None:
    if not scene.views:
        raise InputError("there are no pictures to estimate cameras from")
    if len(scene) == 1:
        raise InputError(
            f"one picture ('{scene.views[0].name}') is not enough to estimate cameras",
            remedy="give at least two, better ten or more, taken from different places",
        )
    first = scene.views[0].camera
    if all((v.camera.width, v.camera.height) == (first.width, first.height) for v in scene.views):
        digest = pixel_digest(scene.views[0])
        if all(pixel_digest(v) == digest for v in scene.views[1:]):
            raise InputError(
                f"all {len(scene)} pictures are identical, so there is no parallax to measure",
                remedy="give photos taken from different places",
            )


def _unknown_poses(run: Run) -> SfmResult:
    attempts = run_ladder(run)
    best = max(attempts, key=Attempt.score)
    if best.stats is None or best.model is None or best.stats.registered < run.config.min_views:
        stats = match_stats(run.pycolmap, attempts[0].database, len(run.scene))
        raise explain_failure(stats, [v.name for v in run.scene.views])
    since = time.monotonic()
    lenses = refine_model(
        run.pycolmap, best.model, best.lenses, run.progress, seed=run.config.seed, threads=run.config.threads
    )
    run.spend("adjustment", since)
    fixed = frozenset(k + 1 for k, lens in enumerate(best.lenses) if lens.fixed)
    best.stats = model_stats(best.model, len(run.scene), fixed)
    _refuse_impossible(run, best, lenses)
    return _finish(run, best, "unknown poses", attempts, lenses)


def _refuse_impossible(run: Run, best: Attempt, lenses: dict[int, LensUncertainty]) -> None:
    """Raise when the best model cannot be true, or its lens cannot be told from the scene."""
    assert best.stats is not None
    stats = best.stats
    worst = max((lens.focal for lens in lenses.values()), default=0.0)
    if not stats.bad_lens and worst <= run.config.max_focal_std and stats.angle_deg >= MIN_ANGLE_DEG:
        return
    facts = match_stats(run.pycolmap, best.database, len(run.scene))
    if facts.turned_on_the_spot or stats.angle_deg < MIN_ANGLE_DEG:
        raise explain_failure(facts, [v.name for v in run.scene.views])
    why = (
        "needs an impossible lens"
        if stats.bad_lens
        else f"leaves the focal length open by {100 * worst:.0f} %"
    )
    raise InputError(
        f"the pictures overlap too little to measure the scene: the best model places {stats.registered} of "
        f"{stats.total} pictures and {why}",
        remedy="give the camera's intrinsics, or take more pictures with more overlap",
    )


def _finish(
    run: Run, best: Attempt, mode: str, attempts: Sequence[Attempt], lenses: dict[int, LensUncertainty]
) -> SfmResult:
    since = time.monotonic()
    given = mode != "unknown poses"
    scene = scene_from_model(
        run.scene, best.model, best.lenses, run.progress,
        keep_frame=given, keep_poses=given and not run.config.refine_poses,
    )  # fmt: skip
    run.spend("output", since)
    fixed = frozenset(k + 1 for k, lens in enumerate(best.lenses) if lens.fixed)
    best.stats = model_stats(best.model, len(run.scene), fixed)
    best.fit = agreement(best.model, read_verified(run.pycolmap, best.database, len(run.scene)))
    warnings = best.weaknesses()
    if given and not run.config.refine_poses and best.fit.matches and best.fit.median_px > POSE_ERROR_PX:
        warnings.append(
            f"the given poses miss the matches by {best.fit.median_px:.1f} px (median); adjusting them would help"
        )
    report: dict[str, Any] = best.stats.as_dict() | {
        "explained": round(best.fit.explained, 4),
        "match_error_px": round(best.fit.median_px, 3) if best.fit.matches else None,
        "mode": mode,
        "chosen": best.recipe.name,
        "attempts": [a.as_dict() for a in attempts],
        "lenses": {str(k): v.as_dict() for k, v in lenses.items()},
        "seconds": {k: round(v, 2) for k, v in run.seconds.items()},
        "unplaced": [v.name for v in scene.views if not _placed(v)],
        "warnings": warnings,
    }
    write_report(run.folder / "report.json", report)
    return SfmResult(scene, report)


def _placed(view: View) -> bool:
    return view.camera.K is not None and view.camera.world_from_cam is not None
