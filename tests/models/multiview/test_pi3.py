"""pi3 against the golden values of the published code, and its symmetry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from corpora.golden import golden, part, worst
from relief3d.models.multiview.pi3 import Pi3, Pi3Config
from relief3d.nn.vit import VitConfig

TINY = Pi3Config(
    vit=VitConfig(48, 2, 4, img_size=70, mask_token=False),
    depth=4, heads=4, head_dim=48, head_heads=4, camera_dim=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> dict[str, torch.Tensor]:
    return golden(shared_data, "pi3_tiny")


@pytest.fixture(scope="module")
def network(reference: dict[str, torch.Tensor]) -> Pi3:
    net = Pi3(TINY).eval()
    net.load_state_dict(part(reference, "weights."), strict=True)
    return net


@torch.no_grad()
def test_every_output_matches(reference: dict[str, torch.Tensor], network: Pi3) -> None:
    out = network(reference["inputs.images"])
    assert worst(out.local_points, reference["outputs.local_points"]) < 2e-5
    assert worst(out.world_points, reference["outputs.points"]) < 5e-5
    assert worst(out.confidence, reference["outputs.conf"][..., 0]) < 2e-5
    assert worst(out.world_from_cam, reference["outputs.camera_poses"]) < 2e-5


@torch.no_grad()
def test_intermediates_match(reference: dict[str, torch.Tensor], network: Pi3) -> None:
    images = reference["inputs.images"]
    patches = network.embed(images.flatten(0, 1), None)
    assert worst(patches, reference["intermediates.encoder_patch_tokens"]) < 2e-5
    layers = network.decode(patches, 3, (4, 6), keep=range(4))
    for i in range(4):
        shape = reference[f"intermediates.decoder.{i}"].shape
        assert worst(layers[i].reshape(shape), reference[f"intermediates.decoder.{i}"]) < 2e-5
    hidden = torch.cat([layers[2], layers[3]], -1)
    rope = network.head_rope(4, 6, 5, hidden.device, hidden.dtype)
    for name in ("point", "conf", "camera"):
        decoder = getattr(network, f"{name}_decoder")
        assert worst(decoder(hidden, rope), reference[f"intermediates.{name}_decoder"]) < 2e-5


@torch.no_grad()
def test_raw_rotations_match(reference: dict[str, torch.Tensor], network: Pi3) -> None:
    raw: list[torch.Tensor] = []
    hook = network.camera_head.fc_rot.register_forward_hook(lambda _m, _i, out: raw.append(out))
    network(reference["inputs.images"], chunk=None)
    hook.remove()
    assert worst(raw[0], reference["intermediates.camera_rot9d"]) < 2e-5


@torch.no_grad()
def test_permuting_the_views_permutes_the_answer(reference: dict[str, torch.Tensor], network: Pi3) -> None:
    images, order = reference["inputs.images"], [2, 0, 1]
    one, two = network(images), network(images[:, order])
    assert torch.allclose(one.local_points[:, order], two.local_points, rtol=1e-4, atol=1e-5)
    assert torch.allclose(one.world_from_cam[:, order], two.world_from_cam, atol=1e-5)
    assert torch.allclose(one.confidence[:, order], two.confidence, atol=1e-5)


@torch.no_grad()
def test_chunks_and_batches_change_nothing(reference: dict[str, torch.Tensor], network: Pi3) -> None:
    images = reference["inputs.images"]
    whole, pieces = network(images, chunk=None), network(images, chunk=1)
    assert torch.allclose(whole.world_points, pieces.world_points, rtol=1e-4, atol=1e-5)
    both = network(torch.cat([images, 1 - images]))
    assert torch.allclose(both.local_points[1:], network(1 - images).local_points, rtol=1e-4, atol=1e-5)


def test_poses_are_rigid_whatever_the_weights() -> None:
    torch.manual_seed(0)
    out = Pi3(TINY).eval()(torch.rand(1, 2, 3, 28, 42))
    R = out.world_from_cam[..., :3, :3]
    assert torch.allclose(R @ R.mT, torch.eye(3).expand_as(R), atol=1e-5)
    assert torch.allclose(torch.linalg.det(R), torch.ones(1, 2), atol=1e-5)


def test_full_size_has_the_published_parameters() -> None:
    with torch.device("meta"):
        net = Pi3()

    def millions(name: str) -> float:
        return round(sum(p.numel() for p in net.get_submodule(name).parameters()) / 1e6, 2)

    assert len(net.state_dict()) == 1210
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 958.70
    assert [millions(n) for n in ("encoder", "decoder", "point_decoder", "camera_decoder")] == [
        304.37, 453.55, 66.13, 65.60,
    ]  # fmt: skip
    assert [millions(n) for n in ("camera_head", "point_head", "conf_head")] == [2.11, 0.60, 0.20]


def test_training_clamps_the_log_depth(network: Pi3, reference: dict[str, torch.Tensor]) -> None:
    net = Pi3(TINY)
    net.load_state_dict(part(reference, "weights."))
    with torch.no_grad():
        net.point_head.proj.bias.fill_(200.0)
        assert torch.isinf(net.eval()(reference["inputs.images"]).local_points).any()
        assert torch.isfinite(net.train()(reference["inputs.images"]).local_points).all()
