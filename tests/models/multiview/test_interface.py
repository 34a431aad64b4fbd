"""Every network behind one interface: what comes out fits together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_points
from relief3d.models.multiview.configs import pi3_config, pi3x_config, reliev3r_config, vggt_config
from relief3d.models.multiview.interface import (
    InferenceOptions,
    Known,
    autocast_dtype,
    intrinsics_from_points,
    wrap,
)
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pi3x import Pi3X
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Vggt


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    tiny = pi3_config("nano")
    return {
        "vggt": Vggt(vggt_config("nano")),
        "pi3": Pi3(tiny),
        "pi3x": Pi3X(pi3x_config("nano")),
        "reliev3r": Reliev3rNet(reliev3r_config("nano", fov_head=True)),
    }


def images() -> torch.Tensor:
    return torch.rand(1, 3, 3, 28, 42, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["vggt", "pi3", "pi3x", "reliev3r"])
def test_predictions_fit_together(name: str) -> None:
    model = wrap(networks()[name])
    out = model.predict(images())
    assert model.name == name and model.patch == 14
    assert out.depth is not None and out.cam_points is not None and out.world_points is not None
    assert out.world_from_cam is not None and out.K is not None and out.depth_confidence is not None
    assert out.depth.shape == out.depth_confidence.shape == (1, 3, 28, 42) and (out.depth > 0).all()
    assert torch.allclose(out.cam_points[..., 2], out.depth, rtol=1e-5)
    R = out.world_from_cam[..., :3, :3]
    assert torch.allclose(R @ R.mT, torch.eye(3).expand_as(R), atol=1e-4)
    moved = out.cam_points[0, 2] @ R[0, 2].T + out.world_from_cam[0, 2, :3, 3]
    assert torch.allclose(moved, out.world_points[0, 2], atol=1e-3 * float(moved.abs().max()))
    assert out.K.shape == (1, 3, 3, 3)
    assert out.metric == (name == "pi3x")


def test_bfloat16_stays_close_on_the_cpu() -> None:
    net = networks()["vggt"]
    exact = wrap(net).predict(images()).depth
    rough = wrap(net, InferenceOptions(precision="bfloat16")).predict(images()).depth
    assert exact is not None and rough is not None and rough.dtype == torch.float32
    assert float(((rough - exact).abs() / exact).max()) < 0.05
    assert not torch.equal(rough, exact)


def test_intrinsics_are_recovered_from_points() -> None:
    K = torch.tensor([[50.0, 0, 21], [0, 55, 14], [0, 0, 1]]).double()
    depth = 1 + torch.rand(28, 42, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(intrinsics_from_points(depth_to_points(depth, K)), K, atol=1e-9)
    points = depth_to_points(depth, K)
    points[:10] = 100.0
    weight = torch.ones(28, 42, dtype=torch.float64)
    weight[:10] = 0
    assert torch.allclose(intrinsics_from_points(points, weight), K, atol=1e-9)


def test_given_intrinsics_are_used() -> None:
    K = torch.tensor([[50.0, 0, 21], [0, 55, 14], [0, 0, 1]]).expand(1, 3, 3, 3)
    out = wrap(networks()["reliev3r"]).predict(images(), Known(K=K))
    assert out.K is not None and torch.equal(out.K, K)
    torch.manual_seed(0)
    blind = wrap(Reliev3rNet(reliev3r_config("nano")))
    with pytest.raises(InputError, match="needs the intrinsics"):
        blind.predict(images())


def test_bad_pictures_and_settings_are_refused() -> None:
    model = wrap(networks()["pi3"])
    with pytest.raises(InputError, match="do not divide into patches"):
        model.predict(torch.rand(1, 2, 3, 30, 42))
    with pytest.raises(InputError, match=r"must be \(B, N, 3, H, W\)"):
        model.predict(torch.rand(2, 3, 28, 42))
    with pytest.raises(InputError, match="must be"):
        model.predict(torch.rand(1, 0, 3, 28, 42))
    with pytest.raises(InputError, match="float16 is not for CPUs"):
        wrap(networks()["pi3"], InferenceOptions(precision="float16")).predict(images())
    with pytest.raises(InputError, match="not a multi-view network"):
        wrap(nn.Linear(1, 1))
    assert autocast_dtype("auto", torch.device("cpu")) is None
