"""Field of view from one picture, on ETH3D and iBims-1 (MetricAnything, table 7).

Every picture is shown whole and as a centred crop of a random field of view, because whole pictures of one data set
share one camera. The focal length is the predicted K's, or is recovered from a predicted point map by Weiszfeld's
iteration and by MoGe's solver; all are reported. Spec: metric_depth.md 9.4, 9.5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.seeding import derive_seed, numpy_generator
from relief3d.eval.aggregation import mean, median
from relief3d.eval.metrics.intrinsics import fov_error
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.metric.frames import FrameFile
from relief3d.eval.protocols.metric.readers_eth3d import LAYOUT as ETH3D_LAYOUT
from relief3d.eval.protocols.metric.readers_eth3d import has_undistorted, read_eth3d
from relief3d.eval.protocols.metric.readers_ibims import LAYOUT as IBIMS_LAYOUT
from relief3d.eval.protocols.metric.readers_ibims import read_ibims
from relief3d.eval.published.metric_tables_7_8 import TABLE_7
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.rendered import ClipPlan, query_scene, render_clip
from relief3d.geometry.focal import centred_intrinsics, focal_to_pixels, focal_weiszfeld, recover_focal_shift
from relief3d.geometry.projection import crop_intrinsics, depth_to_points, intrinsics_from_fov
from relief3d.worlds.config import Family

CROP_SEED = 0
CROP_RANGE = (0.5, 1.0)
"""Field of view of the crop relative to the whole picture's, uniform."""

_SOURCES = {"": "", "weiszfeld_": "Weiszfeld from points, ", "solver_": "MoGe solver from points, "}
COLUMNS = (
    *(
        Column(f"{source}{view}{number}", f"{text}{view.replace('_', ' ')}{number}", "deg")
        for source, text in _SOURCES.items()
        for view in ("", "crop_")
        for number in ("mean", "median")
    ),
    Column("vertical_mean", "vertical, mean", "deg"),
    Column("vertical_median", "vertical, median", "deg"),
)


@dataclass(frozen=True)
class Shot:
    """A picture with its camera; the point map is known for rendered pictures only.

    Attributes:
        name: unique.
        group: scene.
        load: (3, H, W) uint8, K (3, 3), and points (H, W, 3) in the camera frame or None.
    """

    name: str
    group: str
    load: Callable[[], tuple[Tensor, Tensor, Tensor | None]]


def crop_window(width: int, height: int, K: Tensor, ratio: float) -> tuple[int, int, int, int]:
    """x0, y0, width, height of the centred crop whose horizontal field of view is ``ratio`` times the picture's.

    The aspect is kept; the border is a whole number of pixels, equal on both sides.
    """
    half = math.atan(0.5 * width / float(K[0, 0]))
    share = math.tan(ratio * half) / math.tan(half)
    x0, y0 = (round(0.5 * side * (1 - share)) for side in (width, height))
    return x0, y0, width - 2 * x0, height - 2 * y0


def crop_ratio(name: str) -> float:
    """Relative field of view of a picture's crop: fixed by its name, so that subsets keep their crops."""
    return float(numpy_generator(derive_seed(CROP_SEED, "crop", name)).uniform(*CROP_RANGE))


class IntrinsicsProtocol(Protocol):
    """Field-of-view error on one data set.

    Args:
        name: of the protocol.
        title: one line.
        reader: of the public layout.
        layout: that layout.
        published: group of columns of table 7.
        family: of the twin's worlds.
        notes: particular to the data set.
    """

    task = "intrinsics"
    columns = COLUMNS
    source = "MetricAnything, Table 7; spec metric_depth 9.4 and 9.5"

    def __init__(
        self,
        name: str,
        title: str,
        reader: Callable[[Path], list[FrameFile]],
        layout: str,
        published: str,
        family: Family,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.title, self.layout = name, title, layout
        self._reader, self._published, self._family = reader, published, family
        self.notes = (
            "Horizontal field of view 2 atan(w / 2f) of a centred camera; mean and median over pictures.",
            "The first columns use the predicted K, or Weiszfeld's focal length where only points are predicted.",
            "Where a solver finds no positive focal length, a field of view of 180 degrees counts.",
            "Crops: relative field of view uniform in [0.5, 1], centred, seed 0, one per picture (our choice; the "
            "paper does not say whether it cropped). The published rows stand beside the whole pictures.",
            *notes,
        )

    def open(self, data: Path) -> list[Sample]:
        """Two samples per picture of the real data set: ``/full`` and ``/crop``."""
        frames = self._reader(data)
        # Both samples and both halves of a sample ask for the same picture one after the other.
        image = functools.lru_cache(maxsize=1)(lambda index: frames[index].load_image())

        def shot(index: int) -> Shot:
            frame = frames[index]
            return Shot(frame.name, frame.group, lambda: (image(index), frame.need_K(), None))

        return self._samples([shot(i) for i in range(len(frames))])

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Worlds seen by cameras of 40 to 90 degrees: 2 of 64 x 48 pixels, or 20 of 320 x 240."""
        count, size = (2, (48, 64)) if budget == "smoke" else (20, (240, 320))
        family, protocol = self._family, self.name

        @functools.lru_cache(maxsize=2)
        def render(index: int) -> tuple[Tensor, Tensor, Tensor | None]:
            return _render(derive_seed(seed, protocol, index), size, family)

        names = [f"world{i:02d}" for i in range(count)]
        return self._samples(
            [Shot(f"{name}/picture", name, functools.partial(render, i)) for i, name in enumerate(names)]
        )

    def _samples(self, shots: Sequence[Shot]) -> list[Sample]:
        return [
            Sample(
                f"{shot.name}/{view}",
                shot.group,
                functools.partial(self._query, shot, view),
                functools.partial(_truth, shot, view),
            )
            for shot in shots
            for view in ("full", "crop")
        ]

    def _query(self, shot: Shot, view: str) -> Query:
        image, _, _ = _view(shot, view)
        return Query(f"{shot.name}/{view}", self.task, ("K", "cam_points"), query_scene(image[None]))

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Errors of all focal lengths that the answer gives.

        The answer holds ``K`` (1, 3, 3), ``cam_points`` (1, H, W, 3), or both; with points also ``valid`` (1, H, W)
        where they count.
        """
        assert query.scene is not None
        camera = query.scene.views[0].camera
        width, height = camera.width, camera.height
        true = truth.need("K", (1, 3, 3))[0]
        view = "crop_" if query.name.endswith("/crop") else ""
        found: dict[str, Tensor] = {}
        if "cam_points" in answer.tensors:
            points = answer.need("cam_points", (1, height, width, 3))[0]
            mask = torch.isfinite(points).all(-1) & (points[..., 2] > 0)
            if "valid" in answer.tensors:
                mask &= answer.need("valid", (1, height, width))[0].bool()
            found["weiszfeld_"] = focal_weiszfeld(points.double(), mask).focal
            solved = recover_focal_shift(points.double(), mask).focal
            found["solver_"] = focal_to_pixels(solved, height, width)
        values = {
            f"{source}{view}": float(fov_error(_usable(focal, width, height), true, width, height).horizontal)
            for source, focal in found.items()
        }
        if "K" in answer.tensors or not found:
            main = answer.need("K", (1, 3, 3))[0]
        else:
            main = _usable(found["weiszfeld_"], width, height)
        error = fov_error(main, true, width, height)
        values[view] = float(error.horizontal)
        if not view:
            values["vertical_"] = float(error.vertical)
        named = {f"{key}error": value for key, value in values.items()}
        return Measurement(query.name, str(truth.facts["group"]), named)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Mean and median over pictures, of every source and view."""
        out = {}
        for column in self.columns:
            average = median if column.key.endswith("median") else mean
            prefix = column.key.removesuffix("median").removesuffix("mean")
            out[column.key] = average(measurements, f"{prefix}error")
        return out

    def published(self) -> Sequence[PublishedRow]:
        """Rows of table 7."""
        return TABLE_7.select({"mean": f"{self._published}.mean", "median": f"{self._published}.median"})


def _usable(focal: Tensor, width: int, height: int) -> Tensor:
    """K (3, 3) of a recovered focal length (); the widest view there is where none was found."""
    usable = torch.isfinite(focal) & (focal > 0)
    return centred_intrinsics(torch.where(usable, focal, torch.full_like(focal, 1e-6)), height, width)


def _view(shot: Shot, view: str) -> tuple[Tensor, Tensor, Tensor | None]:
    image, K, points = shot.load()
    if view == "full":
        return image, K, points
    x0, y0, width, height = crop_window(image.shape[-1], image.shape[-2], K, crop_ratio(shot.name))
    window = (slice(y0, y0 + height), slice(x0, x0 + width))
    cropped = None if points is None else points[window].contiguous()
    return image[:, window[0], window[1]].contiguous(), crop_intrinsics(K, x0, y0), cropped


def _truth(shot: Shot, view: str) -> Truth:
    _, K, points = _view(shot, view)
    tensors = {"K": K.double()[None]}
    if points is not None:
        tensors |= {"cam_points": points[None], "valid": (points[..., 2] > 0)[None]}
    return Truth(tensors, facts={"group": shot.group})


def _render(seed: int, size: tuple[int, int], family: Family) -> tuple[Tensor, Tensor, Tensor | None]:
    """Picture, K, points of a world seen by a centred camera of a random field of view, as the solvers suppose."""
    clip = render_clip(ClipPlan(seed, 1, (8, 8), family))
    height, width = size
    fov = float(numpy_generator(derive_seed(seed, "fov")).uniform(math.radians(40), math.radians(90)))
    K = intrinsics_from_fov(width, height, fov)
    views = clip.world.render((K.float()[None, None], clip.world_from_cam.float()[None, :1]), size)
    image = (views.image[0, 0].clamp(0, 1) * 255).round().to(torch.uint8)
    depth = torch.where(views.valid[0, 0], views.depth[0, 0], torch.zeros_like(views.depth[0, 0]))
    return image, K, depth_to_points(depth.double(), K)


def read_eth3d_pictures(root: Path) -> list[FrameFile]:
    """The undistorted pictures of ETH3D where all scenes have them, because only these are pinhole pictures."""
    return read_eth3d(root, undistorted=has_undistorted(root))


PROTOCOLS: tuple[Protocol, ...] = (
    IntrinsicsProtocol(
        "eth3d_intrinsics",
        "Field of view on ETH3D",
        read_eth3d_pictures,
        ETH3D_LAYOUT,
        "eth3d",
        "outdoor",
        (
            "The undistorted pictures and their calibration are used where all scenes have them; depth is not needed.",
        ),
    ),
    IntrinsicsProtocol(
        "ibims_intrinsics",
        "Field of view on iBims-1",
        read_ibims,
        IBIMS_LAYOUT,
        "ibims",
        "room",
    ),
)
