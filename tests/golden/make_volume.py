"""Writes tests/golden/volume_nano.safetensors: what nano volumetric networks with prescribed weights say, as float64.

The values are our own, made when back-projection and guidance agreed with naive loops and layouts with the
specification; nothing published was at hand to compare with. Weights and inputs come from an integer hash, as in
``make_multiview.py``. Run ``python -m golden.make_volume`` in ``tests`` only when an output is meant to change, and say
why in the commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from golden.make_multiview import digest, hashed, prescribe
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid, make_rigid
from relief3d.models.volume.back_projection import grid_transform
from relief3d.models.volume.config import VARIANTS, Variant, volume_config
from relief3d.models.volume.network import VolumeInput, VolumeNetwork

FILE = Path(__file__).with_name("volume_nano.safetensors")
VIEWS, SIZE, SHAPE, POINTS = 3, (32, 48), (12, 8, 8), 40
CASES: tuple[Variant, ...] = VARIANTS


def network(variant: Variant) -> VolumeNetwork:
    """Every weight prescribed and none zero, so that adapters and projections count."""
    net = VolumeNetwork(volume_config("nano", variant))
    prescribe(net)
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * hashed(name, *buffer.shape))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.5 * hashed(name, *buffer.shape))
    return net.eval()


def fragment(dtype: torch.dtype) -> VolumeInput:
    """A turned box seen by three cameras; depth of half of the pixels."""
    turns, shifts = hashed("poses", 2, VIEWS, 3)
    poses = invert_rigid(make_rigid(matrix_from_axis_angle(0.2 * turns), 0.3 * shifts))
    K = torch.tensor([[40.0, 0, 23.5], [0, 41, 16.5], [0, 0, 1]], dtype=torch.float64).repeat(VIEWS, 1, 1)
    rotation = matrix_from_axis_angle(torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64))
    grid = grid_transform(torch.tensor([-0.5, -0.6, 1.4], dtype=torch.float64), 0.1, rotation)
    depth = 1.9 + 0.4 * hashed("depth", 1, VIEWS, *SIZE)
    depth[..., ::2] = 0
    images = 0.5 + 0.4 * hashed("pictures", 1, VIEWS, 3, *SIZE)
    index = (hashed("queries", POINTS, 3) + 1) / 2 * (torch.tensor(SHAPE) - 1)
    queries = index @ grid[:3, :3].T + grid[:3, 3]
    return VolumeInput(
        images.to(dtype), K[None].to(dtype), poses[None].to(dtype), grid[None].to(dtype), SHAPE,
        queries[None].to(dtype), depth.to(dtype),
    )  # fmt: skip


@torch.no_grad()
def digests(variant: Variant, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Of all outputs of a case."""
    net, x = network(variant).to(dtype), fragment(dtype)
    out, maps = net(x), net.encode(x.images)
    found = {
        "occupancy": out.occupancy,
        "distance": out.distance,
        "voxel_maps": maps.voxel,
        "point_maps": maps.point,
    }
    return {f"{variant}.{name}": digest(value) for name, value in found.items()}


def main() -> None:
    """Write the file."""
    everything = {k: v for variant in CASES for k, v in digests(variant, torch.float64).items()}
    save_file(everything, str(FILE), {"made_by": "tests/golden/make_volume.py"})
    print(f"{FILE.name}: {len(everything)} outputs, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
