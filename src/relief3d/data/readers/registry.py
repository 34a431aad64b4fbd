"""Finds the readers by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from relief3d.core.errors import InputError
from relief3d.data.readers.scene_set import DatasetCard, SceneSet

Opener = Callable[..., SceneSet]

_READERS: Mapping[str, tuple[str, str]] = {
    "aria_synthetic": ("aria_synthetic", "open_aria_synthetic"),
    "arkitscenes": ("arkitscenes", "open_arkitscenes"),
    "bedlam2": ("bedlam2", "open_bedlam2"),
    "blendedmvs": ("blendedmvs", "open_blendedmvs"),
    "dl3dv": ("dl3dv", "open_dl3dv"),
    "droid": ("droid", "open_droid"),
    "egocentric10k": ("egocentric10k", "open_egocentric10k"),
    "generic": ("generic", "open_generic"),
    "glb_objects": ("glb_objects", "open_glb_objects"),
    "hypersim": ("hypersim", "open_hypersim"),
    "kitti": ("kitti", "open_kitti"),
    "moge": ("moge", "open_moge"),
    "mvs_synth": ("mvs_synth", "open_mvs_synth"),
    "nuscenes": ("nuscenes", "open_nuscenes"),
    "omniworld_game": ("omniworld", "open_omniworld_game"),
    "realestate10k": ("realestate10k", "open_realestate10k"),
    "scannet": ("scannet", "open_scannet"),
    "scannetpp": ("scannetpp", "open_scannetpp"),
    "tartanair": ("tartanair", "open_tartanair"),
}
"""By name: module in this package, and its function."""


def dataset_names() -> tuple[str, ...]:
    """All names that :func:`open_dataset` takes."""
    return tuple(_READERS)


def dataset_card(name: str) -> DatasetCard:
    """What a data set is.

    Raises:
        InputError: no such name; names the nearest.
    """
    card: DatasetCard = _module(name).CARD
    return card


def dataset_cards() -> list[DatasetCard]:
    """The cards of all data sets, by name."""
    return [dataset_card(name) for name in _READERS]


def cards_markdown() -> str:
    """The tables of docs/datasets.md: what every data set is, and how its files are read."""
    rows = [
        "| name | data set | licence (a note, no advice) | views carry | metres |",
        "|---|---|---|---|---|",
    ]
    for card in dataset_cards():
        unit = "yes" if card.metric else "no"
        rows.append(f"| `{card.name}` | {card.title} | {card.licence} | {', '.join(card.gives)} | {unit} |")
    parts = ["\n".join(rows)]
    for card in dataset_cards():
        lines = [
            f"### {card.title} (`{card.name}`)",
            "",
            "```text",
            card.layout,
            "```",
            "",
            card.conventions,
            "",
        ]
        lines += [f"Splits: {', '.join(card.splits) or 'none'}."]
        lines += (
            ["", "Open or unconfirmed:", "", *(f"- {point}" for point in card.open_points)]
            if card.open_points
            else []
        )
        lines += ["", "Described at:", "", *(f"- {source}" for source in card.sources)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def open_dataset(name: str, root: str | Path, **options: Any) -> SceneSet:
    """A data set by name.

    Args:
        name: one of :func:`dataset_names`.
        root: the folder it was unpacked to.
        options: ``split`` and the reader's own; see its ``open_<dataset>``.

    Raises:
        InputError: no such data set or option (names the nearest), or the folder does not hold it.
    """
    opener: Opener = getattr(_module(name), _READERS[name][1])
    allowed = [key for key in inspect.signature(opener).parameters if key != "root"]
    for option in options:
        if option not in allowed:
            raise _unknown(f"the reader of {name} has no option", option, allowed)
    return opener(root, **options)


def _module(name: str) -> Any:
    if name not in _READERS:
        raise _unknown("there is no data set called", name, list(_READERS))
    return importlib.import_module(f"relief3d.data.readers.{_READERS[name][0]}")


def _unknown(what: str, name: str, known: list[str]) -> InputError:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.4)
    remedy = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(known)}"
    return InputError(f"{what} '{name}'", remedy=remedy)
