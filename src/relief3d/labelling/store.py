"""The folder of labels. What is done, failed or interrupted is read off the files; there is no database.

* ``manifests/<labeler>-<hash>.jsonl``: what is to be done.
* ``items/<ab>/<id>/``: the labels of an item with ``label.json``; the folder appears complete, by one rename. That
  rename is the done mark. ``run.json`` beside it holds what may differ between two runs (time, seconds, versions).
* ``failures/<id>.json``: the errors of an item that is not done.
* ``runs/``, ``claims/``: who works on what at present; see :mod:`relief3d.labelling.claims`.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from relief3d.core.errors import InputError, ReliefError
from relief3d.io.atomic import TEMP_PREFIX, atomic_folder, write_error, write_text
from relief3d.labelling.items import Plan, Recipe, read_manifest, write_manifest

LABEL_FILE = "label.json"
RUN_FILE = "run.json"
PLANNING_SECONDS = 600.0
"""Temporary files of planning that are older than this are left over."""

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

    def has_traces(self) -> bool:
        """Whether some run is at work, or was killed."""
        return any(any(p.iterdir()) for p in (self.runs, self.claims) if p.is_dir())

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

    def publish(self, item_id: str, fill: Callable[[Path], None]) -> bool:
        """Let ``fill`` write into a temporary folder that becomes the item's folder.

        Returns:
            Whether it did: of several writers the first one wins, and the others' labels are dropped.

        Raises:
            ReliefError: it cannot be written.
        """
        target = self.item_folder(item_id)
        if target.is_dir() and not self.is_done(item_id):
            try:
                target.rmdir()
            except OSError as exc:
                if not self.is_done(item_id):
                    why = f"holds something else than labels with '{LABEL_FILE}'"
                    raise InputError(why, path=target, remedy="delete this folder") from exc
        try:
            with atomic_folder(target) as temporary:
                fill(temporary)
        except ReliefError:
            if not self.is_done(item_id):
                raise
            return False
        return True

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
        """Delete temporary files older than ``before`` (file-system time); call it while no other run is alive.

        A run that is only planning is not registered yet, so what planning writes must be ``PLANNING_SECONDS`` older.
        """
        items = self.root / "items"
        written = [
            self.root / "failures",
            *([p for p in items.iterdir() if p.is_dir()] if items.is_dir() else []),
        ]
        planned = [self.root, self.root / "manifests"]
        places = [(p, before) for p in written] + [(p, before - PLANNING_SECONDS) for p in planned]
        return sum(_remove_older(folder, limit) for folder, limit in places)


def _remove_older(folder: Path, limit: float) -> int:
    count = 0
    for path in folder.glob(f"{TEMP_PREFIX}*"):
        try:
            if path.stat().st_mtime >= limit:
                continue
            if path.is_dir() and not path.is_symlink():
                # Should its writer still be about to publish it, it does so before this or not at all.
                trash = path.with_name(f"{TEMP_PREFIX}trash-{uuid.uuid4().hex[:12]}")
                path.replace(trash)
                shutil.rmtree(trash, ignore_errors=True)
            else:
                path.unlink()
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise write_error(path, exc) from exc
        count += 1
    return count
