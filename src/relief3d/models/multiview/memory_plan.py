"""How much memory a multi-view network takes for so many views, found by a dry run that computes nothing.

A copy of the network with few layers is run on tensors without values, and the bytes alive at the worst moment are
counted. That needs no formula to be kept in step with the code. The number of layers does not matter, because only the
layers that heads read are kept; a test holds this against runs of the whole networks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from relief3d.core.errors import InputError
from relief3d.core.tensor_memory import PeakTensorBytes
from relief3d.models.multiview.interface import InferenceOptions, Known, wrap
from relief3d.models.multiview.pi3 import Pi3, Pi3Config
from relief3d.models.multiview.pi3x import Pi3X
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Vggt

PROBES = (32, 64)
"""More views than the last are extrapolated from these two: memory grows linearly there."""


def weight_bytes(network: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))


def activation_bytes(
    network: nn.Module, views: int, size: tuple[int, int], options: InferenceOptions | None = None
) -> int:
    """Bytes of tensors, beyond weights and pictures, that a prediction holds at its worst moment.

    Work space inside single operations (convolutions, attention) is not included.

    Args:
        network: one of the multi-view networks; may be on the meta device.
        views: their number.
        size: (H, W) of the pictures, multiples of the patch.
        options: how it will be run.

    Raises:
        InputError: it is none of the multi-view networks.
    """
    options = options or InferenceOptions()
    if views <= PROBES[-1]:
        return _dry_run(network, views, size, options)
    low, high = (_dry_run(network, n, size, options) for n in PROBES)
    return high + (high - low) * (views - PROBES[1]) // (PROBES[1] - PROBES[0])


def _dry_run(network: nn.Module, views: int, size: tuple[int, int], options: InferenceOptions) -> int:
    with FakeTensorMode():
        model = wrap(_shallow(network), options)
        images = torch.zeros(1, views, 3, *size)
        # Only this network cannot do without; what is known adds little to the memory of the others.
        needs_K = isinstance(network, Reliev3rNet) and not network.settings.fov_head
        known = Known(K=torch.eye(3).expand(1, views, 3, 3)) if needs_K else None
        with PeakTensorBytes() as memory:
            model.predict(images, known)
    return memory.peak


def _shallow(network: nn.Module) -> nn.Module:
    """The same widths with as few layers as keep every kind of them."""
    if isinstance(network, Vggt):
        trunk = network.config.aggregator
        vit = replace(trunk.vit, depth=1)
        camera = replace(network.config.camera, depth=1)
        aggregator = replace(trunk, vit=vit, depth=4)
        return Vggt(replace(network.config, aggregator=aggregator, camera=camera, layers=(0, 1, 2, 3)))
    if isinstance(network, Reliev3rNet):
        return Reliev3rNet(replace(network.settings, decoder=_shallow_pi3(network.config)))
    if isinstance(network, Pi3X):
        given: dict[str, Any] = {"inject_after": network.settings.inject_after[:1], "metric_depth": 1}
        return Pi3X(replace(network.settings, decoder=_shallow_pi3(network.config), **given))
    if isinstance(network, Pi3):
        return Pi3(_shallow_pi3(network.config))
    raise InputError(f"{type(network).__name__} is not a multi-view network")


def _shallow_pi3(config: Pi3Config) -> Pi3Config:
    return replace(config, vit=replace(config.vit, depth=1), depth=4, head_depth=1)
