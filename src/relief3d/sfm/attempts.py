"""One attempt after the other until the model is sound."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from relief3d.core.contract import Scene
from relief3d.core.errors import RunError
from relief3d.core.progress import Progress
from relief3d.matching.base import Matcher
from relief3d.sfm import mapping
from relief3d.sfm.config import Recipe, SfmConfig
from relief3d.sfm.consistency import Agreement, agreement, drop_unsupported, read_verified
from relief3d.sfm.database import write_features
from relief3d.sfm.lenses import Lens, group_lenses
from relief3d.sfm.matches import match_database
from relief3d.sfm.model import ModelStats, model_stats
from relief3d.sfm.pairs import choose_pairs
from relief3d.sfm.recipes import ladder
from relief3d.sfm.work_files import digest, lens_key

WEAK_EXPLAINED = 0.8
"""Share of verified matches a sound model explains at least."""

PATIENCE = 3
"""Attempts in a row that place no further view before the ladder is left."""


@dataclass
class Run:
    """What the attempts of one estimate share."""

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
        """Add the time since ``since`` to a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - since

    @property
    def out_of_time(self) -> bool:
        """No further attempt should start."""
        return time.monotonic() - self.began > self.config.time_budget


@dataclass
class Attempt:
    """One finished attempt; ``model`` is COLMAP's reconstruction or None."""

    recipe: Recipe
    lenses: list[Lens]
    database: Path
    seconds: float = 0.0
    model: Any | None = None
    stats: ModelStats | None = None
    fit: Agreement | None = None
    dropped: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        facts: dict[str, Any] = {"name": self.recipe.name, "seconds": round(self.seconds, 2)}
        if self.stats is None or self.fit is None:
            return facts | {"registered": 0}
        return (
            facts
            | self.stats.as_dict()
            | {"explained": round(self.fit.explained, 4), "dropped": len(self.dropped)}
        )

    @property
    def placed(self) -> int:
        """Views placed by a model with a believable lens."""
        return 0 if self.stats is None or self.stats.bad_lens else self.stats.registered

    def weaknesses(self) -> list[str]:
        """What is suspicious, in words; empty for a sound model."""
        if self.stats is None or self.fit is None:
            return ["no model"]
        found = self.stats.weaknesses()
        if self.fit.explained < WEAK_EXPLAINED:
            found.append(f"the cameras contradict {100 * (1 - self.fit.explained):.0f} % of the matches")
        return found

    def score(self) -> tuple[float, ...]:
        """Order of preference: real lens, more views, more matches explained by well-fitting points."""
        if self.stats is None or self.fit is None:
            return (-1.0,)
        fitted = self.stats.observations / max(self.stats.reprojection_px, 0.1)
        return (
            0.0 if self.stats.bad_lens else 1.0,
            float(self.stats.registered),
            float(self.fit.explained >= WEAK_EXPLAINED),
            self.fit.explained**2 * fitted,
        )


def prepare(run: Run, recipe: Recipe) -> tuple[list[Lens], Path]:
    """Lenses and the database with verified matches; shared by recipes that differ in mapping only."""
    views, config = run.scene.views, run.config
    lenses = group_lenses(
        views, per_view=recipe.mapping.camera_per_view, focal_factor=recipe.mapping.focal_factor
    )
    key = digest(run.fingerprints, asdict(recipe.features))
    keypoints = run.folder / f"keypoints-{key}.db"
    since = time.monotonic()
    write_features(
        run.pycolmap, keypoints, views, lenses, recipe.features, run.progress,
        threads=config.threads, matcher=run.matcher,
    )  # fmt: skip
    run.spend("features", since)
    since = time.monotonic()
    pairs = choose_pairs(
        run.pycolmap, keypoints, len(views),
        kind=config.pairs, ordered=run.scene.ordered, overlap=config.overlap, can_probe=run.matcher is None,
    )  # fmt: skip
    key = digest(key, lens_key(lenses), asdict(recipe.matches), pairs, config.seed)
    matched = run.folder / f"matches-{key}.db"
    match_database(
        run.pycolmap, keypoints, matched, views, lenses, pairs, recipe.matches, run.progress,
        seed=config.seed, threads=config.threads, matcher=run.matcher,
    )  # fmt: skip
    run.spend("matching", since)
    return lenses, matched


def _models(
    run: Run, recipe: Recipe, lenses: Sequence[Lens], database: Path, time_limit: float | None
) -> list[Any]:
    config = run.config
    if recipe.mapping.kind == "incremental":
        return mapping.map_incremental(
            run.pycolmap, database, recipe.mapping, lenses, run.progress,
            views=len(run.scene), seed=config.seed, threads=config.threads, time_limit=time_limit,
        )  # fmt: skip
    copy = run.folder / "global.db"
    shutil.copyfile(database, copy)
    try:
        return mapping.map_global(
            run.pycolmap, copy, recipe.mapping, lenses, run.progress, seed=config.seed, threads=config.threads
        )
    except RunError as exc:
        run.progress.message(f"global mapping gave up: {exc.message}")
        return []
    finally:
        copy.unlink(missing_ok=True)


def make_attempt(run: Run, recipe: Recipe, time_limit: float | None = None) -> Attempt:
    """Build the models of one recipe, take wrong views out, keep the best model."""
    began = time.monotonic()
    lenses, database = prepare(run, recipe)
    since = time.monotonic()
    fixed = frozenset(k + 1 for k, lens in enumerate(lenses) if lens.fixed)
    verified = read_verified(run.pycolmap, database, len(run.scene))
    best = Attempt(recipe, lenses, database)
    for model in _models(run, recipe, lenses, database, time_limit):
        dropped = drop_unsupported(model, verified)
        if model.num_reg_images() < 2 or model.num_points3D() == 0:
            continue
        stats, fit = model_stats(model, len(run.scene), fixed), agreement(model, verified)
        found = Attempt(recipe, lenses, database, 0.0, model, stats, fit, dropped)
        best = max(best, found, key=Attempt.score)
    run.spend("mapping", since)
    best.seconds = time.monotonic() - began
    return best


def run_ladder(run: Run) -> list[Attempt]:
    """Attempts in order until one is sound or the time is used up."""
    lenses = group_lenses(run.scene.views)
    steps = ladder(
        run.config,
        unknown_lens=not all(lens.prior_focal for lens in lenses),
        fixed_lens=all(lens.fixed for lens in lenses),
        shared_lens=any(len(lens.views) > 1 and not lens.fixed for lens in lenses),
    )
    attempts: list[Attempt] = []
    since_gain = 0
    for recipe in steps:
        if attempts and run.out_of_time:
            run.progress.message("no further attempt: the time budget is used up")
            break
        before = max((a.placed for a in attempts), default=0)
        attempts.append(make_attempt(run, recipe, run.config.time_budget if attempts else None))
        weak = attempts[-1].weaknesses()
        since_gain = 0 if attempts[-1].placed > before else since_gain + 1
        if run.config.effort != "max" and (not weak or (before > 0 and since_gain >= PATIENCE)):
            break
        if recipe is not steps[-1] and weak:
            run.progress.message(f"attempt '{recipe.name}': {'; '.join(weak)}")
    return attempts
