"""Metric depth of point-map models with and without known field of view (MetricAnything, tables 5 and 6).

The rules of MoGe's evaluation (specification metric_depth.md 9.3). Every picture is first warped to the benchmark's
size: the camera is turned so that its axis goes through the middle of the picture, and the largest field of view that
the picture fills is cut out, with square pixels and the principal point in the middle. Truth is carried along as
distance from the camera, which a turn does not change. Without intrinsics the model sees only the warped picture; with
them also its (centred) intrinsics, which say no more than the horizontal field of view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.point_maps import delta1_depth, drop_far_depth, point_map_errors, rel_depth
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.metric.mono_depth_rules import Frames, Shot, TwinPlan, file_shot, one_map
from relief3d.eval.protocols.metric.readers_moge import LAYOUT, prefer_moge
from relief3d.eval.published.metric_depth import TABLE_5, TABLE_6
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import query_scene
from relief3d.geometry.masked_resize import masked_nearest_resize
from relief3d.geometry.projection import depth_to_points, normalize_pixels, pixel_rays, resize_intrinsics
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.sampling import sample_image, sample_map

COLUMNS = (
    Column("abs_rel", "AbsRel", "%"),
    Column("delta1", "delta1", "%", "higher"),
    Column("rel_point", "rel of the points", "%"),
    Column("delta1_point", "delta1 of the points", "%", "higher"),
)


@dataclass(frozen=True)
class Warp:
    """How a picture is brought to the benchmark's size.

    Attributes:
        K: (3, 3) float64 of the warped picture: one focal length, principal point in the middle.
        R: (3, 3) float64, turned camera from raw camera.
        source: (H, W, 2) float64 positions in the raw picture, centres at +0.5.
        raw: (h, w) of the raw picture.
        step: (h, w) to which picture and depth are resized first: about the pixel size of the result.
    """

    K: Tensor
    R: Tensor
    source: Tensor
    raw: tuple[int, int]
    step: tuple[int, int]

    def step_source(self) -> Tensor:
        """(H, W, 2) positions in the resized picture."""
        return self.source * torch.tensor([self.step[1] / self.raw[1], self.step[0] / self.raw[0]]).double()


def make_warp(K: Tensor, raw: tuple[int, int], size: tuple[int, int]) -> Warp:
    """The largest centred field of view of a picture at another size.

    Args:
        K: (3, 3) pixels of the raw picture, centres at +0.5.
        raw: (H, W) of the raw picture.
        size: (H, W) of the result.

    Raises:
        InputError: the picture spans 90 degrees or more to some side of its middle, so no plane holds it.
    """
    K = K.double()
    height, width = size
    middle = _ray(torch.tensor([raw[1] / 2, raw[0] / 2], dtype=torch.float64), K)
    R = _turn_to_axis(middle)
    corners = torch.tensor([[0, 0], [raw[1], 0], [raw[1], raw[0]], [0, raw[0]]], dtype=torch.float64)
    seen = _ray(corners, K) @ R.T
    if bool((seen[:, 2] <= 1e-6).any()):
        raise InputError(
            "the picture's field of view is too wide for a pinhole picture", remedy="check its intrinsics"
        )
    corners = seen[:, :2] / seen[:, 2:]
    aspect = width / height
    # Half height of the widest rectangle around the axis whose corners stay inside the picture's outline, and which
    # is not wider or higher than the raw field of view.
    half = min(float(raw[1] / K[0, 0]) / 2 / aspect, float(raw[0] / K[1, 1]) / 2)
    for a, b in zip(corners, corners.roll(-1, 0)):
        for x in (aspect, -aspect):
            half = min(half, _reach(torch.tensor([x, 1.0], dtype=torch.float64), a, b))
    focal = height / 2 / half
    target = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    rays = pixel_rays(target, height, width) @ R  # R.T applied to row vectors
    source = (rays @ K.T)[..., :2] / rays[..., 2:]
    step = (max(1, int(raw[0] * focal / float(K[1, 1]))), max(1, int(raw[1] * focal / float(K[0, 0]))))
    return Warp(target, R, source, raw, step)


def warp_image(image: Tensor, warp: Warp) -> Tensor:
    """(3, H, W) uint8 picture: Lanczos to about the new pixel size, then bilinear, black outside."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    resized = np.asarray(picture.resize((warp.step[1], warp.step[0]), Image.Resampling.LANCZOS))
    values = torch.from_numpy(resized.copy()).permute(2, 0, 1).double()
    out = sample_image(values, warp.step_source(), "bilinear", "zeros")
    return out.round().clamp(0, 255).to(torch.uint8)


def warp_depth(depth: Tensor, valid: Tensor, K: Tensor, warp: Warp) -> tuple[Tensor, Tensor]:
    """z-depth (H, W) in the turned camera and where it is known.

    The depth map is resized as the picture is, by the masked nearest resize (a resized pixel takes the valid raw pixel
    nearest to its centre), turned into distances from the camera, and those are read at the nearest pixel.

    Args:
        depth: (h, w) raw z-depth.
        valid: (h, w) bool.
        K: (3, 3) of the raw picture.
        warp: see :func:`make_warp`.
    """
    small, known = masked_nearest_resize(depth.double(), valid, warp.step)
    K_small = resize_intrinsics(K.double(), (warp.raw[1], warp.raw[0]), (warp.step[1], warp.step[0]))
    length = pixel_rays(K_small, *warp.step).norm(dim=-1)
    distance = torch.where(known, small * length, torch.zeros_like(small))
    moved = sample_map(distance, warp.step_source(), "nearest")
    rays = pixel_rays(warp.K, warp.source.shape[0], warp.source.shape[1])
    return (moved / rays.norm(dim=-1)).float(), moved > 0


class PointMapProtocol(Protocol):
    """Metric depth, and points, of single pictures at a fixed size.

    Args:
        name, title, layout, notes: see :class:`Protocol`.
        data: key of the data set in the published tables.
        frames: reader of the public layout; every picture needs intrinsics.
        size: (H, W) to which pictures are warped.
        twin_plan: pictures of the procedural twin.
        known_fov: the model is told the intrinsics (table 6) or not (table 5).
    """

    task = "mono_points"
    columns = COLUMNS

    def __init__(
        self,
        *,
        name: str,
        title: str,
        layout: str,
        data: str,
        frames: Frames,
        size: tuple[int, int],
        twin_plan: TwinPlan,
        known_fov: bool,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.data = name, data
        self.layout, self.frames = f"{layout}\n{LAYOUT}", prefer_moge(frames)
        self.title = f"{title}, {'with' if known_fov else 'without'} intrinsics"
        self.source = f"MetricAnything, Table {6 if known_fov else 5}; MoGe's evaluation; specification 9.3"
        self.size, self.twin_plan, self.known_fov = size, twin_plan, known_fov
        self.notes = (
            f"pictures and truth warped to {size[1]} x {size[0]}: axis through the middle, largest field of view, "
            "square pixels; Lanczos then bilinear for pictures, masked nearest then nearest distance for the truth",
            "pixels deeper than 1000 times the 1 % quantile of the picture are dropped; no clamp, no mask of the model",
            "AbsRel and delta1 are of the metric depth as it is; points are first moved by the L1-optimal translation",
            "mean of pictures",
            "the model is given the centred intrinsics, that is fov_x"
            if known_fov
            else "the model sees the picture only",
            "an answer without points (a depth model) leaves the point columns empty",
            *notes,
        )

    def open(self, data: Path) -> list[Sample]:
        """Samples of the real pictures."""
        return self._samples([file_shot(f) for f in self.frames(data)], self.size)

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Samples of rendered pictures, warped to a small picture of the benchmark's shape."""
        height = 40 if budget == "smoke" else 150
        size = (height, round(height * self.size[1] / self.size[0]))
        # One name for both variants, so that they show the same pictures.
        return self._samples(self.twin_plan.shots(budget, seed, f"{self.data}_points"), size)

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Errors of one picture."""
        depth, mask, K = truth.need("depth")[0], truth.need("valid")[0], truth.need("K")[0]
        same_raw_size(query, truth)
        size = tuple(depth.shape)
        if "cam_points" in answer.tensors:
            points = answer.need("cam_points", (1, *size, 3))[0]
            predicted = one_map(answer) if "depth" in answer.tensors else points[..., 2]
        else:
            points, predicted = None, one_map(answer)
        if tuple(predicted.shape) != size:
            raise InputError(
                f"'depth' of the answer has {predicted.shape[1]} x {predicted.shape[0]} pixels, the picture "
                f"{size[1]} x {size[0]}",
                remedy="resize the prediction to the picture the model was given",
            )
        if points is not None:
            errors = point_map_errors(points, predicted, depth_to_points(depth.double(), K), mask).as_dict()
        else:
            p, d = predicted[mask], depth[mask]
            if d.numel() == 0:
                raise InputError("no valid pixels", remedy="check the depth range, the unit and the mask")
            if not bool(torch.isfinite(p).all()):
                raise InputError(
                    "the prediction holds values that are not finite where the truth is known",
                    remedy="write the raw depth without a mask applied",
                )
            errors = {
                "rel_depth": rel_depth(p, d),
                "delta1_depth": delta1_depth(p, d),
                "pixels": float(d.numel()),
            }
        return Measurement(query.name, str(truth.facts["group"]), errors, weight=errors["pixels"])

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Means of pictures in percent."""
        keys = {
            "abs_rel": "rel_depth",
            "delta1": "delta1_depth",
            "rel_point": "rel_point",
            "delta1_point": "delta1_point",
        }
        return {ours: 100 * mean(measurements, theirs) for ours, theirs in keys.items()}

    def published(self) -> Sequence[PublishedRow]:
        """Rows of this data set."""
        table = TABLE_6 if self.known_fov else TABLE_5
        return table.select({key: f"{self.data}.{key}" for key in ("abs_rel", "delta1")})

    def _samples(self, shots: Sequence[Shot], size: tuple[int, int]) -> list[Sample]:
        return [Sample(s.name, s.group, *self._loaders(s, size)) for s in shots]

    def _loaders(self, shot: Shot, size: tuple[int, int]) -> tuple[Callable[[], Query], Callable[[], Truth]]:
        def query() -> Query:
            image = shot.load_image()
            warp = make_warp(shot.need_K(), (image.shape[1], image.shape[2]), size)
            K = warp.K[None] if self.known_fov else None
            scene = query_scene(warp_image(image, warp)[None], K=K, ordered=False)
            facts = {"raw_size": [image.shape[1], image.shape[2]]}
            return Query(shot.name, "mono_points", ("cam_points", "depth"), scene, facts=facts)

        def truth() -> Truth:
            depth, valid = shot.load_truth()
            K = shot.need_K()
            warp = make_warp(K, (depth.shape[0], depth.shape[1]), size)
            moved, known = warp_depth(depth, valid, K, warp)
            mask = drop_far_depth(moved, known)
            tensors = {
                "depth": moved[None],
                "cam_points": depth_to_points(moved.double(), warp.K).float()[None],
                "valid": mask[None],
                "K": warp.K[None],
            }
            return Truth(tensors, facts={"group": shot.group, "raw_size": list(depth.shape)})

        return query, truth


def same_raw_size(query: Query, truth: Truth) -> None:
    """Refuse a picture and a depth map that had different sizes before the warp.

    Raises:
        InputError: names both sizes.
    """
    picture, depth = query.facts.get("raw_size"), truth.facts.get("raw_size")
    if picture and depth and list(picture) != list(depth):
        raise InputError(
            f"the depth map of '{query.name}' has {depth[1]} x {depth[0]} pixels, its picture "
            f"{picture[1]} x {picture[0]}",
            remedy="use the pictures and depth maps of the same release",
        )


def variants(
    *,
    data: str,
    title: str,
    layout: str,
    frames: Frames,
    size: tuple[int, int],
    twin_plan: TwinPlan,
    notes: Sequence[str] = (),
) -> tuple[Protocol, ...]:
    """``<data>_points`` without and ``<data>_points_k`` with intrinsics; see :class:`PointMapProtocol`."""
    return tuple(
        PointMapProtocol(
            name=f"{data}_points{'_k' if known else ''}",
            title=title,
            layout=layout,
            data=data,
            frames=frames,
            size=size,
            twin_plan=twin_plan,
            known_fov=known,
            notes=notes,
        )
        for known in (False, True)
    )


def _ray(xy: Tensor, K: Tensor) -> Tensor:
    """(*, 3) rays with z = 1 of pixels (*, 2)."""
    flat = normalize_pixels(xy.reshape(-1, 2), K)
    return torch.cat([flat, torch.ones_like(flat[:, :1])], -1).reshape(*xy.shape[:-1], 3)


def _turn_to_axis(direction: Tensor) -> Tensor:
    """(3, 3) smallest rotation that brings a direction (3,) onto the z axis."""
    unit = direction / direction.norm()
    axis = torch.linalg.cross(unit, torch.tensor([0.0, 0.0, 1.0], dtype=unit.dtype))
    sine = axis.norm()
    if float(sine) < 1e-12:
        return torch.eye(3, dtype=unit.dtype)
    return matrix_from_axis_angle(axis / sine * torch.atan2(sine, unit[2]))


def _reach(direction: Tensor, a: Tensor, b: Tensor) -> float:
    """How far from the origin, in units of ``direction`` either way, its line meets the segment a-b; inf if never."""
    edge = b - a
    cross = direction[0] * edge[1] - direction[1] * edge[0]
    if abs(float(cross)) < 1e-15:
        return float("inf")
    along = float((a[0] * edge[1] - a[1] * edge[0]) / cross)
    where = float((a[0] * direction[1] - a[1] * direction[0]) / cross)
    return abs(along) if -1e-9 <= where <= 1 + 1e-9 else float("inf")
