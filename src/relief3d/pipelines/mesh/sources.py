"""From the options to a depth source that is ready to work, or to a refusal before anything large is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from relief3d.core.contract import Depth, Scene
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress
from relief3d.models.checkpoints import file_digest
from relief3d.models.metric.interface import Focal
from relief3d.models.metric.opening import MetricEstimator, MetricWeights, find_metric, open_metric
from relief3d.models.multiview.interface import MultiViewModel
from relief3d.models.packaged import PROMPTED
from relief3d.pipelines.mesh.config import MeshConfig
from relief3d.pipelines.mesh.depth_sources import (
    FileSource,
    MetricSource,
    ModelSource,
    Points,
    SensorSource,
    Source,
    StereoSource,
)
from relief3d.pipelines.mesh.pictures import KeyframeViews
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.networks import check_weights, open_network, weights_digest

Anchor = Callable[[int], Depth | None]


def chosen_source(config: MeshConfig, scene: Scene, network: MultiViewModel | None = None) -> str:
    """The name of the depth source: as asked, or what is there.

    Raises:
        InputError: sensor depth is asked for and the recording has none.
    """
    has_sensor = any(scene.views[i].depth is not None for i in range(len(scene)))
    if config.depth == "sensor" and not has_sensor:
        raise InputError(
            "the recording has no sensor depth", remedy="use --depth stereo, or name maps with --depth-files"
        )
    if config.depth != "auto":
        return config.depth
    if config.depth_files is not None:
        return "files"
    if config.model or network is not None:
        return "model"
    return "sensor" if has_sensor else "stereo"


def check_source(name: str, config: MeshConfig, progress: Progress, network: MultiViewModel | None) -> str:
    """See that weights are there; returns their fingerprint ("" without weights).

    Raises:
        InputError: no such weights.
    """
    if name == "model" and network is None:
        source = check_weights(MultiviewConfig(model=config.model), progress.message)
        return source.label if source.file is None else file_digest(source.file)
    if name == "model":
        return weights_digest(network)
    if name == "metric":
        return file_digest(_metric_weights(config.model or PROMPTED, progress).file)
    return ""


def _metric_weights(name: str, progress: Progress) -> MetricWeights:
    try:
        return find_metric(name, announce=progress.message)
    except RunError as exc:
        raise InputError(exc.message, remedy=exc.remedy) from exc


def open_source(
    name: str,
    config: MeshConfig,
    views: KeyframeViews,
    points: Points,
    progress: Progress,
    network: MultiViewModel | None = None,
) -> Source:
    """The depth source of that name for these keyframes.

    Raises:
        InputError: weights or depth maps that cannot be used.
    """
    device = resolve_device(config.device)
    if name == "stereo":
        return StereoSource(views, points, device, config.seed)
    if name == "sensor":
        return SensorSource(views)
    if name == "files":
        assert config.depth_files is not None
        return FileSource(views, config.depth_files, config.depth_scale)
    if name == "metric":
        estimator = _estimator(config.model or PROMPTED, device, progress)
        return MetricSource(views, estimator, points, views.scene.metric)
    options = MultiviewConfig(model=config.model)
    if network is None:
        network, _ = open_network(options, device=device, seed=config.seed, announce=progress.message)
    return ModelSource(views, network, options, device)


def _estimator(name: str, device: torch.device, progress: Progress) -> MetricEstimator:
    return open_metric(_metric_weights(name, progress), device, announce=progress.message)


def open_anchor(config: MeshConfig, views: KeyframeViews, progress: Progress) -> tuple[Anchor | None, str]:
    """What tells metres to poses without a unit, and its name; sensor depth does so unasked.

    Raises:
        InputError: the recording has no sensor depth, or the network needs a prompt.
    """
    has_sensor = any(v.depth is not None for v in views.flat)
    name = config.anchor or ("sensor" if has_sensor else "")
    if views.scene.metric or not name:
        return None, ""
    if name == "sensor":
        if not has_sensor:
            raise InputError("--anchor sensor: the recording has no sensor depth", remedy="name a network")

        def sensed(k: int) -> Depth | None:
            found = views.depth(k)
            return found if found is not None and found.metric else None

        return sensed, name
    estimator = _estimator(name, resolve_device(config.device), progress)
    if estimator.weights.needs_prompt:
        raise InputError(
            f"--anchor {name} needs metric points itself", remedy="name a network for pictures alone"
        )

    def predicted(k: int) -> Depth | None:
        focal = Focal.of_cameras([views.cameras[k]])
        return estimator.estimate(views.picture(k), focal).depth_map(0)

    return predicted, name


def depth_plan(
    name: str, config: MeshConfig, digest: str, input_hash: str, frames: tuple[int, ...]
) -> dict[str, Any]:
    """Everything that stored depth depends on."""
    files = None if config.depth_files is None else str(Path(config.depth_files).resolve())
    return {
        "source": name,
        "weights": digest,
        "input": input_hash,
        "files": files,
        "scale": config.depth_scale,
        "width": config.width,
        "frames": list(frames),
        "seed": config.seed,
    }
