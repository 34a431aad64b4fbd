"""Single pictures of procedural worlds with exact depth, rendered once and read many times.

Rendering costs more than a training step of a small network, so a set is rendered ahead, in one file per world
that is complete or absent: an interrupted rendering goes on where it stopped, and several processes may render
one set. A set's folder is named by its parameters, so that two different sets never mix.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, track
from relief3d.core.seeding import derive_seed, numpy_generator, torch_generator
from relief3d.io.atomic import write_bytes
from relief3d.worlds.config import Family, WorldConfig
from relief3d.worlds.effects import CameraEffects, apply_effects
from relief3d.worlds.generate import make_bank, make_worlds
from relief3d.worlds.ranging import lidar_scan, radar_scan
from relief3d.worlds.sequences import make_sequences
from relief3d.worlds.textures import TextureBank
from relief3d.worlds.world import World

FORMAT = 1
_RADAR = 96
_FORWARD = ((0.0, -1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 0.0, 0.0))
"""Sensor axes (x forward, y left, z up) to camera axes (x right, y down, z forward)."""


@dataclass(frozen=True)
class PictureSet:
    """Parameters of a set; every value is plain and part of its name.

    Attributes:
        families: of worlds, in equal shares.
        worlds: number of worlds per family.
        views: pictures per world.
        size: height and width in pixels.
        fov: range of the horizontal field of view in degrees, drawn uniformly in the focal length's logarithm.
        roll: largest turn about the optical axis in degrees.
        lidar: rows and columns of rays cast over the field of view, from a place beside the camera; (0, 0) for none.
        beside: largest distance of lidar and radar from the camera in metres.
        texture_size: pixels per side of texture pictures.
        seed: of everything.
    """

    families: tuple[Family, ...] = ("room", "objects", "outdoor", "street")
    worlds: int = 500
    views: int = 4
    size: tuple[int, int] = (128, 160)
    fov: tuple[float, float] = (35.0, 100.0)
    roll: float = 8.0
    lidar: tuple[int, int] = (32, 96)
    beside: float = 0.3
    texture_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.families or self.worlds < 1 or self.views < 2:
            raise InputError("a set of pictures needs a family, a world and two views per world")
        if not 1 < self.fov[0] <= self.fov[1] < 175:
            raise InputError(f"fields of view from {self.fov[0]} to {self.fov[1]} degrees make no camera")

    @property
    def digest(self) -> str:
        """Name of the set: a hash of the format and of all parameters but the number of worlds, since a smaller set is
        the first part of a larger one.
        """
        text = json.dumps({"format": FORMAT, **asdict(self), "worlds": None}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.families) * self.worlds * self.views

    def place(self, world: int) -> tuple[Family, int]:
        """Family and number within it; families alternate, so that the first part of a set is balanced."""
        return self.families[world % len(self.families)], world // len(self.families)


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size. V is their number.

    Attributes:
        image: (V, 3, H, W) uint8.
        depth: (V, H, W) float32 z-depth in metres, 0 for sky.
        normals: (V, 3, H, W) int8, unit normals in the camera frame times 127.
        albedo: (V, H, W) uint8, luminance of the linear albedo times 255.
        K: (V, 3, 3) pixels.
        lidar: (V, R, 3) float32 raw returns in the camera frame, metres; NaN for none.
        radar: (V, 96, 3) likewise; heights are not measured and stand at the sensor's.
        names: of the pictures.
    """

    image: Tensor
    depth: Tensor
    normals: Tensor
    albedo: Tensor
    K: Tensor
    lidar: Tensor
    radar: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All but the names."""
        return {name: getattr(self, name) for name in _TENSORS}


_TENSORS = ("image", "depth", "normals", "albedo", "K", "lidar", "radar")


def _render(rule: PictureSet, world: World, family: Family, own: int, seed: int) -> Pictures:
    height, width = rule.size
    path = make_sequences(world, views=rule.views, seed=derive_seed(seed, "path"), size=rule.size)
    rng = numpy_generator(derive_seed(seed, "cameras"))
    pose = path.world_from_cam[0].clone()
    K = torch.zeros(rule.views, 3, 3)
    for view in range(rule.views):
        low, high = (0.5 * width / math.tan(math.radians(f) / 2) for f in rule.fov)
        focal = math.exp(rng.uniform(math.log(high), math.log(low)))
        centre = np.array([width, height]) * (0.5 + rng.uniform(-0.02, 0.02, 2))
        K[view] = torch.tensor([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
        angle = math.radians(rng.uniform(-rule.roll, rule.roll))
        turn = torch.eye(4)
        turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        pose[view] = pose[view] @ turn.to(pose)
    generator = torch_generator(derive_seed(seed, "light"), world.device)
    with torch.no_grad():
        views = world.render((K[None].to(world.device), pose[None]), rule.size, generator=generator)
        image = apply_effects(views.radiance[0], CameraEffects(), generator)
        lidar, radar = _ranges(rule, world, pose, K, rng, generator)
    luma = (views.albedo[0] * views.albedo.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    return Pictures(
        (image * 255).round().clamp(0, 255).to(torch.uint8).cpu(),
        views.depth[0].float().cpu(),
        (views.normals[0].permute(0, 3, 1, 2) * 127).round().to(torch.int8).cpu(),
        (luma * 255).round().clamp(0, 255).to(torch.uint8).cpu(),
        K,
        lidar.cpu(),
        radar.cpu(),
        tuple(f"{family}-{own}-{view}" for view in range(rule.views)),
    )


def _ranges(
    rule: PictureSet,
    world: World,
    pose: Tensor,
    K: Tensor,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Raw returns of a lidar and a radar mounted beside each camera, in the camera's frame."""
    rows, columns = rule.lidar
    lidar: list[Tensor] = []
    radar: list[Tensor] = []
    axes = torch.tensor(_FORWARD, device=pose.device)
    for view in range(len(pose)):
        offset = rng.uniform(-1, 1, 3)
        offset *= rule.beside * rng.uniform(0.2, 1) / max(float(np.linalg.norm(offset)), 1e-6)
        cam_from_sensor = torch.eye(4, device=pose.device)
        cam_from_sensor[:3, :3] = axes
        cam_from_sensor[:3, 3] = torch.from_numpy(offset).float()
        sensor = (pose[view] @ cam_from_sensor)[None]
        cam_from_world = torch.linalg.inv(pose[view])
        across = math.atan(0.5 * rule.size[1] / float(K[view, 0, 0])) * 1.05
        along = math.atan(0.5 * rule.size[0] / float(K[view, 1, 1])) * 1.05
        for found, wanted in ((lidar, bool(rows * columns)), (radar, True)):
            if not wanted:
                found.append(torch.zeros(0, 3))
                continue
            if found is lidar:
                scan = lidar_scan(world, sensor, _fan(rows, columns, across, along), generator)
            else:
                scan = radar_scan(
                    world, sensor, generator, points=_RADAR, field=(math.degrees(2 * across), 20.0)
                )
            points = scan.points[0] @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
            found.append(torch.where(scan.valid[0, :, None], points, torch.nan))
    return torch.stack(lidar), torch.stack(radar)


def _fan(rows: int, columns: int, across: float, along: float) -> Tensor:
    """(rows * columns, 3) directions, x forward, within +- the angles."""
    up, left = torch.meshgrid(
        torch.linspace(-along, along, rows), torch.linspace(-across, across, columns), indexing="ij"
    )
    cos = torch.cos(up)
    return torch.stack([cos * torch.cos(left), cos * torch.sin(left), torch.sin(up)], -1).reshape(-1, 3)


# ---- files ----------------------------------------------------------------------------------------------------------


def pictures_folder(folder: str) -> Path:
    """Folder of rendered sets: the given one, or where an empty name stands for ``$RELIEF3D_CACHE/pictures`` or
    ``~/.cache/relief3d/pictures``.
    """
    if folder:
        return Path(folder)
    base = os.environ.get("RELIEF3D_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "relief3d") / "pictures"


def set_folder(root: str | Path, rule: PictureSet) -> Path:
    """Where a set lies below a folder of sets."""
    return Path(root) / f"pictures-{rule.digest}"


def _file(folder: Path, number: int) -> Path:
    return folder / f"world-{number:06d}.safetensors"


def read_world(folder: str | Path, number: int, view: int | None = None) -> Pictures:
    """Pictures of one world of a rendered set, or one of them (V = 1).

    Raises:
        InputError: the file is missing or damaged.
    """
    path = _file(Path(folder), number)
    try:
        with safe_open(path, "pt") as file:
            names = tuple(json.loads(file.metadata()["names"]))
            if view is None:
                return Pictures(**{name: file.get_tensor(name) for name in _TENSORS}, names=names)
            tensors = {name: file.get_slice(name)[view : view + 1] for name in _TENSORS}
            return Pictures(**tensors, names=(names[view],))
    except (OSError, SafetensorError, KeyError, IndexError, ValueError) as exc:
        raise InputError(
            "a file of rendered pictures cannot be read",
            path=path,
            remedy="delete it, and it will be rendered again",
        ) from exc


class PictureSource:
    """Pictures of sets by number: those that are not on disk yet are rendered and kept.

    The content of a number depends on the sets alone, so several processes may read and fill one folder.

    Args:
        root: folder of sets.
        rules: the sets; their pictures take turns, so that the first part of all is balanced.
        device: where pictures are rendered.
    """

    def __init__(
        self, root: str | Path, rules: tuple[PictureSet, ...], device: torch.device | str = "cpu"
    ) -> None:
        if not rules or len({rule.count for rule in rules}) != 1:
            raise InputError("sets of pictures that take turns need one number of pictures")
        self.root, self.rules, self.device = Path(root), rules, device
        self._banks: dict[tuple[str, int], TextureBank] = {}

    def __len__(self) -> int:
        return sum(rule.count for rule in self.rules)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_banks": {}}

    def place(self, index: int) -> tuple[int, int, int]:
        """Set, world of it, and view of a picture's number."""
        if not 0 <= index < len(self):
            raise InputError(f"there is no picture {index} among {len(self)}")
        turn, which = divmod(index, len(self.rules))
        world, view = divmod(turn, self.rules[which].views)
        return which, world, view

    def name(self, index: int) -> str:
        """``family-world-view``, without reading anything."""
        which, world, view = self.place(index)
        family, own = self.rules[which].place(world)
        return f"{family}-{own}-{view}"

    def picture(self, index: int) -> Pictures:
        """One picture (V = 1).

        Raises:
            InputError: no such number, or a damaged file.
        """
        which, world, view = self.place(index)
        folder = set_folder(self.root, self.rules[which])
        if not _file(folder, world).exists():
            self.render(which, world)
        return read_world(folder, world, view)

    def render(self, which: int, number: int) -> Pictures:
        """Render a world of a set, keep it, and return its pictures."""
        rule = self.rules[which]
        family, own = rule.place(number)
        config = WorldConfig(family, texture_size=rule.texture_size)
        if (family, rule.seed) not in self._banks:
            self._banks[family, rule.seed] = make_bank(config, rule.seed)
        bank = self._banks[family, rule.seed]
        seed = derive_seed(rule.seed, family, own)
        world = make_worlds([seed], config, bank=bank, device=self.device)
        pictures = _render(rule, world.compact(), family, own, seed)
        meta = {"names": json.dumps(pictures.names)}  # one key: their order in the file would not repeat
        tensors = {name: value.contiguous() for name, value in pictures.tensors.items()}
        write_bytes(_file(set_folder(self.root, rule), number), save(tensors, meta))
        return pictures

    def fill(self, progress: Progress | None = None) -> None:
        """Render everything that is missing."""
        progress = progress or SilentProgress()
        missing = [
            (which, number)
            for which, rule in enumerate(self.rules)
            for number in range(len(rule.families) * rule.worlds)
            if not _file(set_folder(self.root, rule), number).exists()
        ]
        for which, number in track(progress, "rendering pictures", sorted(missing, key=lambda m: m[1])):
            if not _file(set_folder(self.root, self.rules[which]), number).exists():
                self.render(which, number)
