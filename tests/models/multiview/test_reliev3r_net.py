"""The Reliev3R network: published size, ranges, geometry; and the named sizes of all networks."""

from __future__ import annotations

import math

import pytest
import torch

from relief3d.geometry.projection import fov_from_intrinsics
from relief3d.models.multiview.configs import SIZES, pi3_config, reliev3r_config, vggt_config
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.reliev3r import Reliev3rNet, intrinsics_of_fov
from relief3d.models.multiview.vggt import Vggt


def millions(net: torch.nn.Module) -> float:
    return round(sum(p.numel() for p in net.parameters()) / 1e6, 2)


def test_full_size_has_the_published_parameters() -> None:
    with torch.device("meta"):
        net = Reliev3rNet()
    parts = (
        net.encoder,
        net.decoder,
        net.depth_decoder,
        net.conf_decoder,
        net.camera_decoder,
        net.camera_head,
    )
    assert [millions(p) for p in parts] == [86.58, 170.15, 65.60, 65.60, 65.08, 2.11]
    assert millions(net.depth_head) == millions(net.conf_head) == 0.20
    assert round(millions(net), 1) == 455.5


@pytest.mark.parametrize("size", SIZES)
def test_every_named_size_can_be_built(size: str) -> None:
    with torch.device("meta"):
        nets = [
            Vggt(vggt_config(size)),  # type: ignore[arg-type]
            Pi3(pi3_config(size)),  # type: ignore[arg-type]
            Reliev3rNet(reliev3r_config(size, fov_head=True)),  # type: ignore[arg-type]
        ]
    order = SIZES.index(size)  # type: ignore[arg-type]
    low, high = ((0.1, 2), (1, 6), (5, 25), (50, 150), (400, 1300))[order]
    assert all(low < millions(n) < high for n in nets)


@torch.no_grad()
def test_outputs_have_their_ranges_and_fit_together() -> None:
    torch.manual_seed(0)
    net = Reliev3rNet(reliev3r_config("nano")).eval()
    K = torch.tensor([[30.0, 0, 20], [0, 32.0, 15], [0, 0, 1]]).expand(1, 3, 3, 3)
    out = net(torch.rand(1, 3, 3, 28, 42), K)
    assert (out.depth > 0).all() and (out.confidence > 0).all() and (out.confidence < 2).all()
    assert torch.equal(out.K, K) and out.fov is None
    assert torch.allclose(out.local_points[..., 2], out.depth)
    x, y, z = out.local_points[0, 1, 5, 7]
    assert torch.allclose(30 * x / z + 20, torch.tensor(7.5), atol=1e-4)
    assert torch.allclose(32 * y / z + 15, torch.tensor(5.5), atol=1e-4)
    R, t = out.world_from_cam[0, 1, :3, :3], out.world_from_cam[0, 1, :3, 3]
    assert torch.allclose(out.world_points[0, 1, 5, 7], R @ torch.stack([x, y, z]) + t, atol=1e-5)


@torch.no_grad()
def test_views_may_come_in_any_order() -> None:
    torch.manual_seed(0)
    net = Reliev3rNet(reliev3r_config("nano", fov_head=True)).eval()
    images, order = torch.rand(1, 3, 3, 28, 42), [1, 2, 0]
    one, two = net(images), net(images[:, order], chunk=1)
    assert torch.allclose(one.depth[:, order], two.depth, rtol=1e-4)
    assert torch.allclose(one.world_from_cam[:, order], two.world_from_cam, atol=1e-5)
    assert one.fov is not None and two.fov is not None
    assert torch.allclose(one.fov[:, order], two.fov, atol=1e-5)


@torch.no_grad()
def test_predicted_fields_of_view_are_clipped_and_become_intrinsics() -> None:
    torch.manual_seed(0)
    net = Reliev3rNet(reliev3r_config("nano", fov_head=True)).eval()
    last = net.fov_head[2]
    assert isinstance(last, torch.nn.Linear)
    last.bias.copy_(torch.tensor([50.0, -50.0]))
    out = net(torch.rand(1, 2, 3, 28, 42))
    assert out.fov is not None
    assert torch.allclose(out.fov[0, 0], torch.tensor([math.radians(170), math.radians(5)]))
    K = intrinsics_of_fov(torch.tensor([1.0, 1.2]), (28, 42))
    assert torch.allclose(
        fov_from_intrinsics(K, 42, 28).flatten().sort().values, torch.tensor([1.0, 1.2]), atol=1e-5
    )


def test_unknown_intrinsics_need_the_head() -> None:
    with torch.device("meta"):
        net = Reliev3rNet(reliev3r_config("nano"))
    with pytest.raises(ValueError, match="needs the intrinsics"):
        net(torch.zeros(1, 2, 3, 28, 28, device="meta"))
