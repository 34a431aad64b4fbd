"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Depth, LazyDepth, LazyTensor, Scene
from relief3d.report.panels import Panel


@dataclass(frozen=True)
class StageTiming:
    """Cost of one stage of the work.

    Attributes:
        name: what the stage is called in progress messages.
        seconds: wall time.
        peak_bytes: highest resident memory seen during the stage, if measured.
        note: one short remark, for example "reused from an earlier run".
    """

    name: str
    seconds: float
    peak_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True)
class ViewRecord:
    """What the report says about one view; anything unknown is None.

    Attributes:
        name: the view's name in the scene.
        image: (3, h, w) RGB in [0, 1], or a function that loads it. Any size: thumbnails are made from it.
        depth: the depth map found for this view, or a function that loads it. Any size.
        confidence: (h, w) in [0, 1], when it is not part of ``depth``.
        registered: whether a camera pose was found (or given).
        reason: why there is no camera or no depth.
        neighbours: names of the views that depth was compared with.
        kept_share: share of the pixels that kept a depth, in [0, 1]; computed from ``depth`` when None.
        reprojection_error: mean reprojection error in pixels of the original picture.
        observations: number of points this view observes.
        extra: further facts for the card, label to value.
    """

    name: str
    image: LazyTensor = None
    depth: LazyDepth = None
    confidence: LazyTensor = None
    registered: bool = True
    reason: str | None = None
    neighbours: Sequence[str] = ()
    kept_share: float | None = None
    reprojection_error: float | None = None
    observations: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def load_image(self) -> Tensor | None:
        """(3, h, w) or None."""
        return self.image() if callable(self.image) else self.image

    def load_depth(self) -> Depth | None:
        """The depth map or None."""
        return self.depth() if callable(self.depth) else self.depth

    def load_confidence(self, depth: Depth | None) -> Tensor | None:
        """(h, w) in [0, 1] or None: this record's own, else the depth map's."""
        own = self.confidence() if callable(self.confidence) else self.confidence
        if own is not None or depth is None:
            return own
        return depth.confidence


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        scene: cameras, points and mesh; shown in the interactive view.
        views: one record per input view, also for those without a camera; built from the scene when empty.
        title: headline, usually the name of the input.
        summary: facts of the run as in ``scene.json``. Known keys get their own place: ``command`` (text or
            list), ``seed``, ``seconds``, ``peak_memory_bytes``, ``versions`` (mapping), ``hardware``, ``created``,
            ``input``, ``config`` (mapping). All others are listed at the end.
        stages: wall time per stage, in order.
        warnings: sentences for the user.
        evaluation: numbers against a reference, label to value (text or number), if there is a reference.
        orbit: (3, h, w) RGB pictures in [0, 1] of the mesh seen from around it.
        panels: further sections that the method brings itself.
    """

    scene: Scene
    views: Sequence[ViewRecord] = ()
    title: str = "Reconstruction"
    summary: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[StageTiming] = ()
    warnings: Sequence[str] = ()
    evaluation: Mapping[str, Any] | None = None
    orbit: Sequence[Tensor] = ()
    panels: Sequence[Panel] = ()

    def records(self) -> tuple[ViewRecord, ...]:
        """The given records, or those that follow from the scene alone."""
        return tuple(self.views) if self.views else records_from_scene(self.scene)


def records_from_scene(scene: Scene) -> tuple[ViewRecord, ...]:
    """One record per view with what the scene itself knows (pictures, depth, points per view).

    The reprojection error of a view is the mean error of the points it observes.
    """
    posed = set(scene.posed)
    records = []
    for index, view in enumerate(scene.views):
        count, error = None, None
        if scene.sparse is not None:
            seen = scene.sparse.obs_point[scene.sparse.obs_view == index]
            count = int(seen.numel())
            if count:
                error = float(torch.nan_to_num(scene.sparse.error[seen]).mean())
        records.append(
            ViewRecord(
                name=view.name,
                image=view.image,
                depth=view.depth,
                registered=index in posed,
                reason=None if index in posed else "no camera was found for this view",
                reprojection_error=error,
                observations=count,
            )
        )
    return tuple(records)
