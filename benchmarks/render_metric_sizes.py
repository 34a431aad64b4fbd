"""Writes the table of pyramid networks into docs/metric_depth.md: sizes, parameters and cost, on the meta device.

Run: python benchmarks/render_metric_sizes.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from relief3d.models.metric.networks import PyramidConfig, Teacher
from relief3d.models.metric.pyramid_loading import build
from relief3d.models.metric.sizes import SIZES, depth_map_config, depth_pro_config, teacher_config
from relief3d.train.throughput import count_multiply_adds

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metric_depth.md"
BEGIN, END = "<!-- sizes: benchmarks/render_metric_sizes.py -->", "<!-- /sizes -->"
HEADER = (
    "| network | size | parameters (M) | picture | tile | patch | tokens per tile | result | multiply-adds (G) |",
    "|---|---|---|---|---|---|---|---|---|",
)


def configs() -> Iterator[tuple[str, str, PyramidConfig]]:
    """Name, size and configuration of every row."""
    for size in SIZES:
        yield "Student-DepthMap", size, depth_map_config(size)
    for size in SIZES:
        yield "teacher", size, teacher_config(size)
    yield "teacher on Depth Pro's ViT-L", "full", teacher_config("full", backbone="depth_pro")
    for size in SIZES:
        yield "Depth Pro", size, depth_pro_config(size)


@torch.no_grad()
def row(name: str, size: str, config: PyramidConfig, *, cost: bool = True) -> str:
    """One line of the table; without the cost, its beginning."""
    with torch.device("meta"):
        network = build(config).eval()
        images = torch.empty(1, 3, config.side, config.side)
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    cells = config.tile // config.vit.patch
    begin = (
        f"| {name} | {size} | {parameters:.2f} | {config.side} | {config.tile} | {config.vit.patch} | "
        f"{cells} x {cells} | {config.output_side} | "
    )
    if not cost:
        return begin
    condition = images if isinstance(network, Teacher) else None
    found = count_multiply_adds(lambda: network(images, condition))[1] / 1e9
    return begin + (f"{found:.2f} |" if found < 100 else f"{found:.1f} |")


def main() -> None:
    """Replace the table in the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join([*HEADER, *(row(*entry) for entry in configs())])
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
