"""Every name and shape of the published point-map checkpoints, their parameters and their work, from the specification.

Written from MetricAnything specification 6.1, 6.2, 6.6 and 10.8, without looking at the network's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relief3d.models.metric.pointmap import PointMap, native_tokens, token_grid
from relief3d.models.metric.pointmap_configs import config_from_dict, config_to_dict, pointmap_config

Layout = dict[str, tuple[int, ...]]
WIDTHS = (1024, 256, 128, 64, 32)


def affine(name: str, *shape: int, outputs: int | None = None) -> Layout:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0] if outputs is None else outputs,)}


def encoder() -> Layout:
    at = "encoder.backbone"
    out: Layout = {
        "encoder.image_mean": (1, 3, 1, 1), "encoder.image_std": (1, 3, 1, 1), f"{at}.cls_token": (1, 1, 1024),
        f"{at}.pos_embed": (1, 1370, 1024), f"{at}.mask_token": (1, 1024),
    }  # fmt: skip
    out |= affine(f"{at}.patch_embed.proj", 1024, 3, 14, 14) | affine(f"{at}.norm", 1024)
    for i in range(24):
        block = f"{at}.blocks.{i}"
        out |= affine(f"{block}.norm1", 1024) | affine(f"{block}.norm2", 1024)
        out |= affine(f"{block}.attn.qkv", 3072, 1024) | affine(f"{block}.attn.proj", 1024, 1024)
        out |= affine(f"{block}.mlp.fc1", 4096, 1024) | affine(f"{block}.mlp.fc2", 1024, 4096)
        out |= {f"{block}.ls1.gamma": (1024,), f"{block}.ls2.gamma": (1024,)}
    for k in range(4):
        out |= affine(f"encoder.output_projections.{k}", 1024, 1024, 1, 1)
    return out


def stack(name: str, dim_in: tuple[int, ...], blocks: int, last: int | None) -> Layout:
    out: Layout = {}
    for i, (a, width) in enumerate(zip(dim_in, WIDTHS)):
        out |= affine(f"{name}.input_blocks.{i}", width, a, 1, 1)
        if i in (1, 2, 3):
            for k in range(blocks):
                out |= affine(f"{name}.res_blocks.{i}.{k}.layers.2", width, width, 3, 3)
                out |= affine(f"{name}.res_blocks.{i}.{k}.layers.5", width, width, 3, 3)
    for i in range(3):
        a, b = WIDTHS[i], WIDTHS[i + 1]
        out |= affine(f"{name}.resamplers.{i}.0", a, b, 2, 2, outputs=b)
        out |= affine(f"{name}.resamplers.{i}.1", b, b, 3, 3)
    out |= affine(f"{name}.resamplers.3.1", 32, 64, 3, 3)
    return out if last is None else out | affine(f"{name}.output_blocks.4", last, 32, 1, 1)


def layout(normals: bool) -> Layout:
    out = encoder() | stack("neck", (1026, 2, 2, 2, 2), 2, None)
    for name, channels in (("points", 3), ("mask", 1), *([("normal", 3)] if normals else [])):
        out |= stack(f"{name}_head", WIDTHS, 1, channels)
    for index, outputs in ((0, 1024), (2, 1024), (4, 1)):
        out |= affine(f"scale_head.{index}", outputs, 1024)
    return out


V2 = {
    "encoder": {"backbone": "dinov2_vitl14", "intermediate_layers": [5, 11, 17, 23], "dim_out": 1024},
    "neck": {
        "dim_in": [1026, 2, 2, 2, 2], "dim_res_blocks": list(WIDTHS), "dim_out": None,
        "num_res_blocks": [0, 2, 2, 2, 0], "res_block_in_norm": "none", "res_block_hidden_norm": "none",
        "resamplers": ["conv_transpose", "conv_transpose", "conv_transpose", "bilinear"],
    },
    **{
        f"{name}_head": {
            "dim_in": list(WIDTHS), "dim_res_blocks": list(WIDTHS), "dim_out": [None, None, None, None, channels],
            "num_res_blocks": [0, 1, 1, 1, 0], "res_block_in_norm": "none", "res_block_hidden_norm": "none",
            "resamplers": ["conv_transpose", "conv_transpose", "conv_transpose", "bilinear"],
        }
        for name, channels in (("points", 3), ("normal", 3), ("mask", 1))
    },
    "scale_head": {"dims": [1024, 1024, 1024, 1]}, "remap_output": "exp", "num_tokens_range": [1200, 3600],
}  # fmt: skip


@pytest.mark.parametrize("normals", [False, True])
def test_names_shapes_and_parameters_are_the_published_ones(normals: bool) -> None:
    stored = {k: v for k, v in V2.items() if normals or k != "normal_head"}
    config = config_from_dict(stored)
    assert config == pointmap_config("full", normals=normals)
    assert config_from_dict(config_to_dict(config)) == config
    with torch.device("meta"):
        network = PointMap(config)
    found = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    assert found == layout(normals)
    count = sum(p.numel() for p in network.parameters())
    assert round(count / 1e6, 2) == (330.90 if normals else 326.21)
    split = {k: round(sum(p.numel() for p in m.parameters()) / 1e6, 2) for k, m in network.named_children()}
    heads = {"points_head": 4.69, "mask_head": 4.69} | ({"normal_head": 4.69} if normals else {})
    assert split == {"encoder": 308.57, "neck": 6.16, "scale_head": 2.1, **heads}


def test_parameters_of_the_published_smaller_sizes() -> None:
    """104 M and 35 M with normals, as stated; how they are split is not."""
    for size, millions in (("base", 104), ("small", 35)):
        with torch.device("meta"):
            network = PointMap(pointmap_config(size, normals=True))  # type: ignore[arg-type]
        assert int(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def multiply_adds(shapes: Layout, grid: tuple[int, int]) -> dict[str, int]:
    """Of convolutions and linear layers by part, from the names: how often each weight is used at its level."""
    tokens = grid[0] * grid[1]
    out: dict[str, int] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        if parts[-1] != "weight" or len(shape) < 2:
            continue
        if parts[0] == "encoder":
            uses = tokens + (parts[2] == "blocks")  # the class token
        elif parts[0] == "scale_head":
            uses = 1
        else:
            # The second half of a resampler sees the enlarged map; a transposed convolution the small one.
            level = int(parts[2]) + (parts[1] == "resamplers" and parts[3] == "1")
            uses = tokens * 4**level
        out[parts[0]] = out.get(parts[0], 0) + uses * math.prod(shape)
    return out


@torch.no_grad()
def test_multiply_adds_follow_from_the_names() -> None:
    network = PointMap(pointmap_config("nano", normals=True)).eval()
    done: dict[str, int] = {}

    def count(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            # A transposed convolution uses each weight once per cell of its input, without its batch and channels.
            cells = given[0].numel() // given[0].shape[1] if module.weight.shape[-1] == 2 else None
            if isinstance(module, nn.Linear):
                cells = out.numel() // out.shape[-1]
            elif not isinstance(module, nn.ConvTranspose2d):
                cells = out.numel() // out.shape[1]
            assert cells is not None
            done[name] = done.get(name, 0) + cells * module.weight.numel()  # type: ignore[operator]

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count(name.split(".")[0]))
    network(torch.rand(1, 3, 40, 60), (3, 5))
    assert done == multiply_adds({k: tuple(v.shape) for k, v in network.state_dict().items()}, (3, 5))


def test_multiply_adds_of_an_hd_picture_are_those_published() -> None:
    """4015.7 G, one token per 14 x 14 pixels (10.8), attention products left out as in all counts of that table.

    The published number is that of encoder, neck, scale and points (4011.5 G); with the mask's head it is 4329.6 G. It
    is met to the last digit when normalisations count 5 per element and bilinear enlargements 4, as a common counter
    has it (fvcore); the other two published networks agree (see the layouts of the pyramids).
    """
    grid = token_grid(1080, 1920, native_tokens(1080, 1920))
    giga = {k: n / 1e9 for k, n in multiply_adds(layout(normals=False), grid).items()}
    whole = sum(giga.values())
    without = whole - giga["mask_head"]
    assert without == pytest.approx(4011.5, abs=0.05)
    tokens = grid[0] * grid[1]
    norms = 5 * (2 * 24 + 4) * (tokens + 1) * 1024
    enlarged = 4 * (2 * 64 * 256 * tokens + 3 * 1080 * 1920)
    assert without + (norms + enlarged) / 1e9 == pytest.approx(4015.7, abs=0.05)
    assert whole == pytest.approx(4329.6, abs=0.1)
