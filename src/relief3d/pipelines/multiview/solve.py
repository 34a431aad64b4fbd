"""Cameras, sparse points and stored depth of a scene by a multi-view network."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d import __version__
from relief3d.core.contract import Scene
from relief3d.core.device import autocast_dtype, resolve_device
from relief3d.core.errors import InputError
from relief3d.core.optional import available
from relief3d.core.progress import Progress, SilentProgress
from relief3d.geometry.distortion import distort_points, undistorted_camera
from relief3d.io.json_file import read_json_object, write_json
from relief3d.models.multiview.attention_choice import attention_by_name
from relief3d.models.multiview.interface import InferenceOptions, MultiViewModel, wrap
from relief3d.models.multiview.long_sequence import LongOptions
from relief3d.models.multiview.retrieval import thumbnail_descriptors, view_descriptors
from relief3d.pipelines.multiview.capacity import picture_bytes, plan_capacity
from relief3d.pipelines.multiview.config import UNTRAINED, MultiviewConfig
from relief3d.pipelines.multiview.known import Given, in_known_frame, network_inputs, what_is_given
from relief3d.pipelines.multiview.loops import LoopOptions, find_loops
from relief3d.pipelines.multiview.metres import in_metres, without_other_unit
from relief3d.pipelines.multiview.neighbours import choose_neighbours
from relief3d.pipelines.multiview.networks import Source, open_network, parameters_of, weights_digest
from relief3d.pipelines.multiview.pictures import Framing, frame_pictures
from relief3d.pipelines.multiview.points import sparse_points
from relief3d.pipelines.multiview.predict import Asker, Predicted, predict_chunks, predict_whole
from relief3d.pipelines.multiview.refine import refine_cameras, wants_refinement
from relief3d.pipelines.multiview.store import NetworkDepth
from relief3d.pipelines.reconstruct.pinhole import pinhole_view
from relief3d.stereo.views import stereo_size

NETWORK_FOLDER = "network"
"""Below the work folder: what the network said, view by view."""

LOOP_SIDE = 640
"""Longer side in pixels of the pictures in which loops are verified."""


@dataclass(frozen=True)
class NetworkScene:
    """What a network made of a scene.

    Attributes:
        scene: all views posed, cameras at original resolution, sparse points; ``metric`` when lengths are metres.
        depth: dense depth at the network's size, in the scene's unit, on disk.
        facts: JSON types, for ``scene.json``.
    """

    scene: Scene
    depth: NetworkDepth
    facts: dict[str, Any]


def predict_scene(
    scene: Scene,
    config: MultiviewConfig,
    work: Path,
    *,
    network: MultiViewModel | None = None,
    device: str = "auto",
    seed: int = 0,
    max_memory: float | None = None,
    progress: Progress | None = None,
) -> NetworkScene:
    """Cameras and depth of every view by a multi-view network.

    Lens distortion that is known is removed before the network sees a picture, and put back into the cameras. What is
    known about the views is used: by the network itself where it can, and the result is brought into that frame.

    Args:
        scene: views with pictures; one is enough.
        config: which network and how.
        work: folder for the maps (``network/``).
        network: used instead of the one that ``config`` names.
        device: cpu, cuda, mps or auto.
        seed: of random weights and chosen points.
        max_memory: ceiling in GiB.
        progress: receives stages and notes.

    Raises:
        InputError: no pictures, the network cannot be had or does not fit, or options contradict each other.
        RunError: the network gives values that are no geometry, naming the view.
    """
    progress = progress or SilentProgress()
    if not scene.views:
        raise InputError("there are no pictures to reconstruct")
    where = resolve_device(device)
    flat = scene.replace(views=tuple(pinhole_view(v) for v in scene.views))
    model, source = _network(config, network, where, seed, progress)
    framing = frame_pictures(
        [(v.camera.width, v.camera.height) for v in flat.views], config, model.prepare_mode, model.patch
    )
    for note in framing.notes:
        progress.message(note)
    if network is None:
        model = _with_options(model, config, framing)
    given = what_is_given(flat.views, needs_K="K" in model.takes and "depth" not in model.takes)
    given = without_other_unit(given, flat.views, metric=scene.metric)
    known = network_inputs(model, flat.views, framing, given, metric=scene.metric)
    asker = Asker(model, flat.views, framing, known, where, source.untrained)
    predicted = _predict(asker, config, work, where.type, max_memory, seed, scene.ordered, progress)
    facts: dict[str, Any] = {
        "method": f"network {source.label}",
        "network": source.label,
        "untrained": source.untrained,
        "network_size": [framing.width, framing.height],
        "preprocess": framing.mode,
        **predicted.facts,
    }
    warnings = [*framing.notes, *predicted.notes]
    if source.untrained:
        warnings.insert(0, f"{UNTRAINED}: random weights made this result; its numbers mean nothing")
    if any(v.camera.K is not None and abs(float(v.camera.K[0, 1])) > 1e-6 for v in flat.views):
        warnings.append("the given skew of the pixels is left out: the result's cameras have none")
    given = without_other_unit(what_is_given(flat.views), flat.views, metric=scene.metric)
    if given.any:
        predicted, facts["known_geometry"], more = in_known_frame(
            predicted, flat.views, framing, given, metric=scene.metric
        )
        warnings += more
    if not predicted.metric and not source.untrained:
        predicted, scale = in_metres(predicted, flat.views, framing)
        if scale is not None:
            facts["metric_scale"] = scale
            warnings.append(
                f"scaled to metres by the given depth (factor {scale:.4g}); given poses had no unit"
            )
    depth = _network_depth(scene, predicted, framing, untrained=source.untrained)
    solved = _with_cameras(scene, flat, predicted, framing, given, depth, progress)
    solved = solved.replace(metric=predicted.metric and not source.untrained)
    posed = tuple(v.name for v, has in zip(scene.views, given.has_pose.tolist()) if has)
    if wants_refinement(config, scene, all_posed=len(posed) == len(scene), untrained=source.untrained):
        solved, depth, facts["refinement"] = refine_cameras(
            solved, depth, framing, posed, work / "refine", seed=seed, progress=progress
        )
    if len(scene) > 1 and (solved.sparse is None or not len(solved.sparse)):
        warnings.append("no sparse point is confirmed by two views, so sparse/0 holds cameras alone")
    facts |= {"registered": len(solved), "points": 0 if solved.sparse is None else len(solved.sparse)}
    facts["warnings"] = warnings
    depth.save()
    return NetworkScene(solved, depth, facts)


def _network_depth(scene: Scene, predicted: Predicted, framing: Framing, *, untrained: bool) -> NetworkDepth:
    return NetworkDepth(
        predicted.store,
        tuple(v.name for v in scene.views),
        predicted.K,
        predicted.factor,
        framing.network_from_original,
        framing.content,
        framing.mode,
        framing.side,
        framing.patch,
        untrained,
    )


def _network(
    config: MultiviewConfig,
    network: MultiViewModel | None,
    device: torch.device,
    seed: int,
    progress: Progress,
) -> tuple[MultiViewModel, Source]:
    if network is not None:
        if config.attention != "exact" or config.precision != "auto":
            raise InputError(
                "a network that is passed in runs as it is, without --attention and --precision",
                remedy="set them in its InferenceOptions",
            )
        return network, Source(network.name, network.name)
    model, source = open_network(config, device=device, seed=seed, announce=progress.message)
    if source.untrained:
        progress.message(f"{source.label}: random weights, the result means nothing")
    return model, source


def _with_options(model: MultiViewModel, config: MultiviewConfig, framing: Framing) -> MultiViewModel:
    """Precision and attention of a network that was opened here."""
    inner = getattr(model, "network", None)
    if not isinstance(inner, torch.nn.Module):
        return model
    grid = (framing.height // model.patch, framing.width // model.patch)
    specials = 5  # VGGT: camera and four registers; pi3 and its kin: five registers
    attend = attention_by_name(
        config.attention, tokens_per_view=grid[0] * grid[1] + specials, grid=grid, specials=specials
    )
    return wrap(inner, InferenceOptions(config.precision, attend=attend))


def _predict(
    asker: Asker,
    config: MultiviewConfig,
    work: Path,
    device: str,
    max_memory: float | None,
    seed: int,
    ordered: bool,
    progress: Progress,
) -> Predicted:
    """All views at once, or in chunks when they do not fit."""
    parameters = parameters_of(asker.model)
    size = (asker.framing.height, asker.framing.width)
    plan = plan_capacity(
        len(asker.views),
        size,
        parameters,
        config,
        architecture=asker.model.name,
        max_memory=max_memory,
        device=device,
        patch=asker.model.patch,
        beside=picture_bytes(asker.framing.sizes),
    )
    folder = work / NETWORK_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / "chunks.json"
    source = _fingerprint(asker, config, seed) if plan.passes > 1 or begun.is_file() else ""
    options = LongOptions(chunk=plan.at_once, overlap=plan.overlap, seed=seed)
    if begun.is_file() and (found_plan := read_json_object(begun)).get("source") == source:
        # Memory that is free now differs from what was free then; chunks of another size would be no use.
        options = replace(options, chunk=int(found_plan["chunk"]), overlap=int(found_plan["overlap"]))
    elif plan.passes == 1:
        return predict_whole(asker, folder, progress)
    write_json(begun, {"source": source, "chunk": options.chunk, "overlap": options.overlap})
    loops, facts = _loops(asker, options.chunk, seed, progress) if config.loops else ((), {})
    found = predict_chunks(asker, folder, options, progress, loops=loops, source=source)
    found = replace(found, facts={**found.facts, **facts})
    if not ordered:
        found = replace(
            found,
            notes=(*found.notes, "chunks follow the order of the pictures' names; use --chunk 0 with more memory "
                   "when they were not taken along a path"),
        )  # fmt: skip
    return found


def _fingerprint(asker: Asker, config: MultiviewConfig, seed: int) -> str:
    """What the chunks of a run depend on, beyond the input that the output folder is tied to already."""
    digest = hashlib.blake2b(digest_size=32)
    digest.update(weights_digest(asker.model).encode())
    options = getattr(asker.model, "options", None)
    dtype = None
    if isinstance(options, InferenceOptions):
        dtype = autocast_dtype(options.precision, asker.device)
    names = [view.name for view in asker.views]
    framing = (asker.framing.width, asker.framing.height, asker.framing.mode)
    where = (asker.device.type, str(dtype), __version__, torch.__version__)
    digest.update(repr((asker.model.name, dataclasses.asdict(config), seed, names, framing, where)).encode())
    return digest.hexdigest()


def _loops(
    asker: Asker, chunk: int, seed: int, progress: Progress
) -> tuple[Sequence[tuple[int, int]], dict[str, Any]]:
    """Places seen again, at least a chunk apart: alike by the network's own encoder, verified by matches."""
    if not available("pycolmap"):
        progress.message(
            "loops are not looked for: verifying them needs pycolmap (pip install 'relief3d[sfm]')"
        )
        return (), {"loops_checked": 0}
    count = len(asker.views)
    inner = getattr(asker.model, "network", None)
    if isinstance(inner, torch.nn.Module):
        descriptors = view_descriptors(inner, asker.load, count, device=asker.device)
    else:
        descriptors = thumbnail_descriptors(asker.load, count)

    def load(numbers: Sequence[int]) -> Tensor:
        return torch.stack([_reduced(asker.views[i].load_image()) for i in numbers])

    loops, checks = find_loops(
        load, descriptors, options=LoopOptions(min_gap=chunk, seed=seed), progress=progress
    )
    return loops, {"loops_checked": len(checks), "loops_found": len(loops)}


def _reduced(image: Tensor) -> Tensor:
    """The picture with its longer side at most :data:`LOOP_SIDE` pixels."""
    width, height = stereo_size(image.shape[2], image.shape[1], LOOP_SIDE)
    if (height, width) == tuple(image.shape[1:]):
        return image
    return torch.nn.functional.interpolate(
        image[None], (height, width), mode="bilinear", antialias=True, align_corners=False
    )[0]


def _with_cameras(
    scene: Scene,
    flat: Scene,
    predicted: Predicted,
    framing: Framing,
    given: Given,
    depth: NetworkDepth,
    progress: Progress,
) -> Scene:
    """The scene with cameras at original resolution and sparse points."""
    views = []
    for index, view in enumerate(scene.views):
        K = framing.original_intrinsics(index, predicted.K[index])
        K[0, 1] = K[1, 0] = 0.0
        source = "given" if given.has_K[index] else "estimated"
        camera = view.camera.replace(K=K, world_from_cam=predicted.world_from_cam[index], K_source=source)
        views.append(view.replace(camera=camera))
    neighbours = choose_neighbours(predicted.world_from_cam, depth)

    def colours(index: int) -> Tensor:
        return framing.load(flat.views, [index])[0]

    sparse = sparse_points(predicted.world_from_cam, depth, neighbours, colours, progress)
    if any(v.camera.distortion is not None for v in views):
        xy = sparse.obs_xy.clone()
        for index, view in enumerate(views):
            mine = sparse.obs_view == index
            if view.camera.distortion is not None and bool(mine.any()):
                xy[mine] = distort_points(xy[mine], view.camera, undistorted_camera(view.camera))
        sparse = dataclasses.replace(sparse, obs_xy=xy)
    return scene.replace(views=tuple(views), sparse=sparse)
