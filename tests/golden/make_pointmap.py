"""Writes tests/golden/pointmap_nano.safetensors: what a nano point-map network with prescribed weights says.

The values are our own, in double precision, made when the network agreed with the published code's reference values;
they hold refactors to that on a fresh clone. Run ``PYTHONPATH=tests python tests/golden/make_pointmap.py`` only when an
output is meant to change, and say why in the commit. Weights and inputs as in ``make_multiview.py``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from golden.make_multiview import digest, hashed, prescribe
from relief3d.models.metric.pointmap import PointMap
from relief3d.models.metric.pointmap_configs import pointmap_config
from relief3d.models.metric.pointmap_infer import PointMapModel, focal_from_fov

FILE = Path(__file__).with_name("pointmap_nano.safetensors")
TOKENS = (12, 35)
"""One grid below the stored table of positions, one above it."""


def picture(dtype: torch.dtype) -> Tensor:
    """(2, 3, 36, 50): a wave with grain."""
    x = torch.linspace(0, 1, 50, dtype=torch.float64)
    return (0.5 + 0.3 * (7 * x).sin() + 0.15 * hashed("pointmap", 2, 3, 36, 50)).clamp(0, 1).to(dtype)


def network(dtype: torch.dtype) -> PointMap:
    """With all heads, weights by their names; other norms and resamplers at one level, so that all kinds are held."""
    config = pointmap_config("nano", normals=True)
    kinds = ("conv_transpose", "pixel_shuffle", "nearest", "bilinear")
    points = replace(
        config.points, resamplers=kinds, in_norm="layer_norm", hidden_norm="group_norm", expand=2
    )
    net = prescribe(PointMap(replace(config, points=points))).to(dtype)
    assert isinstance(net, PointMap)
    with torch.no_grad():
        # Surfaces nearly everywhere, about two units away.
        for head, bias in ((net.mask_head, 2.5), (net.points_head, 1.0)):
            assert head is not None
            head.output_blocks[-1].weight.mul_(0.01)
            head.output_blocks[-1].bias[-1] = bias
    return net


@torch.inference_mode()
def digests(dtype: torch.dtype) -> dict[str, Tensor]:
    """Of all outputs."""
    net, image = network(dtype), picture(dtype)
    out: dict[str, Tensor] = {}
    for tokens in TOKENS:
        raw = net(image, tokens)
        for name in ("points", "normals", "mask", "scale"):
            out[f"{tokens}.{name}"] = getattr(raw, name)
    features, summary = net.encoder(image, (3, 4))
    out |= {"encoder.features": features, "encoder.summary": summary}
    if dtype == torch.float32:  # inference is in single precision in any case
        for way, focal in (("free", None), ("fov", focal_from_fov(1.1, image))):
            found = PointMapModel(net, tokens=TOKENS[1]).infer(image, focal)
            for name in ("points", "depth", "K", "shift"):
                out[f"{way}.{name}"] = getattr(found, name)
    return {key: digest(value) for key, value in out.items()}


def main() -> None:
    """Write the file."""
    everything = digests(torch.float32) | digests(torch.float64)
    save_file(everything, str(FILE), {"made_by": "tests/golden/make_pointmap.py"})
    print(f"{FILE.name}: {len(everything)} outputs, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
