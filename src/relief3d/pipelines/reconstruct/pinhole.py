"""Views without lens distortion: what dense stereo, networks and fusion work on."""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.contract import Depth, View
from relief3d.geometry.distortion import undistort_image, undistorted_camera


def pinhole_view(view: View) -> View:
    """The view without lens distortion: picture, mask and depth are resampled when they are loaded."""
    camera = view.camera
    if camera.distortion is None or camera.distortion.is_identity:
        return view.replace(camera=camera.replace(distortion=None))

    def image() -> Tensor:
        return undistort_image(view.load_image(), camera)[0]

    def mask() -> Tensor:
        own = view.load_mask()
        ones = torch.ones(1, camera.height, camera.width) if own is None else own[None].float()
        picture, valid = undistort_image(ones, camera, mode="nearest")
        return valid & (picture[0] > 0.5)

    def depth() -> Depth:
        own = view.load_depth()
        assert own is not None
        layers = torch.stack([own.values, own.valid.float()])
        (values, ok), valid = undistort_image(layers, camera, mode="nearest")
        return Depth(values * (ok > 0.5) * valid, (ok > 0.5) & valid, own.metric)

    return view.replace(
        camera=undistorted_camera(camera),
        image=image if view.image is not None else None,
        mask=mask,
        depth=depth if view.depth is not None else None,
    )
