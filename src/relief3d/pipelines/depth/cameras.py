"""What is known about the cameras: options, the input's own cameras, EXIF."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, KSource, View
from relief3d.core.errors import InputError
from relief3d.geometry.focal import centred_intrinsics
from relief3d.geometry.projection import intrinsics, resize_intrinsics
from relief3d.io.json_file import Record, read_json_object
from relief3d.models.metric.interface import FocalSource, MetricPrediction

SOURCES: dict[FocalSource, KSource] = {
    "given": "given",
    "exif": "exif",
    "predicted": "estimated",
    "guessed": "guess",
}
_ASPECT = 0.01
_FIELDS = (0.1, 170.0)
"""Degrees between which a horizontal field of view can be meant."""
_OFF_CENTRE = 0.15
"""Share of a side by which a principal point lies away from the middle before that is mentioned."""


class GivenIntrinsics:
    """``--intrinsics`` as numbers, for all pictures.

    Args:
        K: (3, 3) pixels, centres at +0.5.
        size: (width, height) that K is for, or None for that of every picture.
    """

    def __init__(self, K: Tensor, size: tuple[int, int] | None = None) -> None:
        self.K, self.size = K, size

    def of_views(self, views: Sequence[View]) -> list[View]:
        """All pictures with this K.

        Raises:
            InputError: as :meth:`of`; or the K is for no stated size and the pictures have several.
        """
        sizes = sorted({(view.camera.width, view.camera.height) for view in views})
        if self.size is None and len(sizes) > 1:
            raise InputError(
                f"one --intrinsics in pixels cannot hold for pictures of {len(sizes)} sizes, for example "
                f"{sizes[0][0]}x{sizes[0][1]} and {sizes[-1][0]}x{sizes[-1][1]}",
                remedy="give a JSON file with width and height of the picture that they are for, or cameras",
            )
        return [view.replace(camera=self.of(view.camera, view.name)) for view in views]

    def of(self, camera: Camera, name: str) -> Camera:
        """The camera with this K.

        Raises:
            InputError: the shape of the picture is another, the principal point lies outside the picture, or the field
                of view is one that no camera has.
        """
        K, size = self.K, (camera.width, camera.height)
        if self.size is not None and self.size != size:
            if abs(math.log(self.size[0] * size[1] / (self.size[1] * size[0]))) > _ASPECT:
                raise InputError(
                    f"the intrinsics are for pictures of {self.size[0]}x{self.size[1]}, {name} has "
                    f"{size[0]}x{size[1]}, another shape",
                    remedy="give intrinsics of these pictures",
                )
            K = resize_intrinsics(K, self.size, size)
        if not (0 <= float(K[0, 2]) <= size[0] and 0 <= float(K[1, 2]) <= size[1]):
            raise InputError(
                f"the principal point ({float(K[0, 2]):g}, {float(K[1, 2]):g}) lies outside {name}, which has "
                f"{size[0]}x{size[1]} pixels",
                remedy="give fx,fy,cx,cy in pixels of these pictures",
            )
        field = math.degrees(2 * math.atan(size[0] / (2 * float(K[0, 0]))))
        if not _FIELDS[0] <= field <= _FIELDS[1]:
            raise InputError(
                f"a focal length of {float(K[0, 0]):g} pixels gives {name}, {size[0]} pixels wide, a field of view of "
                f"{field:.3g} degrees",
                remedy="give fx,fy,cx,cy in pixels of these pictures, not in millimetres or shares of the picture",
            )
        return camera.replace(K=K, K_source="given")


def parse_intrinsics(text: str) -> GivenIntrinsics | Path:
    """Numbers, a JSON file with them, or the path of cameras for :func:`relief3d.io.folders.open_input`.

    Raises:
        InputError: neither; not positive and finite; or a JSON file with something else.
    """
    path = Path(text)
    if path.exists():
        if path.suffix.lower() != ".json":
            return path
        values = read_json_object(path)
        return path if "frames" in values else _from_json(Record(values, path))
    parts = text.split(",")
    try:
        fx, fy, cx, cy = (float(p) for p in parts)
    except ValueError as exc:
        raise InputError(
            f"--intrinsics '{text}' is no file and not four numbers", remedy="give fx,fy,cx,cy in pixels"
        ) from exc
    return GivenIntrinsics(checked_intrinsics(fx, fy, cx, cy))


def _from_json(record: Record) -> GivenIntrinsics:
    matrix, cam_in = record.matrix("K", [(3, 3)]), record.numbers("cam_in")
    if matrix is None and cam_in is not None and len(cam_in) == 4:
        numbers = list(cam_in)  # as MetricAnything's own programs write it beside a picture
    elif matrix is not None:
        numbers = list(of_matrix(torch.as_tensor(matrix, dtype=torch.float64), record.path))
    else:
        found = [record.number(key) for key in ("fx", "fy", "cx", "cy")]
        numbers = [v for v in found if v is not None]
        if len(numbers) != 4:
            raise record.error(
                "holds neither 'K' nor 'fx', 'fy', 'cx', 'cy' nor four numbers 'cam_in'", "give one of them"
            )
    width, height = record.integer("width"), record.integer("height")
    if (width is None) != (height is None) or (width is not None and width < 1):
        raise record.error("'width' and 'height' must be given together, in pixels")
    if height is not None and height < 1:
        raise record.error("'width' and 'height' must be given together, in pixels")
    size = None if width is None or height is None else (width, height)
    fx, fy, cx, cy = numbers
    return GivenIntrinsics(checked_intrinsics(fx, fy, cx, cy, record.path), size)


def of_matrix(K: Tensor, path: Path | None = None) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy of a (3, 3) K.

    Raises:
        InputError: anything else stands where a K has zeros and a one: it is transposed, skewed or not normalised.
    """
    rest = torch.stack([K[0, 1], K[1, 0], K[2, 0], K[2, 1], K[2, 2] - 1])
    if not bool((rest.abs() <= 1e-6).all()):
        raise InputError(
            f"K must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got {K.tolist()}",
            path=path,
            remedy="check that it is not transposed; the networks know no skew",
        )
    return float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])


def checked_intrinsics(fx: float, fy: float, cx: float, cy: float, path: Path | None = None) -> Tensor:
    """(3, 3) K.

    Raises:
        InputError: not finite, or a focal length that is not positive.
    """
    if not all(math.isfinite(v) for v in (fx, fy, cx, cy)) or fx <= 0 or fy <= 0:
        raise InputError(
            f"intrinsics must be finite and the focal lengths positive, got {fx:g},{fy:g},{cx:g},{cy:g}",
            path=path,
            remedy="give fx,fy,cx,cy in pixels",
        )
    return intrinsics(fx, fy, cx, cy)


def camera_notes(camera: Camera, *, square: bool) -> list[str]:
    """What of a known camera the networks do not know about, or what looks like the K of another picture.

    Args:
        camera: with K, or there is nothing to say.
        square: the network supposes square pixels.
    """
    notes: list[str] = []
    if camera.distortion is not None and not camera.distortion.is_identity:
        notes.append("the network does not know about the distortion of the lens")
    if camera.K is None:
        return notes
    fx, fy, cx, cy = (float(camera.K[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    if max(abs(cx / camera.width - 0.5), abs(cy / camera.height - 0.5)) > _OFF_CENTRE:
        notes.append(
            f"the principal point ({cx:g}, {cy:g}) is far from the middle, where networks suppose it: check that the "
            f"intrinsics are for pictures of {camera.width}x{camera.height} pixels"
        )
    if square and abs(math.log(fx / fy)) > _ASPECT:
        notes.append(f"the network supposes square pixels, but fx is {fx:g} and fy {fy:g}")
    return notes


def used_camera(camera: Camera, prediction: MetricPrediction) -> Camera:
    """The camera of a picture with the K that its depth was computed with, and where that comes from."""
    if camera.K is not None:
        return camera
    focal = prediction.focal[0].double().cpu()
    K = centred_intrinsics(focal, camera.height, camera.width)
    return camera.replace(K=torch.as_tensor(K), K_source=SOURCES[prediction.focal_sources[0]])
