"""Fusion and nearest neighbours with Open3D: the fast back end.

Open3D's defaults are never relied on: depth scale, depth limit, truncation and weight threshold are
always passed, a frame without depth is skipped before Open3D can raise, few blocks are reserved (they
grow), and rendering goes through :mod:`relief3d.render`, never through ``VoxelBlockGrid.ray_cast``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError, RunError
from relief3d.fusion.block_update import (
    Volume,
    integrate_blocks,
    touched_blocks,
    unpack_blocks,
    voxel_offsets,
)
from relief3d.fusion.protocols import check_frame, empty_mesh, usable_depth
from relief3d.render.open3d_backend import load_open3d

_START_BLOCKS = 2048


class Open3DFuser:
    """:class:`~relief3d.fusion.protocols.Fuser` on Open3D's ``VoxelBlockGrid``. CPU.

    Unweighted frames are integrated by Open3D. Open3D knows no weights per pixel, so weighted frames are
    integrated by :func:`relief3d.fusion.block_update.integrate_blocks` in the same memory, about ten times slower.

    Args:
        voxel_size: in world units.
        truncation_voxels: half width of the band in voxels.
        max_depth: depths beyond are ignored, world units.
        with_color: keep colours.
        max_bytes: largest size of the volume.
        block_resolution: voxels along the edge of a block.

    Raises:
        MissingExtraError: when Open3D cannot be used.
        InputError: for a voxel size that is not positive.
    """

    name = "open3d"

    def __init__(
        self,
        voxel_size: float,
        truncation_voxels: float = 4.0,
        *,
        max_depth: float = float("inf"),
        with_color: bool = True,
        max_bytes: int = 2 * 1024**3,
        block_resolution: int = 8,
    ) -> None:
        if not voxel_size > 0 or not truncation_voxels > 0:
            raise InputError("voxel size and truncation must be positive")
        self._o3d = load_open3d()
        core = self._o3d.core
        self.voxel_size = float(voxel_size)
        self.truncation = float(voxel_size * truncation_voxels)
        self.frames = 0
        self.max_depth = max_depth
        self.max_bytes = max_bytes
        self._multiplier = float(truncation_voxels)
        self._with_color = with_color
        self._resolution = block_resolution
        self._offsets = voxel_offsets(block_resolution, torch.device("cpu"), x_fastest=True)
        self._block_bytes = block_resolution**3 * (20 if with_color else 8)
        names = ("tsdf", "weight", "color") if with_color else ("tsdf", "weight")
        self._grid = self._o3d.t.geometry.VoxelBlockGrid(
            attr_names=names,
            attr_dtypes=(core.float32,) * len(names),
            attr_channels=((1), (1), (3))[: len(names)],
            voxel_size=self.voxel_size,
            block_resolution=block_resolution,
            block_count=max(16, min(_START_BLOCKS, max_bytes // self._block_bytes)),
        )

    def memory_bytes(self) -> int:
        """Bytes held by the volume."""
        return int(self._grid.hashmap().capacity()) * self._block_bytes

    def integrate(
        self,
        depth: Tensor,
        K: Tensor,
        cam_from_world: Tensor,
        color: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> bool:
        """Add one depth map; see :meth:`relief3d.fusion.protocols.Fuser.integrate`.

        Raises:
            InputError: for inconsistent shapes.
            RunError: when the volume would outgrow ``max_bytes``.
        """
        check_frame(depth, color)
        depth = usable_depth(depth, weight, self.max_depth).cpu()
        if not bool((depth > 0).any()):
            return False
        core, geometry = self._o3d.core, self._o3d.t.geometry
        image = geometry.Image(core.Tensor(np.ascontiguousarray(depth.numpy()[..., None])))
        K64 = K.detach().cpu().to(torch.float64)
        # Integration truncates projected pixels, so it wants centres at +0.5 as they are here.
        intrinsics = core.Tensor(np.ascontiguousarray(K64.numpy()))
        pose64 = cam_from_world.detach().cpu().to(torch.float64)
        pose = core.Tensor(np.ascontiguousarray(pose64.numpy()))
        limit = float(depth.max()) * 1.001
        settings = (1.0, limit, self._multiplier)
        # Open3D's own search looks at every fourth pixel and leaves holes in surfaces seen at grazing angles.
        keys = touched_blocks(depth, K64, pose64, self.voxel_size * self._resolution, self.truncation)
        blocks = core.Tensor(unpack_blocks(keys).to(torch.int32).numpy())
        needed = int(self._grid.hashmap().size()) + len(blocks)
        if needed * self._block_bytes > self.max_bytes:
            _, known = self._grid.hashmap().find(blocks)
            needed -= int(known.numpy().sum())
            if needed * self._block_bytes > self.max_bytes:
                raise RunError(
                    f"the volume needs more than {self.max_bytes / 1024**3:.1f} GiB at voxel size "
                    f"{self.voxel_size:g}",
                    remedy="use a larger voxel size or a smaller depth limit",
                )
        if weight is not None or (self._with_color and color is None):
            self._integrate_weighted(blocks, depth, K64, pose64, color, weight)
        elif self._with_color and color is not None:
            tint = color.detach().cpu().to(torch.float32).clamp(0, 1).contiguous().numpy()
            self._grid.integrate(
                blocks, image, geometry.Image(core.Tensor(tint)), intrinsics, intrinsics, pose, *settings
            )
        else:
            self._grid.integrate(blocks, image, intrinsics, pose, *settings)
        self.frames += 1
        return True

    def _integrate_weighted(
        self,
        blocks: Any,
        depth: Tensor,
        K: Tensor,
        cam_from_world: Tensor,
        color: Tensor | None,
        weight: Tensor | None,
    ) -> None:
        table = self._grid.hashmap()
        table.activate(blocks)
        rows, _ = table.find(blocks)
        volume = self._views()
        integrate_blocks(
            volume,
            torch.from_numpy(rows.numpy().astype(np.int64)),
            torch.from_numpy(blocks.numpy().astype(np.int64)),
            self._offsets,
            self.voxel_size,
            self.truncation,
            depth,
            K,
            cam_from_world,
            None if color is None else color.detach().cpu().to(torch.float32) * 255.0,
            None if weight is None else weight.detach().cpu().to(torch.float32),
        )

    def _views(self) -> Volume:
        """Torch views of Open3D's own memory."""
        voxels = self._resolution**3

        def view(name: str) -> Tensor:
            return torch.from_numpy(self._grid.attribute(name).numpy())

        color = view("color").view(-1, voxels, 3) if self._with_color else None
        return Volume(view("tsdf").view(-1, voxels), view("weight").view(-1, voxels), color)

    def extract(self, min_weight: float = 1.0) -> Mesh:
        """The surface among voxels of at least ``min_weight``; see the protocol."""
        if self.frames == 0:
            return empty_mesh()
        # Open3D keeps voxels whose weight is strictly above its threshold.
        mesh = self._grid.extract_triangle_mesh(weight_threshold=max(0.0, min_weight - 1e-4))
        if "indices" not in mesh.triangle or len(mesh.triangle["indices"]) == 0:
            return empty_mesh()
        vertices = torch.from_numpy(mesh.vertex["positions"].numpy().astype(np.float32))
        faces = torch.from_numpy(mesh.triangle["indices"].numpy().astype(np.int64))
        rgb = None
        if self._with_color:
            tint = torch.from_numpy(mesh.vertex["colors"].numpy().astype(np.float32))
            rgb = tint.mul(255).round().clamp(0, 255).to(torch.uint8)
        return _sorted(Mesh(vertices, faces, rgb=rgb))


def _sorted(mesh: Mesh) -> Mesh:
    """The same mesh with vertices and faces in a fixed order; Open3D's depends on the timing of its threads."""
    order = torch.from_numpy(np.lexsort(mesh.vertices.numpy().T[::-1]).astype(np.int64))
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    faces = rank[mesh.faces]
    first = faces.argmin(1, keepdim=True)
    faces = torch.gather(faces, 1, (first + torch.arange(3)) % 3)  # turned, so the winding stays
    faces = faces[torch.from_numpy(np.lexsort(faces.numpy().T[::-1]).astype(np.int64))]
    return Mesh(mesh.vertices[order], faces, rgb=None if mesh.rgb is None else mesh.rgb[order])


def nearest_distances(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N,) float64 and index (N,) int64 of the nearest of (M, 3) points for each of (N, 3).

    Raises:
        MissingExtraError: when Open3D cannot be used.
    """
    o3d = load_open3d()
    data = np.ascontiguousarray(reference.detach().cpu().to(torch.float64).numpy())
    search = o3d.core.nns.NearestNeighborSearch(o3d.core.Tensor(data))
    search.knn_index()
    asked = np.ascontiguousarray(query.detach().cpu().to(torch.float64).numpy())
    index, squared = search.knn_search(o3d.core.Tensor(asked), 1)
    distance = torch.from_numpy(squared.numpy().reshape(-1).copy()).clamp_min(0).sqrt()
    return distance, torch.from_numpy(index.numpy().reshape(-1).astype(np.int64))


def decimate(mesh: Mesh, target_faces: int) -> Mesh:
    """Quadric decimation (Garland and Heckbert, 1997) to about ``target_faces``; vertex colours are kept.

    Raises:
        MissingExtraError: when Open3D cannot be used.
    """
    o3d = load_open3d()
    legacy = o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(mesh.vertices.detach().cpu().double().numpy()),
        o3d.utility.Vector3iVector(mesh.faces.detach().cpu().to(torch.int32).numpy()),
    )
    if mesh.rgb is not None:
        legacy.vertex_colors = o3d.utility.Vector3dVector(mesh.rgb.cpu().double().numpy() / 255.0)
    # A large boundary weight keeps the rims of open scans in place.
    small = legacy.simplify_quadric_decimation(int(target_faces), boundary_weight=10.0)
    rgb = None
    if mesh.rgb is not None:
        tint = torch.from_numpy(np.asarray(small.vertex_colors)).float()
        rgb = tint.mul(255).round().clamp(0, 255).to(torch.uint8)
    return Mesh(
        torch.from_numpy(np.asarray(small.vertices)).float(),
        torch.from_numpy(np.asarray(small.triangles)).to(torch.int64),
        rgb=rgb,
    )
