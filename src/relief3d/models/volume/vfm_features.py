"""Maps of a frozen multi-view foundation network (VGGT) with small trained adapters (VFM-Recon; specification 4.5).

The paper adapts the blocks that attend within a view, right after attention. Activation, residual and initialisation of
the adapters are our choice: the last layer starts at zero, so at first the network says exactly what it was trained to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.models.checkpoints import load_weights, read_state
from relief3d.models.multiview.aggregator import Aggregator
from relief3d.models.multiview.configs import Size, vggt_config
from relief3d.models.multiview.loading import PUBLISHED, fetch, identify
from relief3d.nn.attention import Attend, KeyValueCache
from relief3d.nn.blocks import Block, add_branch
from relief3d.nn.dpt import DptHead, head_chunk
from relief3d.nn.rope import RopeTable

Where = Literal["frame", "frame+global", "none"]
Position = Literal["attention", "residual"]
SourceHead = Literal["tracks", "depth"]
PREFIXES: Mapping[str, str] = {"tracks": "track_head.feature_extractor.", "depth": "depth_head."}


@dataclass(frozen=True)
class VfmConfig:
    """What is taken from a VGGT.

    Attributes:
        size: of the VGGT.
        adapters: the blocks that have one: those within a view (the paper), all, or none ("naive").
        position: after the attention (the paper), or after its residual.
        bottleneck: width of the adapters over the tokens'.
        head: whose reassembly of tokens into maps is used: the tracker's feature head (published VGGT), or the depth
            head up to its last convolutions (networks trained without a tracker).
        side: longer side of the pictures that the VGGT sees, pixels.
        train_head: train that reassembly too.
    """

    size: Size = "full"
    adapters: Where = "frame"
    position: Position = "attention"
    bottleneck: float = 0.5
    head: SourceHead = "tracks"
    side: int = 518
    train_head: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.bottleneck <= 4:
            raise InputError(f"a bottleneck is a share of the width, not {self.bottleneck:g}")
        if self.side < 14:
            raise InputError("pictures for the feature network need a side of 14 pixels at least")


class Adapter(nn.Module):
    """``up(gelu(down(x)))``, zero at first.

    Args:
        dim: channels.
        hidden: inside.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.up(nn.functional.gelu(self.down(x)))


class AdaptedBlock(Block):
    """A transformer block with an adapter; its own parameters keep their names, the adapter's are ``adapter.*``.

    Args:
        block: whose modules are taken over.
        adapter: the new part.
        position: where it acts.
    """

    def __init__(self, block: Block, adapter: Adapter, position: Position) -> None:
        nn.Module.__init__(self)
        for name, module in block.named_children():
            self.add_module(name, module)
        self.recompute = block.recompute
        self.adapter = adapter
        self.position = position

    def _forward(
        self, x: Tensor, rope: RopeTable | None, attend: Attend, cache: KeyValueCache | None
    ) -> Tensor:
        h = self.attn(self.norm1(x), rope, attend, cache)
        if self.position == "attention":
            h = h + self.adapter(h)
        x = add_branch(x, h, self.ls1)
        if self.position == "residual":
            x = x + self.adapter(x)
        return add_branch(x, self.mlp(self.norm2(x)), self.ls2)


class VfmFeatures(nn.Module):
    """Frozen trunk with adapters, and a head that gives maps."""

    def __init__(self, config: VfmConfig) -> None:
        super().__init__()
        self.config = config
        vggt = vggt_config(config.size)
        self.layers = vggt.layers
        self.patch = vggt.aggregator.vit.patch
        self.aggregator = Aggregator(vggt.aggregator)
        tracks = config.head == "tracks"
        self.channels = vggt.tracker.latent if tracks else vggt.features
        self.head = DptHead(vggt.dense(None, self.channels, pos_embed=not tracks, down_ratio=2))
        if not tracks:
            # The depth head narrows here, and its features are what comes before.
            last = self.head.scratch.output_conv1
            nn.init.dirac_(last.weight)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        if config.train_head:
            for parameter in self.head.parameters():
                parameter.requires_grad_(True)
        if config.adapters != "none":
            self._adapt(self.aggregator.frame_blocks)
        if config.adapters == "frame+global":
            self._adapt(self.aggregator.global_blocks)

    def _adapt(self, blocks: nn.ModuleList) -> None:
        dim = self.aggregator.config.vit.dim
        for i, block in enumerate(blocks):
            assert isinstance(block, Block)
            adapter = Adapter(dim, max(1, round(dim * self.config.bottleneck)))
            blocks[i] = AdaptedBlock(block, adapter, self.config.position)

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W), multiples of the patch, to which pictures of a size are brought: the longer side is ``side``."""
        scale = self.config.side / max(size)
        rows, cols = (max(1, round(n * scale / self.patch)) for n in size)
        return rows * self.patch, cols * self.patch

    def forward(self, images: Tensor, chunk: int | None = None) -> Tensor:
        """Maps of views that belong together.

        Args:
            images: (B, V, 3, H, W) in [0, 1]; the first view is the network's reference.
            chunk: views at a time where they are independent; only memory depends on it.

        Returns:
            (B * V, channels, h, w), float32, at half the size that the network sees.
        """
        size = self.seen_size((int(images.shape[-2]), int(images.shape[-1])))
        flat = images.flatten(0, 1)
        if flat.shape[-2:] != size:
            flat = nn.functional.interpolate(flat, size, mode="bilinear", align_corners=False, antialias=True)
        tokens = self.aggregator(flat.unflatten(0, images.shape[:2]), set(self.layers), chunk=chunk)
        with torch.autocast(images.device.type, enabled=False):
            kind = self.aggregator.camera_token.dtype
            specials = self.aggregator.specials
            layers = [tokens[i][:, :, specials:].flatten(0, 1).to(kind) for i in self.layers]
            return self.head(layers, size, head_chunk(chunk, size, images.device))


def adapter_count(features: VfmFeatures) -> int:
    """Values in adapters."""
    return sum(p.numel() for name, p in features.named_parameters() if ".adapter." in name)


def foundation_state(config: VfmConfig, state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """What :class:`VfmFeatures` needs of the weights of a VGGT, without adapters.

    Raises:
        InputError: the weights are of another network, or lack the head.
    """
    found = identify(state)
    if found != "vggt":
        what = "none of the multi-view networks" if found is None else found
        raise InputError(
            f"holds weights of {what}; features are taken from a VGGT",
            path=source,
            remedy="relief3d train multiview-supervised-vggt makes one",
        )
    prefix = PREFIXES[config.head]
    out = {k: v for k, v in state.items() if k.startswith("aggregator.")}
    last = ("scratch.output_conv1.", "scratch.output_conv2.") if config.head == "depth" else ()
    part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not part:
        other = next((name for name, p in PREFIXES.items() if any(k.startswith(p) for k in state)), None)
        raise InputError(
            f"has no {config.head} head to make maps with",
            path=source,
            remedy=f"use the {other} head (vfm.head={other})" if other else "use a VGGT with a depth head",
        )
    return out | {f"head.{k}": v for k, v in part.items() if not (last and k.startswith(last))}


def load_foundation(features: VfmFeatures, source: str | Path) -> None:
    """Fill the frozen part with the weights of a VGGT: a file (also one made by ``relief3d train
    multiview-supervised-vggt``), or the name of a published one. Adapters stay as they are.

    Raises:
        InputError: see :func:`foundation_state`; or the sizes differ.
        RunError: a published file cannot be fetched.
    """
    path = fetch(str(source)) if str(source) in PUBLISHED else Path(source)
    state = foundation_state(features.config, read_state(path), path)
    # What no VGGT has keeps its value: adapters, and the identity at the end of a cut depth head.
    own = (".adapter.", "scratch.output_conv1.") if features.config.head == "depth" else (".adapter.",)
    kept = {k: v for k, v in features.state_dict().items() if any(part in k for part in own)}
    load_weights(features, {**state, **kept}, source=path)
