"""Learned matchers by name."""

from __future__ import annotations

from pathlib import Path

import torch

from relief3d.core.errors import InputError
from relief3d.matching.base import Matcher
from relief3d.matching.learned import make_kornia_matcher, make_superpoint_matcher

LEARNED = ("superpoint-lightglue", "aliked-lightglue", "disk-lightglue")
LICENCE_NOTICE = {
    "superpoint-lightglue": "the SuperPoint weights may be used for non-commercial research only"
}


def make_matcher(name: str, weights: Path | None, device: torch.device | str = "cpu") -> Matcher:
    """A learned matcher with local weights; nothing is ever downloaded.

    Args:
        name: one of ``LEARNED``.
        weights: folder with the weights, see :mod:`relief3d.matching.learned` for its layout.
        device: where the network runs.

    Raises:
        InputError: for an unknown name or when weights are missing.
        MissingExtraError: when the library that holds the network is not installed.
    """
    if name not in LEARNED:
        raise InputError(f"unknown matcher '{name}'", remedy=f"choose sift or one of {', '.join(LEARNED)}")
    if weights is None or not Path(weights).is_dir():
        raise InputError(
            f"the matcher '{name}' needs a folder with its weights on this machine",
            path=weights,
            remedy="name that folder, or use sift, which needs no weights",
        )
    if name == "superpoint-lightglue":
        return make_superpoint_matcher(Path(weights), device)
    return make_kornia_matcher(name, Path(weights), device)
