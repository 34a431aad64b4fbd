"""Finds the recipes: every method that has any names them in ``RECIPES`` of its module ``recipes``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping

import relief3d.methods as package
from relief3d.core.errors import InputError
from relief3d.train.recipe import Recipe


def load_recipes() -> Mapping[str, Recipe]:
    """All recipes by name, sorted."""
    found: dict[str, Recipe] = {}
    for info in pkgutil.iter_modules(package.__path__):
        name = f"{package.__name__}.{info.name}.recipes"
        if not info.ispkg or importlib.util.find_spec(name) is None:
            continue
        for recipe in importlib.import_module(name).RECIPES:
            if recipe.name in found:
                raise RuntimeError(f"two recipes have the name {recipe.name}")
            found[recipe.name] = recipe
    return dict(sorted(found.items()))


def find_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        InputError: there is none; names the nearest, or all.
    """
    recipes = load_recipes()
    if name in recipes:
        return recipes[name]
    near = difflib.get_close_matches(name, recipes, n=1, cutoff=0.5)
    remedy = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(recipes)}"
    raise InputError(f"there is no recipe '{name}'" if name else "name a recipe", remedy=remedy)


def list_recipes() -> str:
    """One line per recipe."""
    return "\n".join(f"{recipe.name}: {recipe.title}" for recipe in load_recipes().values())
