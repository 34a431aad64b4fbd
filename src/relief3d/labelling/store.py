"""The folder of labels. What is done, failed or interrupted is read off the files; there is no database.

* ``manifests/<labeler>-<hash>.jsonl``: what is to be done.
* ``items/<ab>/<id>/``: the labels of an item with ``label.json``; the folder appears complete, by one rename. That
  rename is the done mark. ``run.json`` beside it holds what may differ between two runs (time, seconds, versions).
* ``failures/<id>.json``: the errors of an item that is not done.
* ``runs/``, ``claims/``: who works on what at present; see :mod:`relief3d.labelling.claims`.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from relief3d.core.errors import InputError, ReliefError
from relief3d.io.atomic import TEMP_PREFIX, atomic_folder, remove_leftovers, write_error, write_text
from relief3d.labelling.items import Plan, Recipe, read_manifest, write_manifest

LABEL_FILE = "label.json"
RUN_FILE = "run.json"

FailureKind = Literal["input", "error", "killed"]


@dataclass(frozen=True)
class Failure:
    """Why an item is not done.

    Attributes:
        id, scene, views: the item.
        kind: ``input``: it can never be labelled; ``error``: the labeler failed; ``killed``: it killed its worker, or
            ran over the time limit, again and again (quarantined).
        attempts: how often it was tried.
        error: the last error in one line.
        final: no further attempt is made unless asked for.
    """

    id: str
    scene: str
    views: tuple[str, ...]
    kind: FailureKind
    attempts: int
    error: str
    final: bool


class LabelStore:
    """Paths and states below one output folder. Every method is safe against other processes doing the same."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def runs(self) -> Path:
        """Folder of the runs at work."""
        return self.root / "runs"

    @property
    def claims(self) -> Path:
        """Folder of the items at work."""
        return self.root / "claims"

    def item_folder(self, item_id: str) -> Path:
        """Where the labels of an item are, or will be."""
        return self.root / "items" / item_id[:2] / item_id

    def manifest_path(self, recipe: Recipe) -> Path:
        """The manifest of a recipe."""
        return self.root / "manifests" / f"{recipe.key}.jsonl"

    def save_plan(self, plan: Plan) -> Path:
        """Write the manifest; a manifest with the same content is left alone."""
        path = self.manifest_path(plan.recipe)
        if path.is_file():
            try:
                if read_manifest(path) == plan:
                    return path
            except InputError:
                pass  # damaged by something else than this program; it is derived, so it is written anew
        return write_manifest(path, plan)

    def plans(self) -> dict[str, Plan]:
        """All manifests by key."""
        folder = self.root / "manifests"
        paths = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
        return {p.stem: read_manifest(p) for p in paths if not p.name.startswith(TEMP_PREFIX)}

    def is_done(self, item_id: str) -> bool:
        """Whether the item's labels are there, complete."""
        return (self.item_folder(item_id) / LABEL_FILE).is_file()

    @contextmanager
    def publish(self, item_id: str) -> Iterator[Path]:
        """Yield a temporary folder that becomes the item's folder; the first of several writers wins.

        Raises:
            ReliefError: it cannot be written.
        """
        try:
            with atomic_folder(self.item_folder(item_id)) as temporary:
                yield temporary
        except ReliefError:
            if not self.is_done(item_id):
                raise

    def failure(self, item_id: str) -> Failure | None:
        """The failure record of an item, or None."""
        path = self._failure_path(item_id)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return Failure(**{**values, "views": tuple(values["views"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def record_failure(self, failure: Failure) -> None:
        """Write a failure record."""
        text = json.dumps(asdict(failure), indent=1, sort_keys=True) + "\n"
        write_text(self._failure_path(failure.id), text)

    def forget_failure(self, item_id: str) -> None:
        """Remove a failure record, if there is one."""
        self._failure_path(item_id).unlink(missing_ok=True)

    def _failure_path(self, item_id: str) -> Path:
        return self.root / "failures" / f"{item_id}.json"

    def starts(self, run: str, item_id: str) -> int:
        """How often this run has begun an item and not come to an end with it: the kills so far."""
        try:
            return self._start_path(run, item_id).stat().st_size
        except FileNotFoundError:
            return 0

    def mark_start(self, run: str, item_id: str) -> None:
        """Note that a worker begins with an item."""
        path = self._start_path(run, item_id)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                stream.write(b"x")
        except OSError as exc:
            raise write_error(path, exc) from exc

    def clear_starts(self, run: str, item_id: str) -> None:
        """Note that the worker came to an end, whether with labels or with an error."""
        self._start_path(run, item_id).unlink(missing_ok=True)

    def _start_path(self, run: str, item_id: str) -> Path:
        return self.runs / run / item_id

    def remove_leftovers(self, before: float) -> int:
        """Delete temporary files older than ``before`` (file-system time); call it while no other run is alive."""
        count = 0
        folders = [self.root, self.root / "manifests", self.root / "failures"]
        items = self.root / "items"
        folders += [p for p in items.iterdir() if p.is_dir()] if items.is_dir() else []
        for folder in folders:
            found = [p for p in folder.iterdir() if p.name.startswith(TEMP_PREFIX)] if folder.is_dir() else []
            if found and all(_older(p, before) for p in found):
                count += remove_leftovers(folder)
        return count


def _older(path: Path, before: float) -> bool:
    try:
        return path.stat().st_mtime < before
    except OSError as exc:
        return exc.errno == errno.ENOENT
