"""Raw lidar and radar clouds seen in a picture: scanned beside the camera, brought over by a calibration, z-buffered.

What lands in the picture is what real data have: a sensor beside the camera sees over and around things, so some of its
points belong to surfaces that the picture does not show; a calibration is a little wrong; radar does not know height.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relief3d.geometry.point_splat import drop_occluded, splat_depth
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid, transform_points
from relief3d.worlds.ranging import Scan, lidar_scan, radar_scan, spinning_pattern
from relief3d.worlds.world import World


@dataclass(frozen=True)
class Rig:
    """A ranging sensor beside a camera.

    Attributes:
        kind: which sensor.
        offset: (x, y, z) of the sensor in the camera's frame, metres; negative y is above.
        beams, columns: of a lidar's full turn.
        field: lowest and highest elevation of a lidar, degrees.
        noise: standard deviation of a lidar's range, metres.
        angle_error: standard deviation of the calibration's rotation, degrees.
        shift_error: of its translation, metres.
        occlusion: remove points that a nearer neighbour in the picture should hide.
    """

    kind: Literal["lidar", "radar"] = "lidar"
    offset: tuple[float, float, float] = (0.1, -0.25, -0.1)
    beams: int = 64
    columns: int = 1024
    field: tuple[float, float] = (-25.0, 15.0)
    noise: float = 0.015
    angle_error: float = 0.0
    shift_error: float = 0.0
    occlusion: bool = False


def cam_from_sensor(offset: tuple[float, float, float]) -> Tensor:
    """(4, 4) float64 pose of a sensor (x forward, y left, z up) that looks as the camera does, at an offset from it."""
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    out[:3, 3] = torch.tensor(offset)
    return out


def scan_pictures(
    world: World,
    K: Tensor,
    world_from_cam: Tensor,
    size: tuple[int, int],
    generator: torch.Generator,
    rig: Rig = Rig(),
    *,
    times: Tensor | None = None,
) -> tuple[Tensor, Scan]:
    """Scan every world from beside its camera and draw the points into its picture.

    Args:
        world: W worlds.
        K: (W, 3, 3) pixels.
        world_from_cam: (W, 4, 4).
        size: (H, W) of the pictures.
        generator: on the world's device.
        rig: the sensor.
        times: (W,) seconds.

    Returns:
        (W, H, W) sparse z-depth in metres, 0 where no point falls, and the scan.
    """
    true = cam_from_sensor(rig.offset).to(world_from_cam.device)
    world_from_sensor = world_from_cam.double() @ true
    if rig.kind == "lidar":
        rays = spinning_pattern(rig.beams, rig.columns, low=rig.field[0], high=rig.field[1])
        scan = lidar_scan(world, world_from_sensor, rays, generator, times=times, noise=rig.noise)
    else:
        scan = radar_scan(world, world_from_sensor, generator, times=times)
    believed = _wrong(true, rig, generator)
    sensor_from_world = invert_rigid(world_from_sensor)
    maps = []
    for w in range(world.count):
        local = transform_points(sensor_from_world[w], scan.points[w][scan.valid[w]].double())
        depth = splat_depth(transform_points(believed, local), K[w].double(), size).float()
        maps.append(drop_occluded(depth) if rig.occlusion else depth)
    return torch.stack(maps), scan


def _wrong(pose: Tensor, rig: Rig, generator: torch.Generator) -> Tensor:
    """The calibration as it is believed to be."""
    luck = torch.randn(2, 3, generator=generator, device=generator.device).to(pose)
    out = pose.clone()
    turn = matrix_from_axis_angle(luck[0] * math.radians(rig.angle_error))
    out[:3, :3] = turn @ pose[:3, :3]
    out[:3, 3] += luck[1] * rig.shift_error
    return out
