"""Point-map network against reference tensors, for any number of tokens and pictures of any shape."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.corpora.golden import golden, part
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.models.metric.interface import Focal, GuessedFocalWarning
from relief3d.models.metric.pointmap import (
    PointMap,
    PointMapOutput,
    native_tokens,
    remapped,
    token_grid,
)
from relief3d.models.metric.pointmap_configs import config_from_dict, pointmap_config
from relief3d.models.metric.pointmap_infer import PointMapModel, focal_from_fov
from relief3d.nn.vit import VitConfig

Reference = tuple[PointMap, dict[str, Tensor], Tensor]


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> Reference:
    """The network of the reference file, its outputs, and its picture."""
    tensors = golden(shared_data, "moge2_tiny")
    with safe_open(str(shared_data.parent / "golden" / "moge2_tiny.safetensors"), "pt") as file:
        facts = file.metadata()
    v = json.loads(facts["vit"])
    vit = VitConfig(v["embed_dim"], v["depth"], v["num_heads"], img_size=v["img_size"])
    network = PointMap(config_from_dict(json.loads(facts["config"]), {"dinov2_tiny": vit}))
    network.load_state_dict(part(tensors, "weights/"))
    assert facts["num_tokens"] == "108" and facts["base_hw"] == "9,12" and facts["fov_x_deg"] == "60.0"
    return network.eval(), part(tensors, "output/"), tensors["input/image_u8"].float() / 255


def _close(found: Tensor, expected: Tensor, relative: float) -> None:
    """Largest difference relative to the largest value."""
    assert found.shape == expected.shape
    finite = torch.isfinite(expected)
    assert torch.equal(torch.isfinite(found), finite)
    error = (found - expected)[finite].abs().max() / expected[finite].abs().max()
    assert float(error) < relative


@pytest.mark.shared
@torch.no_grad()
def test_forward_is_that_of_the_reference(reference: Reference) -> None:
    network, expected, image = reference
    assert token_grid(120, 160, 108) == (9, 12)
    features, summary = network.encoder(image, (9, 12))
    _close(features, expected["enc_features"], 1e-5)
    _close(summary, expected["enc_cls_token"], 1e-5)
    for tokens in (108, (9, 12)):
        out = network(image, tokens)
        assert out.normals is not None and out.mask is not None and out.scale is not None
        _close(out.points, expected["fwd_points"], 1e-4)
        _close(out.normals, expected["fwd_normal"], 1e-4)
        _close(out.mask, expected["fwd_mask"], 1e-4)
        _close(out.scale, expected["fwd_metric_scale"], 1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("way", ["auto", "fov", "noproj"])
def test_inference_is_that_of_the_reference(reference: Reference, way: str) -> None:
    network, expected, image = reference
    model = PointMapModel(network, tokens=108, project=way != "noproj", masked=False)
    found = model.infer(image, focal_from_fov(math.radians(60), image) if way == "fov" else None)
    mask = expected[f"infer_{way}_mask"]
    assert torch.equal(found.mask, mask)
    _close(found.intrinsics, expected[f"infer_{way}_intrinsics"], 1e-4)
    depth, points = found.depth, found.points
    if way != "noproj":
        depth = torch.where(mask, depth, torch.inf)
        points = torch.where(mask[..., None], points, torch.inf)
    _close(depth, expected[f"infer_{way}_depth"], 1e-4)
    _close(points, expected[f"infer_{way}_points"], 1e-4)
    if way == "auto":
        assert float(found.shift) == pytest.approx(float(expected["shift"]), rel=1e-4)
        focal = float(found.focal.pixels) / (0.5 * math.hypot(160, 120))
        assert focal == pytest.approx(float(expected["focal"]), rel=1e-4)
    masked = PointMapModel(network, tokens=108).infer(image)
    assert bool((masked.depth[~masked.mask] == 0).all()) and bool((masked.points[~masked.mask] == 0).all())
    assert masked.normals is not None and bool((masked.normals[~masked.mask] == 0).all())


def test_grids_of_tokens() -> None:
    """Half to even, as Python rounds; never empty; the true aspect, and all published native counts."""
    assert token_grid(840, 840, 3600) == (60, 60)
    assert token_grid(480, 640, 1200) == (30, 40)
    assert token_grid(100, 900, 4) == (1, 6)  # sqrt(4 / 9) = 0.67, sqrt(4 * 9) = 6
    assert token_grid(100, 25, 25) == (10, 2)  # 2.5 goes to the even 2
    assert token_grid(1, 20_000, 1200) == (1, 4899) and token_grid(20_000, 1, 1200) == (4899, 1)
    assert [native_tokens(*s) for s in ((480, 640), (1080, 1920), (3024, 4032))] == [1567, 10580, 62208]
    network = PointMap(pointmap_config("nano"))
    assert [network.tokens_of_level(x) for x in (0, 4.5, 9)] == [12, 36, 60]
    with torch.device("meta"):
        full = PointMap(pointmap_config("full"))
    assert [full.tokens_of_level(x) for x in (0, 1, 9)] == [1200, 1466, 3600]
    for level in (-0.1, 9.5):
        with pytest.raises(InputError, match="level"):
            network.tokens_of_level(level)


def nano(seed: int = 0, **options: bool) -> PointMap:
    torch.manual_seed(seed)
    network = PointMap(pointmap_config("nano", **options))
    with torch.no_grad():
        for p in network.parameters():
            if p.ndim > 1:
                p.normal_(0, 1 / max(1, p[0].numel()) ** 0.5)
        for head in (network.points_head, network.mask_head):
            if head is not None:
                head.output_blocks[-1].bias.fill_(1.0)
    return network.eval()


@torch.no_grad()
def test_outputs_have_the_size_of_the_picture_for_any_number_of_tokens() -> None:
    network = nano(normals=True)
    image = torch.rand(2, 3, 33, 50, generator=torch.Generator().manual_seed(0))
    seen = []
    for tokens in (1, 7, 60, 110):
        out = network(image, tokens)
        assert out.points.shape == (2, 33, 50, 3) and out.scale is not None and out.scale.shape == (2,)
        assert out.mask is not None and out.mask.shape == (2, 33, 50)
        assert out.normals is not None
        torch.testing.assert_close(out.normals.norm(dim=-1), torch.ones(2, 33, 50))
        assert bool((out.points[..., 2] > 0).all()) and bool(((out.mask > 0) & (out.mask < 1)).all())
        seen.append(out.points)
        # Pictures of a batch do not mix.
        torch.testing.assert_close(network(image[1:], tokens).points, out.points[1:], rtol=1e-4, atol=1e-5)
    assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(seen))
    with pytest.raises(InputError, match="positive"):
        network(image, 0)
    lean = nano(mask=False)(image, 12)
    assert lean.mask is None and lean.normals is None


def test_remaps() -> None:
    raw = torch.tensor([[0.5, -1.0, 0.7]])
    z = math.exp(0.7)
    torch.testing.assert_close(remapped(raw, "exp"), torch.tensor([[0.5 * z, -z, z]]))
    torch.testing.assert_close(remapped(raw, "sinh_exp"), torch.tensor([[math.sinh(0.5), math.sinh(-1), z]]))
    torch.testing.assert_close(remapped(raw, "sinh"), raw.sinh())
    assert remapped(raw, "linear") is raw
    with pytest.raises(InputError, match="sinh_exp"):
        remapped(raw, "tanh")  # type: ignore[arg-type]


def test_prediction_in_metres() -> None:
    network = nano()
    image = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(1))
    model = PointMapModel(network, tokens=30)
    free = model.predict(image)
    assert model.predicts_focal and model.name == "pointmap"
    assert free.focal_sources == ("predicted",) * 3 and free.valid is not None and free.points is not None
    assert bool(free.valid.any()) and bool((free.depth[~free.valid] == 0).all())
    # Points lie on the rays of the focal length, and the canonical inverse depth is fx / (W depth).
    u = torch.arange(56) + 0.5 - 28
    x = free.points[..., 0] / free.points[..., 2].clamp_min(1e-9) * free.focal[:, None, None]
    torch.testing.assert_close(x[free.valid], u.expand(3, 40, 56)[free.valid], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        (free.canonical * free.depth)[free.valid],
        (free.focal / 56)[:, None, None].expand(3, 40, 56)[free.valid],
    )
    torch.testing.assert_close(free.points[..., 2], free.depth)
    # Some focal lengths known: those are kept, the others are solved for as before.
    mixed = model.predict(image, Focal(torch.tensor([0.0, 80.0, 0.0]), ("guessed", "exif", "guessed")))
    assert mixed.focal_sources == ("predicted", "exif", "predicted")
    torch.testing.assert_close(mixed.focal[[0, 2]], free.focal[[0, 2]])
    assert float(mixed.focal[1]) == 80.0
    torch.testing.assert_close(mixed.depth[[0, 2]], free.depth[[0, 2]])
    fov = model.predict(image, focal_from_fov(2 * math.atan(56 / 2 / 80), image))
    torch.testing.assert_close(fov.depth[1], mixed.depth[1])
    # The metric scale multiplies after the shift.
    found = model.infer(image)
    raw = network(image, 30)
    assert raw.scale is not None
    z = (raw.points[..., 2] + found.shift[:, None, None]) * raw.scale[:, None, None]
    torch.testing.assert_close(found.depth[found.mask], z[found.mask])
    level = PointMapModel(network, level=0)
    assert level.tokens_for(40, 56) == 12 and PointMapModel(network).tokens_for(40, 56) == 60
    assert PointMapModel(network, tokens="native").tokens_for(40, 56) == 11


def test_what_the_shift_brings_behind_the_camera_has_no_surface() -> None:
    """The mask is cut after the shift and before the scale (6.4)."""
    model = PointMapModel(PointMap(pointmap_config("nano")).eval())
    z = torch.linspace(0.5, 3.5, 12).reshape(1, 3, 4)
    raw = PointMapOutput(torch.stack([z, z, z], -1), scale=torch.tensor([10.0]))
    surface = torch.ones(1, 3, 4, dtype=torch.bool)
    surface[0, 2, 3] = False
    found = model._in_metres(raw, surface, Focal.given(6.0), torch.tensor([-1.5]))
    seen = (z > 1.5) & surface
    assert torch.equal(found.mask, seen) and int(seen.sum()) == 7
    torch.testing.assert_close(found.depth, torch.where(seen, 10 * (z - 1.5), 0.0))
    assert not bool(found.points[~seen].any())


def test_bad_pictures_never_give_a_silent_wrong_scale() -> None:
    network = nano()
    model = PointMapModel(network, tokens=16)
    one = torch.rand(1, 3, 1, 1)
    with pytest.warns(GuessedFocalWarning):
        tiny = model.predict(one)
    assert tiny.focal_sources == ("guessed",) and bool(torch.isfinite(tiny.depth).all())
    with torch.no_grad():
        assert network.mask_head is not None
        network.mask_head.output_blocks[-1].bias.fill_(-100.0)
    with pytest.warns(GuessedFocalWarning):
        sky = model.predict(torch.rand(2, 3, 20, 30))
    assert sky.focal_sources == ("guessed",) * 2 and float(sky.depth.abs().max()) == 0.0
    assert float(sky.canonical.abs().max()) == 0.0 and bool(torch.isfinite(sky.focal).all())
    for bad, words in (
        (torch.rand(3, 20, 30), "B, 3, H, W"),
        (torch.rand(1, 1, 20, 30), "grey"),
        (torch.zeros(1, 3, 20, 30, dtype=torch.uint8), "255"),
        (torch.full((1, 3, 4, 4), torch.nan), "finite"),
    ):
        with pytest.raises(InputError, match=words):
            model.predict(bad)
    image = torch.rand(1, 3, 20, 30)
    with pytest.raises(InputError, match="focal lengths"):
        model.predict(image, Focal.given([20.0, 20.0]))
    for angle in (0.0, math.pi):
        with pytest.raises(InputError, match="field of view"):
            focal_from_fov(angle, image)
    with pytest.raises(InputError, match="tokens"):
        PointMapModel(network, tokens=0).predict(image)
    network.scale_head = None
    with pytest.raises(InputError, match="metric scale"):
        model.predict(image)


def test_half_precision_inside_gives_float32_outside() -> None:
    network = nano()
    image = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(2))
    half = PointMapModel(network, tokens=20, autocast=torch.bfloat16).predict(image)
    full = PointMapModel(network, tokens=20).predict(image)
    assert half.depth.dtype == torch.float32 and half.focal.dtype == torch.float32
    both = (half.depth > 0) & (full.depth > 0)
    assert float(both.float().mean()) > 0.5
    torch.testing.assert_close(half.depth[both], full.depth[both], rtol=0.2, atol=0)


def test_gradients_reach_every_parameter() -> None:
    network = nano(normals=True)
    out = network(torch.rand(1, 3, 30, 40), 20)
    assert out.normals is not None and out.mask is not None and out.scale is not None
    (out.points.sum() + out.normals.square()[..., 0].sum() + out.mask.sum() + out.scale.sum()).backward()
    missing = [k for k, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert missing == ["encoder.backbone.mask_token"]
