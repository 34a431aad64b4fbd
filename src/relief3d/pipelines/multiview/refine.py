"""Bundle adjustment of what a network predicted, and the stored depth that follows it."""

from __future__ import annotations

import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from relief3d.core.contract import Depth, Scene
from relief3d.core.optional import available
from relief3d.core.progress import Progress
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.pictures import Framing
from relief3d.pipelines.multiview.store import NetworkDepth
from relief3d.pipelines.multiview.upsampling import upsample_depth
from relief3d.sfm.config import SfmConfig
from relief3d.sfm.refine_predicted import RefineConfig, refine_predicted
from relief3d.stereo.views import stereo_size

MOST_VIEWS = 300
"""Views up to which ``auto`` refines; matching takes minutes beyond."""


def wants_refinement(config: MultiviewConfig, scene: Scene, *, all_posed: bool, untrained: bool) -> bool:
    """Whether to adjust: as told, or (auto) where it can help and pycolmap is installed."""
    if config.refine != "auto":
        return config.refine == "on"
    return not untrained and not all_posed and 3 <= len(scene) <= MOST_VIEWS and available("pycolmap")


def refine_cameras(
    scene: Scene,
    depth: NetworkDepth,
    framing: Framing,
    fixed: tuple[str, ...],
    work: Path,
    *,
    seed: int,
    progress: Progress,
) -> tuple[Scene, NetworkDepth, dict[str, Any]]:
    """Adjust predicted cameras by classical matches; kept only where held-out tracks fit them better.

    Args:
        scene: all views posed, at original resolution.
        depth: of the views.
        framing: of their pictures.
        fixed: names of views whose pose was given.
        work: folder for matches.
        seed: of random choices.
        progress: receives stages.

    Returns:
        Scene and depth (adjusted, or as they were), and before/after for ``scene.json``.
    """
    views = [v.replace(depth=partial(_picture_depth, depth, i, scene)) for i, v in enumerate(scene.views)]
    threads = max(1, min(os.cpu_count() or 1, 8))
    result = refine_predicted(
        scene.replace(views=tuple(views)),
        RefineConfig(
            matching=SfmConfig(max_features=4096, threads=threads),
            fixed_views=fixed,
            seed=seed,
            threads=threads,
        ),
        work,
        progress,
    )
    report = result.report
    facts = report.as_dict()
    progress.message(f"bundle adjustment {'kept' if report.accepted else 'not kept'}: {report.reason}")
    if not report.accepted:
        return scene, depth, facts
    kept = tuple(
        old.replace(camera=new.camera.replace(K_source=old.camera.K_source))
        for old, new in zip(scene.views, result.scene.views)
    )
    K = torch.stack(
        [
            depth.K[i] if v.camera.K is None else framing.intrinsics(i, v.camera.K)
            for i, v in enumerate(result.scene.views)
        ]
    )
    ratio = torch.tensor([v.depth_ratio for v in report.views], dtype=torch.float64)
    moved = dataclasses.replace(depth, K=K, factor=depth.factor * ratio)
    sparse = result.scene.sparse
    return scene.replace(views=kept, sparse=sparse if sparse is not None else scene.sparse), moved, facts


def _picture_depth(depth: NetworkDepth, index: int, scene: Scene) -> Depth:
    """The network's depth over the whole picture, at about the network's resolution; unknown outside its crop."""
    values, trust = depth.read(index)
    camera = scene.views[index].camera
    width, height = stereo_size(camera.width, camera.height, max(values.shape))
    scale = torch.tensor([camera.width / width, camera.height / height, 1.0], dtype=torch.float64)
    affine = depth.network_from_original[index] @ torch.diag(scale)
    return Depth.from_values(upsample_depth(values, trust > 0, affine, (height, width)), metric=scene.metric)
