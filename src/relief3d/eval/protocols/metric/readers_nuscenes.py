"""Front pictures of nuScenes with the depth of their lidar sweep, for metric depth.

The tables and sweeps are read by :mod:`relief3d.data.readers.nuscenes_tables` and ``nuscenes_sensors``.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.readers.nuscenes_sensors import camera_from_sensor, outside_ego_box, read_lidar
from relief3d.data.readers.nuscenes_tables import (
    NuScenes,
    SensorFrame,
    nearest_in_time,
    validation_scenes,
)
from relief3d.data.readers.nuscenes_tables import open_tables as open_nuscenes
from relief3d.eval.protocols.metric.frames import FrameFile, load_rgb8
from relief3d.geometry.point_splat import drop_occluded, splat_depth
from relief3d.geometry.transforms import transform_points

__all__ = [
    "LAYOUT",
    "NuScenes",
    "SensorFrame",
    "camera_from_sensor",
    "lidar_depth",
    "nearest_in_time",
    "open_front_frames",
    "open_nuscenes",
    "outside_ego_box",
    "read_lidar",
    "validation_scenes",
]

LAYOUT = """\
v1.0-trainval/{scene,sample,sample_data,calibrated_sensor,ego_pose,sensor}.json (or v1.0-mini)
samples/CAM_FRONT/*.jpg, samples/LIDAR_TOP/*.pcd.bin, samples/RADAR_FRONT/*.pcd"""


def lidar_depth(
    root: Path,
    lidar: SensorFrame,
    camera: SensorFrame,
    *,
    ego_motion: bool = True,
    keep_ego: bool = False,
    occlusion: bool = False,
) -> Tensor:
    """(H, W) float32 z-depth of one lidar sweep in a camera's picture, 0 where no point falls.

    Args:
        root: of the data set.
        lidar: sweep.
        camera: picture.
        ego_motion: see :func:`camera_from_sensor`.
        keep_ego: keep points on the car itself.
        occlusion: drop points that a nearer neighbour should hide (:func:`drop_occluded`).

    Raises:
        InputError: the sweep cannot be read, or ``camera`` is no camera.
    """
    if camera.K is None or camera.size is None:
        raise InputError(f"'{camera.channel}' is not a camera")
    points = read_lidar(root / lidar.path)[:, :3].double()
    if not keep_ego:
        points = points[outside_ego_box(points, lidar.ego_from_sensor)]
    moved = transform_points(camera_from_sensor(lidar, camera, ego_motion=ego_motion), points)
    depth = splat_depth(moved, camera.K, camera.size).float()
    return drop_occluded(depth) if occlusion else depth


def open_front_frames(root: Path, *, scenes: frozenset[str] | None = None) -> list[FrameFile]:
    """CAM_FRONT keyframes with the depth of their LIDAR_TOP sweep.

    Args:
        root: of the data set.
        scenes: wanted scenes; the official validation scenes when None.

    Raises:
        InputError: tables are missing, or a keyframe has no lidar sweep.
    """
    opened = open_nuscenes(root, scenes=validation_scenes() if scenes is None else scenes)
    sweeps = opened.by_sample("LIDAR_TOP")
    out = []
    for camera in opened.keyframes("CAM_FRONT"):
        lidar = sweeps.get(camera.sample)
        if lidar is None:
            raise InputError(
                f"the keyframe '{camera.sample}' has no LIDAR_TOP sweep",
                path=root,
                remedy="repair sample_data.json",
            )
        out.append(_frame_file(root, camera, lidar))
    if not out:
        raise InputError("holds no CAM_FRONT keyframes", path=root)
    return out


def _frame_file(root: Path, camera: SensorFrame, lidar: SensorFrame) -> FrameFile:
    def depth() -> Tensor:
        return lidar_depth(root, lidar, camera)

    return FrameFile(
        name=f"{camera.scene}/{Path(camera.path).stem}",
        group=camera.scene,
        load_image=lambda: load_rgb8(root / camera.path),
        load_depth=depth,
        load_valid=lambda: depth() > 0,
        K=camera.K,
    )
