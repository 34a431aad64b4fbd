"""COLMAP models as text: ``cameras.txt``, ``images.txt``, ``points3D.txt``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relief3d.core.errors import InputError
from relief3d.io.atomic import write_text
from relief3d.io.colmap_model import CAMERA_MODELS, ColmapCamera, ColmapImage, ColmapModel, ColmapPoints
from relief3d.io.whole_file import read_utf8


def read_colmap_text(folder: str | Path) -> ColmapModel:
    """Read the three text files of a model.

    Raises:
        InputError: naming the file and the line, when anything is missing or malformed.
    """
    folder = Path(folder)
    return ColmapModel(
        _read_cameras(folder / "cameras.txt"),
        _read_images(folder / "images.txt"),
        _read_points(folder / "points3D.txt"),
        folder,
    )


def write_colmap_text(model: ColmapModel, folder: str | Path) -> None:
    """Write the three text files into an existing folder; floats keep all digits.

    ``images.txt`` has exactly two lines per picture and an even number of lines in all: viewers that
    count lines in pairs from the top stumble over anything else.

    Raises:
        InputError: when a picture's name cannot stand in a text file.
    """
    folder = Path(folder)
    lines = [
        "# Camera list with one line of data per camera:",
        "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]",
    ]
    lines.append(f"# Number of cameras: {len(model.cameras)}")
    for key, camera in model.cameras.items():
        numbers = " ".join(map(repr, camera.params))
        lines.append(f"{key} {camera.model} {camera.width} {camera.height} {numbers}")
    write_text(folder / "cameras.txt", "\n".join(lines) + "\n")

    observations = sum(int((image.point_ids >= 0).sum()) for image in model.images.values())
    mean = observations / max(1, len(model.images))
    lines = ["# Image list with two lines of data per image:"]
    lines.append("#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME")
    lines.append("#   POINTS2D[] as (X, Y, POINT3D_ID)")
    lines.append(f"# Number of images: {len(model.images)}, mean observations per image: {mean!r}")
    for key, image in model.images.items():
        if image.name != image.name.strip() or any(c in image.name for c in "\n\r\t\0 "):
            raise InputError(
                f"the picture name {image.name!r} holds white space, which a COLMAP text model cannot keep",
                path=folder,
                remedy="rename the picture or write the binary format",
            )
        pose = " ".join(repr(float(v)) for v in (*image.quaternion, *image.translation))
        lines.append(f"{key} {pose} {image.camera_id} {image.name}")
        triples = zip(image.xy.tolist(), image.point_ids.tolist())
        lines.append(" ".join(f"{x!r} {y!r} {point}" for (x, y), point in triples))
    write_text(folder / "images.txt", "\n".join(lines) + "\n")

    points = model.points
    lines = ["# 3D point list with one line of data per point:"]
    lines.append("#   POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)")
    mean = len(points.track) / max(1, len(points.ids))
    lines.append(f"# Number of points: {len(points.ids)}, mean track length: {mean!r}")
    rows = zip(points.ids.tolist(), points.xyz.tolist(), points.rgb.tolist(), points.error.tolist())
    for row, (key, xyz, rgb, error) in enumerate(rows):
        track = points.track[points.starts[row] : points.starts[row + 1]].reshape(-1).tolist()
        lines.append(" ".join(map(repr, [key, *xyz, *rgb, error, *track])))
    write_text(folder / "points3D.txt", "\n".join(lines) + "\n")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without comments; empty ones are kept, they mean "no observations" in images.txt."""
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        text = line.rstrip("\r")
        if not text.lstrip().startswith("#"):
            yield number, text


def _bad(path: Path, number: int, what: str) -> InputError:
    return InputError(f"line {number}: {what}", path=path)


def _floats(path: Path, number: int, words: list[str]) -> NDArray[np.float64]:
    try:
        values = np.array([float(word) for word in words], dtype=np.float64)
    except ValueError as exc:
        raise _bad(path, number, "holds text where a number belongs") from exc
    if not np.isfinite(values).all():
        raise _bad(path, number, "holds a number that is not finite")
    return values


def _ints(path: Path, number: int, words: list[str]) -> list[int]:
    try:
        values = [int(word) for word in words]
    except ValueError as exc:
        raise _bad(path, number, "holds text where a whole number belongs") from exc
    if any(not -1 <= v < 2**63 for v in values):
        raise _bad(path, number, "holds an id or size out of range")
    return values


def _read_cameras(path: Path) -> dict[int, ColmapCamera]:
    cameras: dict[int, ColmapCamera] = {}
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        if len(words) < 5 or words[1] not in CAMERA_MODELS:
            raise _bad(path, number, f"is not 'CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]': '{line[:60]}'")
        key, width, height = _ints(path, number, [words[0], words[2], words[3]])
        params = _floats(path, number, words[4:])
        wanted = CAMERA_MODELS[words[1]][1]
        if len(params) != wanted:
            raise _bad(path, number, f"{words[1]} takes {wanted} parameters, not {len(params)}")
        if key in cameras:
            raise _bad(path, number, f"camera {key} is defined twice")
        cameras[key] = ColmapCamera(words[1], width, height, tuple(params.tolist()))
    return cameras


def _read_images(path: Path) -> dict[int, ColmapImage]:
    images: dict[int, ColmapImage] = {}
    lines = _lines(path)
    for number, line in lines:
        words = line.split(maxsplit=9)
        if not words:
            continue
        if len(words) != 10:
            raise _bad(path, number, f"is not 'IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME': '{line[:60]}'")
        key, camera_id = _ints(path, number, [words[0], words[8]])
        pose = _floats(path, number, words[1:8])
        below, observations = next(lines, (number + 1, None))
        if observations is None:
            raise _bad(path, number, "has no line of observations below it; the file may be cut short")
        fields = observations.split()
        if len(fields) % 3:
            raise _bad(path, below, "observations must be triples of X Y POINT3D_ID")
        xy = np.stack([_floats(path, below, fields[0::3]), _floats(path, below, fields[1::3])], axis=1)
        point_ids = np.array(_ints(path, below, fields[2::3]), dtype=np.int64)
        if key in images:
            raise _bad(path, number, f"image {key} is defined twice")
        images[key] = ColmapImage(words[9].strip(), camera_id, pose[:4], pose[4:], xy, point_ids)
    return images


def _read_points(path: Path) -> ColmapPoints:
    ids: list[int] = []
    numbers: list[NDArray[np.float64]] = []
    tracks: list[list[int]] = []
    for number, line in _lines(path):
        words = line.split()
        if not words:
            continue
        if len(words) < 8 or len(words) % 2:
            raise _bad(path, number, "is not 'POINT3D_ID X Y Z R G B ERROR TRACK[]'")
        ids += _ints(path, number, words[:1])
        row = _floats(path, number, words[1:8])
        if not ((row[3:6] >= 0) & (row[3:6] <= 255)).all():
            raise _bad(path, number, "colours must be 0 to 255")
        numbers.append(row)
        tracks.append(_ints(path, number, words[8:]))
    table = np.array(numbers, dtype=np.float64).reshape(-1, 7)
    lengths = np.array([len(track) // 2 for track in tracks], dtype=np.int64)
    flat = np.array([value for track in tracks for value in track], dtype=np.int64).reshape(-1, 2)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return ColmapPoints(
        np.array(ids, dtype=np.int64), table[:, :3], table[:, 3:6].astype(np.uint8), table[:, 6], starts, flat
    )
