"""One item from beginning to end, the same in this process, in a pool's worker and on a cluster."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError, MissingExtraError, ReliefError
from relief3d.core.provenance import versions
from relief3d.core.seeding import derive_seed
from relief3d.io.atomic import write_error
from relief3d.labelling.base import Labeler, LabelerSpec, Labels
from relief3d.labelling.claims import Claim, RunIdentity, scratch_prefix, take_claim
from relief3d.labelling.items import Recipe, WorkItem
from relief3d.labelling.registry import make_labeler
from relief3d.labelling.sources import SceneSource
from relief3d.labelling.store import RUN_FILE, Failure, FailureKind, LabelStore
from relief3d.labelling.writing import check_labels, empty_depth, write_labels, write_plain_json

State = Literal["done", "busy", "again", "failed"]


@dataclass(frozen=True)
class Job:
    """All a worker needs besides the items; plain values that cross process and machine boundaries.

    Attributes:
        root: output folder, on a disk that all workers see.
        source: opens the scenes.
        spec: builds the labeler.
        recipe: goes into every label's provenance.
        run: on whose behalf.
        attempts: how often an item that raises is tried in all.
        max_kills: so many dead workers quarantine an item.
    """

    root: Path
    source: SceneSource
    spec: LabelerSpec
    recipe: Recipe
    run: RunIdentity
    attempts: int = 3
    max_kills: int = 3


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt.

    Attributes:
        id: of the item.
        state: ``done``; ``busy``: another run holds it; ``again``: failed, to be tried again; ``failed``: for good.
        fresh: this attempt published the labels.
        seconds: spent.
    """

    id: str
    state: State
    fresh: bool = False
    seconds: float = 0.0


class Workbench:
    """A labeler with the last opened scene, kept between the items of one worker."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.store = LabelStore(job.root)
        self._labeler: Labeler = make_labeler(job.spec)
        self._scene: tuple[str, Scene] | None = None

    def execute(self, item: WorkItem) -> Outcome:
        """Label one item, unless it is done, held by another run, or has killed its workers too often."""
        began = time.monotonic()
        if self.store.is_done(item.id):
            return Outcome(item.id, "done")
        claim = take_claim(self.store.claims, item.id, self.job.run)
        if claim is None:
            return Outcome(item.id, "busy")
        try:
            if self.store.is_done(item.id):
                return Outcome(item.id, "done")
            earlier = self.store.failure(item.id)
            if earlier is not None and earlier.final:  # another run gave it up meanwhile
                return Outcome(item.id, "failed")
            kills = self.store.starts(self.job.run.token, item.id)
            if kills >= self.job.max_kills:
                reason = f"its worker was killed or ran over the time limit {kills} times"
                self._fail(item, "killed", reason, kills, final=True)
                return Outcome(item.id, "failed")
            self.store.mark_start(self.job.run.token, item.id)
            state, fresh = self._attempt(item, claim, began)
            self.store.clear_starts(self.job.run.token, item.id)
            return Outcome(item.id, state, fresh, time.monotonic() - began)
        finally:
            claim.release()

    def _attempt(self, item: WorkItem, claim: Claim, began: float) -> tuple[State, bool]:
        """What became of it, and whether this attempt published the labels."""

        def fill(folder: Path) -> None:
            try:
                write_labels(folder, item, self.job.recipe, labels)
            except (OSError, ReliefError):
                raise
            except Exception as exc:
                raise _UnwritableError from exc
            write_plain_json(folder / RUN_FILE, _circumstances(began))

        work = self._scratch()
        try:
            labels = self._label(item, work)
            check_labels(item, labels)
        except Exception as exc:
            return self._blame(item, claim, exc), False
        finally:
            shutil.rmtree(work, ignore_errors=True)
        # Errors of the disk from here on are not the item's: they end the run.
        try:
            fresh = self.store.publish(item.id, fill)
        except _UnwritableError as exc:
            return self._blame(item, claim, exc.__cause__ or exc), False
        self.store.forget_failure(item.id)
        return "done", fresh

    def _scratch(self) -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix=scratch_prefix(self.job.run.token)))
        except OSError as exc:
            raise write_error(exc.filename or tempfile.gettempdir(), exc) from exc

    def _blame(self, item: WorkItem, claim: Claim, exc: BaseException) -> State:
        """Write down that the labeler failed with an item, unless it was not the item's fault.

        Raises:
            ReliefError: the disk is full, or a package is missing: that would fail every item, so it ends the run.
        """
        if not claim.held():
            return "again"  # another run has taken over and cleared this one's files away, hence perhaps the error
        if (full := _disk_error(exc)) is not None:
            raise write_error(full.filename or tempfile.gettempdir(), full) from exc
        if isinstance(exc, MissingExtraError):
            raise exc
        if isinstance(exc, InputError):
            return self._fail(item, "input", str(exc), 1, final=True)
        earlier = self.store.failure(item.id)
        tried = 1 + (earlier.attempts if earlier is not None and not earlier.final else 0)
        text = f"{type(exc).__name__}: {exc}".splitlines()[0][:500]
        return self._fail(item, "error", text, tried, final=tried >= self.job.attempts)

    def _label(self, item: WorkItem, work: Path) -> Labels:
        scene = self._open(item.scene)
        by_name = {view.name: view for view in scene.views}
        if missing := [n for n in item.views if n not in by_name]:
            raise InputError(f"the view '{missing[0]}' is no longer there", remedy="run the command again")
        views = tuple(by_name[n] for n in item.views)
        for view, planned in zip(views, item.digests, strict=True):
            if self.job.source.digest(item.scene, scene, view, self._labeler.uses) != planned:
                raise InputError(
                    f"'{view.name}' has changed since the work was planned", remedy="run the command again"
                )
        part = scene.replace(views=views, sparse=None, points=None, mesh=None)
        with torch.no_grad():
            labels = self._labeler.label(part, seed=derive_seed(self.job.recipe.seed, item.scene), work=work)
        kept = {name: d for name, d in labels.depth.items() if not empty_depth(d.depth)}
        if len(kept) < len(labels.depth):
            empty = sorted(set(labels.depth) - set(kept))
            labels = replace(labels, depth=kept, facts={**labels.facts, "without_valid_depth": empty})
        return labels

    def _open(self, name: str) -> Scene:
        if self._scene is None or self._scene[0] != name:
            self._scene = None
            self._scene = (name, self.job.source.open(name))
        return self._scene[1]

    def _fail(self, item: WorkItem, kind: FailureKind, error: str, attempts: int, *, final: bool) -> State:
        self.store.record_failure(Failure(item.id, item.scene, item.views, kind, attempts, error, final))
        return "failed" if final else "again"


class _UnwritableError(Exception):
    """The labeler returned something that is no label."""


def _disk_error(exc: BaseException | None) -> OSError | None:
    """The error of a full or read-only disk that lies behind another one."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return exc
        if os.strerror(errno.ENOSPC) in str(exc):  # as libraries say it
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        exc = exc.__cause__ or exc.__context__
    return None


def _circumstances(began: float) -> dict[str, object]:
    """What may differ between two runs with equal labels; nothing that names a machine."""
    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 3),
        "versions": _versions(),
    }


@functools.cache
def _versions() -> dict[str, str]:
    """Looking them up takes longer than a small item."""
    return versions()
