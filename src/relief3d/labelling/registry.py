"""Labelers by name, and their options from text."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from relief3d.core.errors import InputError
from relief3d.labelling.base import Labeler, LabelerSpec


@dataclass(frozen=True)
class Entry:
    """A labeler on the list.

    Attributes:
        place: ``module:class``; the class takes its options and a device name.
        gives: what it labels, in a few words.
        needs: what must be there besides the pictures.
    """

    place: str
    gives: str
    needs: str = ""


_HERE = "relief3d.labelling.labelers."
LABELERS: dict[str, Entry] = {
    "transformers-depth": Entry(
        _HERE + "transformers_depth:TransformersDepth",
        "monocular depth (and field of view) by a network of transformers: Depth Pro, Depth Anything, ...",
        "extra 'hub'; weights: model=NAME or folder",
    ),
    "multiview": Entry(
        _HERE + "multiview:Multiview",
        "depth, cameras and confidence by relief3d's multi-view networks: VGGT, pi3, Pi3X, Reliev3R",
        "model=FILE of weights, or a name of 'relief3d models list'",
    ),
    "own-metric": Entry(
        _HERE + "own_metric:OwnMetric",
        "metric depth by relief3d's own networks: a teacher told part of the raw depth, or a student; checked by it",
        "views with depth (teacher); model=NAME of 'relief3d models list' or FILE of weights",
    ),
    "moge": Entry(
        _HERE + "moge:MogeFolder",
        "MoGe / MoGe-2 depth and field of view from files in MoGe's layouts",
        "folder=FOLDER with depth.exr or depth.png per picture",
    ),
    "correspondences": Entry(
        _HERE + "correspondences:Correspondences",
        "matched keypoints linked to tracks over all views of a scene, verified by epipolar geometry",
        "extra 'sfm'; learned features also weights=FOLDER",
    ),
    "tracks-lk": Entry(
        _HERE + "lk_tracks:LkTracks",
        "corners followed through windows of views (pyramidal Lucas-Kanade), checked there and back, verified",
        "pictures in order",
    ),
    "tracks-cotracker": Entry(
        _HERE + "cotracker:CoTracker",
        "points followed through windows of views by CoTracker, verified by epipolar geometry",
        "the package cotracker and checkpoint=FILE",
    ),
    "masks-sam": Entry(
        _HERE + "sam_masks:SamMasks",
        "segments of each picture by SAM through transformers",
        "extra 'hub'; weights: model=NAME or folder",
    ),
    "sfm-cameras": Entry(
        _HERE + "sfm_cameras:SfmCameras",
        "intrinsics, poses and sparse points of a scene by structure from motion",
        "extra 'sfm'",
    ),
    "procedural-relative": Entry(
        _HERE + "procedural:ProceduralRelative",
        "true depth with an exactly documented corruption, for experiments with weak labels",
        "views with depth",
    ),
}


def find_labeler(name: str) -> type[Any]:
    """The class of a labeler; a name ``module:class`` stands for a class of the user's.

    Raises:
        InputError: unknown, with the nearest names.
    """
    place = LABELERS[name].place if name in LABELERS else name
    if ":" not in place:
        near = difflib.get_close_matches(name, LABELERS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"unknown labeler '{name}'", remedy=f"{hint}relief3d label --list shows them")
    module, _, attribute = place.partition(":")
    try:
        return cast("type[Any]", getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as exc:
        raise InputError(f"the labeler '{name}' cannot be imported ({exc})") from exc


def make_labeler(spec: LabelerSpec) -> Labeler:
    """Build a labeler.

    Raises:
        InputError: unknown labeler or option.
    """
    kind = find_labeler(spec.name)
    labeler: Labeler = kind(_options_type(kind)(**spec.options), spec.device)
    return labeler


def _options_type(kind: type[Any]) -> type[Any]:
    hint = typing.get_type_hints(kind.__init__).get("options")
    if hint is None or not dataclasses.is_dataclass(hint):
        raise InputError(f"the labeler {kind.__name__} does not say which options it takes")
    return cast("type[Any]", hint)


def parse_options(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Options of a labeler from ``key=value`` texts, typed by its options dataclass.

    Raises:
        InputError: unknown option (with the nearest name) or a value of another type.
    """
    options = _options_type(find_labeler(name))
    hints = typing.get_type_hints(options)
    names = [f.name for f in dataclasses.fields(options)]
    out: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.replace("-", "_")
        if not equals:
            raise InputError(f"'{text}' is not an option", remedy="write KEY=VALUE")
        if key not in names:
            near = difflib.get_close_matches(key, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names) or 'none'}"
            raise InputError(f"the labeler '{name}' has no option '{key}'", remedy=hint)
        out[key] = _value(name, key, value, hints[key])
    options(**out)  # its own checks speak now, not in a worker
    return out


def _value(name: str, key: str, text: str, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    choices = typing.get_args(kind)
    if origin is typing.Literal:
        if text not in choices:
            raise InputError(f"{key} of '{name}' is one of {', '.join(map(str, choices))}, not '{text}'")
        return text
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        kind = next(c for c in choices if c is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError) as exc:
        raise InputError(f"{key} of '{name}' must be a {kind.__name__}, not '{text}'") from exc
    return Path(text) if kind is Path else text


def format_list() -> str:
    """All labelers with what they give, what they need, and their options."""
    lines = []
    for name, entry in LABELERS.items():
        lines.append(f"{name}: {entry.gives}")
        if entry.needs:
            lines.append(f"    needs: {entry.needs}")
        fields = dataclasses.fields(_options_type(find_labeler(name)))
        if fields:
            lines.append(f"    options: {', '.join(f'{f.name}={_default(f)}' for f in fields)}")
    return "\n".join(lines)


def _default(field: Any) -> str:
    return "?" if field.default is dataclasses.MISSING else str(field.default)
