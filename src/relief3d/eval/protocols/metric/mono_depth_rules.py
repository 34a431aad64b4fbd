"""Metric depth of single pictures: what MetricAnything's tables 3 and 4 and Depth Pro's zero-shot benchmark share.

The model sees one picture and its true intrinsics. Its depth is resized bilinearly to the size of the truth, clamped,
and compared where the truth lies inside the data set's range; nothing is aligned. Spec: metric_depth.md 9.1 and 9.2.
:class:`TwinPlan` renders pictures for the procedural twins of these and of the point-map benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.eval.aggregation import mean, weighted_mean
from relief3d.eval.metrics.depth_errors import depth_errors
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.metric.frames import FrameFile
from relief3d.eval.published.metric_depth import DETAILS, TABLE_3, TABLE_4
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import Clip, ClipPlan, clip_cache, query_scene
from relief3d.geometry.point_splat import splat_depth
from relief3d.geometry.transforms import invert_rigid, transform_points
from relief3d.worlds.config import Family
from relief3d.worlds.ranging import lidar_scan, spinning_pattern

CLAMP = (1e-3, 1e3)
"""Metres to which the predictions of the students are clamped before they are compared."""

Frames = Callable[[Path], list[FrameFile]]
_PERCENT = ("delta1", "delta2", "delta3")
_MEANS = ("abs_rel", "log10", "sq_rel", "mae", *_PERCENT)
COLUMNS = (
    Column("delta1", "delta1", "%", "higher"),
    Column("abs_rel", "AbsRel"),
    Column("log10", "log10"),
    Column("delta2", "delta2", "%", "higher"),
    Column("delta3", "delta3", "%", "higher"),
    Column("sq_rel", "SqRel", "m"),
    Column("rmse", "RMSE", "m"),
    Column("mae", "MAE", "m"),
    Column("rmse_log", "RMSElog"),
    Column("silog", "SILog"),
    Column("image_delta1", "delta1, mean of pictures", "%", "higher"),
    Column("image_abs_rel", "AbsRel, mean of pictures"),
    Column("image_log10", "log10, mean of pictures"),
    Column("answered", "pixels answered", "%", "higher"),
)


@dataclass(frozen=True)
class Shot:
    """A picture with its truth, from files or rendered; nothing is loaded or rendered before it is asked for.

    Attributes:
        name: unique, usable as a relative path.
        group: scene, the unit of the bootstrap.
        load_image: (3, H, W) uint8.
        load_truth: (H, W) z-depth in metres and (H, W) bool where it may count.
        load_K: (3, 3) float64 pixels of the picture; None where unknown.
    """

    name: str
    group: str
    load_image: Callable[[], Tensor]
    load_truth: Callable[[], tuple[Tensor, Tensor]]
    load_K: Callable[[], Tensor | None]

    def need_K(self) -> Tensor:
        """(3, 3) intrinsics.

        Raises:
            InputError: unknown.
        """
        K = self.load_K()
        if K is None:
            raise InputError(
                f"the picture '{self.name}' has no intrinsics", remedy="add the calibration files"
            )
        return K


def file_shot(frame: FrameFile) -> Shot:
    """A picture of a data set."""
    return Shot(
        frame.name,
        frame.group,
        frame.load_image,
        lambda: (frame.load_depth(), frame.load_valid()),
        lambda: frame.K,
    )


@dataclass(frozen=True)
class TwinPlan:
    """Procedural pictures that stand for a data set.

    Attributes:
        family: kind of world.
        scale: every length of the world is multiplied by it (the picture stays the same), so that depths reach
            the limits of the benchmark.
        tall: every second world is shown in portrait format.
        wide: pictures are twice as wide as a 4:3 picture of that height.
        lidar: the truth is known only where a spinning lidar above the camera hits.
    """

    family: Family = "room"
    scale: float = 1.0
    tall: bool = False
    wide: bool = False
    lidar: bool = False

    def size(self, world: int, height: int) -> tuple[int, int]:
        """(H, W) of the pictures of a world."""
        width = height * 4 // 3 * (2 if self.wide else 1)
        return (width, height) if self.tall and world % 2 else (height, width)

    def shots(self, budget: Budget, seed: int, name: str) -> list[Shot]:
        """Pictures with depth, rendered when used: 2 worlds x 1 small picture, or 12 worlds x 2 pictures."""
        worlds, views, height = (2, 1, 48) if budget == "smoke" else (12, 2, 180)
        render = clip_cache()
        plans = [
            ClipPlan(derive_seed(seed, name, w), views, self.size(w, height), self.family)
            for w in range(worlds)
        ]
        return [self._shot(render, plan, w, i) for w, plan in enumerate(plans) for i in range(views)]

    def _shot(self, render: Callable[[ClipPlan], Clip], plan: ClipPlan, world: int, index: int) -> Shot:
        def truth() -> tuple[Tensor, Tensor]:
            clip = render(plan)
            depth = self.scale * (lidar_view(clip, index, plan.seed) if self.lidar else clip.depth[index])
            return depth, depth > 0

        return Shot(
            name=f"world{world:02d}/{index:06d}",
            group=f"world{world:02d}",
            load_image=lambda: render(plan).images[index],
            load_truth=truth,
            load_K=lambda: render(plan).K[index],
        )


def lidar_view(clip: Clip, index: int, seed: int) -> Tensor:
    """(H, W) exact z-depth of one picture where a 32-beam lidar 0.3 m above the camera hits, else 0."""
    pose = clip.world_from_cam[index].float()
    world_from_sensor = pose.clone()
    # A lidar looks along x with z up, a camera along z with y down.
    world_from_sensor[:3, 0], world_from_sensor[:3, 1], world_from_sensor[:3, 2] = (
        pose[:3, 2],
        -pose[:3, 0],
        -pose[:3, 1],
    )
    world_from_sensor[:3, 3] += 0.3 * world_from_sensor[:3, 2]
    scan = lidar_scan(
        clip.world,
        world_from_sensor[None],
        spinning_pattern(32, 360, low=-30.0, high=20.0),
        torch_generator(derive_seed(seed, "lidar", index)),
        times=clip.times[index][None],
        noise=0.0,
        reach=100.0,
    )
    points = transform_points(invert_rigid(pose), scan.points[0][scan.valid[0]])
    return splat_depth(points, clip.K[index], (clip.images.shape[-2], clip.images.shape[-1]))


def resize_bilinear(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """(H, W) depth at another size: bilinear, pixel areas aligned (``align_corners=False``), no antialiasing."""
    if tuple(depth.shape) == tuple(size):
        return depth
    return F.interpolate(depth[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


def one_map(answer: Answer, name: str = "depth") -> Tensor:
    """The only (H, W) map of an answer, given as (1, H, W) or (H, W).

    Raises:
        InputError: absent, or not one map.
    """
    value = answer.need(name)
    if value.ndim == 3 and value.shape[0] == 1:
        value = value[0]
    if value.ndim != 2 or 0 in value.shape:
        raise InputError(
            f"'{name}' of the answer has shape {tuple(value.shape)}, expected one map (1, H, W)",
            remedy="give one depth map per picture",
        )
    return value.float()


def compare_depth(
    predicted: Tensor,
    truth: Tensor,
    valid: Tensor,
    limits: tuple[float, float],
    clamp: tuple[float, float] | None,
) -> dict[str, float]:
    """All errors of one picture, and what pooling them needs.

    Args:
        predicted: (h, w) metres, any size.
        truth: (H, W) metres.
        valid: (H, W) bool.
        limits: only truth strictly between these depths counts.
        clamp: range the resized prediction is forced into, or None.

    Returns:
        The fields of :class:`DepthErrors` (shares as ratios), ``mse``, ``msle``, ``log_bias`` (mean of ln p - ln g) and
        ``answered``, the share of pixels whose prediction is finite (others do not count in the errors).

    Raises:
        InputError: "no valid pixels", or without a clamp a prediction that is not positive.
    """
    low, high = limits
    wanted = valid & (truth > low) & (truth < high)
    resized = resize_bilinear(predicted, (truth.shape[0], truth.shape[1]))
    mask = wanted & torch.isfinite(resized)
    p, g = resized[mask].double(), truth[mask].double()
    if clamp is not None:
        p = p.clamp(*clamp)
    values = depth_errors(p, g, torch.ones_like(g, dtype=torch.bool)).as_dict()
    values["mse"], values["msle"] = values["rmse"] ** 2, values["rmse_log"] ** 2
    values["log_bias"] = float((p.log() - g.log()).mean())
    values["answered"] = float(mask.sum() / wanted.sum())
    return values


def summarise_depth(measurements: Sequence[Measurement], *, pooled: bool = True) -> dict[str, float]:
    """Columns of :data:`COLUMNS` from the values of :func:`compare_depth` (weights are numbers of pixels).

    Args:
        measurements: of any samples.
        pooled: every pixel of the data set counts the same; otherwise every picture. The ``image_*`` columns are
            always means of pictures.
    """
    average = weighted_mean if pooled else mean
    out = {key: average(measurements, key) for key in _MEANS}
    if pooled:
        squares, bias = average(measurements, "msle"), average(measurements, "log_bias")
        out["rmse"], out["rmse_log"] = math.sqrt(average(measurements, "mse")), math.sqrt(squares)
        out["silog"] = math.sqrt(max(squares - 0.5 * bias**2, 0.0))
    else:
        out |= {key: average(measurements, key) for key in ("rmse", "rmse_log", "silog")}
    out |= {f"image_{key}": mean(measurements, key) for key in ("delta1", "abs_rel", "log10")}
    out["answered"] = mean(measurements, "answered")
    for key in (*_PERCENT, "image_delta1", "answered"):
        out[key] *= 100
    return out


class MonoDepthProtocol(Protocol):
    """Metric depth of single pictures with known intrinsics.

    Args:
        name, title, layout: see :class:`Protocol`.
        data: key of the data set in the published tables.
        frames: reader of the public layout.
        limits: depths in metres between which the truth counts.
        twin_plan: pictures of the procedural twin.
        notes: subtle choices of this data set.
        clamp: see :func:`compare_depth`.
        pooled: see :func:`summarise_depth`.
    """

    task = "mono_depth"
    columns = COLUMNS

    def __init__(
        self,
        *,
        name: str,
        title: str,
        layout: str,
        data: str,
        frames: Frames,
        limits: tuple[float, float],
        twin_plan: TwinPlan,
        notes: Sequence[str] = (),
        clamp: tuple[float, float] | None = CLAMP,
        pooled: bool = True,
    ) -> None:
        self.name, self.title, self.layout = name, title, layout
        self.source = "MetricAnything, Tables 3 and 4; ranges of Depth Pro, Table 18; specification 9.1, 9.2"
        self.data, self.frames, self.limits, self.twin_plan = data, frames, limits, twin_plan
        self.clamp, self.pooled = clamp, pooled
        how = "all pixels of the data set pooled" if pooled else "mean of pictures"
        self.notes = (
            f"truth strictly between {limits[0]:g} and {limits[1]:g} m; no alignment of any kind; pictures without "
            "such truth do not count",
            "prediction resized bilinearly to the size of the truth"
            + (f", then clamped to [{clamp[0]:g}, {clamp[1]:g}] m" if clamp else ""),
            f"main columns: {how} (only Booster's script is public; the others follow it); the last columns give the "
            "means of pictures, which differ by several points on ETH3D",
            "the true intrinsics are given to the model",
            "predictions that are not finite are left out of the errors and show in 'pixels answered'",
            *notes,
        )

    def open(self, data: Path) -> list[Sample]:
        """Samples of the real pictures."""
        return mono_samples([file_shot(f) for f in self.frames(data)])

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Samples of rendered pictures."""
        return mono_samples(self.twin_plan.shots(budget, seed, self.name))

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Errors of one picture; the weight is the number of pixels, 0 where all truth lies outside the range."""
        depth, valid = truth.need("depth")[0], truth.need("valid")[0]
        same_size(query, depth)
        group, predicted = str(truth.facts["group"]), one_map(answer)
        low, high = self.limits
        if bool(valid.any()) and not bool((valid & (depth > low) & (depth < high)).any()):
            return Measurement(query.name, group, {}, weight=0.0)
        values = compare_depth(predicted, depth, valid, self.limits, self.clamp)
        return Measurement(query.name, group, values, weight=values["pixels"])

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """See :func:`summarise_depth`."""
        return summarise_depth(measurements, pooled=self.pooled)

    def published(self) -> Sequence[PublishedRow]:
        """Both tables' rows of this data set, one row per method."""
        return published_mono(self.data)


def same_size(query: Query, depth: Tensor) -> None:
    """Refuse a true depth map (H, W) of another size than the picture: intrinsics and pixels would not belong together.

    Raises:
        InputError: names both sizes.
    """
    if query.scene is not None:
        camera = query.scene.views[0].camera
        if (camera.height, camera.width) != tuple(depth.shape):
            raise InputError(
                f"the depth map of '{query.name}' has {depth.shape[1]} x {depth.shape[0]} pixels, its picture "
                f"{camera.width} x {camera.height}",
                remedy="use the pictures and depth maps of the same release",
            )


def mono_samples(shots: Sequence[Shot]) -> list[Sample]:
    """Samples whose query holds a picture with its true intrinsics, and whose truth is depth where it may count."""

    def loaders(shot: Shot) -> tuple[Callable[[], Query], Callable[[], Truth]]:
        def query() -> Query:
            image, K = shot.load_image(), shot.need_K()
            scene = query_scene(image[None], K=K[None], ordered=False)
            return Query(shot.name, "mono_depth", ("depth",), scene)

        def truth() -> Truth:
            depth, valid = shot.load_truth()
            tensors = {"depth": depth[None].float(), "valid": valid[None]}
            return Truth(tensors, facts={"group": shot.group})

        return query, truth

    return [Sample(shot.name, shot.group, *loaders(shot)) for shot in shots]


def published_mono(data: str) -> tuple[PublishedRow, ...]:
    """Rows of tables 3 and 4 of one data set, by method, in the order of table 3."""
    coarse = {r.method: r for r in TABLE_3.select({"delta1": f"{data}.delta1"})}
    fine = {r.method: r for r in TABLE_4.select({key: f"{data}.{key}" for key in DETAILS})}
    rows = []
    for method in (*coarse, *(m for m in fine if m not in coarse)):
        parts = [rows_of[method] for rows_of in (coarse, fine) if method in rows_of]
        source = parts[0].source if len(parts) == 1 else f"{parts[0].source} and 4"
        rows.append(PublishedRow(method, source, {k: v for part in parts for k, v in part.values.items()}))
    return tuple(rows)
