"""What the viewer shows, read from the output folder of ``relief3d reconstruct``."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Mesh, PointCloud, Scene, SparsePoints
from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_points, resize_intrinsics
from relief3d.geometry.transforms import transform_points
from relief3d.io.cameras_json import read_cameras_json
from relief3d.io.colmap import read_colmap_model
from relief3d.io.depth import read_depth
from relief3d.io.glb import read_glb
from relief3d.io.json_file import read_json_object
from relief3d.io.ply import read_ply
from relief3d.io.transforms_json import read_transforms_json

_log = logging.getLogger(__name__)
_AGAIN = "run 'relief3d reconstruct INPUT -o OUT' first; an interrupted run continues when started again"


@dataclass(frozen=True)
class DepthFile:
    """A depth map on disk with the pinhole camera (world pose included) it belongs to."""

    path: Path
    camera: Camera
    metric: bool

    def load(self) -> Depth:
        """The map; sizes are checked against the camera."""
        return read_depth(
            self.path, scale=1.0, metric=self.metric, size=(self.camera.width, self.camera.height)
        )


@dataclass(frozen=True)
class LoadedOutput:
    """An output folder as far as it is complete.

    Attributes:
        folder: where it lies.
        scene: cameras, sparse points, points, mesh; pictures load on demand.
        depths: depth maps by view name.
        missing: names of the parts that are not there, in words for the user.
    """

    folder: Path
    scene: Scene
    depths: dict[str, DepthFile]
    missing: tuple[str, ...]


def load_output(folder: str | Path) -> LoadedOutput:
    """Read an output folder; only the cameras are indispensable.

    Raises:
        InputError: when the folder is missing, holds no cameras, or a file in it is damaged.
    """
    folder = Path(folder)
    if not folder.exists():
        raise InputError("this folder does not exist", path=folder, remedy=_AGAIN)
    if not folder.is_dir():
        raise InputError("this is a file, not an output folder", path=folder, remedy="name the folder OUT")
    scene, missing = _read_cameras(folder)
    mesh = _read_mesh(folder)
    points = _read_points(folder)
    if points is None:
        missing.append("points.ply")
    if mesh is None:
        missing.append("mesh.ply or mesh.glb")
    depths = _find_depths(folder, scene)
    if not depths:
        missing.append("depth/")
    info = scene.info
    if (folder / "scene.json").is_file():
        info = {**info, **read_json_object(folder / "scene.json")}
        scene = scene.replace(metric=bool(info.get("metric", scene.metric)))
    else:
        missing.append("scene.json")
    return LoadedOutput(folder, scene.replace(points=points, mesh=mesh, info=info), depths, tuple(missing))


def _read_cameras(folder: Path) -> tuple[Scene, list[str]]:
    """Cameras from transforms.json (which names the pictures), points of the COLMAP model where there is one."""
    transforms, model = folder / "transforms.json", folder / "sparse" / "0"
    scene = read_transforms_json(transforms, require_images=False) if transforms.is_file() else None
    solved = read_colmap_model(model) if model.is_dir() else None
    if scene is None and solved is None:
        raise InputError(
            "holds neither transforms.json nor sparse/0, so there is nothing to show",
            path=folder,
            remedy=_AGAIN,
        )
    if scene is None:
        assert solved is not None
        return solved, ["transforms.json"]
    if solved is None or solved.sparse is None:
        return scene, ["sparse/0"]
    return scene.replace(sparse=_with_indices_of(scene, solved, solved.sparse)), []


def _with_indices_of(scene: Scene, solved: Scene, sparse: SparsePoints) -> SparsePoints:
    """The sparse points with observations that count views as ``scene`` does."""
    index = {view.name: i for i, view in enumerate(scene.views)}
    to_here = torch.tensor([index.get(view.name, -1) for view in solved.views], dtype=torch.int64)
    view = to_here[sparse.obs_view]
    known = view >= 0
    return dataclasses.replace(
        sparse, obs_point=sparse.obs_point[known], obs_view=view[known], obs_xy=sparse.obs_xy[known]
    )


def _read_points(folder: Path) -> PointCloud | None:
    path = folder / "points.ply"
    if not path.is_file():
        return None
    loaded = read_ply(path)
    if not isinstance(loaded, PointCloud):
        raise InputError("holds a mesh where points are expected", path=path, remedy=_AGAIN)
    return loaded


def _read_mesh(folder: Path) -> Mesh | None:
    path = folder / "mesh.ply"
    if not path.is_file():
        other = folder / "mesh.glb"
        return read_glb(other) if other.is_file() else None
    loaded = read_ply(path)
    if isinstance(loaded, PointCloud):
        raise InputError("holds points where a mesh is expected", path=path, remedy=_AGAIN)
    return loaded


def _find_depths(folder: Path, scene: Scene) -> dict[str, DepthFile]:
    """Depth maps with their cameras: from depth/cameras.json, or the view's camera scaled to the map's size."""
    root = folder / "depth"
    if not root.is_dir():
        return {}
    poses = {view.name: view.camera.world_from_cam for view in scene.views}
    cameras: dict[str, Camera] = {}
    if (root / "cameras.json").is_file():
        stored = read_cameras_json(root / "cameras.json", require_images=False)
        cameras = {view.name: view.camera for view in stored.views}
    found = {}
    for view in scene.views:
        path = next((p for p in _candidates(root, view.name) if p.is_file()), None)
        if path is None or poses[view.name] is None:
            continue
        camera = cameras.get(view.name)
        if camera is None:
            camera = _scaled_camera(path, view.camera, scene.metric)
        if camera.world_from_cam is None:
            camera = camera.replace(world_from_cam=poses[view.name])
        found[view.name] = DepthFile(path, camera, scene.metric)
    return found


def _candidates(root: Path, name: str) -> list[Path]:
    flat = name.replace("/", "__")
    stem = flat.rpartition(".")[0] or flat
    return [root / f"{flat}.npz", root / f"{stem}.npz"]


def _scaled_camera(path: Path, camera: Camera, metric: bool) -> Camera:
    values = read_depth(path, scale=1.0, metric=metric).values
    height, width = values.shape
    if camera.K is None:
        return camera.replace(width=width, height=height, distortion=None)
    K = resize_intrinsics(camera.K, (camera.width, camera.height), (width, height))
    return camera.replace(width=width, height=height, K=K, distortion=None)


def world_points(depth: Depth, camera: Camera) -> tuple[Tensor, Tensor]:
    """Valid pixels of a depth map as world points.

    Returns:
        (N, 3) float64 positions and (N,) int64 indices of their pixels in row-major order.
    """
    if camera.K is None or camera.world_from_cam is None:
        raise InputError("depth can be shown only for a view with a known camera")
    local = depth_to_points(depth.values.to(torch.float64), camera.K).reshape(-1, 3)
    index = torch.nonzero(depth.valid.reshape(-1)).squeeze(1)
    return transform_points(camera.world_from_cam, local[index]), index
