"""A network's depth as the maps of a result: judged by the other views, at the size of the original pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, View
from relief3d.geometry.camera_edits import resize_camera
from relief3d.pipelines.multiview.neighbours import choose_neighbours, prepared_views
from relief3d.pipelines.multiview.store import NetworkDepth
from relief3d.pipelines.multiview.upsampling import upsample_depth
from relief3d.stereo.consistency import check_view, confidence
from relief3d.stereo.views import stereo_size

DROPPED_SHARE = 0.05
"""Least trusted share of a view's pixels, which is dropped."""
PIXELS, RELATIVE = 2.0, 0.03
"""Tolerances of agreement between views; a network's depth is smooth, but off by some per cent."""
WITNESSES = 3
"""A pixel that so many other pictures contain must be confirmed by one of them."""


@dataclass(frozen=True)
class NetworkMap:
    """One finished map.

    Attributes:
        index: of the view.
        camera: pinhole camera at the map's size.
        depth: with confidence in [0, 1].
        neighbours: views it was compared with.
        kept: share of the picture's pixels with depth.
        confirmed: share of the pixels that others contain and one of them confirms; None: no others.
    """

    index: int
    camera: Camera
    depth: Depth
    neighbours: tuple[int, ...]
    kept: float
    confirmed: float | None


@dataclass(frozen=True)
class Judgement:
    """Which pixels of a network's map to believe.

    Attributes:
        keep: (H, W) bool.
        score: (H, W) float32 in [0, 1].
        confirmed: see :class:`NetworkMap`.
    """

    keep: Tensor
    score: Tensor
    confirmed: float | None


class Judge:
    """Compares every view's depth with its neighbours'.

    Args:
        poses: (N, 4, 4) float64 world_from_cam.
        depth: of the views.
    """

    def __init__(self, poses: Tensor, depth: NetworkDepth) -> None:
        values, _ = depth.read(0)
        self.depth = depth
        self.views = prepared_views(poses, depth, (int(values.shape[0]), int(values.shape[1])))
        self.neighbours = choose_neighbours(poses, depth)

    def judge(self, index: int) -> Judgement:
        """What to believe of one view; random weights are believed, since nothing they say means anything."""
        values, trust = self.depth.read(index)
        usable = (values > 0) & (trust > 0)
        if self.depth.untrained:
            return Judgement(usable, trust * usable, None)
        keep = usable.clone()
        if bool(usable.any()):
            ordered = trust[usable].sort().values
            keep &= trust >= ordered[int(DROPPED_SHARE * (len(ordered) - 1))]
        others = [(self.views[j], self._inverse(j)) for j in self.neighbours[index]]
        if not others:
            return Judgement(keep, trust * keep, None)
        found = check_view(self.views[index], self._inverse(index), others, pixels=PIXELS, relative=RELATIVE)
        contradicted = (found.against > found.count) | ((found.seen >= WITNESSES) & (found.count == 0))
        seen = usable & (found.seen > 0)
        confirmed = float((seen & (found.count > 0)).sum()) / max(1, int(seen.sum()))
        keep &= ~contradicted
        score = confidence(found.count, trust, len(others)) * keep
        return Judgement(keep, score, confirmed)

    def _inverse(self, index: int) -> Tensor:
        values, trust = self.depth.read(index)
        usable = (values > 0) & (trust > 0)
        return torch.where(usable, 1 / values.clamp_min(1e-30), torch.zeros_like(values))


def make_map(
    view: View,
    index: int,
    judge: Judge,
    *,
    metric: bool,
    longest: int = 0,
    small_picture: Tensor | None = None,
) -> NetworkMap:
    """The map of one view at the size of its picture.

    Args:
        view: without lens distortion, with its final camera.
        index: of the view.
        judge: of all views.
        metric: lengths are metres.
        longest: the map is made smaller than the picture so that its longer side is this; 0: the picture's size.
        small_picture: (3, H, W) the network's picture, the other half of the guide.
    """
    depth, found = judge.depth, judge.judge(index)
    values, _ = depth.read(index)
    picture = view.load_image() if view.image is not None and small_picture is not None else None
    width, height = view.camera.width, view.camera.height
    affine = depth.network_from_original[index]
    if longest:
        width, height = stereo_size(width, height, longest)
        scale = torch.tensor(
            [view.camera.width / width, view.camera.height / height, 1.0], dtype=torch.float64
        )
        affine = affine @ torch.diag(scale)
        if picture is not None and tuple(picture.shape[1:]) != (height, width):
            picture = torch.nn.functional.interpolate(
                picture[None], (height, width), mode="bilinear", antialias=True, align_corners=False
            )[0]
    large = upsample_depth(
        values, found.keep, affine, (height, width), guide=picture, small_guide=small_picture
    )
    mask = view.load_mask()
    if mask is not None:
        large = large * _nearest(mask, (height, width))
    score = _placed(found.score, affine, (height, width)) * (large > 0)
    camera = resize_camera(view.camera, width, height)
    finished = Depth(large, large > 0, metric, score.clamp(0, 1))
    kept = float((large > 0).float().mean())
    return NetworkMap(index, camera, finished, tuple(judge.neighbours[index]), kept, found.confirmed)


def _nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(mask.shape) == size:
        return mask.float()
    return torch.nn.functional.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0]


def _placed(score: Tensor, affine: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest pixel of the network's map for every pixel of the original."""
    height, width = score.shape
    x = affine[0, 0] * (torch.arange(size[1], dtype=torch.float64) + 0.5) + affine[0, 2]
    y = affine[1, 1] * (torch.arange(size[0], dtype=torch.float64) + 0.5) + affine[1, 2]
    return score[y.floor().long().clamp(0, height - 1)][:, x.floor().long().clamp(0, width - 1)]
