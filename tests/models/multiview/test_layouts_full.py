"""Every name and shape of the published checkpoints, written out from the specification (0.1, 1.6, 2.1, 2.4)."""

from __future__ import annotations

import pytest
import torch

from relief3d.models.multiview.loading import ARCHITECTURES

Layout = dict[str, tuple[int, ...]]


def affine(name: str, *shape: int, bias: int | None = None) -> Layout:
    """A weight and its bias, which has as many values as the weight has rows unless told."""
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0] if bias is None else bias,)}


def norms(*names: str, dim: int) -> Layout:
    return {k: v for name in names for k, v in affine(name, dim).items()}


def mlp(name: str, dim: int) -> Layout:
    return affine(f"{name}.fc1", 4 * dim, dim) | affine(f"{name}.fc2", dim, 4 * dim)


def block(name: str, dim: int, *, qk: int | None = None, scaled: bool = True) -> Layout:
    """``qk``: channels of a head whose queries and keys are normed."""
    out = norms(f"{name}.norm1", f"{name}.norm2", dim=dim) | mlp(f"{name}.mlp", dim)
    out |= affine(f"{name}.attn.qkv", 3 * dim, dim) | affine(f"{name}.attn.proj", dim, dim)
    if qk is not None:
        out |= norms(f"{name}.attn.q_norm", f"{name}.attn.k_norm", dim=qk)
    if scaled:
        out |= {f"{name}.ls1.gamma": (dim,), f"{name}.ls2.gamma": (dim,)}
    return out


def vit(name: str, *, channels: int = 3, mask: bool = False) -> Layout:
    out: Layout = {
        f"{name}.cls_token": (1, 1, 1024),
        f"{name}.pos_embed": (1, 1370, 1024),
        f"{name}.register_tokens": (1, 4, 1024),
    }
    out |= {f"{name}.mask_token": (1, 1024)} if mask else {}
    out |= affine(f"{name}.patch_embed.proj", 1024, channels, 14, 14) | norms(f"{name}.norm", dim=1024)
    for i in range(24):
        out |= block(f"{name}.blocks.{i}", 1024)
    return out


def dpt(name: str, features: int, last: int | None) -> Layout:
    widths = (256, 512, 1024, 1024)
    out = norms(f"{name}.norm", dim=2048)
    for k, width in enumerate(widths):
        out |= affine(f"{name}.projects.{k}", width, 2048, 1, 1)
        out |= {f"{name}.scratch.layer{k + 1}_rn.weight": (features, width, 3, 3)}
        fuse = f"{name}.scratch.refinenet{k + 1}"
        out |= affine(f"{fuse}.out_conv", features, features, 1, 1)
        for unit in (1, 2) if k < 3 else (2,):
            for conv in (1, 2):
                out |= affine(f"{fuse}.resConfUnit{unit}.conv{conv}", features, features, 3, 3)
    out |= affine(f"{name}.resize_layers.0", 256, 256, 4, 4) | affine(
        f"{name}.resize_layers.1", 512, 512, 2, 2
    )
    out |= affine(f"{name}.resize_layers.3", 1024, 1024, 3, 3)
    if last is None:
        return out | affine(f"{name}.scratch.output_conv1", features, features, 3, 3)
    out |= affine(f"{name}.scratch.output_conv1", features // 2, features, 3, 3)
    out |= affine(f"{name}.scratch.output_conv2.0", 32, features // 2, 3, 3)
    return out | affine(f"{name}.scratch.output_conv2.2", last, 32, 1, 1)


def tracker(name: str) -> Layout:
    out: Layout = {
        f"{name}.query_ref_token": (1, 2, 388),
        f"{name}.updateformer.virual_tracks": (1, 64, 1, 384),
    }
    out |= affine(f"{name}.corr_mlp.fc1", 384, 567) | affine(f"{name}.corr_mlp.fc2", 128, 384)
    out |= norms(f"{name}.fmap_norm", f"{name}.ffeat_norm", dim=128)
    out |= affine(f"{name}.ffeat_updater.0", 128, 128)
    out |= affine(f"{name}.vis_predictor.0", 1, 128) | affine(f"{name}.conf_predictor.0", 1, 128)
    former = f"{name}.updateformer"
    out |= norms(f"{former}.input_norm", dim=388) | norms(f"{former}.output_norm", dim=384)
    out |= affine(f"{former}.input_transform", 384, 388) | affine(f"{former}.flow_head", 130, 384)
    for kind in ("time", "space_virtual", "space_point2virtual", "space_virtual2point"):
        cross = "2" in kind
        for i in range(6):
            at = f"{former}.{kind}_blocks.{i}"
            attention = f"{at}.cross_attn" if cross else f"{at}.attn"
            out |= norms(f"{at}.norm1", f"{at}.norm2", dim=384) | mlp(f"{at}.mlp", 384)
            out |= norms(f"{at}.norm_context", dim=384) if cross else {}
            out |= {f"{attention}.in_proj_weight": (1152, 384), f"{attention}.in_proj_bias": (1152,)}
            out |= affine(f"{attention}.out_proj", 384, 384)
    return out


def vggt() -> Layout:
    out: Layout = {
        "aggregator.camera_token": (1, 2, 1, 1024),
        "aggregator.register_token": (1, 2, 4, 1024),
        "camera_head.empty_pose_tokens": (1, 1, 9),
    }
    out |= vit("aggregator.patch_embed", mask=True)
    for i in range(24):
        out |= block(f"aggregator.frame_blocks.{i}", 1024, qk=64)
        out |= block(f"aggregator.global_blocks.{i}", 1024, qk=64)
    out |= norms("camera_head.token_norm", "camera_head.trunk_norm", dim=2048)
    out |= affine("camera_head.embed_pose", 2048, 9) | affine("camera_head.poseLN_modulation.1", 6144, 2048)
    out |= affine("camera_head.pose_branch.fc1", 1024, 2048) | affine("camera_head.pose_branch.fc2", 9, 1024)
    for i in range(4):
        out |= block(f"camera_head.trunk.{i}", 2048)
    out |= dpt("point_head", 256, 4) | dpt("depth_head", 256, 2)
    return out | dpt("track_head.feature_extractor", 128, None) | tracker("track_head.tracker")


def pi3_body() -> Layout:
    """What pi3 and Pi3X share."""
    out: Layout = {"register_token": (1, 1, 5, 1024), "image_mean": (1, 3, 1, 1), "image_std": (1, 3, 1, 1)}
    out |= vit("encoder")
    for i in range(36):
        out |= block(f"decoder.{i}", 1024, qk=64)
    for part, width in (("point", 1024), ("conf", 1024), ("camera", 512)):
        out |= affine(f"{part}_decoder.projects", 1024, 2048)
        out |= affine(f"{part}_decoder.linear_out", width, 1024)
        for i in range(5):
            out |= block(f"{part}_decoder.blocks.{i}", 1024, scaled=False)
    for i in (0, 1):
        for k in (1, 2, 3):
            out |= affine(f"camera_head.res_conv.{i}.res_conv{k}", 512, 512)
    out |= affine("camera_head.more_mlps.0", 512, 512) | affine("camera_head.more_mlps.2", 512, 512)
    return out | affine("camera_head.fc_t", 3, 512) | affine("camera_head.fc_rot", 9, 512)


def pi3() -> Layout:
    return pi3_body() | affine("point_head.proj", 588, 1024) | affine("conf_head.proj", 196, 1024)


def conv_head(name: str, outputs: tuple[int, ...]) -> Layout:
    out: Layout = {}
    for i, (before, after) in enumerate(((1024, 256), (256, 128), (128, 64))):
        at = f"{name}.upsample_blocks.{i}"
        out |= affine(f"{at}.0.0", before + 2, after, 2, 2, bias=after) | affine(
            f"{at}.0.1", after, after, 3, 3
        )
        for j in (1, 2):
            out |= norms(f"{at}.{j}.layers.0", dim=after) | norms(f"{at}.{j}.layers.3", dim=2 * after)
            out |= affine(f"{at}.{j}.layers.2", 2 * after, after, 3, 3)
            out |= affine(f"{at}.{j}.layers.5", after, 2 * after, 3, 3)
    for k, channels in enumerate(outputs):
        out |= affine(f"{name}.output_block.{k}.0", 32, 66, 3, 3)
        out |= affine(f"{name}.output_block.{k}.2", channels, 32, 1, 1)
    return out


def pi3x() -> Layout:
    out = pi3_body() | {"depth_emb": (1, 1, 1024), "metric_token": (1, 1, 2048)}
    out |= vit("depth_encoder", channels=2) | affine("ray_embed.proj", 1024, 2, 14, 14)
    for i in range(5):
        out |= block(f"pose_inject_blk.{i}", 1024, qk=64)
    out |= conv_head("point_head", (2, 1)) | conv_head("conf_head", (1,))
    out |= affine("metric_decoder.projects_x", 512, 2048) | affine("metric_decoder.projects_y", 512, 2048)
    out |= affine("metric_decoder.linear_out", 512, 512) | affine("metric_head", 1, 512)
    for i in range(5):
        at = f"metric_decoder.blocks.{i}"
        out |= norms(f"{at}.norm2", f"{at}.norm_y", f"{at}.norm3", dim=512) | mlp(f"{at}.mlp", 512)
        for part in ("q_proj", "k_proj", "v_proj", "proj"):
            out |= affine(f"{at}.cross_attn.{part}", 512, 512)
    return out


@pytest.mark.parametrize(
    ("name", "layout", "entries", "millions"),
    [("vggt", vggt(), 1797, 1256.54), ("pi3", pi3(), 1210, 958.70), ("pi3x", pi3x(), 1873, 1360.032)],
)
def test_names_and_shapes_are_the_published_ones(
    name: str, layout: Layout, entries: int, millions: float
) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name]()
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == layout
    # As the text states them.
    assert len(layout) == entries
    assert abs(sum(p.numel() for p in network.parameters()) / 1e6 - millions) < 0.006
