"""A small analytic room (box with a ball in it) for tests of the report and the viewer."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Mesh, PointCloud, Scene, SparsePoints, View
from relief3d.core.seeding import torch_generator
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.colmap import write_colmap_model
from relief3d.io.depth import write_depth
from relief3d.io.images import write_image
from relief3d.io.json_file import write_json
from relief3d.io.ply import write_ply
from relief3d.io.transforms_json import write_transforms_json
from relief3d.report import ReportData, StageTiming, ViewRecord

HALF = torch.tensor([3.0, 2.5, 1.4], dtype=torch.float64)  # the room is [-HALF, HALF], z is up
BALL, RADIUS = torch.tensor([0.3, 0.2, -0.7], dtype=torch.float64), 0.7


def look_at(eye: Tensor, target: Tensor) -> Tensor:
    """(4, 4) world_from_cam, OpenCV axes, z up in the world."""
    forward = (target - eye) / (target - eye).norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    right = right / right.norm()
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = right, torch.linalg.cross(forward, right), forward
    pose[:3, 3] = eye
    return pose


def make_camera(index: int, count: int, width: int, height: int) -> Camera:
    """Camera ``index`` of ``count`` on an ellipse in the room, looking past the ball."""
    angle = 2 * math.pi * index / count
    eye = torch.tensor(
        [2.2 * math.cos(angle), 1.8 * math.sin(angle), 0.3 + 0.3 * math.sin(3 * angle)], dtype=torch.float64
    )
    focal = 0.75 * width
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(width, height, K, look_at(eye, torch.tensor([0.1, 0.1, -0.35], dtype=torch.float64)))


def colour_at(xyz: Tensor, on_ball: Tensor) -> Tensor:
    """(..., 3) RGB of surface points."""
    brick = torch.sin(xyz[..., 0] * 6.0) * torch.sin(xyz[..., 1] * 6.0 + xyz[..., 2] * 3)
    wall = torch.stack([0.72 + 0.12 * brick, 0.66 + 0.1 * torch.sin(xyz[..., 2] * 9), 0.58 - 0.1 * brick], -1)
    floor = torch.where(((xyz[..., 0] * 2).floor() + (xyz[..., 1] * 2).floor()) % 2 > 0, 0.82, 0.38)[
        ..., None
    ]
    floor = floor * torch.tensor([1.0, 0.93, 0.84], dtype=torch.float64)
    out = torch.where((xyz[..., 2:] < -HALF[2] + 1e-6), floor, wall)
    stripes = (torch.sin(14 * xyz[..., 2]) > 0).to(torch.float64)[..., None]
    ball = stripes * torch.tensor([0.85, 0.3, 0.2]) + (1 - stripes) * torch.tensor([0.95, 0.8, 0.3])
    return torch.where(on_ball[..., None], ball, out).clamp(0, 1)


def render(camera: Camera) -> tuple[Tensor, Tensor]:
    """(3, H, W) picture and (H, W) z-depth by intersecting rays with the box and the ball."""
    assert camera.K is not None and camera.world_from_cam is not None
    y, x = torch.meshgrid(torch.arange(camera.height) + 0.5, torch.arange(camera.width) + 0.5, indexing="ij")
    rays = torch.stack([x, y, torch.ones_like(x)], -1).double() @ torch.linalg.inv(camera.K).T
    d, eye = rays @ camera.world_from_cam[:3, :3].T, camera.world_from_cam[:3, 3]
    box = torch.where(d > 0, (HALF - eye) / d, (-HALF - eye) / d).min(dim=-1).values
    a, b = (d * d).sum(-1), (d * (eye - BALL)).sum(-1)
    root = b * b - a * (((eye - BALL) ** 2).sum() - RADIUS**2)
    ball = torch.where(root > 0, (-b - root.clamp_min(0).sqrt()) / a, torch.inf)
    ball = torch.where(ball > 0, ball, torch.inf)
    z = torch.minimum(box, ball)
    return colour_at(eye + z[..., None] * d, ball < box).permute(2, 0, 1).float(), z.float()


def room_mesh(steps: int = 40) -> Mesh:
    """Room walls facing inwards, and the ball facing outwards."""
    vertices, faces, total = [], [], 0
    u, v = torch.meshgrid(torch.linspace(-1, 1, steps), torch.linspace(-1, 1, steps), indexing="ij")
    corner = (torch.arange(steps - 1)[:, None] * steps + torch.arange(steps - 1)).reshape(-1)
    quad = torch.cat(
        [
            torch.stack([corner, corner + 1, corner + steps], 1),
            torch.stack([corner + 1, corner + steps + 1, corner + steps], 1),
        ]
    )
    for axis in range(3):
        for sign in (-1.0, 1.0):
            part = torch.zeros(steps, steps, 3, dtype=torch.float64)
            part[..., axis], part[..., (axis + 1) % 3], part[..., (axis + 2) % 3] = sign, u, v
            vertices.append((part * HALF).reshape(-1, 3))
            faces.append((quad if sign > 0 else quad.flip(1)) + total)
            total += steps * steps
    theta, phi = (u + 1) * math.pi, (v + 1) * math.pi / 2
    ball = torch.stack([phi.sin() * theta.cos(), phi.sin() * theta.sin(), phi.cos()], -1).double()
    vertices.append((ball * RADIUS + BALL).reshape(-1, 3))
    faces.append(quad + total)
    xyz, on_ball = torch.cat(vertices), torch.zeros(total + steps * steps, dtype=torch.bool)
    on_ball[total:] = True
    rgb = (colour_at(xyz, on_ball) * 255).to(torch.uint8)
    return Mesh(xyz.float(), torch.cat(faces).long(), rgb)


def make_scene(views: int = 6, width: int = 96, height: int = 72, lost: int = 1, steps: int = 24) -> Scene:
    """A scene of ``views`` posed views and ``lost`` views without a camera, with points, mesh and sparse model."""
    gen = torch_generator(0)
    out, clouds, colours, confidences = [], [], [], []
    for i in range(views):
        camera = make_camera(i, views, width, height)
        image, z = render(camera)
        confidence = (torch.rand(z.shape, generator=gen) * 0.5 + 0.5) * (z < 4.5)
        depth = Depth.from_values(
            torch.where(confidence > 0.55, z, torch.zeros_like(z)), confidence=confidence
        )
        out.append(View(f"photo_{i + 1:03d}.jpg", camera, image, depth))
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        rays = torch.stack([x, y, torch.ones_like(x)], -1).double() @ torch.linalg.inv(camera.K).T
        xyz = (rays * z[..., None]) @ camera.world_from_cam[:3, :3].T + camera.world_from_cam[:3, 3]
        keep = depth.valid
        (
            clouds.append(xyz[keep]),
            colours.append(image.permute(1, 2, 0)[keep]),
            confidences.append(confidence[keep]),
        )
    for i in range(lost):
        camera = Camera(width, height)
        out.append(View(f"lost_{i + 1}.jpg", camera, torch.rand(3, height, width, generator=gen)))
    xyz, rgb = torch.cat(clouds).float(), (torch.cat(colours) * 255).to(torch.uint8)
    pick = torch.randperm(xyz.shape[0], generator=gen)[:600]
    seen = torch.arange(1200) % max(views, 1)
    sparse = SparsePoints(
        xyz[pick].double(), rgb[pick], torch.rand(600, generator=gen).double() + 0.2,
        torch.arange(1200) // 2, seen, torch.rand(1200, 2, generator=gen).double() * 70,
    )  # fmt: skip
    cloud = PointCloud(xyz, rgb, confidence=torch.cat(confidences))
    return Scene(tuple(out), metric=True, ordered=True, sparse=sparse, points=cloud, mesh=room_mesh(steps))


def make_report(scene: Scene) -> ReportData:
    """A report with every part filled."""
    records = []
    for i, view in enumerate(scene.views):
        posed = view.camera.world_from_cam is not None
        records.append(
            ViewRecord(
                view.name,
                view.image,
                view.depth,
                registered=posed,
                reason=None if posed else "only 7 of its features match any other picture",
                neighbours=[scene.views[j].name for j in range(max(0, i - 2), i)] if posed else (),
                reprojection_error=0.4 + 0.05 * i if posed else None,
                observations=120 + i if posed else None,
            )
        )
    return ReportData(
        scene=scene, views=records, title="A room with a ball",
        summary={
            "command": ["relief3d", "reconstruct", "photos of a room", "-o", "out"], "seed": 0, "seconds": 84.2,
            "peak_memory_bytes": 1_930_000_000, "versions": {"relief3d": "0.1.0", "torch": "2.11"},
            "input": "photos of a room", "config": {"quality": "default", "depth": {"width": 512}},
        },
        stages=[StageTiming("features and matches", 21.4, 900_000_000), StageTiming("cameras", 12.9),
                StageTiming("depth", 39.0, 1_930_000_000), StageTiming("fusion", 8.1),
                StageTiming("report", 2.8, None, "this page")],
        warnings=["1 of the pictures has no camera"],
        evaluation={"camera AUC@5": 97.31, "ATE (% of path)": 0.123, "depth": {"AbsRel": 0.0071}},
        orbit=[v.load_image() for v in scene.views[:2]],
    )  # fmt: skip


def write_output(scene: Scene, folder: Path) -> Path:
    """The files of ``relief3d reconstruct`` for a scene, pictures included."""
    views = [v.replace(path=write_image(folder / "images" / v.name, v.load_image())) for v in scene.views]
    posed = [v for v in views if v.camera.world_from_cam is not None]
    scene = scene.replace(views=tuple(views))
    write_colmap_model(scene, folder / "sparse" / "0")
    write_transforms_json(scene, folder / "transforms.json")
    files = {}
    for view in posed:
        depth = view.load_depth()
        assert depth is not None
        files[view.name] = (write_depth(folder / "depth" / f"{view.name}.npz", depth).name, 1.0)
    maps = tuple(View(v.name, v.camera) for v in posed)
    write_cameras_json(Scene(maps, metric=True), folder / "depth" / "cameras.json", depth=files)
    assert scene.points is not None and scene.mesh is not None
    write_ply(folder / "points.ply", scene.points)
    write_ply(folder / "mesh.ply", scene.mesh)
    write_json(folder / "scene.json", {"metric": True, "views": len(views)})
    return folder
