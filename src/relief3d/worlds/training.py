"""Procedural worlds as sources of training samples, rendered when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.covisibility import depth_overlap
from relief3d.data.sources import ENDLESS, check_modalities
from relief3d.data.view_groups import ViewRequest, choose_from_order, choose_from_overlap
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.effects import CameraEffects, apply_effects
from relief3d.worlds.generate import make_bank, make_world
from relief3d.worlds.sequences import PathKind, make_sequences
from relief3d.worlds.tabletop import Tabletop, TabletopConfig, tabletop_cameras

_TRIES = 4
DepthOf = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]


class TabletopSource:
    """Samples of :mod:`relief3d.worlds.tabletop`: fast and restricted, for miniatures.

    Args:
        name: of the source.
        config: of the worlds.
        seed: of the worlds; another seed gives other worlds under the same numbers.
        count: number of worlds; endless when None.
        pool: cameras per world, among which a sample's views are chosen.
        device: where samples are rendered and stay.
    """

    def __init__(
        self,
        name: str = "tabletop",
        config: TabletopConfig | None = None,
        *,
        seed: int = 0,
        count: int | None = None,
        pool: int = 6,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.config, self.seed = name, config or TabletopConfig(), seed
        self.count, self.pool, self.device = ENDLESS if count is None else count, pool, torch.device(device)

    def __len__(self) -> int:
        return self.count

    @property
    def recipe(self) -> dict[str, Any]:
        """What the worlds follow from, for the plan of stored samples."""
        return {"config": dataclasses.asdict(self.config), "seed": self.seed, "pool": self.pool}

    def key(self, index: int) -> str:
        return f"{self.seed}-{index}"

    def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
        own = derive_seed(self.seed, "world", index)
        world = Tabletop.make(own, self.config, self.device)
        count = max(self.pool, request.views)
        K, pose = (
            torch.from_numpy(v).float().to(self.device)
            for v in tabletop_cameras(own, self.config, count, request.size)
        )
        chosen = _choose(K, pose, request, seed, lambda k, p, s: world.render(k, p, s)[1])
        images, depth = world.render(K[chosen], pose[chosen], request.size)
        if self.config.noise > 0:
            generator = torch_generator(derive_seed(seed, "noise"), self.device)
            noise = torch.randn(images.shape, generator=generator, device=self.device)
            images = (images + self.config.noise * noise).clamp(0, 1)
        return _batch(images, depth, K[chosen], pose[chosen], chosen, request, metric=False)


class WorldSource:
    """Samples of :func:`relief3d.worlds.make_world`: furnished rooms, tables, gardens, streets.

    The texture bank is made at once and shared by all worlds. Paths that break the rules of
    :func:`relief3d.worlds.make_sequences` are drawn anew, so that every sample has parallax and overlap.

    Args:
        name: of the source.
        config: of the worlds.
        seed: of the worlds and paths.
        count: number of worlds; endless when None.
        pool: cameras per world, among which a sample's views are chosen.
        path: kind of path; each world draws its own when None.
        effects: what the camera does to light; None: plain gamma.
        soft_shadows: jitter the lights.
        compile: fuse the renderer with torch.compile (minutes at the start, then many times faster).
        device: where samples are rendered and stay.
    """

    def __init__(
        self,
        name: str = "worlds",
        config: WorldConfig | None = None,
        *,
        seed: int = 0,
        count: int | None = None,
        pool: int = 6,
        path: PathKind | None = None,
        effects: CameraEffects | None = None,
        soft_shadows: bool = False,
        compile: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name, self.config, self.seed = name, config or WorldConfig(), seed
        self.count, self.pool, self.path = ENDLESS if count is None else count, max(2, pool), path
        self.effects, self.soft, self.compile = effects, soft_shadows, compile
        self.device = torch.device(device)
        self.bank = make_bank(self.config, seed)

    def __len__(self) -> int:
        return self.count

    @property
    def recipe(self) -> dict[str, Any]:
        """What the worlds follow from, for the plan of stored samples."""
        effects = None if self.effects is None else dataclasses.asdict(self.effects)
        return {
            "config": dataclasses.asdict(self.config),
            "seed": self.seed,
            "pool": self.pool,
            "path": self.path,
            "effects": effects,
            "soft_shadows": self.soft,
        }

    def key(self, index: int) -> str:
        return f"{self.config.family}-{self.seed}-{index}"

    def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
        own = derive_seed(self.seed, "world", index)
        world = make_world(own, self.config, bank=self.bank, device=self.device)
        if not self.compile:
            world = world.compact()
        count = max(self.pool, request.views)
        for attempt in range(_TRIES):
            path = make_sequences(
                world, views=count, seed=derive_seed(own, "path", attempt), size=request.size, kind=self.path
            )
            if bool(path.accepted[0]):
                break
        else:
            raise InputError("no path with parallax and overlap was found in this world")
        K, pose = path.K[0], path.world_from_cam[0]
        chosen = _choose(
            K, pose, request, seed, lambda k, p, s: world.render((k[None], p[None]), s, tile=None).depth[0]
        )
        generator = torch_generator(derive_seed(seed, "light"), self.device)
        with torch.no_grad():
            views = world.render(
                (K[chosen][None], pose[chosen][None]),
                request.size,
                generator=generator if self.soft else None,
                compile=self.compile,
            )
            images = views.image[0]
            if self.effects is not None:
                images = apply_effects(views.radiance[0], self.effects, generator)
        return _batch(images, views.depth[0], K[chosen], pose[chosen], chosen, request, metric=True)


def _choose(K: Tensor, pose: Tensor, request: ViewRequest, seed: int, depth_of: DepthOf) -> list[int]:
    """Which cameras of a pool are rendered; overlap is judged by small depth maps."""
    generator = torch_generator(derive_seed(seed, "views"))
    if request.grouping.kind != "covisible":
        return choose_from_order(len(K), request, generator)
    height, width = request.size
    small = (max(8, round(24 * height / width)), 24)
    reduced = K.clone()
    reduced[:, 0] *= small[1] / width
    reduced[:, 1] *= small[0] / height
    depth = depth_of(reduced, pose, small)
    return choose_from_overlap(depth_overlap(depth, reduced, pose, tolerance=0.1), request, generator)


def _batch(
    images: Tensor,
    depth: Tensor,
    K: Tensor,
    pose: Tensor,
    chosen: list[int],
    request: ViewRequest,
    *,
    metric: bool,
) -> Batch:
    known = torch.ones(1, len(chosen), dtype=torch.bool, device=images.device)
    batch = Batch(
        images=images[None],
        K=K[None],
        has_K=known,
        world_from_cam=pose[None],
        has_pose=known,
        depth=depth[None],
        depth_valid=depth[None] > 0,
        metric=torch.tensor([metric], device=images.device),
        names=(tuple(str(i) for i in chosen),),
    )
    return check_modalities(batch, request)
