"""Focal lengths with their sources, and what the common interface refuses."""

from __future__ import annotations

import warnings

import pytest
import torch

from relief3d.core.contract import Camera
from relief3d.core.errors import InputError
from relief3d.io.exif import ExifInfo, camera_from_exif
from relief3d.models.metric.interface import (
    Focal,
    GuessedFocalWarning,
    MetricPrediction,
    check_condition,
    check_pictures,
    complete_focal,
)


def camera(fx: float, source: str) -> Camera:
    K = torch.tensor([[fx, 0, 20], [0, fx + 5, 15], [0, 0, 1]])
    return Camera(40, 30, K, K_source=source)  # type: ignore[arg-type]


def test_sources_follow_the_cameras() -> None:
    focal = Focal.of_cameras(
        [
            camera(50, "given"),
            camera(60, "exif"),
            camera(70, "estimated"),
            camera(80, "guess"),
            Camera(40, 30),
        ]
    )
    assert focal.pixels.tolist() == [50, 60, 70, 80, 0]
    assert focal.sources[:4] == ("given", "exif", "predicted", "guessed")
    assert focal.known.tolist() == [True] * 4 + [False]


def test_exif_focal_length_is_the_one_of_the_formula() -> None:
    """f = f35 * sqrt(W^2 + H^2) / sqrt(36^2 + 24^2) (specification 3.7)."""
    focal = Focal.of_cameras([camera_from_exif(ExifInfo(focal_35mm=28.0), 4000, 3000)])
    assert focal.sources == ("exif",)
    assert float(focal.pixels[0]) == pytest.approx(28 * 5000 / (36**2 + 24**2) ** 0.5, rel=1e-6)


def test_unknown_ones_are_guessed_with_a_warning() -> None:
    images = torch.zeros(2, 3, 30, 40)
    with pytest.warns(GuessedFocalWarning, match="1 of 2 pictures is guessed"):
        full = complete_focal(Focal(torch.tensor([0.0, 55.0]), ("given", "exif")), images)
    assert full.pixels.tolist() == [40, 55] and full.sources == ("guessed", "exif")
    with pytest.warns(GuessedFocalWarning, match="2 of 2"):
        assert complete_focal(None, images).pixels.tolist() == [40, 40]
    with pytest.warns(GuessedFocalWarning, match="1 of 1"):
        complete_focal(Focal.of_cameras([camera(80, "guess")]), images[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        complete_focal(Focal.given([50, 60]), images)
        complete_focal(None, images, warn=False)


def test_a_known_focal_length_counts_more_than_an_estimate() -> None:
    known = Focal(torch.tensor([50.0, 0.0]), ("given", "given"))
    both = known.or_else(Focal.given([70.0, 80.0], "predicted"))
    assert both.pixels.tolist() == [50, 80] and both.sources == ("given", "predicted")


@pytest.mark.parametrize("pixels", [[-1.0], [float("nan")], [float("inf")]])
def test_impossible_focal_lengths_are_refused(pixels: list[float]) -> None:
    with pytest.raises(InputError, match="finite and positive"):
        Focal.given(pixels)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="one per picture"):
        Focal(torch.ones(2), ("given",))
    with pytest.raises(InputError, match="2 pictures, but 1"):
        complete_focal(Focal.given(50.0), torch.zeros(2, 3, 4, 4))
    with pytest.raises(InputError, match="divide 8-bit"):
        check_pictures(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    for shape in ((3, 4, 4), (1, 1, 4, 4), (0, 3, 4, 4), (1, 3, 0, 4)):
        with pytest.raises(InputError, match="not empty"):
            check_pictures(torch.zeros(shape))
    with pytest.raises(InputError, match="not finite"):
        check_pictures(torch.full((1, 3, 2, 2), float("nan")))
    for values in (torch.full((1, 3, 2, 2), 255.0), torch.full((1, 3, 2, 2), -0.5)):
        with pytest.raises(InputError, match="divide 8-bit values by 255, and do not normalise"):
            check_pictures(values)
    check_pictures(torch.tensor([-0.1, 0.0, 1.1]).view(1, 3, 1, 1))
    good = torch.rand(1, 3, 4, 5)
    check_condition(good, 1)
    for bad, message in (
        (good[0], r"\(1, 3, h, w\)"),
        (good.expand(2, -1, -1, -1), r"\(1, 3, h, w\)"),
        (-good, "0 or more"),
        (torch.ones(1, 3, 4, 5) * torch.tensor([1.0, 1.0, 1.01]).view(3, 1, 1), "mask in"),
        (good / 0, "finite"),
        (good > 0, "floating-point"),
    ):
        with pytest.raises(InputError, match=message):
            check_condition(bad, 1)


def test_predictions_become_records() -> None:
    depth = torch.tensor([[[2.0, 0.0], [3.0, 4.0]]])
    valid = torch.tensor([[[True, True], [False, True]]])
    prediction = MetricPrediction(depth, torch.tensor([5.0]), ("given",), 1 / depth, valid=valid)
    record = prediction.depth_map(0)
    assert record.metric and record.values.tolist() == [[2, 0], [0, 4]]
    assert record.valid.tolist() == [[True, False], [False, True]]
    assert prediction.K[0].tolist() == [[5, 0, 1], [0, 5, 1], [0, 0, 1]]
