"""Every name and shape of the published checkpoints, written out from the specification (3.8, 4.3, 4.4, 5.7), the
parameter counts, and the published cost.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from relief3d.models.metric.networks import DepthMap, DepthPro, DepthProConfig, PyramidNetwork, Teacher
from relief3d.models.metric.pyramid_loading import PUBLISHED
from relief3d.models.metric.sizes import depth_map_config, teacher_config
from relief3d.train.throughput import count_multiply_adds

Layout = dict[str, tuple[int, ...]]


def affine(name: str, *shape: int, bias: int | None = None) -> Layout:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0] if bias is None else bias,)}


def shared_block(at: str, dim: int) -> Layout:
    out = affine(f"{at}.norm1", dim) | affine(f"{at}.norm2", dim)
    out |= affine(f"{at}.attn.qkv", 3 * dim, dim) | affine(f"{at}.attn.proj", dim, dim)
    return out | {f"{at}.ls1.gamma": (dim,), f"{at}.ls2.gamma": (dim,)}


def vit_l(name: str) -> Layout:
    out: Layout = {f"{name}.cls_token": (1, 1, 1024), f"{name}.pos_embed": (1, 577, 1024)}
    out |= affine(f"{name}.patch_embed.proj", 1024, 3, 16, 16) | affine(f"{name}.norm", 1024)
    for i in range(24):
        at = f"{name}.blocks.{i}"
        out |= shared_block(at, 1024)
        out |= affine(f"{at}.mlp.fc1", 4096, 1024) | affine(f"{at}.mlp.fc2", 1024, 4096)
    return out


def vit_h(name: str) -> Layout:
    out: Layout = {
        f"{name}.cls_token": (1, 1, 1280),
        f"{name}.storage_tokens": (1, 4, 1280),
        f"{name}.mask_token": (1, 1280),
        f"{name}.rope_embed.periods": (16,),
    }
    out |= affine(f"{name}.patch_embed.proj", 1280, 3, 16, 16) | affine(f"{name}.norm", 1280)
    for i in range(32):
        at = f"{name}.blocks.{i}"
        out |= shared_block(at, 1280) | {f"{at}.attn.qkv.bias_mask": (3840,)}
        for part, shape in (("w1", (5120, 1280)), ("w2", (5120, 1280)), ("w3", (1280, 5120))):
            out |= affine(f"{at}.mlp.{part}", *shape)
    return out


def upsample(name: str, dim: int, *widths: int) -> Layout:
    """A projection to the first width, then one doubling per further width."""
    out: Layout = {f"encoder.{name}.0.weight": (widths[0], dim, 1, 1)}
    for k, (a, b) in enumerate(itertools.pairwise(widths), 1):
        out[f"encoder.{name}.{k}.weight"] = (a, b, 2, 2)
    return out


def fusions(count: int, doubling: tuple[int, ...], without_skip: tuple[int, ...] = ()) -> Layout:
    out: Layout = {}
    for i in range(count):
        at = f"decoder.fusions.{i}"
        out |= affine(f"{at}.out_conv", 256, 256, 1, 1)
        for unit in ("resnet2",) if i in without_skip else ("resnet1", "resnet2"):
            for conv in (1, 3):
                out |= affine(f"{at}.{unit}.residual.{conv}", 256, 256, 3, 3)
        if i in doubling:
            out[f"{at}.deconv.weight"] = (256, 256, 2, 2)
    return out


def head(indices: dict[int, tuple[int, ...]]) -> Layout:
    out: Layout = {}
    for i, shape in indices.items():
        out |= affine(f"head.{i}", *shape)
    return out


def classic(dim: int) -> Layout:
    """Depth Pro's upsampling, decoder and head over a transformer of some width."""
    out = upsample("upsample_latent0", dim, 256, 256, 256, 256) | upsample(
        "upsample_latent1", dim, 256, 256, 256
    )
    out |= upsample("upsample0", dim, 512, 512)
    out |= upsample("upsample1", dim, 1024, 1024) | upsample("upsample2", dim, 1024, 1024)
    out |= affine("encoder.upsample_lowres", dim, 1024, 2, 2, bias=1024)
    out |= affine("encoder.fuse_lowres", 1024, 2048, 1, 1)
    for i, width in ((1, 256), (2, 512), (3, 1024), (4, 1024)):
        out[f"decoder.convs.{i}.weight"] = (256, width, 3, 3)
    out |= fusions(5, (1, 2, 3, 4))
    return out | head({0: (128, 256, 3, 3), 1: (128, 128, 2, 2), 2: (32, 128, 3, 3), 4: (1, 32, 1, 1)})


def depth_pro() -> Layout:
    out = vit_l("encoder.patch_encoder") | vit_l("encoder.image_encoder") | classic(1024)
    out |= (
        vit_l("fov.encoder.0")
        | affine("fov.encoder.1", 128, 1024)
        | affine("fov.downsample.0", 128, 256, 3, 3)
    )
    out |= affine("fov.head.0", 64, 128, 3, 3) | affine("fov.head.2", 32, 64, 3, 3)
    return out | affine("fov.head.4", 1, 32, 6, 6)


def depth_map() -> Layout:
    out = vit_h("encoder.patch_encoder") | upsample("upsample_latent0", 1280, 320, 320)
    for i in (1, 2, 3):
        out |= upsample(f"upsample_latent{i}", 1280, 320, 320, 320)
    out |= upsample("upsample0", 1280, 256, 256, 256, 256)
    out |= upsample("upsample1", 1280, 320, 320) | upsample("upsample2", 1280, 640, 640)
    out |= affine("encoder.upsample_lowres", 1280, 640, 2, 2, bias=640)
    out |= affine("encoder.fuse_lowres", 640, 1280, 1, 1)
    for i, width in enumerate((256, 320, 320, 320, 320, 320, 640)):
        out[f"decoder.convs.{i}.weight"] = (256, width, 3, 3)
    out |= fusions(7, (1, 4, 5, 6), (6,))
    out |= head({0: (128, 256, 3, 3), 1: (128, 128, 2, 2), 2: (32, 128, 3, 3)})
    return out | head(dict.fromkeys((4, 6, 8, 10), (32, 32, 3, 3))) | head({12: (1, 32, 1, 1)})


def prompts() -> Layout:
    out: Layout = {}
    for i in range(5):
        for part, width in (("wide", 768), ("thin", 32)):
            at = f"decoder.fusions.{i}.prompt.{part}"
            out |= affine(f"{at}.0", width, 3, 3, 3) | affine(f"{at}.2", width, width, 3, 3)
            out |= affine(f"{at}.4", 256, width, 3, 3)
    return out


@functools.cache
def full(name: str) -> PyramidNetwork:
    with torch.device("meta"):
        if name == "depth_pro":
            return DepthPro()
        if name == "depth_map":
            return DepthMap()
        if name == "depth_map_unet":
            return DepthMap(depth_map_config("full", skip_order="unet"))
        return Teacher(teacher_config("full", backbone="depth_pro" if name == "teacher_vitl" else "dinov3"))


def millions(network: PyramidNetwork) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "layout", "entries", "count"),
    [
        ("depth_pro", depth_pro(), 1119, 951.99),
        ("depth_map", depth_map(), 668, 876.66),
        # Not released: our reading, of 993 M published; the practical size has Depth Pro's weights.
        ("teacher", vit_h("encoder.patch_encoder") | classic(1280) | prompts(), None, 918.64),
        ("teacher_vitl", vit_l("encoder.patch_encoder") | classic(1024) | prompts(), None, 379.91),
    ],
)
def test_names_shapes_and_counts(name: str, layout: Layout, entries: int | None, count: float) -> None:
    network = full(name)
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == layout
    assert entries is None or len(layout) == entries
    assert round(millions(network), 2) == count


def test_parts_have_the_counts_of_the_text() -> None:
    student = full("depth_map")
    vit = sum(p.numel() for p in student.encoder.patch_encoder.parameters()) / 1e6
    encoder = sum(p.numel() for p in student.encoder.parameters()) / 1e6 - vit
    decoder, head = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (student.decoder, student.head))
    assert [round(v, 2) for v in (vit, encoder, decoder, head)] == [840.63, 12.99, 22.60, 0.43]
    branch = full("teacher").decoder.fusions[0].prompt
    wide, thin = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (branch.wide, branch.thin))
    assert round(wide, 1) == 7.1 and round(thin, 2) == 0.08


def test_the_usual_order_of_skips_has_as_many_parameters() -> None:
    assert millions(full("depth_map_unet")) == millions(full("depth_map"))


@pytest.mark.parametrize(
    ("name", "published", "counted"), [("depth_map", 21516.4, 21019.8), ("depth_pro", 8848.5, 8843.2)]
)
@torch.no_grad()
def test_cost_is_the_published_one(name: str, published: float, counted: float) -> None:
    """Giga multiply-adds at 1536 x 1536 without products of attention; Depth Pro without its field of view."""
    with torch.device("meta"):
        network = DepthMap() if name == "depth_map" else DepthPro(DepthProConfig(fov=False))
        images = torch.empty(1, 3, 1536, 1536)
    out, found = count_multiply_adds(lambda: network.eval()(images))
    assert out.canonical.shape == (1, 1536, 1536)
    assert abs(found / 1e9 / published - 1) < 0.03
    # As the specification counts them by parts (4.2).
    assert abs(found / 1e9 - counted) < 0.1
    # The published counter (fvcore's rules) has 5 per normalised element and 4 per element of the smaller pictures, and
    # saw 36 crops of both; the student as released sees its coarse tile once.
    tokens, norms, dim = (581, 65, 1280) if name == "depth_map" else (577, 49, 1024)
    extra = 36 * 5 * tokens * norms * dim + 4 * 3 * (768**2 + 384**2)
    if name == "depth_map":
        with torch.device("meta"):
            crop = torch.empty(1, 3, 384, 384)
        extra += count_multiply_adds(lambda: network.encoder.patch_encoder(crop))[1]
    assert abs((found + extra) / 1e9 - published) < 0.05


def test_catalogue_entries_are_true() -> None:
    for model in PUBLISHED.values():
        count = millions(full(model.architecture))
        assert round(count, 2) == model.parameters
        assert abs(4e6 * count / 1024**3 - model.memory_gb) < 0.01
        width = 2 if model.architecture == "depth_pro" else 4
        assert abs(width * count / 1e3 - model.download_gb) < 0.01
