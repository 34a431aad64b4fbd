"""ScanNet as exported by SensReader, for metric depth of several views: 640 x 480 colour and sensor depth.

The scans are found by :mod:`relief3d.eval.protocols.surfaces.readers_scannet`; here frames are read one by one, without
poses, so that opening a hundred scans touches no pose file.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.frames import load_rgb8
from relief3d.eval.protocols.metric.mono_depth_rules import Shot
from relief3d.eval.protocols.metric.multiview_depth import ViewSet, shrink
from relief3d.eval.protocols.surfaces.readers_scannet import ScanNetScan, find_scans, read_intrinsics
from relief3d.io.depth import read_depth
from relief3d.io.names import natural_key

LAYOUT = """\
[scans_test/]<scan>/color/<i>.jpg, depth/<i>.png (16-bit millimetres, 640 x 480), intrinsic/intrinsic_depth.txt
optional: scannetv2_test.txt, the scans to use"""

SIZE = (480, 640)


def open_scans(root: Path) -> list[ViewSet]:
    """Exported scans with the frames that have colour and depth.

    Raises:
        InputError: no scans, or a scan without frames.
    """
    return [_view_set(scan) for scan in find_scans(root)]


def _view_set(scan: ScanNetScan) -> ViewSet:
    colour = {p.stem: p for p in (scan.folder / "color").iterdir() if p.suffix.lower() in (".jpg", ".png")}
    depth = {p.stem: p for p in (scan.folder / "depth").glob("*.png")}
    names = sorted(set(colour) & set(depth), key=natural_key)
    if not names:
        raise InputError(
            "holds no frame with colour and depth", path=scan.folder, remedy="export it with SensReader"
        )

    def shot(index: int) -> Shot:
        name = names[index]
        return Shot(
            f"{scan.name}/{name}",
            scan.name,
            lambda: shrink(load_rgb8(colour[name]), SIZE),
            partial(_truth, depth[name]),
            lambda: read_intrinsics(scan.folder / "intrinsic" / "intrinsic_depth.txt"),
        )

    return ViewSet(scan.name, names, shot)


def _truth(path: Path) -> tuple[Tensor, Tensor]:
    depth = read_depth(path, 0.001).values
    return depth, depth > 0
