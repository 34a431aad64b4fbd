"""Cameras from the depth network itself, where there are no poses or intrinsics (specification 2.8, 14).

Submaps are chained by similarities between the same pixels of their shared frames, as in long sequences
(:mod:`relief3d.models.multiview.long_alignment`, after VGGT-Long).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relief3d.core.contract import Camera
from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_world_points, resize_intrinsics
from relief3d.geometry.transforms import split_similarity
from relief3d.methods.vfm_recon.config import MaskConfig
from relief3d.methods.vfm_recon.inputs import DepthSource, SubmapDepth, checked_depth
from relief3d.methods.vfm_recon.masks import BelievedDepth
from relief3d.methods.vfm_recon.overlap import home
from relief3d.methods.vfm_recon.submaps import Submap, submaps_of_frames
from relief3d.models.multiview.long_alignment import fit_overlap

POINTS = 4000
"""Pixels per shared frame that take part in a joint, evenly taken."""


def fill_intrinsics(
    cameras: Sequence[Camera], submaps: Sequence[Submap], depths: DepthSource
) -> list[Camera]:
    """Cameras without K get the median of what the network estimates over all keyframes, at their own size.

    One focal length in widths is taken for all, since submaps disagree more than cameras differ.

    Raises:
        InputError: the depth source gives no intrinsics.
    """
    if all(c.K is not None for c in cameras):
        return list(cameras)
    found = []
    for submap in submaps:
        maps = checked_depth(depths, submap)
        if maps.K is not None:
            size = (int(maps.depth.shape[2]), int(maps.depth.shape[1]))
            found.append(resize_intrinsics(maps.K.double(), size, (1, 1)))
    if not found:
        raise InputError(
            "keyframes have no intrinsics and the depth network estimates none", remedy="give K of the camera"
        )
    unit = torch.cat(found).median(0).values
    unit[2] = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return [
        c
        if c.K is not None
        else c.replace(K=resize_intrinsics(unit, (1, 1), (c.width, c.height)), K_source="estimated")
        for c in cameras
    ]


def chain_poses(
    cameras: Sequence[Camera], submaps: Sequence[Submap], depths: DepthSource, mask: MaskConfig | None = None
) -> list[Camera]:
    """Keyframes with poses predicted by the network, submap after submap joined by similarities.

    The unit is that of the first submap (of every segment); ``align_scene`` with ``units="pose"`` then settles the
    scales. A submap that shares no frame with the one before begins a new segment at the origin of its own, so its
    keyframes get poses only if nothing came before.

    Args:
        cameras: of the keyframes; given poses are ignored.
        submaps: of the chain, from ``plan_submaps``.
        depths: must give ``world_from_cam`` (and ``K``, or cameras have it).
        mask: which pixels take part.

    Raises:
        InputError: the depth source gives no poses, or shared frames determine no similarity.
    """
    mask = mask or MaskConfig()
    places = submaps_of_frames(submaps)
    poses: dict[int, Tensor] = {}
    before: BelievedDepth | None = None
    to_world = torch.eye(4, dtype=torch.float64)
    for submap in submaps:
        maps = checked_depth(depths, submap)
        if maps.world_from_cam is None:
            raise InputError(
                "the depth source predicts no poses", remedy="give poses or use structure from motion"
            )
        here = BelievedDepth(submap, maps, mask)
        if before is not None:
            shared = [t for t in before.submap.frames if t in submap.frames]
            if not shared:
                break
            to_world = to_world @ _joint(before, here, shared, cameras)
        _, rotation, _ = split_similarity(to_world)
        for place, frame in enumerate(submap.frames):
            if home(places[frame], submaps)[0] == submap.index:
                pose = to_world @ maps.world_from_cam[place].double()
                pose[:3, :3] = rotation @ maps.world_from_cam[place, :3, :3].double()
                poses[frame] = pose
        before = here
    return [c.replace(world_from_cam=poses.get(k)) for k, c in enumerate(cameras)]


def _joint(
    before: BelievedDepth, here: BelievedDepth, shared: Sequence[int], cameras: Sequence[Camera]
) -> Tensor:
    """(4, 4) similarity that takes the frame of ``here`` to that of ``before``."""
    points: tuple[list[Tensor], list[Tensor]] = ([], [])
    weights: tuple[list[Tensor], list[Tensor]] = ([], [])
    for frame in shared:
        height, width = before.maps.depth.shape[-2:]
        step = max(1, round((height * width / POINTS) ** 0.5))
        for k, side in enumerate((before, here)):
            place = side.submap.position(frame)
            K = _intrinsics(side.maps, place, cameras[frame])
            assert side.maps.world_from_cam is not None
            depth = side.maps.depth[place].double()
            world = depth_to_world_points(depth, K, side.maps.world_from_cam[place].double())
            points[k].append(world[::step, ::step].reshape(-1, 3))
            confidence = torch.ones_like(depth)
            if side.maps.confidence is not None:
                confidence = side.maps.confidence[place].double().clamp_min(1e-3)
            weights[k].append((confidence * side.full(place))[::step, ::step].reshape(-1))
    fit = fit_overlap(
        torch.cat(points[0]),
        torch.cat(weights[0]),
        torch.cat(points[1]),
        torch.cat(weights[1]),
        frames=len(shared),
    )
    return fit.a_from_b


def _intrinsics(maps: SubmapDepth, place: int, camera: Camera) -> Tensor:
    if maps.K is not None:
        return maps.K[place].double()
    if camera.K is None:
        raise InputError("poses can be chained only with intrinsics", remedy="give K of the cameras")
    size = (int(maps.depth.shape[2]), int(maps.depth.shape[1]))
    return resize_intrinsics(camera.K, (camera.width, camera.height), size)
