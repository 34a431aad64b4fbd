"""Flow, sequences, sensors, scans, meshes, textures and camera effects."""

import math

import numpy as np
import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.worlds import (
    CameraEffects,
    DepthSensor,
    apply_effects,
    flow_between,
    lidar_scan,
    make_sequences,
    make_texture_bank,
    make_worlds,
    radar_scan,
    rosette_pattern,
    sense_depth,
    spinning_pattern,
    visible_from,
    visible_surface,
)
from relief3d.worlds import layout as col
from relief3d.worlds.effects import gaussian_blur, jpeg_like
from relief3d.worlds.paths import look_at
from relief3d.worlds.patterns import PATTERNS
from relief3d.worlds.textures import lookup_texture

from .support import cameras_of, small_config

SIZE = (48, 64)


def reproject(views, source, target):
    """Independent flow of static points, in float64."""
    height, width = SIZE
    ys, xs = np.mgrid[0:height, 0:width] + 0.5
    K, z = views.K[source].double().numpy(), views.depth[source].double().numpy()
    local = np.stack([(xs - K[0, 2]) / K[0, 0] * z, (ys - K[1, 2]) / K[1, 1] * z, z, np.ones_like(z)], -1)
    pose = views.world_from_cam.double().numpy()
    p = local @ pose[source].T @ np.linalg.inv(pose[target]).T
    L = views.K[target].double().numpy()
    with np.errstate(all="ignore"):
        u, v = L[0, 0] * p[..., 0] / p[..., 2] + L[0, 2], L[1, 1] * p[..., 1] / p[..., 2] + L[1, 2]
    return np.stack([u - xs, v - ys], -1), p[..., 2]


def test_flow_of_static_points_is_reprojection(room):
    sequence = make_sequences(room, views=2, seed=1, size=SIZE, kind="orbit")
    views = room.render(cameras_of(room, sequence, SIZE))
    flow = flow_between(room, views[0:1], views[1:2])
    expected, z = reproject(views, 0, 1)
    ok = (views.valid[0] & flow.visible[0]).numpy()
    assert ok.mean() > 0.2
    assert np.abs(flow.optical[0].numpy() - expected)[ok].max() < 0.02
    assert np.abs(flow.depth[0].numpy() - z)[ok].max() < 1e-3
    assert torch.count_nonzero(flow.scene) == 0
    # A visible point has the colour of the place it moves to.
    grid = torch.tensor(expected, dtype=torch.float32)
    ys, xs = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    u, v = (xs + grid[..., 0]).clamp(0, 63.9).long(), (ys + grid[..., 1]).clamp(0, 47.9).long()
    same = (views.instance[1][v, u] == views.instance[0])[torch.from_numpy(ok)]
    assert same.float().mean() > 0.9


def test_scene_flow_of_moving_objects(bank):
    world = make_worlds([3], small_config("objects", moving=4), bank=bank)
    sequence = make_sequences(world, views=2, seed=1, size=SIZE, kind="orbit")
    cameras = cameras_of(world, sequence, SIZE)
    pair = [cameras[0], cameras[0]]
    views = world.render(pair, times=torch.tensor([[0.0, 1.0]]))
    flow = flow_between(world, views[0:1], views[1:2])
    slots = views.slot[0]
    velocity = world.motion[0, slots]
    moving = (velocity[..., :3].abs().sum(-1) > 0) & views.valid[0]
    assert moving.sum() > 10
    assert (flow.optical[0][~moving & views.valid[0]].abs() < 1e-2).all()
    # Without yaw the scene flow would be the velocity; yaw turns points about the object's own axis.
    centre = world.slots[0, slots][..., :2]
    reach = flow.scene[0, ..., :2] - velocity[..., :2]
    assert (flow.scene[0, ..., 2][moving].abs() < 1e-4).all()
    assert (reach.norm(dim=-1)[moving] < velocity[..., 3].abs()[moving] * 0.4 + 1e-4).all()
    assert centre.shape[-1] == 2
    assert (flow.scene[0][moving].norm(dim=-1) > 1e-3).float().mean() > 0.9


def test_sequences_meet_their_rules(bank):
    world = make_worlds(list(range(6)), small_config("room"), bank=bank)
    sequence = make_sequences(world, views=3, seed=2, size=SIZE)
    assert sequence.accepted.float().mean() >= 0.8
    good = sequence.accepted
    assert ((sequence.parallax >= 0.1) & (sequence.parallax <= 0.5))[good].all()
    assert ((sequence.overlap >= 0.3) & (sequence.overlap <= 0.9))[good].all()
    assert (sequence.clearance > 0.2)[good].all()
    still = make_sequences(world, views=3, seed=2, size=SIZE, kind="low_parallax")
    assert (still.parallax[still.accepted] < 0.03).all() and still.accepted.any()
    again = make_sequences(world, views=3, seed=2, size=SIZE)
    assert torch.equal(sequence.world_from_cam, again.world_from_cam)
    with pytest.raises(InputError, match="two views"):
        make_sequences(world, views=1)


def test_street_drive_is_accepted(bank):
    world = make_worlds([0, 1, 2], small_config("street"), bank=bank)
    sequence = make_sequences(world, views=3, seed=0, size=SIZE, kind="drive", candidates=24)
    assert sequence.accepted.any()
    step = sequence.world_from_cam[:, 1:, 0, 3] - sequence.world_from_cam[:, :-1, 0, 3]
    assert (step > 0.5).all()


def test_depth_sensor_imitates(room):
    sequence = make_sequences(room, views=2, seed=1, size=SIZE, kind="orbit")
    views = room.render(cameras_of(room, sequence, SIZE))
    generator = torch.Generator().manual_seed(0)
    sensed = sense_depth(views.depth, views.normals, views.albedo, views.K, DepthSensor(), generator)
    holes = ((sensed == 0) & views.valid).float().mean()
    assert 0.02 < holes < 0.7
    exact = DepthSensor(noise=0, disparity_step=1e-6, grazing=0, dark=0, speckle=0, blobs=0, bleed=0, shift=0,
                        dead_band=0, near=0, far=99)  # fmt: skip
    clean = sense_depth(views.depth, views.normals, views.albedo, views.K, exact, generator)
    assert (clean - views.depth).abs().max() < 1e-4
    both = (sensed > 0) & (views.depth > 0)
    assert ((sensed - views.depth).abs() / views.depth.clamp_min(0.1))[both].median() < 0.05


def test_lidar_and_radar_hit_surfaces(bank):
    world = make_worlds([0, 1], small_config("street", moving=1), bank=bank)
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[:, 2, 3] = 1.7
    generator = torch.Generator().manual_seed(0)
    scan = lidar_scan(world, pose, spinning_pattern(8, 90), generator, noise=0.0, dropout=0.0)
    assert scan.points.shape == (2, 720, 3) and scan.valid.float().mean() > 0.3
    for w in range(2):
        assert world.select(w).sdf(scan.points[w][scan.valid[w]]).abs().max() < 2e-3
    rosette = rosette_pattern(500)
    assert torch.allclose(rosette.norm(dim=-1), torch.ones(500), atol=1e-5)
    assert rosette[:, 0].min() > math.cos(math.radians(31))
    radar = radar_scan(world, pose, generator, points=64)
    assert radar.valid.any() and torch.isfinite(radar.points).all()
    assert (radar.speed[~radar.valid] == 0).all()


def test_mesh_lies_on_the_surface_and_faces_free_space(room):
    mesh = room.to_mesh(0.2)
    corners = mesh.vertices[mesh.faces]
    weights = torch.rand(len(mesh.faces), 3, generator=torch.Generator().manual_seed(0))
    weights = weights / weights.sum(1, keepdim=True)
    points = (corners * weights[..., None]).sum(1)
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    distance = room.sdf(points)
    assert (distance.abs() < 2e-3).float().mean() > 0.99 and distance.abs().max() < 0.015
    normal = torch.nn.functional.normalize(area, dim=-1)
    big = area.norm(dim=-1) > 1e-7
    ahead, behind = room.sdf(points + 1e-3 * normal), room.sdf(points - 1e-3 * normal)
    assert (ahead > behind)[big].float().mean() > 0.97
    with pytest.raises(InputError, match="method"):
        room.to_mesh(0.1, method="magic")


def test_marching_cubes_mesh(bank):
    pytest.importorskip("skimage", reason="scikit-image is needed for marching cubes")
    world = make_worlds([1], small_config("objects"), bank=bank)
    mesh = world.to_mesh(0.12, method="marching_cubes")
    assert world.sdf(mesh.vertices).abs().median() < 0.05


def test_visible_surface_is_seen_and_on_the_surface(room):
    sequence = make_sequences(room, views=4, seed=1, size=SIZE, kind="orbit")
    cameras = cameras_of(room, sequence, SIZE)
    views = room.render(cameras)
    cloud = visible_surface(views, min_views=2, spacing=0.05)
    assert len(cloud.xyz) > 200 and room.sdf(cloud.xyz).abs().max() < 1e-3
    seen = visible_from(room, cloud.xyz, cameras).sum(0)
    assert (seen >= 2).float().mean() > 0.9
    with pytest.raises(InputError, match="seen by 9"):
        visible_surface(views, min_views=9)


def test_texture_bank_lookup_matches_pictures():
    photo = torch.rand(3, 40, 32, generator=torch.Generator().manual_seed(0))
    bank = make_texture_bank(1, {"brick": 1, "poster": 1}, size=32, photos=[photo])
    assert bank.names == ("brick", "poster", "photo") and bank.of("photo") == [2]
    rng = np.random.default_rng([1, 1, 0x746578])
    picture = torch.from_numpy(PATTERNS["poster"](rng, 32))
    ys, xs = torch.meshgrid((torch.arange(32) + 0.5) / 32, (torch.arange(32) + 0.5) / 32, indexing="ij")
    layer = torch.ones(32, 32, dtype=torch.int32)
    got = torch.stack(lookup_texture(bank.texels, 32, 3, layer, xs, ys, torch.zeros(32, 32)), -1)
    assert (got - picture).abs().max() < 2e-3
    top = torch.stack(lookup_texture(bank.texels, 32, 3, layer, xs, ys, torch.full((32, 32), 9.0)), -1)
    assert (top - picture.mean((0, 1))).abs().max() < 3e-3
    with pytest.raises(InputError, match="power of two"):
        make_texture_bank(0, {"brick": 1}, size=33)
    with pytest.raises(InputError, match="pattern"):
        make_texture_bank(0, {"velvet": 1}, size=32)


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_pictures(name):
    picture = PATTERNS[name](np.random.default_rng(0), 64)
    assert picture.shape == (64, 64, 3) and np.isfinite(picture).all()
    assert picture.min() >= 0 and picture.max() <= 1
    assert picture.std() > (0.001 if name == "paint" else 0.01)


def test_camera_effects_are_seeded_and_bounded(room):
    sequence = make_sequences(room, views=2, seed=1, size=SIZE)
    light = room.render((sequence.K, sequence.world_from_cam), SIZE).radiance
    one, two = (apply_effects(light, CameraEffects(), torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == light.shape
    assert one.min() >= 0 and one.max() <= 1 and 0.2 < one.mean() < 0.7


def test_blur_and_compression():
    image = torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    none = gaussian_blur(image, torch.zeros(2, 1, 1, 1))
    assert torch.allclose(none, image, atol=1e-5)
    soft = gaussian_blur(image, torch.full((2, 1, 1, 1), 1.5))
    assert soft.std() < 0.5 * image.std() and abs(float(soft.mean() - image.mean())) < 0.01
    fine = jpeg_like(image, torch.zeros(2, 1, 1, 1))
    assert (fine - image).abs().max() < 2e-3
    coarse = (jpeg_like(image, torch.ones(2, 1, 1, 1)) - image).abs().mean()
    assert 0.02 < coarse < 0.3


def test_look_at_is_opencv():
    pose = look_at(np.array([1.0, 2.0, 1.5]), np.array([1.0, 5.0, 1.5]))
    assert np.allclose(pose[:3, 2], [0, 1, 0]) and np.allclose(pose[:3, 1], [0, 0, -1])
    assert np.isclose(np.linalg.det(pose[:3, :3]), 1)


def test_slots_are_inside_the_layout(world):
    assert world.slots.shape[1] == len(world.layout) == len(world.names[0])
    alive = world.slots[0, :, col.ALIVE] > 0.5
    named = torch.tensor([bool(n) for n in world.names[0]])
    assert torch.equal(alive, named)
    rotation = world.slots[0, :, col.R00 : col.R00 + 9].reshape(-1, 3, 3)
    assert torch.allclose(rotation @ rotation.transpose(1, 2), torch.eye(3).expand_as(rotation), atol=1e-5)
