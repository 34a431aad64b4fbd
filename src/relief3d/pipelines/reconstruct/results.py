"""What a result folder holds, written and read back.

``sparse/0`` (COLMAP), ``transforms.json`` (nerfstudio), ``images/`` (only when the input is a video or photos
that are turned by EXIF, which many trainers ignore), ``depth/NAME.npz`` (depth and confidence) with
``depth/cameras.json``, ``points.ply``, ``splats.ply``, ``mesh.ply``, ``mesh.glb``, ``scene.json`` and
``report.html``.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d import __version__
from relief3d.core.contract import Depth, Mesh, PointCloud, Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.core.memory import GIB
from relief3d.core.progress import Progress, stage
from relief3d.core.provenance import versions
from relief3d.io.colmap import read_colmap_model, write_colmap_model
from relief3d.io.images import read_header, read_image, write_image
from relief3d.io.ply import read_ply
from relief3d.io.scene_json import read_scene_json, write_scene_json
from relief3d.io.transforms_json import read_transforms_json, write_transforms_json
from relief3d.pipelines.multiview.config import UNTRAINED
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.depth import DepthMap
from relief3d.pipelines.reconstruct.pinhole import pinhole_view
from relief3d.pipelines.reconstruct.workspace import Workspace
from relief3d.report import ReportData, StageTiming, ViewRecord, write_report

_FILES = {
    "cameras": "sparse/0",
    "transforms": "transforms.json",
    "depth": "depth/cameras.json",
    "points": "points.ply",
    "splats": "splats.ply",
    "mesh": "mesh.glb",
    "mesh_ply": "mesh.ply",
    "report": "report.html",
}
_STAGE_NAMES = {"cameras": "cameras", "depth": "dense depth", "mesh": "fusion and mesh", "report": "report"}


def write_cameras(scene: Scene, out: Path) -> list[str]:
    """``sparse/0``, ``transforms.json``, and ``images/`` where the input's own files cannot be used as they are.

    Returns:
        Warnings for the user.
    """
    write_colmap_model(scene, out / "sparse" / "0")
    scene = export_images(scene, out)
    try:
        write_transforms_json(scene, out / "transforms.json")
    except InputError as exc:
        # Rational lenses, skew, or fisheye beside perspective: the format has no words for them.
        return [f"transforms.json was not written: {exc.message}"]
    return []


def export_images(scene: Scene, out: Path) -> Scene:
    """Write upright pictures for views without a usable file; all of them, so that one folder is complete."""
    if all(_usable_as_is(v) for v in scene.views):
        return scene
    views = []
    for view in scene.views:
        if view.image is None:
            views.append(view)
            continue
        views.append(view.replace(path=write_image(_exported(view, out), view.load_image(), quality=95)))
    return scene.replace(views=tuple(views))


def _exported(view: View, out: Path) -> Path:
    path = out / "images" / view.name
    return path if path.suffix.lower() in (".jpg", ".jpeg", ".png") else path.with_name(path.name + ".jpg")


def _usable_as_is(view: View) -> bool:
    return view.path is not None and read_header(view.path).orientation == 1


def reload_cameras(scene: Scene, out: Path, record: Mapping[str, Any]) -> Scene:
    """The input scene with the cameras and points stored in ``sparse/0``; unregistered views have no pose."""
    model = read_colmap_model(out / "sparse" / "0")
    index = {v.name: i for i, v in enumerate(scene.views)}
    solved = {v.name: v.camera for v in model.views}
    views = []
    for view in scene.views:
        camera = solved.get(view.name)
        if view.path is None and (copy := _exported(view, out)).is_file():
            # Frames of a video: reading the copy is much cheaper than seeking and decoding again.
            view = view.replace(image=partial(_read_rgb, copy))
        if camera is None:
            views.append(view.replace(camera=view.camera.replace(world_from_cam=None)))
        else:
            views.append(view.replace(camera=camera.replace(K_source=view.camera.K_source)))
    sparse = model.sparse
    if sparse is not None:
        to_input = torch.tensor([index[v.name] for v in model.views], dtype=torch.int64)
        sparse = dataclasses.replace(sparse, obs_view=to_input[sparse.obs_view])
    return scene.replace(views=tuple(views), sparse=sparse, metric=bool(record["facts"].get("metric", False)))


def _read_rgb(path: Path) -> Tensor:
    return read_image(path).rgb


def reload_surface(scene: Scene, out: Path) -> Scene:
    """The scene with points and mesh from disk, where they exist."""
    points, mesh = None, None
    if (out / "points.ply").exists():
        loaded = read_ply(out / "points.ply")
        points = loaded if isinstance(loaded, PointCloud) else None
    if (out / "mesh.ply").exists():
        surface = read_ply(out / "mesh.ply")
        mesh = surface if isinstance(surface, Mesh) else None
    return scene.replace(points=points, mesh=mesh)


def read_summary(out: Path) -> dict[str, Any]:
    """What ``scene.json`` says about the run.

    Raises:
        InputError: when it is missing or malformed.
    """
    path = out / "scene.json"
    if not path.is_file():
        raise InputError(
            "no scene.json here, so this is not a complete result",
            path=out,
            remedy="run relief3d reconstruct first",
        )
    info = read_scene_json(path).document.get("info")
    if not isinstance(info, dict):
        raise InputError("'info' is missing", path=path, remedy="run relief3d reconstruct again")
    return info


def load_result(out: Path) -> Scene:
    """Everything a result folder holds; pictures and depth load on demand."""
    info = read_summary(out)
    model = read_colmap_model(out / "sparse" / "0")
    scene = model
    if (out / "transforms.json").is_file():
        scene = read_transforms_json(out / "transforms.json", require_images=False)
    sparse: SparsePoints | None = model.sparse
    if sparse is not None:
        position = {v.name: i for i, v in enumerate(scene.views)}
        to_here = torch.tensor([position[v.name] for v in model.views], dtype=torch.int64)
        sparse = dataclasses.replace(sparse, obs_view=to_here[sparse.obs_view])
    metric, ordered = bool(info.get("metric")), bool(info.get("ordered"))
    scene = scene.replace(sparse=sparse, metric=metric, ordered=ordered, info=info)
    return reload_surface(scene, out)


def write_summary_and_report(
    scene: Scene,
    maps: Sequence[DepthMap],
    config: ReconstructConfig,
    workspace: Workspace,
    progress: Progress,
    source: str,
) -> dict[str, Any]:
    """``report.html`` and, last, ``scene.json`` (its presence means the result is complete)."""
    from relief3d.pipelines.reconstruct.surface import orbit_pictures

    out = workspace.root
    with stage(progress, "report", 1):
        info = summarise(scene, config, workspace, source)
        records = workspace.records()
        data = ReportData(
            scene=_pinhole(scene),
            views=_view_records(scene, maps, records),
            title=_title(source, info),
            summary=info,
            stages=[
                StageTiming(_STAGE_NAMES[name], record["seconds"], record.get("peak_bytes"))
                for name, record in records.items()
            ],
            warnings=info["warnings"],
            orbit=orbit_pictures(scene),
        )
        write_report(data, out / "report.html")
        files = {role: name for role, name in _FILES.items() if (out / name).exists()}
        write_scene_json(out / "scene.json", scene, files=files, info=info)
        progress.advance()
    return {}


def _title(source: str, info: Mapping[str, Any]) -> str:
    """Of the report; a result of random weights says so first."""
    name = Path(source).resolve().name or source
    return f"{UNTRAINED}: {name}" if (info.get("network") or {}).get("untrained") else name


def _pinhole(scene: Scene) -> Scene:
    return scene.replace(
        views=tuple(pinhole_view(v) if i in scene.posed else v for i, v in enumerate(scene.views))
    )


def _view_records(scene: Scene, maps: Sequence[DepthMap], records: Mapping[str, Any]) -> list[ViewRecord]:
    by_index = {m.index: m for m in maps}
    depth_facts = records["depth"]["facts"]["views"]
    failures = records["cameras"]["facts"].get("unplaced", {})
    posed = set(scene.posed)
    out = []
    for i, view in enumerate(scene.views):
        facts = depth_facts.get(view.name, {})
        count, error = _observations(scene.sparse, i)
        found = by_index.get(i)
        reason = None
        if i not in posed:
            reason = _failure(failures, view.name)
        elif found is None:
            reason = facts.get("reason", "no depth")
        shown = pinhole_view(view) if i in posed else view
        out.append(
            ViewRecord(
                name=view.name,
                image=shown.image,
                depth=None if found is None else _loader(found, scene.metric),
                registered=i in posed,
                reason=reason,
                neighbours=facts.get("neighbours", ()),
                kept_share=facts.get("kept"),
                reprojection_error=error,
                observations=count,
                extra={"depth": facts["source"]} if facts.get("source") else {},
            )
        )
    return out


def _failure(failures: Any, name: str) -> str:
    if isinstance(failures, Mapping) and failures.get(name):
        return str(failures[name])
    return "no camera was found: too few matches with the other pictures"


def _loader(found: DepthMap, metric: bool) -> Any:
    def load() -> Depth:
        return found.load(metric)

    return load


def _observations(sparse: SparsePoints | None, index: int) -> tuple[int | None, float | None]:
    if sparse is None:
        return None, None
    seen = sparse.obs_point[sparse.obs_view == index]
    if not len(seen):
        return 0, None
    return len(seen), float(torch.nan_to_num(sparse.error[seen]).mean())


def summarise(scene: Scene, config: ReconstructConfig, workspace: Workspace, source: str) -> dict[str, Any]:
    """The contents of ``scene.json``."""
    records = workspace.records()
    posed = scene.posed
    depth = records["depth"]["facts"]["views"]
    kept = [f["kept"] for f in depth.values() if f.get("source") in ("stereo", "given", "network")]
    seconds = sum(r["seconds"] for r in records.values())
    peak = max((r.get("peak_bytes") or 0) for r in records.values())
    mesh = (
        None if scene.mesh is None else {"vertices": len(scene.mesh.vertices), "faces": len(scene.mesh.faces)}
    )
    info: dict[str, Any] = {
        "relief3d": __version__,
        "input": source,
        "command": " ".join(sys.argv) if sys.argv and "relief3d" in sys.argv[0] else "relief3d.reconstruct",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "metric": scene.metric,
        "unit": "metres" if scene.metric else "arbitrary (nothing says how long a metre is)",
        "ordered": scene.ordered,
        "views": len(scene),
        "registered": len(posed),
        "unregistered": [v.name for i, v in enumerate(scene.views) if i not in posed],
        "sparse_points": 0 if scene.sparse is None else len(scene.sparse),
        "reprojection_px": _mean_error(scene.sparse),
        "depth_views": len(kept),
        "depth_kept": sum(kept) / len(kept) if kept else 0.0,
        "points": 0 if scene.points is None else len(scene.points.xyz),
        "mesh": mesh,
        "seconds": round(seconds, 2),
        "peak_memory_bytes": peak,
        "stages": {name: {k: v for k, v in r.items() if k != "facts"} for name, r in records.items()},
        "details": {name: r["facts"] for name, r in records.items() if r.get("facts")},
        "versions": versions(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "config": _plain(dataclasses.asdict(config)),
    }
    network = records["cameras"]["facts"].get("network")
    if network:
        facts = records["cameras"]["facts"]
        info["network"] = {"name": network, "untrained": facts["untrained"]}
        if "refinement" in facts:
            verdict = "kept" if facts["refinement"]["accepted"] else "not kept"
            info["bundle_adjustment"] = f"{verdict}: {facts['refinement']['reason']}"
    info["warnings"] = warnings(scene, info)
    info["headline"] = headline(info)
    return info


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON types."""
    return {
        k: _plain(v) if isinstance(v, Mapping) else str(v) if isinstance(v, Path) else v
        for k, v in options.items()
    }


def headline(info: Mapping[str, Any]) -> str:
    """One line that says what came out."""
    mesh = info["mesh"]
    parts = [
        f"{info['registered']} of {info['views']} pictures",
        f"{info['sparse_points']} sparse points",
        f"depth for {info['depth_views']} ({100 * info['depth_kept']:.0f} % of their pixels)",
    ]
    if mesh:
        parts.append(f"mesh of {mesh['faces']:,} triangles")
    parts.append(f"{info['seconds']:.0f} s, {info['peak_memory_bytes'] / GIB:.1f} GiB")
    network = info.get("network") or {}
    if network.get("name"):
        parts.insert(0, str(network["name"]))
    if network.get("untrained"):
        parts.append("random weights: the numbers mean nothing")
    return ", ".join(parts)


def warnings(scene: Scene, info: Mapping[str, Any]) -> list[str]:
    """Sentences about what a user should know before trusting the result."""
    out = []
    missing = info["unregistered"]
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        out.append(f"{len(missing)} picture(s) could not be placed: {shown}")
    if not scene.metric:
        out.append("lengths have no unit" + _how_to_get_metres(info))
    if info["depth_views"] < info["registered"]:
        out.append(
            f"{info['registered'] - info['depth_views']} placed picture(s) have no depth; their cards say why"
        )
    if 0 < info["depth_kept"] < 0.2 and not info.get("network"):
        out.append(
            f"only {100 * info['depth_kept']:.0f} % of the pixels have confirmed depth: plain surfaces, reflections, "
            "or too little overlap"
        )
    out += [str(note) for note in scene.info.get("notes", ())]
    for part in ("cameras", "depth"):
        out += [str(w) for w in info.get("details", {}).get(part, {}).get("warnings", ())]
    # What makes everything else meaningless comes first.
    return sorted(out, key=lambda text: not text.startswith(UNTRAINED))


def _how_to_get_metres(info: Mapping[str, Any]) -> str:
    if (info.get("network") or {}).get("untrained"):
        return ""
    if "known_geometry" in info.get("details", {}).get("cameras", {}):
        return ", and what was given has none either: give metric depth, or cameras in metres"
    return ": give metric depth or known cameras to get metres"


def _mean_error(sparse: SparsePoints | None) -> float | None:
    if sparse is None or not len(sparse):
        return None
    return float(torch.nan_to_num(sparse.error).mean())
