"""``report.json``, ``report.html`` and ``scene.json`` of a mesh: what came out, how well scales agree, where not."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d import __version__
from relief3d.core.contract import Depth, Mesh, Scene, View
from relief3d.core.progress import Progress, stage
from relief3d.core.provenance import versions
from relief3d.io.depth import read_depth
from relief3d.io.json_file import write_json
from relief3d.io.ply import read_ply
from relief3d.io.scene_json import write_scene_json
from relief3d.methods.vfm_recon.alignment import SceneAlignment
from relief3d.methods.vfm_recon.diagnostics import frame_scale_spread
from relief3d.methods.vfm_recon.inputs import DepthSource
from relief3d.pipelines.mesh.config import MeshConfig
from relief3d.pipelines.mesh.keyframes import Keyframes, histogram
from relief3d.pipelines.mesh.pictures import KeyframeViews
from relief3d.pipelines.reconstruct.surface import orbit_pictures
from relief3d.pipelines.reconstruct.workspace import Workspace
from relief3d.render.colormaps import confidence_colors
from relief3d.report import ReportData, StageTiming, ViewRecord, write_report
from relief3d.report.panels import Chart, Panel

SHOWN = 4
"""Keyframes with the largest disagreement that get a picture of their error."""
FULL_RED = 0.1
"""Relative difference that is drawn with the strongest colour."""
_NAMES = {"cameras": "cameras", "depth": "depth", "scale": "alignment", "mesh": "fusion and mesh"}
_FILES = {
    "mesh": "mesh.glb", "mesh_ply": "mesh.ply", "fused": "fused.ply", "scale": "scale.json",
    "keyframes": "keyframes.json", "report": "report.html", "trajectory": "trajectory.txt", "cameras": "sparse/0",
}  # fmt: skip
_UNITS = {
    "metric": "metres",
    "pose": "the unit of the given poses (nothing says how long a metre is)",
    "normalised": "arbitrary (median depth 2: neither poses nor matches tell the scale)",
    "model": "that of the depth source",
}


@dataclass(frozen=True)
class Finished:
    """What the steps before the report made."""

    workspace: Workspace
    config: MeshConfig
    source: str
    views: KeyframeViews
    depths: DepthSource
    alignment: SceneAlignment
    keyframes: Keyframes


def write_mesh_report(done: Finished, frames: int, progress: Progress) -> dict[str, Any]:
    """``report.json``, ``report.html`` and, last, ``scene.json``.

    Args:
        done: the steps before.
        frames: of the recording.
        progress: told about it.
    """
    out = done.workspace.root
    with stage(progress, "report", 1):
        scene = _scene(done, out)
        summary = summarise(done, scene.mesh, frames)
        write_json(out / "report.json", summary)
        records = done.workspace.records()
        shown = {k: v for k, v in summary.items() if k not in ("warnings", "scale", "details", "stages")}
        data = ReportData(
            scene=scene,
            views=_records(done, out),
            title=Path(done.source).resolve().name or done.source,
            summary=shown,
            stages=[
                StageTiming(_NAMES[n], _seconds(r), r.get("peak_bytes"))
                for n, r in records.items()
                if n in _NAMES
            ],
            warnings=summary["warnings"],
            orbit=orbit_pictures(scene),
            panels=[_graph_panel(done.alignment), _weak_panel(done.alignment), *_error_panel(done, out)],
        )
        write_report(data, out / "report.html")
        files = {role: name for role, name in _FILES.items() if (out / name).exists()}
        write_scene_json(out / "scene.json", scene, files=files, info=summary)
        progress.advance()
    return {}


def _seconds(record: Mapping[str, Any]) -> float:
    """Of a step; the alignment is made before its step, because later ones need it too when a run goes on."""
    return float(record["seconds"]) + float(record["facts"].get("seconds_alignment", 0.0))


def _scene(done: Finished, out: Path) -> Scene:
    alignment = done.alignment
    mesh = read_ply(out / "mesh.ply") if (out / "mesh.ply").is_file() else None
    views = tuple(
        View(
            v.name,
            v.camera.replace(world_from_cam=c.world_from_cam),
            image=partial(done.views.picture, k),
            path=v.path,
        )
        for k, (v, c) in enumerate(zip(done.views.flat, alignment.cameras, strict=True))
    )
    return Scene(views, metric=alignment.metric, ordered=True, mesh=mesh if isinstance(mesh, Mesh) else None)


def summarise(done: Finished, mesh: Mesh | None, frames: int) -> dict[str, Any]:
    """The contents of ``report.json``."""
    records, alignment = done.workspace.records(), done.alignment
    before, after = frame_scale_spread(alignment)
    surface = records["mesh"]["facts"]
    warnings = [w for r in records.values() for w in r["facts"].get("warnings", ())]
    priors = alignment.priors
    matches, kept = sum(p.samples.matches for p in priors), sum(p.samples.kept for p in priors)
    parallax = [p.samples.parallax_deg for p in priors if math.isfinite(p.samples.parallax_deg[1])]
    faces = 0 if mesh is None else len(mesh.faces)
    summary: dict[str, Any] = {
        "relief3d": __version__,
        "input": done.source,
        "command": " ".join(sys.argv) if sys.argv and "relief3d" in sys.argv[0] else "relief3d.mesh",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": done.config.seed,
        "units": alignment.units,
        "unit": _UNITS[alignment.units],
        "factor_to_given_poses": alignment.factor,
        "frames": frames,
        "keyframes": len(done.keyframes.frames),
        "segments": len(done.keyframes.segments),
        "fused": surface["fused"],
        "submaps": len(alignment.submaps),
        "loops": sum(m.kind == "loop" for m in alignment.submaps),
        "depth_source": records["depth"]["facts"]["source"],
        "aligned": done.config.align,
        "voxel_size": surface["voxel_size"],
        "max_depth": surface["max_depth"],
        "covered": surface["covered"],
        "volume_bytes": surface["volume_bytes"],
        "mesh": {"vertices": 0 if mesh is None else len(mesh.vertices), "faces": faces},
        "keyframe_spacing": histogram(done.keyframes.spacing),
        "triangulation": {
            "matches": matches,
            "kept_share": kept / matches if matches else 0.0,
            "parallax_deg_median": _middle([p[1] for p in parallax]),
        },
        "frame_scale_spread": {
            "before": _middle([abs(v) for v in before]),
            "after": _middle([abs(v) for v in after]),
        },
        "seconds": round(sum(_seconds(r) for r in records.values()), 2),
        "peak_memory_bytes": max((r.get("peak_bytes") or 0) for r in records.values()),
        "stages": {
            n: {"seconds": round(_seconds(r), 3), "peak_bytes": r.get("peak_bytes")}
            for n, r in records.items()
        },
        "details": {n: r["facts"] for n, r in records.items()},
        "versions": versions(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "config": {
            k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(done.config).items()
        },
        "warnings": list(dict.fromkeys(warnings)),
    }
    summary["headline"] = (
        f"{summary['keyframes']} keyframes of {frames} frames, {summary['submaps']} submaps, {faces} triangles, "
        f"unit: {_UNITS[alignment.units].split(' (')[0]}"
        + (f"; {len(summary['warnings'])} warnings" if summary["warnings"] else "")
    )
    return summary


def _middle(values: list[float]) -> float | None:
    known = [v for v in values if math.isfinite(v)]
    return float(torch.tensor(known).median()) if known else None


def _records(done: Finished, out: Path) -> list[ViewRecord]:
    usable = set(done.alignment.usable)
    differing = done.workspace.record("mesh")["facts"]["disagreement"]
    found = []
    for k, name in enumerate(done.views.names):
        path = out / "depth_refined" / f"{name}.npz"
        reason = "repeats another keyframe" if k in done.alignment.dropped else "no usable depth"
        submaps = [m.index for m in done.alignment.submaps if k in m.frames]
        extra: dict[str, Any] = {"submaps": ", ".join(map(str, submaps))}
        if name in differing:
            extra["submaps differ"] = f"{100 * differing[name]:.1f} % of the pixels"
        found.append(
            ViewRecord(
                name,
                image=partial(done.views.picture, k),
                depth=partial(_refined, path) if path.is_file() else None,
                registered=k in usable,
                reason=None if k in usable else reason,
                extra=extra,
            )
        )
    return found


def _refined(path: Path) -> Depth:
    return read_depth(path, scale=1.0, metric=False)


def _graph_panel(alignment: SceneAlignment) -> Panel:
    """The scale graph: every submap's scale with and without its neighbours, and the edges between them."""
    solved = [float(v) for v in alignment.log_scale]
    priors = [float(p.log_scale) if p.count else math.nan for p in alignment.priors]
    links = [(e.i, e.j, n in alignment.suspicious_edges) for n, e in enumerate(alignment.edges) if e.valid]
    rows = [
        (
            m.index,
            m.kind,
            f"{m.frames[0]} to {m.frames[-1]}",
            solved[m.index],
            priors[m.index],
            alignment.priors[m.index].spread,
            alignment.priors[m.index].count,
            float(alignment.prior_weights[m.index]),
            ", ".join(alignment.flags[m.index]) or "–",
        )
        for m in alignment.submaps
    ]
    return Panel(
        "Scales",
        "Scale graph",
        "Logarithm of every submap's scale: solved, and from its own triangulated points. Arcs are ratios measured in "
        "shared keyframes; red ones contradict the rest.",
        ("submap", "kind", "keyframes", "ln scale", "ln scale alone", "spread", "samples", "weight", "flags"),
        rows,
        Chart("ln scale", "submap", {"solved": solved, "alone": priors}, links),
    )


def _weak_panel(alignment: SceneAlignment) -> Panel:
    """Submaps and edges that should be looked at."""
    rows: list[tuple[object, ...]] = []
    for m, flags in zip(alignment.submaps, alignment.flags, strict=True):
        if flags:
            span = f"{alignment.names[m.frames[0]]} to {alignment.names[m.frames[-1]]}"
            rows.append((f"submap {m.index}", span, ", ".join(flags)))
    for n in alignment.suspicious_edges:
        edge = alignment.edges[n]
        rows.append((f"submaps {edge.i} and {edge.j}", "", "their ratio contradicts the rest of the graph"))
    note = "Where alignment has little to go by." if rows else "No submap and no edge was flagged."
    return Panel("Weak spots", "Weak spots", note, ("what", "keyframes", "why"), rows)


def _error_panel(done: Finished, out: Path) -> list[Panel]:
    """Difference of aligned and refined depth for the keyframes on which overlapping submaps differ most."""
    differing = done.workspace.record("mesh")["facts"]["disagreement"]
    number = {name: k for k, name in enumerate(done.views.names)}
    worst = sorted(differing, key=lambda name: -differing[name])[:SHOWN]
    wanted = sorted(number[name] for name in worst if (out / "depth_refined" / f"{name}.npz").is_file())
    pictures: list[tuple[str, Tensor]] = []
    for aligned in done.alignment.depth_frames(done.depths, wanted):
        name = done.views.names[aligned.frame]
        refined = _refined(out / "depth_refined" / f"{name}.npz").values
        given = aligned.depth.values()
        if refined.shape != given.shape:
            continue
        both = (refined > 0) & (given > 0)
        ratio = torch.where(both, (refined / given.clamp_min(1e-12)).log().abs(), torch.zeros_like(given))
        shown = confidence_colors((1 - ratio / FULL_RED).clamp(0, 1), both)
        middle = float(ratio[both].median()) if bool(both.any()) else math.nan
        pictures.append((f"{name}: picture", done.views.picture(aligned.frame)))
        pictures.append((f"{name}: |ln(refined / aligned)|, median {100 * middle:.1f} %", shown))
    if not pictures:
        return []
    note = (
        "Keyframes on which overlapping submaps differ most, in the colours of confidence: from no difference to "
        f"{100 * FULL_RED:.0f} % or more."
    )
    return [Panel("Errors", "Aligned against refined depth", note, pictures=pictures, across=2)]
