"""From scenes to training samples: a turned box, the views that see it, query points with their truth (spec 5.1)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.draw_order import permuted
from relief3d.data.photometric import change_colours
from relief3d.losses.volume import occupancy_truth
from relief3d.methods.vfm_recon.volume.config import DepthErrors, VolumeConfig
from relief3d.methods.vfm_recon.volume.scenes import SceneData, SceneSource
from relief3d.methods.vfm_recon.volume.truth import TruthGrid
from relief3d.models.volume.back_projection import (
    Views,
    grid_indices,
    grid_points,
    grid_transform,
    project_view,
)
from relief3d.models.volume.network import VolumeInput

PROBES = 7
"""Points per side of the grid that tells which views see a box."""
LEAST_KNOWN = 0.1
"""A fragment needs truth at this share of its query points; our choice."""
_TRIES = 40


@dataclass(frozen=True)
class FragmentBatch:
    """B fragments with N query points each.

    Attributes:
        input: of the network.
        occupancy: (B, N) 1, 0 or NaN.
        tsdf: (B, N) true distance over the truncation, NaN where unknown.
        names: ``scene/number`` of each.
    """

    input: VolumeInput
    occupancy: Tensor
    tsdf: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> FragmentBatch:
        """On a device."""
        return replace(
            self, input=self.input.to(device), occupancy=self.occupancy.to(device), tsdf=self.tsdf.to(device)
        )

    def __getitem__(self, rows: slice) -> FragmentBatch:
        x = self.input
        part = VolumeInput(
            x.images[rows], x.K[rows], x.cam_from_world[rows], x.world_from_grid[rows], x.shape, x.queries[rows],
            None if x.depth is None else x.depth[rows],
        )  # fmt: skip
        return FragmentBatch(part, self.occupancy[rows], self.tsdf[rows], self.names[rows])


def joined(samples: list[FragmentBatch]) -> FragmentBatch:
    """Samples in one batch."""
    xs = [s.input for s in samples]
    depth = [x.depth for x in xs if x.depth is not None]
    whole = VolumeInput(
        torch.cat([x.images for x in xs]), torch.cat([x.K for x in xs]), torch.cat([x.cam_from_world for x in xs]),
        torch.cat([x.world_from_grid for x in xs]), xs[0].shape, torch.cat([x.queries for x in xs]),
        torch.cat(depth) if depth else None,
    )  # fmt: skip
    return FragmentBatch(
        whole,
        torch.cat([s.occupancy for s in samples]),
        torch.cat([s.tsdf for s in samples]),
        tuple(name for s in samples for name in s.names),
    )


# ---- geometry of a fragment -----------------------------------------------------------------------------------------


def draw_box(
    truth: TruthGrid, shape: tuple[int, int, int], voxel_size: float, tilt: float, generator: torch.Generator
) -> Tensor:
    """(4, 4) ``world_from_grid`` of a random box inside the bounds of the truth.

    It is turned about z, then tilted a little about its own x axis. Where it is longer than the bounds, it is in their
    middle.

    Args:
        truth: whose bounds count.
        shape: voxels of the box.
        voxel_size: of the box, world units.
        tilt: largest, degrees.
        generator: on the CPU.
    """
    luck = torch.rand(5, generator=generator)
    sides = torch.tensor(shape) * voxel_size
    extent = (torch.tensor(truth.tsdf.shape) - 1) * truth.voxel_size
    room = (extent - sides).clamp_min(0)
    centre = truth.origin + 0.5 * extent + (luck[:3] - 0.5) * room
    turn, lean = 2 * math.pi * float(luck[3]), math.radians(tilt) * (2 * float(luck[4]) - 1)
    c, s = math.cos(turn), math.sin(turn)
    about_z = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    c, s = math.cos(lean), math.sin(lean)
    about_x = torch.tensor([[1.0, 0, 0], [0, c, -s], [0, s, c]])
    rotation = about_z @ about_x
    middle = 0.5 * (torch.tensor(shape) - 1) * voxel_size
    return grid_transform(centre - rotation @ middle, voxel_size, rotation)


def seeing_views(world_from_grid: Tensor, shape: tuple[int, int, int], views: Views, reach: float) -> Tensor:
    """Numbers of the views that see one of 7x7x7 points of a box at most ``reach`` from their centre."""
    axes = [torch.linspace(0, n - 1, PROBES) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    points = index @ world_from_grid[:3, :3].T + world_from_grid[:3, 3]
    found = []
    for view in range(len(views)):
        _, _, seen = project_view(points, views, view)
        pose = views.cam_from_world[view]
        local = points @ pose[:3, :3].T + pose[:3, 3]
        if bool((seen & (local.norm(dim=-1) < reach)).any()):
            found.append(view)
    return torch.tensor(found, dtype=torch.long)


def draw_views(candidates: Tensor, count: int, total: int, generator: torch.Generator) -> Tensor:
    """``count`` numbers in order of time: of the candidates without replacement, then of the others, then again."""
    order = candidates[torch.randperm(len(candidates), generator=generator)]
    others = torch.tensor([v for v in range(total) if v not in set(candidates.tolist())], dtype=torch.long)
    chosen = torch.cat([order, others[torch.randperm(len(others), generator=generator)]])[:count]
    if len(chosen) < count:
        again = torch.randint(total, (count - len(chosen),), generator=generator)
        chosen = torch.cat([chosen, again])
    return chosen.sort().values


def points_in_box(truth: TruthGrid, world_from_grid: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(M, 3) indices of the true grid's points inside a box (half a voxel beyond its outermost grid points)."""
    limit = torch.tensor(shape) - 0.5
    corners = torch.cartesian_prod(*(torch.tensor([-0.5, float(n) - 0.5]) for n in shape))
    world = corners @ world_from_grid[:3, :3].T + world_from_grid[:3, 3]
    size = torch.tensor(truth.tsdf.shape)
    low = ((world.amin(0) - truth.origin) / truth.voxel_size).floor().long().clamp_min(0)
    high = ((world.amax(0) - truth.origin) / truth.voxel_size).ceil().long().clamp(max=size - 1)
    count = (high - low + 1).clamp_min(0).tolist()
    start = (int(low[0]), int(low[1]), int(low[2]))
    points = grid_points(
        grid_transform(truth.origin, truth.voxel_size), (count[0], count[1], count[2]), start
    )
    index = torch.cartesian_prod(*(torch.arange(a, a + n) for a, n in zip(start, count, strict=True)))
    inside = grid_indices(world_from_grid, points)
    return index[((inside >= -0.5) & (inside <= limit)).all(-1)]


def with_errors(depth: Tensor, rule: DepthErrors, generator: torch.Generator) -> Tensor:
    """(V, H, W) depth with the errors of :class:`DepthErrors`."""
    count, height, width = depth.shape
    out = depth.clone()
    half = torch.randperm(count, generator=generator)[: count // 2]
    out[half] *= 1 + rule.scale * (2 * torch.rand(len(half), 1, 1, generator=generator) - 1)
    coarse = torch.randn(count, 1, max(2, 8 * height // width), 8, generator=generator)
    noise = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[:, 0]
    out = out * torch.exp(rule.smooth * noise)
    for view in range(count):
        luck = torch.rand(5, generator=generator).tolist()
        if luck[0] < rule.dropped:
            h, w = max(1, int(luck[1] * height / 3)), max(1, int(luck[2] * width / 3))
            top, left = int(luck[3] * (height - h + 1)), int(luck[4] * (width - w + 1))
            out[view, top : top + h, left : left + w] = 0
    return out


def make_fragment(scene: SceneData, config: VolumeConfig, seed: int) -> FragmentBatch | None:
    """One fragment (B = 1) of a scene; None where it shows too little."""
    generator = torch_generator(seed)
    truth = scene.truth
    box = draw_box(truth, config.crop, config.voxel_size, config.tilt, generator)
    candidates = seeing_views(box, config.crop, scene.views, config.reach)
    index = points_in_box(truth, box, config.crop)
    if not len(candidates) or len(index) < config.points:
        return None
    index = index[torch.randperm(len(index), generator=generator)[: config.points]]
    # Occupancy looks one voxel around a point, so a margin of one is enough.
    low, high = (index.amin(0) - 1).clamp_min(0), index.amax(0) + 2
    around = truth.tsdf[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    a, b, c = (index - low).unbind(-1)
    occupancy, tsdf = occupancy_truth(around)[a, b, c], around[a, b, c]
    if float((~torch.isnan(tsdf)).float().mean()) < LEAST_KNOWN or not bool((occupancy > 0.5).any()):
        return None
    chosen = draw_views(candidates, config.views, len(scene.image), generator)
    images = change_colours(scene.image[chosen][None].float() / 255, config.colours, generator)
    depth = with_errors(scene.depth[chosen], config.depth, generator)
    queries = truth.origin + index * truth.voxel_size
    views = scene.views
    x = VolumeInput(
        images, views.K[chosen][None], views.cam_from_world[chosen][None], box[None], config.crop, queries[None],
        depth[None],
    )  # fmt: skip
    return FragmentBatch(x, occupancy[None], tsdf[None], (scene.name,))


# ---- streams --------------------------------------------------------------------------------------------------------


def scenes_root(config: VolumeConfig) -> Path:
    """Folder of rendered sets."""
    if config.folder:
        return Path(config.folder)
    base = os.environ.get("RELIEF3D_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "relief3d") / "volumes"


class FragmentStream:
    """Training batches by position; a function of position and configuration alone.

    Args:
        config: of the run.
    """

    def __init__(self, config: VolumeConfig) -> None:
        self.config = config
        self.sources = [SceneSource(scenes_root(config), rule) for rule in config.scenes]

    def batch(self, position: int, part: int = 0, parts: int = 1) -> FragmentBatch:
        """A batch or a share of it.

        Raises:
            InputError: the batch cannot be shared equally, or scenes show too little.
        """
        if self.config.batch % parts:
            raise InputError(
                f"a batch of {self.config.batch} fragments cannot be shared between {parts} processes",
                remedy="batch",
            )
        share = self.config.batch // parts
        first = position * self.config.batch + part * share
        return joined([self.sample(number) for number in range(first, first + share)])

    def sample(self, number: int) -> FragmentBatch:
        """Fragment ``number`` of the run: every scene once per round, in an order of its own."""
        seed = self.config.train.seed
        total = sum(len(s) for s in self.sources)
        for attempt in range(_TRIES):
            turn, place = divmod(number + attempt * 7919, total)
            which = permuted(place, total, derive_seed(seed, "round", turn))
            own = derive_seed(seed, "fragment", number, attempt)
            found = make_fragment(self._scene(which), self.config, own)
            if found is not None:
                return replace(found, names=(f"{found.names[0]}/{number}",))
        raise InputError(
            f"{_TRIES} fragments in a row hold fewer than {self.config.points} points, or almost no truth",
            remedy="fewer points, a larger crop, or finer true voxels (scenes[].voxel_size)",
        )

    def _scene(self, index: int) -> SceneData:
        for source in self.sources:
            if index < len(source):
                return source.scene(index)
            index -= len(source)
        raise AssertionError("a scene beyond the last")
