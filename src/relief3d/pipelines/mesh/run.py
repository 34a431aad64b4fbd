"""``relief3d mesh``: steps one after the other, each resumable.

The output folder holds ``keyframes.json``, ``submaps/`` (depth as the source gave it), ``scale.json`` (the alignment),
``fused.ply`` (all of the surface), ``depth_refined/`` (the surface's depth seen from every keyframe), ``mesh.ply`` and
``mesh.glb``, ``trajectory.txt`` (TUM), ``sparse/`` (COLMAP, when cameras were found), ``report.html``, ``report.json``
and ``scene.json``, which is written last.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Mesh, Scene, SparseDepth
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.memory import GIB, peak_rss
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.fusion.cleaning import CleanConfig, clean_mesh, with_normals
from relief3d.fusion.texture import bake_texture
from relief3d.fusion.texture_views import TextureView
from relief3d.io.atomic import check_not_inside
from relief3d.io.depth import write_depth
from relief3d.io.glb import write_glb
from relief3d.io.json_file import read_json_object, write_json
from relief3d.io.ply import read_ply, write_ply
from relief3d.io.trajectories import scene_trajectory, write_tum
from relief3d.methods.vfm_recon.align import align_scene, plan_scene
from relief3d.methods.vfm_recon.alignment import SceneAlignment
from relief3d.methods.vfm_recon.config import AlignConfig, LoopConfig, OverlapConfig, SubmapConfig
from relief3d.methods.vfm_recon.reprojection import ReprojectionConfig, fuse_aligned
from relief3d.methods.vfm_recon.store import SubmapStore, write_scale_json
from relief3d.models.multiview.interface import MultiViewModel
from relief3d.pipelines.mesh.config import MeshConfig
from relief3d.pipelines.mesh.depth_sources import Source
from relief3d.pipelines.mesh.inputs import read_recording
from relief3d.pipelines.mesh.keyframes import Keyframes, choose_keyframes
from relief3d.pipelines.mesh.matching import SiftMatches
from relief3d.pipelines.mesh.pictures import KeyframeViews
from relief3d.pipelines.mesh.points import SubmapPoints, known_points, measured_depth
from relief3d.pipelines.mesh.refine import refined_surface, with_colours_of
from relief3d.pipelines.mesh.report import Finished, write_mesh_report
from relief3d.pipelines.mesh.sources import check_source, chosen_source, depth_plan, open_anchor, open_source
from relief3d.pipelines.reconstruct import results
from relief3d.pipelines.reconstruct.cameras import solve_cameras
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.workspace import Workspace, input_fingerprint

STEPS: Mapping[str, tuple[str, ...]] = {
    "cameras": ("sparse", "images", "transforms.json", "trajectory.txt"),
    "depth": ("keyframes.json", "submaps"),
    "scale": ("scale.json",),
    "mesh": ("fused.ply", "depth_refined", "mesh.ply", "mesh.glb"),
    "report": ("report.html", "report.json", "scene.json"),
}
KEPT_ACROSS = ("submaps",)
"""Checked piece by piece when a step goes on where it was interrupted."""
OUTPUT_BYTES, OUTPUT_BYTES_PER_VIEW = 60_000_000, 2_000_000
REGISTERED_SHARE = 0.6
SMALL_PIECE = 100
"""Triangles below which a piece of the surface is left out."""


@dataclass(frozen=True)
class MeshResult:
    """What came out.

    Attributes:
        out: the folder.
        mesh: the surface as in ``mesh.ply``.
        summary: what ``report.json`` says.
    """

    out: Path
    mesh: Mesh
    summary: Mapping[str, Any]

    def text(self) -> str:
        """For people."""
        return f"{self.summary['headline']}\nreport: {self.out / 'report.html'}"


def make_mesh(
    source: str | Path,
    out: str | Path,
    config: MeshConfig | None = None,
    *,
    progress: Progress | None = None,
    network: MultiViewModel | None = None,
) -> MeshResult:
    """A recording in; a surface, refined depth, the scale graph and a report out.

    Args:
        source: any input of :func:`relief3d.pipelines.mesh.inputs.read_recording`.
        out: folder; the same call goes on with what an interrupted one left.
        config: options.
        progress: receives stages and steps.
        network: a multi-view network as depth source, instead of one that the options name.

    Raises:
        InputError: the input cannot be used (the output folder is left as it was).
        RunError: a failure while running; run again to continue.
    """
    config = config or MeshConfig()
    config.check()
    progress, out = progress or SilentProgress(), Path(out)
    resolve_device(config.device)
    scene = read_recording(source, config, progress)
    folders = {v.path.parent for v in scene.views if v.path is not None}
    check_not_inside(out, sorted(folders | ({Path(source)} if Path(source).is_dir() else set())))
    name = chosen_source(config, scene, network)
    digest = check_source(name, config, progress, network)
    input_hash = input_fingerprint(scene, Path(source).name, config.input_files())
    hashes = config.fingerprint()
    workspace = Workspace(
        out,
        input_hash=input_hash,
        stage_hashes={
            "cameras": hashes["cameras"],
            "depth": hashes["depth"] + digest,
            "scale": hashes["scale"] + digest,
            "mesh": hashes["mesh"] + digest,
        },
        overwrite=config.overwrite,
        need_bytes=OUTPUT_BYTES + OUTPUT_BYTES_PER_VIEW * len(scene),
        layout=STEPS,
    )
    work = _Work(scene, config, workspace, progress, str(source), name, network)
    work.digest = depth_plan(name, config, digest, input_hash, ())
    try:
        if not workspace.complete:
            work.run()
        else:
            progress.message(f"{out} is already complete; nothing to do (use --overwrite to start again)")
        return work.result()
    except InputError:
        workspace.abandon()
        raise
    finally:
        if workspace.complete:
            workspace.tidy()
        workspace.close()


class _Work:
    """The steps of one run and what they hand to each other; all of it is made again from disk when a run goes on."""

    def __init__(
        self,
        scene: Scene,
        config: MeshConfig,
        workspace: Workspace,
        progress: Progress,
        source: str,
        depth_source: str,
        network: MultiViewModel | None,
    ) -> None:
        self.scene, self.config, self.workspace, self.progress = scene, config, workspace, progress
        self.source, self.depth_source, self.network = source, depth_source, network
        self.digest: dict[str, Any] = {}
        self.mesh: Mesh | None = None

    def run(self) -> None:
        """All steps that are not complete."""
        out = self.workspace.root
        self._step("cameras", self._cameras)
        if "solved" in self.workspace.record("cameras")["facts"]:
            self.scene = results.reload_cameras(self.scene, out, self.workspace.record("cameras"))
        # Cheap and the same every time, so it is not stored to be read again.
        keyframes = self._keyframes()
        views = KeyframeViews(self.scene, keyframes.frames, self.config.width)
        sparse = known_points(self.scene, views)
        config = self._align_config()
        matches = SiftMatches(views, self.workspace.work / "features")
        points = SubmapPoints(views.cameras, matches, config, sparse)
        source = open_source(self.depth_source, self.config, views, points, self.progress, self.network)
        plan = {**self.digest, "frames": list(keyframes.frames)}
        store = SubmapStore(out / "submaps", source, plan)
        scenes = plan_scene(views.cameras, config, keyframes.segments)

        def depth() -> dict[str, Any]:
            write_json(out / "keyframes.json", keyframes.as_json([v.name for v in self.scene.views]))
            with stage(self.progress, f"depth: {source.name}", len(scenes.submaps)) as shown:
                for submap in scenes.submaps:
                    store(submap)
                    shown.advance(1)
            facts: dict[str, Any] = {"source": source.name, "submaps": len(scenes.submaps)}
            facts["warnings"] = list(_source_warnings(source, keyframes))
            return facts

        self._step("depth", depth)
        began = time.monotonic()
        alignment = self._alignment(views, store, matches, config, keyframes, sparse)
        seconds = round(time.monotonic() - began, 3)

        def scale() -> dict[str, Any]:
            write_scale_json(out / "scale.json", alignment)
            facts = {
                "units": alignment.units,
                "factor": alignment.factor,
                "warnings": list(alignment.warnings),
            }
            return {**facts, "seconds_alignment": seconds}

        self._step("scale", scale)
        self._step("mesh", lambda: self._surface(views, store, alignment))
        done = Finished(self.workspace, self.config, self.source, views, store, alignment, keyframes)
        self._step("report", lambda: write_mesh_report(done, len(self.scene), self.progress))

    def _step(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        if self.workspace.done(name):
            return
        kept = [f for f in STEPS[name] if f not in KEPT_ACROSS]
        self.workspace.clear(tuple(kept))
        began = time.monotonic()
        with torch.no_grad():
            facts = work()
        seconds = round(time.monotonic() - began, 3)
        self.workspace.complete_stage(name, seconds=seconds, peak_bytes=peak_rss(), facts=facts)

    def _cameras(self) -> dict[str, Any]:
        """Given cameras as they are, or those of structure from motion."""
        out = self.workspace.root
        if self.scene.posed:
            write_tum(out / "trajectory.txt", scene_trajectory(self.scene))
            return {"method": "given", "registered": len(self.scene.posed), "metric": self.scene.metric}
        options = ReconstructConfig(seed=self.config.seed, ordered=self.config.ordered)
        solved, facts = solve_cameras(self.scene, options, self.workspace.work, self.progress)
        share = len(solved.posed) / len(solved)
        warnings = [*facts.get("warnings", ()), *results.write_cameras(solved, out)]
        if share < REGISTERED_SHARE:
            warnings.append(
                f"only {len(solved.posed)} of {len(solved)} pictures found a camera; the mesh shows that part"
            )
        write_tum(out / "trajectory.txt", scene_trajectory(solved))
        found = {k: v for k, v in facts.items() if k in ("method", "points", "metric_scale", "unplaced")}
        return {
            **found,
            "solved": True,
            "registered": len(solved.posed),
            "metric": solved.metric,
            "warnings": warnings,
        }

    def _keyframes(self) -> Keyframes:
        config = self.config
        middle = None
        if not self.scene.metric and self.scene.ordered:
            middle = measured_depth(self.scene, config.width, self.workspace.work)
        return choose_keyframes(self.scene, config.keyframe_distance, config.max_keyframes, middle)

    def _align_config(self) -> AlignConfig:
        config = self.config
        by_submap = config.depth_files is not None and (config.depth_files / "0").is_dir()
        return AlignConfig(
            units="metric" if self.scene.metric else "pose",
            submaps=SubmapConfig(config.submap, config.overlap),
            overlap=OverlapConfig(
                mode=config.overlap_mode,
                per_frame=self.depth_source == "metric",
                spatial_order=config.spatial_order,
            ),
            # Maps on disk per submap cannot answer for submaps that are only found later.
            loops=LoopConfig(enabled=config.loops and not by_submap),
        )

    def _alignment(
        self,
        views: KeyframeViews,
        store: SubmapStore,
        matches: SiftMatches,
        config: AlignConfig,
        keyframes: Keyframes,
        sparse: Mapping[int, SparseDepth],
    ) -> SceneAlignment:
        anchor, _ = open_anchor(self.config, views, self.progress)
        masked = any(views.mask(k) is not None for k in (0, len(views) - 1))
        with torch.no_grad():
            found = align_scene(
                views.cameras,
                store,
                matches,
                config,
                segments=keyframes.segments,
                sparse=sparse,
                metric_depth=anchor,
                masks=views.mask if masked else None,
                names=views.names,
                progress=self.progress,
            )
        for sentence in found.warnings:
            self.progress.message(f"warning: {sentence}")
        if not self.config.align:
            # One scale for all, the middle one: what plain fusion of the same depth gives.
            same = torch.full_like(found.log_scale, float(found.log_scale.median()))
            found = dataclasses.replace(found, log_scale=same, corrections={})
        return found

    def _surface(self, views: KeyframeViews, store: SubmapStore, alignment: SceneAlignment) -> dict[str, Any]:
        out, config = self.workspace.root, self.config

        def keep(k: int, depth: Tensor, camera: Camera) -> None:
            good = torch.isfinite(depth) & (depth > 0)
            if bool(good.any()):
                write_depth(out / "depth_refined" / f"{views.names[k]}.npz", Depth.from_values(depth))

        done = fuse_aligned(
            alignment,
            store,
            ReprojectionConfig(
                voxel_size=config.voxel_size or self._voxel_by_count(alignment, store),
                max_depth=config.max_depth or 0.0,
                max_bytes=int(config.max_memory * GIB),
                with_color=config.texture != "none",
            ),
            pictures=views.picture if config.texture != "none" else None,
            sink=keep,
            device=resolve_device(config.device),
            progress=self.progress,
        )
        facts: dict[str, Any] = {
            "voxel_size": done.voxel_size,
            "max_depth": done.max_depth,
            "fused": done.frames,
            "covered": round(done.covered, 4),
            "volume_bytes": done.volume_bytes,
            "raw_faces": len(done.raw.faces),
            "disagreement": {views.names[k]: round(v, 4) for k, v in done.disagreement.items()},
            "messages": list(done.messages),
            "warnings": [],
        }
        write_ply(out / "fused.ply", done.raw)
        whole = done.raw
        if config.quality == "refine":
            found, facts["network"] = refined_surface(
                config,
                views,
                alignment,
                out / "depth_refined",
                self.workspace.work / "volume",
                self.progress,
            )
            whole = with_colours_of(found, done.raw)
        mesh = clean_mesh(whole, CleanConfig(min_triangles=SMALL_PIECE, target_faces=config.mesh_faces))
        if not len(mesh.faces):
            mesh = whole
            facts["warnings"].append("the surface is in small pieces only; nothing was left out")
        if not len(mesh.faces):
            facts["warnings"].append("no surface was found in the aligned depth")
            return facts
        mesh = with_normals(mesh)
        write_ply(out / "mesh.ply", mesh)
        write_glb(out / "mesh.glb", self._textured(mesh, views, alignment))
        facts["vertices"], facts["faces"] = len(mesh.vertices), len(mesh.faces)
        return facts

    def _voxel_by_count(self, alignment: SceneAlignment, store: SubmapStore) -> float:
        """The scene's longest side over the number of voxels that was asked for; 0 when none was."""
        count = self.config.voxels_along_longest_axis
        if count is None:
            return 0.0
        low = torch.full((3,), float("inf"), dtype=torch.float64)
        high = -low
        for aligned in alignment.depth_frames(store):
            xyz, _, _ = aligned.depth.points(stride=10)
            if len(xyz):
                ends = torch.quantile(xyz, torch.tensor([0.005, 0.995], dtype=torch.float64), dim=0)
                low, high = torch.minimum(low, ends[0]), torch.maximum(high, ends[1])
        side = float((high - low).max())
        return side / count if side > 0 else 0.0

    def _textured(self, mesh: Mesh, views: KeyframeViews, alignment: SceneAlignment) -> Mesh:
        if self.config.texture != "atlas":
            return mesh
        pictures = []
        for k in alignment.usable:
            view = views.flat[k]
            # Poses may have been scaled to metres.
            camera = view.camera.replace(world_from_cam=alignment.cameras[k].world_from_cam)
            pictures.append(TextureView(camera, view.load_image))
        return bake_texture(mesh, pictures, progress=self.progress)

    def result(self) -> MeshResult:
        """From disk."""
        out = self.workspace.root
        mesh = read_ply(out / "mesh.ply") if (out / "mesh.ply").is_file() else None
        if not isinstance(mesh, Mesh):
            mesh = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
        return MeshResult(out, mesh, read_json_object(out / "report.json"))


def _source_warnings(source: Source, keyframes: Keyframes) -> list[str]:
    lost = getattr(source, "without_prompt", [])
    found = list(keyframes.notes)
    if lost:
        found.append(
            f"{len(set(lost))} keyframes have too few triangulated points for the network, e.g. {lost[0]}"
        )
    return found
