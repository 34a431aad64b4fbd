"""Points drawn into depth maps: pixel rule, z-buffer, occlusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.geometry.point_splat import drop_occluded, occlusion_radius, splat_depth, splat_index
from relief3d.geometry.projection import intrinsics
from relief3d.geometry.transforms import transform_points
from relief3d.io.depth import read_depth
from relief3d.io.json_file import read_json_object

K = intrinsics(20.0, 22.0, 8.3, 6.1)
SIZE = (12, 16)


def brute_force(points: Tensor, K: Tensor, size: tuple[int, int], z_min: float) -> Tensor:
    out = torch.zeros(size, dtype=points.dtype)
    for x, y, z in points.tolist():
        if not z > z_min:
            continue
        u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
        col, row = int(u.floor()), int(v.floor())
        if 0 <= col < size[1] and 0 <= row < size[0] and (out[row, col] == 0 or z < out[row, col]):
            out[row, col] = z
    return out


def test_z_buffer_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(600, 3, generator=generator, dtype=torch.float64) * torch.tensor([2.0, 1.5, 4.0])
    depth = splat_depth(points, K, SIZE)
    assert torch.equal(depth, brute_force(points, K, SIZE, 0.1))
    assert (depth > 0).sum() > 50
    last_wins = torch.zeros(SIZE, dtype=torch.float64).flatten()
    kept, flat = splat_index(points, K, SIZE)
    last_wins[flat] = points[kept, 2]
    assert not torch.equal(depth.flatten(), last_wins)


def test_pixel_is_the_floor_not_the_nearest_corner() -> None:
    points = torch.tensor([[(3.7 - 8.3) / 20 * 2, (5.2 - 6.1) / 22 * 2, 2.0]])
    depth = splat_depth(points, K, SIZE)
    assert depth[5, 3] == 2.0 and depth[5, 4] == 0


def test_points_too_near_behind_or_not_finite_are_left_out() -> None:
    nan = float("nan")
    points = torch.tensor([[0, 0, 0.1], [0, 0, -3.0], [nan, 0, 2.0], [0, 0, float("inf")], [1e30, 0, 1.0]])
    assert float(splat_depth(points, K, SIZE).sum()) == 0
    assert float(splat_depth(points, K, SIZE, z_min=0.05).sum()) == pytest.approx(0.1)
    assert float(splat_depth(torch.zeros(0, 3), K, SIZE).sum()) == 0


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(P, 3\)"):
        splat_depth(torch.zeros(4, 2), K, SIZE)


def test_occluded_pixels_go_and_others_stay() -> None:
    depth = torch.zeros(9, 40)
    depth[4, 10], depth[4, 12], depth[4, 14] = 5.0, 5.4, 8.0  # 5.4 is within 10 % of 5, 8 lies behind 5.4
    depth[4, 30] = 8.0  # alone
    out = drop_occluded(depth, radius=2)
    assert out[4, 10] == 5 and out[4, 12] == pytest.approx(5.4) and out[4, 14] == 0 and out[4, 30] == 8
    assert drop_occluded(depth, radius=1)[4, 14] == 8
    assert [occlusion_radius(w) for w in (64, 640, 1600)] == [1, 2, 5]


def test_occlusion_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(14, 17, generator=generator) * 9 + 1
    depth[torch.rand(14, 17, generator=generator) < 0.6] = 0
    want = depth.clone()
    for r in range(14):
        for c in range(17):
            window = depth[max(0, r - 2) : r + 3, max(0, c - 2) : c + 3]
            if bool(((window > 0) & (window < 0.9 * depth[r, c])).any()):
                want[r, c] = 0
    assert torch.equal(drop_occluded(depth, radius=2), want)
    assert 0 < int((want > 0).sum()) < int((depth > 0).sum())


@pytest.mark.shared
def test_a_real_lidar_sweep_gives_the_published_depth_maps(shared_data: Path) -> None:
    folder = shared_data / "nuscenes_surround6"
    points = torch.from_numpy(np.load(folder / "lidar_points.npz")["xyz"]).double()
    for frame in read_json_object(folder / "cameras.json")["frames"]:
        K = torch.tensor(frame["K"], dtype=torch.float64)
        K[:2, 2] += 0.5
        cam_from_world = torch.linalg.inv(torch.tensor(frame["T_cam_to_world"], dtype=torch.float64))
        size = (frame["height"], frame["width"])
        ours = splat_depth(transform_points(cam_from_world, points), K, size)
        given = read_depth(folder / frame["depth"], frame["depth_to_metres"]).values
        assert torch.equal(ours > 0, given > 0)
        assert float((ours - given).abs().max()) <= 0.5 / 256 + 1e-6
