"""Tiles equal the whole (T10), their memory is what is planned, and a surface comes out where the depth is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from relief3d.core.errors import InputError, RunError
from relief3d.core.tensor_memory import PeakTensorBytes
from relief3d.geometry.projection import depth_to_world_points
from relief3d.models.volume.back_projection import Views
from relief3d.models.volume.bounds import VolumeGrid, bounds_from_depth, grid_of_box
from relief3d.models.volume.config import VolumeNetConfig, volume_config
from relief3d.models.volume.extract import FineDistances, fine_offsets, surface
from relief3d.models.volume.network import VolumeNetwork
from relief3d.models.volume.reconstruct import FrameGroup, VolumeOptions, network_size, reconstruct
from relief3d.models.volume.store import views_near
from relief3d.models.volume.tiles import (
    blend_weight,
    bytes_per_voxel,
    plan_tiles,
    slices,
)
from relief3d.models.volume.unet3d import HALO, UNet3D, UNetConfig

SLIM = VolumeNetConfig(
    trunk="toy", trunk_widths=(2, 2, 2), channels=2, unet_widths=(2, 2, 2), head=2, border_fade=0.0,
    image_size=(16, 16), voxel_size=0.1, truncation=0.1,
)  # fmt: skip


def slim_unet(channels: int = 3) -> UNet3D:
    torch.manual_seed(0)
    return UNet3D(UNetConfig(channels, (2, 2, 2))).eval().double()


def test_the_halo_is_as_wide_as_it_must_be() -> None:
    """A value that is no number reaches 49 to 52 cells, depending on where it stands within its pooled cell."""
    net = slim_unet(1)
    reach = []
    for phase in range(4):
        x = torch.rand(1, 1, 128, 4, 4, dtype=torch.float64)
        x[0, 0, 60 + phase] = torch.nan
        with torch.no_grad():
            spoiled = torch.isnan(net(x)).flatten(3).any(-1)[0].any(0).nonzero()[:, 0]
        reach.append(max(60 + phase - int(spoiled[0]), int(spoiled[-1]) - 60 - phase))
    assert max(reach) <= HALO and max(reach) > HALO - 4 and min(reach) >= 49


@torch.no_grad()
def test_tiles_equal_the_whole() -> None:
    """T10."""
    net = slim_unet()
    shape = (152, 4, 8)
    x = torch.rand(1, 3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = net(x)[0]
    plan = plan_tiles(shape, SLIM, 1 << 40, max_core=16)
    assert len(plan.tiles) == 10 and any(t.region[0][0] > 0 and t.region[1][0] < shape[0] for t in plan.tiles)
    covered = torch.zeros(shape)
    for tile in plan.tiles:
        part = net(x[(..., *slices(tile.region))])[0]
        found = part[(..., *slices(tile.given, tile.region[0]))]
        torch.testing.assert_close(found, whole[(..., *slices(tile.given))], rtol=0, atol=1e-5)
        torch.testing.assert_close(found, whole[(..., *slices(tile.given))], rtol=0, atol=1e-12)
        covered[slices(tile.core)] += 1
        assert all(a % 4 == 0 for corner in tile.region for a in corner)
    assert bool((covered == 1).all())


def test_plans_keep_within_the_ceiling() -> None:
    config = volume_config("mini")
    shape = (256, 200, 76)
    free = plan_tiles(shape, config, 1 << 40)
    assert len(free.tiles) == 1 and free.overhead == 1
    whole = 256 * 200 * 76 * bytes_per_voxel(config)
    some = plan_tiles(shape, config, whole // 2)
    assert len(some.tiles) > 1 and some.bytes <= whole // 2 and 1 < some.overhead < 5
    assert plan_tiles(shape, config, whole // 2, "blended").overhead < some.overhead
    with pytest.raises(InputError, match=r"smallest tiles .* need .* MiB"):
        plan_tiles(shape, config, 1 << 20)


@torch.no_grad()
def test_memory_is_what_is_planned() -> None:
    net = VolumeNetwork(replace(SLIM, channels=7, unet_widths=(8, 8, 16))).eval()
    guidance = torch.rand(1, 32, 16, 16)
    with PeakTensorBytes() as counted:
        net.volume(torch.rand(1, 7, 32, 16, 16), guidance)
    planned = guidance.numel() * bytes_per_voxel(net.config)
    assert 0.75 * planned < counted.peak <= planned


def test_weights_of_blended_tiles_add_up() -> None:
    shape = (64, 32, 8)
    plan = plan_tiles(shape, SLIM, 1 << 40, "blended", max_core=16)
    total = torch.zeros(shape)
    for tile in plan.tiles:
        total[slices(tile.given)] += blend_weight(tile, shape)
        assert tile.given[0][0] in (0, tile.core[0][0] - 8) and tile.region[0][0] in (0, tile.core[0][0] - 24)
    torch.testing.assert_close(total, torch.ones(shape))


# ---- surfaces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 2, 4])
def test_fine_points_lie_where_they_are_said_to(rate: int) -> None:
    """A slanted plane, given as distances of fine points, comes back as a mesh in the world; unknown ones cut holes."""
    normal, offset = torch.tensor([0.6, 0.0, 0.8]), 1.3
    origin, size = (0.2, -0.4, 0.3), 0.1
    axes = [torch.arange(n) for n in (20, 18, 16)]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    points = torch.tensor(origin) + size * (index[:, None] + fine_offsets(rate))
    values = points @ normal - offset
    values[index[:, 1] >= 12] = torch.nan
    mesh = surface(FineDistances(index.int(), values.clamp(-1, 1), rate), origin, size)
    assert len(mesh.faces) > 100
    torch.testing.assert_close(
        mesh.vertices @ normal, torch.full((len(mesh.vertices),), offset), atol=1e-4, rtol=0
    )
    last = origin[1] + size * (11 + 0.5 - 0.5 / rate)
    assert float(mesh.vertices[:, 1].amax()) == pytest.approx(last, abs=1e-4)
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    facing = (torch.linalg.cross(b - a, c - a) @ normal) > 0
    assert bool(facing.all())  # counter-clockwise seen from where distances are positive
    assert len(surface(FineDistances(index.int(), values.abs() + 1, rate), origin, size).faces) == 0
    with pytest.raises(InputError, match="1, 2 or 4"):
        fine_offsets(3)


def wall(views: int = 2) -> tuple[FrameGroup, VolumeGrid]:
    """A plane at z = 2 seen from places along x; pictures of 16 x 24."""
    K = torch.tensor([[16.0, 0, 12], [0, 16.0, 8], [0, 0, 1]]).repeat(views, 1, 1)
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, 0, 3] = -0.3 * torch.arange(views)
    images = torch.rand(views, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    depth = torch.full((views, 32, 48), 2.0)
    grid = VolumeGrid((-0.8, -0.6, 1.55), (20, 12, 12), 0.1)
    return FrameGroup(images, K, poses, depth), grid


def tracing_network() -> VolumeNetwork:
    """Weights with which distance is minus the guidance (and a little of a volume feature), everything occupied."""
    torch.manual_seed(1)
    net = VolumeNetwork(SLIM).eval()
    with torch.no_grad():
        for head in (net.surface, net.occupied):
            for p in head.parameters():
                p.zero_()
        first, last = net.surface.net[0], net.surface.net[3]
        first.weight[0, -1] = 1.0  # the guidance is the last input
        first.weight[0, 2] = 1e-3  # the volume's first feature follows two point features
        first.bias[0] = 2.0  # positive, so that leaky activations let it through
        last.weight[0, 0] = -2.0
        last.bias[0] = 4.0
        net.occupied.net[3].bias[0] = 5.0
    return net


def test_the_depth_is_found_again_at_every_rate(tmp_path: Path) -> None:
    net = tracing_network()
    group, grid = wall()
    for rate in (1, 2, 4):
        mesh, report = reconstruct(net, [group], grid, VolumeOptions(rate=rate))
        assert len(mesh.faces) > 20 and report.frames == 2 and report.tiles == 1
        assert float((mesh.vertices[:, 2] - 2).abs().max()) < 0.01
        a, b, c = mesh.vertices[mesh.faces].unbind(1)
        assert bool((torch.linalg.cross(b - a, c - a)[:, 2] < 0).all())  # facing the cameras
        assert report.fine_points == report.occupied * rate**3
    stored, _ = reconstruct(net, [group], grid, VolumeOptions(rate=4), folder=tmp_path / "work")
    torch.testing.assert_close(stored.vertices, mesh.vertices)
    assert (tmp_path / "work" / "frames").is_dir()


def farthest(a: Tensor, b: Tensor) -> float:
    """Largest distance of a point of one set to the nearest of the other, both ways."""
    apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return max(float(apart.amin(0).max()), float(apart.amin(1).max()))


def test_tiles_groups_and_portions_change_nothing() -> None:
    net = tracing_network()
    group, grid = wall(3)
    whole, _ = reconstruct(net, [group], grid)
    pieces = [
        FrameGroup(
            group.images[i : i + 1],
            group.K[i : i + 1],
            group.cam_from_world[i : i + 1],
            group.depth[i : i + 1],
        )  # type: ignore[index]
        for i in range(3)
    ]
    options = VolumeOptions(max_core=8, max_points=500, skip_unguided=False)
    blended, report = reconstruct(net, [group], grid, replace(options, mode="blended"))
    assert float((blended.vertices[:, 2] - 2).abs().max()) < 0.01 and len(blended.faces) == len(whole.faces)
    with torch.no_grad():
        net.surface.net[0].weight[0, 2] = 0.1  # now the volume's features count, those between tiles too
    whole, _ = reconstruct(net, [group], grid)
    for groups in ([group], pieces):
        tiled, report = reconstruct(net, groups, grid, options)
        assert report.tiles == 12
        assert farthest(tiled.vertices, whole.vertices) < 5e-5
        assert len(tiled.faces) == len(whole.faces)
    context = replace(group, keep=torch.tensor([True, False, True]))
    assert reconstruct(net, [context], grid)[1].frames == 2


def test_places_without_depth_are_left_out() -> None:
    net = tracing_network()
    group, grid = wall()
    far = replace(grid, origin=(50.0, 50.0, 50.0))
    mesh, report = reconstruct(net, [group], far)
    assert report.skipped == report.tiles == 1 and len(mesh.faces) == 0 and report.occupied == 0


def test_what_cannot_be_is_said() -> None:
    net = tracing_network()
    group, grid = wall()
    with pytest.raises(InputError, match="needs depth"):
        reconstruct(net, [replace(group, depth=None)], grid)
    with pytest.raises(InputError, match="no frame"):
        reconstruct(net, [], grid)
    with pytest.raises(InputError, match="training mode"):
        reconstruct(tracing_network().train(), [group], grid)
    with pytest.raises(RunError, match=r"million voxels.*give a folder"):
        reconstruct(net, [group], replace(grid, shape=(2000, 2000, 200)), VolumeOptions(max_bytes=10**9))
    with pytest.raises(InputError, match="multiples of 4"):
        VolumeGrid((0, 0, 0), (10, 8, 8), 0.1)


# ---- bounds ---------------------------------------------------------------------------------------------------------


def test_bounds_hold_what_depth_shows() -> None:
    group, _ = wall()
    assert group.depth is not None
    depth = group.depth[0].clone()
    depth[0, 0] = 90.0  # an outlier beyond the percentile
    K = group.K[0] * torch.tensor([[2.0], [2], [1]])  # of the depth's own pixels
    grid = bounds_from_depth([(depth, K, group.cam_from_world[0])], 0.1, stride=2, percentile=2.0)
    points = depth_to_world_points(depth, K, torch.eye(4))[::2, ::2].reshape(-1, 3)
    points = points[points[:, 2] < 50]
    low = torch.tensor(grid.origin)
    high = low + 0.1 * torch.tensor(grid.shape)
    assert bool((low < points.amin(0) - 0.7).all()) and bool((high > points.amax(0) + 0.7).all())
    assert bool((high - low < points.amax(0) - points.amin(0) + 2 * 0.9 + 0.45).all())
    with pytest.raises(InputError, match="no frame has depth"):
        bounds_from_depth([(depth * 0, K, torch.eye(4))], 0.1)
    assert grid_of_box(torch.zeros(3), torch.tensor([1.0, 0.41, 0.0]), 0.1).shape == (12, 8, 4)


def test_thinned_pixels_keep_their_rays() -> None:
    """Bounds at any stride lie within those of all pixels."""
    depth = 1 + torch.rand(33, 41, generator=torch.Generator().manual_seed(0))
    K = torch.tensor([[30.0, 0, 20.5], [0, 30, 16.5], [0, 0, 1]])
    found = bounds_from_depth([(depth, K, torch.eye(4))], 0.001, truncation=1e-6, percentile=0, stride=8)
    points = depth_to_world_points(depth, K, torch.eye(4))[::8, ::8].reshape(-1, 3)
    torch.testing.assert_close(torch.tensor(found.origin), points.amin(0), atol=1e-4, rtol=0)


def test_frames_that_cannot_see_a_ball_are_told() -> None:
    K = torch.tensor([[16.0, 0, 12], [0, 16.0, 8], [0, 0, 1]])[None]
    views = Views(K, torch.eye(4)[None], (16, 24))
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        centre = 6 * torch.rand(3, generator=generator) - 3
        radius = float(torch.rand(1, generator=generator))
        ball = (
            torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=-1) * radius + centre
        )
        x, y = 16 * ball[:, 0] / ball[:, 2] + 12, 16 * ball[:, 1] / ball[:, 2] + 8
        seen = (ball[:, 2] > 0) & (x >= 0) & (x <= 24) & (y >= 0) & (y <= 16)
        if bool(seen.any()):
            assert bool(views_near(views, centre, radius))
    assert not bool(views_near(views, torch.tensor([0.0, 0, -3]), 1.0))
    assert not bool(views_near(views, torch.tensor([9.0, 0, 2]), 1.0))


def test_pictures_of_any_shape_get_a_size() -> None:
    config = volume_config("full")
    assert network_size((480, 640), config) == (480, 640) and network_size((960, 1280), config) == (480, 640)
    wide = network_size((360, 1280), config)
    assert all(n % 16 == 0 for n in wide) and wide[1] / wide[0] == pytest.approx(1280 / 360, rel=0.06)
