"""Work items and the manifest that lists them: the same input and configuration always give the same ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, track
from relief3d.io.atomic import write_text
from relief3d.io.json_file import to_jsonable
from relief3d.io.whole_file import read_utf8
from relief3d.labelling.base import Labeler
from relief3d.labelling.sources import SceneSource

FORMAT = "relief3d-labels"
VERSION = 1


@dataclass(frozen=True)
class WorkItem:
    """Some views of one scene, to be labelled once.

    Attributes:
        id: hash of the inputs, the labeler, its version, options and weights, and the seed.
        scene: name in the source.
        views: names of the views.
        digests: of each view's used content.
    """

    id: str
    scene: str
    views: tuple[str, ...]
    digests: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """What is done to every item; host-free, so that it may stand in every provenance record."""

    labeler: str
    version: int
    options: dict[str, Any]
    weights: str | None
    seed: int

    @property
    def key(self) -> str:
        """Labeler name and a short hash: the name of the manifest."""
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in self.labeler)
        return f"{name}-{canonical_hash(asdict(self))[:12]}"


@dataclass(frozen=True)
class Plan:
    """All items of a run, in order.

    Attributes:
        recipe: what is done.
        source: JSON-ready description of where the scenes come from.
        items: unique by id.
        left_out: inputs that cannot even be planned, with the reason.
    """

    recipe: Recipe
    source: dict[str, Any]
    items: tuple[WorkItem, ...]
    left_out: tuple[str, ...] = ()


def canonical_hash(value: Any) -> str:
    """SHA-256 of JSON with sorted keys."""
    text = json.dumps(to_jsonable(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_of(labeler: Labeler, seed: int) -> Recipe:
    """The recipe of a labeler; hashes its weights."""
    options = to_jsonable(asdict(labeler.options))
    return Recipe(labeler.name, labeler.version, dict(options), labeler.weights_digest(), seed)


def item_id(recipe: Recipe, scene: str, views: Sequence[str], digests: Sequence[str]) -> str:
    """32 hexadecimal digits."""
    return canonical_hash([FORMAT, VERSION, asdict(recipe), scene, list(views), list(digests)])[:32]


def make_plan(
    source: SceneSource, labeler: Labeler, *, seed: int = 0, progress: Progress | None = None
) -> Plan:
    """List every item of a source for a labeler. Reads the bytes of all inputs once, for their digests.

    Raises:
        InputError: nothing can be labelled.
    """
    recipe = recipe_of(labeler, seed)
    items: list[WorkItem] = []
    left_out: list[str] = []
    for name in track(progress or SilentProgress(), "planning", list(source.names())):
        try:
            scene = source.open(name)
            left_out += [f"{name}: {note}" for note in source.left_out(scene)]
            for group in labeler.grouping.groups(len(scene)):
                views = [scene.views[i] for i in group]
                names = tuple(view.name for view in views)
                digests = tuple(source.digest(name, scene, view, labeler.uses) for view in views)
                items.append(WorkItem(item_id(recipe, name, names, digests), name, names, digests))
        except InputError as exc:
            left_out.append(f"{name}: {exc.message}")
    if not items:
        reason = f" ({left_out[0]})" if left_out else ""
        raise InputError(f"there is nothing to label{reason}")
    return Plan(recipe, source.describe(), tuple(items), tuple(left_out))


def write_manifest(path: Path, plan: Plan) -> Path:
    """JSON lines, atomically: a header, then one item per line. The same plan gives the same bytes."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "recipe": asdict(plan.recipe),
        "source": plan.source,
        "items": len(plan.items),
        "left_out": list(plan.left_out),
    }
    return write_text(path, "".join(_lines([header, *map(asdict, plan.items)])))


def _lines(values: Iterable[dict[str, Any]]) -> Iterable[str]:
    return (json.dumps(to_jsonable(value), sort_keys=True) + "\n" for value in values)


def read_manifest(path: Path) -> Plan:
    """Read what :func:`write_manifest` wrote.

    Raises:
        InputError: missing, damaged or of another version; names the line.
    """
    lines = read_utf8(path).splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as exc:
            raise InputError(f"line {number} is not a JSON object", path=path) from exc
        rows.append(row)
    header = rows[0] if rows else {}
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise InputError("is not a manifest of labels that this version reads", path=path)
    if header.get("items") != len(rows) - 1:
        raise InputError(f"names {header.get('items')} items and lists {len(rows) - 1}", path=path)
    try:
        items = tuple(
            WorkItem(str(r["id"]), str(r["scene"]), tuple(r["views"]), tuple(r["digests"])) for r in rows[1:]
        )
        return Plan(Recipe(**header["recipe"]), header["source"], items, tuple(header["left_out"]))
    except (KeyError, TypeError) as exc:
        raise InputError(f"lacks or misnames a field ({exc})", path=path) from exc
