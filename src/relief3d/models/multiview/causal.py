"""VGGT and pi3 one view after another: a view attends to itself and to the views before it, never to later ones.

Keys and values of past views are kept, as in StreamVGGT (Zhuo et al. 2025, arXiv 2507.11539), so that a new view costs
one pass over its own tokens plus attention to what is kept. The result equals one pass over all views under a mask that
is lower triangular in blocks of views.

The released weights of VGGT and pi3 were trained with full attention across views. They are not made for this mask, and
nothing here makes them fit: this is for networks that were fine-tuned causally, as StreamVGGT was.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError
from relief3d.geometry.transforms import invert_rigid
from relief3d.models.multiview.interface import intrinsics_from_points
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pose_encoding import decode_cameras
from relief3d.models.multiview.vggt import Vggt
from relief3d.nn.attention import KeyValueCache, attend_fully


class CausalNetwork(Protocol):
    """A network that takes one view at a time."""

    patch: int

    def step(self, image: Tensor) -> Prediction:
        """The next view (3, H, W) in [0, 1], to a prediction of one scene with one view."""
        ...

    def caches(self) -> Iterator[KeyValueCache]:
        """What is kept of the past."""
        ...


def causal_network(network: nn.Module, views: int | None = None) -> CausalNetwork:
    """A network that takes one view at a time.

    Args:
        network: a :class:`Vggt` with camera and depth heads, or a :class:`Pi3`.
        views: most past views to keep, of which the first stays for ever and the oldest others go; None keeps all.

    Raises:
        InputError: another network, one without these heads, or fewer than one view to keep.
    """
    if views is not None and views < 1:
        raise InputError(f"at least the first view must be kept, not {views}")
    if isinstance(network, Vggt):
        if not {"camera", "depth"} <= set(network.config.heads):
            raise InputError("this VGGT lacks the camera or the depth head")
        return _CausalVggt(network, views)
    if isinstance(network, Pi3):
        return _CausalPi3(network, views)
    raise InputError(
        f"{type(network).__name__} cannot run one view after another", remedy="use the mode 'window'"
    )


def _cache(views: int | None, tokens: int) -> KeyValueCache:
    """For ``tokens`` per view; the first view is pinned."""
    return KeyValueCache(None if views is None else views * tokens, tokens)


class _CausalVggt:
    def __init__(self, network: Vggt, views: int | None) -> None:
        self.network, self.views = network.eval(), views
        self.patch = network.config.aggregator.vit.patch
        self._across: list[KeyValueCache] = []
        head = network.camera_head.config
        self._trunk = [[_cache(views, 1) for _ in range(head.depth)] for _ in range(head.rounds)]

    def caches(self) -> Iterator[KeyValueCache]:
        yield from self._across
        for row in self._trunk:
            yield from row

    def step(self, image: Tensor) -> Prediction:
        trunk, config = self.network.aggregator, self.network.config
        size = (int(image.shape[-2]), int(image.shape[-1]))
        patches = trunk.embed(image[None])
        first = not self._across
        special = torch.cat([trunk.camera_token, trunk.register_token], 2)[:, 0 if first else 1]
        x = torch.cat([special.to(patches.dtype), patches], 1)
        if first:
            self._across = [_cache(self.views, x.shape[1]) for _ in range(config.aggregator.depth)]
        dtype = trunk.camera_token.dtype
        rope = trunk.rope(size[0] // self.patch, size[1] // self.patch, trunk.specials, x.device, dtype)
        layers: dict[int, Tensor] = {}
        for i, cache in enumerate(self._across):
            own = trunk.frame_blocks[i](x, rope)
            x = trunk.global_blocks[i](own, rope, attend_fully, cache)
            if i in config.layers or i == len(self._across) - 1:
                layers[i] = torch.cat([own, x], -1).to(dtype)
        with torch.autocast(image.device.type, enabled=False):
            encoding = self.network.camera_head(layers[len(self._across) - 1][:, :1], self._trunk)[-1]
            read = [layers[i][:, trunk.specials :] for i in config.layers]
            raw = self.network.depth_head(read, size, None)
        cam_from_world, K = decode_cameras(encoding, size)
        bottom = cam_from_world.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(1, 1, 1, 4)
        return Prediction(
            depth=raw[None, :, 0].exp(),
            depth_confidence=1 + raw[None, :, 1].exp(),
            world_from_cam=invert_rigid(torch.cat([cam_from_world, bottom], -2)),
            K=K,
        )


class _CausalPi3:
    def __init__(self, network: Pi3, views: int | None) -> None:
        self.network, self.views = network.eval(), views
        self.patch = network.config.vit.patch
        self._across: list[KeyValueCache] = []

    def caches(self) -> Iterator[KeyValueCache]:
        yield from self._across

    def step(self, image: Tensor) -> Prediction:
        network, config = self.network, self.network.config
        rows, cols = network.grid(image)
        patches = network.embed(image[None], None)
        x = torch.cat([network.register_token[0].to(patches.dtype), patches], 1)
        if not self._across:
            self._across = [_cache(self.views, x.shape[1]) for _ in range(config.depth // 2)]
        rope = network.rope(rows, cols, config.registers, x.device, network.register_token.dtype)
        own = x
        for i, cache in enumerate(self._across):
            own = network.decoder[2 * i](x, rope)
            x = network.decoder[2 * i + 1](own, rope, attend_fully, cache)
        local, logits, pose = network._heads(torch.cat([own, x], -1), rows, cols)
        confidence = logits[None].sigmoid()
        return Prediction(
            depth=local[None, ..., 2],
            depth_confidence=confidence,
            world_from_cam=pose[None],
            K=intrinsics_from_points(local[None], confidence),
        )
