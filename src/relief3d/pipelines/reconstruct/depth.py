"""Stage 2: a depth map for every posed picture, given or by dense stereo, on disk as ``depth/NAME.npz``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, track
from relief3d.geometry.projection import resize_intrinsics
from relief3d.io.cameras_json import read_cameras_json, write_cameras_json
from relief3d.io.depth import read_depth, write_depth
from relief3d.models.metric.opening import MetricWeights
from relief3d.pipelines.multiview.maps import Judge, make_map
from relief3d.pipelines.multiview.pictures import plan_framing
from relief3d.pipelines.multiview.solve import NETWORK_FOLDER
from relief3d.pipelines.multiview.store import load_network_depth
from relief3d.pipelines.reconstruct.completion import StereoMap, complete, completion_facts
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.pinhole import pinhole_view
from relief3d.stereo import StereoConfig, estimate_depths
from relief3d.stereo.result import StereoResult
from relief3d.stereo.views import PreparedView

DEPTH_FOLDER = "depth"
MIN_CONFIRMED = 0.02
"""Confirmed share of all pixels below which a result is refused; real sets with good cameras reach 0.13 to 0.8."""

MASKED = "the mask hides all of the picture"

DOUBTFUL_SHARE = 0.2
"""Confirmed share of a network's depth below which the user is warned."""


@dataclass(frozen=True)
class DepthMap:
    """One depth map of the result: which view, its pinhole camera at the map's size, and the file."""

    index: int
    camera: Camera
    path: Path

    def load(self, metric: bool) -> Depth:
        """Read the map from disk."""
        size = (self.camera.width, self.camera.height)
        return read_depth(self.path, scale=1.0, metric=metric, size=size)


def solve_depth(
    scene: Scene,
    config: ReconstructConfig,
    out: Path,
    progress: Progress,
    work: Path,
    completion: MetricWeights | None = None,
) -> tuple[list[DepthMap], dict[str, Any]]:
    """Depth maps of all posed views, written to ``out/depth``.

    Args:
        scene: with cameras.
        config: where depth comes from, and how large.
        out: the result folder.
        progress: receives stages and steps.
        work: folder that holds what a network predicted, if one did.
        completion: network that fills what stereo leaves open; None leaves it open.

    Returns:
        The maps, and facts for ``scene.json`` (per view: source, kept share, neighbours or the reason why none).

    Raises:
        InputError: no depth anywhere, or the views contradict the cameras (poses are wrong).
    """
    flat = scene.replace(
        views=tuple(pinhole_view(v) if i in scene.posed else v for i, v in enumerate(scene.views))
    )
    by_network = config.multiview.active and config.depth_source in ("auto", "model")
    wanted_given = config.depth_source in ("auto", "given")
    given = [i for i in scene.posed if scene.views[i].depth is not None and wanted_given]
    if config.depth_source == "given" and not given:
        raise InputError(
            "no posed picture has a given depth map",
            remedy="name them with --depth, or use --depth-source stereo",
        )
    folder = out / DEPTH_FOLDER
    facts: dict[str, Any] = {"views": {}, "width": config.resolved_depth_width(), "warnings": []}
    maps: list[DepthMap] = []
    for index in track(progress, "given depth", given) if given else ():
        maps.append(_write_given(flat, index, config, folder, facts))
    missing = [i for i in scene.posed if i not in given]
    if missing and by_network:
        maps += _by_network(scene, flat, missing, config, folder, facts, progress, work)
    elif missing and config.depth_source != "given":
        maps += _stereo(flat, missing, config, folder, facts, progress, completion)
    if not maps:
        reasons = sorted({f["reason"] for f in facts["views"].values() if f.get("reason")})
        raise InputError(
            "no picture got a depth map: " + ("; ".join(reasons[:3]) or "nothing to work on"),
            remedy="use masks that are white where pictures count, or drop --masks"
            if reasons == [MASKED]
            else "take more overlapping photos of a textured, static scene while moving sideways",
        )
    maps.sort(key=lambda m: m.index)
    _write_cameras(scene, maps, folder)
    return maps, facts


def depth_file(folder: Path, view: View) -> Path:
    """Where the map of ``view`` goes: its name below the depth folder, with ``.npz`` added."""
    return folder / f"{view.name}.npz"


def _write_given(
    scene: Scene, index: int, config: ReconstructConfig, folder: Path, facts: dict[str, Any]
) -> DepthMap:
    view = scene.views[index]
    depth = view.load_depth()
    assert depth is not None and view.camera.K is not None
    if depth.metric and not scene.metric and config.multiview.untrained:
        note = "given depth is in metres and the cameras of random weights are not: it is written as it is"
        if note not in facts["warnings"]:
            facts["warnings"].append(note)
    elif depth.metric and not scene.metric:
        raise InputError(
            f"view '{view.name}' has metric depth but the cameras have no unit",
            remedy="use --depth-source stereo; too few sparse points lie on given depth to scale the cameras",
        )
    mask = view.load_mask()
    valid = depth.valid if mask is None else depth.valid & mask
    values = torch.where(valid, depth.values, torch.zeros_like(depth.values))
    height, width = values.shape
    longest = config.resolved_depth_width()
    if max(width, height) > longest:
        # Nearest pixel: depth must not be mixed across edges.
        new = (
            max(1, round(height * longest / max(width, height))),
            max(1, round(width * longest / max(width, height))),
        )
        values = torch.nn.functional.interpolate(values[None, None], new, mode="nearest-exact")[0, 0]
    height, width = values.shape
    K = resize_intrinsics(view.camera.K, (view.camera.width, view.camera.height), (width, height))
    camera = view.camera.replace(width=width, height=height, K=K)
    confidence = (values > 0).float()
    path = write_depth(depth_file(folder, view), Depth(values, values > 0, scene.metric, confidence))
    facts["views"][view.name] = {"source": "given", "kept": float((values > 0).float().mean())}
    return DepthMap(index, camera, path)


def _by_network(
    scene: Scene,
    flat: Scene,
    wanted: list[int],
    config: ReconstructConfig,
    folder: Path,
    facts: dict[str, Any],
    progress: Progress,
    work: Path,
) -> list[DepthMap]:
    """The network's depth at the size of the pictures, without what other views contradict."""
    depth = load_network_depth(work / NETWORK_FOLDER, [v.name for v in scene.views])
    poses = torch.stack([_pose(v) for v in flat.views])
    judge = Judge(poses, depth)
    sizes = [(v.camera.width, v.camera.height) for v in flat.views]
    framing = plan_framing(sizes, depth.mode, depth.side, depth.patch)
    maps, confirmed = [], []
    for index in track(progress, "network depth", wanted):
        view = flat.views[index]
        small = framing.load(flat.views, [index])[0] if view.image is not None else None
        found = make_map(
            view, index, judge, metric=scene.metric, longest=config.depth_width, small_picture=small
        )
        if not bool(found.depth.valid.any()):
            mask = view.load_mask()
            reason = (
                MASKED
                if mask is not None and not bool(mask.any())
                else "the network's depth is contradicted by the other views, or masked, everywhere"
            )
            facts["views"][view.name] = {"source": "none", "reason": reason, "kept": 0.0}
            continue
        if found.confirmed is not None:
            confirmed.append(found.confirmed)
        path = write_depth(depth_file(folder, view), found.depth)
        facts["views"][view.name] = {
            "source": "network",
            "kept": found.kept,
            "confirmed": found.confirmed,
            "neighbours": [scene.views[j].name for j in found.neighbours],
        }
        maps.append(DepthMap(index, found.camera, path))
    if confirmed:
        facts["confirmed"] = sum(confirmed) / len(confirmed)
        if facts["confirmed"] < DOUBTFUL_SHARE:
            facts["warnings"].append(
                f"the views contradict each other: only {100 * facts['confirmed']:.0f} % of the pixels that other "
                "pictures show too agree with them; do not trust the network's cameras and depth here"
            )
    return maps


def _pose(view: View) -> Tensor:
    assert view.camera.world_from_cam is not None
    return view.camera.world_from_cam


def _stereo(
    scene: Scene,
    wanted: list[int],
    config: ReconstructConfig,
    folder: Path,
    facts: dict[str, Any],
    progress: Progress,
    completion: MetricWeights | None,
) -> list[DepthMap]:
    settings = StereoConfig.profile(config.quality, max_width=config.resolved_depth_width(), seed=config.seed)
    result = estimate_depths(scene, settings, resolve_device(config.device), progress)
    report = result.report
    facts["stereo"] = {k: v for k, v in dataclasses.asdict(report).items() if k != "seconds"}
    if report.poses_doubtful:
        raise InputError(
            f"the result would be wrong, so it is refused: {report.verdict}",
            remedy="give more accurate cameras, drop --cameras, or take more photos with small steps and texture",
        )
    confirmed = [0.0 if (found := result[i]) is None else found.kept for i in wanted]
    share = sum(confirmed) / len(confirmed)
    if any(confirmed) and share < MIN_CONFIRMED:
        raise InputError(
            f"the result would be wrong, so it is refused: only {100 * share:.1f} % of the pixels have a depth that "
            "other pictures confirm; the cameras are inaccurate, or the surfaces lack texture and overlap",
            remedy="give more accurate cameras or sensor depth, or take more photos with small steps and texture",
        )
    filled = _completed(scene, result, config, facts, progress, completion)
    maps = []
    for index in wanted:
        found, view = result[index], scene.views[index]
        if found is None or not bool(found.depth.valid.any()):
            reason = result.reasons[index] or "no pixel was confirmed by another view"
            facts["views"][view.name] = {"source": "none", "reason": reason, "kept": 0.0}
            continue
        path = write_depth(depth_file(folder, view), filled.get(index, found.depth))
        facts["views"][view.name] = {
            "source": "stereo",
            "kept": found.kept,
            "strict": found.strict_kept,
            "neighbours": [scene.views[n.index].name for n in found.neighbours],
        }
        maps.append(DepthMap(index, found.camera, path))
    return maps


def _completed(
    scene: Scene,
    result: StereoResult,
    config: ReconstructConfig,
    facts: dict[str, Any],
    progress: Progress,
    completion: MetricWeights | None,
) -> dict[int, Depth]:
    """Maps with holes filled, by view; empty without a network."""
    if completion is None:
        return {}
    stereo = {
        s.index: StereoMap(
            scene.views[s.index],
            PreparedView(s.index, s.name, s.camera, torch.zeros(0)),
            s.depth,
            tuple(n.index for n in s.neighbours),
        )
        for s in result
        if s is not None and bool(s.depth.valid.any())
    }
    depths, shares = complete(stereo, scene, completion, config.device, progress)
    facts["completion"] = completion_facts(shares, scene, completion)
    return depths


def _write_cameras(scene: Scene, maps: list[DepthMap], folder: Path) -> None:
    """``depth/cameras.json``: the pinhole camera of every map, so that the folder is a scene of its own."""
    views = tuple(View(name=scene.views[m.index].name, camera=m.camera) for m in maps)
    unit = 1.0 if scene.metric else None
    files = {scene.views[m.index].name: (m.path.relative_to(folder).as_posix(), unit) for m in maps}
    write_cameras_json(Scene(views, metric=scene.metric), folder / "cameras.json", depth=files)


def reload_depth(scene: Scene, out: Path) -> list[DepthMap]:
    """The maps an earlier run wrote.

    Raises:
        InputError: when ``depth/cameras.json`` is missing or names files that are not there.
    """
    folder = out / DEPTH_FOLDER
    stored = read_cameras_json(folder / "cameras.json", require_images=False)
    index_of = {v.name: i for i, v in enumerate(scene.views)}
    maps = []
    for view in stored.views:
        index = index_of[view.name]
        path = depth_file(folder, view)
        if not path.exists():
            raise InputError("a depth map is missing", path=path, remedy="run again with --overwrite")
        maps.append(DepthMap(index, view.camera, path))
    return maps
