"""Writes tests/golden/pyramid_nano.safetensors: what nano pyramid networks with prescribed weights say, as float64.

The values are our own: Student-DepthMap and Depth Pro agreed with the published code when they were made, the teacher
(which nobody has released) with the naive network in ``test_teacher_naive.py``. Weights come from an integer hash, as
in ``make_multiview.py``. Run ``python -m golden.make_pyramid`` in ``tests`` only when an output is meant to change, and
say why in the commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from golden.make_multiview import digest, hashed, prescribe
from relief3d.models.metric.injection import INJECTIONS
from relief3d.models.metric.networks import DepthMap, DepthPro, PyramidNetwork, Teacher
from relief3d.models.metric.sizes import depth_map_config, depth_pro_config, teacher_config

FILE = Path(__file__).with_name("pyramid_nano.safetensors")
CASES = ("depth_pro", "depth_map.inverse", "depth_map.unet", *(f"teacher.{kind}" for kind in INJECTIONS))


def network(case: str) -> PyramidNetwork:
    """The network of a case, every weight prescribed and none zero."""
    kind, _, option = case.partition(".")
    if kind == "depth_pro":
        built: PyramidNetwork = DepthPro(depth_pro_config("nano"))
    elif kind == "depth_map":
        built = DepthMap(depth_map_config("nano", skip_order=option))  # type: ignore[arg-type]
    else:
        built = Teacher(teacher_config("nano", injection=option))  # type: ignore[arg-type]
    prescribe(built)
    last = built.head[-2]
    with torch.no_grad():
        last.bias += 0.6  # type: ignore[operator]
    return built


def pictures(dtype: torch.dtype) -> Tensor:
    """(1, 3, 128, 128) in [0, 1]: waves with grain."""
    x = torch.linspace(0, 1, 128, dtype=torch.float64)
    waves = 0.5 + 0.2 * (9 * x).sin()[:, None] + 0.2 * (7 * x).cos()
    return (waves + 0.1 * hashed("pictures", 1, 3, 128, 128)).clamp(0, 1).to(dtype)


def conditions(dtype: torch.dtype) -> Tensor:
    """(1, 3, 128, 128): two maps of inverse depth, and a mask of every hundredth pixel or so."""
    x = 0.5 + 0.4 * hashed("conditions", 1, 3, 128, 128)
    x[:, 2] = (x[:, 2] > 0.892).double()
    return x.to(dtype)


@torch.no_grad()
def digests(case: str, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """Of all outputs of a case."""
    net = network(case).to(dtype)
    # The result is float32 by contract; what is stored is the head's own sum, before that.
    seen: list[Tensor] = []
    net.head[-2].register_forward_hook(lambda m, x, out: seen.append(out))
    out = net(pictures(dtype), conditions(dtype) if case.startswith("teacher") else None)
    found = {f"{case}.head": digest(seen[0]), f"{case}.canonical": digest(out.canonical)}
    if out.fov_deg is not None:
        found[f"{case}.fov_deg"] = digest(out.fov_deg)
    return found


def main() -> None:
    """Write the file."""
    everything = {k: v for case in CASES for k, v in digests(case, torch.float64).items()}
    save_file(everything, str(FILE), {"made_by": "tests/golden/make_pyramid.py"})
    print(f"{FILE.name}: {len(everything)} outputs, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
