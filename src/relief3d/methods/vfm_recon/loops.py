"""Loops: places that the camera sees again, found by poses and aligned depth (our extension; specification 2.8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera
from relief3d.geometry.projection import unproject
from relief3d.methods.vfm_recon.config import AlignConfig
from relief3d.methods.vfm_recon.masks import BelievedDepth
from relief3d.methods.vfm_recon.overlap import home
from relief3d.methods.vfm_recon.submaps import Submap, submaps_of_frames
from relief3d.models.multiview.long_alignment import PairGrid

MOST_TURNED = 0.0
"""Cosine between viewing directions below which two frames cannot see the same side of things."""

MOST_APART = 3.0
"""Frames farther from each other than this many median depths are not compared."""


@dataclass(frozen=True)
class CoarseDepth:
    """Thinned depth of one keyframe in one submap.

    Attributes:
        submap: whose scale it has.
        depth: (h, w) z-depth at the centres of cells, 0 where not believed.
    """

    submap: int
    depth: Tensor


class CoarseFrames:
    """Depth of every keyframe thinned to one pixel in ``stride`` x ``stride``: a few kilobytes per keyframe.

    Args:
        stride: pixels of the depth map between samples; smaller for small maps, so that 24 columns remain.
    """

    def __init__(self, stride: int) -> None:
        self._stride = stride
        self.frames: dict[int, CoarseDepth] = {}
        self._distance: dict[int, float] = {}

    def add(self, depth: BelievedDepth) -> None:
        """Keep the frames of a submap that are nearer to its middle than in the submaps before."""
        submap, (height, width) = depth.submap, depth.maps.depth.shape[-2:]
        step = max(1, min(self._stride, width // 24, height // 18))
        rows = torch.arange(step // 2, height, step)
        columns = torch.arange(step // 2, width, step)
        grid_r, grid_c = torch.meshgrid(rows, columns, indexing="ij")
        for place, frame in enumerate(submap.frames):
            off = abs(place - (len(submap.frames) - 1) / 2)
            if off >= self._distance.get(frame, float("inf")):
                continue
            good = depth.at(place, grid_r.reshape(-1), grid_c.reshape(-1)).reshape(grid_r.shape)
            values = depth.maps.depth[place][grid_r, grid_c]
            self.frames[frame] = CoarseDepth(
                submap.index, torch.where(good, values, torch.zeros_like(values)).float()
            )
            self._distance[frame] = off


def find_loop_submaps(
    submaps: Sequence[Submap],
    coarse: CoarseFrames,
    log_scale: Tensor,
    cameras: Sequence[Camera],
    config: AlignConfig,
) -> list[Submap]:
    """Submaps that join two places of the sequence, best overlap first.

    A pair of keyframes is a candidate when more than a submap lies between them and each sees at least
    ``config.loops.overlap`` of the other's points at a depth that agrees. Each chosen pair gives one submap of half
    a submap's frames around either end.

    Args:
        submaps: of the chain.
        coarse: thinned depth of the keyframes.
        log_scale: (M,) first solution.
        cameras: of all keyframes.
        config: ``loops`` and ``submaps`` are read.
    """
    options = config.loops
    found = loop_pairs(coarse, log_scale, cameras, config)
    places = submaps_of_frames([m for m in submaps if m.kind == "chain"])
    grid, used, out = PairGrid(options.apart), set[tuple[int, int]](), list[Submap]()
    for _, a, b in found:
        ends = (home(places[a], submaps)[0], home(places[b], submaps)[0])
        if grid.near((a, b)) or ends in used or ends[0] == ends[1]:
            continue
        grid.add((a, b))
        used.add(ends)
        half = max(1, config.submaps.size // 2)
        frames = _around(a, submaps[ends[0]], half) + _around(b, submaps[ends[1]], half)
        if len(set(frames)) == len(frames):
            out.append(Submap(len(submaps) + len(out), tuple(frames), "loop"))
        if len(out) == options.most:
            break
    return out


def _around(frame: int, submap: Submap, count: int) -> list[int]:
    """The ``count`` keyframes of a submap nearest in place to ``frame``, in order."""
    place = submap.position(frame)
    first = max(0, min(place - (count - 1) // 2, len(submap.frames) - count))
    return list(submap.frames[first : first + count])


def loop_pairs(
    coarse: CoarseFrames, log_scale: Tensor, cameras: Sequence[Camera], config: AlignConfig
) -> list[tuple[float, int, int]]:
    """Pairs (overlap, a, b), a < b, that see the same surface, largest overlap first.

    The overlap is the smaller of the shares of either frame's points that the other frame sees at a depth within
    ``config.loops.agreement``.
    """
    options, least = config.loops, config.submaps.size
    frames = sorted(
        t for t, c in coarse.frames.items() if cameras[t].world_from_cam is not None and (c.depth > 0).any()
    )
    if len(frames) <= least:
        return []
    size = torch.stack([(coarse.frames[t].depth > 0).sum() for t in frames])
    poses = torch.stack([cameras[t].world_from_cam for t in frames])  # type: ignore[misc]
    depth = [coarse.frames[t].depth.double() * log_scale[coarse.frames[t].submap].exp() for t in frames]
    middle = torch.stack([d[d > 0].median() for d in depth])
    number = torch.tensor(frames)
    out = []
    for n, t in enumerate(frames):
        apart = (poses[:, :3, 3] - poses[n, :3, 3]).norm(dim=-1)
        facing = poses[:, :3, 2] @ poses[n, :3, 2]
        near = (number > t + least) & (facing > MOST_TURNED) & (apart < MOST_APART * middle[n])
        world = _points(depth[n], cameras[t])
        for k in torch.nonzero(near)[:, 0].tolist():
            forth = _seen(world, depth[k], cameras[frames[k]]) / max(1, int(size[n]))
            if forth < options.overlap:
                continue
            back = _seen(_points(depth[k], cameras[frames[k]]), depth[n], cameras[t], options.agreement)
            share = min(forth, back / max(1, int(size[k])))
            if share >= options.overlap:
                out.append((share, t, frames[k]))
    return sorted(out, key=lambda f: (-f[0], f[1], f[2]))


def _points(depth: Tensor, camera: Camera) -> Tensor:
    """(N, 3) world points of the known cells."""
    assert camera.K is not None and camera.world_from_cam is not None
    height, width = depth.shape
    row, column = torch.nonzero(depth > 0, as_tuple=True)
    xy = torch.stack(
        [(column + 0.5) * camera.width / width, (row + 0.5) * camera.height / height], -1
    ).double()
    local = unproject(xy, depth[row, column], camera.K)
    return local @ camera.world_from_cam[:3, :3].T + camera.world_from_cam[:3, 3]


def _seen(points: Tensor, depth: Tensor, camera: Camera, agreement: float = 0.10) -> int:
    """How many world points fall into the picture of a camera at a depth that agrees with its cells."""
    assert camera.K is not None and camera.world_from_cam is not None
    pose, K = camera.world_from_cam, camera.K
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    z = local[:, 2].clamp_min(1e-9)
    x = (K[0, 0] * local[:, 0] + K[0, 1] * local[:, 1]) / z + K[0, 2]
    y = K[1, 1] * local[:, 1] / z + K[1, 2]
    inside = (local[:, 2] > 1e-6) & (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
    height, width = depth.shape
    column = (x[inside] * width / camera.width).long().clamp(0, width - 1)
    row = (y[inside] * height / camera.height).long().clamp(0, height - 1)
    other = depth[row, column]
    return int(((other > 0) & ((z[inside] - other).abs() <= agreement * other)).sum())
