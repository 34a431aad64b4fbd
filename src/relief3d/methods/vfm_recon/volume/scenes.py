"""Procedural scenes with frames, exact depth and true distances, rendered once and read many times.

One file per scene, complete or absent: an interrupted rendering goes on where it stopped, and several processes may
fill one folder. A set's folder is named by its parameters, so that two different sets never mix.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, track
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.geometry.transforms import invert_rigid
from relief3d.io.atomic import write_bytes
from relief3d.methods.vfm_recon.volume.truth import TruthGrid, truth_from_depth
from relief3d.models.volume.back_projection import Views
from relief3d.worlds.config import Family, WorldConfig
from relief3d.worlds.effects import CameraEffects, apply_effects
from relief3d.worlds.generate import make_bank, make_worlds
from relief3d.worlds.sequences import ViewSequence, make_sequences
from relief3d.worlds.textures import TextureBank
from relief3d.worlds.world import World

FORMAT = 1
CLEAR = 0.12
"""Cameras keep this far from surfaces, metres."""
_TRIES = 25
_HELD = 8


@dataclass(frozen=True)
class SceneSet:
    """Parameters of a set; every value is plain and part of its name.

    Attributes:
        family: of worlds.
        count: number of scenes.
        frames: per scene.
        size: height and width in pixels, multiples of 16.
        voxel_size: of the true distances, metres.
        truncation: of them, metres.
        max_depth: farther depth is not part of a scene, metres.
        texture_size: pixels per side of texture pictures.
        seed: of everything.
    """

    family: Family = "room"
    count: int = 40
    frames: int = 16
    size: tuple[int, int] = (96, 128)
    voxel_size: float = 0.04
    truncation: float = 0.08
    max_depth: float = 5.0
    texture_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.frames < 2:
            raise InputError("a set of scenes needs a scene and two frames in each")
        if any(n < 16 or n % 16 for n in self.size):
            raise InputError(f"pictures of {self.size} do not fit the network", remedy="multiples of 16")
        if min(self.voxel_size, self.truncation, self.max_depth) <= 0:
            raise InputError("voxel size, truncation and reach of scenes are positive")

    @property
    def digest(self) -> str:
        """Name of the set: a hash of the format and of all parameters but the number of scenes, since a smaller set is
        the first part of a larger one.
        """
        text = json.dumps({"format": FORMAT, **asdict(self), "count": None}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class SceneData:
    """One scene.

    Attributes:
        image: (F, 3, H, W) uint8.
        depth: (F, H, W) float32 z-depth in metres, 0 for sky.
        K: (F, 3, 3) pixels.
        world_from_cam: (F, 4, 4).
        truth: true distances.
        name: of it.
    """

    image: Tensor
    depth: Tensor
    K: Tensor
    world_from_cam: Tensor
    truth: TruthGrid
    name: str

    @property
    def views(self) -> Views:
        """Cameras of all frames."""
        size = (int(self.image.shape[-2]), int(self.image.shape[-1]))
        return Views(self.K, invert_rigid(self.world_from_cam), size)


_TENSORS = ("image", "depth", "K", "world_from_cam", "tsdf", "origin")


class SceneSource:
    """Scenes of a set by number: those that are not on disk yet are rendered and kept.

    Args:
        root: folder of sets.
        rule: the set.
    """

    def __init__(self, root: str | Path, rule: SceneSet) -> None:
        self.folder, self.rule = Path(root) / f"scenes-{rule.digest}", rule
        self._bank: TextureBank | None = None
        self._held: OrderedDict[int, SceneData] = OrderedDict()

    def __len__(self) -> int:
        return self.rule.count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bank": None, "_held": OrderedDict()}

    def name(self, number: int) -> str:
        """Without reading anything."""
        return f"{self.rule.family}-{number}"

    def scene(self, number: int) -> SceneData:
        """A scene.

        Raises:
            InputError: no such number, or a damaged file.
        """
        if not 0 <= number < len(self):
            raise InputError(f"there is no scene {number} among {len(self)}")
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        if not self._file(number).exists():
            self._make(number)
        found = self._read(number)
        self._held[number] = found
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
        return found

    def fill(self, progress: Progress | None = None) -> None:
        """Render everything that is missing."""
        missing = [n for n in range(len(self)) if not self._file(n).exists()]
        for number in track(progress or SilentProgress(), "rendering scenes", missing):
            if not self._file(number).exists():
                self._make(number)

    def _file(self, number: int) -> Path:
        return self.folder / f"scene-{number:06d}.safetensors"

    def _read(self, number: int) -> SceneData:
        path = self._file(number)
        try:
            with safe_open(path, "pt") as file:
                t: Mapping[str, Tensor] = {name: file.get_tensor(name) for name in _TENSORS}
        except (OSError, SafetensorError, KeyError, ValueError) as exc:
            raise InputError(
                "a rendered scene cannot be read",
                path=path,
                remedy="delete it, and it will be rendered again",
            ) from exc
        truth = TruthGrid(t["tsdf"].float(), t["origin"], self.rule.voxel_size)
        return SceneData(t["image"], t["depth"], t["K"], t["world_from_cam"], truth, self.name(number))

    def _make(self, number: int) -> None:
        rule = self.rule
        config = WorldConfig(rule.family, texture_size=rule.texture_size)
        if self._bank is None:
            self._bank = make_bank(config, rule.seed)
        with torch.no_grad():
            world, path, seed = self._place(config, self._bank, number)
            generator = torch_generator(derive_seed(seed, "light"))
            views = world.render((path.K, path.world_from_cam), rule.size, generator=generator)
            image = apply_effects(views.radiance[0], CameraEffects(), generator)
            depth = views.depth[0].float()
            cameras = Views(path.K[0], invert_rigid(path.world_from_cam[0]), rule.size)
            truth = truth_from_depth(
                depth,
                cameras,
                rule.voxel_size,
                truncation=rule.truncation,
                max_depth=rule.max_depth,
                distance=world.sdf,
                every=1,
            )
        tensors = {
            "image": (image * 255).round().clamp(0, 255).to(torch.uint8),
            "depth": depth,
            "K": path.K[0],
            "world_from_cam": path.world_from_cam[0],
            "tsdf": truth.tsdf.to(torch.float16),
            "origin": truth.origin,
        }
        write_bytes(self._file(number), save({k: v.contiguous() for k, v in tensors.items()}))

    def _place(self, config: WorldConfig, bank: TextureBank, number: int) -> tuple[World, ViewSequence, int]:
        """The first world and path of a number that is worth learning from."""
        for attempt in range(_TRIES):
            seed = derive_seed(self.rule.seed, self.rule.family, number, attempt)
            world = make_worlds([seed], config, bank=bank).compact()
            path = make_sequences(
                world,
                views=self.rule.frames,
                seed=derive_seed(seed, "path"),
                size=self.rule.size,
                overlap=(0.3, 0.95),
            )
            if bool(path.accepted[0]) and float(path.clearance[0]) > CLEAR:
                return world, path, seed
        raise InputError(
            f"no path for {self.rule.frames} frames was found in {_TRIES} worlds", remedy="fewer frames"
        )
