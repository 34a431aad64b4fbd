"""Depth and field of view that MoGe or MoGe-2 has written to files, as labels.

Two layouts are read; the folder of a view is named after its picture without the suffix:

* what MoGe's inference script writes: ``depth.exr`` (0, infinite or not a number where unknown), ``fov.json`` with
  ``fov_x`` in degrees, and ``mask.png`` where there is one;
* what MoGe's data sets hold: ``depth.png`` (logarithmic, 16 bit) and ``meta.json`` with "intrinsics" in units of the
  picture's width and height.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.readers_moge import read_log_depth
from relief3d.geometry.projection import intrinsics_from_fov
from relief3d.io.depth import read_depth, read_mask
from relief3d.io.json_file import Record, read_json_object
from relief3d.labelling.base import DepthLabel, Grouping, Labels, Uses
from relief3d.labelling.items import canonical_hash
from relief3d.labelling.sources import file_digest


@dataclass(frozen=True)
class MogeOptions:
    """Options of ``moge``.

    Attributes:
        folder: holds one folder per picture.
        kind: ``metric`` for MoGe-2, ``scale`` for MoGe.
    """

    folder: Path = Path("moge")
    kind: Literal["metric", "scale"] = "metric"


class MogeFolder:
    """Finished predictions in MoGe's layouts; the confidence is the mask, 1 where it holds."""

    name = "moge"
    version = 1
    grouping = Grouping("view")
    uses: frozenset[Uses] = frozenset({"image"})

    def __init__(self, options: MogeOptions, device: str = "cpu") -> None:
        # Where the folder lies is no property of the labels; what is in it stands in the digest.
        self.options = MogeOptions(Path(Path(options.folder).name), options.kind)
        self._root = Path(options.folder)

    def weights_digest(self) -> str:
        """Of all files that could be read: they take the place of the weights.

        Raises:
            InputError: no such folder.
        """
        if not self._root.is_dir():
            raise InputError("no such folder", path=self._root, remedy="set folder=FOLDER")
        names = ("depth.exr", "depth.png", "fov.json", "meta.json", "mask.png")
        files = sorted(p for name in names for p in self._root.rglob(name))
        return canonical_hash([[p.relative_to(self._root).as_posix(), file_digest(p)] for p in files])

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Depth and intrinsics of every view.

        Raises:
            InputError: the folder of a view is missing, incomplete, or of another size.
        """
        depth: dict[str, DepthLabel] = {}
        cameras: dict[str, Camera] = {}
        for view in scene.views:
            folder = self._root / PurePosixPath(view.name).with_suffix("")
            if not folder.is_dir():
                raise InputError(f"there is no folder for '{view.name}'", path=folder)
            values, mask = self._values(folder)
            size = (view.camera.height, view.camera.width)
            if tuple(values.shape) != size:
                raise InputError(
                    f"the depth has {values.shape[1]}x{values.shape[0]} pixels, its picture {size[1]}x{size[0]}",
                    path=folder,
                )
            valid = torch.isfinite(values) & (values > 0)
            valid = valid if mask is None else valid & mask
            found = Depth(
                torch.where(valid, values, torch.zeros(())),
                valid,
                self.options.kind == "metric",
                valid.float(),
            )
            depth[view.name] = DepthLabel(found, self.options.kind)
            K = _intrinsics(folder, view)
            if K is not None:
                cameras[view.name] = Camera(size[1], size[0], K, K_source="estimated")
        return Labels(depth=depth, cameras=cameras)

    def _values(self, folder: Path) -> tuple[Tensor, Tensor | None]:
        mask = read_mask(folder / "mask.png") if (folder / "mask.png").is_file() else None
        if (folder / "depth.exr").is_file():
            return read_depth(folder / "depth.exr", scale=1.0, metric=False).values, mask
        return read_log_depth(folder / "depth.png"), mask


def _intrinsics(folder: Path, view: View) -> Tensor | None:
    width, height = view.camera.width, view.camera.height
    if (folder / "fov.json").is_file():
        record = Record(read_json_object(folder / "fov.json"), folder / "fov.json")
        fov = record.number("fov_x")
        if fov is None or not 0 < fov < 180:
            raise record.error("'fov_x' must be an angle in degrees")
        return intrinsics_from_fov(width, height, math.radians(fov))
    if (folder / "meta.json").is_file():
        record = Record(read_json_object(folder / "meta.json"), folder / "meta.json")
        K = record.matrix("intrinsics", [(3, 3)])
        if K is None:
            raise record.error("'intrinsics' is missing")
        return K * torch.tensor([width, height, 1.0], dtype=torch.float64)[:, None]
    return None
