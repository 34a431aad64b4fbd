"""Configurations go to YAML and come back; wrong ones name the option."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import tyro

from relief3d.core.errors import InputError
from relief3d.pipelines.train.configuration import (
    changed,
    dump_yaml,
    flat,
    from_plain,
    option_names,
    parse_yaml,
    to_plain,
)
from relief3d.pipelines.train.registry import find_recipe, load_recipes
from relief3d.train.recipe import BUDGETS, SIZES

FROZEN = Path(__file__).parent / "options"


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    steps: int = 3


@dataclass(frozen=True)
class Outer:
    name: str = "a: b # 'c' é"
    mode: Literal["on", "off", "null"] = "on"
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[Inner, ...] = (Inner(), Inner(1e-9, -4))
    none: Inner | None = None
    some: Inner | None = field(default_factory=Inner)
    kinds: frozenset[str] = frozenset({"b", "a"})
    table: dict[Colour, int] = field(default_factory=lambda: {Colour.BLUE: 2})
    flag: bool = False
    empty: tuple[int, ...] = ()
    limit: float = float("inf")
    nested: tuple[tuple[int, int], ...] = ((1, 2), (3, 4))


def again(value: object) -> object:
    return from_plain(type(value), parse_yaml(dump_yaml(value)))


def test_every_recipe_survives_yaml_in_every_size_and_budget() -> None:
    recipes = load_recipes()
    assert len(recipes) >= 3
    seen = set()
    for recipe in recipes.values():
        for size in SIZES:
            for budget in BUDGETS:
                config = recipe.make(size, budget)
                assert again(config) == config, (recipe.name, size, budget)
                assert config.size == size
                seen.add((recipe.name, dump_yaml(config)))
    assert len(seen) == len(recipes) * len(SIZES) * len(BUDGETS)  # size and budget both matter


def test_all_kinds_of_values_survive() -> None:
    value = Outer(mode="off", none=Inner(0.1), some=None, flag=True, empty=(4,))
    assert again(value) == value
    assert again(Outer()) == Outer()
    assert type(again(Outer()).kinds) is frozenset  # type: ignore[attr-defined]
    assert Outer(mode="null") == again(Outer(mode="null"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("many: [{rat: 1}]", ["many[0].rat", "did you mean 'many[0].rate'"]),
        ("nam: x", ["'nam'", "did you mean 'name'"]),
        ("some: {steps: 1.5}", ["some.steps", "whole number", "1.5"]),
        ("some: {steps: true}", ["some.steps", "whole number"]),
        ("some: {rate: fast}", ["some.rate", "a number", "fast"]),
        ("flag: 1", ["flag", "true or false"]),
        ("mode: of", ["mode", "one of on, off, null"]),
        ("pair: [1]", ["pair", "a list of 2 values"]),
        ("pair: [1, x]", ["pair[1]", "a number"]),
        ("name: 3", ["name", "a text"]),
        ("table: {GREEN: 1}", ["table", "RED, BLUE"]),
        ("some: 3", ["some", "a mapping"]),
        ("name: null", ["name", "a text"]),
    ],
)
def test_wrong_values_name_the_option(text: str, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        from_plain(Outer, parse_yaml(text))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "a: &x [1]\nb: *x",
        "!!python/object/apply:os.system ['true']",
        "a: !!python/name:os.system",
        "a: [1",
        "[" * 3000,
        "? [1, 2]\n: 3",
        "x" * (2 << 20),
    ],
)
def test_yaml_that_is_not_plain_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_yaml(text)


def test_numbers_as_people_write_them() -> None:
    assert from_plain(Outer, parse_yaml("some: {rate: 1e-4}")).some == Inner(1e-4)
    assert from_plain(Outer, parse_yaml("some: {rate: 2}")).some == Inner(2.0)
    assert isinstance(from_plain(Outer, parse_yaml("limit: 2")).limit, float)


def test_changes_reach_nested_and_switched_off_options() -> None:
    value = changed(Outer(), ["none.rate=0.25", "some=null", "pair=[3, 4]", "name=x=y"])
    assert value.none == Inner(0.25) and value.some is None
    assert value.pair == (3, 4.0) and value.name == "x=y"
    for wrong in ("none.rte=1", "nothing", "=3", "many.rate=1"):
        with pytest.raises(InputError):
            changed(Outer(), [wrong])
    recipe = find_recipe("multiview-supervised").make("nano", "smoke")
    assert changed(recipe, ["train.ema.decay=0.5"]).train.ema.decay == 0.5
    with pytest.raises(InputError, match=r"did you mean 'train\.steps'"):
        changed(recipe, ["train.stps=1"])
    with pytest.raises(InputError, match=r"train\.ema.*decays in"):
        changed(recipe, ["train.ema.decay=7"])  # what a class refuses is said with the place


def test_flat_names() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


@pytest.mark.parametrize("kind", sorted({r.config.__name__ for r in load_recipes().values()}))
def test_the_list_of_options_is_frozen(kind: str) -> None:
    """A new option is added to the list on purpose; one that goes or changes its name breaks people's files."""
    config = next(r.config for r in load_recipes().values() if r.config.__name__ == kind)
    listed = (FROZEN / f"{kind}.txt").read_text().split()
    assert list(option_names(config)) == listed


def test_tyro_takes_the_classes() -> None:
    base = find_recipe("multiview-supervised").make("nano", "smoke")
    got = tyro.cli(type(base), default=base, args=["--train.steps", "7", "--losses.normals"])
    assert got == changed(base, ["train.steps=7", "losses.normals=true"])


def test_unknown_recipes_name_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'multiview-supervised'"):
        find_recipe("multiview-supervisd")
    with pytest.raises(InputError, match=r"there are .*multiview-supervised"):
        find_recipe("qqq")


def test_plain_values_of_strangers_are_refused() -> None:
    with pytest.raises(TypeError):
        to_plain(object())
