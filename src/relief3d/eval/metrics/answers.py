"""Scores of answers to questions, and of episodes: mean relative accuracy, accuracy, success rate.

Sources: VSI-Bench as MetricAnything Tab 11 uses it (metric_depth 9.9); LIBERO for success rates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction

from relief3d.core.errors import InputError

MRA_STEPS = 10
"""Confidence thresholds 0.50, 0.55, ..., 0.95."""

_LETTER = re.compile(r"^\W*([A-Za-z])(?:[\W_]|$)")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def mean_relative_accuracy(predicted: float, truth: float, *, inclusive: bool = False) -> float:
    """Share of the ten thresholds theta in {0.50, ..., 0.95} with |predicted - truth| / truth < 1 - theta.

    Args:
        predicted: the answer; one that is not finite scores 0.
        truth: positive.
        inclusive: count equality, as VSI-Bench's own script does; the paper's formula is strict.

    Returns:
        In [0, 1], a multiple of 0.1.

    Raises:
        InputError: the truth is not a positive number.
    """
    if not (math.isfinite(truth) and truth > 0):
        raise InputError(f"the true number must be positive, got {truth:g}")
    if not math.isfinite(predicted):
        return 0.0
    # Answers are decimal texts: 0.9 for 1.0 is wrong by exactly 10 %, which binary fractions would miss.
    p, y = Fraction(repr(float(predicted))), Fraction(repr(float(truth)))
    error = abs(p - y) / y
    limits = [Fraction(50 - 5 * i, 100) for i in range(MRA_STEPS)]
    hits = sum(error <= limit if inclusive else error < limit for limit in limits)
    return hits / MRA_STEPS


def parse_number(answer: object) -> float:
    """The first number in an answer; NaN where there is none ("about 2.5 m" -> 2.5).

    Args:
        answer: a number or a text; English thousands separators are not numbers.
    """
    if isinstance(answer, bool):
        return math.nan
    if isinstance(answer, int | float):
        try:
            return float(answer)
        except OverflowError:  # a whole number beyond all floats
            return math.nan
    found = _NUMBER.search(answer) if isinstance(answer, str) else None
    return float(found.group()) if found else math.nan


def parse_choice(answer: object, options: Sequence[str]) -> str:
    """The letter an answer chooses; empty where it chooses none.

    Args:
        answer: "B", "(b)", "B. chair", or the option's own words.
        options: as shown, each "A. words" or just the words, in the order of the letters.
    """
    if not isinstance(answer, str):
        return ""
    letters = [option_letter(option, i) for i, option in enumerate(options)]
    text = answer.strip().lower()
    for letter, option in zip(letters, options):
        if text in (option.strip().lower(), option_words(option).lower()):
            return letter
    found = _LETTER.match(answer.strip())
    chosen = found.group(1).upper() if found else ""
    return chosen if not letters or chosen in letters else ""


def option_letter(option: str, index: int) -> str:
    """The letter an option begins with ("B. chair" -> "B"), else the one of its place."""
    found = re.match(r"^\s*([A-Z])[.):]", option)
    return found.group(1) if found else chr(ord("A") + index)


def option_words(option: str) -> str:
    """An option without its letter ("B. chair" -> "chair")."""
    return re.sub(r"^\s*[A-Z][.):]\s*", "", option).strip()


def accuracy(hits: Sequence[bool]) -> float:
    """Share of right answers or successful episodes, in [0, 1].

    Raises:
        InputError: there are none.
    """
    if not hits:
        raise InputError("there is nothing to score: no answers")
    return sum(map(bool, hits)) / len(hits)


def success_rate(successes: int, episodes: int) -> float:
    """Successful episodes in %.

    Raises:
        InputError: no episodes, or counts that cannot be.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise InputError(f"{successes} of {episodes} episodes cannot have succeeded")
    return 100.0 * successes / episodes
