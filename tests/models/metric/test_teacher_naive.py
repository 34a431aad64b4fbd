"""The prompted teacher against a naive network written from the specification (3.2 to 3.5, 4.3, 4.4, 5.1) alone.

Nobody has released a teacher, so this is what "layout-exact" means: names and shapes are in
``test_pyramid_layouts.py``, what is computed with them is here. The network below shares no code with the package: it
reads weights by name and goes tile by tile.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.models.metric.decoder import PromptConfig
from relief3d.models.metric.networks import Teacher, TeacherConfig
from relief3d.nn.dinov3 import DinoV3Config

DIM, DEPTH, HEADS, PATCH, TILE, CELLS = 16, 3, 2, 4, 32, 8
HOOKS, DIMS, FEATURES = (0, 1), (8, 10, 12, 14), 8


class Naive:
    """The whole network from a state."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.w = state

    def lin(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def conv(self, name: str, x: Tensor, pad: int = 1) -> Tensor:
        return F.conv2d(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"), padding=pad)

    def up(self, name: str, x: Tensor) -> Tensor:
        """A transposed convolution of 2 x 2 with stride 2, pixel by pixel."""
        out = torch.einsum("bchw,cdij->bdhiwj", x, self.w[f"{name}.weight"])
        out = out.reshape(len(x), out.shape[1], 2 * x.shape[2], 2 * x.shape[3])
        bias = self.w.get(f"{name}.bias")
        return out if bias is None else out + bias[:, None, None]

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (var + 1e-5).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def turn(self, x: Tensor) -> Tensor:
        """Rotary positions of patches (P, d) as complex numbers: channel k is the real part of k + d / 2."""
        d = x.shape[-1]
        centre = 2 * (torch.arange(CELLS) + 0.5) / CELLS - 1
        period = 100 ** (2 * torch.arange(d // 4) / (d / 2))
        row = centre[:, None, None].expand(CELLS, CELLS, 1) / period
        col = centre[None, :, None].expand(CELLS, CELLS, 1) / period
        angle = 2 * math.pi * torch.cat([row, col], -1).reshape(CELLS * CELLS, d // 2)
        z = torch.complex(x[:, : d // 2], x[:, d // 2 :]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag], -1)

    def vit(self, tile: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One tile (3, t, t): normed final map (C, T, T) and the raw maps of all blocks."""
        p = "encoder.patch_encoder."
        x = F.conv2d(
            tile[None], self.w[p + "patch_embed.proj.weight"], self.w[p + "patch_embed.proj.bias"], PATCH
        )
        x = torch.cat([self.w[p + "cls_token"][0], self.w[p + "storage_tokens"][0], x[0].flatten(1).T])
        raw = []
        for i in range(DEPTH):
            b = f"{p}blocks.{i}."
            y = self.norm(b + "norm1", x)
            bias = self.w[b + "attn.qkv.bias"].clone()
            bias[DIM : 2 * DIM] = 0
            q, k, v = (y @ self.w[b + "attn.qkv.weight"].T + bias).split(DIM, -1)
            heads = []
            for h in range(HEADS):
                at = slice(h * DIM // HEADS, (h + 1) * DIM // HEADS)
                qh, kh = (torch.cat([t[:5, at], self.turn(t[5:, at])]) for t in (q, k))
                heads.append((qh @ kh.T / math.sqrt(DIM / HEADS)).softmax(-1) @ v[:, at])
            x = x + self.w[b + "ls1.gamma"] * self.lin(b + "attn.proj", torch.cat(heads, -1))
            y = self.norm(b + "norm2", x)
            gate = self.lin(b + "mlp.w1", y)
            y = self.lin(b + "mlp.w3", gate / (1 + (-gate).exp()) * self.lin(b + "mlp.w2", y))
            x = x + self.w[b + "ls2.gamma"] * y
            raw.append(x[5:].T.reshape(DIM, CELLS, CELLS))
        return self.norm(p + "norm", x)[5:].T.reshape(DIM, CELLS, CELLS), raw

    def level(self, picture: Tensor, side: int, stride: int, pad: int) -> tuple[Tensor, list[Tensor]]:
        """Final and raw maps of a level, every token taken from the tile that owns it."""
        step = stride // PATCH
        size = CELLS + (side - 1) * step
        final = torch.zeros(DIM, size, size)
        raw = [torch.zeros(DIM, size, size) for _ in range(DEPTH)]
        for j in range(side):
            for i in range(side):
                top, left = j * stride, i * stride
                own, raws = self.vit(picture[:, top : top + TILE, left : left + TILE])
                t0, l0 = (pad if j else 0), (pad if i else 0)
                t1, l1 = CELLS - (pad if j < side - 1 else 0), CELLS - (pad if i < side - 1 else 0)
                for whole, part in zip([final, *raw], [own, *raws]):
                    whole[:, j * step + t0 : j * step + t1, i * step + l0 : i * step + l1] = part[
                        :, t0:t1, l0:l1
                    ]
        return final, raw

    def upsample(self, name: str, x: Tensor, doublings: int) -> Tensor:
        x = self.conv(f"encoder.{name}.0", x[None], pad=0)
        for k in range(1, doublings + 1):
            x = self.up(f"encoder.{name}.{k}", x)
        return x

    def residual(self, name: str, x: Tensor) -> Tensor:
        y = self.conv(f"{name}.residual.1", x.clamp(min=0))
        return x + self.conv(f"{name}.residual.3", y.clamp(min=0))

    def prompt(self, i: int, condition: Tensor, size: int) -> Tensor:
        total = 0
        for part, side in (("wide", min(size, 4 * CELLS)), ("thin", size)):
            y = F.interpolate(condition, (side, side), mode="bilinear", align_corners=False)
            for k in (0, 2):
                y = self.conv(f"decoder.fusions.{i}.prompt.{part}.{k}", y).clamp(min=0)
            y = self.conv(f"decoder.fusions.{i}.prompt.{part}.4", y)
            total = total + F.interpolate(y, (size, size), mode="bilinear", align_corners=False)
        return total

    def fuse(self, i: int, x: Tensor, skip: Tensor | None, condition: Tensor) -> Tensor:
        at = f"decoder.fusions.{i}"
        if skip is not None:
            x = x + self.residual(f"{at}.resnet1", skip)
        x = self.residual(f"{at}.resnet2", x)
        x = x + self.prompt(i, condition, x.shape[-1])
        if i > 0:
            x = self.up(f"{at}.deconv", x)
        return self.conv(f"{at}.out_conv", x, pad=0)

    def __call__(self, image: Tensor, condition: Tensor) -> Tensor:
        """(3, S, S) in [0, 1] and (3, S, S) -> (64 T, 64 T)."""
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (image - mean[:, None, None]) / std[:, None, None]
        half, quarter = (F.interpolate(x[None], scale_factor=s, mode="bilinear")[0] for s in (0.5, 0.25))
        fine, raw = self.level(x, 5, 24, 1)
        middle, _ = self.level(half, 3, 16, 2)
        coarse, _ = self.level(quarter, 1, TILE, 0)
        low = torch.cat(
            [self.upsample("upsample2", coarse, 1), self.up("encoder.upsample_lowres", coarse[None])], 1
        )
        levels = [
            self.upsample("upsample_latent0", raw[HOOKS[0]], 3),
            self.upsample("upsample_latent1", raw[HOOKS[1]], 2),
            self.upsample("upsample0", fine, 1),
            self.upsample("upsample1", middle, 1),
            self.conv("encoder.fuse_lowres", low, pad=0),
        ]
        y = self.fuse(4, self.conv("decoder.convs.4", levels[4]), None, condition[None])
        for i in (3, 2, 1):
            y = self.fuse(i, y, self.conv(f"decoder.convs.{i}", levels[i]), condition[None])
        y = self.fuse(0, y, levels[0], condition[None])
        y = self.up("head.1", self.conv("head.0", y))
        y = self.conv("head.4", self.conv("head.2", y).clamp(min=0), pad=0)
        return y.clamp(min=0)[0, 0]


@torch.no_grad()
def test_the_teacher_is_the_naive_network() -> None:
    vit = DinoV3Config(DIM, DEPTH, HEADS, PATCH, ratio=4.0, layer_scale=0.5)
    config = TeacherConfig(
        vit,
        TILE,
        HOOKS,
        DIMS,
        FEATURES,
        head_hidden=4,
        head_bias=0.5,
        prompt=PromptConfig(6, 3),
    )
    torch.manual_seed(0)
    teacher = Teacher(config).eval()
    generator = torch.Generator().manual_seed(1)
    for p in teacher.parameters():
        p.add_(0.1 * torch.randn(p.shape, generator=generator))
    # Depth Pro's widths: the first level enters the decoder as it is.
    assert teacher.config.dims[0] == FEATURES
    images = torch.rand(2, 3, 128, 128, generator=generator)
    condition = torch.rand(2, 3, 128, 128, generator=generator)
    found = teacher(images, condition, chunk=20).canonical
    assert found.shape == (2, 512, 512)
    naive = Naive(
        {k: v for k, v in teacher.state_dict().items() if "bias_mask" not in k and "periods" not in k}
    )
    expected = naive(images[1], condition[1])
    assert float((expected > 0).float().mean()) > 0.3, "not cut off"
    assert float((found[1] - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    without = teacher(images[1:]).canonical
    assert float((without[0] - expected).abs().max()) > 0.01 * float(expected.abs().max()), (
        "the prompt counts"
    )
