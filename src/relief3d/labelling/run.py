"""Label a whole source: plan, work, account for every item."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress
from relief3d.io.atomic import prepare_output_folder
from relief3d.labelling.base import LabelerSpec
from relief3d.labelling.claims import (
    DEFAULT_LEASE,
    RunIdentity,
    disk_time,
    forget_dead_run,
    other_runs,
    registered_run,
    remove_claim_leftovers,
    remove_void_claims,
)
from relief3d.labelling.execute import Job, Outcome, Workbench
from relief3d.labelling.items import Plan, WorkItem, make_plan
from relief3d.labelling.pool import BUSY_SECONDS, Died, StartMethod, run_pool
from relief3d.labelling.registry import make_labeler
from relief3d.labelling.sources import DatasetScenes, FolderScenes, SceneSource
from relief3d.labelling.store import Failure, LabelStore

Cluster = Literal["none", "ray"]


@dataclass(frozen=True)
class LabelSettings:
    """How the work is done; nothing here changes a label.

    Attributes:
        workers: processes with one thread each; 0 labels in this process (no protection against crashes).
        attempts: how often an item that raises is tried in all, over several runs.
        max_kills: so many lost workers in one run quarantine an item.
        item_timeout: seconds after which the worker of an item is killed; counts as a kill. Local pool only.
        retry_failed: try items again that failed for good.
        lease: seconds without a heartbeat after which a run on another machine counts as dead.
        method: how worker processes start.
        cluster: ``ray``: work on the Ray cluster that this process can reach; workers is then the number of actors.
    """

    workers: int = 1
    attempts: int = 3
    max_kills: int = 3
    item_timeout: float | None = None
    retry_failed: bool = False
    lease: float = DEFAULT_LEASE
    method: StartMethod = "auto"
    cluster: Cluster = "none"

    def __post_init__(self) -> None:
        if self.workers < 0 or self.attempts < 1 or self.max_kills < 1 or self.lease <= 0:
            raise InputError(
                "labelling settings are out of range",
                remedy="workers >= 0, attempts >= 1, max_kills >= 1, lease > 0",
            )
        if self.item_timeout is not None:
            if not self.item_timeout > 0:
                raise InputError("a time limit per item must be positive")
            if self.cluster != "none" or self.workers == 0:
                raise InputError(
                    "a time limit per item holds for local worker processes only",
                    remedy="leave --item-timeout away, or use --workers 1 or more without --cluster",
                )


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        manifest: file that lists the items.
        items: number planned; ``done_before`` were complete at the start, ``done_now`` were labelled by this run,
            ``done_elsewhere`` meanwhile by another one.
        failures: items that are not done, in the order of the plan.
        left_out: inputs that could not even be planned.
        lost_workers: workers that died or ran over the time limit.
        seconds: spent on the work after planning.
    """

    manifest: Path
    items: int
    done_before: int
    done_now: int
    done_elsewhere: int
    failures: tuple[Failure, ...]
    left_out: tuple[str, ...]
    lost_workers: int
    seconds: float

    @property
    def complete(self) -> bool:
        """Every input has its labels."""
        return not self.failures and not self.left_out


def label_scenes(
    source: SceneSource,
    out: str | Path,
    spec: LabelerSpec,
    settings: LabelSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Label every item of a source; call it again after any interruption to go on.

    Items that are done are never touched again. Several calls, on this machine or on others that share the disk, may
    work on the same folder at the same time. With other options, weights or inputs the items have other ids, and the
    labels lie side by side in the same folder.

    Args:
        source: the scenes.
        out: output folder.
        spec: which labeler.
        settings: how the work is done.
        seed: of everything random in the labels.
        progress: one step per item.

    Returns:
        The account. Failed items are in it and do not raise.

    Raises:
        InputError: nothing to label, unknown labeler or option, the folder holds something else or cannot be written.
        MissingExtraError: the labeler or the cluster needs a package that is not installed.
        RunError: workers cannot be started.
    """
    settings = settings or LabelSettings()
    progress = progress or SilentProgress()
    store = LabelStore(out)
    inputs = [source.root] if isinstance(source, FolderScenes | DatasetScenes) else []
    prepare_output_folder(out, inputs=inputs, resumable=_is_ours)
    plan = make_plan(source, make_labeler(spec), seed=seed, progress=progress)
    manifest = store.save_plan(plan)
    began = time.monotonic()
    before = [item.id for item in plan.items if store.is_done(item.id)]
    open_items = _open_items(plan, store, set(before), settings.retry_failed)
    fresh = lost = 0
    if open_items or store.has_traces():
        with registered_run(store.runs, settings.lease) as run:
            _tidy(store, run)
            if open_items:
                job = Job(Path(out), source, spec, plan.recipe, run, settings.attempts, settings.max_kills)
                fresh, lost = _work(job, open_items, settings, progress)
                _tidy(store, run)  # what workers that were lost just now have left
    done = sum(store.is_done(item.id) for item in plan.items)
    return Summary(
        manifest,
        len(plan.items),
        len(before),
        fresh,
        done - len(before) - fresh,
        _failures(plan, store),
        plan.left_out,
        lost,
        time.monotonic() - began,
    )


def _is_ours(folder: Path) -> bool:
    return (folder / "manifests").is_dir()


def _open_items(plan: Plan, store: LabelStore, done: set[str], retry_failed: bool) -> list[WorkItem]:
    found = []
    for item in plan.items:
        if item.id in done:
            store.forget_failure(item.id)  # a kill between publishing and forgetting leaves one behind
            continue
        failure = store.failure(item.id)
        if failure is not None and failure.final:
            if not retry_failed:
                continue
            store.forget_failure(item.id)
        found.append(item)
    return found


def _tidy(store: LabelStore, run: RunIdentity) -> None:
    """Remove what killed runs left behind; temporary files only when nobody else can be writing them."""
    started = disk_time(run)
    alive, dead = other_runs(run)
    remove_void_claims(store.claims, run)
    for token in dead:
        forget_dead_run(token, run)
    if not alive:
        store.remove_leftovers(started)
        remove_claim_leftovers(store.claims, started)


def _work(
    job: Job, items: Sequence[WorkItem], settings: LabelSettings, progress: Progress
) -> tuple[int, int]:
    """Numbers of items labelled by this run and of lost workers."""
    fresh = lost = failed = 0
    progress.start("labelling", len(items))
    with contextlib.closing(_events(job, items, settings)) as events:
        for event in events:
            if isinstance(event, Died):
                lost += 1
                progress.message(
                    f"a worker was lost ({event.reason}) on {event.item.scene}: {event.item.views[0]}"
                )
                continue
            if event.state in ("done", "failed"):
                fresh += event.fresh
                failed += event.state == "failed"
                progress.advance(note=f"{failed} failed" if failed else "")
    progress.finish(f"{fresh} labelled" + (f", {failed} failed" if failed else ""))
    return fresh, lost


def _events(
    job: Job, items: Sequence[WorkItem], settings: LabelSettings
) -> Generator[Outcome | Died, None, None]:
    if settings.cluster == "ray":
        from relief3d.labelling.ray import run_ray

        return run_ray(job, items, max(1, settings.workers))
    if settings.workers == 0:
        return _run_here(job, items)
    return run_pool(job, items, settings.workers, item_timeout=settings.item_timeout, method=settings.method)


def _run_here(job: Job, items: Sequence[WorkItem]) -> Generator[Outcome, None, None]:
    bench = Workbench(job)
    waiting = list(items)
    while waiting:
        again: list[WorkItem] = []
        busy = 0
        for item in waiting:
            outcome = bench.execute(item)
            if outcome.state in ("again", "busy"):
                again.append(item)
                busy += outcome.state == "busy"
            yield outcome
        if busy and busy == len(again):
            time.sleep(BUSY_SECONDS)
        waiting = again


def _failures(plan: Plan, store: LabelStore) -> tuple[Failure, ...]:
    found = []
    for item in plan.items:
        if not store.is_done(item.id):
            unknown = Failure(item.id, item.scene, item.views, "error", 0, "was not tried", False)
            found.append(store.failure(item.id) or unknown)
    return tuple(found)


def format_summary(summary: Summary, out: Path, *, limit: int = 10) -> str:
    """The account for the console."""
    done = summary.items - len(summary.failures)
    if summary.complete and summary.done_before == summary.items:
        return f"complete: all {summary.items} items were labelled before ({out})"
    lines = [
        f"{done} of {summary.items} items are labelled: {summary.done_before} before, {summary.done_now} now"
        + (f", {summary.done_elsewhere} by another run" if summary.done_elsewhere else "")
    ]
    if summary.lost_workers:
        lines.append(f"{summary.lost_workers} workers were lost; their items were handed out again")
    for failure in summary.failures[:limit]:
        what = {"input": "cannot be labelled", "error": "failed", "killed": "quarantined"}[failure.kind]
        lines.append(f"  {what}: {failure.scene}: {failure.views[0]}: {failure.error}")
    if len(summary.failures) > limit:
        lines.append(f"  ... and {len(summary.failures) - limit} more; see {out / 'failures'}")
    for note in summary.left_out[:limit]:
        lines.append(f"  left out: {note}")
    if len(summary.left_out) > limit:
        lines.append(f"  ... and {len(summary.left_out) - limit} more left out")
    lines.append(f"manifest: {summary.manifest}")
    return "\n".join(lines)
