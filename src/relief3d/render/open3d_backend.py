"""Ray casting with Open3D's ``RaycastingScene`` (Embree). The only module below fusion that imports Open3D.

What Open3D needs from the system: the wheel of ``open3d-cpu`` links libusb-1.0, libGL, libEGL, libX11,
libudev and libidn2. The Python package ``libusb-package`` carries the first and is loaded here before
Open3D is imported; the others come from the packages libgl1, libegl1, libx11-6, libudev1 and libidn2-0 (Debian
names), which desktop systems have. Where one is missing, :func:`load_open3d` says which.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import MissingExtraError
from relief3d.core.optional import available
from relief3d.geometry.projection import pixel_rays
from relief3d.render.protocols import BackFaces, Hits, check_mesh, empty_hits, posed_pinhole

DEBIAN_PACKAGES = {
    "libGL.so": "libgl1",
    "libEGL.so": "libegl1",
    "libX11.so": "libx11-6",
    "libudev.so": "libudev1",
    "libidn2.so": "libidn2-0",
    "libusb-1.0.so": "libusb-1.0-0",
}


@lru_cache(maxsize=1)
def load_open3d() -> ModuleType:
    """Import Open3D, with libusb from the Python package where the system has none.

    Raises:
        MissingExtraError: when Open3D is not installed or a system library is missing; the remedy names it.
    """
    if available("libusb_package"):
        import libusb_package

        path = libusb_package.get_library_path()
        if path is not None:
            # Global visibility and the right soname let the loader satisfy Open3D's own dependency.
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    try:
        return importlib.import_module("open3d")
    except (ImportError, OSError) as exc:
        found = re.search(r"(lib[\w.+-]+?\.so)", str(exc))
        package = DEBIAN_PACKAGES.get(found.group(1)) if found else None
        remedy = (
            f"install the system library, on Debian: apt install {package}"
            if package
            else "pip install 'relief3d[mesh]'"
        )
        raise MissingExtraError(f"Open3D cannot be loaded ({exc})", remedy=remedy) from exc


@lru_cache(maxsize=1)
def open3d_status() -> tuple[bool, str]:
    """Whether Open3D can be used, and why not if it cannot."""
    if not available("open3d"):
        return False, "Open3D is not installed (pip install 'relief3d[mesh]')"
    try:
        module = load_open3d()
    except MissingExtraError as exc:
        return False, str(exc)
    return True, f"Open3D {module.__version__}"


class Open3DRenderer:
    """:class:`~relief3d.render.protocols.DepthRenderer` on Embree through Open3D. CPU only.

    Raises:
        MissingExtraError: when Open3D cannot be used.
    """

    name = "open3d"

    def __init__(self) -> None:
        self._o3d = load_open3d()
        self._mesh: Mesh | None = None
        self._scene: Any = None
        self._rays: tuple[object, Tensor] | None = None

    def render(self, mesh: Mesh, camera: Camera, *, back_faces: BackFaces = "discard") -> Tensor:
        """(H, W) float32 z-depth at pixel centres, 0 where nothing is hit."""
        if back_faces == "cull" or mesh.faces.shape[0] == 0:
            return self.cast(mesh, camera, back_faces=back_faces).depth
        check_mesh(mesh)
        K, cam_from_world = posed_pinhole(camera)
        scene = self._scene_of(mesh)
        # One buffer of rays and one answer per picture: half the time of a cast with faces and weights.
        rotation = cam_from_world[:3, :3]
        rays = torch.empty(camera.height * camera.width, 6)
        rays[:, :3] = -(rotation.T @ cam_from_world[:3, 3]).float()
        rays[:, 3:] = self._directions(K, camera.height, camera.width) @ rotation.float()
        answer = scene.cast_rays(self._o3d.core.Tensor(rays.numpy()))
        depth = torch.from_numpy(answer["t_hit"].numpy())
        keep = torch.isfinite(depth)
        if back_faces == "discard":
            normal = torch.from_numpy(answer["primitive_normals"].numpy())
            keep &= (normal * rays[:, 3:]).sum(-1) < 0
        depth = torch.where(keep, depth, torch.zeros_like(depth))
        return depth.view(camera.height, camera.width)

    def _directions(self, K: Tensor, height: int, width: int) -> Tensor:
        """(H W, 3) float32 rays of a camera with z = 1; those of the last intrinsics are kept."""
        key = (tuple(K.flatten().tolist()), height, width)
        if self._rays is None or self._rays[0] != key:
            self._rays = (key, pixel_rays(K, height, width).view(-1, 3).float())
        return self._rays[1]

    def cast(self, mesh: Mesh, camera: Camera, *, back_faces: BackFaces = "discard") -> Hits:
        """First hits of the pixel rays; the ray tree of the last mesh is kept for the next camera."""
        check_mesh(mesh)
        K, cam_from_world = posed_pinhole(camera)
        height, width = camera.height, camera.width
        out = empty_hits(height, width, torch.device("cpu"))
        if mesh.faces.shape[0] == 0:
            return out
        scene = self._scene_of(mesh)
        # Directions have camera-frame z = 1, so the hit parameter is the z-depth.
        directions = pixel_rays(K, height, width).view(-1, 3)
        rotation = cam_from_world[:3, :3]
        directions = (directions @ rotation).to(torch.float32)
        centre = -(rotation.T @ cam_from_world[:3, 3]).to(torch.float32)
        todo = torch.arange(height * width)
        start = torch.zeros(height * width)
        for _ in range(64 if back_faces == "cull" else 1):
            heading = directions[todo]
            rays = torch.cat((centre + start[todo, None] * heading, heading), -1).numpy()
            answer = scene.cast_rays(self._o3d.core.Tensor(np.ascontiguousarray(rays)))
            t = torch.from_numpy(answer["t_hit"].numpy())
            hit = torch.isfinite(t)
            normal = torch.from_numpy(answer["primitive_normals"].numpy())
            front = hit & ((normal * heading).sum(-1) < 0)
            keep = hit if back_faces == "keep" else front
            pixel = todo[keep]
            uv = torch.from_numpy(answer["primitive_uvs"].numpy())[keep]
            out.depth.view(-1)[pixel] = t[keep] + start[pixel]
            face = torch.from_numpy(answer["primitive_ids"].numpy().astype(np.int64))[keep]
            out.face.view(-1)[pixel] = face
            out.barycentric.view(-1, 3)[pixel] = torch.stack((1 - uv.sum(-1), uv[:, 0], uv[:, 1]), -1)
            behind = todo[hit & ~front]
            if back_faces != "cull" or behind.numel() == 0:
                break
            start[behind] += t[hit & ~front] * (1 + 1e-5) + 1e-6
            todo = behind
        return out

    def _scene_of(self, mesh: Mesh) -> Any:
        if self._mesh is not mesh:
            core = self._o3d.core
            scene = self._o3d.t.geometry.RaycastingScene()
            vertices = mesh.vertices.detach().cpu().to(torch.float32).contiguous().numpy()
            faces = mesh.faces.detach().cpu().to(torch.int32).contiguous().numpy().astype(np.uint32)
            scene.add_triangles(core.Tensor(vertices), core.Tensor(faces))
            self._scene, self._mesh = scene, mesh
        return self._scene
