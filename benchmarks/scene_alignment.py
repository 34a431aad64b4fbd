"""Scale alignment and depth reprojection: speed, long chains, and the controlled experiment of the specification.

    python benchmarks/scene_alignment.py [--parts speed fusion chains scales] [--frames 100] [--threads 1]

Room and cameras are those of benchmarks/fusion.py. "Foundation depth" is exact depth divided by a factor per submap
(standard deviation 0.2 in log), with smooth noise of 2 % and 1 % per prediction; matches are exact points with 0.5 px
noise of which 10 % are wrong. All parameters stand in this file. Writes one file per part under results/vfm_recon/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion import cameras, room
from relief3d.core.contract import Camera, Mesh
from relief3d.core.memory import peak_rss
from relief3d.core.provenance import commit, hardware, versions
from relief3d.eval.metrics.mesh import SurfaceSamples, evaluate_points, sample_surface
from relief3d.fusion.factory import make_fuser
from relief3d.geometry.projection import project_world, unproject
from relief3d.geometry.scale_graph import ScaleGraph, ScaleGraphOptions, solve_scale_graph
from relief3d.geometry.triangulation import projection_matrix, triangulate_dlt, two_view_gates
from relief3d.methods.vfm_recon.align import ScenePlan, align_scene, plan_scene
from relief3d.methods.vfm_recon.alignment import SceneAlignment
from relief3d.methods.vfm_recon.config import AlignConfig, LoopConfig, OverlapConfig
from relief3d.methods.vfm_recon.inputs import PairMatches, SubmapDepth
from relief3d.methods.vfm_recon.reprojection import ReprojectionConfig, fuse_aligned
from relief3d.methods.vfm_recon.submaps import Submap
from relief3d.render.factory import make_renderer
from relief3d.render.rasterizer import TorchRenderer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "vfm_recon"
SCALE, SMOOTH, CORRELATION, FRAME = 0.2, 0.02, 32, 0.01
PRIOR, WRONG = 0.03, (1.5, 0.6)
MATCHES, PIXELS, OUTLIERS = 500, 0.5, 0.1
VOXEL, TRUNCATION, TRUTH_VOXEL, THRESHOLD, SAMPLES = 0.04, 3.0, 0.02, 0.05, 200_000
PLAIN_FRAMES = 8


class Clock:
    """Wall and processor seconds of a block."""

    def __enter__(self) -> Clock:
        self._began = (time.perf_counter(), time.process_time())
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = round(time.perf_counter() - self._began[0], 3)
        self.processor = round(time.process_time() - self._began[1], 3)

    @property
    def times(self) -> dict[str, float]:
        return {"wall_s": self.wall, "processor_s": self.processor}


class Foundation:
    """Depth of submaps as a foundation model would give it; made once per submap and kept."""

    def __init__(self, exact: list[Tensor], log_scale: Tensor, seed: int = 0) -> None:
        self.exact, self.log_scale, self.seed = exact, log_scale, seed
        self._kept: dict[int, Tensor] = {}
        height, width = exact[0].shape
        ranks = torch.randint(0, 256, (height, width), generator=torch.Generator().manual_seed(1))
        self._confidence = ranks.to(torch.uint8)

    def __call__(self, submap: Submap) -> SubmapDepth:
        if submap.index not in self._kept:
            generator = torch.Generator().manual_seed(self.seed * 10_000 + submap.index)
            maps = [self._one(self.exact[t], generator) for t in submap.frames]
            self._kept[submap.index] = torch.stack(maps) * float((-self.log_scale[submap.index]).exp())
        return SubmapDepth(self._kept[submap.index], self._confidence.expand(len(submap.frames), -1, -1))

    @staticmethod
    def _one(exact: Tensor, generator: torch.Generator) -> Tensor:
        height, width = exact.shape
        coarse = torch.randn(1, 1, height // CORRELATION + 2, width // CORRELATION + 2, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0, 0]
        log = SMOOTH * smooth / smooth.std() + FRAME * torch.randn((), generator=generator)
        return exact * log.exp()


def make_matches(
    views: list[Camera], exact: list[Tensor], plan: ScenePlan
) -> dict[tuple[int, int], PairMatches]:
    """Points that both keyframes see, with noise and wrong partners."""
    out = {}
    for a, b in plan.pairs:
        generator = torch.Generator().manual_seed(7919 * a + b)
        first, second = views[a], views[b]
        assert first.K is not None and first.world_from_cam is not None
        assert second.K is not None and second.cam_from_world is not None
        height, width = exact[a].shape
        size = torch.tensor([width, height], dtype=torch.float64)
        cell = (torch.rand(3 * MATCHES, 2, generator=generator) * size).long()
        xy, z = cell.double() + 0.5, exact[a][cell[:, 1], cell[:, 0]].double()
        local = unproject(xy, z, first.K)
        world = local @ first.world_from_cam[:3, :3].T + first.world_from_cam[:3, 3]
        other, depth = project_world(world, second.K, second.cam_from_world)
        inside = (z > 0) & (depth > 0) & (other >= 0).all(-1) & (other < size).all(-1)
        there = torch.minimum(other.long().clamp_min(0), (size - 1).long())
        seen = exact[b][there[:, 1], there[:, 0]].double()
        good = inside & ((seen - depth).abs() < 0.02 * depth)
        xy, other = xy[good][:MATCHES], other[good][:MATCHES]
        other = other + PIXELS * torch.randn(other.shape, generator=generator, dtype=torch.float64)
        wrong = torch.rand(len(other), generator=generator) < OUTLIERS
        other[wrong] = torch.rand(int(wrong.sum()), 2, generator=generator).double() * size
        out[a, b] = PairMatches(xy, other)
    return out


def plain_alignment(
    views: list[Camera], depths: Foundation, matches: dict[tuple[int, int], PairMatches], plan: ScenePlan
) -> Tensor:
    """The same steps written plainly: a loop over pairs, singular values, all pixels, scipy's least squares."""
    from scipy.optimize import least_squares

    priors, edges, previous = [], [], None
    for submap, pairs in zip(plan.submaps, plan.submap_pairs, strict=True):
        maps, samples = depths(submap).depth, []
        for a, b in pairs:
            m = matches[a, b]
            sides = [views[a], views[b]]
            K = [c.K for c in sides]
            T = [c.cam_from_world for c in sides]
            P = torch.stack([projection_matrix(k, t) for k, t in zip(K, T, strict=True)])  # type: ignore[arg-type]
            points = triangulate_dlt(P, torch.stack([m.xy_a, m.xy_b]))
            gate = two_view_gates(points, m.xy_a, m.xy_b, K[0], K[1], T[0], T[1], 640.0)  # type: ignore[arg-type]
            for frame, xy, z in ((a, m.xy_a, gate.z_a), (b, m.xy_b, gate.z_b)):
                column, row = xy[gate.keep].long().unbind(-1)
                value = maps[submap.position(frame)][row.clamp(0, 479), column.clamp(0, 639)].double()
                samples.append((z[gate.keep] / value).log())
        priors.append(float(torch.cat(samples).median()))
        if previous is not None:
            other, old = previous
            shared = [t for t in other.frames if t in submap.frames]
            ratio = torch.cat(
                [
                    (old[other.position(t)] / maps[submap.position(t)]).log()[
                        _smooth(old[other.position(t)]) & _smooth(maps[submap.position(t)])
                    ]
                    for t in shared
                ]
            )
            edges.append((other.index, submap.index, float(ratio.median())))
        previous = (submap, maps)
    b = np.array(priors)

    def residual(x: np.ndarray) -> np.ndarray:
        return np.array([x[i] - x[j] + r for i, j, r in edges] + list(np.sqrt(0.5) * (x - b)))

    found = least_squares(residual, np.full(len(b), np.median(b)), loss="cauchy", f_scale=0.05)
    return torch.from_numpy(found.x)


def _smooth(depth: Tensor) -> Tensor:
    pooled = torch.nn.functional.max_pool2d(torch.stack([depth, 1 / depth])[None], 3, 1, 1)[0]
    return pooled[0] * pooled[1] <= 1.1


class Stage:
    """What all parts share; made once."""

    def __init__(self, frames: int) -> None:
        self.mesh, self.views = room(), cameras(frames)
        renderer = make_renderer("auto")
        self.exact = [renderer.render(self.mesh, view) for view in self.views]
        self.config = AlignConfig(loops=LoopConfig(enabled=False))
        self.plan = plan_scene(self.views, self.config)
        generator = torch.Generator().manual_seed(0)
        self.truth = SCALE * torch.randn(len(self.plan.submaps), generator=generator, dtype=torch.float64)
        self.depths = Foundation(self.exact, self.truth)
        self.matches = make_matches(self.views, self.exact, self.plan)
        for submap in self.plan.submaps:
            self.depths(submap)

    def align(self, config: AlignConfig | None = None) -> SceneAlignment:
        return align_scene(self.views, self.depths, self.matches, config or self.config, plan=self.plan)

    def error(self, log_scale: Tensor) -> float:
        count = len(self.truth)
        return float((log_scale[:count] - self.truth).abs().mean())


def speed(stage: Stage) -> dict[str, Any]:
    """Alignment without network and matching."""
    stage.align()
    with Clock() as ours:
        found = stage.align()
    with Clock() as plain:
        other = plain_alignment(stage.views, stage.depths, stage.matches, stage.plan)
    return {
        "keyframes": len(stage.views),
        "size": [640, 480],
        "submaps": len(stage.plan.submaps),
        "pairs": len(stage.plan.pairs),
        "matches": sum(len(m) for m in stage.matches.values()),
        "alignment": {**ours.times, "log_error": stage.error(found.log_scale)},
        "plain": {**plain.times, "log_error": stage.error(other)},
        "target_s": 3.0,
    }


def fusion(stage: Stage) -> dict[str, Any]:
    """Blended depth into a mesh and back into refined depth, 4 cm."""
    alignment = stage.align()
    kept: dict[int, Tensor] = {}
    with Clock() as ours:
        result = fuse_aligned(
            alignment,
            stage.depths,
            ReprojectionConfig(voxel_size=VOXEL),
            sink=lambda frame, depth, camera: kept.__setitem__(frame, depth),
        )
    refined = _abs_rel(stage, kept)
    aligned = {f.frame: f.depth.values() for f in alignment.depth_frames(stage.depths)}
    step = max(1, len(stage.views) // PLAIN_FRAMES)
    chosen = list(range(0, len(stage.views), step))[:PLAIN_FRAMES]
    with Clock() as plain:
        mesh = _dense_fusion([stage.views[t] for t in chosen], [aligned[t] for t in chosen])
        renderer = TorchRenderer()
        for t in chosen:
            renderer.render(mesh, stage.views[t])
    share = len(stage.views) / len(chosen)
    return {
        "frames": len(stage.views),
        "size": [640, 480],
        "voxel_m": VOXEL,
        "ours": {**ours.times, "covered": result.covered, "vertices": len(result.mesh.vertices)},
        "plain": {
            **{name: round(value * share, 1) for name, value in plain.times.items()},
            "measured_frames": len(chosen),
            "what": "dense volume in torch, marching cubes of scikit-image, z-buffer in torch; scaled to all frames",
        },
        "abs_rel_percent": {"aligned": 100 * _abs_rel(stage, aligned), "refined": 100 * refined},
        "volume_mb": round(result.volume_bytes / 1e6, 1),
        "target_s": 6.0,
    }


def _abs_rel(stage: Stage, depth: dict[int, Tensor]) -> float:
    values = []
    for t, d in depth.items():
        both = (d > 0) & (stage.exact[t] > 0)
        values.append(float(((d - stage.exact[t]).abs() / stage.exact[t])[both].mean()))
    return float(np.mean(values))


def _dense_fusion(views: list[Camera], depths: list[Tensor]) -> Mesh:
    """Every voxel of a box around the room, in every frame."""
    from skimage.measure import marching_cubes

    low, size = torch.tensor([-3.2, -2.7, -0.2]), (160, 135, 85)
    axes = [low[k] + VOXEL * torch.arange(size[k]) for k in range(3)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    value, weight = torch.ones(len(points)), torch.zeros(len(points))
    tau = TRUNCATION * VOXEL
    for view, depth in zip(views, depths, strict=True):
        assert view.K is not None and view.cam_from_world is not None
        xy, z = project_world(points, view.K.float(), view.cam_from_world.float())
        inside = (z > 0) & (xy[:, 0] >= 0) & (xy[:, 1] >= 0) & (xy[:, 0] < 640) & (xy[:, 1] < 480)
        column, row = xy[:, 0].long().clamp(0, 639), xy[:, 1].long().clamp(0, 479)
        seen = depth[row, column]
        signed = seen - z
        use = inside & (seen > 0) & (signed >= -tau)
        value[use] = (value[use] * weight[use] + (signed[use] / tau).clamp(max=1.0)) / (weight[use] + 1)
        weight[use] += 1
    mask = (weight > 0).reshape(size).numpy()
    vertices, faces, _, _ = marching_cubes(value.reshape(size).numpy(), 0.0, mask=mask)
    return Mesh(torch.from_numpy(vertices.copy()) * VOXEL + low, torch.from_numpy(faces.copy()).long())


def chains(draws: int = 20) -> dict[str, Any]:
    """Long chains: a camera walks laps of 24 submaps; priors exist in the first lap only, or everywhere."""
    rows = []
    for count in (24, 50, 100, 200, 350, 500):
        for kind in ("everywhere", "first lap"):
            found: dict[str, list[float]] = {"open": [], "loops": []}
            seconds: list[float] = []
            for seed in range(draws):
                for name, value in _chain(count, kind == "first lap", seed).items():
                    found[name].append(value[0])
                    seconds.append(value[1])
            rows.append(
                {
                    "submaps": count,
                    "priors": kind,
                    **{f"{name}_error": float(np.mean(v)) for name, v in found.items()},
                    **{f"{name}_worst": float(np.max(v)) for name, v in found.items()},
                    "solve_s": float(np.median(seconds)),
                    "solve_worst_s": float(np.max(seconds)),
                }
            )
    return {
        "draws": draws,
        "noise": {"prior": PRIOR, "edge": 0.01, "wrong_priors": "1 in 12, by 0.3 to 0.7", "loop_every": 6},
        "rows": rows,
        "target_s": 1.0,
    }


def _chain(count: int, first_lap: bool, seed: int) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.4, count)
    priors = x + rng.normal(0, PRIOR, count)
    wrong = rng.choice(count, max(2, count // 12), replace=False)
    priors[wrong] += rng.choice([-1, 1], len(wrong)) * rng.uniform(0.3, 0.7, len(wrong))
    weights = np.full(count, 0.5)
    if first_lap:
        weights[24:] = 0
    edges = [(k, k + 1) for k in range(count - 1)]
    loops = [(m - 24 * int(rng.integers(1, m // 24 + 1)), m) for m in range(24, count, 6)]
    noise = rng.normal(0, 0.01, len(edges) + len(loops))
    out = {}
    for name, used in (("open", edges), ("loops", edges + loops)):
        e = np.array(used)
        rho = x[e[:, 1]] - x[e[:, 0]] + noise[: len(e)]
        graph = ScaleGraph(*(torch.from_numpy(v) for v in (priors, weights, e, rho, np.ones(len(e)))))
        began = time.perf_counter()
        solved = solve_scale_graph(graph).log_scale.numpy()
        out[name] = (float(np.abs(solved - x).mean()), time.perf_counter() - began)
    return out


def scales(stage: Stage) -> dict[str, Any]:
    """The table of the specification's 11.2: what errors of scale cost."""
    alignment = stage.align()
    rng = np.random.default_rng(0)
    count = len(stage.truth)
    priors = stage.truth.numpy() + rng.normal(0, PRIOR, count)
    for k, factor in zip(rng.choice(count, 2, replace=False), WRONG, strict=True):
        priors[k] += math.log(factor)
    b = torch.from_numpy(priors)
    graph = replace(alignment_graph(alignment), priors=b)

    def solved(**options: Any) -> Tensor:
        weight = options.pop("weight", 0.5)
        own = replace(graph, prior_weights=torch.full((count,), weight, dtype=torch.float64))
        return solve_scale_graph(own, ScaleGraphOptions(**options)).log_scale

    robust = solved()
    rows: list[tuple[str, Tensor, str]] = [
        ("true scales, noisy depth", stage.truth, "centre"),
        ("graph, Cauchy weights (default)", robust, "blend"),
        ("same, every prediction with 1/k", robust, "all"),
        ("same, central prediction", robust, "centre"),
        ("graph, Huber weights, lambda 0.1 (as 11.2)", solved(robust="huber", weight=0.1), "centre"),
        ("graph, plain least squares, lambda 0.1", solved(robust="none", weight=0.1), "centre"),
        ("priors only (Eq. 1)", b, "centre"),
        (
            "graph, literal sign of Eq. 5, lambda 0.1",
            solved(robust="none", sign="literal", weight=0.1),
            "centre",
        ),
        ("one global scale", torch.full_like(b, float(b.median())), "centre"),
        ("whole alignment from matches", alignment.log_scale, "blend"),
    ]
    generator = torch.Generator().manual_seed(0)
    truth = sample_surface(_fused(stage.views, stage.exact, TRUTH_VOXEL), SAMPLES, generator)
    exact = _fused(stage.views, stage.exact, VOXEL)
    out = [{"scales": "exact depth", "overlap": "-", "log_error": 0.0, **_scores(exact, truth)}]
    for name, log_scale, mode in rows:
        config = replace(stage.config, overlap=OverlapConfig(mode=mode))  # type: ignore[arg-type]
        moved = replace(alignment, log_scale=log_scale, config=config)
        mesh = fuse_aligned(moved, stage.depths, ReprojectionConfig(voxel_size=VOXEL)).raw
        out.append(
            {"scales": name, "overlap": mode, "log_error": stage.error(log_scale), **_scores(mesh, truth)}
        )
        print(json.dumps(out[-1]), flush=True)
    return {"keyframes": len(stage.views), "threshold_m": THRESHOLD, "voxel_m": VOXEL, "rows": out}


def alignment_graph(alignment: SceneAlignment) -> ScaleGraph:
    """The measured edges of an alignment, with its own priors."""
    return ScaleGraph(
        torch.tensor([p.log_scale for p in alignment.priors], dtype=torch.float64),
        alignment.prior_weights,
        torch.tensor([(e.i, e.j) for e in alignment.edges]),
        torch.tensor([e.rho for e in alignment.edges], dtype=torch.float64),
        torch.ones(len(alignment.edges), dtype=torch.float64),
    )


def _fused(views: list[Camera], depths: list[Tensor], voxel: float) -> Mesh:
    fuser = make_fuser("auto", voxel, TRUNCATION, max_depth=5.0, with_color=False)
    for view, depth in zip(views, depths, strict=True):
        assert view.K is not None and view.cam_from_world is not None
        fuser.integrate(depth, view.K, view.cam_from_world)
    return fuser.extract(1.0)


def _scores(mesh: Mesh, truth: SurfaceSamples) -> dict[str, float]:
    points = sample_surface(mesh, SAMPLES, torch.Generator().manual_seed(1))
    found = evaluate_points(points, truth, (THRESHOLD,))
    score = found.scores[0]
    return {
        "accuracy_cm": 100 * found.accuracy,
        "completeness_cm": 100 * found.completeness,
        "precision": 100 * score.precision,
        "recall": 100 * score.recall,
        "f1": 100 * score.fscore,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["speed", "fusion", "chains", "scales"])
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    stage = Stage(args.frames) if set(args.parts) - {"chains"} else None
    work: dict[str, Callable[[], dict[str, Any]]] = {"chains": chains}
    if stage is not None:
        for function in (speed, fusion, scales):
            work[function.__name__] = lambda f=function: f(stage)  # type: ignore[misc]
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        load = os.getloadavg()[0]
        with Clock() as clock:
            found = work[part]()
        record = {
            "benchmark": f"scene_alignment.{part}",
            "command": f"python benchmarks/scene_alignment.py --parts {part} --frames {args.frames} "
            f"--threads {args.threads}",
            "seed": 0,
            "commit": commit(),
            "hardware": {**hardware(), "load_before": load},
            "versions": versions(),
            "wall_s": clock.wall,
            "peak_memory_mb": round(peak_rss() / 1e6),
            **found,
        }
        text = json.dumps(record, indent=2)
        print(text, flush=True)
        (RESULTS / f"alignment_{part}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
