"""Radar returns of nuScenes: the public .pcd files, and their projection into the front camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.nuscenes_sensors import camera_from_sensor, radar_points
from relief3d.data.readers.nuscenes_tables import SensorFrame
from relief3d.geometry.point_splat import splat_depth
from relief3d.geometry.projection import project
from relief3d.geometry.transforms import compose, invert_rigid, transform_points

REACH = 80.0
"""Returns count strictly between 0 and this camera depth, metres (2.7 f)."""
COLUMN_HEIGHT = 2.5


@dataclass(frozen=True)
class RadarOptions:
    """How radar returns become a prompt (section 18).

    Attributes:
        sweeps: recordings up to the one nearest to the picture that are joined.
        ego_motion: account for the drive of the car between recordings and picture.
        filtered: keep only returns that the development kit keeps (valid, not ambiguous); off for recall.
        column: spread every return along its image column from the ground to 2.5 m, all with its depth.
    """

    sweeps: int = 1
    ego_motion: bool = True
    filtered: bool = False
    column: bool = False


def radar_prompt(
    root: Path, radars: Sequence[SensorFrame], camera: SensorFrame, options: RadarOptions = RadarOptions()
) -> Tensor:
    """(H, W) float32 depth of radar returns in a camera's picture, 0 where none; strictly between 0 and 80 m.

    Args:
        root: of the data set.
        radars: recordings of RADAR_FRONT of the picture's scene in order of time.
        camera: the picture.
        options: see :class:`RadarOptions`.

    Raises:
        InputError: a file cannot be read, ``camera`` is no camera, or there is no recording.
    """
    if camera.K is None or camera.size is None:
        raise InputError(f"'{camera.channel}' is not a camera")
    if not radars:
        raise InputError(f"the scene '{camera.scene}' has no radar recordings", path=root)
    nearest = min(range(len(radars)), key=lambda i: (abs(radars[i].time - camera.time), radars[i].time))
    prompt = torch.zeros(camera.size)
    for radar in radars[max(0, nearest - options.sweeps + 1) : nearest + 1]:
        points = radar_points(root / radar.path, filtered=options.filtered)
        moved = camera_from_sensor(radar, camera, ego_motion=options.ego_motion)
        if options.column:
            one = column_depth(points, moved, camera)
        else:
            one = splat_depth(transform_points(moved, points), camera.K, camera.size).float()
        prompt = nearer(prompt, within_reach(one))
    return prompt


def within_reach(depth: Tensor) -> Tensor:
    """The depth map with only values strictly between 0 and 80 m."""
    return torch.where((depth > 0) & (depth < REACH), depth, torch.zeros_like(depth))


def nearer(a: Tensor, b: Tensor) -> Tensor:
    """The smaller known depth of two sparse maps, 0 where both are unknown."""
    far = torch.full_like(a, torch.inf)
    out = torch.minimum(torch.where(a > 0, a, far), torch.where(b > 0, b, far))
    return torch.where(torch.isinf(out), torch.zeros_like(out), out)


def column_depth(points: Tensor, camera_from_radar: Tensor, camera: SensorFrame) -> Tensor:
    """(H, W) every return (P, 3) of the radar's frame spread over its image column, ground to 2.5 m, with its depth."""
    if camera.K is None or camera.size is None:
        raise InputError(f"'{camera.channel}' is not a camera")
    height, width = camera.size
    K, out = camera.K, torch.zeros(camera.size)
    centre = transform_points(camera_from_radar, points)
    ego_from_camera = camera.ego_from_sensor
    camera_from_ego = invert_rigid(ego_from_camera)
    grounded = transform_points(compose(ego_from_camera, camera_from_radar), points)
    ends = []
    for level in (0.0, COLUMN_HEIGHT):
        at = grounded.clone()
        at[:, 2] = level
        ends.append(project(transform_points(camera_from_ego, at), K)[0][:, 1])
    columns = project(centre, K)[0][:, 0]
    for u, low, high, z in zip(columns.tolist(), ends[1].tolist(), ends[0].tolist(), centre[:, 2].tolist()):
        if z <= 0 or not 0 <= u < width:
            continue
        top, bottom = max(0, int(np.floor(low))), min(height - 1, int(np.floor(high)))
        if top <= bottom:
            line = out[top : bottom + 1, int(u)]
            out[top : bottom + 1, int(u)] = nearer(line, torch.full_like(line, z))
    return out
