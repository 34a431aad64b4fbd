"""Compose docs/images/demo.jpg from a demo folder: photos, their depth, the mesh.

relief3d demo --out demo_out && python benchmarks/readme_picture.py demo_out
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d import load_scene
from relief3d.io.cameras_json import read_cameras_json
from relief3d.io.images import read_image, write_image
from relief3d.pipelines.reconstruct.surface import orbit_pictures
from relief3d.render.colormaps import depth_colors

WIDTH, GAP = 1200, 6


def fit(image: Tensor, width: int) -> Tensor:
    height = round(image.shape[1] * width / image.shape[2])
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[
        0
    ]


def row(images: list[Tensor]) -> Tensor:
    width = (WIDTH - GAP * (len(images) - 1)) // len(images)
    parts = [fit(i, width) for i in images]
    gap = torch.ones(3, parts[0].shape[1], GAP)
    joined = parts[0]
    for part in parts[1:]:
        joined = torch.cat([joined, gap, part], dim=2)
    return F.pad(joined, (0, WIDTH - joined.shape[2]), value=1.0)


def main() -> None:
    demo = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_out")
    maps = read_cameras_json(demo / "result" / "depth" / "cameras.json", require_images=False)
    chosen = [maps.views[i] for i in (1, len(maps.views) // 2, len(maps.views) - 2)]
    photos = [read_image(demo / "photos" / v.name).rgb for v in chosen]
    depths = []
    for view in chosen:
        depth = view.load_depth()
        assert depth is not None
        depths.append(depth_colors(depth.values))
    orbit = orbit_pictures(load_scene(demo / "result"), 4)
    gap = torch.ones(3, GAP, WIDTH)
    page = torch.cat([row(photos), gap, row(depths), gap, row([orbit[0], orbit[1]])], dim=1)
    write_image(Path(__file__).parent.parent / "docs" / "images" / "demo.jpg", page, quality=85)


if __name__ == "__main__":
    main()
