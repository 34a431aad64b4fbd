"""Writes tests/golden/multiview_nano.safetensors: what nano networks with prescribed weights say, in double precision.

The values are our own, made by the networks when they agreed with the published code; they hold refactors to that on a
fresh clone, without the reference files. Run ``python tests/golden/make_multiview.py`` only when an output is meant to
change, and say why in the commit.

Weights and inputs come from an integer hash of their name and index, so no random number generator of any library is
involved. Every weight is non-zero (zero-initialised parts would hide what they do), and the widths of the residual
streams are small, so that the epsilons of the norms show in the digits.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import make_rigid
from relief3d.models.multiview.configs import pi3_config, reliev3r_config, vggt_config
from relief3d.models.multiview.pi3 import Pi3, Pi3Config
from relief3d.models.multiview.pi3x import Conditions, Pi3X, Pi3XConfig
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Vggt
from relief3d.nn.attention import Attention
from relief3d.nn.dpt import DptConfig, DptHead
from relief3d.nn.vit import VisionTransformer, VitConfig

FILE = Path(__file__).with_name("multiview_nano.safetensors")
VIEWS, HEIGHT, WIDTH = 3, 28, 42
SAMPLES = 160
"""Numbers stored per output, evenly spread; sums over all numbers are stored besides."""

Outputs = dict[str, Tensor]


def hashed(name: str, *shape: int) -> Tensor:
    """Uniform in (-1, 1) float64: splitmix64 of the index, started by the CRC of the name."""
    count = int(np.prod(shape)) if shape else 1
    with np.errstate(over="ignore"):
        x = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode())) * np.uint64(2**32)
        x *= np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    unit = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54
    return torch.from_numpy(2 * unit - 1).reshape(shape)


def _gain(name: str) -> float:
    """Size of a matrix relative to one that keeps the variance; what is exponentiated must not be large."""
    if name.endswith(("patch_embed.proj.weight", "poseLN_modulation.1.weight")):
        return 0.1
    if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
        return 0.5
    last = ("output_conv2.2.weight", "point_head.proj.weight", "depth_head.proj.weight", "1.2.weight")
    return 0.3 if name.endswith(last) else 1.4


@torch.no_grad()
def prescribe(network: nn.Module) -> nn.Module:
    """Fill every parameter by its name; the same for any order of construction."""
    for name, p in network.named_parameters():
        u = hashed(name, *p.shape)
        if name.endswith("gamma"):
            u = 0.03 * (1 + 0.5 * u)
        elif name.endswith(("encoder.norm.weight", "patch_embed.norm.weight", "token_norm.weight")):
            u = 0.03 * (1 + 0.4 * u)
        elif p.ndim == 1 and name.endswith("weight"):
            u = 1 + 0.4 * u
        elif p.ndim == 1 or "token" in name or "pos_embed" in name or "depth_emb" in name:
            u = 0.03 * u
        else:
            fan_in = p[0].numel() if p.ndim > 1 else 1
            u = _gain(name) * (3 / fan_in) ** 0.5 * u
        p.copy_(u.to(p.dtype))
    for module in network.modules():
        # Queries and keys so small that the epsilon of their norms counts.
        if isinstance(module, Attention) and isinstance(module.q_norm, nn.LayerNorm):
            module.qkv.weight[: 2 * module.qkv.in_features] *= 0.01
            module.qkv.bias[: 2 * module.qkv.in_features] *= 0.1
    if isinstance(network, Vggt):
        # Half of the fields of view before their ReLU are positive, and tracks move by less than a cell.
        network.camera_head.pose_branch.fc2.bias[7:] += 0.3
        network.track_head.tracker.updateformer.flow_head.weight *= 0.02
    return network.eval()


def pictures(dtype: torch.dtype) -> Tensor:
    """(1, VIEWS, 3, HEIGHT, WIDTH): a ramp that moves, with grain."""
    grain = hashed("pictures", 1, VIEWS, 3, HEIGHT, WIDTH)
    x = torch.linspace(0, 1, WIDTH, dtype=torch.float64) + 0.1 * torch.arange(VIEWS).double()[:, None]
    return (0.5 + 0.3 * (5 * x).sin()[None, :, None, None] + 0.15 * grain).clamp(0, 1).to(dtype)


def conditions(dtype: torch.dtype, **flags: bool) -> Conditions:
    """Depth of two views, rays of one, poses of all three (or what ``flags`` leaves of them)."""
    depth = 2 + hashed("depth", 1, VIEWS, HEIGHT, WIDTH)
    depth[:, :, ::3] = 0
    K = torch.tensor([[40.0, 0, 20.5], [0, 41, 14.5], [0, 0, 1]], dtype=torch.float64).repeat(1, VIEWS, 1, 1)
    turn, shift = hashed("poses", 2, 1, VIEWS, 3)
    poses = make_rigid(matrix_from_axis_angle(0.4 * turn), shift)
    return Conditions(
        depth.to(dtype) if flags.get("depth", True) else None,
        torch.tensor([[True, False, True]]),
        K.to(dtype) if flags.get("rays", True) else None,
        torch.tensor([[False, True, False]]),
        poses.to(dtype) if flags.get("poses", True) else None,
        torch.tensor([[True, True, True]]),
    )


def _flat(output: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors of an output dataclass by name; those of tuples are numbered."""
    for f in fields(output):  # type: ignore[arg-type]
        value = getattr(output, f.name)
        if isinstance(value, Tensor):
            yield prefix + f.name, value
        elif isinstance(value, tuple):
            yield from ((f"{prefix}{f.name}.{i}", v) for i, v in enumerate(value))


def vggt(dtype: torch.dtype) -> Outputs:
    """All heads, every round, and the trunk's layers."""
    net = prescribe(Vggt(vggt_config("nano"))).to(dtype)
    assert isinstance(net, Vggt)
    queries = torch.tensor([[[5.0, 6.0], [20.25, 13.5], [37.0, 22.75]]], dtype=dtype)
    out = dict(_flat(net(pictures(dtype), queries)))
    return out | {f"trunk.{i}": t for i, t in net.aggregator(pictures(dtype)).items()}


def pi3(dtype: torch.dtype) -> Outputs:
    """Outputs and the decoder's blocks."""
    net = prescribe(Pi3(pi3_config("nano"))).to(dtype)
    assert isinstance(net, Pi3)
    images = pictures(dtype)
    blocks = net.decode(net.embed(images.flatten(0, 1), None), VIEWS, net.grid(images), keep=range(4))
    return dict(_flat(net(images))) | {f"block.{i}": t for i, t in blocks.items()}


def pi3x(dtype: torch.dtype) -> Outputs:
    """Without conditions, with each kind, and with all of them."""
    decoder = Pi3Config(
        vit=VitConfig(64, 2, 4, img_size=70, mask_token=False),
        depth=4, heads=4, head_dim=64, head_depth=1, head_heads=4, camera_dim=32,
    )  # fmt: skip
    config = Pi3XConfig(decoder, (1, 3), (32, 32, 32), metric_dim=32, metric_heads=4, metric_depth=2)
    net = prescribe(Pi3X(config)).to(dtype)
    images = pictures(dtype)
    out = dict(_flat(net(images), "plain."))
    kinds = ("depth", "rays", "poses")
    for kind in kinds:
        given = conditions(dtype, **{k: k == kind for k in kinds})
        out |= dict(_flat(net(images, given), f"{kind}."))
    return out | dict(_flat(net(images, conditions(dtype)), "all."))


def reliev3r(dtype: torch.dtype) -> Outputs:
    """With given intrinsics, and with the field-of-view head."""
    K = conditions(dtype).K
    given = prescribe(Reliev3rNet(reliev3r_config("nano"))).to(dtype)
    predicted = prescribe(Reliev3rNet(reliev3r_config("nano", fov_head=True))).to(dtype)
    images = pictures(dtype)
    return dict(_flat(given(images, K), "given.")) | dict(_flat(predicted(images), "fov."))


def parts(dtype: torch.dtype) -> Outputs:
    """Parts of ``nn`` that other models use as well: the encoder at two grids, dense heads of every kind."""
    vit = prescribe(VisionTransformer(VitConfig(48, 3, 4, img_size=42))).to(dtype)
    square, wide = (hashed("vit", 2, 3, 42, w).to(dtype) for w in (42, 70))
    out = {"vit.stored_grid": vit(square), "vit.other_grid": vit(wide)}
    layers = [hashed(f"layer {i}", 2, 6, 32).to(dtype) for i in range(4)]
    for name, config in {
        "map": DptConfig(32, 16, (16, 16, 32, 32), 2),
        "features": DptConfig(32, 16, (16, 16, 32, 32), None, pos_embed=False, down_ratio=2),
    }.items():
        head = prescribe(DptHead(config)).to(dtype)
        out[f"dpt.{name}"] = head(layers, (28, 42))
    return out


CASES: Mapping[str, Callable[[torch.dtype], Outputs]] = {
    "vggt": vggt, "pi3": pi3, "pi3x": pi3x, "reliev3r": reliev3r, "parts": parts,
}  # fmt: skip


def digest(value: Tensor) -> Tensor:
    """(2 + SAMPLES or fewer,) float64: root mean square, a hashed projection of the same size, evenly spread numbers.

    The projection changes with every number and with their order.
    """
    flat = value.detach().double().flatten()
    projection = (flat * hashed("projection", flat.numel())).sum() * (3 / flat.numel()) ** 0.5
    step = max(1, -(-flat.numel() // SAMPLES))
    return torch.cat([torch.stack([flat.square().mean().sqrt(), projection]), flat[::step]])


@torch.inference_mode()
def digests(name: str, dtype: torch.dtype) -> Outputs:
    """Of all outputs of a case."""
    return {f"{name}.{key}": digest(value) for key, value in CASES[name](dtype).items()}


def main() -> None:
    """Write the file."""
    everything = {k: v for name in CASES for k, v in digests(name, torch.float64).items()}
    save_file(everything, str(FILE), {"made_by": "tests/golden/make_multiview.py"})
    print(f"{FILE.name}: {len(everything)} outputs, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
