"""Posed frames to a surface with a volumetric network, in bounded memory (specification 6).

Frames are read once, in groups; only their feature maps are kept (in files when a folder is given).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress, SilentProgress, track
from relief3d.geometry.projection import resize_intrinsics
from relief3d.models.volume.back_projection import FeatureMean, Views, grid_points, grid_transform
from relief3d.models.volume.bounds import VolumeGrid
from relief3d.models.volume.config import VolumeNetConfig
from relief3d.models.volume.extract import FineDistances, fine_distances, joined, surface
from relief3d.models.volume.guidance import Guidance
from relief3d.models.volume.heads import sample_volume
from relief3d.models.volume.network import VolumeNetwork
from relief3d.models.volume.store import FrameStore, host_tensor, views_near
from relief3d.models.volume.tiles import (
    Box,
    Tile,
    TileMode,
    TilePlan,
    blend_weight,
    boxes,
    plan_tiles,
    slices,
)
from relief3d.models.volume.trunk2d import IMAGE_MULTIPLE

BLOCK = 32
"""Grid points along the edge of a block that is back-projected at a time."""
SEEN, GUIDED = 1, 2
"""Bits of what is known of a voxel: enough views see it; a depth map says something of it."""


@dataclass(frozen=True)
class FrameGroup:
    """Frames whose foundation features are computed together (a submap, or any chunk of neighbours).

    Attributes:
        images: (V, 3, H, W) in [0, 1].
        K: (V, 3, 3) pixels of the images.
        cam_from_world: (V, 4, 4).
        depth: (V, Hd, Wd) z-depth of the same pictures at any size, 0 where unknown; None without.
        keep: (V,) bool, frames that count; others are context only (they belong to another group). None: all.
    """

    images: Tensor
    K: Tensor
    cam_from_world: Tensor
    depth: Tensor | None = None
    keep: Tensor | None = None


@dataclass(frozen=True)
class VolumeOptions:
    """How a volume is reconstructed.

    Attributes:
        rate: fine points along the edge of a voxel: 1, 2 or 4 (published meshes: 4).
        max_bytes: ceiling for tensors of the U-Net; the volume and the maps of frames are counted apart, see
            :class:`VolumeReport`.
        mode: see :mod:`relief3d.models.volume.tiles`.
        max_core: longest side of a tile.
        threshold: occupancy logit from which a voxel has fine points.
        min_views: that a voxel needs.
        max_points: fine points at a time.
        chunk: pictures at a time in the feature networks.
        skip_unguided: leave out tiles of which no depth map says anything.
    """

    rate: int = 2
    max_bytes: int = 4 * 2**30
    mode: TileMode = "exact"
    max_core: int | None = None
    threshold: float = 0.0
    min_views: int = 1
    max_points: int = 1 << 18
    chunk: int = 4
    skip_unguided: bool = True


@dataclass(frozen=True)
class VolumeReport:
    """What was done.

    Attributes:
        frames: that counted.
        voxels: of the grid.
        tiles: number of them.
        skipped: tiles without anything observed.
        occupied: voxels with fine points.
        fine_points: number of them.
        tile_bytes: planned for the largest tile.
        volume_bytes: of the mean features (in a file when a folder was given).
        overhead: voxels computed over voxels of the grid.
        seconds: by stage.
    """

    frames: int
    voxels: int
    tiles: int
    skipped: int
    occupied: int
    fine_points: int
    tile_bytes: int
    volume_bytes: int
    overhead: float
    seconds: dict[str, float] = field(default_factory=dict)


def network_size(size: tuple[int, int], config: VolumeNetConfig) -> tuple[int, int]:
    """(H, W), multiples of 16, of about the area that a network was trained for and the shape of pictures of a size."""
    area = config.image_size[0] * config.image_size[1]
    scale = math.sqrt(area / (size[0] * size[1]))
    rows, cols = (max(1, round(n * scale / IMAGE_MULTIPLE)) for n in size)
    return rows * IMAGE_MULTIPLE, cols * IMAGE_MULTIPLE


def fitted(group: FrameGroup, config: VolumeNetConfig) -> FrameGroup:
    """A group with pictures resized to what a network takes, and intrinsics with them."""
    height, width = int(group.images.shape[-2]), int(group.images.shape[-1])
    size = network_size((height, width), config)
    if size == (height, width):
        return group
    images = torch.nn.functional.interpolate(
        group.images, size, mode="bilinear", align_corners=False, antialias=True
    )
    return replace(group, images=images, K=resize_intrinsics(group.K, (width, height), (size[1], size[0])))


def reconstruct(
    network: VolumeNetwork,
    groups: Iterable[FrameGroup],
    grid: VolumeGrid,
    options: VolumeOptions | None = None,
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Mesh, VolumeReport]:
    """The surface that a network sees.

    Args:
        network: in evaluation mode, on any device.
        groups: frames, read once; pictures are resized as needed.
        grid: where to look (:func:`relief3d.models.volume.bounds.bounds_from_depth`).
        options: see :class:`VolumeOptions`.
        folder: for files of features and volume; with it memory depends neither on the number of frames nor on the
            size of the grid. The caller removes it.
        progress: of the stages.

    Returns:
        Triangles in the world, counter-clockwise seen from free space (empty when nothing is occupied), and a report.

    Raises:
        InputError: no frame, no depth for a network that needs it, sizes that differ, or a ceiling too low.
        RunError: the volume does not fit in memory and no folder was given, or the network gives no finite values.
    """
    options, progress = options or VolumeOptions(), progress or SilentProgress()
    run = _Run(network, grid, options, None if folder is None else Path(folder), progress)
    with torch.inference_mode():
        run.encode(groups)
        run.accumulate()
        fine = run.tiles()
        with run.timed("surface"):
            mesh = surface(fine, grid.origin, grid.voxel_size)
    return mesh, run.report(fine)


class _Run:
    def __init__(
        self,
        network: VolumeNetwork,
        grid: VolumeGrid,
        options: VolumeOptions,
        folder: Path | None,
        progress: Progress,
    ) -> None:
        if network.training:
            raise InputError("the network is in training mode", remedy="put it into evaluation mode first")
        self.network, self.grid, self.options, self.folder, self.progress = (
            network,
            grid,
            options,
            folder,
            progress,
        )
        self.config = network.config
        self.device = next(network.parameters()).device
        self.store = FrameStore(None if folder is None else folder / "frames")
        self.plan: TilePlan = plan_tiles(
            grid.shape, self.config, options.max_bytes, options.mode, max_core=options.max_core
        )
        self.channels = self.config.channels
        blended = (
            self.config.unet_widths[0] + 1 if options.mode == "blended" and len(self.plan.tiles) > 1 else 0
        )
        self.volume_bytes = grid.count * (2 * (self.channels + blended) + 3)
        if folder is None and self.volume_bytes > options.max_bytes:
            raise RunError(
                f"a volume of {grid.count / 1e6:.0f} million voxels needs {self.volume_bytes / 2**30:.1f} GiB",
                remedy="give a folder for files, larger voxels or tighter bounds",
            )
        self.world_from_grid = grid_transform(
            torch.tensor(grid.origin, dtype=torch.float64), grid.voxel_size
        ).float()
        self.skipped = 0
        self.seconds: dict[str, float] = {}
        self._stage: list[tuple[str, float]] = []

    # ---- stages -----------------------------------------------------------------------------------------------------

    def encode(self, groups: Iterable[FrameGroup]) -> None:
        """Feature maps of all frames into the store."""
        with self.timed("features"):
            for group in groups:
                self._encode(fitted(group, self.config))
        if not len(self.store):
            raise InputError("there is no frame to reconstruct from")

    def _encode(self, group: FrameGroup) -> None:
        if self.config.guided and group.depth is None:
            raise InputError(
                "this network needs depth", remedy="give depth, or use a variant without guidance"
            )
        size = (int(group.images.shape[-2]), int(group.images.shape[-1]))
        if len(self.store) and size != self.store.views.size:
            raise InputError(f"pictures of one scene have one shape, not {self.store.views.size} and {size}")
        maps = self.network.encode(group.images[None].to(self.device), self.options.chunk)
        for i in range(len(group.images)):
            if group.keep is None or bool(group.keep[i]):
                depth = None if group.depth is None else group.depth[i]
                self.store.add(maps.voxel[i], maps.point[i], depth, group.K[i], group.cam_from_world[i], size)

    def accumulate(self) -> None:
        """Mean features, guidance and state of every voxel, block by block."""
        shape, folder = self.grid.shape, self.folder
        where = (lambda name: None) if folder is None else (lambda name: folder / f"{name}.bin")
        self.mean = host_tensor((self.channels, *shape), torch.float16, where("mean"))
        self.guidance = host_tensor(shape, torch.float16, where("guidance"))
        self.state = host_tensor(shape, torch.uint8, where("state"))
        views = self.store.views
        with self.timed("back-projection"):
            for box in track(self.progress, "collecting features", list(boxes(shape, BLOCK))):
                self._accumulate(box, views)

    def _accumulate(self, box: Box, views: Views) -> None:
        sides = tuple(b - a for a, b in zip(*box, strict=True))
        shape = (sides[0], sides[1], sides[2])
        points = grid_points(self.world_from_grid, shape, box[0]).to(self.device)
        features, guidance = self._gather(points, views, "voxel")
        at = slices(box)
        self.mean[(slice(None), *at)] = features.mean().T.unflatten(1, shape).to("cpu", torch.float16)
        state = (features.count >= self.options.min_views).to(torch.uint8) * SEEN
        if guidance is not None:
            state |= (guidance.weight > 0).to(torch.uint8) * GUIDED
            self.guidance[at] = guidance.value().unflatten(0, shape).to("cpu", torch.float16)
        self.state[at] = state.unflatten(0, shape).cpu()

    def _gather(self, points: Tensor, views: Views, branch: str) -> tuple[FeatureMean, Guidance | None]:
        """Mean features and guidance of world points (N, 3) from the frames that may see them."""
        config = self.config
        fade = config.border_fade if branch == "point" else 0.0
        features = FeatureMean(points, self.channels, weight=config.depth_weight, fade=fade)
        guidance = (
            Guidance(points, config.margin * self.grid.voxel_size, config.guidance) if config.guided else None
        )
        low, high = points.amin(0).cpu(), points.amax(0).cpu()
        near = views_near(views, (low + high) / 2, float((high - low).norm()) / 2 + 1e-6)
        for number in near.nonzero()[:, 0].tolist():
            frame = self.store[number]
            one = views[number : number + 1]
            camera = Views(one.K.to(self.device), one.cam_from_world.to(self.device), one.size)
            depth = None if frame.depth is None else frame.depth[None].to(self.device)
            maps = frame.voxel if branch == "voxel" else frame.point
            features.add(maps[None].to(self.device), camera, depth)
            if guidance is not None and depth is not None:
                guidance.add(depth, camera)
        return features, guidance

    def tiles(self) -> FineDistances:
        """Fine distances of the whole volume."""
        with self.timed("volume"):
            if self.options.mode == "blended" and len(self.plan.tiles) > 1:
                parts = list(self._blended())
            else:
                parts = []
                for tile in track(self.progress, "volume", list(self.plan.tiles)):
                    if self._empty(tile):
                        self.skipped += 1
                        continue
                    parts.append(self._fine(tile, self._features(tile), tile.given[0]))
        return joined(parts, self.options.rate)

    def _blended(self) -> Iterator[FineDistances]:
        shape, width = self.grid.shape, self.config.unet_widths[0]
        file = None if self.folder is None else self.folder / "blended.bin"
        total = host_tensor((width + 1, *shape), torch.float16, file)
        alive = []
        for tile in track(self.progress, "volume", list(self.plan.tiles)):
            if self._empty(tile):
                self.skipped += 1
                continue
            alive.append(tile)
            weight = blend_weight(tile, shape, self.device)
            found = torch.cat([self._features(tile) * weight, weight[None]])
            total[(slice(None), *slices(tile.given))] += found.to("cpu", torch.float16)
        for tile in alive:
            sums = total[(slice(None), *slices(tile.given))].to(self.device).float()
            yield self._fine(tile, sums[:-1] / sums[-1:].clamp_min(1e-3), tile.given[0])

    def _empty(self, tile: Tile) -> bool:
        state = self.state[slices(tile.core)]
        if not bool((state & SEEN).any()):
            return True
        return bool(self.config.guided and self.options.skip_unguided and not (state & GUIDED).any())

    def _features(self, tile: Tile) -> Tensor:
        """(C, ...) U-Net features of what a tile gives."""
        at = slices(tile.region)
        mean = self.mean[(slice(None), *at)].to(self.device).float()[None]
        guidance = self.guidance[at].to(self.device).float()[None] if self.config.guided else None
        found = self.network.volume(mean, guidance)[0]
        return found[(slice(None), *slices(tile.given, tile.region[0]))].float()

    def _fine(self, tile: Tile, features: Tensor, start: tuple[int, int, int]) -> FineDistances:
        """Distances inside the occupied voxels of a core, from features (C, ...) that begin at grid point ``start``."""
        core = features[(slice(None), *slices(tile.core, start))]
        flat = core.flatten(1)
        logits = torch.cat(
            [self.network.occupancy_logits(p[None])[0] for p in flat.split(self.options.max_points, 1)]
        )
        if not bool(torch.isfinite(logits).all()):
            raise RunError(
                "the volumetric network gives values that are not finite", remedy="use other weights"
            )
        seen = (self.state[slices(tile.core)] & SEEN).bool().to(self.device)
        occupied = (logits.unflatten(0, core.shape[1:]) > self.options.threshold) & seen
        index = occupied.nonzero() + torch.tensor(tile.core[0], device=self.device)
        # Voxels of a block follow each other, so that a chunk of fine points concerns few frames.
        block = torch.div(index, BLOCK, rounding_mode="floor")
        index = index[torch.argsort((block[:, 0] * 10_000 + block[:, 1]) * 10_000 + block[:, 2], stable=True)]
        return fine_distances(
            index,
            self.options.rate,
            self.options.max_points,
            lambda points: self._distance(points, features, start),
        )

    def _distance(self, index: Tensor, features: Tensor, start: tuple[int, int, int]) -> Tensor:
        """(N,) distances at fractional grid indices (N, 3)."""
        transform = self.world_from_grid.to(self.device)
        points = index @ transform[:3, :3].T + transform[:3, 3]
        found, guidance = self._gather(points, self.store.views, "point")
        own = self.network.point_features(found.mean().T[None])
        local = index - torch.tensor(start, dtype=index.dtype, device=self.device)
        around = sample_volume(features, local)[None]
        value = None if guidance is None else guidance.value()[None]
        return torch.tanh(self.network.distance_logits(own, around, value)[0].float())

    # ---- account ----------------------------------------------------------------------------------------------------

    def timed(self, stage: str) -> _Timer:
        """Adds the time inside to a stage."""
        return _Timer(self.seconds, stage)

    def report(self, fine: FineDistances) -> VolumeReport:
        """Of the run."""
        return VolumeReport(
            frames=len(self.store),
            voxels=self.grid.count,
            tiles=len(self.plan.tiles),
            skipped=self.skipped,
            occupied=len(fine.index),
            fine_points=fine.values.numel(),
            tile_bytes=self.plan.bytes,
            volume_bytes=self.volume_bytes,
            overhead=self.plan.overhead,
            seconds=dict(self.seconds),
        )


class _Timer:
    def __init__(self, seconds: dict[str, float], stage: str) -> None:
        self.seconds, self.stage = seconds, stage

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + time.perf_counter() - self.began
