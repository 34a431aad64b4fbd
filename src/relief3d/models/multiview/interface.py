"""One way to ask any multi-view network: pictures and whatever is known in, a :class:`Prediction` out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from relief3d.core.contract import Prediction
from relief3d.core.device import Precision, autocast_dtype
from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_points, pixel_rays, points_to_world
from relief3d.geometry.transforms import invert_rigid
from relief3d.models.multiview.known_inputs import check_shapes, known_depth
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pi3x import Conditions, Pi3X
from relief3d.models.multiview.pose_encoding import decode_cameras
from relief3d.models.multiview.preprocess import Mode
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Head, Vggt
from relief3d.nn.attention import Attend, attend_fully
from relief3d.nn.blocks import Block


@dataclass(frozen=True)
class Known:
    """What is known about the views, in the network's pixels; absent parts are None.

    Attributes:
        K: (B, N, 3, 3) pixels.
        world_from_cam: (B, N, 4, 4), in the unit of ``depth``.
        depth: (B, N, H, W) z-depth, 0 where unknown.
        has_K: (B, N) bool, views whose intrinsics are really known; None for all.
        has_pose: (B, N) bool, likewise for the poses.
        metric: True when the given lengths are metres.
    """

    K: Tensor | None = None
    world_from_cam: Tensor | None = None
    depth: Tensor | None = None
    has_K: Tensor | None = None
    has_pose: Tensor | None = None
    metric: bool = False


class MultiViewModel(Protocol):
    """A multi-view network behind the common interface.

    Attributes:
        name: of the architecture.
        patch: picture sides must be multiples of it.
        prepare_mode: how its pictures are prepared.
        takes: which parts of :class:`Known` it uses itself; others are used afterwards, by alignment.
    """

    name: str
    patch: int
    prepare_mode: Mode
    takes: frozenset[str]

    def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
        """Reconstruct (B, N, 3, H, W) pictures in [0, 1]. Results are inference tensors: clone them for training."""
        ...


@dataclass(frozen=True)
class InferenceOptions:
    """How to run a network; none of these changes the result beyond rounding of the chosen precision, but ``attend``.

    Attributes:
        precision: of the transformer; ``auto`` is bfloat16 on accelerators that have it, else float32. Heads always
            run in float32, as they were trained.
        chunk: views at a time wherever views are independent.
        attend: inner product of the attention across views.
        compile: translate the transformer's blocks with ``torch.compile`` on first use, for many runs of one size.
    """

    precision: Precision = "auto"
    chunk: int | None = 8
    attend: Attend = attend_fully
    compile: bool = False


def check_images(images: Tensor, patch: int, known: Known | None = None) -> None:
    """Refuse what no network can take.

    Raises:
        InputError: not (B, N, 3, H, W), no views, not floating-point, or sides that are not multiples of the patch; or
            known geometry of other views or pixels.
    """
    if not images.is_floating_point():
        raise InputError(
            f"pictures must be floating-point in [0, 1], not {images.dtype}",
            remedy="divide 8-bit values by 255",
        )
    if images.ndim != 5 or images.shape[2] != 3 or 0 in images.shape:
        raise InputError(f"pictures must be (B, N, 3, H, W) and not empty, got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if height % patch or width % patch:
        raise InputError(
            f"pictures of {width} x {height} do not divide into patches of {patch} pixels",
            remedy="prepare them with relief3d.models.multiview.preprocess",
        )
    if known is not None:
        check_shapes(
            (images.shape[0], images.shape[1]),
            {
                "depth": (known.depth, (int(height), int(width))),
                "K": (known.K, (3, 3)),
                "world_from_cam": (known.world_from_cam, (4, 4)),
            },
            {"has_K": known.has_K, "has_pose": known.has_pose},
        )


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Compile every transformer block in place, one at a time: blocks of a kind share the translation, and the parts
    around them, which depend on the number of views, stay as they are.

    Returns:
        Number of blocks.
    """
    blocks = [m for m in network.modules() if isinstance(m, Block)]
    for block in blocks:
        block.compile(backend=backend, dynamic=True)
    return len(blocks)


class _Wrapped:
    """What all wrappers share: the network, options, autocast."""

    name = ""
    prepare_mode: Mode = "keep"
    takes: frozenset[str] = frozenset()

    def __init__(self, network: nn.Module, patch: int, options: InferenceOptions | None = None) -> None:
        self.network, self.patch = network.eval(), patch
        self.options = options or InferenceOptions()
        if self.options.compile:
            compile_blocks(network)

    def _autocast(self, device: torch.device) -> torch.autocast:
        dtype = autocast_dtype(self.options.precision, device)
        return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


class VggtModel(_Wrapped):
    """VGGT: poses relative to the first view, intrinsics, depth; points from depth, which is the better of the two."""

    name = "vggt"
    prepare_mode: Mode = "vggt-crop"

    def __init__(self, network: Vggt, options: InferenceOptions | None = None) -> None:
        super().__init__(network, network.config.aggregator.vit.patch, options)
        self.vggt = network

    @torch.inference_mode()
    def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
        """See :class:`MultiViewModel`."""
        check_images(images, self.patch, known)
        heads: tuple[Head, ...] = tuple(h for h in ("camera", "depth") if h in self.vggt.config.heads)
        if heads != ("camera", "depth"):
            raise InputError("this VGGT lacks the camera or the depth head")
        with self._autocast(images.device):
            out = self.vggt(images, heads=heads, chunk=self.options.chunk, attend=self.options.attend)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        cam_from_world, K = decode_cameras(out.pose_encodings[-1].float(), size)
        bottom = cam_from_world.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*cam_from_world.shape[:2], 1, 4)
        poses = invert_rigid(torch.cat([cam_from_world, bottom], -2))
        assert out.depth is not None
        local = depth_to_points(out.depth, K)
        return Prediction(
            depth=out.depth,
            depth_confidence=out.depth_confidence,
            cam_points=local,
            world_points=points_to_world(local, poses),
            points_confidence=out.depth_confidence,
            world_from_cam=poses,
            K=K,
        )


class Pi3Model(_Wrapped):
    """pi3: poses in a frame of its own, free rays; intrinsics are fitted to the rays."""

    name = "pi3"
    prepare_mode: Mode = "pi3"

    def __init__(self, network: Pi3, options: InferenceOptions | None = None) -> None:
        super().__init__(network, network.config.vit.patch, options)
        self.pi3 = network

    @torch.inference_mode()
    def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
        """See :class:`MultiViewModel`; confidence is the sigmoid of the network's logit."""
        check_images(images, self.patch, known)
        with self._autocast(images.device):
            out = self.pi3(images, chunk=self.options.chunk, attend=self.options.attend)
        confidence = out.confidence.sigmoid()
        return _from_points(out.local_points, out.world_points, confidence, out.world_from_cam)


class Pi3XModel(_Wrapped):
    """Pi3X: like pi3, in metres, and takes depth, rays and poses."""

    name = "pi3x"
    prepare_mode: Mode = "pi3"
    takes = frozenset({"K", "world_from_cam", "depth"})

    def __init__(self, network: Pi3X, options: InferenceOptions | None = None) -> None:
        super().__init__(network, network.config.vit.patch, options)
        self.pi3x = network

    @torch.inference_mode()
    def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
        """See :class:`MultiViewModel`."""
        check_images(images, self.patch, known)
        given = None
        if known is not None and any(v is not None for v in (known.K, known.world_from_cam, known.depth)):
            given = Conditions(
                depth=known.depth,
                has_depth=None if known.depth is None else (known_depth(known.depth) > 0).flatten(2).any(2),
                K=known.K,
                has_rays=known.has_K,
                # The pose of a single view says nothing, and the network refuses it.
                world_from_cam=known.world_from_cam if images.shape[1] > 1 else None,
                has_pose=known.has_pose,
            )
        with self._autocast(images.device):
            out = self.pi3x(images, given, chunk=self.options.chunk, attend=self.options.attend)
        confidence = out.confidence.sigmoid()
        found = _from_points(out.local_points, out.world_points, confidence, out.world_from_cam)
        return replace(found, metric=True, extras={"metres_per_unit": out.metric})


class Reliev3rModel(_Wrapped):
    """The Reliev3R network: needs intrinsics unless it has the field-of-view head."""

    name = "reliev3r"
    prepare_mode: Mode = "keep"
    takes = frozenset({"K"})

    def __init__(self, network: Reliev3rNet, options: InferenceOptions | None = None) -> None:
        super().__init__(network, network.config.vit.patch, options)
        self.reliev3r = network

    @torch.inference_mode()
    def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
        """See :class:`MultiViewModel`; confidence is in (0, 2).

        Raises:
            InputError: views without intrinsics and no head that predicts them.
        """
        check_images(images, self.patch, known)
        K = None if known is None else known.K
        if known is not None and known.has_K is not None and not bool(known.has_K.all()):
            K = None  # depth does not depend on K, so those that are known can be put in afterwards
        if K is None and not self.reliev3r.settings.fov_head:
            raise InputError(
                "this network needs the intrinsics of every picture", remedy="give K or a calibrated camera"
            )
        with self._autocast(images.device):
            out = self.reliev3r(images, K, chunk=self.options.chunk, attend=self.options.attend)
        return Prediction(
            depth=out.depth,
            depth_confidence=out.confidence,
            cam_points=out.local_points,
            world_points=out.world_points,
            points_confidence=out.confidence,
            world_from_cam=out.world_from_cam,
            K=out.K,
        )


def wrap(network: nn.Module, options: InferenceOptions | None = None) -> MultiViewModel:
    """The common interface of a network.

    Raises:
        InputError: it is none of the multi-view networks.
    """
    if isinstance(network, Vggt):
        return VggtModel(network, options)
    if isinstance(network, Pi3X):
        return Pi3XModel(network, options)
    if isinstance(network, Pi3):
        return Pi3Model(network, options)
    if isinstance(network, Reliev3rNet):
        return Reliev3rModel(network, options)
    raise InputError(f"{type(network).__name__} is not a multi-view network")


def in_unit_range(confidence: Tensor, name: str) -> Tensor:
    """A network's confidence as (H, W) in [0, 1], same order: 1 - 1/c for VGGT (1 and more), c / 2 for Reliev3R.

    pi3's is a probability already; anything else is c / (1 + c) where it leaves [0, 1].
    """
    if name == "vggt":
        return torch.where(confidence >= 1, 1 - 1 / confidence.clamp_min(1), torch.zeros_like(confidence))
    if name == "reliev3r":
        return (confidence / 2).clamp(0, 1)
    if bool((confidence > 1).any()):
        return confidence / (1 + confidence)
    return confidence.clamp(0, 1)


def intrinsics_from_points(local_points: Tensor, weight: Tensor | None = None) -> Tensor:
    """Pinhole that fits camera-frame points best, principal point in the middle (specification 2.3).

    Args:
        local_points: (..., H, W, 3), z > 0; pixel centres at +0.5.
        weight: (..., H, W) non-negative, or None.

    Returns:
        (..., 3, 3) pixels: fx = sum(x (u - cx)) / sum(x^2) with x = X / Z, likewise fy.
    """
    height, width = local_points.shape[-3:-1]
    z = local_points[..., 2]
    ray = local_points[..., :2] / torch.where(z > 0, z, torch.ones_like(z))[..., None]
    w = torch.ones_like(z) if weight is None else weight.to(z.dtype)
    w = w * (z > 0)
    eye = torch.eye(3, dtype=z.dtype, device=z.device)
    # With K = identity, the rays are the pixel positions themselves.
    uv = pixel_rays(eye, height, width)[..., :2] - z.new_tensor([width / 2, height / 2])
    fit = (w[..., None] * ray * uv).sum((-3, -2)) / (w[..., None] * ray.square()).sum((-3, -2)).clamp_min(
        1e-12
    )
    K = eye.expand(*local_points.shape[:-3], 3, 3).clone()
    K[..., 0, 0], K[..., 1, 1] = fit[..., 0], fit[..., 1]
    K[..., 0, 2], K[..., 1, 2] = width / 2, height / 2
    return K


def _from_points(local: Tensor, world: Tensor, confidence: Tensor, poses: Tensor) -> Prediction:
    local = local.float()
    return Prediction(
        depth=local[..., 2],
        depth_confidence=confidence,
        cam_points=local,
        world_points=world.float(),
        points_confidence=confidence,
        world_from_cam=poses.float(),
        K=intrinsics_from_points(local, confidence),
    )
