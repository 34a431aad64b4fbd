"""``relief3d.reconstruct``: the stages one after the other, each resumable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from relief3d.core.contract import Scene
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.memory import GIB, peak_rss
from relief3d.core.progress import Progress, SilentProgress
from relief3d.io.atomic import check_not_inside
from relief3d.models.metric.opening import MetricWeights
from relief3d.models.multiview.interface import MultiViewModel
from relief3d.pipelines.multiview.networks import check_precision, weights_digest
from relief3d.pipelines.multiview.predict import forget_passes
from relief3d.pipelines.multiview.solve import NETWORK_FOLDER
from relief3d.pipelines.reconstruct import cameras as camera_stage
from relief3d.pipelines.reconstruct import depth as depth_stage
from relief3d.pipelines.reconstruct import results, surface
from relief3d.pipelines.reconstruct.completion import completion_weights
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.inputs import read_input
from relief3d.pipelines.reconstruct.plan import check_ceiling, plan_scene
from relief3d.pipelines.reconstruct.workspace import Workspace, input_fingerprint

OUTPUT_BYTES = 60_000_000
OUTPUT_BYTES_PER_VIEW = 3_000_000
"""Room asked for before work: features and matches while solving, then depth, mesh, splats and report."""

NETWORK_BYTES_PER_PIXEL = 3
"""Of compressed depth and confidence."""

_log = logging.getLogger(__name__)


def reconstruct(
    source: str | Path,
    out: str | Path,
    *,
    config: ReconstructConfig | None = None,
    progress: Progress | None = None,
    network: MultiViewModel | None = None,
    **options: Any,
) -> Scene:
    """Pictures in; cameras, depth, points, mesh and a report out.

    Args:
        source: folder, glob, video, COLMAP model folder, ``cameras.json`` or ``transforms.json``.
        out: output folder; see :mod:`relief3d.pipelines.reconstruct.results` for what is written.
        config: all options; or give single ones as keywords, for example ``quality="fast"``.
        progress: receives stages and steps.
        network: a multi-view network to use, instead of one that the options name.
        **options: fields of :class:`ReconstructConfig` and its ``multiview`` (``model="vggt"``), instead of ``config``.

    Returns:
        The reconstructed scene; ``scene.info`` holds what ``scene.json`` says.

    Raises:
        InputError: the input cannot be used (the output folder is left as it was).
        RunError: a failure while running; run again to continue from the last complete stage.
    """
    if config is not None and options:
        raise InputError("give either a config or single options, not both")
    config = _with_network(config or ReconstructConfig.of(**options), network)
    config.check()
    progress = progress or SilentProgress()
    out = Path(out)
    resolve_device(config.device)
    completion = completion_weights(config, progress)
    scene = read_input(source, config, progress)
    check_not_inside(out, _input_folders(source, scene))
    _check_inputs_outside(out, scene, [source, config.cameras, config.depth, config.masks])
    plan = plan_scene(scene, config, network=network)
    check_ceiling(plan, scene, config, network=network)
    if config.multiview.active and network is None:
        check_precision(config.multiview, config.device)
    workspace = Workspace(
        out,
        input_hash=input_fingerprint(
            scene,
            str(Path(source).name),
            (
                config.cameras,
                config.depth,
                config.masks,
                config.mesh_weights,
                None if completion is None else completion.file,
                *config.multiview.files(),
            ),
        ),
        # The name of a network that was passed in does not say which weights it has.
        stage_hashes={k: v + weights_digest(network) for k, v in config.fingerprint().items()},
        overwrite=config.overwrite,
        need_bytes=_room_needed(scene, config),
    )
    try:
        if workspace.complete:
            progress.message(f"{out} is already complete; nothing to do (use --overwrite to start again)")
            return load_scene(out)
        progress.message(
            f"{len(scene)} pictures; about {plan.seconds:.0f} s and {plan.peak_bytes / GIB:.1f} GiB"
        )
        return _run_stages(scene, config, workspace, progress, str(source), network, completion)
    except InputError:
        workspace.abandon()
        raise
    finally:
        if workspace.complete:
            workspace.tidy()
        workspace.close()


def _room_needed(scene: Scene, config: ReconstructConfig) -> int:
    """Bytes on disk; a network's maps have the size of the pictures."""
    need = OUTPUT_BYTES + OUTPUT_BYTES_PER_VIEW * len(scene)
    if config.multiview.active and not config.depth_width and config.depth_source in ("auto", "model"):
        need += NETWORK_BYTES_PER_PIXEL * sum(v.camera.width * v.camera.height for v in scene.views)
    return need


def _with_network(config: ReconstructConfig, network: MultiViewModel | None) -> ReconstructConfig:
    """The options name an injected network, so that they tell which result this is."""
    if network is None:
        return config
    if config.multiview.active:
        raise InputError("give either a network or the name of one (model), not both")
    return replace(config, multiview=replace(config.multiview, model=network.name))


def _run_stages(
    scene: Scene,
    config: ReconstructConfig,
    workspace: Workspace,
    progress: Progress,
    source: str,
    network: MultiViewModel | None,
    completion: MetricWeights | None,
) -> Scene:
    out = workspace.root

    def cameras() -> dict[str, Any]:
        solved, facts = camera_stage.solve_cameras(scene, config, workspace.work, progress, network)
        warnings = [*facts.get("warnings", ()), *results.write_cameras(solved, out)]
        return {**facts, "warnings": warnings, "metric": solved.metric}

    _stage(workspace, "cameras", cameras)
    forget_passes(workspace.work / NETWORK_FOLDER)
    solved = results.reload_cameras(scene, out, workspace.record("cameras"))

    def depth() -> dict[str, Any]:
        return depth_stage.solve_depth(solved, config, out, progress, workspace.work, completion)[1]

    _stage(workspace, "depth", depth)
    maps = depth_stage.reload_depth(solved, out)

    def mesh() -> dict[str, Any]:
        return surface.solve_surface(solved, maps, config, out, progress)

    _stage(workspace, "mesh", mesh)
    solved = results.reload_surface(solved, out)

    def report() -> dict[str, Any]:
        return results.write_summary_and_report(solved, maps, config, workspace, progress, source)

    _stage(workspace, "report", report)
    return solved.replace(info=results.read_summary(out))


def _stage(workspace: Workspace, name: str, work: Callable[[], dict[str, Any]]) -> None:
    """Run one stage unless it is complete; record wall time and peak memory with its facts."""
    if workspace.done(name):
        return
    workspace.begin_stage(name)
    began = time.monotonic()
    with torch.no_grad():
        facts = work()
    workspace.complete_stage(
        name, seconds=round(time.monotonic() - began, 3), peak_bytes=peak_rss(), facts=facts
    )


def _input_folders(source: str | Path, scene: Scene) -> list[Path]:
    """Folders whose pictures are the input; an output inside would be read as photos next time."""
    folders = {v.path.parent for v in scene.views if v.path is not None}
    if Path(source).is_dir():
        folders.add(Path(source))
    return sorted(folders)


def _check_inputs_outside(out: Path, scene: Scene, named: Sequence[str | Path | None]) -> None:
    """Refuse inputs inside the output folder: stages and ``--overwrite`` would delete them."""
    root = out.resolve()
    files = [Path(item) for item in named if item is not None]
    files += [view.path for view in scene.views if view.path is not None]
    for item in files:
        if root in item.resolve().parents:
            raise InputError(
                f"this input lies inside the output folder {out}, whose files are replaced",
                path=item,
                remedy="choose another output folder",
            )


def load_scene(out: str | Path) -> Scene:
    """Read what :func:`reconstruct` wrote: cameras, sparse points, depth (lazily), points and mesh.

    Raises:
        InputError: when the folder does not hold a complete result.
    """
    return results.load_result(Path(out))
