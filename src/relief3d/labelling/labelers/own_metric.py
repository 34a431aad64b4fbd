"""Metric depth by relief3d's own networks: teachers that are told part of a raw depth map, and students that are not.

A prompted network gets a part of the raw depth of every view (sensor, stereo, projected points) and answers with dense
depth. A tenth of the raw depth is held out: a picture on which the network misses it by more than the limit gets no
label, and ``facts`` says why. What the network corrects elsewhere is the point of such labels (MetricAnything
specification 19).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.data.prompt_alignment import inverse
from relief3d.geometry.focal import centred_intrinsics
from relief3d.labelling.base import DepthKind, DepthLabel, Grouping, Labels, Uses
from relief3d.labelling.quality import (
    LabelQuality,
    depth_percentiles,
    fit_residual,
    hold_out,
    hold_out_error,
    rejections,
)
from relief3d.models.metric.interface import Focal, MetricPrediction
from relief3d.models.metric.opening import (
    PROMPTED,
    MetricEstimator,
    MetricRunOptions,
    MetricWeights,
    find_metric,
    open_metric,
)
from relief3d.models.packaged import PROMPTED as PACKAGED_PROMPTED


@dataclass(frozen=True)
class OwnMetricOptions:
    """Options of ``own-metric``.

    Attributes:
        model: a packaged network, a published one (``relief3d models list``), or a file of weights.
        size: of the network that a file is for, where neither it nor its model.json says so.
        download: fetch published weights when they are not on this machine.
        points: of the raw depth that a prompted network is told at most; 0: all but those held out.
        held_out: share of the raw depth that it is not told and measured by.
        max_error: median relative error there beyond which a picture gets no label.
        side: longer side of the network's pictures; 0: its own. Only for a prompt-refiner.
    """

    model: str = PACKAGED_PROMPTED
    size: Literal["", "nano", "micro", "mini", "small", "full"] = ""
    download: bool = False
    points: int = 4000
    held_out: float = 0.1
    max_error: float = 0.15
    side: int = 0

    def __post_init__(self) -> None:
        if self.points < 0 or self.side < 0 or not 0 < self.held_out < 1 or not self.max_error > 0:
            raise InputError(
                "own-metric options are out of range",
                remedy="points and side >= 0, held_out between 0 and 1, max_error > 0",
            )


class OwnMetric:
    """Dense depth and confidence of every view.

    With a prompted network labels are ``metric`` where the raw depth is, else ``scale``: they have its unit. Otherwise
    they are ``metric``, with the intrinsics that they go with; a focal length that had to be guessed makes them
    ``scale``. Confidence is the network's, 1 where it gives none.
    """

    name = "own-metric"
    version = 1
    grouping = Grouping("view")

    def __init__(self, options: OwnMetricOptions, device: str = "cpu") -> None:
        # Where a file lies is no property of the labels; what is in it stands in the digest.
        is_file = Path(options.model).is_file()
        self.options = replace(options, model=Path(options.model).name) if is_file else options
        self._model, self._device = options.model, device
        self._weights: MetricWeights | None = None
        self._estimator: MetricEstimator | None = None
        self.uses: frozenset[Uses] = frozenset({"image", "camera", "depth"})

    def _found(self) -> MetricWeights:
        if self._weights is None:
            o = self.options
            self._weights = find_metric(self._model, size=o.size or None, download=o.download)
        return self._weights

    def weights_digest(self) -> str:
        """Of the weights' files.

        Raises:
            InputError: there are none.
        """
        return self._found().digest

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Depth of every view; none for one that the raw depth speaks against.

        Raises:
            InputError: a view without raw depth for a network that needs it, or with too little.
        """
        weights = self._found()
        if self._estimator is None:
            options = MetricRunOptions(side=self.options.side or None)
            self._estimator = open_metric(weights, resolve_device(self._device), options)
        depth: dict[str, DepthLabel] = {}
        cameras: dict[str, Camera] = {}
        facts: dict[str, Any] = {"network": weights.label, "quality": {}, "rejected": {}}
        for view in scene.views:
            raw = view.load_depth()
            if weights.architecture in PROMPTED:
                label, quality = self._prompted(view, raw, derive_seed(seed, self.name, view.name))
            else:
                label, camera, quality = self._alone(view, raw)
                cameras[view.name] = camera
            facts["quality"][view.name] = _plain(quality)
            # Without a measurement there is nothing to reject a label by; without a prompt there is no fit.
            known = not math.isnan(quality.error)
            judged = quality if weights.architecture in PROMPTED else replace(quality, residual=0.0)
            why = rejections([judged], max_error=self.options.max_error) if known else {}
            if view.name in why:
                facts["rejected"][view.name] = why[view.name]
                cameras.pop(view.name, None)
            else:
                depth[view.name] = label
        return Labels(depth=depth, cameras=cameras, facts=facts)

    def _prompted(self, view: View, raw: Depth | None, seed: int) -> tuple[DepthLabel, LabelQuality]:
        if raw is None:
            raise InputError(
                f"'{view.name}' has no depth that the network could be told",
                remedy="give scenes with depth, or a network that needs none (model=...)",
            )
        held = hold_out(raw.valid, seed, self.options.held_out)
        told = torch.where(raw.valid & ~held, raw.values, 0.0)
        told = _thinned(told, self.options.points, derive_seed(seed, "points"))
        mask = told > 0
        prompt = MetricPrompt(told, mask)
        if prompt.points < 5:
            raise InputError(f"'{view.name}' has {prompt.points} pixels of depth to tell, 5 are needed")
        said = self._ask(view, prompt)
        values = said.depth[0].float().cpu()
        kind: DepthKind = "metric" if raw.metric else "scale"
        quality = LabelQuality(
            view.name,
            str(view.name).split("/", 1)[0],
            hold_out_error(values, raw.values, held),
            int(held.sum()),
            fit_residual(inverse(values), told),
            depth_percentiles(raw.values, raw.valid),
            depth_percentiles(values),
        )
        return DepthLabel(_with_confidence(said, values, raw.metric), kind), quality

    def _alone(self, view: View, raw: Depth | None) -> tuple[DepthLabel, Camera, LabelQuality]:
        said = self._ask(view, None)
        values = said.depth_map(0).values.float().cpu()
        guessed = said.focal_sources[0] == "guessed"
        height, width = values.shape
        K = view.camera.K
        if K is None:
            K = torch.as_tensor(centred_intrinsics(said.focal[0].double().cpu(), height, width))
        source = {"given": "given", "exif": "exif", "guessed": "guess"}.get(
            said.focal_sources[0], "estimated"
        )
        camera = Camera(width, height, K, K_source=source)  # type: ignore[arg-type]
        error, count = math.nan, 0
        if raw is not None and raw.metric and not guessed:
            error, count = hold_out_error(values, raw.values, raw.valid), int(raw.valid.sum())
        quality = LabelQuality(
            view.name,
            str(view.name).split("/", 1)[0],
            error,
            count,
            math.nan,
            () if raw is None else depth_percentiles(raw.values, raw.valid),
            depth_percentiles(values),
        )
        kind: DepthKind = "scale" if guessed else "metric"
        return DepthLabel(_with_confidence(said, values, not guessed), kind), camera, quality

    def _ask(self, view: View, prompt: MetricPrompt | None) -> MetricPrediction:
        assert self._estimator is not None
        return self._estimator.estimate(view.load_image(), Focal.of_cameras([view.camera]), prompt)


def _thinned(depth: Tensor, count: int, seed: int) -> Tensor:
    """At most ``count`` of the known pixels, at random; 0 keeps all."""
    flat = torch.nonzero(depth.reshape(-1) > 0)[:, 0]
    if not count or len(flat) <= count:
        return depth
    keep = flat[torch.randperm(len(flat), generator=torch_generator(seed))[:count]]
    out = torch.zeros_like(depth).reshape(-1)
    out[keep] = depth.reshape(-1)[keep]
    return out.reshape(depth.shape)


def _with_confidence(said: MetricPrediction, values: Tensor, metric: bool) -> Depth:
    sure = torch.ones_like(values) if said.confidence is None else said.confidence[0].float().cpu()
    valid = torch.isfinite(values) & (values > 0)
    return Depth(torch.where(valid, values, 0.0), valid, metric, torch.where(valid, sure.clamp(0, 1), 0.0))


def _plain(quality: LabelQuality) -> dict[str, Any]:
    """JSON types; a number that was not measured is None."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 6)

    return {
        "error": number(quality.error),
        "held_out": quality.held_out,
        "residual": number(quality.residual),
        "raw_percentiles": [round(v, 6) for v in quality.raw],
        "label_percentiles": [round(v, 6) for v in quality.label],
    }
