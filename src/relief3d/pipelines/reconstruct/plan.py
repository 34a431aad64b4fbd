"""Predict time and memory of a reconstruction from picture sizes alone."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from relief3d.core.contract import Scene
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.memory import GIB, available_memory
from relief3d.models.multiview.interface import MultiViewModel
from relief3d.pipelines.multiview.capacity import (
    PICTURE_PIXEL_BYTES,
    PROGRAM_BYTES,
    gib_up,
    network_size,
    picture_bytes,
    plan_capacity,
)
from relief3d.pipelines.multiview.config import PATCH
from relief3d.pipelines.multiview.networks import parameters_of, source_and_size
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
BASE_BYTES = PROGRAM_BYTES
REPORT_BYTES = 0.3 * GIB
DEPTH_WIDTHS = (2048, 1536, 1024, 768, 512, 384, 256, 128)
MATCH_BYTES_PER_VIEW = 6e6
COMPLETION_SECONDS_PER_VIEW = 1.0
NETWORK_MAP_SECONDS_PER_MEGAPIXEL = 0.6
NETWORK_MAP_PIXEL_BYTES = 64
"""Besides the picture itself."""
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
    config.check()
    return plan_scene(read_input(source, config), config)


def plan_scene(scene: Scene, config: ReconstructConfig, *, network: MultiViewModel | None = None) -> Plan:
    """Predict the cost of reconstructing an opened scene; ``network`` is one that no name stands for."""
    n = len(scene)
    speed = max(1, min(os.cpu_count() or 1, 8)) / 2
    pixels = [v.camera.width * v.camera.height for v in scene.views]
    by_network = config.multiview.active
    stages = [_plan_network(scene, config, network) if by_network else _plan_cameras(scene, pixels, speed)]
    width, height = max((v.camera.width, v.camera.height) for v in scene.views)
    given = sum(v.depth is not None for v in scene.views) if config.depth_source != "stereo" else 0
    small = stereo_size(width, height, config.resolved_depth_width())
    if given < n and by_network and config.depth_source in ("auto", "model"):
        wide = stereo_size(width, height, config.depth_width) if config.depth_width else (width, height)
        seconds = (n - given) * (0.4 + wide[0] * wide[1] / 1e6 * NETWORK_MAP_SECONDS_PER_MEGAPIXEL)
        loaded = max(pixels) * PICTURE_PIXEL_BYTES + wide[0] * wide[1] * NETWORK_MAP_PIXEL_BYTES
        stages.append(
            StagePlan("depth", seconds, BASE_BYTES + loaded, "the network's, at the pictures' size")
        )
    elif given < n and config.depth_source != "given":
        settings = StereoConfig.profile(config.quality, max_width=config.resolved_depth_width())
        stereo = plan_stereo(settings, small, n - given)
        loaded = max(pixels) * PICTURE_PIXEL_BYTES
        stages.append(
            StagePlan(
                "depth",
                stereo.seconds / (1.7 * speed)
                + (COMPLETION_SECONDS_PER_VIEW * (n - given) if config.completion != "none" else 0.0),
                BASE_BYTES + stereo.peak_bytes + loaded,
                f"{small[0]}x{small[1]} stereo",
            )
        )
    else:
        stages.append(StagePlan("depth", 0.2 * n, BASE_BYTES + max(pixels) * PICTURE_PIXEL_BYTES, "given"))
    if config.mesh:
        megapixels = n * small[0] * small[1] / 1e6
        seconds = SURFACE_SECONDS + megapixels * FUSION_SECONDS_PER_MEGAPIXEL / speed
        stages.append(StagePlan("mesh", seconds, BASE_BYTES + 1.0 * GIB, "fusion and cleaning"))
    stages.append(StagePlan("report", 2 + n * REPORT_SECONDS_PER_VIEW, BASE_BYTES + REPORT_BYTES))
    return Plan(n, tuple(stages), available_memory())


def _plan_network(scene: Scene, config: ReconstructConfig, network: MultiViewModel | None) -> StagePlan:
    """Inference; the ceiling is what decides between one pass and chunks, so it cannot be exceeded by choice."""
    _check_program(config)
    pictures = [(v.camera.width, v.camera.height) for v in scene.views]
    if network is None:
        source, count = source_and_size(config.multiview)
        label, architecture, own, patch = source.label, source.architecture, None, PATCH
    else:
        count = parameters_of(network)
        label, architecture, own, patch = network.name, network.name, network.prepare_mode, network.patch
    plan = plan_capacity(
        len(scene), network_size(config.multiview, architecture, pictures, own), count, config.multiview,
        architecture=architecture, max_memory=config.max_memory, device=resolve_device(config.device).type,
        patch=patch, beside=picture_bytes(pictures),
    )  # fmt: skip
    return StagePlan("cameras", plan.seconds, plan.bytes, f"{label}, {plan.note}")


def check_ceiling(
    plan: Plan, scene: Scene, config: ReconstructConfig, *, network: MultiViewModel | None = None
) -> None:
    """Refuse a plan that needs more than ``--max-memory``.

    Raises:
        InputError: it does; names the options with which it fits, or how much memory there must be.
    """
    if config.max_memory is None or plan.peak_bytes <= config.max_memory * GIB:
        return
    largest = max(plan.stages, key=lambda s: s.peak_bytes)
    least = f"allow at least --max-memory {gib_up(plan.peak_bytes)}"
    _check_program(config)
    raise InputError(
        f"this needs about {plan.peak_bytes / GIB:.2f} GiB ({largest.name}), more than --max-memory "
        f"{config.max_memory:g}",
        remedy=_what_fits(scene, config, network) or least,
    )


def _check_program(config: ReconstructConfig) -> None:
    """Refuse a ceiling below what any run takes."""
    program = BASE_BYTES + REPORT_BYTES
    if config.max_memory is not None and program > config.max_memory * GIB:
        raise InputError(
            f"--max-memory {config.max_memory:g} is too little: the program and its report alone take "
            f"{program / GIB:.2f} GiB",
            remedy=f"allow at least --max-memory {gib_up(program)}",
        )


def _what_fits(scene: Scene, config: ReconstructConfig, network: MultiViewModel | None) -> str | None:
    """Options with which the plan fits the ceiling, tried in order; None: none do."""
    assert config.max_memory is not None
    now = config.depth_width or max(max(v.camera.width, v.camera.height) for v in scene.views)
    for mesh in dict.fromkeys((config.mesh, False)):
        for width in (config.depth_width, *(w for w in DEPTH_WIDTHS if w < now)):
            other = replace(config, mesh=mesh, depth_width=width)
            if plan_scene(scene, other, network=network).peak_bytes <= config.max_memory * GIB:
                words = [] if mesh == config.mesh else ["--no-mesh"]
                words += [] if width == config.depth_width else [f"--depth-width {width}"]
                return f"{' '.join(words)} fits"
    return None


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
        verdict = "fits" if plan.peak_bytes < plan.available_bytes else "does NOT fit"
        lines.append(f"this machine has {free:.1f} GiB free: {verdict}")
    return "\n".join(lines)
