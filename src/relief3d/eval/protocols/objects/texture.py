"""Preference test of SAM 3D on texture: votes between textures of one shape, win rate by picture set."""

from __future__ import annotations

from collections.abc import Sequence

from relief3d.core.seeding import derive_seed, numpy_generator
from relief3d.eval.protocols.base import Budget, Protocol
from relief3d.eval.protocols.objects.preferences import (
    PreferenceProtocol,
    Study,
    make_study,
    vote_on_all_pairs,
)
from relief3d.eval.published.sam3d import STAGES, TEXTURE
from relief3d.eval.published.table import PublishedRow

SETS = ("iso3d", "pref", "sa3dao", "lvis")
_COLOUR_ERROR = {"ours": 0.05, "baseline": 0.1, "weak": 0.2}
"""Root-mean-square colour error of the twin's simulated methods, share of full scale."""
_COLOUR_TOLERANCE = 0.1
_VERTICES = 256


def simulated_textures(budget: Budget, seed: int) -> Study:
    """Votes between colourings of one shape; utility = -RMSE of the colours / 0.1 (our choice, none is published)."""
    per_set, voters = (1, 3) if budget == "smoke" else (8, 3)
    votes = []
    for group in SETS:
        for index in range(per_set):
            target = f"{group}_{seed * 1000 + index:06d}"
            rng = numpy_generator(derive_seed(seed, "texture votes", group, index))
            utility = {}
            for method, error in _COLOUR_ERROR.items():
                noise = rng.normal(0, error * rng.uniform(0.5, 1.5), (_VERTICES, 3))
                utility[method] = -float((noise**2).mean() ** 0.5) / _COLOUR_TOLERANCE
            votes += vote_on_all_pairs(target, utility, voters, rng, group)
    return make_study(votes, "ours", "baseline")


def _rows() -> Sequence[PublishedRow]:
    return TEXTURE.select({s: s for s in SETS}) + STAGES.select({"win_rate": "texture_win_rate"})


PROTOCOLS: tuple[Protocol, ...] = (
    PreferenceProtocol(
        "preference_texture",
        "Preference for textures of one shape",
        "SAM 3D, texture win rates of the appendix and Table 4; objects.md 6.4, 6.5",
        _rows,
        simulated_textures,
        sets=SETS,
    ),
)
