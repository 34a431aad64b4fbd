"""Parts of the volumetric network: counts, names, back-projection and guidance against naive loops (T7, T8)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.models.multiview.configs import vggt_config
from relief3d.models.multiview.vggt import Vggt
from relief3d.models.volume.back_projection import (
    DepthWeight,
    FeatureMean,
    Views,
    border_fade,
    grid_indices,
    grid_points,
    grid_transform,
)
from relief3d.models.volume.config import VARIANTS, volume_config
from relief3d.models.volume.finerecon_keys import finerecon_state, from_finerecon, to_finerecon
from relief3d.models.volume.guidance import Guidance
from relief3d.models.volume.heads import sample_mask, sample_volume
from relief3d.models.volume.layers import Residual, parameter_count
from relief3d.models.volume.network import VolumeNetwork
from relief3d.models.volume.trunk2d import EfficientTrunk, FeaturePyramid, trunk_key, trunk_state
from relief3d.models.volume.unet3d import UNet3D, UNetConfig
from relief3d.models.volume.vfm_features import (
    VfmConfig,
    VfmFeatures,
    adapter_count,
    foundation_state,
)

HEIGHT, WIDTH = 12, 16


def three_views() -> Views:
    """At the origin, beside it and turned, and looking away."""
    K = torch.tensor([[14.0, 0.3, 8.2], [0, 13.0, 5.7], [0, 0, 1]]).repeat(3, 1, 1)
    poses = torch.eye(4).repeat(3, 1, 1)
    c, s = math.cos(0.3), math.sin(0.3)
    poses[1, :3, :3] = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    poses[1, :3, 3] = torch.tensor([-0.4, 0.1, 0.05])
    poses[2, :3, :3] = torch.diag(torch.tensor([-1.0, 1, -1]))
    return Views(K, poses, (HEIGHT, WIDTH))


def cloud(count: int = 60) -> Tensor:
    return (
        torch.rand(count, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor([3.0, 2.4, 4.0]) - 1.2
    )


def naive_projection(views: Views, v: int, point: Tensor) -> tuple[float, float, float]:
    local = views.cam_from_world[v, :3, :3] @ point + views.cam_from_world[v, :3, 3]
    u, w, z = (views.K[v] @ local).tolist()
    return (u / z, w / z, z) if z != 0 else (0.0, 0.0, 0.0)


def naive_bilinear(image: Tensor, x: float, y: float) -> Tensor:
    """Pixel centres at +0.5; beyond the outermost centres the border repeats."""
    height, width = image.shape[-2:]
    x, y = min(max(x - 0.5, 0), width - 1), min(max(y - 0.5, 0), height - 1)
    a, b = int(x), int(y)
    c, d = min(a + 1, width - 1), min(b + 1, height - 1)
    fx, fy = x - a, y - b
    top = (1 - fx) * image[:, b, a] + fx * image[:, b, c]
    return (1 - fy) * top + fy * ((1 - fx) * image[:, d, a] + fx * image[:, d, c])


@pytest.mark.parametrize(
    "rule", [DepthWeight(), DepthWeight("gaussian", 2.0), DepthWeight("truncation", 0.6)]
)
def test_back_projection_is_that_of_plain_loops(rule: DepthWeight) -> None:
    views, points = three_views(), cloud()
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 5, HEIGHT // 2, WIDTH // 2, generator=generator)
    depth = torch.rand(3, HEIGHT, WIDTH, generator=generator) * 3
    depth[:, ::3] = 0
    run = FeatureMean(points, 5, weight=rule)
    run.add(maps, views, depth)
    wanted, counts = torch.zeros(len(points), 5), []
    for n, point in enumerate(points):
        total, weights, count = torch.zeros(5), 0.0, 0
        for v in range(3):
            x, y, z = naive_projection(views, v, point)
            if z <= 0 or not (0 <= x <= WIDTH and 0 <= y <= HEIGHT):
                continue
            count += 1
            d = float(depth[v, min(int(y), HEIGHT - 1), min(int(x), WIDTH - 1)])
            w = 1.0
            if rule.rule == "gaussian":
                w = math.exp(-((2.0 * (z - d)) ** 2)) if d > 0 else 0.0
            elif rule.rule == "truncation":
                w = float(d > 0 and abs(z - d) < 0.6)
            total += w * naive_bilinear(maps[v], x / 2, y / 2)
            weights += w
        wanted[n] = total / max(1.0, weights)
        counts.append(count)
    torch.testing.assert_close(run.mean(), wanted, rtol=1e-4, atol=1e-5)
    assert run.count.tolist() == counts
    assert min(counts) == 0 and max(counts) == 2  # the cloud has points that none, one, and two views see


def test_features_that_are_positions_come_back_as_positions() -> None:
    """T7: maps that hold the pixel's own coordinates give the analytic projection."""
    K = torch.tensor([[[14.0, 0, 8], [0, 13.0, 6], [0, 0, 1]]])
    views = Views(K, torch.eye(4)[None], (HEIGHT, WIDTH))
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    points = torch.tensor([[0.0, 0, 1], [0.2, -0.1, 1.5], [-0.5, 0.3, 2.0], [0, 0, -1], [9, 0, 1]])
    run = FeatureMean(points, 2)
    run.add(torch.stack([x, y])[None], views)
    wanted = torch.stack([14 * points[:3, 0] / points[:3, 2] + 8, 13 * points[:3, 1] / points[:3, 2] + 6], 1)
    torch.testing.assert_close(run.mean()[:3], wanted)
    assert run.count.tolist() == [1, 1, 1, 0, 0] and not bool(run.mean()[3:].any())


def test_views_and_points_in_any_portions_give_the_same() -> None:
    views, points = three_views(), cloud()
    maps = torch.rand(3, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    whole = FeatureMean(points, 4)
    whole.add(maps, views)
    parts = []
    for some in points.split(23):
        run = FeatureMean(some, 4)
        for v in range(3):
            run.add(maps[v : v + 1], views[v : v + 1])
        parts.append(run.mean())
    torch.testing.assert_close(torch.cat(parts), whole.mean(), rtol=0, atol=1e-6)


def test_gradients_reach_the_maps() -> None:
    maps = torch.rand(3, 2, 6, 8, requires_grad=True)
    run = FeatureMean(cloud(), 2)
    run.add(maps, three_views())
    run.mean().sum().backward()
    assert (
        maps.grad is not None and bool((maps.grad[:2] != 0).any()) and bool(torch.isfinite(maps.grad).all())
    )


def test_features_fade_at_the_border_without_a_new_mean() -> None:
    xy = torch.tensor([[0.0, 5.0], [10.0, 5.0], [4.0, 8.0]])
    found = border_fade(xy, (10, 20), 4.0)
    wanted = [1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6)), 1 / (1 + math.exp(-(12 * 0.5 - 6)))]
    torch.testing.assert_close(found, torch.tensor(wanted))
    views = Views(torch.tensor([[[8.0, 0, 8], [0, 8, 6], [0, 0, 1]]]), torch.eye(4)[None], (HEIGHT, WIDTH))
    run = FeatureMean(torch.tensor([[0.0, 0, 1]]), 1, fade=12.0)
    run.add(torch.ones(1, 1, HEIGHT, WIDTH), views)
    assert float(run.mean()) == pytest.approx(
        0.5
    )  # half of the reach from the border: weight 1/2, still one view


@pytest.mark.parametrize("kind", ["tsdf", "density"])
def test_guidance_is_that_of_plain_loops(kind: str) -> None:
    views, points, margin = three_views(), cloud(90), 0.6
    depth = 0.4 + 2 * torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
    depth[:, :, ::4] = 0
    run = Guidance(points, margin, kind)
    run.add(depth, views)
    wanted = []
    for point in points:
        kept = []
        for v in range(3):
            x, y, z = naive_projection(views, v, point)
            if z <= 0 or not (0 <= x < WIDTH and 0 <= y < HEIGHT):
                continue
            d = float(depth[v, int(y), int(x)])
            if d == 0:
                continue
            if kind == "density":
                kept.append(float(abs(z - d) < math.sqrt(3) / 2 * margin / 3))
            else:
                g = min(max(z - d, -margin), margin) / margin
                kept += [g] if g < 0.999 else []
        empty = 1.0 if kind == "tsdf" else 0.0
        wanted.append(sum(kept) / len(kept) if kept else empty)
    torch.testing.assert_close(run.value(), torch.tensor(wanted), rtol=1e-4, atol=1e-5)
    assert len({round(w, 3) for w in wanted}) > 5 or kind == "density"


def test_guidance_has_the_opposite_sign() -> None:
    """In front -1, behind +1, and unobserved the same as far behind."""
    views = Views(torch.tensor([[[8.0, 0, 8], [0, 8, 6], [0, 0, 1]]]), torch.eye(4)[None], (HEIGHT, WIDTH))
    points = torch.tensor([[0, 0, 1.0], [0, 0, 1.9], [0, 0, 2.1], [0, 0, 2.5], [0, 0, -1]])
    run = Guidance(points, 0.2)
    run.add(torch.full((1, HEIGHT, WIDTH), 2.0), views)
    torch.testing.assert_close(run.value(), torch.tensor([-1.0, -0.5, 0.5, 1.0, 1.0]), atol=1e-5, rtol=0)
    assert run.weight.tolist() == [1, 1, 1, 0, 0]


def test_volumes_are_read_between_grid_points() -> None:
    x, y, z = torch.meshgrid(torch.arange(4.0), torch.arange(8.0), torch.arange(12.0), indexing="ij")
    volume = torch.stack([x, y, z, x * y])
    index = torch.tensor([[0.0, 0, 0], [1.5, 2.25, 7.75], [3.0, 7.0, 11.0], [2.2, 0.4, 3.0]])
    found = sample_volume(volume, index)
    torch.testing.assert_close(found[:3].T, index)
    assert float(sample_volume(volume + 1, torch.tensor([[-1.5, 0, 0]])).abs().max()) == 0
    mask = torch.zeros(4, 8, 12, dtype=torch.bool)
    mask[2, 0, 3] = True
    assert sample_mask(mask, index).tolist() == [False, False, False, True]
    assert not bool(sample_mask(torch.ones_like(mask), torch.tensor([[-0.6, 0, 0], [3.6, 0, 0]])).any())


def test_turned_grids_come_back() -> None:
    c, s = math.cos(0.7), math.sin(0.7)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    transform = grid_transform(torch.tensor([1.0, -2, 0.5]), 0.05, turn)
    points = grid_points(transform, (2, 3, 4), (1, 0, 2))
    torch.testing.assert_close(
        points[0], torch.tensor([1.0, -2, 0.5]) + 0.05 * (turn @ torch.tensor([1.0, 0, 2]))
    )
    index = grid_indices(transform, points)
    wanted = torch.cartesian_prod(torch.arange(1, 3), torch.arange(3), torch.arange(2, 6)).float()
    torch.testing.assert_close(index, wanted, atol=1e-4, rtol=0)


# ---- counts and names -----------------------------------------------------------------------------------------------


def test_counts_of_the_specification() -> None:
    with torch.device("meta"):
        assert parameter_count(UNet3D(UNetConfig())) == 4_845_696
        full = VolumeNetwork(volume_config("full"))
        mini = VolumeNetwork(volume_config("mini"))
    assert full.vfm is not None and adapter_count(full.vfm) == 25_202_688 and full.vfm.channels == 128
    assert full.surface.net[0].in_channels == 112 and full.occupied.net[0].in_channels == 64  # type: ignore[union-attr]
    assert 2 * parameter_count(mini) < 8_000_000  # bytes in half precision
    trained = {n.split(".")[0] for n, p in full.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in full.named_children()}
    frozen = [n for n, p in full.named_parameters() if not p.requires_grad]
    assert frozen and all(n.startswith("vfm.") and ".adapter." not in n for n in frozen)


def test_variants_have_what_they_say() -> None:
    with torch.device("meta"):
        nets = {v: VolumeNetwork(volume_config("nano", v)) for v in VARIANTS}
    assert {v: n.vfm is not None for v, n in nets.items()} == {
        "vfm": True, "finerecon": False, "adapted-only": True, "naive": True, "cnn-only": False,
    }  # fmt: skip
    assert {v: n.config.guided for v, n in nets.items()} == {
        "vfm": 1, "finerecon": 1, "adapted-only": 0, "naive": 0, "cnn-only": 0,
    }  # fmt: skip
    assert adapter_count(nets["naive"].vfm) == 0 < adapter_count(nets["adapted-only"].vfm)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="variants: vfm"):
        volume_config("nano", "other")  # type: ignore[arg-type]


def block(name: str, layers: str) -> list[str]:
    """Names of convolutions (0, 3) and norms (1, 4) of a block."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{i}.{leaf}" for i in layers for leaf in (("weight",) if i in "03" else norm)]


def finerecon_names() -> set[str]:
    """Specification 4.9, written out; the trunk by its first and last blocks in another test."""
    out: list[str] = []
    for cnn in ("cnn2d", "cnn2d_pb"):
        for level in range(3):
            out += block(f"{cnn}.out{level}", "01")
        out += block(f"{cnn}.out3.net", "0134")
    for bn in ("fusion.bn", "point_fusion.bn"):
        out += [
            f"{bn}.{leaf}"
            for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ]
    out += block("cnn3d.stem.0.net", "01") + block("cnn3d.stem.1.net", "0134")
    for i in (1, 2):
        out += block(f"cnn3d.conv1x1_{i}.net", "01")
        for j in (0, 1):
            out += block(f"cnn3d.down{i}.{j}.net", "0134")
    for i in (1, 2, 3):
        out += block(f"cnn3d.up{i}.0.net", "01")
        for j in (1, 2):
            out += block(f"cnn3d.up{i}.{j}.net", "0134")
    for i in (0, 1):
        out += block(f"point_feat_mlp.{i}.net", "0134")
    for head in ("surface_predictor", "occ_predictor"):
        out += [f"{head}.{i}.{leaf}" for i in (0, 3) for leaf in ("weight", "bias")]
        for i in (1, 2):
            out += block(f"{head}.{i}.net", "0134")
    return set(out)


def test_finerecon_names_go_there_and_back() -> None:
    with torch.device("meta"):
        network = VolumeNetwork(volume_config("full", "finerecon", finerecon_compat=True))
    own = set(network.state_dict())
    theirs = {to_finerecon(k) for k in own}
    assert len(theirs) == len(own) and {from_finerecon(k) for k in theirs} == own
    trunk = {k for k in theirs if any(f".conv{i}." in k for i in range(3)) and k.startswith("cnn2d")}
    assert theirs - trunk == finerecon_names()
    for cnn in ("cnn2d", "cnn2d_pb"):  # torchvision's names below conv0, conv1, conv2
        assert {
            f"{cnn}.conv0.0.0.weight", f"{cnn}.conv0.1.1.block.0.0.weight", f"{cnn}.conv0.2.3.block.1.1.bias",
            f"{cnn}.conv1.0.block.0.0.weight", f"{cnn}.conv2.5.block.2.fc1.bias", f"{cnn}.conv2.0.block.3.0.weight",
        } <= trunk  # fmt: skip
    state = {to_finerecon(k): v for k, v in network.state_dict().items()}
    assert set(finerecon_state(state | {"image_mean": torch.zeros(3)})) == own
    assert "criterion.weight" in finerecon_state(
        {"criterion.weight": torch.zeros(1)}
    )  # for the loader to refuse
    assert state["cnn3d.conv1x1_2.net.0.weight"].shape == (128, 64, 3, 3, 3)


def test_released_activations_do_nothing() -> None:
    """Compatibility: slope 1 inside, 0.01 at the end of a residual block."""
    x = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for slope in (1.0, 0.01):
            part = Residual(1, 6, slope).eval()
            first, second = part.net[0], part.net[3]
            h = nn.functional.batch_norm(first(x), torch.zeros(6), torch.ones(6))
            h = torch.where(h < 0, slope * h, h)
            y = x + nn.functional.batch_norm(second(h), torch.zeros(6), torch.ones(6))
            torch.testing.assert_close(part(x), torch.where(y < 0, 0.01 * y, y), rtol=1e-4, atol=1e-5)
    slopes = {m.negative_slope for m in VolumeNetwork(
        volume_config("nano", "finerecon", finerecon_compat=True)
    ).modules() if isinstance(m, nn.LeakyReLU)}  # fmt: skip
    assert slopes == {1.0}


def timm_names() -> dict[str, str]:
    """Some names of timm's tf_efficientnetv2_s and torchvision's for the same values."""
    return {
        "conv_stem.weight": "features.0.0.weight",
        "bn1.running_var": "features.0.1.running_var",
        "blocks.0.1.conv.weight": "features.1.1.block.0.0.weight",
        "blocks.0.1.bn1.bias": "features.1.1.block.0.1.bias",
        "blocks.1.0.conv_exp.weight": "features.2.0.block.0.0.weight",
        "blocks.2.3.conv_pwl.weight": "features.3.3.block.1.0.weight",
        "blocks.2.3.bn2.weight": "features.3.3.block.1.1.weight",
        "blocks.3.0.conv_pw.weight": "features.4.0.block.0.0.weight",
        "blocks.3.5.conv_dw.weight": "features.4.5.block.1.0.weight",
        "blocks.3.5.bn2.weight": "features.4.5.block.1.1.weight",
        "blocks.3.5.se.conv_reduce.bias": "features.4.5.block.2.fc1.bias",
        "blocks.3.5.se.conv_expand.weight": "features.4.5.block.2.fc2.weight",
        "blocks.3.5.conv_pwl.weight": "features.4.5.block.3.0.weight",
        "blocks.3.5.bn3.running_mean": "features.4.5.block.3.1.running_mean",
    }


def test_trunk_takes_both_naming_schemes() -> None:
    with torch.device("meta"):
        own = EfficientTrunk().state_dict()
    for timm, torchvision in timm_names().items():
        assert trunk_key(timm) == torchvision and torchvision in own and trunk_key(torchvision) == torchvision
    for unused in (
        "blocks.4.0.conv_pw.weight",
        "features.5.0.block.0.0.weight",
        "classifier.weight",
        "conv_head.weight",
    ):
        assert trunk_key(unused) is None
    assert own["features.4.0.block.2.fc1.weight"].shape == (
        16,
        256,
        1,
        1,
    )  # squeezed to a quarter of the input's 64
    assert own["features.1.0.block.0.0.weight"].shape == (24, 24, 3, 3)
    counted = {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}
    back = trunk_state(
        {**counted, "features.5.0.block.0.0.weight": torch.zeros(1), "classifier.1.bias": torch.zeros(1)}
    )
    assert set(back) == set(own)
    with pytest.raises(InputError, match="no EfficientNetV2-S"):
        trunk_state({"features.0.0.weight": torch.zeros(24, 3, 3, 3)})


def test_pyramids_have_a_quarter_of_the_size() -> None:
    net = FeaturePyramid("toy", (8, 12, 16), 6, 0.01).eval()
    with torch.no_grad():
        assert net(torch.rand(2, 3, 32, 48)).shape == (2, 6, 8, 12)
        with torch.device("meta"):
            full = FeaturePyramid("efficientnet_v2_s", (1, 1, 1), 47, 0.01)
            assert full(torch.rand(1, 3, 480, 640)).shape == (1, 47, 120, 160)
    with pytest.raises(InputError, match="multiples of 16"):
        net(torch.rand(1, 3, 40, 48))


# ---- foundation features --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["attention", "residual"])
def test_adapters_change_nothing_at_first_and_something_later(position: str) -> None:
    """T8: the frozen network's output is the same to the bit."""
    torch.manual_seed(0)
    plain = VfmFeatures(VfmConfig("nano", "none", head="depth", side=28)).eval()
    adapted = VfmFeatures(VfmConfig("nano", "frame+global", position, head="depth", side=28)).eval()  # type: ignore[arg-type]
    found = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys and all(".adapter." in k for k in found.missing_keys)
    frame_only = VfmFeatures(VfmConfig("nano", "frame", head="depth", side=28))
    assert (
        2 * adapter_count(frame_only) == adapter_count(adapted)
        and len(frame_only.aggregator.frame_blocks) == 4
    )
    images = torch.rand(1, 2, 3, 32, 32)
    assert adapted.seen_size((32, 32)) == (28, 28) and adapted.seen_size((480, 640)) == (28, 28)
    before = plain(images)
    assert before.shape == (2, adapted.channels, 14, 14) and torch.equal(adapted(images), before)
    torch.nn.init.normal_(adapted.aggregator.frame_blocks[0].adapter.up.weight, std=0.1)
    after = adapted(images)
    assert not torch.allclose(after, before)
    after.square().sum().backward()
    trained = {n for n, p in adapted.named_parameters() if p.grad is not None}
    assert trained and all(".adapter." in n for n in trained)


def test_foundation_weights_come_from_a_vggt() -> None:
    """A network trained without a tracker gives its depth head; one with a tracker gives that one's."""
    with torch.device("meta"):
        vggt = Vggt(vggt_config("nano"))
        for head in ("tracks", "depth"):
            features = VfmFeatures(VfmConfig("nano", head=head, side=28))  # type: ignore[arg-type]
            state = foundation_state(features.config, vggt.state_dict(), "file")
            lacking = set(features.state_dict()) - set(state)
            assert not set(state) - set(features.state_dict())
            cut = (
                {"head.scratch.output_conv1.weight", "head.scratch.output_conv1.bias"}
                if head == "depth"
                else set()
            )
            assert {k for k in lacking if ".adapter." not in k} == cut
            assert all(state[k].shape == features.state_dict()[k].shape for k in state)
    only = {k: v for k, v in vggt.state_dict().items() if not k.startswith("track_head.")}
    with pytest.raises(InputError, match=r"no tracks head.*vfm\.head=depth"):
        foundation_state(VfmConfig("nano", head="tracks"), only, "file")
    with pytest.raises(InputError, match="features are taken from a VGGT"):
        foundation_state(VfmConfig("nano"), {"a": torch.zeros(1)}, "file")
