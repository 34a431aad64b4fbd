"""Tiny copies of the public layouts of scanned scenes: a wall seen by a moving camera."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from relief3d.core.contract import Mesh, PointCloud
from relief3d.io.ply import write_ply


def wall(z: float = 2.0, n: int = 21, half: float = 1.0, x0: float = 0.0, facing: int = -1) -> Mesh:
    """A square of triangles at height z that faces a camera at the origin looking along +z."""
    gx, gy = torch.meshgrid(
        torch.linspace(-half, half, n) + x0, torch.linspace(-half, half, n), indexing="ij"
    )
    vertices = torch.stack((gx, gy, torch.full_like(gx, z)), -1).reshape(-1, 3)
    i = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).reshape(-1)
    up = torch.cat((torch.stack((i, i + n, i + n + 1), -1), torch.stack((i, i + n + 1, i + 1), -1)))
    return Mesh(vertices, up if facing > 0 else up.flip(1))


def join(*meshes: Mesh) -> Mesh:
    """Several meshes as one."""
    faces, count = [], 0
    for mesh in meshes:
        faces.append(mesh.faces + count)
        count += mesh.vertices.shape[0]
    return Mesh(torch.cat([m.vertices for m in meshes]), torch.cat(faces))


def pose(x: float = 0.0, y: float = 0.0, z: float = 0.0, degrees: float = 0.0) -> Tensor:
    """world_from_cam, turned about the vertical axis."""
    a = math.radians(degrees)
    out = torch.eye(4, dtype=torch.float64)
    out[0, 0] = out[2, 2] = math.cos(a)
    out[0, 2], out[2, 0] = math.sin(a), -math.sin(a)
    out[:3, 3] = torch.tensor([x, y, z], dtype=torch.float64)
    return out


def write_matrix(path: Path, matrix: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(" ".join(f"{v:.9f}" for v in row) for row in matrix.tolist()) + "\n")


def write_depth16(path: Path, values: np.ndarray, units_per_metre: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(values * units_per_metre).astype(np.uint16)).save(path)


def write_color(path: Path, width: int, height: int, level: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (level, 40, 90)).save(path)


DEPTH_K = torch.tensor([[500.0, 0, 319.5, 0], [0, 500.0, 239.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_scannet(
    root: Path,
    name: str = "scene0707_00",
    poses: dict[int, Tensor] | None = None,
    depths: dict[int, np.ndarray] | None = None,
    *,
    reference: bool = True,
) -> Path:
    """One exported scan of a wall 2 m away, and its reference data; returns the scan's folder."""
    folder = root / "scans" / name
    poses = {0: pose(), 1: pose(0.2)} if poses is None else poses
    for number, matrix in poses.items():
        write_matrix(folder / "pose" / f"{number}.txt", matrix)
        write_color(folder / "color" / f"{number}.jpg", 64, 48)
        values = (depths or {}).get(number, np.full((480, 640), 2.0))
        write_depth16(folder / "depth" / f"{number}.png", values, 1000)
    write_matrix(folder / "intrinsic" / "intrinsic_depth.txt", DEPTH_K)
    color = DEPTH_K.clone()
    color[:2] *= 0.1
    color[0, 2], color[1, 2] = 31.5, 23.5
    write_matrix(folder / "intrinsic" / "intrinsic_color.txt", color)
    write_ply(folder / f"{name}_vh_clean_2.ply", wall())
    if reference:
        write_ply(root / "groundtruth" / name / "mesh_gt.ply", wall())
        mask = np.zeros((31, 31, 41), dtype=np.uint8)
        mask[20:] = 1
        np.save(root / "groundtruth" / name / "occlusion_mask.npy", mask)
        world2grid = torch.eye(4)
        world2grid[:3, :3] *= 10
        world2grid[:3, 3] = 15
        world2grid[2, 3] = 0
        write_matrix(root / "groundtruth" / name / "world2grid.txt", world2grid)
    return folder


def write_tum(
    root: Path, sequence: str, depth_times: list[float], gaps: dict[str, float] | None = None
) -> Path:
    """A sequence whose pictures and poses stand at the depth times plus the gaps."""
    folder = root / f"rgbd_dataset_{sequence}"
    gaps = gaps or {}
    lists: dict[str, list[str]] = {"rgb": ["# color images"], "depth": ["# depth maps"]}
    path = ["# ground truth trajectory"]
    for i, when in enumerate(depth_times):
        write_depth16(folder / "depth" / f"{when:.6f}.png", np.full((480, 640), 2.0), 5000)
        write_color(folder / "rgb" / f"{when:.6f}.png", 640, 480, 20 + i)
        lists["depth"].append(f"{when:.6f} depth/{when:.6f}.png")
        lists["rgb"].append(f"{when + gaps.get('rgb', 0.0):.6f} rgb/{when:.6f}.png")
        path.append(f"{when + gaps.get('pose', 0.0):.6f} {0.1 * i} 0 0 0 0 0 1")
    for kind, lines in lists.items():
        (folder / f"{kind}.txt").write_text("\n".join(lines) + "\n")
    (folder / "groundtruth.txt").write_text("\n".join(path) + "\n")
    return folder


def log_text(poses: list[Tensor]) -> str:
    lines = []
    for i, matrix in enumerate(poses):
        lines.append(f"{i} {i} 0")
        lines += [" ".join(f"{v:.12f}" for v in row) for row in matrix.tolist()]
    return "\n".join(lines) + "\n"


def write_tanks(root: Path, name: str, poses: list[Tensor], trans: Tensor, scan: Tensor) -> Path:
    """Evaluation data of one scene with a square crop polygon of 1.6 m around the axis."""
    folder = root / name
    folder.mkdir(parents=True)
    write_ply(folder / f"{name}.ply", PointCloud(scan.float()))
    corners = [[-0.8, -0.8, 0], [0.8, -0.8, 0], [0.8, 0.8, 0], [-0.8, 0.8, 0]]
    content = {"class_name": "SelectionPolygonVolume", "version_major": 1, "version_minor": 0}
    content |= {"orthogonal_axis": "Z", "axis_min": 1.0, "axis_max": 3.0, "bounding_polygon": corners}
    (folder / f"{name}.json").write_text(json.dumps(content))
    write_matrix(folder / f"{name}_trans.txt", trans)
    (folder / f"{name}_COLMAP_SfM.log").write_text(log_text(poses))
    for i in range(len(poses)):
        write_color(folder / "images" / f"{i + 1:06d}.jpg", 32, 24)
    return folder
