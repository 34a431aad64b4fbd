"""Truth maps agree with the world's distance function and with each other."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from relief3d.core.errors import InputError
from relief3d.worlds import make_sequences, make_world, make_worlds

from .support import cameras_of, small_config

SIZE = (60, 80)


def view_points(views):
    """World points (V, H, W, 3) of the depth maps."""
    height, width = views.depth.shape[-2:]
    x = torch.arange(width) + 0.5
    y = torch.arange(height) + 0.5
    K = views.K
    rx = (x - K[:, 0, 2, None]) / K[:, 0, 0, None]
    ry = (y - K[:, 1, 2, None]) / K[:, 1, 1, None]
    shape = views.depth.shape
    rays = torch.stack([rx[:, None].expand(shape), ry[:, :, None].expand(shape), torch.ones(shape)], -1)
    local = rays * views.depth[..., None]
    return (
        torch.einsum("vij,vhwj->vhwi", views.world_from_cam[:, :3, :3], local)
        + views.world_from_cam[:, None, None, :3, 3]
    )


@pytest.fixture(scope="module")
def views(world):
    sequence = make_sequences(world, views=3, seed=1, size=SIZE, kind="orbit")
    return world.render(cameras_of(world, sequence, SIZE))


def test_depth_lies_on_the_surface(world, views):
    points = view_points(views)[views.valid]
    assert len(points) > 3000
    assert world.sdf(points).abs().max() < 1e-3


def test_normals_are_the_gradient_of_the_distance(world, views):
    points = view_points(views)
    turned = torch.einsum("vij,vhwj->vhwi", views.world_from_cam[:, :3, :3], views.normals)
    chosen = views.valid & (torch.rand(views.valid.shape, generator=torch.Generator().manual_seed(0)) < 0.2)
    p = points[chosen].double().requires_grad_()
    (gradient,) = torch.autograd.grad(world.sdf(p).sum(), p)
    cosine = (torch.nn.functional.normalize(gradient, dim=-1) * turned[chosen]).sum(-1)
    # Where two solids touch, the distance function has two gradients.
    assert (cosine > 0.99).double().mean() > 0.97
    assert torch.allclose(views.normals.norm(dim=-1), views.valid.float(), atol=1e-4)
    rays = torch.nn.functional.normalize(points - views.world_from_cam[:, None, None, :3, 3], dim=-1)
    assert ((turned * rays).sum(-1)[views.valid] < 1e-3).all()


def test_depth_is_consistent_between_views(world, views):
    """What view 0 sees is nowhere behind what view 1 sees by more than occlusion allows."""
    points = view_points(views)[0][views.valid[0]]
    inverse = torch.linalg.inv(views.world_from_cam[1])
    p = points @ inverse[:3, :3].T + inverse[:3, 3]
    u = views.K[1, 0, 0] * p[:, 0] / p[:, 2] + views.K[1, 0, 2]
    v = views.K[1, 1, 1] * p[:, 1] / p[:, 2] + views.K[1, 1, 2]
    inside = (p[:, 2] > 0.1) & (u > 1) & (u < SIZE[1] - 1) & (v > 1) & (v < SIZE[0] - 1)
    other = views.depth[1][v[inside].long(), u[inside].long()]
    other = torch.where(other > 0, other, 1e4)
    z = p[inside, 2]
    assert inside.sum() > 300
    # Never clearly in front of the other view's surface, apart from outlines within the pixel.
    assert (z < other * 0.95 - 0.02).float().mean() < 0.05
    assert ((z - other).abs() < 0.03 * z).float().mean() > 0.4


def test_image_and_albedo_are_sane(views):
    assert torch.isfinite(views.radiance).all() and (views.radiance >= 0).all()
    assert views.image.min() >= 0 and views.image.max() <= 1
    assert views.image.std() > 0.03
    assert (views.albedo.amax() <= 1) and (views.instance[~views.valid] == -1).all()
    assert len(views.instance.unique()) >= 3


def test_same_seed_same_bytes(world, bank):
    config = small_config("room")
    a, b = (make_world(11, config) for _ in range(2))
    assert torch.equal(a.slots, b.slots) and torch.equal(a.bank.texels, b.bank.texels)
    sequence = make_sequences(a, views=2, seed=4, size=SIZE)
    pictures = [
        w.render(cameras_of(w, sequence, SIZE), generator=torch.Generator().manual_seed(2)).image
        for w in (a, b)
    ]
    assert torch.equal(*pictures)
    assert not torch.equal(a.slots, make_world(12, config, bank=a.bank).slots)


def test_tiles_and_whole_images_agree(world):
    sequence = make_sequences(world, views=2, seed=1, size=SIZE)
    cameras = (sequence.K, sequence.world_from_cam)
    tiled = world.render(cameras, SIZE, tile=32)
    whole = world.render(cameras, SIZE, tile=None)
    assert torch.equal(tiled.depth, whole.depth)
    assert (tiled.slot == whole.slot).all()
    assert (tiled.radiance - whole.radiance).abs().max() < 1e-4


def test_batch_equals_single_worlds(bank):
    config = small_config("objects")
    both = make_worlds([1, 2], config, bank=bank)
    sequence = make_sequences(both, views=2, seed=0, size=SIZE)
    views = both.render((sequence.K, sequence.world_from_cam), SIZE, tile=None)
    assert views.image.shape == (2, 2, 3, *SIZE)
    one = both.select(1).render((sequence.K[1:], sequence.world_from_cam[1:]), SIZE, tile=None)
    assert torch.allclose(views.depth[1], one.depth[0], atol=1e-5)
    assert torch.allclose(views.radiance[1], one.radiance[0], atol=1e-4)


def test_supersampling_changes_only_light(room):
    sequence = make_sequences(room, views=2, seed=1, size=SIZE)
    cameras = (sequence.K, sequence.world_from_cam)
    plain, smooth = room.render(cameras, SIZE), room.render(cameras, SIZE, supersample=2)
    assert torch.equal(plain.depth, smooth.depth)
    changed = ((plain.radiance - smooth.radiance).abs().amax(2) > 1e-5).float().mean()
    assert 0 < changed < 0.6


class NoSync(TorchDispatchMode):
    """Fails on operations that make the host wait for the device or whose shape depends on data."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        assert not any(word in str(func) for word in self.forbidden), f"{func} waits for the device"
        if "aten.index." in str(func) or "index_put" in str(func):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "boolean indexing"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("supersample", [1, 2])
def test_rendering_never_waits_for_the_device(world, supersample):
    from relief3d.worlds import CameraEffects, apply_effects, flow_between

    sequence = make_sequences(world, views=2, seed=1, size=(24, 32), kind="orbit")
    cameras = (sequence.K, sequence.world_from_cam)
    generator = torch.Generator().manual_seed(0)
    with NoSync() as watch:
        views = world.render(cameras, (24, 32), tile=None, generator=generator, supersample=supersample)
        apply_effects(views.radiance, CameraEffects(), generator)
        flow_between(world, views, views)
    assert watch.count > 500


def test_rendering_rejects_bad_cameras(room, bank):
    from relief3d.core.contract import Camera

    with pytest.raises(InputError, match="intrinsics"):
        room.render([Camera(32, 24)])
    with pytest.raises(InputError, match="no camera"):
        room.render([])
    with pytest.raises(InputError, match="family"):
        make_world(0, small_config("castle"), bank=bank)


def test_imports_only_torch_and_numpy():
    code = (
        "import sys; import relief3d.worlds, relief3d.worlds.compiled; "
        "bad = {'scipy', 'skimage', 'PIL', 'cv2', 'trimesh', 'open3d', 'pycolmap', 'tyro'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
