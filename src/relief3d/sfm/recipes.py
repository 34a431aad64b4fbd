"""The ladder of attempts: plain COLMAP first, then what helps weak sets, cheap steps before dear ones."""

from __future__ import annotations

from dataclasses import replace

from relief3d.sfm.config import FeatureRecipe, MapRecipe, MatchRecipe, Recipe, SfmConfig

DENSE_PEAK = 0.002
"""SIFT contrast threshold of the feature-rich attempts (default 0.0067): finds keypoints on weak texture."""


def ladder(config: SfmConfig, *, unknown_lens: bool, fixed_lens: bool, shared_lens: bool) -> list[Recipe]:
    """Attempts in the order they are tried.

    Args:
        config: the caller's options.
        unknown_lens: some focal length is a mere guess, so other guesses are worth a try.
        fixed_lens: all intrinsics are given.
        shared_lens: some views without given intrinsics share a lens.
    """
    first = FeatureRecipe(
        kind=config.features, max_features=config.max_features, max_image_size=config.max_image_size
    )
    rich = replace(first, max_features=2 * config.max_features, peak_threshold=DENSE_PEAK)
    affine = replace(rich, affine_shape=True, domain_size_pooling=True)
    relaxed = MapRecipe(
        min_matches=10, init_min_inliers=40, init_min_angle=6.0, pose_min_inliers=15, filter_min_angle=1.0
    )
    guided = MatchRecipe(guided=True)
    whole = MapRecipe(kind="global", min_matches=10)
    if config.mapper == "global":
        return [
            Recipe("global", first, MatchRecipe(), MapRecipe(kind="global")),
            Recipe("global, more features", rich, guided, whole),
        ][: 1 if config.effort == "single" else 2]
    steps = [
        Recipe("default", first),
        Recipe("relaxed", first, MatchRecipe(), relaxed),
        Recipe("more features, guided", rich, guided, relaxed),
        Recipe("affine features, guided", affine, guided, relaxed),
    ]
    if config.features != "sift":
        steps = steps[:2]
    if config.mapper == "auto":
        steps.append(Recipe("global", steps[-1].features, steps[-1].matches, whole))
    if unknown_lens:
        for factor in (0.8, 1.8):
            mapping = replace(relaxed, focal_factor=factor)
            steps.append(
                Recipe(f"focal guess {factor}", rich if config.features == "sift" else first, guided, mapping)
            )
    if shared_lens and not fixed_lens:
        steps.append(
            Recipe("one lens per picture", first, MatchRecipe(), replace(relaxed, camera_per_view=True))
        )
    return steps[:1] if config.effort == "single" else steps
