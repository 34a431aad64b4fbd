"""Other ways for a condition to enter than the decoder's prompt branches, for ablations (specification 4.5).

All act inside the transformer, tile by tile, and all start as if there were no condition, bit for bit: what they add is
zero, what they multiply by is one. Sources: PriorDA (parallel embedding), DiT (adaptive norms), PromptDA's ablations,
ControlNet.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relief3d.models.metric.encoder import Injection, State, TileVit, prefix_of
from relief3d.nn.attention import CrossAttention
from relief3d.nn.blocks import Block
from relief3d.nn.rope import RopeTable
from relief3d.nn.vit import VisionTransformer

InjectionKind = Literal["dpt", "adaln", "cross_attention", "controlnet", "parallel"]
INJECTIONS: tuple[InjectionKind, ...] = ("dpt", "adaln", "cross_attention", "controlnet", "parallel")


def _zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _tokens(conv: nn.Module, condition: Tensor) -> Tensor:
    """(M, 3, tile, tile) to (M, P, C)."""
    return conv(condition).flatten(2).transpose(1, 2)


def _added_to_patches(x: Tensor, prefix: int, change: Tensor) -> Tensor:
    return torch.cat([x[:, :prefix], x[:, prefix:] + change.to(x.dtype)], 1)


class ParallelEmbedding(nn.Module):
    """A zero-initialised patch embedding of the condition, added to that of the picture; key ``alpha_proj``."""

    def __init__(self, vit: TileVit) -> None:
        super().__init__()
        c = vit.config
        self.alpha_proj = _zeroed(nn.Conv2d(3, c.dim, c.patch, c.patch))

    def begin(
        self, vit: TileVit, x: Tensor, condition: Tensor, rope: RopeTable | None
    ) -> tuple[Tensor, State]:
        """See :class:`~relief3d.models.metric.encoder.Injection`."""
        return _added_to_patches(x, prefix_of(vit), _tokens(self.alpha_proj, condition)), []

    def run(self, index: int, block: nn.Module, x: Tensor, rope: RopeTable | None, state: State) -> Tensor:
        """See :class:`~relief3d.models.metric.encoder.Injection`."""
        return block(x, rope)


class AdaptiveNorms(nn.Module):
    """The condition at a patch scales and shifts the patch's normalised features before attention and MLP."""

    def __init__(self, vit: TileVit, hidden: int | None = None) -> None:
        super().__init__()
        c = vit.config
        width = hidden or max(8, c.dim // 4)
        self.embed = nn.Conv2d(3, width, c.patch, c.patch)
        self.modulation = nn.ModuleList(_zeroed(nn.Linear(width, 4 * c.dim)) for _ in range(c.depth))

    def begin(
        self, vit: TileVit, x: Tensor, condition: Tensor, rope: RopeTable | None
    ) -> tuple[Tensor, State]:
        """See :class:`~relief3d.models.metric.encoder.Injection`."""
        return x, [nn.functional.silu(_tokens(self.embed, condition))]

    def run(self, index: int, block: nn.Module, x: Tensor, rope: RopeTable | None, state: State) -> Tensor:
        """See :class:`~relief3d.models.metric.encoder.Injection`."""
        assert isinstance(block, Block)

        def modulated(x: Tensor, condition: Tensor) -> Tensor:
            change = self.modulation[index](condition)
            change = nn.functional.pad(change, (0, 0, x.shape[1] - change.shape[1], 0))
            scale1, shift1, scale2, shift2 = change.chunk(4, -1)
            return block.modulated(x, rope, (1 + scale1, shift1), (1 + scale2, shift2))

        return _recomputed(block, modulated, x, state[0])


def _recomputed(block: Block, work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Honour the block's wish to forget activations, for work around it."""
    if block.recompute and torch.is_grad_enabled():
        out: Tensor = checkpoint(work, *inputs, use_reentrant=False)
        return out
    return work(*inputs)


class CrossAttending(nn.Module):
    """Before every second block, patches attend to those of the condition; the output projection starts as zero."""

    def __init__(self, vit: TileVit, every: int = 2) -> None:
        super().__init__()
        c = vit.config
        self.every = every
        self.embed = nn.Conv2d(3, c.dim, c.patch, c.patch)
        count = -(-c.depth // every)
        self.norms = nn.ModuleList(nn.LayerNorm(c.dim) for _ in range(count))
        self.context_norm = nn.LayerNorm(c.dim)
        self.layers = nn.ModuleList(CrossAttention(c.dim, c.heads) for _ in range(count))
        for layer in self.layers:
            assert isinstance(layer, CrossAttention)
            _zeroed(layer.proj)

    def begin(
        self, vit: TileVit, x: Tensor, condition: Tensor, rope: RopeTable | None
    ) -> tuple[Tensor, State]:
        """See :class:`~relief3d.models.metric.encoder.Injection`."""
        context = _tokens(self.embed, condition)
        if isinstance(vit, VisionTransformer):
            cells = condition.shape[-1] // vit.config.patch
            context = context + vit.position_embedding(cells, cells)[:, 1:].to(context.dtype)
        return x, [self.context_norm(context)]

    def run(self, index: int, block: nn.Module, x: Tensor, rope: RopeTable | None, state: State) -> Tensor:
        """See :class:`~relief3d.models.metric.encoder.Injection`."""
        if index % self.every == 0:
            (context,) = state
            prefix, k = x.shape[1] - context.shape[1], index // self.every
            patches = None if rope is None else RopeTable(rope.cos[prefix:], rope.sin[prefix:], rope.parts)
            y = self.layers[k](self.norms[k](x[:, prefix:]), context, patches, patches)
            x = _added_to_patches(x, prefix, y)
        return block(x, rope)


class ControlBranch(nn.Module):
    """A trainable copy of the first blocks sees picture and condition; its outputs are added through zero layers.

    The copy is of the blocks as they are at construction; :meth:`follow` copies them again, after weights were loaded.
    """

    def __init__(self, vit: TileVit, depth: int | None = None) -> None:
        super().__init__()
        c = vit.config
        count = depth or -(-c.depth // 2)
        self.embed = _zeroed(nn.Conv2d(3, c.dim, c.patch, c.patch))
        self.blocks = nn.ModuleList(copy.deepcopy(vit.blocks[i]) for i in range(count))
        self.out = nn.ModuleList(_zeroed(nn.Linear(c.dim, c.dim)) for _ in range(count))

    def follow(self, vit: TileVit) -> None:
        """Make the copy equal to the blocks of a transformer."""
        for mine, theirs in zip(self.blocks, vit.blocks):
            mine.load_state_dict(theirs.state_dict())

    def begin(
        self, vit: TileVit, x: Tensor, condition: Tensor, rope: RopeTable | None
    ) -> tuple[Tensor, State]:
        """See :class:`~relief3d.models.metric.encoder.Injection`."""
        return x, [_added_to_patches(x, prefix_of(vit), _tokens(self.embed, condition))]

    def run(self, index: int, block: nn.Module, x: Tensor, rope: RopeTable | None, state: State) -> Tensor:
        """See :class:`~relief3d.models.metric.encoder.Injection`."""
        x = block(x, rope)
        if index >= len(self.blocks):
            state.clear()
            return x
        state[0] = self.blocks[index](state[0], rope)
        return x + self.out[index](state[0]).to(x.dtype)


def make_injection(kind: InjectionKind, vit: TileVit) -> nn.Module | None:
    """The part of a network that lets the condition into a transformer; None for "dpt", which does it in the decoder.

    Raises:
        ValueError: unknown kind.
    """
    kinds: dict[str, Callable[[TileVit], nn.Module]] = {
        "adaln": AdaptiveNorms,
        "cross_attention": CrossAttending,
        "controlnet": ControlBranch,
        "parallel": ParallelEmbedding,
    }
    if kind == "dpt":
        return None
    if kind not in kinds:
        raise ValueError(f"'{kind}' is none of {', '.join(INJECTIONS)}")
    return kinds[kind](vit)


__all__ = [
    "INJECTIONS",
    "AdaptiveNorms",
    "ControlBranch",
    "CrossAttending",
    "Injection",
    "InjectionKind",
    "ParallelEmbedding",
    "make_injection",
]
