"""Learned matchers by name."""

from __future__ import annotations

from pathlib import Path

from relief3d.core.errors import InputError
from relief3d.matching.base import Matcher

LEARNED = ("superpoint-lightglue", "aliked-lightglue", "disk-lightglue")


def make_matcher(name: str, weights: Path | None) -> Matcher:
    """A learned matcher with local weights; nothing is ever downloaded.

    Args:
        name: one of ``LEARNED``.
        weights: folder with the weights.

    Raises:
        InputError: for an unknown name or when weights are missing.
        MissingExtraError: when the library that holds the network is not installed.
    """
    if name not in LEARNED:
        raise InputError(f"unknown matcher '{name}'", remedy=f"choose sift or one of {', '.join(LEARNED)}")
    if weights is None or not Path(weights).exists():
        raise InputError(
            f"the matcher '{name}' needs its weights on this machine",
            path=weights,
            remedy="give their folder, or use --features sift, which needs none",
        )
    raise InputError(f"the matcher '{name}' cannot be loaded", remedy="use sift")
