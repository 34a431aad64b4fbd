"""Pictures and cameras at stereo resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.contract import Camera, View
from relief3d.core.errors import InputError
from relief3d.geometry.camera_edits import resize_camera

LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class PreparedView:
    """One posed pinhole view, resized for stereo.

    Attributes:
        index: position in ``Scene.views``.
        name: for messages.
        camera: pinhole camera at stereo resolution.
        grey: (H, W) float32 in [0, 1] on the working device.
        mask: (H, W) bool, True where usable, or None.
    """

    index: int
    name: str
    camera: Camera
    grey: Tensor
    mask: Tensor | None = None

    @property
    def K(self) -> Tensor:
        """(3, 3) float64 intrinsics."""
        assert self.camera.K is not None
        return self.camera.K

    @property
    def cam_from_world(self) -> Tensor:
        """(4, 4) float64."""
        pose = self.camera.cam_from_world
        assert pose is not None
        return pose

    @property
    def world_from_cam(self) -> Tensor:
        """(4, 4) float64."""
        assert self.camera.world_from_cam is not None
        return self.camera.world_from_cam


def relative_pose(source: PreparedView, target: PreparedView) -> Tensor:
    """(4, 4) float64 transform from the camera frame of ``source`` to that of ``target``."""
    return target.cam_from_world @ source.world_from_cam


def stereo_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) with the longer side at most ``longest``, same shape up to rounding, never enlarged."""
    factor = min(1.0, longest / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def prepare_view(view: View, index: int, longest: int, device: torch.device | str) -> PreparedView:
    """Load, grey and resize one posed view.

    Raises:
        InputError: when the view has no intrinsics or pose, still has lens distortion, or its picture or
            mask does not have the camera's size.
    """
    camera = view.camera
    if camera.K is None or camera.world_from_cam is None:
        raise InputError(f"view '{view.name}' has no known camera", remedy="estimate cameras first")
    if camera.distortion is not None and not camera.distortion.is_identity:
        raise InputError(
            f"view '{view.name}' still has lens distortion", remedy="undistort the views before dense stereo"
        )
    image = view.load_image().to(torch.float32)
    if tuple(image.shape) != (3, camera.height, camera.width):
        raise InputError(
            f"view '{view.name}': picture {tuple(image.shape)} does not fit its camera "
            f"{camera.width}x{camera.height}"
        )
    grey = (image * torch.tensor(LUMA)[:, None, None]).sum(dim=0).nan_to_num(0.0).clamp(0.0, 1.0)
    width, height = stereo_size(camera.width, camera.height, longest)
    if (width, height) != (camera.width, camera.height):
        grey = F.interpolate(
            grey[None, None], (height, width), mode="bilinear", antialias=True, align_corners=False
        )[0, 0]
    mask = view.load_mask()
    if mask is not None:
        if tuple(mask.shape) != (camera.height, camera.width):
            raise InputError(f"view '{view.name}': mask {tuple(mask.shape)} does not fit its camera")
        usable = F.interpolate(mask.float()[None, None], (height, width), mode="area")[0, 0]
        mask = (usable > 0.5).to(device)
    small = resize_camera(camera.replace(distortion=None), width, height)
    return PreparedView(index, view.name, small, grey.contiguous().to(device), mask)
