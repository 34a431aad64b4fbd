"""VGGT's camera head: refines nine numbers per view in a few rounds of adaptive normalisation and attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.nn.attention import KeyValueCache
from relief3d.nn.blocks import Block, Mlp

POSE_NUMBERS = 9


@dataclass(frozen=True)
class CameraHeadConfig:
    """Sizes of the head: token width, trunk blocks, heads, rounds."""

    dim: int = 2048
    depth: int = 4
    heads: int = 16
    rounds: int = 4


class CameraHead(nn.Module):
    """Camera tokens of all views to pose encodings."""

    def __init__(self, config: CameraHeadConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.trunk = nn.ModuleList(
            Block(dim, config.heads, eps=1e-5, layer_scale=0.01) for _ in range(config.depth)
        )
        self.token_norm = nn.LayerNorm(dim)
        self.trunk_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_NUMBERS))
        self.embed_pose = nn.Linear(POSE_NUMBERS, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.pose_branch = Mlp(dim, dim // 2, POSE_NUMBERS)

    def forward(
        self, tokens: Tensor, caches: Sequence[Sequence[KeyValueCache]] | None = None
    ) -> list[Tensor]:
        """Encodings (B, S, 9) after every round, the last being the answer.

        Args:
            tokens: (B, S, D) camera tokens of the last pair of blocks.
            caches: for views that come one after another, one per round and block.

        The raw numbers, before the ReLU on the fields of view, are what is summed and fed back; gradients do not
        flow from one round into an earlier one.
        """
        tokens = self.token_norm(tokens)
        raw: Tensor | None = None
        out = []
        for number in range(self.config.rounds):
            before = self.empty_pose_tokens.expand(*tokens.shape[:2], -1) if raw is None else raw.detach()
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(before)).chunk(3, -1)
            plain = nn.functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
            x = gate * (plain * (1 + scale) + shift) + tokens
            for i, block in enumerate(self.trunk):
                x = block(x, cache=None if caches is None else caches[number][i])
            change = self.pose_branch(self.trunk_norm(x))
            raw = change if raw is None else raw.detach() + change
            out.append(torch.cat([raw[..., :7], raw[..., 7:].relu()], -1))
        return out
