"""What a run's folder says about itself: ``config.yaml``, and whether it may be continued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relief3d.core.errors import InputError
from relief3d.io.atomic import TEMP_PREFIX, write_error, write_text
from relief3d.pipelines.train.configuration import (
    changed,
    dump_yaml,
    flat,
    from_plain,
    merged,
    read_yaml,
    to_plain,
)
from relief3d.pipelines.train.registry import find_recipe
from relief3d.train.checkpoint import find_checkpoint
from relief3d.train.fingerprint import MAY_CHANGE, first_difference
from relief3d.train.recipe import BUDGETS, SIZES, Budget, Recipe, Size

CONFIG_FILE = "config.yaml"
_HEAD = ("recipe", "size", "budget", "seed", "commit", "config")


@dataclass(frozen=True)
class RunSpec:
    """A run, resolved.

    Attributes:
        recipe: what.
        size: of the network.
        budget: of the run.
        config: with all changes.
        commit: of the code that the run began with; None outside a checkout.
    """

    recipe: Recipe
    size: Size
    budget: Budget
    config: Any
    commit: str | None

    @property
    def seed(self) -> int:
        """Of everything random."""
        return int(self.config.train.seed)

    def header(self) -> dict[str, Any]:
        """Recipe, size, budget, seed and commit."""
        return {
            "recipe": self.recipe.name,
            "size": self.size,
            "budget": self.budget,
            "seed": self.seed,
            "commit": self.commit,
        }


def resolve(
    recipe: str,
    size: Size | None,
    budget: Budget | None,
    file: Path | None,
    changes: tuple[str, ...],
    commit: str | None,
) -> RunSpec:
    """The run that a command asks for: the recipe's options, then those of a file, then single changes.

    Args:
        recipe: name; empty: the file says.
        size: None: the file's, or nano.
        budget: None: the file's, or smoke.
        file: a ``config.yaml`` of a run, or one with a part of its ``config``.
        changes: ``option=value``.
        commit: of the code.

    Raises:
        InputError: unknown recipe or option, a value of another type, the file is of another recipe, size or budget,
            or an option says another size or network than the command.
    """
    stored = {} if file is None else _read_head(file)
    name = recipe or str(stored.get("recipe", ""))
    for key, asked in (("recipe", recipe), ("size", size), ("budget", budget)):
        if asked and stored.get(key, asked) != asked:
            raise InputError(
                f"is of the {key} '{stored[key]}', not '{asked}'",
                path=file,
                remedy=f"leave --{key} away, or use a file with the changed options alone"
                if key != "recipe"
                else "name the file's recipe, or none",
            )
    chosen = find_recipe(name)
    size = size or stored.get("size", "nano")
    budget = budget or stored.get("budget", "smoke")
    assert size is not None
    assert budget is not None
    config = chosen.make(size, budget)
    if "config" in stored:
        config = from_plain(chosen.config, merged(to_plain(config), stored["config"]), path=file)
    inner = stored.get("config", {}).get("train")
    own = inner.get("seed") if isinstance(inner, dict) else None
    if None not in (own, stored.get("seed")) and own != stored["seed"]:
        raise InputError(
            f"says seed {stored['seed']} and train.seed {own}",
            path=file,
            remedy="change both, or use --set train.seed=...",
        )
    if stored.get("seed") is not None:
        config = replace(config, train=replace(config.train, seed=stored["seed"]))
    spec = RunSpec(chosen, size, budget, changed(config, changes), commit)
    _check_names(spec)
    return spec


def _check_names(spec: RunSpec) -> None:
    """What the run is called is what it is: size and network are the recipe's."""
    made = spec.recipe.make(spec.size, spec.budget)
    for name, remedy in (("size", "use --size"), ("network", "use another recipe (relief3d train --list)")):
        is_now, named = getattr(spec.config, name, None), getattr(made, name, None)
        if is_now != named:
            raise InputError(f"the option '{name}' is '{is_now}', but the run's is '{named}'", remedy=remedy)


def read_run(folder: Path) -> RunSpec:
    """The run that a folder holds.

    Raises:
        InputError: it holds none, or its configuration is damaged or of another version.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise InputError("holds no training run", path=folder, remedy="start one with -o")
    stored = _read_head(file)
    missing = [key for key in _HEAD if key not in stored]
    if missing:
        raise InputError(f"lacks '{missing[0]}'", path=file, remedy="restore it, or train in another folder")
    recipe = find_recipe(stored["recipe"])
    config = from_plain(recipe.config, stored["config"], path=file)
    return RunSpec(recipe, stored["size"], stored["budget"], config, stored["commit"])


def make_folder(folder: Path) -> None:
    """Make an empty folder where there is none.

    Raises:
        InputError: it is a file, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, not a folder", path=folder, remedy="choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise write_error(folder, exc) from exc


def claim(folder: Path, spec: RunSpec, say: Callable[[str], None]) -> RunSpec:
    """Make a folder the one of a run, or recognise it; returns the run with the commit that it began with.

    Options that decide neither batches nor losses (logging, workers, when to save) may have changed; as long as
    nothing was saved, every option may.

    Raises:
        InputError: the folder holds something else; the first option that differs is named.
    """
    make_folder(folder)
    if (folder / CONFIG_FILE).is_file():
        old = read_run(folder)
        difference = first_difference(_identity(old), _identity(spec))
        if difference is not None and find_checkpoint(folder) is None:
            say(f"nothing was saved in {folder} yet, so the run there begins anew: {difference}")
            write_spec(folder, spec)
            return spec
        if difference is not None:
            raise InputError(
                f"holds a run with other settings: {difference}",
                path=folder,
                remedy="use another folder, or the old value",
            )
        if old.commit != spec.commit:
            say(f"the run began with commit {old.commit}, and goes on with {spec.commit}")
        spec = replace(spec, commit=old.commit)
        if to_plain(old.config) != to_plain(spec.config):
            write_spec(folder, spec)
        return spec
    if folder.is_dir() and any(not p.name.startswith(TEMP_PREFIX) for p in folder.iterdir()):
        raise InputError(
            "is not empty and holds no training run", path=folder, remedy="choose another folder"
        )
    write_spec(folder, spec)
    return spec


def write_spec(folder: Path, spec: RunSpec) -> None:
    """Write ``config.yaml``."""
    write_text(folder / CONFIG_FILE, dump_yaml({**spec.header(), "config": to_plain(spec.config)}))


def _identity(spec: RunSpec) -> dict[str, Any]:
    config = flat(to_plain(spec.config))
    kept = {
        name: value
        for name, value in config.items()
        if not (name.startswith("train.") and name.split(".")[1] in MAY_CHANGE)
    }
    return {"recipe": spec.recipe.name, "size": spec.size, "budget": spec.budget, **kept}


def _read_head(file: Path) -> dict[str, Any]:
    """A configuration file with its head checked; one without a head is taken for the options alone."""
    stored = read_yaml(file)
    if not set(stored) & set(_HEAD):
        return {"config": stored}
    import difflib

    for key in stored:
        if key not in _HEAD:
            near = difflib.get_close_matches(str(key), _HEAD, n=1, cutoff=0.5)
            remedy = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(_HEAD)}"
            remedy += (
                f"; options stand below 'config' in a file with '{next(k for k in stored if k in _HEAD)}'"
            )
            raise InputError(f"there is no key '{key}'", path=file, remedy=remedy)
    kinds: dict[str, Any] = {
        "recipe": str,
        "size": Size,
        "budget": Budget,
        "seed": int | None,
        "commit": str | None,
        "config": dict[str, Any],
    }
    return {key: from_plain(kinds[key], value, key, path=file) for key, value in stored.items()}


__all__ = [
    "BUDGETS",
    "CONFIG_FILE",
    "SIZES",
    "RunSpec",
    "claim",
    "make_folder",
    "read_run",
    "resolve",
    "write_spec",
]
