"""Metric networks of our own, published or packaged ones as models that answer protocols of depth."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from relief3d.core.contract import Camera
from relief3d.core.errors import InputError
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.eval.protocols.base import Answer, Model, Query, Task
from relief3d.geometry.focal import centred_intrinsics
from relief3d.geometry.projection import depth_to_points
from relief3d.models.metric.interface import Focal
from relief3d.models.metric.opening import (
    MetricEstimator,
    MetricRunOptions,
    MetricWeights,
    find_metric,
    open_metric,
)

PREFIX = "metric:"
"""``--model metric:FILE`` (or a published name) stands for any network for metric depth."""
PROMPTED_TASKS: tuple[Task, ...] = ("prompted_depth",)
PLAIN_TASKS: tuple[Task, ...] = ("mono_depth", "mono_points", "intrinsics", "video_depth", "runtime")


def metric_key(name: str) -> str:
    """A name for cached answers that changes with the weights.

    Raises:
        InputError: there is no such network.
    """
    found = find_metric(name)
    return f"{Path(found.label).name}-{hashlib.sha256(repr(found.fingerprint).encode()).hexdigest()[:10]}"


def metric_tasks(weights: MetricWeights) -> tuple[Task, ...]:
    """What a network can be asked."""
    return PROMPTED_TASKS if weights.needs_prompt else PLAIN_TASKS


def metric_model(name: str) -> Callable[[Path], Model]:
    """A model of a network, which is loaded at the first query.

    Given intrinsics are used, others are the network's own or guessed (an answer of cameras then says the guess). Depth
    is given everywhere, also where a network sees no surface, because protocols count every true pixel.

    Args:
        name: see :func:`relief3d.models.metric.opening.find_metric`.
    """
    lock = Lock()

    @lru_cache(maxsize=1)
    def opened() -> MetricEstimator:
        return open_metric(find_metric(name), torch.device("cpu"), MetricRunOptions(masked=False))

    def answer(query: Query) -> Answer:
        with lock:  # two threads must not load it twice
            estimator = opened()
        return _answer(estimator, query)

    return lambda folder: answer


def _answer(estimator: MetricEstimator, query: Query) -> Answer:
    if query.scene is None or not len(query.scene):
        raise InputError(f"{query.name} shows no pictures")
    prompts = query.tensors.get("prompt")
    if estimator.weights.needs_prompt and prompts is None:
        raise InputError(f"{query.name} gives no prompt")
    depths: list[Tensor] = []
    cameras: list[Tensor] = []
    for i, view in enumerate(query.scene.views):
        prompt = None
        if estimator.weights.needs_prompt:
            assert prompts is not None
            values = prompts[i].float()
            prompt = MetricPrompt(values, values > 0)
        said = estimator.estimate(view.load_image(), Focal.of_cameras([view.camera]), prompt)
        depths.append(said.depth[0].float().cpu())
        cameras.append(_intrinsics(view.camera, said.focal[0].double().cpu()))
    depth, K = torch.stack(depths), torch.stack(cameras)
    tensors = {"depth": depth, "K": K}
    if "cam_points" in query.wants:
        tensors["cam_points"] = depth_to_points(depth.double(), K).float()
    return Answer({k: v for k, v in tensors.items() if k in query.wants})


def _intrinsics(camera: Camera, focal: Tensor) -> Tensor:
    if camera.K is not None:
        return camera.K.double()
    return torch.as_tensor(centred_intrinsics(focal, camera.height, camera.width)).double()
