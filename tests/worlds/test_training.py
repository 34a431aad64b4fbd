"""Worlds as training samples: exact cameras and depth, the same from any process."""

from __future__ import annotations

import math

import pytest
import torch

from relief3d.core.contract import Batch
from relief3d.data.covisibility import depth_overlap
from relief3d.data.mixtures import Mixture
from relief3d.data.sources import SampleSource
from relief3d.data.streams import BatchStream, StreamConfig
from relief3d.data.view_groups import Grouping, ViewRequest
from relief3d.geometry.projection import depth_to_world_points
from relief3d.geometry.rotations import rotation_angle
from relief3d.worlds.config import WorldConfig
from relief3d.worlds.effects import CameraEffects
from relief3d.worlds.layout import Kind
from relief3d.worlds.tabletop import Tabletop, TabletopConfig
from relief3d.worlds.training import TabletopSource, WorldSource

NEED = frozenset({"K", "pose", "depth"})


def parts(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert batch.depth is not None and batch.K is not None and batch.world_from_cam is not None
    return batch.depth[0], batch.K[0], batch.world_from_cam[0]


def test_depth_of_the_table_top_lies_on_its_surfaces() -> None:
    """Every unprojected pixel satisfies the equation of a box, an ellipsoid or the ground."""
    config = TabletopConfig()
    source = TabletopSource(config=config, seed=3)
    assert isinstance(source, SampleSource)
    batch = source.sample(5, ViewRequest(3, (40, 48), NEED), 0)
    depth, K, pose = parts(batch)
    points = depth_to_world_points(depth, K, pose)[depth > 0].double()
    from relief3d.core.seeding import derive_seed

    world = Tabletop.make(derive_seed(3, "world", 5), config)
    local = torch.einsum("kij,pki->pkj", world.turn.double(), points[:, None] - world.centre.double())
    local = local / world.half.double()
    box = (local[:, : world.boxes].abs().amax(-1) - 1).abs().amin(-1)
    ball = (local[:, world.boxes :].norm(dim=-1) - 1).abs().amin(-1)
    error = torch.stack([box, ball, points[:, 2].abs()]).amin(0)
    assert float(error.max()) < 1e-4
    assert 0.05 < float((points[:, 2].abs() > 1e-3).float().mean()) < 0.9  # things and ground are seen
    assert float((local.norm(dim=-1).amin(-1) < 0.5).float().mean()) == 0


def test_no_ray_passes_through_a_thing() -> None:
    """Marching along rays finds no point inside a box, an ellipsoid or the ground before the hit."""
    world = Tabletop.make(1, TabletopConfig())
    source = TabletopSource(seed=0)
    batch = source.sample(0, ViewRequest(1, (24, 24)), 0)
    _, K, pose = parts(batch)
    _, depth = world.render(K, pose, (24, 24))
    reach = torch.where(depth > 0, depth, torch.tensor(6.0))
    for share in torch.linspace(0.02, 0.995, 40):
        points = depth_to_world_points(reach * share, K, pose).reshape(-1, 3)
        local = torch.einsum("kij,pki->pkj", world.turn, points[:, None] - world.centre) / world.half
        inside_box = (local[:, : world.boxes].abs().amax(-1) < 0.99).any(-1)
        inside_ball = (local[:, world.boxes :].norm(dim=-1) < 0.99).any(-1)
        below = (points[:, 2] < -1e-3) & (points[:, :2].norm(dim=-1) < 6.2)
        assert not bool((inside_box | inside_ball | below).any())


def test_normals_follow_the_depth() -> None:
    """Where neighbouring pixels show one smooth surface, the normal is perpendicular to their difference."""
    world = Tabletop.make(2, TabletopConfig(boxes=2, ellipsoids=2))
    batch = TabletopSource(seed=0).sample(1, ViewRequest(1, (96, 96)), 0)
    _, K, pose = parts(batch)
    _, depth = world.render(K, pose, (96, 96))
    points = depth_to_world_points(depth, K, pose)[0]
    rays = points - pose[0, :3, 3]
    _, surface = world.hit(pose[:, :3, 3], rays.reshape(1, -1, 3))
    surface = surface.reshape(96, 96)
    normal = world.normals(points, surface)
    assert float((normal * rays).sum(-1)[depth[0] > 0].max()) < 1e-3  # facing the camera
    step = points[:, 1:] - points[:, :-1]
    alike = (surface[:, 1:] == surface[:, :-1]) & (depth[0][:, 1:] > 0) & (depth[0][:, :-1] > 0)
    alike &= (normal[:, 1:] * normal[:, :-1]).sum(-1) > 0.99
    slope = (step * (normal[:, 1:] + normal[:, :-1]) / 2).sum(-1).abs() / step.norm(dim=-1).clamp_min(1e-9)
    assert float(slope[alike].quantile(0.99)) < 0.05


def test_the_arc_has_the_parallax_of_the_recipe() -> None:
    angles, shares = [], []
    for index in range(12):
        request = ViewRequest(4, (48, 48), NEED, Grouping(shuffled=False))
        depth, K, pose = parts(TabletopSource(seed=1).sample(index, request, index))
        for a in range(4):
            for b in range(a + 1, 4):
                angles.append(math.degrees(float(rotation_angle(pose[a, :3, :3], pose[b, :3, :3]))))
        overlap = depth_overlap(depth, K, pose)
        shares.append(float(overlap[~torch.eye(4, dtype=torch.bool)].median()))
    # The guide reports a median pair rotation of 30 degrees and half of the cells seen by both.
    assert 22 < float(torch.tensor(angles).median()) < 42
    assert 0.3 < float(torch.tensor(shares).median()) < 0.8


def test_samples_depend_on_index_and_seeds_alone() -> None:
    request = ViewRequest(3, (16, 16), NEED, Grouping("random"))
    first = TabletopSource(seed=1).sample(4, request, 9)
    assert torch.equal(first.images, TabletopSource(seed=1).sample(4, request, 9).images)
    for other in (
        TabletopSource(seed=2).sample(4, request, 9),
        TabletopSource(seed=1).sample(5, request, 9),
        TabletopSource(seed=1).sample(4, request, 10),
    ):
        assert not torch.equal(first.images, other.images)
    still = TabletopSource(seed=1, config=TabletopConfig(noise=0.0))
    a, b = (still.sample(4, ViewRequest(6, (16, 16)), seed) for seed in (1, 2))
    order = [a.names[0].index(name) for name in b.names[0]]
    assert torch.equal(a.images[:, order], b.images)  # the world stays, the order of views is drawn anew


def test_covisible_views_of_a_world() -> None:
    rule = Grouping("covisible", overlap=(0.5, 1.0))
    batch = TabletopSource(seed=0, pool=10).sample(0, ViewRequest(3, (48, 48), NEED, rule), 2)
    depth, K, pose = parts(batch)
    overlap = depth_overlap(depth, K, pose)
    assert float(torch.minimum(overlap, overlap.T).fill_diagonal_(0).amax(1).min()) > 0.35


@pytest.mark.parametrize("family", ["objects", "room"])
def test_rich_worlds_give_consistent_views(family: str) -> None:
    few = {Kind.SHELL: 1, Kind.BOX: 10, Kind.ELLIPSOID: 3, Kind.CYLINDER: 3}
    config = WorldConfig(
        slots=few,
        family=family, texture_size=32, textures=dict.fromkeys(("paint", "wood", "plaster", "tiles"), 1),
        clutter=2, furniture=2, pictures=1,
    )  # type: ignore[arg-type]  # fmt: skip
    source = WorldSource(family, config, seed=0, pool=2, effects=CameraEffects(), count=50)
    assert isinstance(source, SampleSource) and len(source) == 50
    stream = BatchStream(
        Mixture([source]), StreamConfig(views=(2, 2), scenes=1, sizes=((24, 32),), need=NEED), seed=0
    )
    batch = stream.batch(0)
    assert batch.images.shape == (1, 2, 3, 24, 32) and bool(batch.metric)
    depth, K, pose = parts(batch)
    overlap = depth_overlap(depth, K, pose, tolerance=0.1)
    assert float(overlap[0, 1]) > 0.15 and float(overlap[1, 0]) > 0.15
    assert float((pose[0, :3, 3] - pose[1, :3, 3]).norm()) > 0.05
    assert batch.names[0][0].startswith(f"{family}/{family}-0-")


def test_sky_is_no_depth() -> None:
    """Where rays leave the ground nothing is known: depth 0 and no validity there, and only there."""
    config = TabletopConfig(ground=1.5, spread=0.8, noise=0.0)
    batch = TabletopSource(config=config, seed=1).sample(0, ViewRequest(3, (32, 32), NEED), 0)
    assert batch.depth is not None and batch.depth_valid is not None
    assert torch.equal(batch.depth_valid, batch.depth > 0)
    assert 0.05 < float(batch.depth_valid.float().mean()) < 0.95
