"""From pictures to metres: focal lengths, sizes, resolutions, precision, bad input."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.models.metric.inference import (
    DepthMapModel,
    DepthProModel,
    PyramidOptions,
    TeacherModel,
    canonical_condition,
    metric_depth,
    resize_pictures,
    resolution,
    wrap_metric,
)
from relief3d.models.metric.interface import Focal, GuessedFocalWarning
from relief3d.models.metric.networks import (
    DepthMap,
    DepthMapConfig,
    DepthPro,
    DepthProConfig,
    PyramidOutput,
    Teacher,
    TeacherConfig,
    focal_from_fov,
)
from relief3d.models.metric.sizes import depth_map_config, depth_pro_config, teacher_config


def picture(height: int, width: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def student() -> DepthMap:
    torch.manual_seed(0)
    return DepthMap(depth_map_config("nano")).eval()


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    torch.manual_seed(0)
    net = Teacher(teacher_config("nano")).eval()
    with torch.no_grad():
        for k, p in net.named_parameters():
            if ".prompt." in k:
                p.add_(0.1 * torch.randn_like(p))
    return net


def test_hand_checked_numbers() -> None:
    """fx = 1000, width 2000, C = 0.05 -> 10 m; f = w is 53.13 degrees (specification 23)."""
    depth, canonical = metric_depth(
        torch.full((1, 4, 4), 0.05), torch.tensor([1000.0]), (3, 2000), (1e-4, 1e4)
    )
    assert torch.allclose(depth, torch.tensor(10.0)) and depth.shape == (1, 3, 2000)
    assert torch.allclose(canonical, torch.tensor(0.05))
    assert float(focal_from_fov(torch.tensor([53.1301024]), 640)[0]) == pytest.approx(640, rel=1e-6)
    assert float(focal_from_fov(torch.tensor([28.0724869]), 640)[0]) == pytest.approx(1280, rel=1e-6)


def test_interpolation_is_of_inverse_depth_and_limits_come_last() -> None:
    depth, _ = metric_depth(torch.tensor([[[1.0, 0.0]]]), torch.tensor([4.0]), (1, 4), (1e-3, 1e3))
    assert torch.allclose(1 / depth[0, 0], torch.tensor([1.0, 0.75, 0.25, 1e-3]))


def test_twice_the_focal_length_is_twice_the_depth(student: DepthMap) -> None:
    model = DepthMapModel(student)
    images = picture(50, 70)
    near, far = (model.predict(images, Focal.given(f)) for f in (60.0, 120.0))
    inside = (near.depth < 400) & (near.depth > 2e-3)
    assert bool(inside.any())
    assert torch.allclose(far.depth[inside], 2 * near.depth[inside], rtol=1e-5)
    assert torch.equal(far.canonical, near.canonical) and far.depth.shape == (1, 50, 70)
    # Twice the picture and twice the focal length in pixels: about the same depth.
    small = torch.nn.functional.interpolate(images, (128, 128), mode="nearest")
    large = torch.nn.functional.interpolate(small, scale_factor=2, mode="nearest")
    a, b = model.predict(small, Focal.given(60.0)), model.predict(large, Focal.given(120.0))
    assert float((1 / a.depth).mean()) == pytest.approx(float((1 / b.depth).mean()), rel=0.05)


def test_sources_of_focal_lengths(student: DepthMap) -> None:
    torch.manual_seed(0)
    images = picture(40, 60, 2)
    pro = DepthProModel(DepthPro(depth_pro_config("nano")))
    some = Focal(torch.tensor([45.0, 0.0]), ("exif", "given"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pro.predict(images, some)
    assert found.focal_sources == ("exif", "predicted") and float(found.focal[0]) == 45 and pro.predicts_focal
    blind = DepthProModel(DepthPro(depth_pro_config("nano", fov=False)))
    for model in (blind, DepthMapModel(student)):
        assert not model.predicts_focal
        with pytest.warns(GuessedFocalWarning):
            found = model.predict(images, some)
        assert found.focal_sources == ("exif", "guessed") and found.focal.tolist() == [45, 60]


def test_the_teacher_gets_its_condition_in_canonical_units(teacher: Teacher) -> None:
    """1/m times fx / width; without a focal length as it is, and the answer is in metres either way."""
    condition = torch.rand(1, 3, 30, 44, generator=torch.Generator().manual_seed(1))
    inside = canonical_condition(condition, torch.tensor([88.0]), 44, 128)
    plain = torch.nn.functional.interpolate(condition, (128, 128), mode="bilinear")
    assert torch.allclose(inside[:, :2], 2 * plain[:, :2]) and torch.equal(inside[:, 2], plain[:, 2])
    seen: list[Tensor] = []
    model = TeacherModel(teacher)

    def run(images: Tensor, condition: Tensor | None = None) -> PyramidOutput:
        assert condition is not None
        seen.append(condition)
        return PyramidOutput(condition[:, 0])

    model._run = run  # type: ignore[method-assign]
    for focal in (None, Focal.given(88.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = model.predict(picture(30, 44), condition, focal)
        # A network that repeats its condition gives back the prompt's metres, whatever the focal length.
        assert torch.allclose(1 / found.depth, condition[:, 0].clamp(1e-4), atol=0.2)
    assert torch.allclose(seen[1][:, :2], 2 * seen[0][:, :2])


def test_few_points_do_not_fall_between_pixels() -> None:
    condition = torch.zeros(1, 3, 512, 512)
    condition[0, :, 100, 203] = 1
    small = canonical_condition(condition, torch.tensor([512.0]), 512, 128)
    assert float(small[0, 2].sum()) == pytest.approx(1 / 16, rel=1e-3)


@pytest.mark.parametrize(
    ("pixels", "mode", "expected"),
    [
        (1, "tile", (1536, 384)), (3, "tile", (2560, 640)), (9, "tile", (4608, 1152)),
        (1, "tiles", (1536, 384)), (3, "tiles", (2688, 384)), (9, "tiles", (4992, 384)), (0.01, "tile", (512, 128)),
    ],
)  # fmt: skip
def test_resolutions(pixels: float, mode: str, expected: tuple[int, int]) -> None:
    for config in (DepthMapConfig(), DepthProConfig(), TeacherConfig()):
        assert resolution(config, pixels, mode) == expected  # type: ignore[arg-type]
    with pytest.raises(InputError, match="positive"):
        resolution(DepthMapConfig(), 0.0)


@pytest.mark.parametrize("mode", ["tile", "tiles"])
@torch.no_grad()
def test_larger_pictures_give_larger_results(mode: str) -> None:
    """On a smooth picture a higher resolution says about the same, also through a learned table of positions."""
    torch.manual_seed(0)
    network = DepthPro(depth_pro_config("nano"))
    smooth = torch.nn.functional.interpolate(picture(3, 3), (90, 90), mode="bilinear")
    base = DepthProModel(network)
    large = DepthProModel(network, PyramidOptions(pixels=3, scale_mode=mode, chunk=30))  # type: ignore[arg-type]
    assert (large.side, large.tile) == ((256, 64) if mode == "tile" else (224, 32))
    out = large._run(smooth)
    assert out.canonical.shape[-1] == large.side and out.fov_deg is not None
    a, b = base.predict(smooth), large.predict(smooth)
    assert float((a.canonical - b.canonical).abs().mean()) < 0.3 * float(a.canonical.mean())


def test_antialiased_pictures_are_those_of_pillow() -> None:
    array = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(array).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    images = torch.from_numpy(array).permute(2, 0, 1)[None] / 255
    found = (resize_pictures(images, 64, "antialias")[0] * 255).permute(1, 2, 0)
    assert float((found - found.round()).abs().max()) < 1e-3
    assert int(np.abs(found.round().int().numpy() - expected).max()) <= 1
    plain = resize_pictures(images, 64)[0]
    assert float((plain - found.permute(2, 0, 1) / 255).abs().mean()) > 0.05


@torch.no_grad()
def test_half_precision_changes_little(student: DepthMap) -> None:
    images, focal = picture(64, 64), Focal.given(64.0)
    exact = DepthMapModel(student, PyramidOptions("float32")).predict(images, focal)
    half = DepthMapModel(student, PyramidOptions("bfloat16")).predict(images, focal)
    assert half.depth.dtype == torch.float32 and not torch.equal(half.depth, exact.depth)
    error = (half.canonical / exact.canonical - 1).abs()
    assert float(error.median()) < 0.02
    # The last sum is in float32: values are not on the grid of bfloat16.
    assert not torch.equal(half.canonical, half.canonical.bfloat16().float())


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2500, 3)])
def test_odd_sizes_are_answered(student: DepthMap, size: tuple[int, int]) -> None:
    found = DepthMapModel(student).predict(picture(*size), Focal.given(50.0))
    assert found.depth.shape == (1, *size) and bool(torch.isfinite(found.depth).all())
    assert float(found.depth.min()) >= 1e-3 * 0.99 and float(found.depth.max()) <= 1e3 * 1.01


@pytest.mark.parametrize("degrees", [-5.0, 0.0, 200.0, 400.0, float("nan")])
def test_an_impossible_field_of_view_is_a_guess_and_given_ones_still_count(degrees: float) -> None:
    torch.manual_seed(0)
    network = DepthPro(depth_pro_config("nano"))
    last = network.fov.head[-1]
    assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, degrees)
    model = DepthProModel(network)
    with pytest.warns(GuessedFocalWarning):
        found = model.predict(picture(8, 12))
    assert found.focal_sources == ("guessed",) and found.focal.tolist() == [12.0]
    assert bool(torch.isfinite(found.depth).all())
    assert model.predict(picture(8, 12), Focal.given(30.0)).focal_sources == ("given",)


def test_depth_is_limited_as_published(student: DepthMap, teacher: Teacher) -> None:
    """0.001 to 1000 m for the student, 0.0001 to 10000 m for the others (3.7, 5.6)."""
    images = picture(8, 8)
    for model, limits in (
        (DepthMapModel(student).predict, (1e-3, 1e3)),
        (lambda x, f: TeacherModel(teacher).predict(x, torch.zeros(1, 3, 8, 8), f), (1e-4, 1e4)),
        (DepthProModel(DepthPro(depth_pro_config("nano"))).predict, (1e-4, 1e4)),
    ):
        ends = [float(model(images, Focal.given(f)).depth.median()) for f in (1e-9, 1e9)]
        assert ends == pytest.approx(list(limits), rel=1e-4)


def test_low_memory_says_the_same_and_wrapping_knows_its_networks(
    student: DepthMap, teacher: Teacher
) -> None:
    images, focal = picture(32, 32), Focal.given(30.0)
    options = PyramidOptions().low_memory()
    assert options.chunk and options.rows
    a, b = (DepthMapModel(student, o).predict(images, focal) for o in (None, options))
    assert torch.allclose(a.canonical, b.canonical, atol=1e-5)
    assert isinstance(wrap_metric(student), DepthMapModel) and isinstance(wrap_metric(teacher), TeacherModel)
    with pytest.raises(InputError, match="Linear is no network"):
        wrap_metric(torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match="not finite"):
        DepthMapModel(student).predict(images / 0)
    with pytest.raises(InputError, match="0 or more"):
        TeacherModel(teacher).predict(images, -torch.ones(1, 3, 8, 8))
