"""One documented folder layout for scenes of any origin: labels, procedural scenes, converted data sets.

The layout is described in docs/datasets.md; :func:`write_generic` writes it and :func:`open_generic` reads it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, PointCloud, Scene, SparseDepth, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.data.readers.files import (
    PICTURES,
    file_view,
    files_in,
    folders_holding,
    listed_names,
    load_depth,
    need_file,
)
from relief3d.data.readers.lazy_sparse import LazySparseDepth
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.io.atomic import atomic_folder
from relief3d.io.cameras_json import FILE_NAME, read_cameras_json, write_cameras_json
from relief3d.io.depth import read_npz, write_depth
from relief3d.io.images import write_image
from relief3d.io.json_file import Record, read_json_object, write_json
from relief3d.io.ply import read_ply, write_ply

FORMAT, VERSION = "relief3d-generic", 1
_META = "meta.json"

CARD = DatasetCard(
    name="generic",
    title="relief3d's generic layout",
    sources=("docs/datasets.md",),
    licence="that of the data stored in it",
    gives=("image", "K", "lens", "pose", "depth", "sparse depth", "mask", "time", "points", "mesh"),
    metric=False,
    layout=(
        "SCENE/{cameras.json, images/*.{png,jpg}, depth/*.{png,npz,exr}, masks/*.png, sparse/*.npz, meta.json}\n"
        "optional points.ply, mesh.ply, sparse_points.npz; splits/NAME.txt lists scenes"
    ),
    conventions=(
        "cameras.json has OpenCV axes, world from camera, pixel centres at integers (0.5 is added); depth is z; "
        "meta.json says whether the unit is metres; sparse/*.npz holds xy (pixel centres at +0.5), z and sigma."
    ),
    splits=("train", "val", "test"),
)


def open_generic(root: str | Path, *, split: str | None = None) -> SceneSet:
    """Scenes below a folder, or the one scene that the folder is.

    A scene is a folder with ``cameras.json``, or with pictures in ``images`` alone.

    Args:
        root: a scene, or a folder with scenes at most three levels below.
        split: takes the scenes that ``splits/SPLIT.txt`` lists.

    Raises:
        InputError: no scenes here, or a listed one is missing.
    """
    root, split = Path(root), CARD.check_split(split)
    if (root / FILE_NAME).is_file() or (root / "images").is_dir():
        return SceneSet(CARD, {root.name: root}, read_generic)
    scenes = folders_holding(root, (FILE_NAME, "images"), CARD.title, depth=3)
    if split is not None:
        names = listed_names(need_file(root / "splits" / f"{split}.txt", f"list of the split '{split}'"))
        if missing := [n for n in names if n not in scenes]:
            raise InputError(f"lacks {len(missing)} scenes of '{split}', such as {missing[0]}", path=root)
        scenes = {n: scenes[n] for n in names}
    return SceneSet(CARD, scenes, read_generic)


def read_generic(name: str, folder: Path) -> Scene:
    """One scene; pictures, depth, masks and sparse depth load on demand.

    Raises:
        InputError: a file is missing, damaged or of another version.
    """
    meta = _meta(folder)
    info = meta.get("info")
    facts = {"dataset": CARD.name, "scene": name, **(info if isinstance(info, dict) else {})}
    metric = meta.text("unit") == "metre"
    if not (folder / FILE_NAME).is_file():
        pictures = files_in(folder / "images", PICTURES, "pictures")
        views = tuple(file_view(p.name, p, None, None) for p in pictures)
        return Scene(views, metric=metric, ordered=meta.get("ordered") is True, info=facts)
    scene = read_cameras_json(folder)
    views = tuple(_view(v, frame, folder, metric, meta) for v, frame in zip(scene.views, _frames(folder)))
    mesh = points = sparse = None
    if (folder / "mesh.ply").is_file():
        surface = read_ply(folder / "mesh.ply")
        if isinstance(surface, PointCloud):
            raise InputError("holds no triangles", path=folder / "mesh.ply", remedy="call it points.ply")
        mesh = surface
    if (folder / "points.ply").is_file():
        read = read_ply(folder / "points.ply")
        points = read if isinstance(read, PointCloud) else PointCloud(read.vertices, read.rgb, read.normals)
    if (folder / "sparse_points.npz").is_file():
        sparse = _read_sparse_points(folder / "sparse_points.npz")
    return Scene(views, metric, meta.get("ordered") is True, sparse, points, mesh, facts)


def _meta(folder: Path) -> Record:
    file = folder / _META
    if not file.is_file():
        return Record({}, file)
    meta = Record(read_json_object(file), file)
    if meta.get("format") not in (None, FORMAT) or (meta.integer("version") or VERSION) > VERSION:
        raise meta.error("is not of a version of this layout that is known", "update relief3d")
    if meta.text("unit") not in (None, "metre", "arbitrary"):
        raise meta.error(f"the unit '{meta.get('unit')}' is not known", "use metre or arbitrary")
    return meta


def _frames(folder: Path) -> Iterator[Record]:
    file = folder / FILE_NAME
    return (Record(f, file) for f in Record(read_json_object(file), file).objects("frames"))


def _view(view: View, frame: Record, folder: Path, metric: bool, meta: Record) -> View:
    size = (view.camera.width, view.camera.height)
    if text := frame.text("depth"):
        scaled = metric and view.name not in meta.texts("unscaled_depth")
        load = functools.partial(
            load_depth, folder / text, size, scale=frame.number("depth_to_metres"), metric=scaled
        )
        view = view.replace(depth=load)
    if text := frame.text("sparse"):
        file = need_file(folder / "sparse" / Path(text).name, "file of sparse depth")
        view = view.replace(sparse_depth=LazySparseDepth(functools.partial(load_sparse_depth, file, metric)))
    sources = meta.get("K_source")
    source = sources.get(view.name) if isinstance(sources, dict) else None
    if source in ("exif", "estimated", "guess"):
        view = view.replace(camera=view.camera.replace(K_source=source))
    return view


def load_sparse_depth(path: Path, metric: bool) -> SparseDepth:
    """Sparse depth of an NPZ with ``xy`` (N, 2), ``z`` (N,) and perhaps ``sigma`` (N,).

    Raises:
        InputError: damaged, or arrays that do not fit.
    """
    arrays = read_npz(path)
    if not {"xy", "z"} <= set(arrays) or arrays["xy"].shape != (*arrays["z"].shape, 2):
        raise InputError("lacks xy (N, 2) and z (N,)", path=path, remedy="write it again")
    sigma = torch.from_numpy(arrays["sigma"]) if "sigma" in arrays else None
    return SparseDepth(torch.from_numpy(arrays["xy"]), torch.from_numpy(arrays["z"]), sigma, metric)


_POINT_ARRAYS = ("xyz", "rgb", "error", "obs_point", "obs_view", "obs_xy")


def _read_sparse_points(path: Path) -> SparsePoints:
    arrays = read_npz(path)
    if missing := [n for n in _POINT_ARRAYS if n not in arrays]:
        raise InputError(f"lacks the array '{missing[0]}'", path=path, remedy="write it again")
    return SparsePoints(*(torch.from_numpy(arrays[n]) for n in _POINT_ARRAYS))


def write_generic(scene: Scene, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a scene in the generic layout; the folder appears whole or not at all.

    Pictures become 8-bit PNG files (nothing but that rounding is lost), depth maps NPZ files (float32, with
    confidence). Textures of a mesh are left out (PLY has none).

    Args:
        scene: views may lack anything.
        folder: target; must not exist unless ``overwrite``.
        overwrite: replace it.

    Returns:
        The folder.

    Raises:
        InputError: the folder exists, a picture or depth map is not of its camera's size, or nothing can be written.
    """
    folder = Path(folder)
    with atomic_folder(folder, overwrite=overwrite) as target:
        depth: dict[str, tuple[str, float | None]] = {}
        masks: dict[str, str] = {}
        sparse: dict[str, str] = {}
        unscaled: list[str] = []
        placed = []
        for i, view in enumerate(scene.views):
            stem = f"{i:06d}"
            placed.append(_write_view(view, target, stem))
            if (dense := view.load_depth()) is not None:
                _same_size(view, dense.values, "depth map")
                write_depth(target / "depth" / f"{stem}.npz", dense)
                depth[view.name] = (f"depth/{stem}.npz", 1.0 if dense.metric and scene.metric else None)
                unscaled += [] if dense.metric or not scene.metric else [view.name]
            if (usable := view.load_mask()) is not None:
                _same_size(view, usable, "mask")
                write_image(target / "masks" / f"{stem}.png", usable.float())
                masks[view.name] = f"masks/{stem}.png"
            if view.sparse_depth is not None:
                _write_sparse_depth(target / "sparse" / f"{stem}.npz", view.sparse_depth)
                sparse[view.name] = f"{stem}.npz"
        write_cameras_json(scene.replace(views=tuple(placed)), target, depth=depth, masks=masks)
        _name_sparse(target / FILE_NAME, scene.views, sparse)
        _write_world(scene, target)
        write_json(target / _META, _meta_values(scene, unscaled))
    return folder


def _meta_values(scene: Scene, unscaled: list[str]) -> dict[str, Any]:
    sources = {v.name: v.camera.K_source for v in scene.views if v.camera.K_source != "given"}
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "unit": "metre" if scene.metric else "arbitrary",
        "ordered": scene.ordered,
        "info": dict(scene.info),
    }
    if sources:
        values["K_source"] = sources
    if unscaled:
        values["unscaled_depth"] = unscaled
    return values


def _write_view(view: View, target: Path, stem: str) -> View:
    """Write the picture; the view to be listed, named by its file where it has one."""
    if view.image is None:
        return View(view.name, view.camera, time=view.time)
    image = view.load_image()
    _same_size(view, image[0], "picture")
    path = write_image(target / "images" / f"{stem}.png", image)
    return View(view.name, view.camera, time=view.time, path=path)


def _same_size(view: View, tensor: Tensor, what: str) -> None:
    camera: Camera = view.camera
    if tuple(tensor.shape) != (camera.height, camera.width):
        raise InputError(
            f"the {what} of '{view.name}' has {tensor.shape[1]} x {tensor.shape[0]} pixels, its camera "
            f"{camera.width} x {camera.height}"
        )


def _write_sparse_depth(path: Path, sparse: SparseDepth) -> None:
    arrays = {"xy": sparse.xy.float().cpu().numpy(), "z": sparse.z.float().cpu().numpy()}
    if sparse.sigma is not None:
        arrays["sigma"] = sparse.sigma.float().cpu().numpy()
    _write_npz(path, arrays)


def _write_npz(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)


def _name_sparse(file: Path, views: tuple[View, ...], sparse: dict[str, str]) -> None:
    if not sparse:
        return
    document = read_json_object(file)
    for view, frame in zip(views, document["frames"]):
        if view.name in sparse:
            frame["sparse"] = sparse[view.name]
    write_json(file, document)


def _write_world(scene: Scene, target: Path) -> None:
    if scene.points is not None:
        write_ply(target / "points.ply", scene.points)
    if scene.mesh is not None:
        write_ply(target / "mesh.ply", scene.mesh)
    if scene.sparse is not None:
        values = {n: getattr(scene.sparse, n).cpu().numpy() for n in _POINT_ARRAYS}
        _write_npz(target / "sparse_points.npz", values)
