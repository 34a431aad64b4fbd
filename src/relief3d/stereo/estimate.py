"""Dense depth of all views of a scene: selection, sweep, aggregation, consistency, filters."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Depth, Scene
from relief3d.core.errors import InputError
from relief3d.core.parallel import map_on_cores
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.stereo.config import StereoConfig
from relief3d.stereo.consistency import check_view, confidence
from relief3d.stereo.filters import normals_from_inverse_depth, on_edge, remove_speckles
from relief3d.stereo.neighbours import (
    DepthRange,
    Neighbour,
    depth_ranges,
    rank_neighbours,
    sample_points,
)
from relief3d.stereo.refine import refine_slanted
from relief3d.stereo.result import StereoDepth, StereoReport, StereoResult
from relief3d.stereo.sgm import aggregate
from relief3d.stereo.sweep import cost_volume, inverse_depth_planes
from relief3d.stereo.views import PreparedView, prepare_view
from relief3d.stereo.winner import Winner, pick_winner

MIN_GREY_SPREAD = 2.0 / 255.0
"""Standard deviation of the grey picture below which there is nothing to match."""


@dataclass(frozen=True)
class _Task:
    """A view to be matched: its place among the prepared views, its range and its neighbours."""

    position: int
    range: DepthRange
    neighbours: tuple[Neighbour, ...]


def match_view(
    reference: PreparedView, neighbours: Sequence[PreparedView], depth: DepthRange, config: StereoConfig
) -> Winner:
    """Best depth per pixel of one view, before any check against other views.

    Args:
        reference: the view.
        neighbours: its source views, best first.
        depth: range to search.
        config: matching and aggregation settings.
    """
    count = config.plane_count(max(reference.camera.width, reference.camera.height))
    planes = inverse_depth_planes(depth.near, depth.far, count, reference.grey.device)
    raw = cost_volume(
        reference,
        neighbours,
        planes,
        window=config.window,
        variance_floor=config.variance_floor,
        best=config.best_count(len(neighbours)),
        block=config.block_size(reference.grey.device.type),
    )
    smooth = raw
    if config.sgm:
        smooth = aggregate(raw, reference.grey, p1=config.p1, p2=config.p2, edge_scale=config.edge_scale)
    winner = pick_winner(smooth, raw, planes)
    if config.refine_iterations:
        del raw, smooth  # the volumes are not needed any more
        few = neighbours[: config.refine_neighbours]
        winner = refine_slanted(
            reference,
            few,
            winner,
            iterations=config.refine_iterations,
            best=config.best_count(len(few)),
            variance_floor=config.variance_floor,
            limits=(float(planes[-1]), float(planes[0])),
            generator=torch_generator(derive_seed(config.seed, "refine", reference.name)),
        )
    if reference.mask is not None:
        winner.inverse_depth[~reference.mask] = 0.0
    return winner


def check_and_filter(
    views: Sequence[PreparedView],
    task: _Task,
    winners: Mapping[int, Winner],
    config: StereoConfig,
    metric: bool,
) -> StereoDepth:
    """Keep what the neighbours confirm, drop edges and speckles, and describe the rest."""
    view, own = views[task.position], winners[task.position]
    others = [(views[n.index], winners[n.index].inverse_depth) for n in task.neighbours if n.index in winners]
    agreement = check_view(
        view, own.inverse_depth, others, pixels=config.check_pixels, relative=config.check_relative
    )
    enough = agreement.count >= config.needed_agreement(len(task.neighbours))
    rim = (agreement.seen <= config.single_witness) & (agreement.strict >= 1) & (agreement.against == 0)
    enough |= rim
    keep = (own.inverse_depth > 0) & enough
    keep &= agreement.count > config.contradiction * agreement.against
    strict = float((agreement.strict >= 2).float().mean())
    inverse = agreement.inverse_depth if config.average else own.inverse_depth
    if config.edge_jump > 0:
        keep &= ~on_edge(own.inverse_depth, config.edge_jump * own.spacing)
    inverse = torch.where(keep, inverse, torch.zeros_like(inverse))
    keep &= remove_speckles(
        inverse, config.component_step * own.spacing, config.least_region(inverse.numel())
    )
    inverse = torch.where(keep, inverse, torch.zeros_like(inverse))
    score = confidence(agreement.count, own.zncc, len(others)) * keep
    depth = Depth(_reciprocal(inverse).cpu(), keep.cpu(), metric, score.cpu())
    return StereoDepth(
        index=view.index,
        name=view.name,
        camera=view.camera,
        depth=depth,
        normals=normals_from_inverse_depth(inverse, view.K, own.spacing).cpu(),
        agreement=(agreement.count * keep).cpu(),
        raw=_reciprocal(own.inverse_depth).cpu(),
        neighbours=tuple(
            Neighbour(views[n.index].index, n.score, n.overlap, n.angle) for n in task.neighbours
        ),
        range=task.range,
        kept=float(keep.float().mean()),
        strict_kept=strict,
    )


def _reciprocal(inverse: Tensor) -> Tensor:
    return torch.where(inverse > 0, 1.0 / inverse.clamp_min(1e-12), torch.zeros_like(inverse))


def _plan_tasks(
    views: Sequence[PreparedView],
    scene: Scene,
    config: StereoConfig,
    given: Mapping[int, tuple[float, float]] | None,
    reasons: list[str | None],
) -> list[_Task]:
    ranges = depth_ranges(views, scene.sparse, config, given)
    tasks = []
    for position, view in enumerate(views):
        if float(view.grey.std()) < MIN_GREY_SPREAD:
            reasons[view.index] = "the picture shows no structure to match"
            continue
        samples = sample_points(view, ranges[position], scene.sparse)
        found = rank_neighbours(views, position, samples, config)
        if len(found) < config.min_neighbours:
            reasons[view.index] = (
                f"only {len(found)} other view(s) overlap it at a usable angle "
                f"({config.min_angle:g} to {config.max_angle:g} degrees), {config.min_neighbours} are needed"
            )
            continue
        tasks.append(_Task(position, ranges[position], tuple(found)))
    return tasks


def _report(results: Sequence[StereoDepth | None], config: StereoConfig, seconds: float) -> StereoReport:
    done = [r for r in results if r is not None]
    wide = [r.strict_kept for r in done if len(r.neighbours) >= 4]
    share = sum(wide) / len(wide) if wide else None
    doubtful = share is not None and share < config.pose_check_share
    verdict = None
    if not done:
        verdict = "no view has enough overlapping neighbours for dense stereo"
    elif doubtful and share is not None:
        verdict = (
            f"the views do not agree on depth: {100 * share:.0f} % of the pixels are confirmed by two "
            f"neighbours although {len(wide)} view(s) overlap at least four others; the camera poses are "
            "probably inaccurate or the scene has too little texture"
        )
    kept = sum(r.kept for r in done) / len(done) if done else 0.0
    return StereoReport(doubtful, verdict, share, len(wide), kept, seconds)


def estimate_depths(
    scene: Scene,
    config: StereoConfig | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    *,
    ranges: Mapping[int, tuple[float, float]] | None = None,
) -> StereoResult:
    """Depth of every view that overlaps enough others, from pictures and cameras alone.

    Views are matched one per core: memory is a cost volume and its aggregate for each (see
    :func:`relief3d.stereo.plan.plan_stereo`) plus, per view, the grey picture and three maps.

    Args:
        scene: posed pinhole views with pictures; masks are honoured (masked pixels get no depth and
            support none). ``scene.sparse``, when present, gives depth ranges and neighbours.
        config: settings; the default profile when None.
        device: where to compute.
        progress: receives one step per view and pass.
        ranges: (near, far) depth of views by index into ``scene.views``, used as they are.

    Returns:
        One entry per view; ``result.reasons`` says why a view has none, and ``result.report.verdict``
        whether the whole result should be refused.

    Raises:
        InputError: when a posed view cannot be used at all (distortion, wrong picture size, bad range).
    """
    began = time.monotonic()
    config = config or StereoConfig()
    progress = progress or SilentProgress()
    device = torch.device(device)
    reasons: list[str | None] = ["the camera of this view is unknown"] * len(scene)
    posed = [i for i in scene.posed if scene.views[i].image is not None]
    for i in scene.posed:
        reasons[i] = None if i in posed else "the view has no picture"
    results: list[StereoDepth | None] = [None] * len(scene)
    with torch.no_grad():
        views = [prepare_view(scene.views[i], i, config.max_width, device) for i in posed]
        if config.neighbours < config.min_neighbours:
            raise InputError("stereo setting: neighbours must not be below min_neighbours")
        tasks = _plan_tasks(views, scene, config, ranges, reasons)
        winners: dict[int, Winner] = {}

        def match(task: _Task) -> Winner:
            sources = [views[n.index] for n in task.neighbours]
            return match_view(views[task.position], sources, task.range, config)

        def check(task: _Task) -> StereoDepth:
            return check_and_filter(views, task, winners, config, scene.metric)

        with stage(progress, "stereo: matching", len(tasks)):
            for task, winner in zip(tasks, map_on_cores(match, tasks, device)):
                winners[task.position] = winner
                progress.advance(note=views[task.position].name)
        with stage(progress, "stereo: checking", len(tasks)):
            for done in map_on_cores(check, tasks, device):
                results[done.index] = done
                progress.advance(note=done.name)
    report = _report(results, config, time.monotonic() - began)
    return StereoResult(tuple(results), tuple(reasons), report)
