"""How many views go through a network at once, and what that takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from relief3d.core.errors import InputError
from relief3d.core.memory import GIB, available_memory
from relief3d.models.multiview.interface import InferenceOptions
from relief3d.models.multiview.preprocess import Mode
from relief3d.nn.attention import TOKENS_PER_PASS
from relief3d.nn.dpt import head_chunk
from relief3d.pipelines.multiview.config import MultiviewConfig

PROGRAM_BYTES = 0.75 * GIB
"""Of the program with its libraries, before any picture."""
PICTURE_PIXEL_BYTES = 3 * 4 * 3
"""An original as three channels of floats, read, kept and resized."""
SAFE_SHARE = 0.85
"""Of the memory that is free; the rest is for pictures, points and others."""
MOST_AT_ONCE = 200
"""Networks were trained on dozens of views and lose accuracy long before memory ends."""
CPU_FLOPS, DEVICE_FLOPS = 1.2e11, 1.5e14
"""Multiply-adds times two per second: two laptop cores, and one large accelerator in bfloat16."""


BLOCK_VALUES, LATER_VALUES, KEPT_VALUES = 15.5, 7.5, 6.0
"""Numbers per token and channel: what a block holds, up to and beyond a pass of tokens, and the layers that dense heads
read and that are held besides."""
DENSE_VALUES, MAP_VALUES = 260.0, 14.0
"""Numbers per pixel that a dense head holds in a pass, and that results hold."""
CHUNK = InferenceOptions().chunk


@dataclass(frozen=True)
class Capacity:
    """What inference takes.

    Attributes:
        at_once: views per pass.
        overlap: views that passes share; 0 with a single pass.
        passes: of the network.
        bytes: peak, with the weights.
        seconds: rough wall time.
        note: for people.
    """

    at_once: int
    overlap: int
    passes: int
    bytes: float
    seconds: float
    note: str


@dataclass(frozen=True)
class _Cost:
    """Bytes and arithmetic of a network on pictures of one size.

    The shape of the formula follows the code; its constants are on the safe side of dry runs of the networks
    (:func:`relief3d.models.multiview.memory_plan.activation_bytes`), which a test holds them against.
    """

    parameters: int
    width: int
    tokens: int
    size: tuple[int, int]
    dense: bool
    device: str
    beside: float = 0.0

    def peak(self, views: int) -> float:
        """Weights, activations, the program itself, and what is held besides."""
        return max(PROGRAM_BYTES, self.parameters * 4 + self.activations(views) + 0.3 * GIB) + self.beside

    def activations(self, views: int) -> float:
        """The larger of what a block needs and what heads need, beside the layers that are kept; and the results."""
        tokens, pixels = views * self.tokens, self.size[0] * self.size[1]
        unit = 4 * self.width
        few = min(tokens, TOKENS_PER_PASS)
        trunk = unit * (BLOCK_VALUES * few + LATER_VALUES * (tokens - few))
        heads = 0.0
        if self.dense:
            at_once = min(views, head_chunk(CHUNK, self.size, torch.device(self.device)) or views)
            trunk += unit * KEPT_VALUES * tokens
            heads = unit * 1.5 * KEPT_VALUES * tokens
            heads += at_once * pixels * 4 * DENSE_VALUES * min(1.0, max(0.15, self.width / 550))
        return max(trunk, heads) + views * pixels * 4 * MAP_VALUES

    def flops(self, views: int) -> float:
        """Linear parts twice per parameter and token; attention across views with the square of the tokens."""
        tokens = views * self.tokens
        return 2.0 * self.parameters * tokens + 4.0 * tokens**2 * self.width * 24 * self.width / 1024


def plan_capacity(
    views: int,
    size: tuple[int, int],
    parameters: int,
    config: MultiviewConfig,
    *,
    architecture: str | None = None,
    max_memory: float | None = None,
    device: str = "cpu",
    patch: int = 14,
    beside: float = 0.0,
) -> Capacity:
    """How to run a network on so many views.

    Args:
        views: their number.
        size: (height, width) of the network's pictures.
        parameters: of the network.
        config: ``chunk`` and ``overlap``; 0 chooses.
        architecture: of the network; None counts the heads that take most.
        max_memory: ceiling in GiB; None: what is free.
        device: type of the device; the machine's own memory counts only on the CPU.
        patch: of the network.
        beside: bytes that are held besides, such as originals (:func:`picture_bytes`); part of the ceiling.

    Raises:
        InputError: not even two views (or the one there is) fit; says what would.
    """
    cost = _cost(size, parameters, patch, architecture, device, beside)
    limit = _limit(max_memory, device)
    least = min(views, 2)
    if limit is not None and cost.peak(least) > limit:
        raise InputError(
            f"a pass of {least} picture(s) of {size[1]}x{size[0]} through this network needs about "
            f"{cost.peak(least) / GIB:.1f} GiB, more than the {limit / GIB:.1f} GiB allowed",
            remedy=_smaller(cost, size, limit, least, patch),
        )
    fit = views
    if limit is not None:
        while fit > least and cost.peak(fit) > limit:
            fit = max(least, fit * 9 // 10 if fit > 20 else fit - 1)
    if config.chunk and limit is not None and min(config.chunk, views) > fit:
        raise InputError(
            f"chunks of {config.chunk} pictures need about {cost.peak(config.chunk) / GIB:.1f} GiB, more than the "
            f"{limit / GIB:.1f} GiB allowed",
            remedy=f"use --chunk {fit}",
        )
    at_once = min(views, config.chunk or min(fit, MOST_AT_ONCE))
    if at_once >= views:
        passes, overlap = 1, 0
    else:
        at_once = config.chunk or min(at_once, 60)
        overlap = config.overlap or max(1, at_once // 2)
        if overlap >= at_once:
            raise InputError(
                f"an overlap of {overlap} leaves nothing new in chunks of {at_once} pictures, which is what fits",
                remedy=f"use --overlap {max(1, at_once // 2)}",
            )
        passes = 1 + -(-(views - at_once) // (at_once - overlap))
    seconds = passes * cost.flops(at_once) / (CPU_FLOPS if device == "cpu" else DEVICE_FLOPS)
    note = f"{size[1]}x{size[0]}, " + (
        "one pass" if passes == 1 else f"{passes} passes of {at_once} pictures that share {overlap}"
    )
    return Capacity(at_once, overlap, passes, cost.peak(at_once), seconds + 2, note)


def network_size(
    config: MultiviewConfig,
    architecture: str | None,
    pictures: Sequence[tuple[int, int]],
    own: Mode | None = None,
) -> tuple[int, int]:
    """(height, width) of the network's pictures for a plan, before the network is opened.

    Args:
        config: ``preprocess`` and ``side``.
        architecture: of the network.
        pictures: (width, height) of all.
        own: how the network prepares pictures; None: as its architecture does.
    """
    from relief3d.pipelines.multiview.pictures import frame_pictures

    usual: Mapping[str, Mode] = {"vggt": "vggt-crop", "pi3": "pi3", "pi3x": "pi3", "reliev3r": "keep"}
    framing = frame_pictures(pictures, config, own or usual.get(architecture or "", "vggt-crop"))
    return framing.height, framing.width


def picture_bytes(sizes: Sequence[tuple[int, int]]) -> float:
    """What original pictures of these (width, height) take while they are made smaller, one at a time."""
    return max(w * h for w, h in sizes) * PICTURE_PIXEL_BYTES


def _cost(
    size: tuple[int, int],
    parameters: int,
    patch: int,
    architecture: str | None,
    device: str,
    beside: float = 0.0,
) -> _Cost:
    tokens = (size[0] // patch) * (size[1] // patch) + 5
    # Parameters grow with the square of the width; 1024 channels belong to about a thousand million.
    width = max(48, min(1024, round(1024 * (parameters / 0.9e9) ** 0.5)))
    return _Cost(parameters, width, tokens, size, architecture not in ("pi3", "reliev3r"), device, beside)


def gib_up(size: float) -> str:
    """Bytes as GiB, rounded up to a tenth."""
    return f"{math.ceil(size / GIB * 10) / 10:.1f}"


def _limit(max_memory: float | None, device: str) -> float | None:
    if max_memory is not None:
        return max_memory * GIB
    free = available_memory() if device == "cpu" else None
    return None if free is None else free * SAFE_SHARE


def _smaller(cost: _Cost, size: tuple[int, int], limit: float, views: int, patch: int) -> str:
    """The plan that fits, in words."""
    if PROGRAM_BYTES + cost.beside > limit:
        return (
            f"the program itself takes {PROGRAM_BYTES / GIB:.2f} GiB, and pictures of this size "
            f"{cost.beside / GIB:.2f}: allow at least {gib_up(cost.peak(views))} GiB, or use smaller pictures"
        )
    if cost.parameters * 4 + 0.3 * GIB + cost.beside > limit:
        return f"the weights alone take {cost.parameters * 4 / GIB:.1f} GiB: use a smaller network or allow more memory"
    longest = max(size)
    best = replace(cost, tokens=6, size=(patch, patch)).peak(views)
    if best > limit:
        return f"allow at least {gib_up(cost.peak(views))} GiB or use a smaller network"
    for side in range(longest - patch, patch, -patch):
        share = side / longest
        rows, cols = (max(1, round(s * share / patch)) for s in size)
        small = replace(cost, tokens=rows * cols + 5, size=(rows * patch, cols * patch))
        if small.peak(views) <= limit:
            return f"--side {side} --preprocess keep fits"
    return f"allow at least {gib_up(cost.peak(views))} GiB or use a smaller network"
