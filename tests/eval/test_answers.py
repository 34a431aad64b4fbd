"""Scores of answers: hand-worked values, parsing, errors."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relief3d.core.errors import InputError
from relief3d.eval.metrics.answers import (
    accuracy,
    mean_relative_accuracy,
    option_letter,
    option_words,
    parse_choice,
    parse_number,
    success_rate,
)


def test_mean_relative_accuracy_by_hand() -> None:
    assert mean_relative_accuracy(10, 10) == 1.0
    # 12 % off: below 0.50, 0.45, ..., 0.15 (eight of them), not below 0.10 and 0.05.
    assert mean_relative_accuracy(11.2, 10) == pytest.approx(0.8)
    assert mean_relative_accuracy(8.8, 10) == pytest.approx(0.8)
    assert mean_relative_accuracy(5.1, 10) == pytest.approx(0.1)
    assert mean_relative_accuracy(4.9, 10) == 0.0
    assert mean_relative_accuracy(20, 10) == 0.0


def test_the_limit_itself_does_not_count_but_can() -> None:
    assert mean_relative_accuracy(1.5, 1.0) == 0.0
    assert mean_relative_accuracy(1.5, 1.0, inclusive=True) == pytest.approx(0.1)
    assert mean_relative_accuracy(3, 4) == pytest.approx(
        0.5
    )  # an error of one quarter: 0.5, 0.45, 0.4, 0.35, 0.3
    assert mean_relative_accuracy(3, 4, inclusive=True) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("predicted", "truth", "strict", "inclusive"),
    [
        (0.9, 1.0, 0.8, 0.9),
        (1.45, 1.0, 0.1, 0.2),
        (3.3, 3.0, 0.8, 0.9),
        (21, 20, 0.9, 1.0),
        (0.7, 1.0, 0.4, 0.5),
    ],
)
def test_limits_are_met_exactly_by_decimal_answers(
    predicted: float, truth: float, strict: float, inclusive: float
) -> None:
    assert mean_relative_accuracy(predicted, truth) == pytest.approx(strict)
    assert mean_relative_accuracy(predicted, truth, inclusive=True) == pytest.approx(inclusive)


@given(st.floats(0.01, 1e4), st.floats(0.01, 1e4), st.floats(0.1, 10))
def test_mean_relative_accuracy_is_a_brute_force_count_and_ignores_the_unit(
    p: float, g: float, k: float
) -> None:
    ours = mean_relative_accuracy(p, g)
    error = abs(p - g) / g
    counts = [error < 1 - (0.5 + 0.05 * i) for i in range(10)]
    close = any(abs(error - (0.5 - 0.05 * i)) < 1e-9 for i in range(10))
    if not close:
        assert ours == pytest.approx(sum(counts) / 10)
        assert mean_relative_accuracy(k * p, k * g) == pytest.approx(ours)


def test_a_whole_number_beyond_all_floats_is_no_answer() -> None:
    assert math.isnan(parse_number(10**400))


def test_numbers_that_cannot_be() -> None:
    assert mean_relative_accuracy(math.nan, 3) == 0.0
    assert mean_relative_accuracy(math.inf, 3) == 0.0
    for truth in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="must be positive"):
            mean_relative_accuracy(1.0, truth)


@pytest.mark.parametrize(
    ("text", "number"),
    [("2.5", 2.5), ("about 2.5 m", 2.5), ("3.", 3.0), (".5", 0.5), ("-1", -1.0), ("1e2 cm", 100.0), (4, 4.0)],
)
def test_first_number_of_an_answer(text: object, number: float) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["none", "", None, True, ["3"]])
def test_no_number(text: object) -> None:
    assert math.isnan(parse_number(text))


OPTIONS = ("A. chair", "B. table", "C. a lamp", "D. left")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B. table", "B"), ("B) because", "B"), ("table", "B"), ("TABLE", "B"),
        ("a lamp", "C"), ("A", "A"), ("E", ""), ("chairs", ""), ("", ""), ("left", "D"), (None, ""), (2, ""),
    ],
)  # fmt: skip
def test_choices(text: object, letter: str) -> None:
    assert parse_choice(text, OPTIONS) == letter


def test_options_without_letters_take_their_place() -> None:
    assert [option_letter(o, i) for i, o in enumerate(("left", "right"))] == ["A", "B"]
    assert parse_choice("right", ("left", "right")) == "B"
    assert option_words("B. front-left") == "front-left"


def test_accuracy_and_success_rate() -> None:
    assert accuracy([True, False, True, True]) == 0.75
    assert success_rate(45, 50) == 90.0
    with pytest.raises(InputError, match="nothing to score"):
        accuracy([])
    for wrong in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(InputError, match="cannot have succeeded"):
            success_rate(*wrong)
