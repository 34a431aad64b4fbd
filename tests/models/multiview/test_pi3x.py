"""Pi3X: what conditions must and must not do; its layout is in test_layouts_full.py."""

from __future__ import annotations

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import make_rigid
from relief3d.models.multiview.interface import Known, wrap
from relief3d.models.multiview.pi3 import Pi3Config
from relief3d.models.multiview.pi3x import Conditions, Pi3X, Pi3XConfig, condition_unit
from relief3d.nn.prope import projective_attention
from relief3d.nn.vit import VitConfig

TINY = Pi3XConfig(
    decoder=Pi3Config(
        vit=VitConfig(64, 2, 4, img_size=70, mask_token=False),
        depth=4, heads=4, head_dim=64, head_depth=1, head_heads=4, camera_dim=32,
    ),
    inject_after=(1,), widths=(32, 32, 32), metric_dim=32, metric_heads=4, metric_depth=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def network() -> Pi3X:
    generator = torch.Generator().manual_seed(0)
    net = Pi3X(TINY).eval()
    with torch.no_grad():  # zero-initialised parts would hide what they do
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return net.double()


def poses(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    turns, shifts = torch.randn(2, 1, count, 3, generator=generator, dtype=torch.float64)
    return make_rigid(matrix_from_axis_angle(0.3 * turns), shifts)


def images() -> torch.Tensor:
    return torch.rand(1, 3, 3, 28, 42, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@torch.no_grad()
def test_shapes_and_geometry(network: Pi3X) -> None:
    out = network(images())
    assert out.local_points.shape == (1, 3, 28, 42, 3) and out.confidence.shape == (1, 3, 28, 42)
    assert out.metric.shape == (1,) and float(out.metric) > 0
    assert torch.allclose(out.local_points, out.rays * out.local_points[..., 2:], rtol=1e-4, atol=1e-6)
    R = out.world_from_cam[..., :3, :3]
    assert torch.allclose(R @ R.mT, torch.eye(3).double().expand_as(R), atol=1e-5)
    assert torch.allclose(
        out.world_from_cam[..., 3, :], torch.tensor([0.0, 0, 0, 1]).double().expand(1, 3, 4)
    )
    p, q = out.local_points[0, 1, 3, 4], out.world_points[0, 1, 3, 4]
    assert torch.allclose(R[0, 1] @ p + out.world_from_cam[0, 1, :3, 3], q, atol=1e-4)


@torch.no_grad()
def test_chunks_and_order_of_views_change_nothing(network: Pi3X) -> None:
    x, order = images(), [2, 0, 1]
    whole, pieces, turned = network(x, chunk=None), network(x, chunk=1), network(x[:, order])
    assert torch.allclose(whole.local_points, pieces.local_points, rtol=1e-3, atol=1e-4)
    assert torch.allclose(whole.confidence[:, order], turned.confidence, atol=1e-3)
    assert torch.allclose(whole.metric, turned.metric, rtol=1e-4)


@torch.no_grad()
def test_conditions_count_only_where_flagged(network: Pi3X) -> None:
    x, generator = images(), torch.Generator().manual_seed(3)
    depth = 1 + torch.rand(1, 3, 28, 42, generator=generator, dtype=torch.float64)
    K = torch.tensor([[40.0, 0, 21], [0, 40, 14], [0, 0, 1]]).double().expand(1, 3, 3, 3)
    none = torch.zeros(1, 3, dtype=torch.bool)
    plain = network(x).confidence
    off = network(x, Conditions(depth, none, K, none, poses(), none)).confidence
    assert torch.allclose(plain, off, atol=1e-5)
    for given in (Conditions(depth=depth), Conditions(K=K), Conditions(world_from_cam=poses())):
        assert not torch.allclose(plain, network(x, given).confidence, atol=1e-3)
    one = torch.tensor([[True, False, False]])
    lone = network(x, Conditions(world_from_cam=poses(), has_pose=one)).confidence
    assert torch.allclose(plain, lone, atol=1e-5), "a lone pose carries nothing"


@torch.no_grad()
def test_given_geometry_may_come_in_any_frame_and_unit(network: Pi3X) -> None:
    x, generator = images(), torch.Generator().manual_seed(3)
    depth, T = 1 + torch.rand(1, 3, 28, 42, generator=generator, dtype=torch.float64), poses()
    turn = matrix_from_axis_angle(torch.tensor([0.4, -0.2, 0.9]).double())
    moved = make_rigid(turn, torch.tensor([5.0, 1, -2]).double()) @ T
    larger = T.clone()
    larger[..., :3, 3] *= 7
    one = network(x, Conditions(depth=depth, world_from_cam=T)).confidence
    two = network(x, Conditions(depth=depth, world_from_cam=moved)).confidence
    three = network(x, Conditions(depth=7 * depth, world_from_cam=larger)).confidence
    assert torch.allclose(one, two, atol=1e-3) and torch.allclose(one, three, atol=1e-3)


def test_projective_attention_depends_on_relative_poses_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 3 * 6, 16, generator=generator, dtype=torch.float64)
    T = poses().double()
    turn = matrix_from_axis_angle(torch.tensor([0.4, -0.2, 0.9]).double())
    G = make_rigid(turn, torch.tensor([1.0, 1, -2]).double())
    one = projective_attention(q, k, v, T, (2, 3))
    two = projective_attention(q, k, v, T @ G, (2, 3))
    assert torch.allclose(one, two, atol=1e-9)
    assert not torch.allclose(one, projective_attention(q, k, v, G @ T, (2, 3)), atol=1e-3)


def test_units_of_what_is_given() -> None:
    depth = torch.zeros(2, 2, 2, 2)
    depth[0, 0, 0] = torch.tensor([2.0, 4.0])
    assert condition_unit(Conditions(depth=depth)).tolist() == [3.0, 1.0]
    T = torch.eye(4).repeat(2, 3, 1, 1)
    T[0, 1, 0, 3], T[0, 2, 0, 3], T[1, 1, 0, 3] = 1.0, 3.0, 0.01
    assert condition_unit(Conditions(world_from_cam=T)).tolist() == [2.0, 1.0]


def test_a_network_for_pictures_only_refuses_conditions() -> None:
    with torch.device("meta"):
        net = Pi3X(Pi3XConfig(multimodal=False))
    assert not any(k.startswith("depth_encoder") for k in net.state_dict())
    with pytest.raises(ValueError, match="pictures only"):
        net(torch.zeros(1, 2, 3, 28, 28, device="meta"), Conditions())


@torch.no_grad()
def test_placeholders_of_unknown_views_are_never_read(network: Pi3X) -> None:
    x, T = images(), poses()
    K = torch.tensor([[40.0, 0, 21], [0, 40, 14], [0, 0, 1]]).double().repeat(1, 3, 1, 1)
    some = torch.tensor([[False, True, True]])
    results = []
    for hole in (0.0, torch.nan, 7.0):
        poses_given, K_given = T.clone(), K.clone()
        poses_given[:, 0], K_given[:, 0] = hole, hole
        given = Conditions(K=K_given, has_rays=some, world_from_cam=poses_given, has_pose=some)
        results.append(network(x, given).confidence)
        assert torch.equal(condition_unit(given), (T[:, 2, :3, 3] - T[:, 1, :3, 3]).norm(dim=-1))
    assert torch.isfinite(results[0]).all()
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    turn = matrix_from_axis_angle(torch.tensor([0.4, -0.2, 0.9]).double())
    moved = make_rigid(turn, torch.tensor([5.0, 1, -2]).double()) @ T
    elsewhere = network(x, Conditions(K=K, has_rays=some, world_from_cam=moved, has_pose=some)).confidence
    assert torch.allclose(results[0], elsewhere, atol=1e-6), "the frame of the given poses must not matter"


@torch.no_grad()
def test_the_interface_hands_on_what_is_known_for_some_views(network: Pi3X) -> None:
    single = Pi3X(TINY).eval()
    single.load_state_dict(network.state_dict())
    model, x, T = wrap(single), images().float(), poses().float()
    K = torch.tensor([[40.0, 0, 21], [0, 40, 14], [0, 0, 1]]).repeat(1, 3, 1, 1)
    depth = 1 + torch.rand(1, 3, 28, 42, generator=torch.Generator().manual_seed(3))
    depth[:, 1:] = 0
    some, rest = torch.tensor([[True, True, False]]), torch.tensor([[True, False, False]])
    seen = model.predict(x, Known(K, T, depth, has_K=rest, has_pose=some)).depth
    direct = single(x, Conditions(depth, rest, K, rest, T, some)).local_points[..., 2]
    assert seen is not None and torch.equal(seen, direct)
    for other in (Known(K, T, depth), Known(K, T, depth, has_K=rest), Known(K, T, None, rest, some)):
        changed = model.predict(x, other).depth
        assert changed is not None and not torch.allclose(changed, seen, rtol=1e-4)
    lone = model.predict(x[:, :1], Known(world_from_cam=T[:, :1])).depth
    alone = model.predict(x[:, :1]).depth
    assert lone is not None and alone is not None and torch.allclose(lone, alone, rtol=1e-5)


def test_units_are_those_of_each_sequence() -> None:
    """A sequence with depth, one whose depth is all unknown, one whose depth is not flagged, one that stands still."""
    depth = torch.full((4, 3, 2, 2), 5.0)
    depth[1] = 0
    T = torch.eye(4).repeat(4, 3, 1, 1)
    T[:3, 1, 0, 3], T[:3, 2, 0, 3] = 1.0, 3.0
    has = torch.tensor([[True, False, True], [True] * 3, [False] * 3, [False] * 3])
    depth[0, 1] = 100.0
    unit = condition_unit(Conditions(depth, has, world_from_cam=T))
    assert unit.tolist() == [5.0, 2.0, 2.0, 1.0]
    assert condition_unit(Conditions(torch.zeros(4, 3, 2, 2), world_from_cam=T)).tolist() == [
        2.0,
        2.0,
        2.0,
        1.0,
    ]
    assert condition_unit(Conditions(depth[:, :1], has[:, :1], world_from_cam=T[:, :1])).tolist() == [
        5,
        1,
        1,
        1,
    ]
    for hole in (torch.nan, torch.inf, -torch.inf, -7.0):
        broken = depth.clone()
        broken[0, 0, 0, 0] = hole
        assert torch.equal(condition_unit(Conditions(broken, has, world_from_cam=T)), unit), hole


@torch.no_grad()
def test_the_unit_of_a_sequence_without_depth_reaches_the_poses(network: Pi3X) -> None:
    """In a batch with depth in one sequence only, the other says what it says by itself with poses alone."""
    x = torch.rand(2, 3, 3, 28, 42, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    depth, T = torch.zeros(2, 3, 28, 42, dtype=torch.float64), poses().repeat(2, 1, 1, 1)
    depth[0] = 3.0
    has = torch.tensor([[True] * 3, [False] * 3])
    both = network(x, Conditions(depth, has, world_from_cam=T))
    alone = network(x[1:], Conditions(world_from_cam=T[1:]))
    assert torch.allclose(both.confidence[1:], alone.confidence, atol=1e-9)
    larger = T.clone()
    larger[1, :, :3, 3] *= 9
    scaled = network(x, Conditions(depth, has, world_from_cam=larger))
    assert torch.allclose(both.confidence, scaled.confidence, atol=1e-9), "poses alone have no unit"


@pytest.mark.parametrize("hole", [torch.nan, torch.inf, -torch.inf, -2.0])
@torch.no_grad()
def test_depth_that_is_none_is_unknown(network: Pi3X, hole: float) -> None:
    depth = 1 + torch.rand(1, 3, 28, 42, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    known, broken = depth.clone(), depth.clone()
    known[0, 0, 3:9, 5], broken[0, 0, 3:9, 5] = 0, hole
    known[0, 2], broken[0, 2] = 0, hole
    want = network(images(), Conditions(known))
    assert torch.isfinite(want.local_points).all()
    assert torch.equal(want.local_points, network(images(), Conditions(broken)).local_points)
    single = Pi3X(TINY).eval()
    single.load_state_dict(network.state_dict())
    told = [wrap(single).predict(images().float(), Known(depth=d.float())).depth for d in (known, broken)]
    assert told[0] is not None and told[1] is not None and torch.equal(told[0], told[1])


@torch.no_grad()
def test_matrices_that_are_not_finite_are_unknown(network: Pi3X) -> None:
    K = torch.tensor([[40.0, 0, 21], [0, 40, 14], [0, 0, 1]]).double().repeat(1, 3, 1, 1)
    some = torch.tensor([[True, True, False]])
    want = network(images(), Conditions(K=K, has_rays=some, world_from_cam=poses(), has_pose=some)).confidence
    broken_K, broken_T = K.clone(), poses()
    broken_K[0, 2, 0, 0], broken_T[0, 2, 1, 3] = torch.nan, torch.inf
    assert torch.equal(want, network(images(), Conditions(K=broken_K, world_from_cam=broken_T)).confidence)


def test_what_does_not_fit_the_pictures_is_refused(network: Pi3X) -> None:
    K, T = torch.eye(3).double().repeat(1, 3, 1, 1), poses()
    depth, has = torch.ones(1, 3, 28, 42, dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    five = torch.ones(1, 5, dtype=torch.bool)
    model, x = wrap(network), images()
    for wrong in (
        {"K": K.repeat(1, 2, 1, 1)[:, :5]}, {"K": K[0]}, {"K": K[:, :2]}, {"world_from_cam": T[:, :2]},
        {"world_from_cam": T[..., :3, :]}, {"depth": depth[..., 1:]}, {"depth": depth[:, :1]},
        {"depth": depth.repeat(2, 1, 1, 1)}, {"depth": depth.to(torch.int32)},
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"does not fit|floating-point"):
            network(x, Conditions(**wrong))
        with pytest.raises(InputError, match=r"does not fit|floating-point"):
            model.predict(x, Known(**wrong))
    for given in (
        Conditions(depth, five),
        Conditions(K=K, has_rays=five),
        Conditions(world_from_cam=T, has_pose=five),
    ):
        with pytest.raises(InputError, match=r"has_\w+ of shape \(1, 5\)"):
            network(x, given)
    for known in (Known(K, has_K=five), Known(K, T, has_pose=five), Known(K, T, has_pose=has[0])):
        with pytest.raises(InputError, match=r"has_\w+ of shape"):
            model.predict(x, known)
    with pytest.raises(InputError, match="divide 8-bit values by 255"):
        model.predict((x * 255).to(torch.uint8))
