"""True volumes, fragments, and training of the volumetric network on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.geometry.transforms import invert_rigid, look_at
from relief3d.losses.volume import volume_loss
from relief3d.methods.vfm_recon.volume import scenes
from relief3d.methods.vfm_recon.volume.config import DepthErrors, FoundationConfig, VolumeConfig
from relief3d.methods.vfm_recon.volume.evaluation import numbers_of, score_depth
from relief3d.methods.vfm_recon.volume.fragments import (
    draw_box,
    draw_views,
    make_fragment,
    points_in_box,
    seeing_views,
    with_errors,
)
from relief3d.methods.vfm_recon.volume.recipes import volume
from relief3d.methods.vfm_recon.volume.scenes import SceneData, SceneSet, SceneSource
from relief3d.methods.vfm_recon.volume.task import VolumeTask
from relief3d.methods.vfm_recon.volume.truth import (
    TruthGrid,
    fused_distances,
    truth_from_depth,
    truth_from_mesh,
)
from relief3d.models.multiview.configs import vggt_config
from relief3d.models.multiview.vggt import Vggt
from relief3d.models.volume.back_projection import (
    Views,
    grid_indices,
    grid_points,
    grid_transform,
    project_view,
)
from relief3d.models.volume.network import VolumeOutput
from relief3d.models.volume.opening import file_metadata, open_volume
from relief3d.train.recipe import BUDGETS, SIZES

SIZE = (32, 48)


def ball_scene(frames: int = 6) -> SceneData:
    """A ball of 0.6 m on the floor, seen from around it; made by formula, without the renderer of worlds."""
    K = torch.tensor([[44.0, 0, 24], [0, 44.0, 16], [0, 0, 1]]).repeat(frames, 1, 1)
    poses = []
    for i in range(frames):
        angle = 2 * math.pi * i / frames
        eye = torch.tensor([1.8 * math.cos(angle), 1.8 * math.sin(angle), 1.2])
        poses.append(look_at(eye, torch.tensor([0.0, 0, 0.4]), torch.tensor([0.0, 0, 1])))
    world_from_cam = torch.stack(poses).float()
    y, x = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    rays = torch.stack([(x - 24) / 44, (y - 16) / 44, torch.ones_like(x)], -1)
    d = rays @ world_from_cam[:, None, :3, :3].mT
    o = world_from_cam[:, None, None, :3, 3] - torch.tensor([0, 0, 0.6])
    a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum(-1) - 0.36
    inside = b * b - a * c
    ball = torch.where(inside > 0, (-b - inside.clamp_min(0).sqrt()) / a, torch.inf)
    floor = torch.where(d[..., 2] < 0, -(o[..., 2] + 0.6) / d[..., 2], torch.inf)
    depth = torch.minimum(ball, floor)
    depth = torch.where(torch.isfinite(depth) & (depth < 4), depth, 0.0)
    image = (255 * torch.rand(frames, 3, *SIZE, generator=torch_generator(0))).to(torch.uint8)
    views = Views(K, invert_rigid(world_from_cam), SIZE)

    def distance(points: Tensor) -> Tensor:
        return torch.minimum((points - torch.tensor([0, 0, 0.6])).norm(dim=-1) - 0.6, points[:, 2])

    truth = truth_from_depth(depth, views, 0.1, truncation=0.2, distance=distance, every=1)
    return SceneData(image, depth, K, world_from_cam, truth, "ball-0")


CONFIG = replace(
    volume("nano", "smoke"), variant="finerecon", scenes=(SceneSet(count=1, frames=6, size=SIZE, voxel_size=0.1,
    truncation=0.2),), voxel_size=0.2, crop=(8, 8, 8), points=300, views=4,
)  # fmt: skip


@pytest.fixture
def ball(monkeypatch: pytest.MonkeyPatch) -> Iterator[SceneData]:
    """The only scene there is."""
    found = ball_scene()
    monkeypatch.setattr(SceneSource, "scene", lambda self, number: found)
    yield found


# ---- truth ----------------------------------------------------------------------------------------------------------


def wall_views(count: int = 1) -> Views:
    K = torch.tensor([[20.0, 0, 12.037], [0, 20.0, 8.021], [0, 0, 1]]).repeat(
        count, 1, 1
    )  # no ties at borders
    return Views(K, torch.eye(4).repeat(count, 1, 1), (16, 24))


def test_fused_distances_average_what_views_say() -> None:
    depth = torch.stack([torch.full((16, 24), 2.0), torch.full((16, 24), 2.1)])
    points = torch.tensor(
        [[0, 0, 1.95], [0, 0, 2.0], [0, 0, 2.22], [0, 0, 2.35], [0, 0, -1.0], [3.0, 0, 2.0]]
    )
    value, weight = fused_distances(points, depth, wall_views(2), 0.2)
    # 0.05 and 0.15; 0 and 0.1; only the second view reaches 0.12 behind it; too far behind both; not seen.
    torch.testing.assert_close(value[:3], torch.tensor([0.5, 0.25, -0.6]), atol=1e-4, rtol=0)
    assert weight.tolist() == [2, 2, 1, 0, 0, 0]


def test_true_volumes_know_what_was_seen() -> None:
    depth = torch.full((1, 16, 24), 2.0)
    truth = truth_from_depth(depth, wall_views(), 0.1, truncation=0.23, every=1)
    points = grid_points(grid_transform(truth.origin, 0.1), truth.tsdf.shape).reshape(*truth.tsdf.shape, 3)  # type: ignore[arg-type]
    _, z, seen = (v.reshape(truth.tsdf.shape) if v.ndim == 1 else v for v in project_view(
        points.reshape(-1, 3), wall_views(), 0))  # fmt: skip
    known = seen & (z <= 2.23)
    column = known.any(2)
    assert bool((torch.isnan(truth.tsdf) == (~known & column[..., None])).all())
    wanted = ((2 - z) / 0.23).clamp(-1, 1)
    torch.testing.assert_close(truth.tsdf[known], wanted[known], atol=1e-4, rtol=0)
    outside = truth.tsdf[~column]
    assert len(outside) > 0 and bool((outside == -1).all())  # columns that no view saw
    open_ = truth_from_depth(depth, wall_views(), 0.1, truncation=0.23, every=1, solid_columns=False)
    assert bool(torch.isnan(open_.tsdf[~column]).all())
    with pytest.raises(InputError, match="no depth within reach"):
        truth_from_depth(depth, wall_views(), 0.1, max_depth=1.5)


def test_meshes_give_the_same_truth() -> None:
    vertices = torch.tensor([[-9.0, -9, 2], [9, -9, 2], [9, 9, 2], [-9, 9, 2]])
    mesh = Mesh(vertices, torch.tensor([[0, 2, 1], [0, 3, 2]]))
    found = truth_from_mesh(mesh, wall_views(), 0.1, truncation=0.2, backend="torch")
    wanted = truth_from_depth(torch.full((1, 16, 24), 2.0), wall_views(), 0.1, truncation=0.2, every=1)
    torch.testing.assert_close(found.origin, wanted.origin, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.tsdf, wanted.tsdf, atol=1e-3, rtol=0, equal_nan=True)


def test_exact_distances_count_where_depth_saw(ball: SceneData) -> None:
    truth = ball.truth
    points = grid_points(grid_transform(truth.origin, 0.1), truth.tsdf.shape).reshape(*truth.tsdf.shape, 3)  # type: ignore[arg-type]
    exact = torch.minimum((points - torch.tensor([0, 0, 0.6])).norm(dim=-1) - 0.6, points[..., 2]) / 0.2
    known = ~torch.isnan(truth.tsdf) & (truth.tsdf > -1)
    torch.testing.assert_close(truth.tsdf[known], exact.clamp(-1, 1)[known])
    deep = truth.tsdf[
        exact < -2.2
    ]  # in the ball, where no view looks: unknown, or a column without any observation
    assert bool((torch.isnan(deep) | (deep == -1)).all()) and bool(torch.isnan(deep).any())


# ---- fragments ------------------------------------------------------------------------------------------------------


def test_boxes_stand_upright_within_the_bounds() -> None:
    truth = TruthGrid(torch.zeros(41, 51, 9), torch.tensor([1.0, 2, 3]), 0.1)
    yaws = []
    for seed in range(40):
        box = draw_box(truth, (8, 8, 8), 0.2, 3.0, torch_generator(seed))
        axes = box[:3, :3] / 0.2
        torch.testing.assert_close(axes.T @ axes, torch.eye(3), atol=1e-5, rtol=0)
        assert float(axes[2, 2]) >= math.cos(math.radians(3.001)) and abs(float(axes[2, 0])) < 1e-6
        yaws.append(math.atan2(float(axes[1, 0]), float(axes[0, 0])))
        centre = box[:3, :3] @ torch.full((3,), 3.5) + box[:3, 3]
        low, high = truth.origin + 0.8, truth.origin + torch.tensor([4.0, 5, 0.8]) - 0.8
        assert bool((centre[:2] >= low[:2] - 1e-4).all() and (centre[:2] <= high[:2] + 1e-4).all())
        assert float(centre[2]) == pytest.approx(3.4, abs=1e-4)  # longer than the bounds: in their middle
    assert max(yaws) > 2 and min(yaws) < -2


def test_points_of_a_turned_box_are_all_found(ball: SceneData) -> None:
    box = draw_box(ball.truth, (8, 8, 8), 0.2, 3.0, torch_generator(5))
    found = points_in_box(ball.truth, box, (8, 8, 8))
    shape = ball.truth.tsdf.shape
    points = grid_points(grid_transform(ball.truth.origin, 0.1), (shape[0], shape[1], shape[2]))
    inside = grid_indices(box, points)
    wanted = ((inside >= -0.5) & (inside <= 7.5)).all(-1).reshape(shape).nonzero()
    assert torch.equal(found, wanted) and len(wanted) > 500


def test_views_of_a_box_and_how_they_are_drawn(ball: SceneData) -> None:
    box = grid_transform(torch.tensor([-0.2, -0.2, 0.3]), 0.1)
    assert seeing_views(box, (4, 4, 4), ball.views, 4.0).tolist() == list(range(6))
    assert seeing_views(box, (4, 4, 4), ball.views, 0.5).tolist() == []
    behind = grid_transform(torch.tensor([3.0, -0.2, 0.9]), 0.1)
    assert 0 not in seeing_views(behind, (4, 4, 4), ball.views, 9.0).tolist()
    generator = torch_generator(0)
    assert set(draw_views(torch.tensor([1, 3, 4]), 3, 6, generator).tolist()) == {1, 3, 4}
    more = draw_views(torch.tensor([1, 3]), 4, 6, generator).tolist()
    assert {1, 3} <= set(more) and len(set(more)) == 4 and more == sorted(more)
    assert len(draw_views(torch.tensor([1]), 9, 6, generator)) == 9  # again, where there are too few
    assert set(draw_views(torch.tensor([1]), 9, 6, generator).tolist()) == set(range(6))


def test_depth_errors_are_as_large_as_said() -> None:
    depth = torch.full((8, 64, 96), 2.0)
    scaled = with_errors(depth, DepthErrors(0.1, 0.0, 0.0), torch_generator(1)) / 2
    factor = scaled.flatten(1).mean(1)
    assert int((factor != 1).sum()) == 4 and bool(((factor - 1).abs() <= 0.1).all())
    assert float(scaled.flatten(1).std(1).max()) < 1e-6
    smooth = with_errors(depth, DepthErrors(0.0, 0.03, 0.0), torch_generator(1)) / 2
    assert 0.01 < float(smooth.std()) < 0.05
    assert float((smooth[:, :, 1:] - smooth[:, :, :-1]).abs().mean()) < 0.006
    holes = with_errors(depth, DepthErrors(0.0, 0.0, 1.0), torch_generator(1))
    assert bool((holes == 0).flatten(1).any(1).all()) and float((holes == 0).float().mean()) < 0.12
    assert torch.equal(with_errors(depth, DepthErrors(0.0, 0.0, 0.0), torch_generator(1)), depth)


def test_fragments_hold_their_truth(ball: SceneData) -> None:
    found = make_fragment(ball, CONFIG, 3)
    assert found is not None
    x = found.input
    assert x.images.shape == (1, 4, 3, *SIZE) and x.depth is not None and found.tsdf.shape == (1, 300)
    at = ((x.queries[0] - ball.truth.origin) / 0.1).round().long()
    assert torch.equal(
        torch.nan_to_num(found.tsdf[0], 9), torch.nan_to_num(ball.truth.tsdf[at.unbind(-1)], 9)
    )
    near = found.tsdf[0].abs() < 0.999
    assert bool((found.occupancy[0][near] == 1).all()) and bool((found.occupancy[0] == 0).any())
    inside = grid_indices(x.world_from_grid[0], x.queries[0])
    assert bool(((inside > -0.51) & (inside < 7.51)).all())
    again = make_fragment(ball, CONFIG, 3)
    assert again is not None and torch.equal(again.input.images, x.images)
    assert make_fragment(ball, replace(CONFIG, points=10**6), 3) is None  # too few points


# ---- scenes on disk -------------------------------------------------------------------------------------------------

TINY = SceneSet(count=2, frames=2, size=(16, 32), voxel_size=0.2, truncation=0.4, texture_size=16)


def test_scenes_are_rendered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SceneSource(tmp_path, TINY)
    first = source.scene(1)
    assert first.image.dtype == torch.uint8 and first.depth.shape == (2, 16, 32) and first.name == "room-1"
    known = first.truth.tsdf[~torch.isnan(first.truth.tsdf)]
    assert bool((known.abs() <= 1).all()) and bool((known.abs() < 0.9).any())
    monkeypatch.setattr(scenes, "make_worlds", None)  # from now on there is nothing to render with
    again = SceneSource(tmp_path, replace(TINY, count=9)).scene(1)  # a larger set begins with the smaller one
    assert torch.equal(again.depth, first.depth) and torch.equal(again.image, first.image)
    assert replace(TINY, seed=1).digest != TINY.digest == replace(TINY, count=5).digest
    source._file(1).write_bytes(b"damaged")
    with pytest.raises(InputError, match="delete it, and it will be rendered again"):
        SceneSource(tmp_path, TINY).scene(1)
    with pytest.raises(InputError, match="no scene 2"):
        source.scene(2)


# ---- task -----------------------------------------------------------------------------------------------------------


def test_batches_depend_on_their_position_alone(ball: SceneData) -> None:
    one, two = VolumeTask(CONFIG), VolumeTask(CONFIG)
    one.batch(0)
    a, b = one.batch(3), two.batch(3)
    assert a.names == b.names == ("ball-0/6", "ball-0/7") and torch.equal(a.input.images, b.input.images)
    halves = [two.batch(3, part, 2) for part in range(2)]
    assert torch.equal(torch.cat([h.input.queries for h in halves]), a.input.queries)
    parts = one.split(a, 2)
    assert [p.names for p in parts] == [("ball-0/6",), ("ball-0/7",)]
    with pytest.raises(InputError, match="cannot be shared"):
        two.batch(0, 0, 3)


def test_a_network_learns_a_ball(ball: SceneData) -> None:
    """Specification 5.4 in small: the loss falls by more than half."""
    config = replace(
        CONFIG, depth=DepthErrors(0.02, 0.0, 0.0), colours=replace(CONFIG.colours, probability=0.0)
    )
    task = VolumeTask(config)
    network = task.model().train()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    batches = [task.batch(i) for i in range(2)]
    losses = []
    for step in range(40):
        report = task.loss(network, batches[step % 2], None, None)  # type: ignore[arg-type]
        optimiser.zero_grad()
        report.total.backward()
        optimiser.step()
        losses.append(float(report.total.detach()))
    assert sum(losses[-2:]) < 0.5 * sum(losses[:2]), losses[::8]


def test_numbers_beside_those_of_the_depth(ball: SceneData) -> None:
    exact = replace(CONFIG, depth=DepthErrors(0.0, 0.0, 0.0))
    batch = VolumeTask(exact).batch(0)
    found = score_depth(batch, 0.2, 3.0, 0.2)
    assert found["distance_error_depth"] < 0.9 * found["distance_error_constant"]
    assert 0 < found["occupancy_f1_depth"] < 1 and 0 < found["occupancy_f1_constant"] < 1
    every = torch.ones_like(batch.tsdf, dtype=torch.bool)
    said = torch.atanh(torch.nan_to_num(batch.tsdf).clamp(-0.9999, 0.9999))
    perfect = VolumeOutput(20 * (torch.nan_to_num(batch.occupancy) - 0.5), said, every, every)
    numbers = numbers_of(perfect, batch, 0.2)
    assert numbers["occupancy_f1"] == 1 and numbers["distance_error"] < 1e-4 and numbers["loss"] < 1e-3
    off = replace(perfect, distance=torch.atanh(torch.nan_to_num(batch.tsdf).clamp(-0.5, 0.5) + 0.1))
    assert 0.2 * 0.1 < numbers_of(off, batch, 0.2)["distance_error"] < 0.2 * 0.6
    loss = volume_loss(perfect.occupancy, perfect.distance, batch.occupancy, batch.tsdf, every, every)
    assert float(loss.total) == pytest.approx(numbers["loss"])


def test_foundation_weights_are_asked_for(tmp_path: Path) -> None:
    config = replace(CONFIG, variant="vfm")
    with pytest.raises(InputError, match=r"were not given.*multiview-supervised-vggt"):
        VolumeTask(replace(config, foundation=FoundationConfig())).model()
    torch.manual_seed(5)
    vggt = Vggt(replace(vggt_config("nano"), heads=("camera", "depth")))  # what the recipe trains
    save_file(vggt.state_dict(), str(tmp_path / "model.safetensors"))
    task = VolumeTask(replace(config, foundation=FoundationConfig(str(tmp_path / "model.safetensors"))))
    network = task.model()
    token = network.vfm.aggregator.camera_token  # type: ignore[union-attr]
    assert torch.equal(token, vggt.aggregator.camera_token) and not token.requires_grad
    conv = network.vfm.head.projects[0].weight  # type: ignore[union-attr]
    assert torch.equal(conv, vggt.depth_head.projects[0].weight)
    assert (
        "UNTRAINED"
        in VolumeTask(replace(config, foundation=FoundationConfig(untrained=True))).model_card()["foundation"]
    )
    save_file(network.state_dict(), str(tmp_path / "volume.safetensors"), metadata=file_metadata(network))  # type: ignore[arg-type]
    opened = open_volume(tmp_path / "volume.safetensors")
    assert opened.config == network.config and not opened.training  # type: ignore[comparison-overlap]
    assert torch.equal(opened.vfm.aggregator.camera_token, token)  # type: ignore[union-attr]
    with pytest.raises(InputError, match="does not say its configuration"):
        open_volume(tmp_path / "model.safetensors")


def test_every_size_has_every_budget() -> None:
    for size in SIZES:
        for budget in BUDGETS:
            config = volume(size, budget)
            assert isinstance(config, VolumeConfig) and config.size == size
            assert config.foundation.untrained == (budget == "smoke")
    paper = volume("full", "paper")
    assert (paper.crop, paper.views, paper.points, paper.train.steps) == ((96, 96, 56), 20, 129_024, 60_000)
    assert (
        paper.scenes[0].voxel_size == 0.02 and paper.scenes[0].truncation == 0.04 and paper.voxel_size == 0.04
    )
