"""Known points seen by known cameras, with a projection written without any code of relief3d.

The formulas follow OpenCV's documentation: pixel (0.5, 0.5) is the centre of the top-left pixel.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from relief3d.core.contract import Camera, Distortion, Mesh, PointCloud, Scene, SparsePoints, View

Array = NDArray[np.float64]

PERSPECTIVE_LENSES: tuple[Distortion | None, ...] = (
    None,
    Distortion("opencv", (-0.11, 0.03, 0.002, -0.0015)),
    Distortion("opencv", (0.08, -0.02, -0.001, 0.002, 0.004)),
    None,
)
RATIONAL_LENS = Distortion("opencv", (-0.2, 0.05, 0.001, -0.002, 0.003, 0.04, -0.01, 0.002))
FISHEYE_LENSES: tuple[Distortion | None, ...] = (
    Distortion("fisheye", (0.03, -0.006, 0.001, -0.0002)),
    Distortion("fisheye", (-0.02, 0.004, 0.0, 0.0)),
)


def project(xyz: Array, K: Array, world_from_cam: Array, lens: Distortion | None) -> Array:
    """(N, 2) pixels of world points (N, 3): the naive formulas, in float64."""
    cam = (xyz - world_from_cam[:3, 3]) @ world_from_cam[:3, :3]
    x, y = cam[:, 0] / cam[:, 2], cam[:, 1] / cam[:, 2]
    if lens is not None and lens.model == "opencv":
        k1, k2, p1, p2, k3, k4, k5, k6 = (*lens.params, 0.0, 0.0, 0.0, 0.0)[:8]
        r2 = x**2 + y**2
        radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
        x, y = (
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
            y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
        )
    elif lens is not None:
        k1, k2, k3, k4 = lens.params
        r = np.hypot(x, y)
        a = np.arctan(r)
        factor = a * (1 + k1 * a**2 + k2 * a**4 + k3 * a**6 + k4 * a**8) / np.where(r > 0, r, 1)
        x, y = x * factor, y * factor
    return np.stack([K[0, 0] * x + K[0, 2], K[1, 1] * y + K[1, 2]], axis=1)


def project_camera(xyz: Array, camera: Camera) -> Array:
    """(N, 2) pixels through a contract camera."""
    assert camera.K is not None and camera.world_from_cam is not None
    return project(xyz, camera.K.numpy(), camera.world_from_cam.numpy(), camera.distortion)


def rotation(axis: tuple[float, float, float], degrees: float) -> Array:
    """(3, 3) rotation by Rodrigues' formula."""
    a = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]])
    t = np.deg2rad(degrees)
    return np.asarray(np.eye(3) + np.sin(t) * cross + (1 - np.cos(t)) * cross @ cross)


def known_points(count: int = 100) -> Array:
    """(N, 3) points around (0, 0, 5), exactly representable as float32."""
    generator = np.random.default_rng(7)
    xyz = generator.uniform([-1.2, -0.9, 4.0], [1.2, 0.9, 6.0], (count, 3))
    return xyz.astype(np.float32).astype(np.float64)


def known_scene(lenses: tuple[Distortion | None, ...] = PERSPECTIVE_LENSES, *, count: int = 100) -> Scene:
    """Cameras with non-square pixels, off-centre principal points, two sizes and all-axes rotations.

    The sparse points carry their exact observations; points have normals, colours and confidence.
    """
    xyz = known_points(count)
    generator = np.random.default_rng(11)
    views, seen = [], []
    for index, lens in enumerate(lenses):
        width, height = (640, 480) if index % 2 == 0 else (300, 520)
        K = np.array([[410.3 + 7 * index, 0, 0.5 * width + 13.7], [0, 437.9, 0.5 * height - 9.2], [0, 0, 1]])
        pose = np.eye(4)
        pose[:3, :3] = rotation((0.3, 1.0, -0.2), -8.0 + 5.0 * index) @ rotation((0, 0, 1), 30.0 * index)
        pose[:3, 3] = (0.4 * index - 0.5, 0.15 * index, -0.2 * index)
        camera = Camera(width, height, torch.from_numpy(K), torch.from_numpy(pose), lens)
        views.append(View(f"images/view_{index}.png", camera, time=0.25 * index))
        seen.append(project_camera(xyz, camera))
    points = torch.from_numpy(xyz)
    rgb = torch.from_numpy(generator.integers(0, 256, (count, 3), dtype=np.uint8))
    normals = torch.nn.functional.normalize(torch.from_numpy(generator.normal(size=(count, 3))), dim=1)
    sparse = SparsePoints(
        xyz=points,
        rgb=rgb,
        error=torch.zeros(count, dtype=torch.float64),
        obs_point=torch.arange(count).repeat(len(lenses)),
        obs_view=torch.arange(len(lenses)).repeat_interleave(count),
        obs_xy=torch.from_numpy(np.concatenate(seen)),
    )
    confidence = torch.from_numpy(generator.uniform(size=count).astype(np.float32))
    cloud = PointCloud(points.to(torch.float32), rgb, normals.to(torch.float32), confidence)
    faces = torch.from_numpy(generator.permuted(np.tile(np.arange(count), (count, 1)), axis=1)[:, :3].copy())
    mesh = Mesh(cloud.xyz, faces, rgb, cloud.normals)
    return Scene(tuple(views), metric=True, ordered=True, sparse=sparse, points=cloud, mesh=mesh)


def textured_mesh(seed: int = 0) -> Mesh:
    """A grid with uv and a small procedural texture."""
    generator = np.random.default_rng(seed)
    n = 9
    v, u = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij")
    z = 0.2 * np.sin(4 * u) * np.cos(3 * v)
    xyz = np.stack([u, v, z], axis=-1).reshape(-1, 3).astype(np.float32)
    a = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).reshape(-1)
    faces = np.concatenate([np.stack([a, a + 1, a + n], 1), np.stack([a + 1, a + n + 1, a + n], 1)])
    texture = generator.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    uv = np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32)
    tensors = [torch.from_numpy(array) for array in (xyz, faces, uv, texture)]
    return Mesh(tensors[0], tensors[1], uv=tensors[2], texture=tensors[3])
