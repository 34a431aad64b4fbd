"""Files of one picture: depth, preview, cloud, normals, and a record of what was done, which makes runs resumable."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, PointCloud, View
from relief3d.core.errors import InputError
from relief3d.geometry.distortion import unproject_rays
from relief3d.geometry.normals import depth_to_normals
from relief3d.geometry.projection import pixel_grid
from relief3d.io.depth import read_depth, write_depth
from relief3d.io.images import write_image
from relief3d.io.json_file import read_json_object, to_jsonable, write_json
from relief3d.io.ply import write_ply
from relief3d.pipelines.depth.config import DepthConfig
from relief3d.render.colormaps import depth_colors, normal_colors

logger = logging.getLogger(__name__)

_SUFFIX = {"npz": ".npz", "png": ".png", "exr": ".exr"}


@dataclass(frozen=True)
class Place:
    """Where the files of a picture go, relative to the output folder; ``stem`` may hold folders."""

    out: Path
    stem: str

    def depth(self, format: str) -> Path:
        """The depth map."""
        return self.out / "depth" / f"{self.stem}{_SUFFIX[format]}"

    @property
    def preview(self) -> Path:
        """Depth in colours."""
        return self.out / "preview" / f"{self.stem}.png"

    @property
    def points(self) -> Path:
        """The cloud."""
        return self.out / "points" / f"{self.stem}.ply"

    @property
    def normals(self) -> Path:
        """Normals in colours."""
        return self.out / "normals" / f"{self.stem}.png"

    @property
    def record(self) -> Path:
        """What was done; written last."""
        return self.out / "records" / f"{self.stem}.json"

    def files(self, config: DepthConfig) -> list[Path]:
        """All that these options ask for, without the record."""
        wanted = [self.depth(config.format), self.preview]
        return wanted + [self.points] * config.points + [self.normals] * config.normals

    def forget(self) -> None:
        """Remove the record first, then the files of an earlier run with other options."""
        every = [self.record, *(self.depth(f) for f in _SUFFIX), self.preview, self.points, self.normals]
        for path in every:
            path.unlink(missing_ok=True)


def places(out: Path, views: Sequence[View]) -> list[Place]:
    """A place for every picture: its name without suffix where that is unique, else with it."""
    names = ["/".join(p for p in PurePosixPath(v.name).parts if p not in ("..", "/")) for v in views]
    stems = [str(PurePosixPath(n).with_suffix("")) if n else "picture" for n in names]
    stems = [name if stems.count(stem) > 1 else stem for name, stem in zip(names, stems, strict=True)]
    if len({s.casefold() for s in stems}) < len(stems):
        raise InputError(
            "two pictures would be written to the same files", remedy="give them different names"
        )
    return [Place(out, stem) for stem in stems]


def left_over(out: Path, current: Sequence[Place], *, remove: bool) -> list[str]:
    """What stays, with a warning, of pictures that an earlier run did and this one does not, by their records.

    Args:
        out: output folder.
        current: places of the pictures of this run.
        remove: take it away instead.
    """
    records, known = out / "records", {place.stem for place in current}
    stems = sorted(p.relative_to(records).as_posix().removesuffix(".json") for p in records.rglob("*.json"))
    others = [stem for stem in stems if stem not in known]
    if remove:
        for stem in others:
            Place(out, stem).forget()
        return []
    if others:
        logger.warning(
            "%s also holds what an earlier run made of %d other picture(s), for example %s; --overwrite removes it",
            out,
            len(others),
            others[0],
        )
    return others


def settings_key(facts: Mapping[str, Any]) -> str:
    """Short digest of everything that decides what is written."""
    text = json.dumps(to_jsonable(facts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept_record(place: Place, key: str, config: DepthConfig) -> dict[str, Any] | None:
    """The record of a picture that was done with the same settings and still has all its files, or None."""
    if not place.record.is_file() or not all(path.is_file() for path in place.files(config)):
        return None
    try:
        record = read_json_object(place.record)
    except InputError:
        return None  # damaged: the picture is done again
    return record if record.get("key") == key else None


def stored_depth(place: Place, config: DepthConfig) -> Tensor:
    """(H, W) depth that was written, 0 where unknown; zeros for a picture without any."""
    scale = config.png_scale if config.format == "png" else 1.0
    return read_depth(place.depth(config.format), scale).values


def write_outputs(place: Place, config: DepthConfig, depth: Tensor, image: Tensor, camera: Camera) -> None:
    """Write everything but the record; every file is whole or absent.

    Args:
        place: of the picture.
        config: what is wanted.
        depth: (H, W) metres, 0 where unknown.
        image: (3, H, W) in [0, 1].
        camera: with K.

    Raises:
        InputError: depth that does not fit a 16-bit PNG; the folder cannot be written.
    """
    assert camera.K is not None
    for path in place.files(config):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_depth(place.depth(config.format), Depth.from_values(depth), scale=config.png_scale)
    write_image(place.preview, depth_colors(depth))
    if config.points:
        write_ply(place.points, cloud(depth, image, camera, config.max_points))
    if config.normals:
        normals, _ = depth_to_normals(depth, camera.K.to(depth))
        write_image(place.normals, normal_colors(normals))


def cloud(depth: Tensor, image: Tensor, camera: Camera, most: int) -> PointCloud:
    """Coloured points in the camera's frame, thinned evenly to at most ``most``; lens distortion is respected."""
    assert camera.K is not None
    chosen = torch.nonzero(depth.reshape(-1) > 0)[:, 0]
    chosen = chosen[:: max(1, -(-len(chosen) // max(1, most)))]
    grid = pixel_grid(depth.shape[0], depth.shape[1]).reshape(-1, 2)[chosen].double()
    rays, valid = unproject_rays(grid, camera.K.double(), camera.distortion)
    valid = valid & (rays[:, 2] > 1e-6)
    z = depth.reshape(-1)[chosen].double()[valid]
    rays = rays[valid]
    rgb = (image.reshape(3, -1)[:, chosen[valid]].T.clamp(0, 1) * 255).round().to(torch.uint8)
    return PointCloud((rays * (z / rays[:, 2])[:, None]).float(), rgb)


def write_record(place: Place, record: Mapping[str, Any]) -> None:
    """Say that the picture is done."""
    place.record.parent.mkdir(parents=True, exist_ok=True)
    write_json(place.record, record)
