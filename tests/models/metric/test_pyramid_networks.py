"""What the pyramid networks promise beyond their layout, on nano sizes."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from relief3d.core.tensor_memory import PeakTensorBytes
from relief3d.models.metric.decoder import HeadConfig, make_head, run_head
from relief3d.models.metric.injection import INJECTIONS, InjectionKind
from relief3d.models.metric.networks import (
    DepthMap,
    DepthMapConfig,
    DepthPro,
    DepthProConfig,
    PyramidNetwork,
    Teacher,
)
from relief3d.models.metric.sizes import SIZES, depth_map_config, depth_pro_config, teacher_config
from relief3d.nn.blocks import Block
from relief3d.nn.dinov3 import DinoV3Config


def pictures(count: int = 1, side: int = 128, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def conditions(count: int = 1, side: int = 128) -> Tensor:
    x = pictures(count, side, 7)
    x[:, 2] = (x[:, 2] > 0.9).float()
    return x


def build(name: str, seed: int = 0, injection: InjectionKind = "dpt") -> PyramidNetwork:
    torch.manual_seed(seed)
    if name == "depth_pro":
        return DepthPro(depth_pro_config("nano")).eval()
    if name == "depth_map":
        return DepthMap(depth_map_config("nano")).eval()
    backbone = "depth_pro" if name == "teacher_vit" else "dinov3"
    return Teacher(teacher_config("nano", backbone=backbone, injection=injection)).eval()


@torch.no_grad()
def shaken(network: PyramidNetwork, seed: int = 5) -> PyramidNetwork:
    """No weight is zero any more."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return network


NAMES = ("depth_pro", "depth_map", "teacher")


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("name", ["teacher", "teacher_vit"])
@torch.no_grad()
def test_a_fresh_teacher_answers_as_without_its_condition(name: str, injection: InjectionKind) -> None:
    network = build(name, injection=injection)
    images = pictures()
    alone = network(images).canonical
    assert torch.equal(network(images, conditions()).canonical, alone), "bit for bit"
    # The network without any means to take a condition, with the same weights.
    bare = build(name, seed=1, injection="parallel")
    state = {k: v for k, v in network.state_dict().items() if ".prompt." not in k and "injection" not in k}
    left = bare.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and all(k.startswith("injection.") for k in left.missing_keys)
    assert torch.equal(bare(images).canonical, alone)


@pytest.mark.parametrize("injection", INJECTIONS)
def test_every_injection_learns_from_its_condition(injection: InjectionKind) -> None:
    network = build("teacher", injection=injection).train()
    images, condition = pictures(), conditions()
    optimiser = torch.optim.SGD(
        [p for k, p in network.named_parameters() if "prompt" in k or "injection" in k], 0.5
    )
    for _ in range(2):
        optimiser.zero_grad()
        (network(images, condition).canonical - condition[:, 0]).square().mean().backward()
        optimiser.step()
    network.eval()
    with torch.no_grad():
        alone, told = network(images).canonical, network(images, condition).canonical
        other = network(images, condition.flip(-1)).canonical
    assert not torch.equal(alone, told) and not torch.equal(told, other)
    # After the zero layers have moved, what lies before them gets gradients as well.
    optimiser.zero_grad()
    network(images, condition).canonical.square().mean().backward()
    own = [(k, p) for k, p in network.named_parameters() if "prompt" in k or "injection" in k]
    assert own and all(
        p.grad is not None and bool(p.grad.any()) for k, p in own if not k.endswith("qkv.bias")
    )


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_pictures_of_a_batch_do_not_mix(name: str) -> None:
    network = shaken(build(name))
    images = pictures(2)
    condition = conditions(2) if name == "teacher" else None
    together = network(images, condition)
    for i in range(2):
        one = network(images[i : i + 1], None if condition is None else condition[i : i + 1])
        assert torch.allclose(one.canonical[0], together.canonical[i], atol=1e-5)
        if together.fov_deg is not None and one.fov_deg is not None:
            assert torch.allclose(one.fov_deg[0], together.fov_deg[i], atol=1e-5)
    spread = float(together.canonical.std())
    assert float((together.canonical[0] - together.canonical[1]).abs().mean()) > 0.02 * spread


@pytest.mark.parametrize("injection", ["dpt", "controlnet"])
@torch.no_grad()
def test_small_steps_say_the_same_with_less_memory(injection: InjectionKind) -> None:
    network = shaken(build("teacher", injection=injection))
    images, condition = pictures(), conditions()
    with PeakTensorBytes() as whole:
        reference = network(images, condition).canonical
    for chunk, rows in ((4, 5), (64, 64)):
        with PeakTensorBytes() as parts:
            found = network(images, condition, chunk=chunk, rows=rows).canonical
        assert float((found - reference).abs().max()) < 1e-5 * float(reference.abs().max())
        if chunk < 64:
            assert parts.peak < 0.7 * whole.peak


@torch.no_grad()
def test_nothing_is_kept_after_a_pass() -> None:
    network = build("depth_map")
    with PeakTensorBytes() as counted:
        out = network(pictures())
        assert counted.peak > 20 * counted.live
        size = out.canonical.untyped_storage().nbytes()
    # Only the result is alive: hooks and encodings are not.
    assert counted.live <= 2 * size


@pytest.mark.parametrize("extra", [0, 4])
@torch.no_grad()
def test_a_head_in_strips_sees_its_neighbours(extra: int) -> None:
    torch.manual_seed(0)
    head = make_head(HeadConfig(6, extra, 5, 0.5)).eval()
    x = torch.randn(2, 6, 40, 9)
    whole = run_head(head, x, None)
    for rows in (1, 3, 16, 39):
        assert torch.allclose(run_head(head, x, rows), whole, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_nano_trains_in_well_under_a_second(name: str) -> None:
    network = build(name).train()
    images, condition = pictures(), conditions() if name == "teacher" else None

    def step() -> float:
        began = time.process_time()
        out = network(images, condition)
        total = out.canonical.mean() + (0 if out.fov_deg is None else out.fov_deg.mean())
        total.backward()
        return time.process_time() - began

    assert min(step() for _ in range(3)) < 1.0, "of processor time"
    unused = {k for k, p in network.named_parameters() if p.grad is None}
    spare = {k for k in dict(network.named_parameters()) if k.startswith("decoder.fusions.4.resnet1.")}
    assert unused == (spare if name != "depth_map" else set())


@torch.no_grad()
def test_order_of_skips() -> None:
    """Which block is added at which size. Every source is marked by a constant that its upsampling passes on."""
    for order, expected in (
        ("inverse", {32: [4], 16: [3, 2, 1], 8: [0], 4: [5], 2: [6]}),
        ("unet", {32: [0], 16: [1, 2, 3], 8: [4], 4: [5], 2: [6]}),
    ):
        vit = DinoV3Config(16, 4, 2, 4, rope_rescale=None)
        network = DepthMap(
            DepthMapConfig(vit, 32, (0, 1, 2, 3), (4, 4, 4, 4), 4, skip_order=order)  # type: ignore[arg-type]
        ).eval()
        seen: list[tuple[int, int]] = []
        encode = network.encoder.forward

        def marked(*args: object, encode: Callable[..., list[Tensor]] = encode) -> list[Tensor]:
            return [torch.full_like(e, float(i)) for i, e in enumerate(encode(*args))]

        network.encoder.forward = marked  # type: ignore[method-assign, assignment]
        for conv in network.decoder.convs:
            conv.register_forward_pre_hook(
                lambda m, x, seen=seen: seen.append((x[0].shape[-1] // 8, int(x[0].mean())))
            )
        network(pictures())
        found: dict[int, list[int]] = {}
        for size, source in reversed(seen):
            found.setdefault(size, []).append(source)
        assert found == expected, order


@torch.no_grad()
def test_hooks_are_raw_outputs_and_the_rest_is_normed() -> None:
    network = shaken(build("depth_map"))
    vit = network.encoder.patch_encoder
    raw: dict[int, Tensor] = {}
    for i, block in enumerate(vit.blocks):
        block.register_forward_hook(lambda m, a, out, i=i: raw.__setitem__(i, out.clone()))
    taken: dict[str, Tensor] = {}
    for name in (
        "upsample_latent0",
        "upsample_latent3",
        "upsample0",
        "upsample1",
        "upsample2",
        "upsample_lowres",
    ):
        network.encoder.get_submodule(name).register_forward_pre_hook(
            lambda m, x, name=name: taken.__setitem__(name, x[0].clone())
        )
    network(pictures())
    first, last = raw[0], raw[4]
    # The first tile's first token is the corner of every merged map; five tokens come before the patches.
    assert torch.equal(taken["upsample_latent0"][0, :, 0, 0], first[0, 5])
    assert torch.equal(taken["upsample_latent3"][0, :, 0, 0], raw[3][0, 5])
    assert torch.allclose(taken["upsample0"][0, :, 0, 0], vit.norm(last[0, 5]), atol=1e-6)
    assert torch.allclose(taken["upsample1"][0, :, 0, 0], vit.norm(last[25, 5]), atol=1e-6)
    assert torch.allclose(taken["upsample2"][0, :, 3, 4], vit.norm(last[34, 5 + 3 * 8 + 4]), atol=1e-6)
    assert torch.equal(taken["upsample2"], taken["upsample_lowres"])


def test_the_field_of_view_does_not_teach_the_decoder() -> None:
    """Its head sees the coarsest features without their gradient (3.6)."""
    network = shaken(build("depth_pro"))
    fov = network(pictures()).fov_deg
    assert fov is not None
    fov.sum().backward()
    assert network.fov.downsample[0].weight.grad is not None
    assert all(p.grad is None for part in (network.encoder, network.decoder) for p in part.parameters())


@pytest.mark.parametrize("injection", ["dpt", "adaln"])
def test_forgotten_activations_give_the_same_gradients(injection: InjectionKind) -> None:
    network = shaken(build("teacher", injection=injection))
    images, condition = pictures(), conditions()
    gradients = []
    for recompute in (False, True):
        for block in network.modules():
            if isinstance(block, Block):
                block.recompute = recompute
        network.zero_grad()
        network(images, condition).canonical.square().mean().backward()
        gradients.append({k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    scale = max(float(g.abs().max()) for g in gradients[0].values())
    assert all(float((g - gradients[1][k]).abs().max()) < 1e-5 * scale for k, g in gradients[0].items())


@pytest.mark.parametrize("build_config", [depth_pro_config, depth_map_config, teacher_config])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_answers_at_the_size_of_its_picture(
    size: str, build_config: Callable[..., object]
) -> None:
    config = build_config(size)
    assert config.side == config.output_side  # type: ignore[attr-defined]
    assert config.tile // config.vit.patch % 8 == 0  # type: ignore[attr-defined]


def test_the_mini_sizes_fit_in_twelve_megabytes() -> None:
    for network in (DepthMap, Teacher):
        config = depth_map_config("mini") if network is DepthMap else teacher_config("mini")
        with torch.device("meta"):
            built: nn.Module = network(config)  # type: ignore[arg-type]
        assert 2 * sum(v.numel() for v in built.state_dict().values()) < 12e6


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8 patches"):
        depth_map = depth_map_config("nano")
        DepthMapConfig(depth_map.vit, 48, depth_map.hooks, depth_map.dims)
    with pytest.raises(ValueError, match="coarser must be"):
        DepthProConfig(coarser=3)
    network = build("depth_map")
    with pytest.raises(ValueError, match="takes no condition"):
        network(pictures(), conditions())
    with pytest.raises(ValueError, match="multiple of 8 patches"):
        network(pictures(side=192))
