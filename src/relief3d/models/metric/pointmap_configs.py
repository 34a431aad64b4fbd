"""Named sizes of the point-map network, and the configurations that its checkpoints carry.

``nano`` is for tests, ``micro`` and ``mini`` for training on a laptop, ``full`` (ViT-L) is what is published. ``small``
and ``base`` are on ViT-S and ViT-B, with widths of our choice that give the published 35 M and 104 M parameters with
normals; the published checkpoints of these sizes carry their own configuration.
Source: MetricAnything specification 6.1, 12.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from relief3d.core.errors import InputError
from relief3d.models.metric.pointmap import PointMapConfig, Remap
from relief3d.nn.conv_head import Norm
from relief3d.nn.conv_stack import ConvStackConfig, Resampling
from relief3d.nn.vit import VitConfig

Size = Literal["nano", "micro", "mini", "small", "base", "full"]
SIZES: tuple[Size, ...] = get_args(Size)
RESAMPLERS: tuple[Resampling, ...] = ("conv_transpose", "conv_transpose", "conv_transpose", "bilinear")

BACKBONES: Mapping[str, tuple[int, int, int]] = {
    "dinov2_vits14": (384, 12, 6),
    "dinov2_vitb14": (768, 12, 12),
    "dinov2_vitl14": (1024, 24, 16),
}
"""Channels, blocks and heads of the encoders that checkpoints name."""

_SIZES: Mapping[Size, tuple[VitConfig, tuple[int, ...], tuple[int, int]]] = {
    "nano": (VitConfig(32, 4, 2, img_size=70), (32, 24, 16, 12, 8), (12, 60)),
    "micro": (VitConfig(96, 4, 4, img_size=140), (64, 48, 32, 24, 16), (60, 240)),
    "mini": (VitConfig(192, 6, 6, img_size=224), (128, 96, 64, 32, 24), (100, 600)),
    "small": (VitConfig(384, 12, 6), (256, 256, 128, 64, 32), (1200, 3600)),
    "base": (VitConfig(768, 12, 12), (512, 256, 128, 64, 32), (1200, 3600)),
    "full": (VitConfig(), (1024, 256, 128, 64, 32), (1200, 3600)),
}
"""Encoder, widths of the levels, range of tokens."""


def dinov2(vit: VitConfig) -> VitConfig:
    """An encoder in the layout of DINOv2 without registers."""
    return replace(vit, registers=0, mask_token=True, resize_offset=0.1)


def pointmap_config(size: Size, *, normals: bool = False, mask: bool = True) -> PointMapConfig:
    """Sizes of a point-map network; "full" without normals is the released Student-PointMap (326.21 M parameters).

    Raises:
        InputError: an unknown size.
    """
    if size not in _SIZES:
        raise InputError(f"there is no size '{size}'", remedy=f"use one of {', '.join(SIZES)}")
    vit, widths, tokens = _SIZES[size]
    blocks, dim = vit.depth, widths[0]
    rest = (None,) * (len(widths) - 1)

    def head(channels: int) -> ConvStackConfig:
        return ConvStackConfig(widths, widths, (*rest, channels), (0, 1, 1, 1, 0), RESAMPLERS)

    return PointMapConfig(
        vit=dinov2(vit),
        layers=tuple((i + 1) * blocks // 4 - 1 for i in range(4)),
        dim=dim,
        neck=ConvStackConfig((dim + 2, 2, 2, 2, 2), widths, (None, *rest), (0, 2, 2, 2, 0), RESAMPLERS),
        points=head(3),
        mask=head(1) if mask else None,
        normals=head(3) if normals else None,
        scale=(vit.dim, vit.dim, vit.dim, 1),
        tokens=tokens,
    )


def config_from_dict(
    stored: Mapping[str, Any], vits: Mapping[str, VitConfig] | None = None
) -> PointMapConfig:
    """The configuration that a checkpoint of MoGe-2 carries under ``model_config``.

    Args:
        stored: with ``encoder, neck, points_head, remap_output`` and perhaps ``mask_head, normal_head, scale_head,
            num_tokens_range``.
        vits: encoders by name, besides :data:`BACKBONES`.

    Raises:
        InputError: an entry is missing, or something is asked for that the network cannot be.
    """
    try:
        encoder = stored["encoder"]
        layers = encoder["intermediate_layers"]
        vit = _encoder(str(encoder["backbone"]), vits or {})
        if isinstance(layers, int):
            layers = range(vit.depth - layers, vit.depth)
        heads = {k: stored.get(k) for k in ("mask_head", "normal_head")}
        scale = stored.get("scale_head")
        least, most = stored.get("num_tokens_range", (1200, 3600))
        remap = stored.get("remap_output", "linear")
        if remap not in get_args(Remap):
            raise InputError(f"the output '{remap}' is not known")
        return PointMapConfig(
            vit=vit,
            layers=tuple(int(i) for i in layers),
            dim=int(encoder["dim_out"]),
            neck=_stack(stored["neck"]),
            points=_stack(stored["points_head"]),
            mask=None if heads["mask_head"] is None else _stack(heads["mask_head"]),
            normals=None if heads["normal_head"] is None else _stack(heads["normal_head"]),
            scale=None if scale is None else tuple(int(d) for d in scale["dims"]),
            remap=remap,
            tokens=(int(least), int(most)),
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(
            f"the stored configuration is not one of a MoGe-2 network ({type(exc).__name__}: {exc})"
        ) from exc


def config_to_dict(config: PointMapConfig) -> dict[str, Any]:
    """The inverse of :func:`config_from_dict`; an encoder that has no published name is written out in numbers."""
    v = config.vit
    names = {sizes: name for name, sizes in BACKBONES.items()}
    named = names.get((v.dim, v.depth, v.heads)) if v.img_size == VitConfig().img_size else None
    stored: dict[str, Any] = {
        "encoder": {
            "backbone": named or f"dinov2:{v.dim}x{v.depth}x{v.heads}@{v.img_size}",
            "intermediate_layers": list(config.layers),
            "dim_out": config.dim,
        },
        "neck": _stack_dict(config.neck),
        "points_head": _stack_dict(config.points),
        "remap_output": config.remap,
        "num_tokens_range": list(config.tokens),
    }
    for key, stack in (("mask_head", config.mask), ("normal_head", config.normals)):
        if stack is not None:
            stored[key] = _stack_dict(stack)
    if config.scale is not None:
        stored["scale_head"] = {"dims": list(config.scale)}
    return stored


def _encoder(name: str, vits: Mapping[str, VitConfig]) -> VitConfig:
    if name in vits:
        return dinov2(vits[name])
    if name in BACKBONES:
        dim, depth, heads = BACKBONES[name]
        return dinov2(VitConfig(dim, depth, heads))
    if name.startswith("dinov2:") and "@" in name:
        sizes, img_size = name.removeprefix("dinov2:").split("@")
        dim, depth, heads = (int(n) for n in sizes.split("x"))
        return dinov2(VitConfig(dim, depth, heads, img_size=int(img_size)))
    raise InputError(f"the encoder '{name}' is not known", remedy=f"known are {', '.join(BACKBONES)}")


def _stack(stored: Mapping[str, Any]) -> ConvStackConfig:
    widths = tuple(int(w) for w in stored["dim_res_blocks"])
    levels = len(widths)
    activation = stored.get("activation", "relu")
    if activation != "relu":
        raise InputError(f"the activation '{activation}' is not supported; only relu")
    return ConvStackConfig(
        dim_in=_spread(stored["dim_in"], levels),
        widths=widths,
        dim_out=_spread(stored["dim_out"], levels),
        residuals=tuple(int(n or 0) for n in _spread(stored["num_res_blocks"], levels)),
        resamplers=_one_of(_spread(stored["resamplers"], levels - 1), Resampling),
        in_norm=_one_of([stored.get("res_block_in_norm", "layer_norm")], Norm)[0],
        hidden_norm=_one_of([stored.get("res_block_hidden_norm", "group_norm")], Norm)[0],
        expand=int(stored.get("dim_times_res_block_hidden", 1)),
    )


def _stack_dict(stack: ConvStackConfig) -> dict[str, Any]:
    return {
        "dim_in": list(stack.dim_in),
        "dim_res_blocks": list(stack.widths),
        "dim_out": list(stack.dim_out),
        "num_res_blocks": list(stack.residuals),
        "resamplers": list(stack.resamplers),
        "res_block_in_norm": stack.in_norm,
        "res_block_hidden_norm": stack.hidden_norm,
        "dim_times_res_block_hidden": stack.expand,
    }


def _spread(value: Any, count: int) -> tuple[Any, ...]:
    """A value per level, from such a list or one value for all."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(value)
    return (value,) * count


def _one_of(values: Sequence[Any], kind: Any) -> tuple[Any, ...]:
    for value in values:
        if value not in get_args(kind):
            raise InputError(f"'{value}' is not supported; known are {', '.join(get_args(kind))}")
    return tuple(values)
