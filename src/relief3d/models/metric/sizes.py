"""Named sizes of the pyramid networks: the published ones and small ones of the same classes.

``nano`` is for tests, ``micro`` and ``mini`` learn from pictures of 96 to 256 pixels on a laptop, ``small`` has a
ViT-S, ``full`` is what the papers published (the teacher: our reading of it). Small networks leave out the last
doublings of the decoder, so that their results have the size of the picture they see, and start their head from a
positive depth.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from relief3d.models.metric.decoder import PromptConfig
from relief3d.models.metric.injection import InjectionKind
from relief3d.models.metric.networks import DepthMapConfig, DepthProConfig, SkipOrder, TeacherConfig
from relief3d.nn.dinov3 import DinoV3Config
from relief3d.nn.vit import VitConfig

Size = Literal["nano", "micro", "mini", "small", "full"]
SIZES: tuple[Size, ...] = ("nano", "micro", "mini", "small", "full")
Backbone = Literal["dinov3", "depth_pro"]


class _Small(NamedTuple):
    """Sizes of a small network: transformer, tiles, decoder, prompt branches."""

    dim: int
    depth: int
    heads: int
    patch: int
    tile: int
    coarser: int
    features: int
    dims: tuple[int, int, int, int]
    hooks: tuple[int, int]
    student_hooks: tuple[int, int, int, int]
    prompt: PromptConfig


_SMALL: dict[Size, _Small] = {
    "nano": _Small(
        32, 5, 2, 4, 32, 2, 16, (16, 16, 24, 24), (0, 1), (0, 1, 2, 3), PromptConfig(16, 8, antialias=True)
    ),
    "micro": _Small(
        96, 6, 3, 4, 32, 2, 32, (32, 48, 64, 64), (1, 2), (1, 2, 3, 4), PromptConfig(48, 16, antialias=True)
    ),
    "mini": _Small(
        192, 8, 3, 8, 64, 1, 48, (48, 64, 96, 96), (1, 3), (1, 2, 4, 6), PromptConfig(96, 16, antialias=True)
    ),
    "small": _Small(
        384, 12, 6, 16, 128, 0, 64, (48, 96, 192, 192), (2, 5), (2, 4, 7, 9), PromptConfig(192, 32, antialias=True)
    ),
}  # fmt: skip


def _vit(s: _Small, backbone: Backbone) -> DinoV3Config | VitConfig:
    if backbone == "dinov3":
        return DinoV3Config(s.dim, s.depth, s.heads, s.patch, ratio=4.0, rope_rescale=None, layer_scale=1.0)
    return VitConfig(s.dim, s.depth, s.heads, s.patch, registers=0, img_size=s.tile, mask_token=False)


def _shared(size: Size, backbone: Backbone) -> dict[str, Any]:
    s = _SMALL[size]
    return {
        "vit": _vit(s, backbone),
        "tile": s.tile,
        "dims": s.dims,
        "features": s.features,
        "coarser": s.coarser,
        "head_hidden": min(32, s.features),
        "head_bias": 0.2,
    }


def depth_pro_config(size: Size, *, fov: bool = True) -> DepthProConfig:
    """Sizes of a Depth Pro."""
    if size == "full":
        return DepthProConfig(fov=fov)
    return DepthProConfig(hooks=_SMALL[size].hooks, fov=fov, **_shared(size, "depth_pro"))


def depth_map_config(size: Size, *, skip_order: SkipOrder = "inverse") -> DepthMapConfig:
    """Sizes of a Student-DepthMap."""
    if size == "full":
        return DepthMapConfig(skip_order=skip_order)
    return DepthMapConfig(hooks=_SMALL[size].student_hooks, skip_order=skip_order, **_shared(size, "dinov3"))


def teacher_config(
    size: Size, *, backbone: Backbone = "dinov3", injection: InjectionKind = "dpt"
) -> TeacherConfig:
    """Sizes of a teacher.

    Args:
        size: full with the "dinov3" backbone is our reading of the unreleased network.
        backbone: "depth_pro" is a transformer in the layout of Depth Pro's, with its normalisation of pictures; at full
            size (ViT-L) it takes the published weights of Depth Pro.
        injection: how the condition enters.
    """
    if size != "full":
        normal: dict[str, Any] = {} if backbone == "dinov3" else {"normalisation": "half"}
        s = _SMALL[size]
        return TeacherConfig(
            hooks=s.hooks, injection=injection, prompt=s.prompt, **normal, **_shared(size, backbone)
        )
    if backbone == "dinov3":
        return TeacherConfig(injection=injection)
    published = DepthProConfig()
    return TeacherConfig(
        vit=published.vit, hooks=published.hooks, normalisation=published.normalisation, injection=injection
    )
