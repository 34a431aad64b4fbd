"""The plain way to run VGGT and pi3, as a yardstick for benchmarks/multiview.py.

It uses the weights of our networks with wiring of its own that does what the first public implementations do, as the
specification describes it: all views go through every block at once, the output of every pair of blocks is kept, the
residual branch, its scaling and the sum are separate operations, and the dense heads resize before they mix channels,
eight views at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.vggt import Vggt, inverse_log
from relief3d.nn.attention import Attention
from relief3d.nn.blocks import Block
from relief3d.nn.dpt import DptHead, FusionBlock, ResidualConvUnit
from relief3d.nn.rope import RopeTable, apply_rope
from relief3d.nn.uv import uv_embedding
from relief3d.nn.vit import VisionTransformer

HEAD_VIEWS = 8
interpolate = torch.nn.functional.interpolate


def attention(module: Attention, x: Tensor, rope: RopeTable | None) -> Tensor:
    q, k, v = module.qkv(x).unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = module.q_norm(q), module.k_norm(k)
    if rope is not None:
        rows = rope.cos.shape[0]
        q, k = (apply_rope(y.unflatten(-2, (-1, rows)), rope).flatten(-3, -2) for y in (q, k))
    q, k = q.to(v.dtype), k.to(v.dtype)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return module.proj(y.transpose(1, 2).flatten(2))


def block(module: Block, x: Tensor, rope: RopeTable | None = None) -> Tensor:
    x = x + module.ls1(attention(module.attn, module.norm1(x), rope))
    y = module.mlp.fc2(torch.nn.functional.gelu(module.mlp.fc1(module.norm2(x))))
    return x + module.ls2(y)


def encode(vit: VisionTransformer, images: Tensor) -> Tensor:
    rows, cols = images.shape[-2] // vit.config.patch, images.shape[-1] // vit.config.patch
    x = vit.patch_embed(images)
    position = vit.position_embedding(rows, cols)
    x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + position
    x = torch.cat([x[:, :1], vit.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
    for module in vit.blocks:
        x = block(module, x)
    return vit.norm(x)[:, 1 + vit.config.registers :]


def unit(module: ResidualConvUnit, x: Tensor) -> Tensor:
    x = x.relu()
    return module.conv2(module.conv1(x).relu()) + x


def fuse(module: FusionBlock, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
    if skip is not None:
        x = x + unit(module.resConfUnit1, skip)
    x = unit(module.resConfUnit2, x)
    return module.out_conv(interpolate(x, size, mode="bilinear", align_corners=True))


def positioned(head: DptHead, x: Tensor, size: tuple[int, int]) -> Tensor:
    rows, cols = x.shape[-2:]
    return x + 0.1 * uv_embedding(rows, cols, size[1] / size[0], x.shape[1], x.device).to(x.dtype)


def dense(head: DptHead, layers: list[Tensor], size: tuple[int, int]) -> Tensor:
    parts = []
    for i in range(0, len(layers[0]), HEAD_VIEWS):
        parts.append(_dense(head, [x[i : i + HEAD_VIEWS] for x in layers], size))
    return torch.cat(parts)


def _dense(head: DptHead, layers: list[Tensor], size: tuple[int, int]) -> Tensor:
    rows, cols = size[0] // head.config.patch, size[1] // head.config.patch
    levels = []
    for tokens, project, rescale in zip(layers, head.projects, head.resize_layers):
        x = head.norm(tokens).transpose(1, 2).unflatten(2, (rows, cols))
        levels.append(rescale(positioned(head, project(x), size)))
    s = head.scratch
    one, two, three, four = (
        conv(x) for conv, x in zip((s.layer1_rn, s.layer2_rn, s.layer3_rn, s.layer4_rn), levels)
    )
    x = fuse(s.refinenet4, four, None, three.shape[-2:])
    x = fuse(s.refinenet3, x, three, two.shape[-2:])
    x = fuse(s.refinenet2, x, two, one.shape[-2:])
    x = fuse(s.refinenet1, x, one, (2 * one.shape[-2], 2 * one.shape[-1]))
    x = interpolate(s.output_conv1(x), size, mode="bilinear", align_corners=True)
    return s.output_conv2(positioned(head, x, size))


@torch.inference_mode()
def vggt(network: Vggt, images: Tensor, points: bool = True) -> dict[str, Tensor]:
    trunk = network.aggregator
    batch, views, _, height, width = images.shape
    patch = trunk.config.vit.patch
    x = encode(trunk.patch_embed, (images.flatten(0, 1) - trunk.image_mean) / trunk.image_std)
    x = torch.cat([trunk._special_tokens(batch, views), x], 1)
    rope = trunk.rope(height // patch, width // patch, trunk.specials, x.device, x.dtype)
    kept = []
    for within, across in zip(trunk.frame_blocks, trunk.global_blocks):
        own = block(within, x, rope)
        x = block(across, own.unflatten(0, (batch, views)).flatten(1, 2), rope)
        x = x.unflatten(1, (views, -1)).flatten(0, 1)
        kept.append(torch.cat([own.unflatten(0, (batch, views)), x.unflatten(0, (batch, views))], -1))
    size = (height, width)
    out = {"pose": network.camera_head(kept[-1][:, :, 0])[-1]}
    layers = [kept[i][:, :, trunk.specials :].flatten(0, 1) for i in network.config.layers]
    raw = dense(network.depth_head, layers, size).unflatten(0, (batch, views))
    out["depth"], out["depth_confidence"] = raw[:, :, 0].exp(), 1 + raw[:, :, 1].exp()
    if points:
        raw = dense(network.point_head, layers, size).unflatten(0, (batch, views))
        out["points"] = inverse_log(raw[:, :, :3]).movedim(2, -1)
        out["points_confidence"] = 1 + raw[:, :, 3].exp()
    return out


@torch.inference_mode()
def pi3(network: Pi3, images: Tensor) -> dict[str, Tensor]:
    batch, views = images.shape[:2]
    rows, cols = network.grid(images)
    x = encode(network.encoder, (images.flatten(0, 1) - network.image_mean) / network.image_std)
    x = torch.cat([network.register_token[0].expand(len(x), -1, -1), x], 1)
    rope = network.rope(rows, cols, network.config.registers, x.device, x.dtype)
    last: list[Tensor] = []
    for i, module in enumerate(network.decoder):
        if i % 2:
            x = block(module, x.unflatten(0, (batch, views)).flatten(1, 2), rope)
            x = x.unflatten(1, (views, -1)).flatten(0, 1)
        else:
            x = block(module, x, rope)
        last = [*last[-1:], x]
    hidden = torch.cat(last, -1)
    head_rope = network.head_rope(rows, cols, network.config.registers, x.device, x.dtype)
    maps = []
    for decoder in (network.point_decoder, network.conf_decoder, network.camera_decoder):
        y = decoder.projects(hidden)
        for module in decoder.blocks:
            y = block(module, y, head_rope)
        maps.append(decoder.linear_out(y)[:, network.config.registers :])
    raw = network.point_head(maps[0], rows, cols)
    z = raw[..., 2:].exp()
    local = torch.cat([raw[..., :2] * z, z], -1).unflatten(0, (batch, views))
    confidence = network.conf_head(maps[1], rows, cols)[..., 0].unflatten(0, (batch, views))
    poses = network.camera_head(maps[2]).unflatten(0, (batch, views))
    world = torch.einsum("bnij,bnhwj->bnhwi", poses[..., :3, :3], local) + poses[:, :, None, None, :3, 3]
    return {"depth": local[..., 2], "points": world, "confidence": confidence, "pose": poses}
