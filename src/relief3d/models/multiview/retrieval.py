"""Which frames show the same place: one descriptor per frame, from the encoder that the network has anyway.

Patch tokens are pooled per cell of a coarse grid. Descriptors of one sequence have a large common part, above all with
small or untrained encoders, so they are centred and whitened over the sequence (Jegou and Chum 2012). Pooling by the
generalised mean follows Radenovic et al. 2018, here of the positive and of the negative part of every channel, since
tokens have both signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.models.multiview.aggregator import Aggregator
from relief3d.models.multiview.pi3 import AlternatingDecoder
from relief3d.models.multiview.vggt import Vggt

Frames = Callable[[Sequence[int]], Tensor]
"""Frame numbers -> pictures (n, 3, H, W) in [0, 1]."""
Pooling = Literal["mean", "gem"]

GEM_POWER = 3.0
SHRINKAGE = 0.02
"""Share of the largest variance that is added to all, so that directions of noise are not blown up."""


OVERSAMPLING, ROUNDS = 32, 4
"""Extra axes and multiplications of the randomised search for principal axes."""
BLOCK = 256
"""Rows that are in double precision at a time."""


def encoder_of(network: nn.Module) -> tuple[Callable[[Tensor], Tensor], int]:
    """Pictures (n, 3, H, W) to patch tokens (n, P, C) by a network's encoder, and its patch side.

    Raises:
        InputError: the network has no such encoder.
    """
    if isinstance(network, Vggt):
        return encoder_of(network.aggregator)
    if isinstance(network, Aggregator):
        return network.embed, network.config.vit.patch
    if isinstance(network, AlternatingDecoder):
        decoder = network
        return lambda images: decoder.embed(images, None), network.config.vit.patch
    raise InputError(f"{type(network).__name__} has no encoder of single pictures")


@torch.inference_mode()
def view_descriptors(
    network: nn.Module,
    load: Frames,
    frames: int,
    *,
    batch: int = 8,
    pooling: Pooling = "gem",
    cells: int = 2,
    components: int | None = 128,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One descriptor per frame from the network's encoder.

    Only ``batch`` pictures and one pooled row per frame are in memory.

    Args:
        network: any of the multi-view networks, on ``device``.
        load: gives pictures of some frames, prepared for the network.
        frames: number of frames.
        batch: pictures at a time.
        pooling: of the tokens of a cell.
        cells: the picture is pooled in ``cells`` x ``cells`` parts; 1 forgets where things are in the picture.
        components: most dimensions after whitening; None leaves out centring and whitening.
        device: where the encoder runs.

    Returns:
        (N, D) float32 of length 1 on the CPU; cosines are products.

    Raises:
        InputError: no frames, no encoder, or sides that are not multiples of its patch.
    """
    if frames < 1 or batch < 1 or cells < 1:
        raise InputError("descriptors need at least one frame, one picture at a time and one cell")
    embed, patch = encoder_of(network)
    rows = []
    for first in range(0, frames, batch):
        images = load(list(range(first, min(first + batch, frames)))).to(device)
        height, width = images.shape[-2:]
        if height % patch or width % patch:
            raise InputError(
                f"pictures of {width} x {height} do not divide into patches of {patch} pixels",
                remedy="prepare them with relief3d.models.multiview.preprocess",
            )
        tokens = embed(images).float().unflatten(1, (height // patch, width // patch))
        rows.append(_pooled(tokens, pooling, cells).cpu())
    pooled = torch.cat(rows)
    return nn.functional.normalize(pooled, dim=-1) if components is None else whitened(pooled, components)


@torch.inference_mode()
def thumbnail_descriptors(
    load: Frames, frames: int, *, side: int = 16, batch: int = 8, components: int | None = 128
) -> Tensor:
    """One descriptor per frame from a tiny picture, brightness and contrast removed: no network, for comparison.

    Args:
        load: gives pictures of some frames.
        frames: number of frames.
        side: rows and columns of the tiny picture.
        batch: pictures at a time.
        components: see :func:`view_descriptors`.

    Returns:
        (N, D) float32 of length 1.

    Raises:
        InputError: no frames.
    """
    if frames < 1:
        raise InputError("descriptors need at least one frame")
    rows = []
    for first in range(0, frames, batch):
        images = load(list(range(first, min(first + batch, frames)))).float().cpu()
        tiny = nn.functional.interpolate(images, size=(side, side), mode="area").flatten(1)
        tiny = tiny - tiny.mean(1, keepdim=True)
        rows.append(nn.functional.normalize(tiny, dim=-1))
    pooled = torch.cat(rows)
    return nn.functional.normalize(pooled, dim=-1) if components is None else whitened(pooled, components)


def whitened(descriptors: Tensor, components: int, *, seed: int = 0) -> Tensor:
    """Centre over the sequence, rotate to principal axes, divide by their deviations, normalise to length 1.

    The axes are found by randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4), exactly
    where at most ``components + OVERSAMPLING`` frames or dimensions are there. Time is linear in N and in D; beyond
    the descriptors themselves only (N + D) x (components + OVERSAMPLING) numbers are in memory.

    Args:
        descriptors: (N, D).
        components: most axes kept.
        seed: of the search's first guess.

    Returns:
        (N, min(components, N, D)) float32; rows of zeros where a frame has nothing of its own.
    """
    count, size = descriptors.shape
    mean = descriptors.mean(0, dtype=torch.float64)

    def blocks() -> Iterator[Tensor]:
        return (part.double() - mean for part in descriptors.split(BLOCK))

    width = min(components + OVERSAMPLING, count, size)
    basis = torch.randn(size, width, generator=torch_generator(seed), dtype=torch.float64)
    for _ in range(ROUNDS):
        image = torch.zeros_like(basis)
        for part in blocks():
            image.addmm_(part.mT, part @ basis)
        basis = torch.linalg.qr(image).Q
    inside = torch.cat([part @ basis for part in blocks()])
    variance, axes = torch.linalg.eigh(inside.mT @ inside)
    # Ascending: the largest are the last.
    keep = min(components, width)
    variance, axes = variance[-keep:].flip(0).clamp_min(0), axes[:, -keep:].flip(1)
    floor = variance.max().clamp_min(1e-300) * SHRINKAGE
    flat = (inside @ axes) / (variance + floor).sqrt()
    return nn.functional.normalize(flat, dim=-1).float()


def _pooled(tokens: Tensor, pooling: Pooling, cells: int) -> Tensor:
    """(n, rows, columns, C) tokens to (n, D): cells row by row."""
    maps = tokens.movedim(-1, 1)
    cells = min(cells, maps.shape[-2], maps.shape[-1])
    if pooling == "mean":
        return nn.functional.adaptive_avg_pool2d(maps, cells).flatten(1)
    halves = torch.cat([maps.clamp_min(0), (-maps).clamp_min(0)], 1)
    return nn.functional.adaptive_avg_pool2d(halves.pow(GEM_POWER), cells).pow(1 / GEM_POWER).flatten(1)
