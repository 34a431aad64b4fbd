"""A network that knows the truth: exact cameras and depth of a simple room, in a similarity frame of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Mesh, Prediction, Scene, View
from relief3d.core.seeding import derive_seed
from relief3d.geometry.projection import depth_to_world_points
from relief3d.geometry.transforms import look_at, sim3_exp, split_similarity
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.depth import write_depth
from relief3d.io.images import write_image
from relief3d.io.ply import write_ply
from relief3d.models.multiview.interface import Known
from relief3d.models.multiview.preprocess import Mode
from relief3d.render.rasterizer import TorchRenderer


@dataclass(frozen=True)
class Room:
    """Views of a room with their exact truth."""

    mesh: Mesh
    cameras: tuple[Camera, ...]
    images: tuple[Tensor, ...]

    @property
    def names(self) -> list[str]:
        return [f"view_{i:02d}.png" for i in range(len(self.cameras))]

    def depth(self, camera: Camera) -> Tensor:
        """(H, W) exact z-depth at pixel centres."""
        return TorchRenderer().render(self.mesh, camera)

    def scene(self) -> Scene:
        """Pictures alone, as a user has them."""
        return Scene(
            tuple(
                View(n, Camera(c.width, c.height), image=i)
                for n, c, i in zip(self.names, self.cameras, self.images)
            ),
            ordered=True,
        )

    def write(self, root: Path) -> Path:
        """``photos`` and ``truth`` below ``root``; returns the truth's cameras.json."""
        (root / "photos").mkdir(parents=True)
        (root / "truth").mkdir()
        files = {}
        for name, camera, image in zip(self.names, self.cameras, self.images):
            write_image(root / "photos" / name, image)
            stem = Path(name).with_suffix(".npz").name
            write_depth(root / "truth" / stem, Depth.from_values(self.depth(camera)))
            files[name] = (stem, 1.0)
        known = Scene(tuple(View(n, c) for n, c in zip(self.names, self.cameras)), metric=True)
        write_cameras_json(known, root / "truth" / "cameras.json", depth=files)
        write_ply(root / "truth" / "mesh.ply", self.mesh)
        return root / "truth" / "cameras.json"


def make_room(sizes: Sequence[tuple[int, int]]) -> Room:
    """One view per (width, height), 7 degrees apart on an arc through a room of 4 x 3 x 4 m with three boxes."""
    parts = [
        _box((0, 0, 0), (4, 3, 4), inward=True),
        _box((0.5, 1.0, 0.3), (0.7, 1.0, 0.6)),
        _box((-0.7, 1.2, 0.1), (0.5, 0.6, 0.9)),
        _box((0.0, 0.95, 1.0), (1.6, 1.1, 0.5)),
    ]
    vertices = torch.cat([v for v, _ in parts])
    faces = torch.cat([f + 8 * i for i, (_, f) in enumerate(parts)])
    mesh = Mesh(vertices, faces)
    cameras, images = [], []
    for i, (width, height) in enumerate(sizes):
        a = math.radians(7.0 * (i - (len(sizes) - 1) / 2))
        eye = torch.tensor(
            [1.7 * math.sin(a), 0.1 * math.sin(3.0 * i), -1.7 * math.cos(a)], dtype=torch.float64
        )
        target, up = torch.tensor([[0.0, 0.6, 0.2], [0.0, -1.0, 0.0]], dtype=torch.float64)
        focal = 0.82 * max(width, height)
        # Off the middle: a map that assumes the middle must fail.
        K = torch.tensor(
            [[focal, 0, width / 2 + 2.0], [0, focal, height / 2 - 1.5], [0, 0, 1]], dtype=torch.float64
        )
        cameras.append(Camera(width, height, K, look_at(eye, target, up)))
        images.append(_picture(mesh, cameras[-1]))
    return Room(mesh, tuple(cameras), tuple(images))


def _box(
    centre: tuple[float, float, float], size: tuple[float, float, float], inward: bool = False
) -> tuple[Tensor, Tensor]:
    """Corners (8, 3) and triangles (12, 3), seen from outside or from inside."""
    signs = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=torch.float32)
    corners = torch.tensor(centre) + signs * torch.tensor(size) / 2
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return corners, faces.flip(-1) if inward else faces


def _picture(mesh: Mesh, camera: Camera) -> Tensor:
    """(3, H, W) surfaces painted by their position in space; box and wall differ in brightness. Eight-bit values."""
    hits = TorchRenderer().cast(mesh, camera)
    assert camera.K is not None and camera.world_from_cam is not None
    xyz = depth_to_world_points(hits.depth.double(), camera.K, camera.world_from_cam).float()
    waves = torch.stack(
        [(xyz * torch.tensor(f)).sum(-1).sin() for f in ((9.0, 5, 7), (23, 17, 11), (5, 13, 19))]
    )
    blocks = torch.frac((xyz * 6).floor().mul(torch.tensor([0.37, 0.71, 0.53])).sum(-1) * 7.13)
    boxes = (hits.face >= 12).float()
    image = 0.35 + 0.3 * boxes + 0.12 * waves + 0.15 * (blocks - 0.5)
    return (image.clamp(0, 1) * 255).round() / 255


@dataclass
class Oracle:
    """Truth in a random similarity frame per pass; knows a picture by its looks.

    Args:
        room: the truth.
        prepared: (N, 3, H, W) pictures as the network gets them, to recognise them by.
        affine: per view the (3, 3) map from original to network pixels, worked out by the test.
        mode: how its pictures are prepared.
        spoil: changes predictions, for tests of broken networks.
    """

    room: Room
    prepared: Tensor
    affine: Callable[[int], Tensor]
    mode: Mode = "keep"
    spoil: Callable[[Prediction, list[int]], Prediction] | None = None
    name: str = "oracle"
    patch: int = 14
    takes: frozenset[str] = frozenset()
    passes: list[list[int]] = field(default_factory=list)

    @property
    def prepare_mode(self) -> Mode:
        return self.mode

    def recognise(self, image: Tensor) -> int:
        distance = (self.prepared - image[None]).square().flatten(1).mean(-1)
        assert float(distance.min()) < 1e-6, "a picture was prepared differently"
        return int(distance.argmin())

    def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
        numbers = [self.recognise(i) for i in images[0]]
        self.passes.append(numbers)
        height, width = images.shape[-2:]
        generator = torch.Generator().manual_seed(derive_seed(1, *numbers))
        frame = sim3_exp(torch.randn(7, generator=generator, dtype=torch.float64) * 0.4)
        s, R, t = split_similarity(frame)
        depths, K, poses = [], [], []
        for number in numbers:
            true = self.room.cameras[number]
            assert true.K is not None and true.world_from_cam is not None
            K.append(self.affine(number) @ true.K)
            seen = Camera(width, height, K[-1], true.world_from_cam)
            depths.append(self.room.depth(seen) * float(s))
            pose = true.world_from_cam.clone()
            pose[:3, :3], pose[:3, 3] = R @ pose[:3, :3], s * R @ pose[:3, 3] + t
            poses.append(pose)
        depth = torch.stack(depths)[None]
        out = Prediction(
            depth=depth,
            depth_confidence=torch.full_like(depth, 0.8),
            K=torch.stack(K)[None],
            world_from_cam=torch.stack(poses)[None],
        )
        return out if self.spoil is None else self.spoil(out, numbers)


def scaling(x: float, y: float, shift_x: float = 0.0, shift_y: float = 0.0) -> Tensor:
    """(3, 3) affine map of pixels."""
    return torch.tensor([[x, 0, shift_x], [0, y, shift_y], [0, 0, 1]], dtype=torch.float64)
