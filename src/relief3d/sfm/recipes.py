"""The ladder of attempts: plain COLMAP first, then what helps weak sets, cheap steps before dear ones."""

from __future__ import annotations

from dataclasses import replace

from relief3d.sfm.config import FeatureRecipe, MapRecipe, Recipe, SfmConfig

DENSE_PEAK = 0.002
"""SIFT contrast threshold of the feature-rich attempts (default 0.0067): finds keypoints on weak texture."""

FOCAL_GUESSES = (0.8, 1.8)
"""First focal lengths, in units of the longer side, tried besides COLMAP's 1.2."""


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
    sift = config.features == "sift"
    rich = replace(first, max_features=2 * config.max_features, peak_threshold=DENSE_PEAK) if sift else first
    affine = replace(rich, affine_shape=True, domain_size_pooling=True)
    relaxed = MapRecipe(
        min_matches=10, init_min_inliers=40, init_min_angle=6.0, pose_min_inliers=15, filter_min_angle=1.0
    )
    whole = MapRecipe(kind="global", min_matches=10)
    if config.mapper == "global":
        steps = [
            Recipe("global", first, mapping=MapRecipe(kind="global")),
            Recipe("global, relaxed", rich, mapping=whole),
        ]
        return steps[:1] if config.effort == "single" else steps
    steps = [Recipe("default", first), Recipe("relaxed", first, mapping=relaxed)]
    if sift:
        steps.append(Recipe("more features", rich, mapping=relaxed))
    if config.mapper == "auto":
        steps.append(Recipe("global", rich, mapping=whole))
    if sift:
        steps.append(Recipe("affine features", affine, mapping=relaxed))
    if unknown_lens:
        for factor in FOCAL_GUESSES:
            steps.append(
                Recipe(f"focal guess {factor}", first, mapping=replace(relaxed, focal_factor=factor))
            )
    if shared_lens and not fixed_lens:
        steps.append(Recipe("one lens per picture", first, mapping=replace(relaxed, camera_per_view=True)))
    return steps[:1] if config.effort == "single" else steps
