"""Time and memory of dense stereo before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from relief3d.stereo.config import StereoConfig
from relief3d.stereo.views import stereo_size

# Nanoseconds on one core of a 2024 server processor, measured at 384 x 256 with 96 planes and 8 neighbours.
NS_PER_VOXEL_AND_NEIGHBOUR = 22.0
NS_PER_VOXEL = 28.0
NS_PER_PIXEL = 2000.0
NS_PER_TRIAL = 15.0
"""Slanted refinement: one window sample of one hypothesis in one neighbour."""


@dataclass(frozen=True)
class StereoPlan:
    """An estimate.

    Attributes:
        width, height: stereo resolution.
        planes: depth planes.
        neighbours: neighbours per view.
        seconds: on one processor core.
        work_bytes: working memory of the view in progress.
        kept_bytes: maps of all views that stay in memory until the end.
    """

    width: int
    height: int
    planes: int
    neighbours: int
    seconds: float
    work_bytes: int
    kept_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Memory needed at the worst moment, without PyTorch itself (about 250 MB)."""
        return self.work_bytes + self.kept_bytes


def plan_stereo(
    config: StereoConfig, size: tuple[int, int], views: int, device_type: str = "cpu"
) -> StereoPlan:
    """Estimated time and memory of :func:`relief3d.stereo.estimate_depths`.

    Args:
        config: settings.
        size: (width, height) of the pictures.
        views: number of pictures.
        device_type: type of the torch device; the seconds hold for one processor core only.

    Returns:
        The estimate. Time is linear in pixels x planes x neighbours x views. Working memory holds two volumes of
        pixels x planes floats, one block of costs with its sorted list, and one warp field per neighbour; it
        does not depend on the number of views. Each view keeps its grey picture, two working maps and its
        result (40 bytes per pixel).
    """
    width, height = stereo_size(size[0], size[1], config.max_width)
    pixels = width * height
    planes = config.plane_count(max(width, height))
    neighbours = min(config.neighbours, max(0, views - 1))
    per_pixel = planes * (NS_PER_VOXEL_AND_NEIGHBOUR * neighbours + NS_PER_VOXEL) + NS_PER_PIXEL
    trials = 25 * 11 * min(config.refine_neighbours, neighbours) * config.refine_iterations
    seconds = 1e-9 * views * pixels * (per_pixel + NS_PER_TRIAL * trials)
    block = config.block_size(device_type)
    floats = 2 * planes + block * (12 + config.best_count(max(1, neighbours))) + 3 * neighbours
    floats += 80 if config.refine_iterations else 0
    return StereoPlan(
        width,
        height,
        planes,
        neighbours,
        seconds,
        work_bytes=4 * pixels * floats,
        kept_bytes=40 * pixels * views,
    )
