"""Dense reconstruction from N views in map-anything's conventions: points, cameras and depth of one set of pictures.

The rules of Reliev3R's tables (specification multiview.md 4.7 and 6.5); benchmarks give reader, frames, thresholds,
twin and published rows. :class:`PosedSequence` is what their readers return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, numpy_generator
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.camera_conventions import ate_rigid_mean, auc_unit_bins, map_anything_pair_errors
from relief3d.eval.metrics.points import (
    NormalisedViews,
    inliers_by_distance,
    inliers_by_norm,
    metric_scale_error,
    normalise_avg_dis,
    relative_error,
    view_mean,
)
from relief3d.eval.protocols.base import (
    Answer,
    Budget,
    Column,
    Deviation,
    Measurement,
    Protocol,
    Query,
    Sample,
    Truth,
)
from relief3d.eval.protocols.views.camera_rules import CameraTwin
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import Clip, ClipPlan, clip_cache, query_scene
from relief3d.geometry.projection import depth_to_points
from relief3d.geometry.transforms import invert_rigid, transform_points

SEED = 42
Indices = Sequence[int]


@dataclass(frozen=True)
class PosedSequence:
    """Pictures with intrinsics, poses and depth; every loader takes frame indices and reads only those.

    Attributes:
        name: unique within the protocol, usable as a relative path.
        frames: names of all frames in order.
        pictures: (n, 3, H, W) uint8.
        K: (n, 3, 3) float64 pixels of those pictures, centres at +0.5.
        world_from_cam: (n, 4, 4) float64.
        depth: (n, H, W) z-depth of the pictures' pixels, 0 where unknown.
        rays: (n, H, W, 3) camera-frame rays with z = 1 of pictures with lens distortion; None for pinhole pictures.
        group: unit of the bootstrap; the name when empty.
    """

    name: str
    frames: Sequence[str]
    pictures: Callable[[Indices], Tensor]
    K: Callable[[Indices], Tensor]
    world_from_cam: Callable[[Indices], Tensor]
    depth: Callable[[Indices], Tensor]
    rays: Callable[[Indices], Tensor] | None = None
    group: str = ""


Reader = Callable[[Path], list[PosedSequence]]
Chooser = Callable[[str, int], Sequence[int]]
"""Frames of a sequence from its name and its number of frames."""


def choose_contiguous(views: int = 8) -> Chooser:
    """Consecutive frames; the first is drawn once per sequence from its name and seed 42 (our choice)."""

    def choose(name: str, count: int) -> Sequence[int]:
        if count < views:
            raise InputError(f"sequence '{name}' has {count} frames, {views} are needed")
        start = int(numpy_generator(derive_seed(SEED, name)).integers(0, count - views + 1))
        return range(start, start + views)

    return choose


def posed_clips(twin: CameraTwin, budget: Budget, seed: int) -> list[PosedSequence]:
    """Procedural sequences, one clip each, rendered when first used."""
    cache = clip_cache()
    return [
        clip_sequence(
            f"clip{index:03d}",
            ClipPlan(
                seed=derive_seed(seed, index),
                frames=twin.frames[budget],
                size=twin.size[budget],
                family=twin.family,
                path=twin.path,
                moving=twin.moving,
            ),
            cache,
        )
        for index in range(twin.clips[budget])
    ]


def clip_sequence(name: str, plan: ClipPlan, render: Callable[[ClipPlan], Clip]) -> PosedSequence:
    """One clip as a sequence."""
    return PosedSequence(
        name,
        tuple(f"{i:06d}.png" for i in range(plan.frames)),
        pictures=lambda chosen: render(plan).images[list(chosen)],
        K=lambda chosen: render(plan).K[list(chosen)],
        world_from_cam=lambda chosen: render(plan).world_from_cam[list(chosen)],
        depth=lambda chosen: render(plan).depth[list(chosen)],
    )


def load_truth(sequence: PosedSequence, chosen: Indices) -> dict[str, Tensor]:
    """``depth``, ``valid``, ``K``, ``world_from_cam`` and ``world_points`` of some frames."""
    depth, K = sequence.depth(chosen).float(), sequence.K(chosen).double()
    valid = torch.isfinite(depth) & (depth > 0)
    depth = torch.where(valid, depth, torch.zeros_like(depth))
    poses = sequence.world_from_cam(chosen).double()
    if sequence.rays is None:
        cam_points = depth_to_points(depth.double(), K)
    else:
        cam_points = sequence.rays(chosen).double() * depth[..., None]
    return {
        "depth": depth,
        "valid": valid,
        "K": K,
        "world_from_cam": poses,
        "world_points": to_world(cam_points, poses),
    }


def to_world(cam_points: Tensor, world_from_cam: Tensor) -> Tensor:
    """Camera-frame point maps (N, H, W, 3) in the common frame of (N, 4, 4) poses, float64."""
    flat = transform_points(world_from_cam.double(), cam_points.double().flatten(1, 2))
    return flat.reshape(cam_points.shape)


def answered_geometry(query: Query, answer: Answer, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """World points, depth and poses of an answer that may give points or depth alone.

    ``world_points`` counts as it is. Without it ``cam_points``, or ``depth`` with the answer's or the query's
    intrinsics, are moved by the answer's poses. ``depth`` may be missing too: it is then the z of the points.

    Args:
        query: what was asked.
        answer: with ``world_from_cam`` and at least one of the others.
        shape: (N, H, W).

    Returns:
        (N, H, W, 3), (N, H, W), (N, 4, 4), all float64.

    Raises:
        InputError: something is missing or has another size than the pictures.
    """
    views, height, width = shape
    poses = answer.need("world_from_cam", (views, 4, 4)).double()
    points_shape = (views, height, width, 3)
    local = answer.need("cam_points", points_shape).double() if "cam_points" in answer.tensors else None
    depth = answer.need("depth", shape).double() if "depth" in answer.tensors else None
    if local is None and depth is not None:
        K = answer.tensors.get("K", _query_intrinsics(query))
        local = None if K is None else depth_to_points(depth, K.double())
    if "world_points" in answer.tensors:
        world = answer.need("world_points", points_shape).double()
    elif local is not None:
        world = to_world(local, poses)
    else:
        world = answer.need("world_points", points_shape)
    if depth is None:
        if local is None:
            local = to_world(world, invert_rigid(poses))
        depth = local[..., 2]
    return world, depth, poses


def _query_intrinsics(query: Query) -> Tensor | None:
    known = [] if query.scene is None else [v.camera.K for v in query.scene.views]
    found = [k for k in known if k is not None]
    return torch.stack(found) if found and len(found) == len(known) else None


class NViewProtocol(Protocol):
    """One set of N pictures per sequence: point map, camera and depth errors after "avg_dis" normalisation.

    Args:
        name, title, source, layout, notes, version: see :class:`Protocol`.
        reader: root folder -> sequences; raises InputError naming what is missing.
        choose: which frames form the set.
        rows: published figures keyed by our columns.
        twin: the procedural stand-in.
        tau: threshold of the ratio of norms (1.10 in Reliev3R, 1.03 in map-anything's release).
        auc_degrees: of the AUC (30 in Reliev3R, 5 in map-anything's release).
        metric: the truth is in metres; adds the error of the scale.
        deviation: see :meth:`Protocol.deviation`.
    """

    task = "views"

    def __init__(
        self,
        name: str,
        title: str,
        source: str,
        reader: Reader,
        choose: Chooser,
        rows: Sequence[PublishedRow] = (),
        twin: CameraTwin | None = None,
        tau: float = 1.10,
        auc_degrees: int = 30,
        metric: bool = False,
        layout: str = "",
        notes: Sequence[str] = (),
        version: int = 1,
        deviation: Deviation | None = None,
    ) -> None:
        self.name, self.title, self.source, self.layout, self.version = name, title, source, layout, version
        self.notes = (*_NOTES, *notes)
        self.tau, self.auc_degrees, self.metric = tau, auc_degrees, metric
        self._reader, self._choose, self._rows = reader, choose, tuple(rows)
        self._twin, self._deviation = twin or CameraTwin(), deviation
        columns = [
            Column("pm_rel", "PM rel"),
            Column("pm_tau", f"PM tau {tau:g}", better="higher"),
            Column("ate", "ATE"),
            Column(f"auc_{auc_degrees}", f"AUC@{auc_degrees}", "%", "higher"),
            Column("d_rel", "D rel"),
            Column("d_tau", f"D tau {tau:g}", better="higher"),
            Column("pm_tau_distance", "PM tau by true distance", better="higher"),
        ]
        self.columns = tuple([*columns, Column("scale_rel", "scale rel")] if metric else columns)

    def open(self, data: Path) -> list[Sample]:
        """One sample per sequence; see :class:`Protocol`."""
        return [self._sample(sequence) for sequence in self._reader(data)]

    def deviation(self, data: Path, samples: Sequence[Sample]) -> str | None:
        """As the benchmark says; see :class:`Protocol`."""
        return None if self._deviation is None else self._deviation(data, samples)

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Clips of procedural worlds through the same chooser."""
        return [self._sample(s) for s in posed_clips(self._twin, budget, derive_seed(seed, self.name))]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """See :class:`Protocol`; what an answer may hold is said in :func:`answered_geometry`."""
        true = self._normalised_truth(truth)
        valid = truth.need("valid")
        pred = normalise_avg_dis(*answered_geometry(query, answer, valid.shape), valid)
        values = {
            "pm_rel": view_mean(relative_error(pred.points, true.points, valid)),
            "pm_tau": view_mean(inliers_by_norm(pred.points, true.points, valid, self.tau)),
            "pm_tau_distance": view_mean(inliers_by_distance(pred.points, true.points, valid, self.tau - 1)),
            "ate": ate_rigid_mean(pred.world_from_cam, true.world_from_cam),
            f"auc_{self.auc_degrees}": auc_unit_bins(
                map_anything_pair_errors(pred.world_from_cam, true.world_from_cam).worst, self.auc_degrees
            ),
            "d_rel": view_mean(relative_error(pred.depth[..., None], true.depth[..., None], valid)),
            "d_tau": view_mean(
                inliers_by_norm(pred.depth[..., None], true.depth[..., None], valid, self.tau)
            ),
        }
        if self.metric:
            values["scale_rel"] = metric_scale_error(pred.factor, true.factor)
        return self._measurement(query, truth, values)

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        """What an answer counts that puts every point and every camera at the origin (errors have no upper bound)."""
        true = self._normalised_truth(truth)
        centres = true.world_from_cam[:, :3, 3]
        values = {
            "pm_rel": 1.0,
            "pm_tau": 0.0,
            "pm_tau_distance": 0.0,
            "ate": float((centres - centres.mean(0)).norm(dim=-1).mean()),
            f"auc_{self.auc_degrees}": 0.0,
            "d_rel": 1.0,
            "d_tau": 0.0,
        }
        return self._measurement(query, truth, values | ({"scale_rel": 1.0} if self.metric else {}))

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Means over sets; every set counts the same."""
        return {column.key: mean(measurements, column.key) for column in self.columns}

    def published(self) -> Sequence[PublishedRow]:
        """Rows given by the benchmark."""
        return self._rows

    def _normalised_truth(self, truth: Truth) -> NormalisedViews:
        return normalise_avg_dis(
            truth.need("world_points"),
            truth.need("depth"),
            truth.need("world_from_cam"),
            truth.need("valid"),
        )

    def _measurement(self, query: Query, truth: Truth, values: Mapping[str, float]) -> Measurement:
        return Measurement(query.name, str(truth.facts.get("group", query.name)), values)

    def _sample(self, sequence: PosedSequence) -> Sample:
        chosen = list(self._choose(sequence.name, len(sequence.frames)))
        names = [sequence.frames[i] for i in chosen]
        group = sequence.group or sequence.name

        def query() -> Query:
            scene = query_scene(sequence.pictures(chosen), K=sequence.K(chosen), names=names)
            return Query(
                sequence.name, "views", ("world_points", "depth", "world_from_cam"), scene=scene, seed=SEED
            )

        def truth() -> Truth:
            return Truth(load_truth(sequence, chosen), facts={"group": group})

        return Sample(sequence.name, group, query, truth)


_NOTES = (
    "Points, depth and camera centres are divided by the mean distance of all valid points from the first camera, "
    "prediction and truth each by its own, over the truth's mask; no similarity is fitted and no view is scaled alone.",
    "tau compares norms of points, not their distance (map-anything's code); the last column uses the true distance.",
    "ATE is the mean, not the root mean square, after a rigid alignment without scale.",
    "AUC per set on inv(T_i) T_j of camera-to-world poses, then averaged over sets.",
    "Intrinsics are given to the model, as to Reliev3R; methods of the table that estimate them do not read them.",
    "A failed set counts rel 1, tau 0, AUC 0 and the ATE of cameras that all stand in one place.",
)
