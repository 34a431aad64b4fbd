"""From keyframes, depth of submaps and matches to one scale per submap: the public entry of scale alignment.

VFM-Recon (arXiv 2603.12657), sections on scale alignment; specification 2. The sign of the edges is corrected, the
weights are robust, and everything that the paper leaves open has a default in :mod:`relief3d.methods.vfm_recon.config`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, SparseDepth
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.geometry.scale_graph import (
    ScaleGraph,
    ScaleGraphResult,
    edge_reliability,
    prior_reliability,
    solve_scale_graph,
)
from relief3d.methods.vfm_recon.alignment import Masks, SceneAlignment, SceneUnits, SubmapFacts
from relief3d.methods.vfm_recon.anchor import metric_factor, settle_units
from relief3d.methods.vfm_recon.config import AlignConfig
from relief3d.methods.vfm_recon.corrections import fit_correction
from relief3d.methods.vfm_recon.diagnostics import alignment_warnings, submap_flags, suspicious
from relief3d.methods.vfm_recon.edges import Edge, edge_ratio
from relief3d.methods.vfm_recon.inputs import DepthSource, MatchSource, checked_depth
from relief3d.methods.vfm_recon.loops import CoarseFrames, find_loop_submaps
from relief3d.methods.vfm_recon.masks import BelievedDepth
from relief3d.methods.vfm_recon.pose_check import PoseCheck, check_poses
from relief3d.methods.vfm_recon.priors import Prior, Samples, choose_pairs, collect_samples, submap_prior
from relief3d.methods.vfm_recon.submaps import Submap, plan_submaps

EARLY_CHECKED = 4
"""Submaps whose matches are compared with the poses before any depth is asked for."""


@dataclass(frozen=True)
class ScenePlan:
    """What alignment will ask for.

    Attributes:
        submaps: runs of keyframes that need depth (loop submaps come later).
        submap_pairs: per submap the keyframe pairs (a, b), a < b, to match.
        dropped: keyframes left out because they repeat another one's pose, with that one.
    """

    submaps: tuple[Submap, ...]
    submap_pairs: tuple[tuple[tuple[int, int], ...], ...]
    dropped: Mapping[int, int]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All keyframe pairs to match, each once."""
        return sorted({pair for own in self.submap_pairs for pair in own})


def plan_scene(
    cameras: Sequence[Camera],
    config: AlignConfig | None = None,
    segments: Sequence[Sequence[int]] | None = None,
) -> ScenePlan:
    """Cut keyframes into submaps and choose the pairs to match.

    Args:
        cameras: of the keyframes in time order, with K; pose None where a keyframe is not registered.
        config: see :class:`AlignConfig`.
        segments: keyframe numbers of uninterrupted parts; one part with all when None.

    Raises:
        InputError: no keyframes, K missing, or segments that name other or repeated keyframes.
    """
    config = config or AlignConfig()
    if not cameras:
        raise InputError("a scene without keyframes cannot be aligned")
    without = [k for k, c in enumerate(cameras) if c.K is None]
    if without:
        raise InputError(
            f"{len(without)} of {len(cameras)} keyframes have no intrinsics (the first is number {without[0]})",
            remedy="give K, or fill it from the depth network with predicted.fill_intrinsics",
        )
    parts = [list(range(len(cameras)))] if segments is None else [list(s) for s in segments]
    listed = [k for part in parts for k in part]
    if len(set(listed)) != len(listed) or not all(0 <= k < len(cameras) for k in listed):
        raise InputError(
            f"segments name keyframes twice or beyond the {len(cameras)} cameras",
            remedy="give poses and pictures of the same frames",
        )
    dropped: dict[int, int] = {}
    kept = [_without_repeats(part, cameras, dropped) for part in parts if part]
    submaps = plan_submaps(kept, config.submaps)
    pairs = tuple(tuple(choose_pairs(m, cameras, config.pairs, config.units)) for m in submaps)
    return ScenePlan(tuple(submaps), pairs, dropped)


def _without_repeats(part: Sequence[int], cameras: Sequence[Camera], dropped: dict[int, int]) -> list[int]:
    """Keyframes of a segment without those whose pose is exactly that of the last kept one."""
    out: list[int] = []
    last: int | None = None
    for k in part:
        pose = cameras[k].world_from_cam
        before = None if last is None else cameras[last].world_from_cam
        if pose is not None and before is not None:
            same = torch.allclose(pose[:3, :3], before[:3, :3], rtol=0, atol=1e-12)
            if same and torch.allclose(pose[:3, 3], before[:3, 3], rtol=1e-12, atol=0):
                dropped[k] = last if last is not None else k
                continue
        out.append(k)
        last = k if pose is not None else last
    return out


def align_scene(
    cameras: Sequence[Camera],
    depths: DepthSource,
    matches: MatchSource,
    config: AlignConfig | None = None,
    *,
    segments: Sequence[Sequence[int]] | None = None,
    plan: ScenePlan | None = None,
    sparse: Mapping[int, SparseDepth] | None = None,
    metric_depth: Callable[[int], Depth | None] | None = None,
    masks: Masks | None = None,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> SceneAlignment:
    """Find the scale of every submap's depth, so that all agree with the poses and with each other.

    Depth is asked for one submap at a time, and two or three submaps are held at most, so memory does not grow with
    the number of frames (with ``overlap.per_frame`` or ``overlap.spatial_order`` the triangulated samples are kept).

    Args:
        cameras: of the keyframes in time order, with K, pinhole; pose None where a keyframe is not registered. Poses
            may be given, estimated by structure from motion (``config.units = "pose"``), or predicted by the network
            (:func:`relief3d.methods.vfm_recon.predicted.chain_poses`).
        depths: gives the depth of a submap of keyframes, at any scale. It is asked for loop submaps too, which mix
            frames of two places.
        matches: gives corresponding pixels of keyframes (a, b), a < b. ``plan_scene(...).pairs`` lists what chain
            submaps need; loop submaps ask for pairs across the loop, and do without when there are none.
        config: see :class:`AlignConfig`.
        segments: see :func:`plan_scene`.
        plan: from :func:`plan_scene` with the same arguments; made when None.
        sparse: depth known at some pixels per keyframe, in the unit of the poses; taken as further samples.
        metric_depth: metres per keyframe (single-image network, sensor), of any size; anchors ``pose`` units and
            parts of the scene without triangulation. None keeps the unit of the poses.
        masks: (H, W) bool per keyframe at the size of its camera, True where pixels may be used.
        names: of the keyframes, for messages.
        progress: one step per submap.

    Returns:
        See :class:`SceneAlignment`; ``depth_frames(depths)`` streams the aligned depth.

    Raises:
        InputError: intrinsics missing, cameras and depth of different numbers, or poses of another convention (named).
    """
    config = config or AlignConfig()
    progress = progress or SilentProgress()
    plan = plan or plan_scene(cameras, config, segments)
    labels = tuple(names) if names is not None else tuple(f"keyframe {k}" for k in range(len(cameras)))
    if len(labels) != len(cameras):
        raise InputError(f"{len(cameras)} keyframes but {len(labels)} names")
    if sparse and not all(0 <= k < len(cameras) for k in sparse):
        raise InputError(f"sparse depth names a keyframe beyond the {len(cameras)} cameras")
    run = _Run(cameras, depths, matches, config, sparse or {}, masks, progress)
    run.check_early(plan)
    with stage(progress, "aligning scales", len(plan.submaps)):
        for submap, pairs in zip(plan.submaps, plan.submap_pairs, strict=True):
            run.add(submap, pairs)
            progress.advance()
    check = check_poses(run.samples, run.submaps, run.pairs, cameras, matches, config.priors)
    result = run.solve()
    if config.loops.enabled and len(plan.submaps) > 1:
        loops = find_loop_submaps(run.submaps, run.coarse, result.log_scale, cameras, config)
        for submap in loops:
            run.add(submap, choose_pairs(submap, cameras, config.pairs, config.units))
        if loops:
            result = run.solve()
    found = _assemble(run, result, plan, check, labels)
    found = settle_units(found, run.coarse, metric_depth)
    if metric_depth is not None and found.units == "pose":
        factor = metric_factor(found, depths, metric_depth)
        if factor is not None:
            found = found.scaled(factor, "metric")
    return replace(found, warnings=(*found.warnings, *alignment_warnings(found)))


class _Run:
    """What is gathered while submaps come by; depth of a submap is let go when no later neighbour shares its frames."""

    def __init__(
        self,
        cameras: Sequence[Camera],
        depths: DepthSource,
        matches: MatchSource,
        config: AlignConfig,
        sparse: Mapping[int, SparseDepth],
        masks: Masks | None,
        progress: Progress,
    ) -> None:
        self.cameras, self.depths, self.matches, self.config = cameras, depths, matches, config
        self.sparse, self.masks, self.progress = sparse, masks, progress
        self.submaps: list[Submap] = []
        self.pairs: list[Sequence[tuple[int, int]]] = []
        self.samples: list[Samples] = []
        self.priors: list[Prior] = []
        self.edges: list[Edge] = []
        self.facts: list[SubmapFacts] = []
        self.coarse = CoarseFrames(config.loops.stride)
        self.graph: ScaleGraph | None = None
        self._held: dict[int, BelievedDepth] = {}

    @property
    def keeps_samples(self) -> bool:
        """Samples are needed after the solve."""
        return self.config.overlap.per_frame or self.config.overlap.spatial_order > 0

    def check_early(self, plan: ScenePlan) -> None:
        """Refuse poses of another convention before any network runs."""
        step = max(1, len(plan.submaps) // EARLY_CHECKED)
        submaps, pairs = plan.submaps[::step], plan.submap_pairs[::step]
        samples = [
            collect_samples(m, p, self.cameras, self.matches, self.config.priors)
            for m, p in zip(submaps, pairs, strict=True)
        ]
        check_poses(samples, submaps, pairs, self.cameras, self.matches, self.config.priors)

    def add(self, submap: Submap, pairs: Sequence[tuple[int, int]]) -> None:
        """Prior of a submap and its edges to those before it."""
        maps = checked_depth(self.depths, submap)
        here = BelievedDepth(submap, maps, self.config.mask)
        samples = collect_samples(
            submap,
            pairs,
            self.cameras,
            self.matches,
            self.config.priors,
            sparse=self.sparse,
            masks=self.masks,
        )
        prior = submap_prior(here, samples, self.cameras, self.config)
        if not self.keeps_samples:
            none = torch.zeros(0, dtype=torch.float64)
            index = torch.zeros(0, dtype=torch.int64)
            samples = replace(samples, place=index, xy=none.reshape(0, 2), z=none, confidence=none)
            prior = replace(prior, samples=samples, log_ratio=none, used=index)
        self.submaps.append(submap)
        self.pairs.append(pairs)
        self.samples.append(samples)
        self.priors.append(prior)
        self.facts.append(_facts(here))
        if submap.kind == "chain":
            self._held = {m: d for m, d in self._held.items() if share_frames(d.submap, submap)}
            others = [d for m, d in sorted(self._held.items())]
            self._held[submap.index] = here
            self.coarse.add(here)
        else:
            self._held = {}
            others = [self._reloaded(m) for m in self.submaps[:-1] if share_frames(m, submap)]
        for other in others:
            self.edges.append(edge_ratio(other, here, self.config.edges, self.config.submaps.overlap))

    def _reloaded(self, submap: Submap) -> BelievedDepth:
        return BelievedDepth(submap, checked_depth(self.depths, submap), self.config.mask)

    def solve(self) -> ScaleGraphResult:
        """Log scales from everything gathered so far."""
        config, options = self.config, self.config.priors
        spread = torch.tensor([p.spread for p in self.priors], dtype=torch.float64)
        weights = prior_reliability(
            torch.tensor([p.count for p in self.priors]),
            spread,
            prior_weight=config.graph.prior_weight,
            half_samples=options.half_samples,
            half_spread=options.spread,
            min_samples=options.min_samples,
            uniform=options.uniform,
        )
        valid = torch.tensor([e.valid for e in self.edges], dtype=torch.bool)
        rho = torch.tensor([e.rho for e in self.edges], dtype=torch.float64)
        unit = ~valid & (config.edges.invalid == "unit")
        edge_weights = edge_reliability(
            torch.tensor([e.share for e in self.edges], dtype=torch.float64),
            torch.tensor([e.spread for e in self.edges], dtype=torch.float64),
            valid,
            half_spread=config.edges.spread,
        )
        self.graph = ScaleGraph(
            torch.tensor([p.log_scale for p in self.priors], dtype=torch.float64),
            weights,
            torch.tensor([(e.i, e.j) for e in self.edges], dtype=torch.int64).reshape(-1, 2),
            torch.where(unit, torch.zeros_like(rho), rho),
            torch.where(unit, torch.ones_like(edge_weights), edge_weights),
        )
        return solve_scale_graph(self.graph, config.graph)


def share_frames(first: Submap, second: Submap) -> bool:
    """Whether two submaps hold a common keyframe."""
    return bool(set(first.frames) & set(second.frames))


def _facts(depth: BelievedDepth) -> SubmapFacts:
    middle, far = depth.quantiles()
    size = (int(depth.maps.depth.shape[2]), int(depth.maps.depth.shape[1]))
    logs = [math.log(v) if v > 0 else math.nan for v in (middle, far)]
    return SubmapFacts(logs[0], logs[1], size)


def _assemble(
    run: _Run,
    result: ScaleGraphResult,
    plan: ScenePlan,
    check: PoseCheck,
    names: tuple[str, ...],
) -> SceneAlignment:
    assert run.graph is not None
    posed = sorted(
        t for t in {t for m in run.submaps for t in m.frames} if run.cameras[t].world_from_cam is not None
    )
    units: SceneUnits = run.config.units
    alignment = SceneAlignment(
        submaps=tuple(run.submaps),
        log_scale=result.log_scale,
        cameras=tuple(run.cameras),
        units=units,
        factor=1.0,
        usable=tuple(posed),
        solution=result,
        priors=tuple(run.priors),
        prior_weights=run.graph.prior_weights,
        edges=tuple(run.edges),
        edge_weights=run.graph.weights,
        facts=tuple(run.facts),
        corrections=_corrections(run, result),
        pose_check=check,
        flags=(),
        suspicious_edges=tuple(suspicious(run.graph, result)),
        warnings=() if check.warning is None else (check.warning,),
        dropped=plan.dropped,
        config=run.config,
        names=names,
        masks=run.masks,
    )
    return replace(alignment, flags=submap_flags(alignment))


def _corrections(run: _Run, result: ScaleGraphResult) -> dict[tuple[int, int], Tensor]:
    """Log factors of single predictions, from what the samples of a frame still ask for after the solve."""
    if not run.keeps_samples:
        return {}
    order, out = run.config.overlap.spatial_order, {}
    for submap, prior, x in zip(run.submaps, run.priors, result.log_scale.tolist(), strict=True):
        samples = prior.samples
        for place, frame in enumerate(submap.frames):
            here = samples.place[prior.used] == place
            index, camera = prior.used[here], run.cameras[frame]
            u = samples.xy[index, 0] / camera.width * 2 - 1
            v = samples.xy[index, 1] / camera.height * 2 - 1
            residual = prior.log_ratio[here] - x
            out[submap.index, place] = fit_correction(u, v, residual, samples.confidence[index], order)
    return out
