"""From the options of ``relief3d label`` to a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress
from relief3d.labelling.base import LabelerSpec
from relief3d.labelling.registry import format_list, parse_options
from relief3d.labelling.run import LabelSettings, format_summary, label_scenes
from relief3d.labelling.sources import DatasetScenes, FolderScenes, SceneSource
from relief3d.pipelines.label.config import LabelConfig
from relief3d.pipelines.label.quality import quality_report


def list_labelers() -> str:
    """All labelers with what they give, need and offer."""
    return format_list()


def run_label(
    source: Path, out: Path, labeler: str, options: Sequence[str], config: LabelConfig, progress: Progress
) -> tuple[str, bool]:
    """Label an input; returns the account for the console and whether everything has its labels.

    Raises:
        InputError: nothing to label, unknown labeler or option, a folder that cannot be used.
        RunError: workers cannot be started, labels cannot be written.
    """
    spec = LabelerSpec(labeler, parse_options(labeler, options), config.device)
    settings = LabelSettings(
        workers=_workers(config.device) if config.workers is None else config.workers,
        attempts=config.attempts,
        max_kills=config.max_kills,
        item_timeout=config.item_timeout,
        retry_failed=config.retry_failed,
        lease=config.lease,
        cluster=config.cluster,
    )
    scenes = _scenes(source, config)
    summary = label_scenes(scenes, out, spec, settings, seed=config.seed, progress=progress)
    report = quality_report(out)
    text = format_summary(summary, out)
    return (text if report is None else f"{text}\n{report}"), summary.complete


def _scenes(source: Path, config: LabelConfig) -> SceneSource:
    if config.max_frames is not None and config.max_frames < 1:
        raise InputError("--max-frames must be at least 1")
    if config.reader is None:
        if config.split is not None:
            raise InputError("--split belongs to a data set", remedy="name its reader with --reader")
        return FolderScenes(source, config.max_frames, config.ordered)
    if config.ordered is not None:
        raise InputError("the reader of a data set knows the order itself", remedy="leave --ordered away")
    return DatasetScenes(config.reader, source, config.split, config.max_frames)


def _workers(device: str) -> int:
    """One per core; a single one where all would load the network onto the same accelerator."""
    if resolve_device(device).type != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
