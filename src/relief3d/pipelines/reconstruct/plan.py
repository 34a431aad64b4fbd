"""Predict time and memory of a reconstruction from picture sizes alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from relief3d.core.contract import Scene
from relief3d.core.device import resolve_device
from relief3d.core.memory import GIB, available_memory
from relief3d.pipelines.multiview.capacity import network_size, plan_capacity
from relief3d.pipelines.multiview.networks import find_source, parameter_count
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.inputs import read_input
from relief3d.stereo import StereoConfig
from relief3d.stereo.plan import plan_stereo
from relief3d.stereo.views import stereo_size

# Measured on two cores (benchmarks/reconstruct.py); scaled by the number of cores, up to eight.
FEATURE_SECONDS_PER_MEGAPIXEL = 1.5
MATCH_SECONDS_PER_PAIR = 0.12
MAPPING_SECONDS_PER_VIEW = 0.9
FUSION_SECONDS_PER_MEGAPIXEL = 0.4
SURFACE_SECONDS = 8.0
REPORT_SECONDS_PER_VIEW = 0.25
BASE_BYTES = 0.75 * GIB
MATCH_BYTES_PER_VIEW = 6e6
VIEW_PIXEL_BYTES = 3 * 4 * 3
NETWORK_MAP_SECONDS_PER_MEGAPIXEL = 0.6
NETWORK_MAP_PIXEL_BYTES = 100
EXHAUSTIVE_LIMIT = 150
SEQUENTIAL_OVERLAP = 12


@dataclass(frozen=True)
class StagePlan:
    """Predicted cost of one stage."""

    name: str
    seconds: float
    peak_bytes: float
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """Predicted cost of a run; the peak is the largest of the stages because they follow each other."""

    views: int
    stages: tuple[StagePlan, ...]
    available_bytes: int | None

    @property
    def seconds(self) -> float:
        """Total wall time."""
        return sum(s.seconds for s in self.stages)

    @property
    def peak_bytes(self) -> float:
        """Largest resident memory."""
        return max(s.peak_bytes for s in self.stages)


def make_plan(source: str | Path, config: ReconstructConfig | None = None) -> Plan:
    """Predict the cost of reconstructing ``source``; reads headers only.

    Raises:
        InputError: when the input cannot be used at all.
    """
    config = config or ReconstructConfig()
    return plan_scene(read_input(source, config), config)


def plan_scene(scene: Scene, config: ReconstructConfig, *, parameters: int | None = None) -> Plan:
    """Predict the cost of reconstructing an opened scene; ``parameters`` of a network that no name stands for."""
    n = len(scene)
    speed = max(1, min(os.cpu_count() or 1, 8)) / 2
    pixels = [v.camera.width * v.camera.height for v in scene.views]
    by_network = config.multiview.active
    stages = [_plan_network(scene, config, parameters) if by_network else _plan_cameras(scene, pixels, speed)]
    width, height = max((v.camera.width, v.camera.height) for v in scene.views)
    given = sum(v.depth is not None for v in scene.views) if config.depth_source != "stereo" else 0
    small = stereo_size(width, height, config.resolved_depth_width())
    if given < n and by_network and config.depth_source in ("auto", "model"):
        seconds = (n - given) * (0.4 + max(pixels) / 1e6 * NETWORK_MAP_SECONDS_PER_MEGAPIXEL)
        loaded = max(pixels) * NETWORK_MAP_PIXEL_BYTES
        stages.append(
            StagePlan("depth", seconds, BASE_BYTES + loaded, "the network's, at the pictures' size")
        )
    elif given < n and config.depth_source != "given":
        settings = StereoConfig.profile(config.quality, max_width=config.resolved_depth_width())
        stereo = plan_stereo(settings, small, n - given)
        loaded = max(pixels) * VIEW_PIXEL_BYTES
        stages.append(
            StagePlan(
                "depth",
                stereo.seconds / (1.7 * speed),
                BASE_BYTES + stereo.peak_bytes + loaded,
                f"{small[0]}x{small[1]} stereo",
            )
        )
    else:
        stages.append(StagePlan("depth", 0.2 * n, BASE_BYTES + max(pixels) * VIEW_PIXEL_BYTES, "given"))
    if config.mesh:
        megapixels = n * small[0] * small[1] / 1e6
        seconds = SURFACE_SECONDS + megapixels * FUSION_SECONDS_PER_MEGAPIXEL / speed
        stages.append(StagePlan("mesh", seconds, BASE_BYTES + 1.0 * GIB, "fusion and cleaning"))
    stages.append(StagePlan("report", 2 + n * REPORT_SECONDS_PER_VIEW, BASE_BYTES + 0.3 * GIB))
    return Plan(n, tuple(stages), available_memory())


def _plan_network(scene: Scene, config: ReconstructConfig, parameters: int | None) -> StagePlan:
    """Inference; the ceiling is what decides between one pass and chunks, so it cannot be exceeded by choice."""
    picture = max(((v.camera.width, v.camera.height) for v in scene.views), key=lambda s: s[0] * s[1])
    label, architecture, count = config.multiview.model, None, parameters
    if count is None:
        source = find_source(config.multiview)
        label, architecture, count = source.label, source.architecture, parameter_count(config.multiview)
    size = network_size(config.multiview, architecture, picture)
    device = resolve_device(config.device).type
    plan = plan_capacity(
        len(scene), size, count, config.multiview,
        architecture=architecture, max_memory=config.max_memory, device=device,
    )  # fmt: skip
    pixels = max(v.camera.width * v.camera.height for v in scene.views)
    note = f"{label}, {plan.note}"
    return StagePlan("cameras", plan.seconds, max(BASE_BYTES, plan.bytes) + pixels * VIEW_PIXEL_BYTES, note)


def _plan_cameras(scene: Scene, pixels: list[int], speed: float) -> StagePlan:
    n = len(scene)
    if len(scene.posed) == n and scene.sparse is not None:
        return StagePlan("cameras", 1.0, BASE_BYTES, "given model")
    features = sum(pixels) / 1e6 * FEATURE_SECONDS_PER_MEGAPIXEL
    ordered = scene.ordered or n > EXHAUSTIVE_LIMIT
    pairs = n * SEQUENTIAL_OVERLAP if ordered else n * (n - 1) / 2
    mapping = n * MAPPING_SECONDS_PER_VIEW * (0.3 if len(scene.posed) == n else 1.0)
    seconds = (features + pairs * MATCH_SECONDS_PER_PAIR + mapping) / speed
    note = f"{n} pictures, {pairs:.0f} pairs; retries can add to this"
    return StagePlan("cameras", seconds, BASE_BYTES + n * MATCH_BYTES_PER_VIEW + max(pixels) * 60, note)


def format_plan(plan: Plan) -> str:
    """A table for people."""
    lines = [f"{plan.views} pictures", f"{'stage':<10}{'time':>10}{'memory':>12}  "]
    for s in plan.stages:
        lines.append(f"{s.name:<10}{s.seconds:>8.0f} s{s.peak_bytes / GIB:>8.1f} GiB  {s.note}")
    lines.append(f"{'total':<10}{plan.seconds:>8.0f} s{plan.peak_bytes / GIB:>8.1f} GiB")
    if plan.available_bytes is not None:
        free = plan.available_bytes / GIB
        verdict = "fits" if plan.peak_bytes < plan.available_bytes else "does NOT fit: use --quality fast"
        lines.append(f"this machine has {free:.1f} GiB free: {verdict}")
    return "\n".join(lines)
