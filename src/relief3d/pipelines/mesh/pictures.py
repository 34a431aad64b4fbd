"""Keyframes as the rest of the work sees them: without lens distortion, small, and a few of them in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.geometry.camera_edits import resize_camera
from relief3d.geometry.masked_resize import masked_nearest_indices
from relief3d.pipelines.reconstruct.pinhole import pinhole_view
from relief3d.stereo.views import stereo_size

T = TypeVar("T")
KEPT = 24
"""Small pictures in memory: those of three submaps."""


class Recent:
    """The last few results of a function of whole numbers (or pairs of them)."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._values: OrderedDict[object, object] = OrderedDict()

    def get(self, key: object, make: Callable[[], T]) -> T:
        """The result for a key, made now when it is not at hand."""
        if key not in self._values:
            self._values[key] = make()
            while len(self._values) > self._kept:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]  # type: ignore[return-value]


class KeyframeViews:
    """The keyframes of a scene as pinhole views of at most ``width`` pixels along the longer side.

    Args:
        scene: posed.
        frames: which views are keyframes.
        width: longer side in pixels; smaller pictures keep their size.
    """

    def __init__(self, scene: Scene, frames: Sequence[int], width: int) -> None:
        self.scene = scene
        self.frames = tuple(frames)
        self.flat: tuple[View, ...] = tuple(pinhole_view(scene.views[i]) for i in self.frames)
        sizes = [stereo_size(v.camera.width, v.camera.height, width) for v in self.flat]
        self.cameras: tuple[Camera, ...] = tuple(
            resize_camera(v.camera, *size) for v, size in zip(self.flat, sizes, strict=True)
        )
        self._pictures = Recent(KEPT)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the keyframes."""
        return tuple(v.name for v in self.flat)

    def picture(self, k: int) -> Tensor:
        """(3, h, w) float32 RGB in [0, 1] at the size of ``cameras[k]``."""
        return self._pictures.get(k, lambda: self._picture(k))

    def _picture(self, k: int) -> Tensor:
        image, size = self.flat[k].load_image(), (self.cameras[k].height, self.cameras[k].width)
        if tuple(image.shape[-2:]) == size:
            return image
        small = torch.nn.functional.interpolate(
            image[None], size, mode="bilinear", antialias=True, align_corners=False
        )
        return small[0].clamp(0, 1)

    def mask(self, k: int) -> Tensor | None:
        """(h, w) bool, True where the picture may be used, or None for everywhere."""
        view = self.flat[k]
        if view.mask is None or (
            self.scene.views[self.frames[k]].mask is None
            and self.scene.views[self.frames[k]].camera.distortion is None
        ):
            return None
        mask = view.load_mask()
        if mask is None:
            return None
        size = (self.cameras[k].height, self.cameras[k].width)
        if tuple(mask.shape) == size:
            return mask
        return torch.nn.functional.interpolate(mask[None, None].float(), size, mode="area")[0, 0] > 0.999

    def depth(self, k: int) -> Depth | None:
        """Known depth at the size of ``cameras[k]``, each pixel that of the nearest known one within it."""
        found = self.flat[k].load_depth()
        if found is None:
            return None
        size = (self.cameras[k].height, self.cameras[k].width)
        if tuple(found.values.shape) == size:
            return found
        picked = masked_nearest_indices(found.valid, size)
        return Depth(picked.take(found.values) * picked.valid, picked.valid, found.metric)

    def view(self, k: int) -> View:
        """The keyframe as a view of its own, loaded when asked for."""
        return View(
            self.names[k],
            self.cameras[k],
            image=lambda: self.picture(k),
            mask=None if self.mask(k) is None else (lambda: self._mask(k)),
        )

    def _mask(self, k: int) -> Tensor:
        mask = self.mask(k)
        assert mask is not None
        return mask
