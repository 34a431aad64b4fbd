"""From pictures to metric depth on disk, one picture at a time, resumably."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.device import resolve_device, synchronize
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress, SilentProgress
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.data.prompt_preparation import PreparedPrompt
from relief3d.geometry.projection import fov_from_intrinsics
from relief3d.io.atomic import prepare_output_folder
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.folders import open_input
from relief3d.io.json_file import read_json_object, write_json
from relief3d.models.metric.interface import Focal
from relief3d.models.metric.opening import (
    POINTMAP,
    MetricEstimator,
    MetricWeights,
    open_metric,
    with_prior,
)
from relief3d.pipelines.depth.cameras import GivenIntrinsics, camera_notes, parse_intrinsics, used_camera
from relief3d.pipelines.depth.config import DepthConfig
from relief3d.pipelines.depth.networks import find_prior, find_weights, run_options
from relief3d.pipelines.depth.outputs import (
    Place,
    kept_record,
    left_over,
    places,
    settings_key,
    stored_depth,
    write_outputs,
    write_record,
)
from relief3d.pipelines.depth.prompts import find_prompts, read_prompt
from relief3d.pipelines.depth.steady import SteadyFrame, look_at, steady_shift

logger = logging.getLogger(__name__)

FORMAT = "relief3d-depth-1"
REPORT = "depth.json"
PERCENTILES = (2, 25, 50, 75, 98)


@dataclass(frozen=True)
class DepthSummary:
    """What a run did.

    Attributes:
        out: output folder.
        model: of the network.
        records: one per picture, as in ``depth.json``.
        kept: pictures that an earlier run had done with the same settings.
        guessed: pictures whose focal length is a guess.
        seconds: of this run.
    """

    out: Path
    model: str
    records: tuple[Mapping[str, Any], ...]
    kept: int
    guessed: int
    seconds: float

    def text(self) -> str:
        """One line for the console."""
        sources: dict[str, int] = {}
        for record in self.records:
            sources[record["K_source"]] = sources.get(record["K_source"], 0) + 1
        focal = ", ".join(f"{count} {source}" for source, count in sorted(sources.items()))
        return (
            f"{len(self.records)} depth map(s) in {self.out} ({self.kept} kept from before), {self.seconds:.1f} s; "
            f"focal lengths: {focal}"
        )


@dataclass(frozen=True)
class _Job:
    view: View
    place: Place
    prompt: Path | None
    key: str


def predict_depth(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    config: DepthConfig,
    progress: Progress | None = None,
) -> DepthSummary:
    """Metric depth of pictures, on disk.

    Args:
        inputs: as :func:`relief3d.io.folders.open_input` takes them: pictures, folders, globs, a video, cameras.
        out: output folder; the same call continues what an earlier one began.
        config: options.
        progress: told about every picture.

    Returns:
        What was done; the files are ``depth/``, ``preview/``, ``points/``, ``normals/``, ``cameras.json`` and
        ``depth.json`` in the output folder.

    Raises:
        InputError: no or unusable weights, pictures, prompts or intrinsics; the output folder cannot be used.
        RunError: the network's answer is not finite.
    """
    began = time.monotonic()
    progress = SilentProgress() if progress is None else progress
    out = Path(out)
    sources = [Path(inputs)] if isinstance(inputs, str | Path) else [Path(i) for i in inputs]
    if not sources:
        raise InputError("name at least one picture, folder or video")
    if config.max_points < 1 or not 0 < config.png_scale < math.inf:
        raise InputError("--max-points and --png-scale must be positive")
    device = resolve_device(config.device)
    weights = find_weights(config, progress.message)
    prior = find_prior(config, weights, progress.message)
    scene = _open(sources, config, progress)
    steady = config.steady and scene.ordered and config.prompt is None
    prompts = None if config.prompt is None else find_prompts(config.prompt, scene.views)
    prepare_output_folder(out, overwrite=config.overwrite, inputs=sources, resumable=_resumable)
    where = places(out, scene.views)
    others = left_over(out, where, remove=config.overwrite)
    jobs = _jobs(scene, where, prompts, config, (weights, prior), steady)
    write_json(out / REPORT, {"format": FORMAT, "state": "unfinished", "model": weights.label})
    worker = _Worker(config, weights, prior, device, steady, progress)
    records = worker.run(jobs)
    _write_cameras(out, scene, jobs, records, config)
    guessed = sum(r["K_source"] == "guess" for r in records)
    seconds = time.monotonic() - began
    report = {
        "format": FORMAT,
        "state": "done",
        "model": weights.label,
        "architecture": weights.architecture,
        "prior": None if prior is None else prior.label,
        "steady": steady,
        "input": dict(scene.info.get("input", {})),
        "guessed_focal_lengths": guessed,
        "kept": worker.kept,
        "left_over": others,
        "seconds": seconds,
        "pictures": records,
    }
    write_json(out / REPORT, report)
    return DepthSummary(out, weights.label, tuple(records), worker.kept, guessed, seconds)


def _resumable(folder: Path) -> bool:
    path = folder / REPORT
    try:
        return path.is_file() and read_json_object(path).get("format") == FORMAT
    except InputError:
        return False


def _open(sources: Sequence[Path], config: DepthConfig, progress: Progress) -> Scene:
    """All pictures as one scene, with the intrinsics that were given."""
    given = None if config.intrinsics is None else parse_intrinsics(config.intrinsics)
    scenes = [
        open_input(
            source,
            cameras=given if isinstance(given, Path) else None,
            max_frames=config.max_frames,
            recursive=config.recursive,
            progress=progress,
        )
        for source in sources
    ]
    views = [view for scene in scenes for view in scene.views]
    if len({v.name for v in views}) < len(views):
        views = [
            view.replace(name=f"{k}/{view.name}") for k, scene in enumerate(scenes) for view in scene.views
        ]
    if isinstance(given, GivenIntrinsics):
        views = given.of_views(views)
    notes = [note for scene in scenes for note in scene.info["input"]["notes"]]
    for note in notes:
        progress.message(note)
    kinds = sorted({scene.info["input"]["kind"] for scene in scenes})
    # Several videos one after the other: the change of scene is seen in the pictures themselves.
    ordered = all(scene.ordered for scene in scenes)
    info = {"input": {"kind": "+".join(kinds), "notes": notes}}
    return Scene(tuple(views), metric=True, ordered=ordered, info=info)


def _jobs(
    scene: Scene,
    where: Sequence[Place],
    prompts: Sequence[Path] | None,
    config: DepthConfig,
    networks: Sequence[MetricWeights | None],
    steady: bool,
) -> list[_Job]:
    jobs: list[_Job] = []
    shared = {
        "weights": [(w.architecture, w.size, w.fingerprint) for w in networks if w is not None],
        "options": replace(
            config, model="", prior="", device="", prompt=None, overwrite=False, max_frames=None
        ),
        "format": FORMAT,
    }
    before = ""
    for k, (view, place) in enumerate(zip(scene.views, where, strict=True)):
        prompt = None if prompts is None else prompts[k]
        facts = {**shared, "picture": (view.name, _stamp(view.path), view.time), "camera": view.camera}
        facts |= {"prompt": None if prompt is None else _stamp(prompt), "before": before if steady else ""}
        key = settings_key(facts)
        jobs.append(_Job(view, place, prompt, key))
        before = key
    return jobs


def _stamp(path: Path | None) -> tuple[str, int, int] | None:
    if path is None:
        return None
    stat = path.stat()
    return (path.name, stat.st_size, stat.st_mtime_ns)


class _Worker:
    """Does the pictures in order; the network is only loaded when one has to be done."""

    def __init__(
        self,
        config: DepthConfig,
        weights: MetricWeights,
        prior: MetricWeights | None,
        device: torch.device,
        steady: bool,
        progress: Progress,
    ) -> None:
        self.config, self.weights, self.prior, self.device = config, weights, prior, device
        self.steady, self.progress = steady, progress
        self.kept = 0
        self._estimator: MetricEstimator | None = None
        self._guide: MetricEstimator | None = None
        self._before: SteadyFrame | None = None
        self._warned = False

    def run(self, jobs: Sequence[_Job]) -> list[dict[str, Any]]:
        """The records of all pictures."""
        records: list[dict[str, Any]] = []
        self.progress.start("depth", len(jobs))
        for k, job in enumerate(jobs):
            record = kept_record(job.place, job.key, self.config)
            if record is None:
                self._before = self._recall(jobs[k - 1], records[-1]) if k and self._forgot else self._before
                record = self._do(job)
            else:
                self.kept += 1
                self._before = None
            self._warn(record)
            records.append(record)
            self.progress.advance(note=job.view.name)
        self.progress.finish()
        return records

    @property
    def _forgot(self) -> bool:
        return self.steady and self._before is None

    def _recall(self, job: _Job, record: Mapping[str, Any]) -> SteadyFrame | None:
        """The frame before, from what an earlier run wrote."""
        if not record["known"]:
            return None
        shift = float(record["steady_log_shift"] or 0.0)
        depth = stored_depth(job.place, self.config) * math.exp(-shift)
        return look_at(job.view.load_image(), depth, shift)

    def _do(self, job: _Job) -> dict[str, Any]:
        config, view = self.config, job.view
        if self._estimator is None:
            self._estimator = open_metric(
                self.weights, self.device, run_options(config), announce=self.progress.message
            )
        image = view.load_image()
        camera = _matching(view, image)
        prompt = None if job.prompt is None else read_prompt(job.prompt, camera, config.prompt_scale)
        began = time.monotonic()
        ready = self._prepared(image, camera, prompt, job.prompt)
        said = self._estimator.estimate(image, Focal.of_cameras([camera]), ready)
        synchronize(self.device)
        seconds = time.monotonic() - began
        depth = said.depth_map(0).values.cpu().float()
        if not bool(torch.isfinite(said.depth).all()):
            raise RunError(
                f"the network's depth of {view.name} is not finite",
                path=self.weights.file,
                remedy="check the weights, or use another --device",
            )
        mask = view.load_mask()
        if mask is not None:
            depth = torch.where(mask, depth, 0.0)
        depth, shift = self._steadied(image, depth)
        used = used_camera(camera, said)
        job.place.forget()
        write_outputs(job.place, config, depth, image, used)
        notes = list(() if ready is None else ready.notes)
        notes += camera_notes(camera, square=self.weights.architecture == POINTMAP)
        for note in notes:
            logger.warning("%s: %s", view.name, note)
        record = self._record(job, used, depth, seconds, shift, notes)
        if prompt is not None:
            record["prompt"] = {
                "file": job.prompt.name if job.prompt is not None else None,
                "points": prompt.points,
            }
        write_record(job.place, record)
        return record

    def _prepared(
        self, image: Tensor, camera: Camera, prompt: MetricPrompt | None, path: Path | None
    ) -> MetricPrompt | PreparedPrompt | None:
        """The prompt, filled under the guidance of the prior where there is one."""
        if self.prior is None or prompt is None:
            return prompt
        if self._guide is None:
            self._guide = open_metric(self.prior, self.device, announce=self.progress.message)
        said = self._guide.estimate(image, Focal.of_cameras([camera]))
        try:
            return with_prior(prompt, said)
        except InputError as exc:
            raise InputError(
                exc.message,
                path=path,
                remedy="check the prompt, say its unit with --prompt-scale, or leave --prior away",
            ) from exc

    def _steadied(self, image: Tensor, depth: Tensor) -> tuple[Tensor, float | None]:
        if not self.steady:
            return depth, None
        now = look_at(image, depth)
        shift = steady_shift(self._before, now)
        self._before = replace(now, shift=shift)
        return depth * math.exp(shift), shift

    def _record(
        self,
        job: _Job,
        camera: Camera,
        depth: Tensor,
        seconds: float,
        shift: float | None,
        notes: Sequence[str],
    ) -> dict[str, Any]:
        known = depth[depth > 0].double()
        known = known[:: max(1, known.numel() // 1_000_000)]
        found = {
            str(p): float(torch.quantile(known, p / 100)) if known.numel() else None for p in PERCENTILES
        }
        assert camera.K is not None
        fov = fov_from_intrinsics(camera.K, camera.width, camera.height).rad2deg()
        out = job.place.out
        return {
            "name": job.view.name,
            "key": job.key,
            "width": camera.width,
            "height": camera.height,
            "files": [path.relative_to(out).as_posix() for path in job.place.files(self.config)],
            "K": camera.K,
            "K_source": camera.K_source,
            "focal_px": float(camera.K[0, 0]),
            "fov_x_deg": float(fov[0]),
            "model": self.weights.label,
            "known": float((depth > 0).double().mean()),
            "percentiles_m": found,
            "steady_log_shift": shift,
            "seconds": seconds,
            "notes": list(notes),
        }

    def _warn(self, record: Mapping[str, Any]) -> None:
        if record["K_source"] != "guess" or self._warned:
            return
        self._warned = True
        logger.warning(
            "the focal length of %s is guessed (as long as the picture is wide), so %s only up to a factor; "
            "give --intrinsics or pictures with EXIF (said once; depth.json lists all)",
            record["name"],
            "its points are right across" if self.weights.needs_prompt else "its depth is right",
        )


def _matching(view: View, image: Tensor) -> Camera:
    """The camera of a view whose picture has the size that it states."""
    height, width = image.shape[-2:]
    if (view.camera.width, view.camera.height) != (int(width), int(height)):
        raise InputError(
            f"{view.name} has {width}x{height} pixels, its camera {view.camera.width}x{view.camera.height}",
            path=view.path,
            remedy="give cameras of these pictures",
        )
    return view.camera


def _write_cameras(
    out: Path, scene: Scene, jobs: Sequence[_Job], records: Sequence[Mapping[str, Any]], config: DepthConfig
) -> None:
    """``cameras.json`` with the K that was used; every frame says where it comes from in ``K_source``."""
    views, depth = [], {}
    for view, job, record in zip(scene.views, jobs, records, strict=True):
        K = torch.as_tensor(record["K"], dtype=torch.float64)
        camera = view.camera.replace(K=K, K_source=record["K_source"])
        views.append(View(view.name, camera, time=view.time))
        file = job.place.depth(config.format).relative_to(out).as_posix()
        depth[view.name] = (file, config.png_scale if config.format == "png" else 1.0)
    path = write_cameras_json(
        Scene(tuple(views), metric=True, ordered=scene.ordered), out / "cameras.json", depth=depth
    )
    document = read_json_object(path)
    for frame, record in zip(document["frames"], records, strict=True):
        frame["K_source"] = record["K_source"]
    write_json(path, document)
