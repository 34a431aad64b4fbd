"""Metric depth of several views in the manner of the Robust MVD benchmark (MetricAnything, table 9).

The depth of one key view is measured, given that view and at most seven source views; nothing is aligned. Prediction:
the z of the key view's points, brought to the truth's size by nearest neighbour and clipped to [0.1, 100] m as the
benchmark does. Spec: metric_depth.md 9.8. Poses are never given. Metric depth of single pictures with intrinsics may be
given as input: files of the user's own model below ``metric_prior`` become the query's prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.depth_errors import depth_errors
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.metric.mono_depth_rules import Shot
from relief3d.eval.published.metric_depth import TABLE_9
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import Clip, ClipPlan, clip_cache, query_scene
from relief3d.io.depth import read_npz
from relief3d.io.whole_file import read_utf8
from relief3d.worlds.config import Family

CLIP = (0.1, 100.0)
SOURCES = 7
LIST = "samples.txt"
PRIORS = "metric_prior"
LAYOUT = f"""\
optional: {LIST}, one sample per line: <scene> <key view> <source view> ... (names of pictures without ending)
optional: {PRIORS}/<sample>.npz with depth (N, h, w) in metres and K (N, 3, 3), key view first, given to the model"""

COLUMNS = (
    Column("abs_rel", "AbsRel", "%"),
    Column("delta1", "delta1", "%", "higher"),
    Column("inlier_103", "within 3 %", "%", "higher"),
)
Chooser = Callable[[int], list[tuple[int, ...]]]
"""Samples of a scene from its number of pictures: tuples of indices, the key view first."""


@dataclass(frozen=True)
class ViewSet:
    """The pictures of one scene, in order; nothing is loaded before it is used.

    Attributes:
        name: of the scene, usable as a relative path.
        names: of the pictures, unique in the scene.
        shot: picture, truth and intrinsics by index.
    """

    name: str
    names: Sequence[str]
    shot: Callable[[int], Shot]


def by_distance(count: int, key: int, sources: int = SOURCES) -> tuple[int, ...]:
    """The key view and the views nearest to it in order of the recording (of two equally near the earlier first)."""
    others = sorted((i for i in range(count) if i != key), key=lambda i: (abs(i - key), i))
    return (key, *others[:sources])


def spread_keys(keys: int = 8, sources: int = SOURCES) -> Chooser:
    """Key views spread evenly over a scene with the nearest views as sources (photo collections)."""

    def choose(count: int) -> list[tuple[int, ...]]:
        _need_two(count)
        chosen = np.unique(np.linspace(0, count - 1, min(keys, count)).round().astype(int))
        return [by_distance(count, int(key), sources) for key in chosen]

    return choose


def windows(number: int = 2, views: int = SOURCES + 1, stride: int = 10, key: int = 3) -> Chooser:
    """Windows of ``views`` frames, ``stride`` frames apart, spread over a video; frame ``key`` of each is the key view.

    Short videos use a smaller stride.
    """

    def choose(count: int) -> list[tuple[int, ...]]:
        _need_two(count)
        size = min(views, count)
        step = max(1, min(stride, (count - 1) // (size - 1)))
        free = count - 1 - step * (size - 1)
        starts = sorted({round(free * (j + 1) / (number + 1)) for j in range(number)})
        order = by_distance(size, min(key, size - 1), size - 1)
        return [tuple(start + step * i for i in order) for start in starts]

    return choose


def read_list(path: Path, scenes: Sequence[ViewSet]) -> list[tuple[ViewSet, tuple[int, ...]]]:
    """Samples named in a file: scene, key view, source views.

    Raises:
        InputError: a scene or picture that does not exist, fewer than two or more than eight views.
    """
    known = {s.name: s for s in scenes}
    out = []
    for number, line in enumerate(read_utf8(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        scene = known.get(words[0])
        if scene is None:
            raise InputError(f"line {number}: there is no scene '{words[0]}'", path=path)
        where = {name: i for i, name in enumerate(scene.names)}
        missing = [w for w in words[1:] if w not in where]
        if missing:
            raise InputError(
                f"line {number}: the scene '{scene.name}' has no picture '{missing[0]}'", path=path
            )
        if not 2 <= len(words) - 1 <= SOURCES + 1 or len(set(words[1:])) != len(words) - 1:
            raise InputError(f"line {number}: name a key view and one to {SOURCES} other views", path=path)
        out.append((scene, tuple(where[w] for w in words[1:])))
    if not out:
        raise InputError("names no samples", path=path)
    return out


def shrink(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 at another (H, W) by Lanczos, as the benchmark resizes pictures."""
    if tuple(image.shape[-2:]) == size:
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    resized = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.LANCZOS))
    return torch.from_numpy(resized.copy()).permute(2, 0, 1).contiguous()


class MultiViewDepthProtocol(Protocol):
    """Metric depth of a key view from up to eight pictures.

    Args:
        name, title, layout, notes: see :class:`Protocol`.
        data: key of the data set in the published table.
        scenes: reader of the public layout.
        choose: samples of a scene.
        size: (H, W) at which real pictures are shown to the model; None for the size of the key view.
        family: worlds of the twin.
        scale: every length of the twin's worlds is multiplied by it.
        frames: pictures per world of the twin.
    """

    task = "views"
    columns = COLUMNS

    def __init__(
        self,
        *,
        name: str,
        title: str,
        layout: str,
        data: str,
        scenes: Callable[[Path], list[ViewSet]],
        choose: Chooser,
        size: tuple[int, int] | None,
        family: Family,
        scale: float = 1.0,
        frames: int = 8,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.title, self.data, self.scenes = name, title, data, scenes
        self.layout = f"{layout}\n{LAYOUT}"
        self.source = (
            "MetricAnything, Table 9; Robust MVD benchmark (Schröppel et al. 2022); specification 9.8"
        )
        self.choose, self.size, self.family, self.scale, self.frames = choose, size, family, scale, frames
        self.notes = (
            "the first view is the key view; at most 7 source views; no poses; no alignment; mean of samples",
            "prediction (depth, or z of cam_points) brought to the truth's size by nearest neighbour and clipped to "
            "[0.1, 100] m, as the public benchmark code does",
            "all source views are given at once; the benchmark's search for the best number of views is not repeated",
            f"metric depth and intrinsics of single pictures are given where {PRIORS}/<sample>.npz exists",
            *notes,
        )

    def open(self, data: Path) -> list[Sample]:
        """Samples of the real pictures, from ``samples.txt`` if it is there."""
        scenes = self.scenes(data)
        if (data / LIST).is_file():
            chosen = read_list(data / LIST, scenes)
        else:
            chosen = [(scene, views) for scene in scenes for views in self.choose(len(scene.names))]
        return [self._sample(scene, views, data / PRIORS) for scene, views in chosen]

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Clips of rendered worlds, chosen and measured by the same rules."""
        worlds, frames, size = (2, 4, (36, 48)) if budget == "smoke" else (10, self.frames, (120, 160))
        render = clip_cache()
        sets = [
            self._world(render, ClipPlan(derive_seed(seed, self.name, w), frames, size, self.family), w)
            for w in range(worlds)
        ]
        most = 1 if budget == "smoke" else 2
        return [self._sample(s, views, None) for s in sets for views in self.choose(len(s.names))[:most]]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Errors of the key view."""
        depth, valid = truth.need("depth")[0], truth.need("valid")[0]
        predicted = key_depth(answer)
        resized = F.interpolate(predicted[None, None].float(), size=tuple(depth.shape), mode="nearest-exact")[
            0, 0
        ]
        values = depth_errors(resized.clamp(*CLIP), depth, valid & (depth > 0)).as_dict()
        return Measurement(query.name, str(truth.facts["group"]), values, weight=values["pixels"])

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Means of samples in percent."""
        return {c.key: 100 * mean(measurements, c.key) for c in COLUMNS}

    def published(self) -> Sequence[PublishedRow]:
        """With and without the metric depth of single pictures."""
        return TABLE_9.select({key: f"{self.data}.{key}" for key in ("abs_rel", "delta1")})

    def _world(self, render: Callable[[ClipPlan], Clip], plan: ClipPlan, world: int) -> ViewSet:
        def shot(index: int) -> Shot:
            def truth() -> tuple[Tensor, Tensor]:
                depth = render(plan).depth[index] * self.scale
                return depth, depth > 0

            clip_image, clip_K = lambda: render(plan).images[index], lambda: render(plan).K[index]
            return Shot(f"{index:06d}", f"world{world:02d}", clip_image, truth, clip_K)

        return ViewSet(f"world{world:02d}", [f"{i:06d}" for i in range(plan.frames)], shot)

    def _sample(self, scene: ViewSet, views: tuple[int, ...], priors: Path | None) -> Sample:
        name = f"{scene.name}/{scene.names[views[0]]}"
        prior = None if priors is None else priors / f"{name}.npz"

        def query() -> Query:
            images = [scene.shot(i).load_image() for i in views]
            real = priors is not None
            size = self.size if real and self.size else (images[0].shape[1], images[0].shape[2])
            stack = torch.stack([shrink(image, size) for image in images])
            given = None if prior is None or not prior.is_file() else read_prior(prior, stack)
            K, tensors = (None, {}) if given is None else (given[1], {"prompt": given[0]})
            names = [scene.names[i] for i in views]
            pictures = query_scene(stack, K=K, names=names, metric=given is not None, ordered=False)
            return Query(name, "views", ("depth",), pictures, tensors, facts={"key_view": 0})

        def truth() -> Truth:
            depth, valid = scene.shot(views[0]).load_truth()
            return Truth({"depth": depth[None].float(), "valid": valid[None]}, facts={"group": scene.name})

        return Sample(name, scene.name, query, truth)


def key_depth(answer: Answer) -> Tensor:
    """(h, w) depth of the key view: the first map of ``depth``, or z of the first map of ``cam_points``.

    Raises:
        InputError: neither is there, or not as maps.
    """
    if "depth" not in answer.tensors and "cam_points" in answer.tensors:
        points = answer.need("cam_points")
        if points.ndim != 4 or points.shape[-1] != 3 or 0 in points.shape:
            raise InputError(
                f"'cam_points' of the answer has shape {tuple(points.shape)}, expected (N, h, w, 3)"
            )
        return points[0, ..., 2]
    depth = answer.need("depth")
    if depth.ndim == 2:
        depth = depth[None]
    if depth.ndim != 3 or 0 in depth.shape:
        raise InputError(
            f"'depth' of the answer has shape {tuple(depth.shape)}, expected (N, h, w) or (1, h, w)"
        )
    return depth[0]


def read_prior(path: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Given depth (N, H, W) at the size of the pictures (nearest, as the network resizes it) and K (N, 3, 3) of them.

    Args:
        path: NPZ with ``depth`` (N, h, w) in metres and ``K`` (N, 3, 3) in pixels of that map, centres at +0.5.
        images: (N, 3, H, W).

    Raises:
        InputError: an array is missing, has another shape, or K is not finite.
    """
    arrays = read_npz(path)
    if not {"depth", "K"} <= set(arrays):
        raise InputError(
            "lacks 'depth' or 'K'", path=path, remedy="depth without intrinsics is of no use to the model"
        )
    depth = torch.from_numpy(arrays["depth"].astype(np.float32))
    K = torch.from_numpy(arrays["K"].astype(np.float64))
    count, _, height, width = images.shape
    if depth.ndim != 3 or depth.shape[0] != count or tuple(K.shape) != (count, 3, 3) or 0 in depth.shape:
        raise InputError(
            f"holds depth {tuple(depth.shape)} and K {tuple(K.shape)} for {count} pictures",
            path=path,
            remedy="write (N, h, w) and (N, 3, 3), the key view first",
        )
    factor = torch.tensor([width / depth.shape[2], height / depth.shape[1], 1.0], dtype=torch.float64)
    resized = F.interpolate(depth[None], size=(height, width), mode="nearest-exact")[0]
    known = torch.isfinite(resized) & (resized > 0)
    return torch.where(known, resized, torch.zeros_like(resized)), K * factor[:, None]


def _need_two(count: int) -> None:
    if count < 2:
        raise InputError(
            f"a scene has {count} pictures, at least two are needed", remedy="leave the scene out"
        )
