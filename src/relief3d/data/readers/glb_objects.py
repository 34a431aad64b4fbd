"""Folders of GLB files, as Objaverse is stored: one object per file, with views rendered from it when wanted."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Mesh, Scene, View
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.data.readers.files import listed_names, need_file
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.projection import intrinsics_from_fov
from relief3d.geometry.transforms import look_at
from relief3d.io.glb import read_glb
from relief3d.io.names import natural_key
from relief3d.render.factory import make_renderer
from relief3d.render.protocols import Hits

FOV = math.radians(40.0)
FILL = 0.9
"""Share of the picture's half height that the bounding sphere takes."""

CARD = DatasetCard(
    name="glb_objects",
    title="folder of GLB objects (Objaverse's layout)",
    sources=(
        "https://objaverse.allenai.org/docs/objaverse-1.0/",
        "https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html",
    ),
    licence="per object (Objaverse lists Creative Commons licences object by object; ODC-By for the collection)",
    gives=("mesh", "image", "K", "pose", "depth", "mask"),
    metric=False,
    layout="[glbs/000-000/]UID.glb at any depth; SPLIT.txt (one uid per line) for a split",
    conventions=(
        "glTF's world (y up, right-handed) is kept; the mesh is not scaled; views look at the middle of its bounding "
        "box from a sphere around it, with pinhole cameras and pixel centres at +0.5; base colours, unlit; "
        "the mask is True on the object."
    ),
    splits=("train", "val", "test"),
    open_points=(
        "Objaverse's page was not at hand: files are found at any depth, so its folder names do not matter.",
        "Units of the files are not promised to be metres.",
        "Materials beyond the base colour are ignored.",
    ),
)


@dataclass(frozen=True)
class _Shots:
    views: int
    size: tuple[int, int]
    seed: int


def open_glb_objects(
    root: str | Path,
    *,
    split: str | None = None,
    views: int = 0,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
) -> SceneSet:
    """Objects by the path of their file without its ending.

    Args:
        root: folder of GLB files at any depth.
        split: takes the objects (paths or uids) that ``SPLIT.txt`` lists.
        views: how many cameras are placed around each object; 0 gives the mesh alone.
        size: (width, height) of their pictures.
        seed: of the camera places, mixed with the object's name.

    Raises:
        InputError: no GLB files here, or a listed one is missing.
    """
    root, split = Path(root), CARD.check_split(split)
    if views < 0 or min(size) < 1:
        raise InputError(f"{views} views of {size[0]} x {size[1]} pixels cannot be")
    files = sorted(root.rglob("*.glb"), key=lambda p: natural_key(p.as_posix()))
    items = {f.relative_to(root).with_suffix("").as_posix(): f for f in files if not f.name.startswith(".")}
    if not items:
        raise InputError("holds no GLB files", path=root, remedy="give the folder with the objects")
    if split is not None:
        by_uid = {f.stem: name for name, f in items.items()}
        wanted = [
            by_uid.get(n, n) for n in listed_names(need_file(root / f"{split}.txt", "list of the split"))
        ]
        if missing := [n for n in wanted if n not in items]:
            raise InputError(f"lacks {len(missing)} objects of {split}.txt, such as {missing[0]}", path=root)
        items = {n: items[n] for n in wanted}
    return SceneSet(CARD, items, functools.partial(_scene, shots=_Shots(views, size, seed)))


def _scene(name: str, file: Path, shots: _Shots) -> Scene:
    mesh = read_glb(file)
    views = []
    cameras = object_cameras(mesh, shots.views, shots.size, derive_seed(shots.seed, name))
    for i, camera in enumerate(cameras):
        views.append(
            View(
                f"view_{i:03d}",
                camera,
                image=functools.partial(render_colour, mesh, camera),
                depth=functools.partial(render_depth, mesh, camera),
                mask=functools.partial(render_mask, mesh, camera),
            )
        )
    return Scene(tuple(views), metric=False, mesh=mesh, info={"dataset": CARD.name, "scene": name})


def object_cameras(mesh: Mesh, count: int, size: tuple[int, int], seed: int) -> list[Camera]:
    """Cameras on a sphere, spread evenly (golden spiral, randomly turned), that see the whole bounding box.

    Args:
        mesh: the object, y up.
        count: of cameras.
        size: (width, height).
        seed: of the turn.
    """
    low, high = mesh.vertices.double().amin(0), mesh.vertices.double().amax(0)
    centre, radius = 0.5 * (low + high), 0.5 * float((high - low).norm())
    width, height = size
    # The narrower side decides how far away the camera stands.
    half = math.atan(math.tan(0.5 * FOV) * min(1.0, height / width))
    distance = max(radius, 1e-6) / (FILL * math.sin(half))
    turn = (
        2
        * math.pi
        * float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    )
    K = intrinsics_from_fov(width, height, FOV)
    cameras = []
    for i in range(count):
        y = 0.85 * (1 - 2 * (i + 0.5) / count)  # poles left out: no up direction there
        angle = turn + i * math.pi * (3 - math.sqrt(5))
        ring = math.sqrt(1 - y * y)
        away = torch.tensor([ring * math.cos(angle), y, ring * math.sin(angle)], dtype=torch.float64)
        up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
        cameras.append(Camera(width, height, K, look_at(centre + distance * away, centre, up)))
    return cameras


def render_depth(mesh: Mesh, camera: Camera) -> Depth:
    """z-depth of the object, in the file's unit."""
    return Depth.from_values(make_renderer().render(mesh, camera, back_faces="keep"), metric=False)


def render_mask(mesh: Mesh, camera: Camera) -> Tensor:
    """(H, W) bool, True on the object."""
    return make_renderer().cast(mesh, camera, back_faces="keep").hit


def render_colour(mesh: Mesh, camera: Camera) -> Tensor:
    """(3, H, W) base colours in [0, 1] on white, without light."""
    hits = make_renderer().cast(mesh, camera, back_faces="keep")
    colour = _hit_colours(mesh, hits)
    return torch.where(hits.hit, colour.permute(2, 0, 1), torch.ones(()))


def _hit_colours(mesh: Mesh, hits: Hits) -> Tensor:
    corners = mesh.faces[hits.face.clamp_min(0)]
    weights = hits.barycentric[..., None]
    if mesh.texture is not None and mesh.uv is not None:
        uv = (mesh.uv[corners] * weights).sum(-2)
        height, width = mesh.texture.shape[:2]
        x = ((uv[..., 0] % 1.0) * width).long().clamp(0, width - 1)
        y = (((1.0 - uv[..., 1]) % 1.0) * height).long().clamp(0, height - 1)
        return mesh.texture[y, x].float() / 255.0
    if mesh.rgb is not None:
        return (mesh.rgb[corners].float() * weights).sum(-2) / 255.0
    return torch.full((*hits.face.shape, 3), 0.7)
