"""Cameras and sparse points from pictures: the attempts, the choice of the best model, the failure reasons."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from relief3d.core.contract import Scene, View
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress, SilentProgress
from relief3d.matching.base import Matcher
from relief3d.matching.registry import make_matcher
from relief3d.sfm import colmap, mapping
from relief3d.sfm.config import MapRecipe, Recipe, SfmConfig
from relief3d.sfm.convert import scene_from_model
from relief3d.sfm.database import match_database, write_features
from relief3d.sfm.diagnosis import explain_failure, match_stats
from relief3d.sfm.lenses import Lens, group_lenses
from relief3d.sfm.model import ModelStats, model_stats, score
from relief3d.sfm.pairs import choose_pairs
from relief3d.sfm.recipes import ladder
from relief3d.sfm.work_files import digest, lens_key, pixel_digest, view_fingerprint, write_report


@dataclass(frozen=True)
class SfmResult:
    """What :func:`estimate_cameras` returns.

    Attributes:
        scene: the input with cameras and ``sparse``; views that could not be placed keep no pose.
        report: JSON-ready facts: ``registered``, ``total``, ``points``, ``track_length``, ``reprojection_px``,
            ``angle_deg``, ``mode``, ``chosen``, ``attempts``, ``seconds``, ``unplaced``, ``warnings``.
    """

    scene: Scene
    report: dict[str, Any]


@dataclass
class _Run:
    """State shared by the attempts of one estimate."""

    pycolmap: ModuleType
    scene: Scene
    config: SfmConfig
    folder: Path
    progress: Progress
    matcher: Matcher | None
    fingerprints: list[list[object]]
    began: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, name: str, since: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - since


@dataclass
class _Attempt:
    """One finished attempt."""

    recipe: Recipe
    lenses: list[Lens]
    database: Path
    model: Any | None
    stats: ModelStats | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"name": self.recipe.name, "seconds": round(self.seconds, 2)}
        if self.stats is not None:
            facts |= self.stats.as_dict()
        return facts


def estimate_cameras(
    scene: Scene,
    config: SfmConfig | None = None,
    workdir: Path | str = "sfm",
    progress: Progress | None = None,
) -> SfmResult:
    """Find intrinsics and poses of a scene's views, and sparse points.

    What is known is used: given intrinsics (``K_source == "given"``) stay fixed, focal lengths from EXIF start the
    solver, and when every view has intrinsics and a pose only points are triangulated (and the cameras adjusted
    with ``refine_poses``). When some views are posed, the others are added to them in the given world.

    Args:
        scene: views with pictures; lens distortion is part of the camera, pictures are used as they are.
        config: options.
        workdir: folder for work files; an interrupted call with the same input goes on from them.
        progress: receives stages and steps.

    Returns:
        The scene with cameras and points, and a report.

    Raises:
        InputError: when no model can be built, with the likely reason.
        MissingExtraError: when pycolmap is not installed.
    """
    config = config or SfmConfig()
    progress = progress or SilentProgress()
    pycolmap = colmap.load()
    _check_input(scene)
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    matcher = None if config.features == "sift" else make_matcher(config.features, config.weights)
    run = _Run(pycolmap, scene, config, folder, progress, matcher, [view_fingerprint(v) for v in scene.views])
    if len(scene.posed) == len(scene):
        return _known_poses(run)
    if len(scene.posed) >= 2:
        return _some_poses(run)
    return _unknown_poses(run)


def _check_input(scene: Scene) -> None:
    if not scene.views:
        raise InputError("there are no pictures to estimate cameras from")
    if len(scene) == 1:
        raise InputError(
            f"one picture ('{scene.views[0].name}') is not enough to estimate cameras",
            remedy="give at least two, better ten or more, taken from different places",
        )
    if len(scene) <= 20 and len({pixel_digest(v) for v in scene.views}) == 1:
        raise InputError(
            f"all {len(scene)} pictures are identical, so there is no parallax to measure",
            remedy="give photos taken from different places",
        )


def _prepare(run: _Run, recipe: Recipe) -> tuple[list[Lens], Path]:
    """Database with verified matches for a recipe; built once, shared by recipes that differ in mapping only."""
    views, config = run.scene.views, run.config
    lenses = group_lenses(
        views, per_view=recipe.mapping.camera_per_view, focal_factor=recipe.mapping.focal_factor
    )
    key = digest(run.fingerprints, lens_key(lenses), asdict(recipe.features))
    features = run.folder / f"features-{key}.db"
    since = time.monotonic()
    write_features(
        run.pycolmap, features, views, lenses, recipe.features, run.progress,
        threads=config.threads, matcher=run.matcher,
    )  # fmt: skip
    run.spend("features", since)
    since = time.monotonic()
    pairs = choose_pairs(
        run.pycolmap, features, len(views),
        kind=config.pairs, ordered=run.scene.ordered, overlap=config.overlap, can_probe=run.matcher is None,
    )  # fmt: skip
    match_key = digest(key, asdict(recipe.matches), pairs, config.seed)
    matched = run.folder / f"matches-{match_key}.db"
    match_database(
        run.pycolmap, features, matched, pairs, recipe.matches, run.progress,
        seed=config.seed, threads=config.threads, matcher=run.matcher, views=views,
    )  # fmt: skip
    run.spend("matching", since)
    return lenses, matched


def _attempt(run: _Run, recipe: Recipe) -> _Attempt:
    """Build the models of one recipe and keep the best."""
    began = time.monotonic()
    lenses, database = _prepare(run, recipe)
    since = time.monotonic()
    fixed = frozenset(k + 1 for k, lens in enumerate(lenses) if lens.fixed)
    total, config = len(run.scene), run.config
    if recipe.mapping.kind == "global":
        copy = run.folder / "global.db"
        copy.write_bytes(database.read_bytes())
        try:
            models = mapping.map_global(
                run.pycolmap,
                copy,
                recipe.mapping,
                lenses,
                run.progress,
                seed=config.seed,
                threads=config.threads,
            )
        except RunError as exc:
            run.progress.message(f"global mapping gave up: {exc.message}")
            models = []
    else:
        models = mapping.map_incremental(
            run.pycolmap, database, recipe.mapping, lenses, run.progress,
            views=total, seed=config.seed, threads=config.threads, time_limit=config.time_budget,
        )  # fmt: skip
    run.spend("mapping", since)
    ranked = sorted(
        ((model_stats(m, total, fixed), m) for m in models), key=lambda sm: score(sm[0]), reverse=True
    )
    stats, model = ranked[0] if ranked else (None, None)
    return _Attempt(recipe, lenses, database, model, stats, time.monotonic() - began)


def _unknown_poses(run: _Run) -> SfmResult:
    lenses = group_lenses(run.scene.views)
    steps = ladder(
        run.config,
        unknown_lens=not all(lens.prior_focal for lens in lenses),
        fixed_lens=all(lens.fixed for lens in lenses),
        shared_lens=any(len(lens.views) > 1 and not lens.fixed for lens in lenses),
    )
    attempts: list[_Attempt] = []
    for recipe in steps:
        if attempts and time.monotonic() - run.began > run.config.time_budget:
            run.progress.message("no further attempt: the time budget is used up")
            break
        attempts.append(_attempt(run, recipe))
        stats = attempts[-1].stats
        if run.config.effort != "max" and stats is not None and not stats.weaknesses():
            break
        if recipe is not steps[-1]:
            reason = "no model" if stats is None else "; ".join(stats.weaknesses()) or "comparing"
            run.progress.message(f"attempt '{recipe.name}': {reason}")
    best = max((a for a in attempts if a.stats is not None), key=lambda a: score(a.stats), default=None)  # type: ignore[arg-type]
    if best is None or best.stats is None:
        raise _failure(run, attempts)
    _refuse_bad(run, best, attempts)
    return _finish(run, best.model, best.lenses, best.stats, "unknown poses", attempts, best.recipe.name)


def _failure(run: _Run, attempts: Sequence[_Attempt]) -> InputError:
    stats = match_stats(run.pycolmap, attempts[-1].database, len(run.scene))
    return explain_failure(stats, [v.name for v in run.scene.views])


def _refuse_bad(run: _Run, best: _Attempt, attempts: Sequence[_Attempt]) -> None:
    assert best.stats is not None
    stats = best.stats
    if stats.registered < run.config.min_views:
        raise _failure(run, attempts)
    if stats.bad_lens:
        raise InputError(
            "the pictures overlap too little to tell the lens from the scene: the best model needs an impossible lens",
            remedy="give the camera's intrinsics, or take more pictures with more overlap",
        )


def _known_poses(run: _Run) -> SfmResult:
    recipe = Recipe("known poses", mapping=MapRecipe(filter_min_angle=1.0, two_view_tracks=True))
    lenses, database = _prepare(run, recipe)
    since = time.monotonic()
    model = mapping.triangulate(
        run.pycolmap, database, run.scene.views, lenses, recipe.mapping, run.progress,
        seed=run.config.seed, threads=run.config.threads,
    )  # fmt: skip
    run.spend("mapping", since)
    stats = model_stats(model, len(run.scene), frozenset(range(1, len(lenses) + 1)))
    return _finish(run, model, lenses, stats, "known poses", [], recipe.name)


def _some_poses(run: _Run) -> SfmResult:
    recipe = Recipe("continue from given poses")
    lenses, database = _prepare(run, recipe)
    since = time.monotonic()
    config = run.config
    model = mapping.triangulate(
        run.pycolmap, database, run.scene.views, lenses, recipe.mapping, run.progress,
        seed=config.seed, threads=config.threads,
    )  # fmt: skip
    start = run.folder / "given"
    start.mkdir(exist_ok=True)
    model.write(start)
    models = mapping.map_incremental(
        run.pycolmap, database, recipe.mapping, lenses, run.progress,
        views=len(run.scene), seed=config.seed, threads=config.threads, start=start,
    )  # fmt: skip
    run.spend("mapping", since)
    if models and models[0].num_reg_images() >= model.num_reg_images():
        model = models[0]
    stats = model_stats(
        model, len(run.scene), frozenset(k + 1 for k, lens in enumerate(lenses) if lens.fixed)
    )
    return _finish(run, model, lenses, stats, "some poses", [], recipe.name)


def _finish(
    run: _Run,
    model: Any,
    lenses: list[Lens],
    stats: ModelStats,
    mode: str,
    attempts: Sequence[_Attempt],
    chosen: str,
) -> SfmResult:
    since = time.monotonic()
    given = mode != "unknown poses"
    refine = given and run.config.refine_poses
    if refine:
        raise InputError("refining given poses is not available yet")
    scene = scene_from_model(
        run.scene, model, lenses, run.progress,
        keep_frame=given, keep_poses=given and not refine, refined_intrinsics=run.config.refine_intrinsics,
    )  # fmt: skip
    run.spend("output", since)
    unplaced = [v.name for v in scene.views if not _placed(v)]
    report: dict[str, Any] = stats.as_dict() | {
        "mode": mode,
        "chosen": chosen,
        "attempts": [a.as_dict() for a in attempts],
        "seconds": {k: round(v, 2) for k, v in run.seconds.items()},
        "unplaced": unplaced,
        "warnings": stats.weaknesses(),
    }
    write_report(run.folder / "report.json", report)
    return SfmResult(scene, report)


def _placed(view: View) -> bool:
    return view.camera.K is not None and view.camera.world_from_cam is not None
