"""Classical interpolation of prompts: what each is exact for, and where it must not smear."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.prompt_interpolation import (
    INTERPOLATORS,
    BilateralOptions,
    GuidedOptions,
    spread_bilateral,
    spread_guided,
    spread_linear,
    spread_nearest,
    spread_prior,
)


def prompt(depth: Tensor, count: int, seed: int = 0) -> Tensor:
    chosen = torch.randperm(depth.numel(), generator=torch.Generator().manual_seed(seed))[:count]
    out = torch.zeros_like(depth).reshape(-1)
    out[chosen] = depth.reshape(-1)[chosen]
    return out.reshape(depth.shape)


def slanted(size: tuple[int, int] = (30, 40)) -> Tensor:
    v, u = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    return 1 / (0.2 + 0.3 * u + 0.1 * v)


def test_nearest_takes_the_nearest_known_pixel() -> None:
    depth = prompt(slanted(), 25)
    made = spread_nearest(depth)
    known = torch.nonzero(depth > 0)
    far = torch.cdist(torch.nonzero(torch.ones_like(depth)).double(), known.double())
    clear = far.sort(1).values[:, :2].diff(dim=1)[:, 0] > 1e-9
    expected = depth[known[:, 0], known[:, 1]][far.argmin(1)]
    assert torch.equal(made.reshape(-1)[clear], expected[clear])


def test_triangles_are_exact_for_a_plane_in_space() -> None:
    truth = slanted()
    depth = prompt(truth, 60)
    depth[[0, 0, -1, -1], [0, -1, 0, -1]] = truth[[0, 0, -1, -1], [0, -1, 0, -1]]  # the hull is the picture
    torch.testing.assert_close(spread_linear(depth), truth, rtol=1e-5, atol=0)
    # Depth itself is not linear on a plane: interpolating it would miss by more.
    line = torch.zeros(5, 9)
    line[0, 0], line[0, -1], line[-1, 0], line[-1, -1] = 1.0, 4.0, 1.0, 4.0
    assert float(spread_linear(line)[2, 4]) == pytest.approx(1 / (0.5 * (1 + 0.25)))
    line[[0, -1, -1], [-1, 0, -1]] = 0
    line[0, 4] = line[0, 8] = line[0, 2] = 2.0  # all on one line, or too few
    assert bool(torch.isfinite(spread_linear(line)).all())
    assert spread_linear(prompt(truth, 1)).unique().numel() == 1


def two_surfaces() -> tuple[Tensor, Tensor]:
    depth = torch.full((40, 60), 2.0)
    depth[:, 33:] = 6.0
    image = torch.full((3, 40, 60), 0.2)
    image[:, :, 33:] = 0.8
    return depth, image


@pytest.mark.parametrize("name", ["bilateral 16-NN", "guided filter"])
def test_guided_ways_follow_the_edge_of_the_picture(name: str) -> None:
    truth, image = two_surfaces()
    given = prompt(truth, 60)
    # The guided filter's usual window is small, which is best on average; edges move only in a larger one.
    wide = GuidedOptions(radius=1.5, ridge=1e-3)
    spread = spread_bilateral if name.startswith("bilateral") else lambda d, i: spread_guided(d, i, wide)
    made = spread(given, image)
    blind = spread(given, torch.full_like(image, 0.5))
    wrong = [((m - truth).abs() > 0.5).float().mean() for m in (made, blind)]
    assert float(wrong[0]) < 0.75 * float(wrong[1])
    assert float(made.min()) >= 2 - 1e-4 and float(made.max()) <= 6 + 1e-4
    as_bytes = spread(given, (image * 255).round().to(torch.uint8))
    torch.testing.assert_close(as_bytes, made, rtol=1e-2, atol=1e-2)


def test_bilateral_weights_by_hand() -> None:
    depth, image = torch.zeros(1, 9), torch.zeros(3, 1, 9)
    depth[0, 0], depth[0, 8] = 1.0, 2.0
    image[0, 0, 8] = 0.1
    options = BilateralOptions(neighbours=2, colour=0.1, space=1.0)
    spacing = (9 / 2) ** 0.5
    w = torch.tensor([-(3**2) / (2 * spacing**2), -(5**2) / (2 * spacing**2) - 0.5]).exp()
    w[0] += 1e-6
    expected = w.sum() / (w[0] / 1.0 + w[1] / 2.0)
    assert float(spread_bilateral(depth, image, options)[0, 3]) == pytest.approx(float(expected), rel=1e-5)
    assert spread_bilateral(depth, image, options)[0, [0, 8]].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", list(INTERPOLATORS))
def test_constant_depth_stays_and_units_do_not_matter(name: str) -> None:
    truth, image = two_surfaces()
    flat = INTERPOLATORS[name](prompt(torch.full_like(truth, 3.0), 30), image)
    torch.testing.assert_close(flat, torch.full_like(truth, 3.0), rtol=1e-5, atol=0)
    given = prompt(truth, 30)
    torch.testing.assert_close(
        INTERPOLATORS[name](10 * given, image), 10 * INTERPOLATORS[name](given, image), rtol=1e-4, atol=0
    )
    with pytest.raises(InputError, match="no points"):
        INTERPOLATORS[name](torch.zeros_like(truth), image)
    few = INTERPOLATORS[name](prompt(truth, 2), image)
    assert bool(torch.isfinite(few).all()) and float(few.min()) > 0


def test_batches_are_their_pictures() -> None:
    truth, image = two_surfaces()
    given = torch.stack([prompt(truth, n, seed=n) for n in (3, 50)])
    images = torch.stack([image, image.flip(-1)])
    torch.testing.assert_close(spread_nearest(given), torch.stack([spread_nearest(g) for g in given]))
    each = torch.stack([spread_bilateral(g, i) for g, i in zip(given, images, strict=True)])
    torch.testing.assert_close(spread_bilateral(given, images), each)
    with pytest.raises(InputError):
        spread_guided(given[0], image[:, ::2])


def test_prior_is_fitted_by_one_affine_map_in_disparity() -> None:
    truth = slanted()
    made = spread_prior(prompt(truth, 9), (1 / truth - 0.1) * 4)
    torch.testing.assert_close(made, truth, rtol=1e-4, atol=0)
