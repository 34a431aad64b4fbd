"""Reads scans of ScanNet as exported by its SensReader, with the reference data of the TransformerFusion protocol."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Mesh, Scene, View
from relief3d.core.errors import InputError
from relief3d.data.readers.scannet import matrix_file, read_intrinsics, read_pose
from relief3d.eval.metrics.mesh_transformerfusion import OcclusionGrid
from relief3d.io.depth import read_depth
from relief3d.io.images import image_size, read_image
from relief3d.io.names import natural_key
from relief3d.io.ply import read_ply
from relief3d.io.whole_file import read_utf8

SCAN_FOLDERS = ("scans_test", "scans", ".")
TEST_LIST = "scannetv2_test.txt"
DEPTH_SCALE = 0.001
MAX_DEPTH = 10.0
EVALUATION_SIZE = (640, 480)

LAYOUT = """
DATA/[scans|scans_test/]<scan>/color/<i>.jpg      pictures, exported by SensReader
                              /depth/<i>.png      16-bit millimetres, 640x480
                              /pose/<i>.txt       world_from_cam, -inf where tracking failed
                              /intrinsic/intrinsic_color.txt, intrinsic_depth.txt
                              /<scan>_vh_clean_2.ply
DATA/groundtruth/<scan>/mesh_gt.ply, occlusion_mask.npy, world2grid.txt   (from the TransformerFusion release)
DATA/scannetv2_test.txt       optional: the scans to use, one per line
""".strip()


@dataclass(frozen=True)
class ScanNetScan:
    """One exported scan.

    Attributes:
        name: such as "scene0707_00".
        folder: with color, depth, pose and intrinsic.
        reference: folder of the TransformerFusion release for this scan, or None.
    """

    name: str
    folder: Path
    reference: Path | None


def read_sensor_depth(
    path: Path, scale: float, max_depth: float, size: tuple[int, int] | None = None
) -> Depth:
    """A 16-bit depth map; values beyond ``max_depth`` metres become unknown, and a map may be wholly unknown.

    Args:
        path: of the file.
        scale: metres per unit.
        max_depth: metres, itself unknown already.
        size: (width, height) it must have.
    """
    try:
        depth = read_depth(path, scale=scale, size=size)
    except InputError as exc:
        # A blind frame is no damage here: it is skipped and counted.
        if size is None or "no valid pixels" not in exc.message:
            raise
        blind = torch.zeros(size[1], size[0])
        return Depth(blind, blind > 0)
    return Depth.from_values(torch.where(depth.values < max_depth, depth.values, torch.zeros(())))


def load_rgb(path: Path) -> Tensor:
    """(3, H, W) float32 RGB in [0, 1], as stored."""
    return read_image(path, orient=False).rgb


def find_scans(data: Path) -> list[ScanNetScan]:
    """Exported scans in a folder, in natural order.

    Raises:
        InputError: none is there, or a listed one is missing.
    """
    if not data.is_dir():
        raise InputError("is not a folder", path=data)
    found: dict[str, Path] = {}
    packed = []
    for name in SCAN_FOLDERS:
        root = data / name
        if not root.is_dir():
            continue
        for folder in sorted(root.iterdir(), key=lambda p: natural_key(p.name)):
            if not folder.name.startswith("scene") or not folder.is_dir():
                continue
            if all((folder / part).is_dir() for part in ("color", "depth", "pose", "intrinsic")):
                found.setdefault(folder.name, folder)
            elif any(folder.glob("*.sens")):
                packed.append(folder)
    wanted = list(found)
    if (data / TEST_LIST).is_file():
        wanted = read_utf8(data / TEST_LIST).split()
        missing = [name for name in wanted if name not in found]
        if missing:
            raise InputError(
                f"lacks {len(missing)} of the {len(wanted)} listed scans, such as {missing[0]}",
                path=data,
                remedy=f"add them or shorten {TEST_LIST}",
            )
    if not wanted:
        raise InputError(
            "holds only packed .sens files, which are not read"
            if packed
            else "holds no exported ScanNet scan",
            path=data,
            remedy="export color, depth, poses and intrinsics with ScanNet's SensReader into <scan>/color, depth, "
            "pose, intrinsic",
        )
    reference = data / "groundtruth"
    return [
        ScanNetScan(name, found[name], reference / name if (reference / name).is_dir() else None)
        for name in wanted
    ]


def scan_track(folder: Path) -> tuple[tuple[int, Tensor | None], ...]:
    """Numbers and ``world_from_cam`` of all frames in order, None where tracking failed.

    Raises:
        InputError: no frame has a valid pose.
    """
    files = sorted((folder / "pose").glob("*.txt"), key=lambda p: natural_key(p.name))
    out = tuple((int(path.stem), read_pose(path)) for path in files)
    if all(pose is None for _, pose in out):
        raise InputError("holds no frame with a valid pose", path=folder / "pose")
    return out


def scan_poses(folder: Path) -> list[tuple[int, Tensor]]:
    """The frames of :func:`scan_track` with a valid pose."""
    return [(number, pose) for number, pose in scan_track(folder) if pose is not None]


def _picture(folder: Path, part: str, number: int, endings: tuple[str, ...]) -> Path:
    for ending in endings:
        for name in (f"{number}{ending}", f"{number:06d}{ending}", f"{number:05d}{ending}"):
            path = folder / part / name
            if path.is_file():
                return path
    raise InputError(f"lacks frame {number}", path=folder / part, remedy="export the scan completely")


def scan_scene(scan: ScanNetScan) -> Scene:
    """What a model sees: all colour frames with a valid pose, their intrinsics and poses; nothing is decoded."""
    K = read_intrinsics(scan.folder / "intrinsic" / "intrinsic_color.txt")
    views = []
    size: tuple[int, int] | None = None
    for number, pose in scan_poses(scan.folder):
        path = _picture(scan.folder, "color", number, (".jpg", ".png"))
        size = size or image_size(path)
        camera = Camera(size[0], size[1], K, pose)
        views.append(View(path.name, camera, image=functools.partial(load_rgb, path), path=path))
    return Scene(tuple(views), metric=True, ordered=True)


def scan_views(scan: ScanNetScan) -> tuple[View, ...]:
    """All frames with a valid pose as depth cameras (640x480) with sensor depth in metres, loaded when asked for."""
    K = read_intrinsics(scan.folder / "intrinsic" / "intrinsic_depth.txt")
    width, height = EVALUATION_SIZE
    views = []
    for number, pose in scan_poses(scan.folder):
        path = _picture(scan.folder, "depth", number, (".png",))
        load = functools.partial(read_sensor_depth, path, DEPTH_SCALE, MAX_DEPTH, EVALUATION_SIZE)
        views.append(View(path.name, Camera(width, height, K, pose), depth=load))
    return tuple(views)


def scan_mesh(scan: ScanNetScan) -> Mesh:
    """``<scan>_vh_clean_2.ply``.

    Raises:
        InputError: missing, or without triangles.
    """
    path = scan.folder / f"{scan.name}_vh_clean_2.ply"
    if not path.is_file():
        raise InputError("is missing", path=path, remedy="download the reconstructed meshes of ScanNet")
    return need_mesh(path)


def need_mesh(path: Path) -> Mesh:
    """A PLY file that must hold triangles."""
    mesh = read_ply(path)
    if not isinstance(mesh, Mesh):
        raise InputError("holds no triangles", path=path)
    return mesh


def scan_reference(scan: ScanNetScan) -> tuple[Mesh, OcclusionGrid]:
    """Mesh and occlusion mask of the TransformerFusion release.

    Raises:
        InputError: the release is missing for this scan.
    """
    if scan.reference is None:
        raise InputError(
            f"there is no groundtruth/{scan.name} beside the scans",
            path=scan.folder,
            remedy="unpack the ground truth of the TransformerFusion release to DATA/groundtruth",
        )
    for name in ("mesh_gt.ply", "occlusion_mask.npy", "world2grid.txt"):
        if not (scan.reference / name).is_file():
            raise InputError("is missing", path=scan.reference / name)
    path = scan.reference / "occlusion_mask.npy"
    try:
        mask = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as exc:
        raise InputError(f"is not a readable array ({exc})", path=path) from exc
    if mask.ndim != 3:
        raise InputError(f"has {mask.ndim} dimensions, an occlusion mask has three", path=path)
    grid = OcclusionGrid(torch.from_numpy(mask), matrix_file(scan.reference / "world2grid.txt"))
    return need_mesh(scan.reference / "mesh_gt.ply"), grid
