"""The whole of fusion: filters, voxel size, one call, point clouds."""

import pytest
import torch

from relief3d.core.contract import Camera, Depth
from relief3d.core.errors import InputError
from relief3d.fusion.cleaning import CleanConfig
from relief3d.fusion.filters import FilterConfig, depth_edges, filter_depth
from relief3d.fusion.frames import DepthFrame
from relief3d.fusion.fuse import FusionConfig, confidence_weight, fuse_frames
from relief3d.fusion.points import fuse_points
from relief3d.fusion.voxel_size import choose_voxel_size, volume_bytes

K = torch.tensor([[60.0, 0, 40], [0, 60, 30], [0, 0, 1]], dtype=torch.float64)


def frame(z=2.0, shift=0.0, name="a", color=(0.2, 0.4, 0.6), confidence=None, depth=None):
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 3] = shift
    values = torch.full((60, 80), float(z)) if depth is None else depth
    image = None if color is None else torch.tensor(color)[:, None, None].expand(3, 120, 160)
    return DepthFrame(name, Depth.from_values(values, confidence=confidence), Camera(80, 60, K, pose), image)


def test_edges_and_filters():
    values = torch.full((20, 30), 2.0)
    values[:, 15:] = 3.0
    values[5, 5] = 0
    edges = depth_edges(values)
    expected = torch.zeros(20, 30, dtype=torch.bool)
    expected[:, 14:16] = True
    assert torch.equal(edges, expected)
    confidence = torch.linspace(0, 1, 600).view(20, 30)
    depth = Depth.from_values(values, confidence=confidence)
    kept = filter_depth(depth, FilterConfig(confidence_percentile=10))
    assert not bool(kept.valid[:2].any()) and not bool(kept.valid[:, 14:16].any())
    assert bool(kept.valid[10, 3]) and float(kept.values[~kept.valid].abs().max()) == 0
    assert int(filter_depth(depth, FilterConfig(edge_ratio=0, max_depth=2.5)).valid.sum()) == 299
    assert int(filter_depth(depth, FilterConfig(edge_ratio=0, depth_percentile=40)).valid.sum()) == 299
    sky = torch.zeros(20, 30, dtype=torch.bool)
    sky[:10] = True
    only = filter_depth(depth, FilterConfig(edge_ratio=0), mask=~sky, sky=torch.zeros_like(sky))
    assert int(only.valid.sum()) == 300
    assert int(filter_depth(depth, FilterConfig(edge_ratio=0), sky=sky).valid.sum()) == 300
    with pytest.raises(InputError, match="sky mask"):
        filter_depth(depth, FilterConfig(), sky=sky[:3])
    island = torch.zeros(20, 30)
    island[2:4, 2:4], island[10:18, 5:25] = 1.0, 1.0
    big = filter_depth(Depth.from_values(island), FilterConfig(min_component=10))
    assert int(big.valid.sum()) == 160


def test_voxel_size_follows_scene_and_budget():
    flat = frame()
    choice = choose_voxel_size([flat])
    # The footprint (2 / 60) is larger than a 400th of the diagonal (about 3.3 / 400).
    assert choice.voxel_size == pytest.approx(2 / 60, rel=1e-3) and "footprint" in choice.reason
    coarse = choose_voxel_size([flat], divisions=50)
    assert coarse.voxel_size == pytest.approx(coarse.diagonal / 50)
    assert 3.0 < coarse.diagonal < 3.4
    small = choose_voxel_size([flat], max_bytes=300_000)
    assert small.voxel_size in [pytest.approx(2 / 60 * 2**k, rel=1e-3) for k in range(1, 6)]
    assert "doubled" in small.reason and volume_bytes([flat], small.voxel_size) <= 300_000
    with pytest.raises(InputError, match="no valid pixels"):
        choose_voxel_size([frame(z=0)])


def test_fuse_frames_end_to_end():
    frames = [frame(shift=0.1 * i, name=str(i)) for i in range(7)]
    result = fuse_frames(frames, FusionConfig(backend="torch", clean=CleanConfig(min_triangles=10)))
    assert result.frames == 7 and result.min_weight == 2.0 and result.backend == "torch"
    assert float((result.mesh.vertices[:, 2] - 2).abs().max()) < 1e-4
    assert result.mesh.normals is not None and bool((result.mesh.normals[:, 2] < -0.99).all())
    assert bool((result.mesh.rgb.long() - torch.tensor([51, 102, 153])).abs().max() <= 1)
    assert any("voxel size" in m for m in result.messages) and any("asked for" in m for m in result.messages)


def test_few_frames_lower_the_minimum_weight_and_missing_pieces_are_reported():
    result = fuse_frames([frame()], FusionConfig(backend="torch", clean=CleanConfig(min_triangles=10**7)))
    assert result.min_weight == 1.0 and result.mesh.faces.shape[0] > 100
    assert any("kept uncleaned" in m for m in result.messages)


def test_budget_doubles_the_voxel_size_with_a_message():
    config = FusionConfig(backend="torch", voxel_size=0.01, max_bytes=2_000_000, clean="full")
    result = fuse_frames([frame()], config)
    assert result.voxel_size > 0.01 and any("doubled" in m for m in result.messages)
    assert result.volume_bytes <= 2_000_000


def test_pictures_can_be_loaded_late():
    loads = []

    def load():
        loads.append(1)
        return torch.full((3, 60, 80), 0.8)

    result = fuse_frames([frame(color=None)], FusionConfig(backend="torch", clean="full"), pictures=[load])
    assert len(loads) == 1 and bool((result.mesh.rgb == 204).all())


def test_confidence_weights_have_mean_one():
    confidence = torch.rand(60, 80, generator=torch.Generator().manual_seed(0))
    weight = confidence_weight(frame(confidence=confidence))
    assert float(weight.mean()) == pytest.approx(1.0, abs=0.05) and float(weight.min()) >= 0.1
    assert confidence_weight(frame()) is None


def test_refusals():
    with pytest.raises(InputError, match="no valid pixels"):
        fuse_frames([frame(z=0)], FusionConfig(voxel_size=0.1))
    with pytest.raises(InputError, match="unknown mesh quality"):
        fuse_frames([frame()], FusionConfig(clean="best"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="size of its camera"):
        DepthFrame("x", Depth.from_values(torch.ones(4, 4)), Camera(5, 4, K, torch.eye(4)))
    with pytest.raises(InputError, match="intrinsics and pose"):
        DepthFrame("x", Depth.from_values(torch.ones(4, 4)), Camera(4, 4))


def test_points_are_deduplicated_and_averaged():
    one = frame(2.0, color=(1.0, 0, 0), confidence=torch.full((60, 80), 0.75))
    two = frame(2.04, color=(0, 0, 1.0), confidence=torch.full((60, 80), 0.25))
    cloud = fuse_points([one, two], 0.5, min_views=2)
    assert cloud.xyz.shape[0] < 60
    assert torch.allclose(cloud.xyz[:, 2], torch.full_like(cloud.xyz[:, 2], 2.01), atol=0.01)
    assert bool(((cloud.rgb.float() - torch.tensor([191.0, 0, 64])).abs() < 12).all())
    assert torch.allclose(cloud.normals, torch.tensor([0.0, 0, -1]).expand_as(cloud.normals), atol=1e-4)
    assert torch.allclose(cloud.confidence, torch.full_like(cloud.confidence, 0.5 * 2 / 3), atol=0.03)
    assert fuse_points([one], 0.5, min_views=2).xyz.shape[0] == 0
    assert fuse_points([frame(color=None)], 0.1).rgb is None
    with pytest.raises(InputError, match="no valid pixels"):
        fuse_points([frame(z=0)], 0.1)
    with pytest.raises(InputError, match="positive"):
        fuse_points([one], 0)
