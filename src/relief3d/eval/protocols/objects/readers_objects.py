"""Reader of folders of single objects: picture, mask, artist mesh, pose.

The released SA-3DAO set (100 public objects, 900 held back for its leaderboard) has no documented folder layout that
we could check, and Aria Digital Twin comes as VRS recordings; this layout is our reading of both, to be filled by an
export::

    DATA/.../<object>/mask.png      white or opaque where the object is seen
    DATA/.../<object>/mesh.glb      or mesh.ply
    DATA/.../<object>/pose.json     layout benchmarks only
    DATA/.../<object>/image.png     (or .jpg), here or in the folder above, then shared by several objects
    DATA/.../<object>/points.npy    optional (H, W, 3) point map, OpenCV camera, NaN where unknown; here or above
    DATA/.../<object>/camera.json   optional {"K": 3x3, "pixel_centre": 0.5}; here or above

``pose.json`` holds either ``cam_from_object`` (4x4, column vectors, OpenCV camera) or SAM 3D's own output
``rotation`` (quaternion, w first), ``translation``, ``scale`` (one number or three): ``p = (q * scale) @ R + t`` with
row vectors in PyTorch3D's camera. A GLB is y-up while the pose applies to the z-up object:
(a, b, c) becomes (a, -c, b).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.geometry.conventions import axis_signs, shift_pixel_centres
from relief3d.geometry.rotations import matrix_from_quat_wxyz
from relief3d.geometry.transforms import make_rigid
from relief3d.io.depth import read_mask
from relief3d.io.glb import read_glb
from relief3d.io.images import read_image
from relief3d.io.json_file import Record, read_json_object
from relief3d.io.names import natural_key
from relief3d.io.ply import read_ply

LAYOUT = """DATA/[<scene>/]<object>/mask.png, mesh.glb (or mesh.ply), image.png (or .jpg; may lie in the scene folder);
  layout benchmarks: pose.json with cam_from_object (4x4, OpenCV) or rotation (w first), translation, scale as SAM 3D
  writes them (row vectors, PyTorch3D camera); optional camera.json {"K", "pixel_centre"} and points.npy (H, W, 3).
This folder layout is our reading (no documented one could be checked): export the release into it."""

SHORT_LAYOUT = """give [<scene>/]<object>/ with mask.png, mesh.glb, image.png and, for layouts, pose.json; \
'relief3d eval sa3dao_layout --list' shows it all"""

_PICTURES = ("image.png", "image.jpg", "image.jpeg", "image.webp")
_MESHES = ("mesh.glb", "mesh.ply")
_Y_UP_TO_Z_UP = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))


@dataclass(frozen=True)
class ObjectFiles:
    """Files of one object; nothing is read yet.

    Attributes:
        name: path below the data folder.
        group: picture the object belongs to.
        image, mask, mesh: required.
        pose, camera, points: None where absent.
    """

    name: str
    group: str
    image: Path
    mask: Path
    mesh: Path
    pose: Path | None
    camera: Path | None
    points: Path | None

    def load_image(self) -> Tensor:
        """(3, H, W) uint8."""
        return (read_image(self.image).rgb * 255).round().to(torch.uint8)

    def load_mask(self) -> Tensor:
        """(H, W) bool.

        Raises:
            InputError: another size than the picture, or no pixel of the object.
        """
        header = read_image(self.image).header
        mask = read_mask(self.mask, size=(header.width, header.height))
        if not bool(mask.any()):
            raise InputError("the mask is empty", path=self.mask, remedy="white marks the object")
        return mask

    def load_mesh(self) -> Mesh:
        """The mesh in the z-up object frame of the pose."""
        return read_object_mesh(self.mesh)

    def load_K(self) -> Tensor | None:
        """(3, 3) intrinsics with pixel centres at +0.5, or None."""
        return None if self.camera is None else read_intrinsics(self.camera)

    def load_pose(self) -> Tensor:
        """(4, 4) cam_from_object.

        Raises:
            InputError: there is none.
        """
        if self.pose is None:
            raise InputError("lacks pose.json", path=self.mask.parent, remedy=SHORT_LAYOUT)
        return read_pose(self.pose)

    def load_points(self) -> Tensor | None:
        """(H, W, 3) float32 point map, NaN where unknown, or None."""
        return None if self.points is None else read_points(self.points)


def find_objects(data: Path, *, posed: bool) -> list[ObjectFiles]:
    """All objects below a folder, sorted by name.

    Args:
        data: folder of the data set.
        posed: whether every object needs a pose.

    Raises:
        InputError: no object, or one that lacks a file.
    """
    if not data.is_dir():
        raise InputError("is not a folder", path=data, remedy=SHORT_LAYOUT)
    found = list(_objects(data, posed))
    if not found:
        raise InputError("holds no object (a folder with mask.png)", path=data, remedy=SHORT_LAYOUT)
    return found


def _objects(data: Path, posed: bool) -> Iterator[ObjectFiles]:
    masks = sorted(data.rglob("mask.png"), key=lambda p: natural_key(p.parent.relative_to(data).as_posix()))
    for mask in masks:
        folder = mask.parent
        above = folder.parent if folder != data else folder
        image = _first([folder / n for n in _PICTURES] + [above / n for n in _PICTURES])
        mesh = _first([folder / n for n in _MESHES])
        pose = _first([folder / "pose.json"])
        needed = [("image.png", image), ("mesh.glb", mesh)] + ([("pose.json", pose)] if posed else [])
        lacking = [name for name, path in needed if path is None]
        if lacking or image is None or mesh is None:
            raise InputError(f"lacks {', '.join(lacking)}", path=folder, remedy=SHORT_LAYOUT)
        name = folder.relative_to(data).as_posix()
        yield ObjectFiles(
            name=name if name != "." else data.name,
            group=image.parent.relative_to(data).as_posix() if image.parent != data else name,
            image=image,
            mask=mask,
            mesh=mesh,
            pose=pose,
            camera=_first([folder / "camera.json", above / "camera.json"]),
            points=_first([folder / "points.npy", above / "points.npy"]),
        )


def _first(paths: list[Path]) -> Path | None:
    return next((p for p in paths if p.is_file()), None)


def read_object_mesh(path: Path) -> Mesh:
    """A mesh in the z-up object frame: GLB files are turned from y-up, PLY files are taken as they are.

    Raises:
        InputError: not a mesh.
    """
    if path.suffix.lower() == ".glb":
        mesh = read_glb(path, keep_axes=False)
        turn = torch.tensor(_Y_UP_TO_Z_UP, dtype=mesh.vertices.dtype)
        normals = None if mesh.normals is None else mesh.normals @ turn.T
        return dataclasses.replace(mesh, vertices=mesh.vertices @ turn.T, normals=normals)
    read = read_ply(path)
    if not isinstance(read, Mesh):
        raise InputError("holds no triangles", path=path, remedy="give a mesh")
    return read


def read_intrinsics(path: Path) -> Tensor:
    """(3, 3) float64 K with pixel centres at +0.5 from ``{"K": 3x3, "pixel_centre": 0.5 or 0}``.

    Raises:
        InputError: no K.
    """
    record = Record(read_json_object(path), path)
    K = record.matrix("K", [(3, 3)])
    if K is None:
        raise record.error("'K' is missing", "give the 3x3 intrinsics in pixels")
    centre = record.number("pixel_centre")
    return K if centre is None else shift_pixel_centres(K, centre, 0.5)


def read_pose(path: Path) -> Tensor:
    """(4, 4) float64 cam_from_object, column vectors, OpenCV camera; see the module's description.

    Raises:
        InputError: neither form is complete, or the quaternion is zero, or a scale is not positive.
    """
    record = Record(read_json_object(path), path)
    direct = record.matrix("cam_from_object", [(4, 4), (3, 4)])
    if direct is not None:
        return torch.cat([direct[:3], torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)])
    rotation, translation = record.numbers("rotation"), record.numbers("translation")
    scale = _scale(record)
    if rotation is None or translation is None or len(rotation) != 4 or len(translation) != 3:
        raise record.error("needs cam_from_object, or rotation (4), translation (3) and scale", SHORT_LAYOUT)
    return pose_from_sam3d(
        torch.tensor(rotation, dtype=torch.float64), torch.tensor(translation, dtype=torch.float64), scale
    )


def _scale(record: Record) -> Tensor:
    value = record.get("scale")
    numbers = record.numbers("scale") if isinstance(value, list) else (record.number("scale"),)
    if numbers is None or len(numbers) not in (1, 3) or any(n is None or not n > 0 for n in numbers):
        raise record.error("'scale' must be one or three positive numbers")
    return torch.tensor([n for n in numbers if n is not None], dtype=torch.float64).expand(3)


def pose_from_sam3d(quaternion: Tensor, translation: Tensor, scale: Tensor) -> Tensor:
    """cam_from_object (4, 4) for column vectors and an OpenCV camera from SAM 3D's output.

    SAM 3D writes ``p = (q * s) @ R + t`` with row vectors in PyTorch3D's camera (x left, y up, z forward).

    Args:
        quaternion: (4,) w first.
        translation: (3,).
        scale: (3,).

    Raises:
        InputError: a zero quaternion.
    """
    if not float(quaternion.norm()) > 0:
        raise InputError("the rotation of a pose is a quaternion of length zero")
    signs = torch.tensor(axis_signs("pytorch3d", "opencv"), dtype=torch.float64)
    linear = matrix_from_quat_wxyz(quaternion).mT * scale
    return make_rigid(signs[:, None] * linear, signs * translation)


def read_points(path: Path) -> Tensor:
    """(H, W, 3) float32 point map of the OpenCV camera.

    Raises:
        InputError: not such an array.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as exc:
        raise InputError(f"is not a readable array ({exc})", path=path) from exc
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype.kind != "f":
        raise InputError("must be an (H, W, 3) array of floats", path=path)
    return torch.from_numpy(values.astype(np.float32))
