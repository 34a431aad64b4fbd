"""Matches and their verification, in a COLMAP database inside the work folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from relief3d.core.contract import View
from relief3d.core.progress import Progress, stage
from relief3d.matching.base import Features, Matcher
from relief3d.sfm.colmap import quiet, run_interruptible
from relief3d.sfm.config import MatchRecipe
from relief3d.sfm.database import (
    image_id,
    load_checked,
    open_database,
    publish,
    relens,
    view_file_name,
)
from relief3d.sfm.lenses import Lens

PAIR_BLOCK = 64
"""Pairs matched between two progress reports."""


def matching_options(pycolmap: ModuleType, recipe: MatchRecipe, seed: int, threads: int) -> tuple[Any, Any]:
    """COLMAP's matching and verification options."""
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = threads
    matching.use_gpu = False
    matching.guided_matching = recipe.guided
    matching.sift.max_ratio = recipe.max_ratio
    return matching, verification_options(pycolmap, recipe, seed)


def verification_options(pycolmap: ModuleType, recipe: MatchRecipe, seed: int) -> Any:
    """COLMAP's two-view geometry options."""
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = recipe.min_inliers
    options.ransac.max_error = recipe.max_error_px
    options.ransac.random_seed = seed
    return options


def match_database(
    pycolmap: ModuleType,
    keypoints: Path,
    path: Path,
    views: Sequence[View],
    lenses: Sequence[Lens],
    pairs: Sequence[tuple[int, int]],
    recipe: MatchRecipe,
    progress: Progress,
    *,
    seed: int,
    threads: int = 1,
    matcher: Matcher | None = None,
) -> None:
    """Match and verify pairs of views; the result is a database with everything the mapper needs.

    Args:
        pycolmap: the module.
        keypoints: database written by :func:`relief3d.sfm.database.write_features`.
        path: target database, complete when the file exists.
        views: all views.
        lenses: what their intrinsics are and which they share.
        pairs: view indices i < j.
        recipe: matching settings.
        progress: one step per pair.
        seed: of the verification's random samples.
        threads: of COLMAP.
        matcher: a learned matcher, or None for SIFT.
    """
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    if not part.exists():
        relens(pycolmap, keypoints, part, views, lenses)
    with quiet(pycolmap), stage(progress, "matching", len(pairs)):
        todo = _unmatched(pycolmap, part, pairs)
        if len(pairs) > len(todo):
            progress.advance(len(pairs) - len(todo), "reused")
        if matcher is not None:
            _match_learned(pycolmap, part, todo, matcher, views, recipe, progress, seed)
        else:
            _match_sift(pycolmap, part, todo, recipe, progress, seed, threads)
    publish(part, path)


def _unmatched(pycolmap: ModuleType, path: Path, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    database = open_database(pycolmap, path)
    try:
        return [(i, j) for i, j in pairs if not database.exists_two_view_geometry(image_id(i), image_id(j))]
    finally:
        database.close()


def _blocks(items: Sequence[tuple[int, int]], size: int) -> Iterable[Sequence[tuple[int, int]]]:
    return (items[k : k + size] for k in range(0, len(items), size))


def _pair_file(path: Path, block: Sequence[tuple[int, int]]) -> Path:
    listing = path.with_name(path.name + ".pairs")
    listing.write_text("".join(f"{view_file_name(i)} {view_file_name(j)}\n" for i, j in block))
    return listing


def _match_sift(
    pycolmap: ModuleType,
    path: Path,
    pairs: Sequence[tuple[int, int]],
    recipe: MatchRecipe,
    progress: Progress,
    seed: int,
    threads: int,
) -> None:
    matching, verification = matching_options(pycolmap, recipe, seed, threads)
    for block in _blocks(pairs, PAIR_BLOCK):
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = str(_pair_file(path, block))

        def work(token: Any, pairing: Any = pairing) -> None:
            pycolmap.match_image_pairs(
                path, matching, pairing, verification, pycolmap.Device.cpu, cancellation_token=token
            )

        run_interruptible(pycolmap, work, seed=seed, what="matching")
        progress.advance(len(block))
    path.with_name(path.name + ".pairs").unlink(missing_ok=True)


def _match_learned(
    pycolmap: ModuleType,
    path: Path,
    pairs: Sequence[tuple[int, int]],
    matcher: Matcher,
    views: Sequence[View],
    recipe: MatchRecipe,
    progress: Progress,
    seed: int,
) -> None:
    cache: dict[int, Features] = {}

    def features(index: int) -> Features:
        if index not in cache:
            image, mask = load_checked(views[index])
            found = matcher.extract(image)
            cache[index] = found if mask is None else found.inside(mask)
        return cache[index]

    for block in _blocks(pairs, PAIR_BLOCK):
        database = open_database(pycolmap, path)
        try:
            for i, j in block:
                if not database.exists_matches(image_id(i), image_id(j)):
                    found = matcher.match(features(i), features(j))
                    database.write_matches(image_id(i), image_id(j), found.cpu().numpy().astype(np.uint32))
                progress.advance()
        finally:
            database.close()
        listing = _pair_file(path, block)
        options = verification_options(pycolmap, recipe, seed)

        def verify(token: Any, listing: Path = listing, options: Any = options) -> None:
            pycolmap.verify_matches(path, listing, options, cancellation_token=token)

        run_interruptible(pycolmap, verify, seed=seed, what="verifying matches")
    path.with_name(path.name + ".pairs").unlink(missing_ok=True)
