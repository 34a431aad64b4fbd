"""``scene.json``: what a reconstruction is, as plain JSON that any program reads.

``{"format": "relief3d-scene", "version": 1, "metric", "ordered", "counts", "bounds", "views": [...],
"files": {...}, "info": {...}}``. ``info`` holds timings, memory, versions, seed and settings. Numbers that
are not finite are written as null. Here K has pixel centres at +0.5 and poses have OpenCV axes, as in
memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from relief3d.core.contract import Camera, Distortion, Scene, View
from relief3d.core.errors import InputError
from relief3d.io.json_file import Record, read_json_object, to_jsonable, write_json
from relief3d.io.rigid import rigid_from_file

FORMAT = "relief3d-scene"
VERSION = 1
FILE_NAME = "scene.json"


@dataclass(frozen=True)
class SceneSummary:
    """What ``scene.json`` holds.

    Attributes:
        scene: cameras of all views, without pictures, points and mesh; ``scene.info`` is the file's ``info``.
        files: output files by role ("mesh", "points", ...), relative to the folder of ``scene.json``.
        counts: numbers of views, registered views, points, triangles.
        document: everything, as read.
    """

    scene: Scene
    files: Mapping[str, str]
    counts: Mapping[str, Any]
    document: Mapping[str, Any]


def scene_document(
    scene: Scene, *, files: Mapping[str, str] | None = None, info: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON document of a scene, in JSON types only.

    Args:
        scene: what was reconstructed; its ``info`` goes into the document.
        files: output files by role, relative to the folder of the document.
        info: further facts; they win over ``scene.info``.
    """
    counts: dict[str, Any] = {
        "views": len(scene.views),
        "registered": len(scene.posed),
        "sparse_points": 0 if scene.sparse is None else len(scene.sparse),
        "observations": 0 if scene.sparse is None else len(scene.sparse.obs_point),
        "points": 0 if scene.points is None else len(scene.points.xyz),
        "vertices": 0 if scene.mesh is None else len(scene.mesh.vertices),
        "triangles": 0 if scene.mesh is None else len(scene.mesh.faces),
    }
    document = {
        "format": FORMAT,
        "version": VERSION,
        "metric": scene.metric,
        "unit": "metre" if scene.metric else "arbitrary",
        "ordered": scene.ordered,
        "counts": counts,
        "bounds": _bounds(scene),
        "views": [_view_values(view) for view in scene.views],
        "files": dict(files or {}),
        "info": {**scene.info, **(info or {})},
    }
    result = to_jsonable(document)
    return dict(result)


def write_scene_json(
    path: str | Path,
    scene: Scene,
    *,
    files: Mapping[str, str] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``scene.json`` atomically; see :func:`scene_document`. ``path`` may be an existing folder."""
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    return write_json(path, scene_document(scene, files=files, info=info))


def read_scene_json(path: str | Path) -> SceneSummary:
    """Read a ``scene.json``.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        InputError: naming the file, when it is missing, of another format or version, or malformed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    document = read_json_object(path)
    top = Record(document, path)
    if document.get("format") != FORMAT:
        raise top.error("not a relief3d scene file", "give the scene.json of an output folder")
    version = top.integer("version")
    if version is None or not 1 <= version <= VERSION:
        raise top.error(f"version {version} of the scene file is not known", "update relief3d")
    views = []
    for index, values in enumerate(top.objects("views")):
        views.append(_read_view(Record(values, path, f"view {index}")))
    for key in ("files", "counts", "info"):
        if not isinstance(document.get(key), dict):
            raise top.error(f"'{key}' must be an object")
    files = document["files"]
    if not all(isinstance(value, str) for value in files.values()):
        raise top.error("'files' must hold texts")
    try:
        scene = Scene(
            tuple(views),
            metric=document.get("metric") is True,
            ordered=document.get("ordered") is True,
            info=document["info"],
        )
    except InputError as exc:
        raise top.error(exc.message, exc.remedy) from exc
    return SceneSummary(scene, files, document["counts"], document)


def _bounds(scene: Scene) -> list[list[float]] | None:
    """Corners of the axis-aligned box around mesh, points or sparse points, whichever exists first."""
    xyz: Tensor | None = None
    if scene.mesh is not None and len(scene.mesh.vertices):
        xyz = scene.mesh.vertices
    elif scene.points is not None and len(scene.points.xyz):
        xyz = scene.points.xyz
    elif scene.sparse is not None and len(scene.sparse):
        xyz = scene.sparse.xyz
    if xyz is None:
        return None
    low, high = xyz.amin(dim=0).tolist(), xyz.amax(dim=0).tolist()
    return [low, high]


def _view_values(view: View) -> dict[str, Any]:
    camera = view.camera
    lens = camera.distortion
    return {
        "name": view.name,
        "width": camera.width,
        "height": camera.height,
        "registered": camera.K is not None and camera.world_from_cam is not None,
        "K": camera.K,
        "K_source": camera.K_source,
        "distortion": None if lens is None else {"model": lens.model, "params": list(lens.params)},
        "world_from_cam": camera.world_from_cam,
        "time": view.time,
    }


def _read_view(view: Record) -> View:
    name, width, height = view.text("name"), view.integer("width"), view.integer("height")
    if name is None or width is None or height is None:
        raise view.error("needs 'name', 'width' and 'height'")
    source = view.text("K_source") or "given"
    if source not in ("given", "exif", "estimated", "guess"):
        raise view.error(f"'K_source' says '{source}'")
    pose = view.matrix("world_from_cam", [(4, 4)])
    try:
        camera = Camera(
            width,
            height,
            view.matrix("K", [(3, 3)]),
            None if pose is None else rigid_from_file(pose),
            _read_lens(view),
            source,  # type: ignore[arg-type]
        )
    except InputError as exc:
        raise view.error(exc.message, exc.remedy) from exc
    except ValueError as exc:
        raise view.error(f"'world_from_cam' {exc}") from exc
    return View(name, camera, time=view.number("time"))


def _read_lens(view: Record) -> Distortion | None:
    value = view.get("distortion")
    if value is None:
        return None
    if not isinstance(value, dict) or value.get("model") not in ("opencv", "fisheye"):
        raise view.error("'distortion' must have 'model' (opencv or fisheye) and 'params'")
    params = Record(value, view.path, view.where).numbers("params")
    return Distortion(value["model"], params or ())
