"""Training prompts: counts, places, noise and working resolution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.data.prompt_noise import (
    CLEAN,
    NoiseRanges,
    PromptNoise,
    add_noise,
    draw_noise,
    jitter_rows,
    triangulation_sigma,
)
from relief3d.data.prompt_sampling import (
    MIXED,
    CountOptions,
    SamplingOptions,
    choose_pixels,
    draw_count,
    robust_options,
    sample_prompt,
    scatter_prompt,
)


def truth(size: tuple[int, int] = (96, 128)) -> Tensor:
    v, u = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    return 1 + 7 * u + 2 * v


def counts(valid: int, pixels: int, options: CountOptions, draws: int = 2000) -> Tensor:
    g = torch_generator(0)
    return torch.tensor([draw_count(valid, pixels, g, options) for _ in range(draws)]).double()


def test_number_of_points_is_log_uniform_between_the_papers_bounds() -> None:
    drawn = counts(10**7, 1536 * 1536, CountOptions())
    assert 2000 <= float(drawn.min()) < 2050 and 39000 < float(drawn.max()) <= 40000
    log = (drawn.log() - math.log(2000)) / math.log(20)
    assert float(log.mean()) == pytest.approx(0.5, abs=0.03)
    assert float((log < 0.25).double().mean()) == pytest.approx(0.25, abs=0.04)


def test_small_pictures_get_points_at_the_same_spacing() -> None:
    pixels = 192 * 192
    drawn = counts(pixels, pixels, CountOptions())
    share = pixels / 1536**2
    assert drawn.min() >= round(2000 * share) and drawn.max() <= round(40000 * share)
    assert float(drawn.max()) > 35000 * share
    as_given = counts(10**6, pixels, CountOptions(full_pixels=0), 50)
    assert float(as_given.min()) >= 2000
    larger = counts(10**8, 4 * 1536**2, CountOptions(), 200)
    assert float(larger.max()) <= 40000
    assert draw_count(4, pixels, torch_generator(0)) == 0


def test_sparse_sources_keep_some_of_their_truth_out() -> None:
    drawn = counts(1000, 1536 * 1536, CountOptions())
    assert 300 <= float(drawn.min()) < 320 and 980 < float(drawn.max()) <= 1000
    assert float(drawn.mean()) == pytest.approx(650, abs=15)
    assert float(counts(5000, 1536**2, CountOptions()).max()) == 5000  # more than exist cannot be drawn
    far_sparser = counts(10**6, 1536**2, CountOptions(sparse=1.0))
    assert 16 <= float(far_sparser.min()) < 18 and float(far_sparser.max()) <= 2000
    with pytest.raises(InputError):
        CountOptions(low=10, high=5)


@pytest.mark.parametrize("kind", list(MIXED))
def test_every_kind_takes_known_pixels_only_and_repeats_under_a_seed(kind) -> None:
    depth = truth()
    known = torch.rand(depth.shape, generator=torch_generator(5)) < 0.8
    image = torch.rand(3, *depth.shape, generator=torch_generator(6))
    one, two, other = (choose_pixels(kind, depth, known, 200, torch_generator(s), image) for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert not bool((one & ~known).any())
    many = int(one.sum())
    if kind in ("uniform", "keypoints", "hole", "range", "cluster"):
        assert many == 200
    else:
        assert 20 <= many <= 400


def test_kinds_lie_where_they_should() -> None:
    depth, known = truth(), torch.ones(96, 128, dtype=torch.bool)
    g = torch_generator(3)
    image = torch.zeros(3, 96, 128)
    image[:, :, 60:] = 1.0  # one edge
    cols = choose_pixels("keypoints", depth, known, 100, g, image).nonzero()[:, 1]
    assert float(((cols - 59.5).abs() < 2).double().mean()) > 0.9
    near = choose_pixels("range", depth, known, 200, g)
    assert float(depth[near].max()) < float(depth.max()) - 0.3
    lines = choose_pixels("lidar", depth, known, 300, g)
    used = lines.any(1).double().mean()
    assert float(used) < 0.5 and float(lines.sum(1).max()) > 10  # tilted lines cross several rows
    radar = choose_pixels("radar", depth, known, 500, g)
    assert int(radar.sum()) <= 100 and not bool(radar[:32].any()) and not bool(radar[64:].any())
    missing = choose_pixels("hole", depth, known, 4000, g)
    empty = torch.nn.functional.max_pool2d(missing[None].float(), 17, 1, 8)[0] == 0
    assert bool(empty.any())  # 17 x 17 without a point among every third pixel
    grid = choose_pixels("grid", depth, known, 200, g)
    assert len(set(grid.nonzero()[:, 1].diff().abs().tolist())) <= 2
    bunch = choose_pixels("cluster", depth, known, 200, g)
    assert float(bunch.any(0).double().mean()) < 0.9


def test_papers_prompts_are_uniform_and_exact() -> None:
    depth, g = truth((40, 60)), torch_generator(1)
    valid = torch.ones(40, 60, dtype=torch.bool)
    valid[:, 30:] = False
    hits = torch.zeros(40, 60)
    for _ in range(300):
        drawn = sample_prompt(depth, valid, g, SamplingOptions(CountOptions(100, 100, 0)))
        assert drawn is not None and drawn.kind == "uniform" and drawn.noise.clean
        assert int(drawn.prompt.mask.sum()) == 100
        assert torch.equal(drawn.prompt.depth[drawn.prompt.mask], depth[drawn.prompt.mask])
        hits += drawn.prompt.mask
    assert not bool(hits[:, 30:].any())
    assert float(hits[:, :30].std()) == pytest.approx(math.sqrt(300 / 12 * 11 / 12), rel=0.1)
    valid[:] = False
    valid[0, :4] = True
    assert sample_prompt(depth, valid, g) is None


def test_robust_prompts_mix_kinds_and_noise() -> None:
    g, depth = torch_generator(2), truth()
    drawn = [sample_prompt(depth, None, g, robust_options()) for _ in range(150)]
    assert {d.kind for d in drawn if d} == set(MIXED)
    clean = sum(d.noise.clean for d in drawn if d) / len(drawn)
    assert 0.25 < clean < 0.5
    for d in drawn:
        assert d is not None and int(d.prompt.mask.sum()) >= 5
        assert bool(torch.isfinite(d.prompt.depth).all()) and float(d.prompt.depth.min()) == 0
        assert torch.equal(d.prompt.mask, d.prompt.depth > 0)
    with pytest.raises(InputError, match="no kind of prompt"):
        SamplingOptions(kinds={"sonar": 1.0})  # type: ignore[dict-item]


def full(noise: PromptNoise, depth: Tensor, seed: int = 0) -> Tensor:
    return add_noise(depth, noise, torch_generator(seed))


def test_noise_has_its_measured_size() -> None:
    depth = torch.full((100, 100), 4.0)
    depth[50:] = 8.0
    assert torch.equal(full(CLEAN, depth), depth)
    log = (full(PromptNoise(relative=0.05), depth) / depth).log()
    assert float(log.std()) == pytest.approx(0.05, rel=0.05) and abs(float(log.mean())) < 2e-3
    sigma = triangulation_sigma(0.5, 500.0, 0.2)
    assert sigma == pytest.approx(0.005)
    made = full(PromptNoise(triangulation=sigma), depth)
    spread = [float((made[s] - depth[s]).std()) for s in (slice(0, 50), slice(50, None))]
    # z^2 sigma: four times as much at twice the depth
    assert spread[0] == pytest.approx(16 * sigma, rel=0.05) and spread[1] == pytest.approx(
        64 * sigma, rel=0.06
    )
    wrong = full(PromptNoise(outliers=0.2), depth)
    off = (wrong / depth).log().abs() > 1e-6
    assert float(off.double().mean()) == pytest.approx(0.2, abs=0.015)
    assert 2.0 <= float(wrong.min()) < 2.2 and 15 < float(wrong.max()) <= 16.0
    # Log-uniform: as many below the geometric mean of 2 and 16 as above.
    assert float((wrong[off] < 32**0.5).double().mean()) == pytest.approx(0.5, abs=0.04)
    assert float((full(PromptNoise(dropout=0.3), depth) == 0).double().mean()) == pytest.approx(0.3, abs=0.02)
    both = full(PromptNoise(outliers=0.2, dropout=0.3), depth)
    off = (both / depth).log().abs()[both > 0] > 1e-6
    assert float(off.double().mean()) == pytest.approx(
        0.2, abs=0.02
    )  # what is lost does not depend on what is wrong
    cut = full(PromptNoise(near=5.0, far=9.0), depth)
    assert not bool(cut[:50].any()) and bool((cut[50:] == 8.0).all())


def test_displacement_and_extreme_noise() -> None:
    depth = torch.zeros(6, 8)
    depth[2, 3], depth[0, 7], depth[5, 0] = 2.0, 3.0, 4.0
    shifted = full(PromptNoise(row_shift=1, col_shift=2), depth)
    assert shifted[3, 5] == 2.0 and int((shifted > 0).sum()) == 1
    huge = full(PromptNoise(triangulation=50.0, relative=3.0), torch.full((50, 50), 100.0))
    assert bool(torch.isfinite(huge).all()) and float(huge.min()) >= 1e-3
    # One error does not change the draws of another.
    some = PromptNoise(relative=0.1), PromptNoise(relative=0.1, dropout=0.5)
    a, b = (full(n, torch.full((20, 20), 3.0)) for n in some)
    assert torch.equal(a[b > 0], b[b > 0]) and int((b > 0).sum()) < 300
    for bad in ({"relative": -1.0}, {"outliers": 1.5}, {"near": 3.0, "far": 2.0}):
        with pytest.raises(InputError):
            PromptNoise(**bad)
    assert full(PromptNoise(relative=0.1), torch.zeros(3, 3)).sum() == 0


def test_drawn_noise_stays_in_its_ranges_and_radar_loses_its_height() -> None:
    g, depth = torch_generator(4), truth()
    drawn = [draw_noise(depth, g, NoiseRanges(clean=0.4)) for _ in range(400)]
    assert sum(n.clean for n in drawn) / 400 == pytest.approx(0.42, abs=0.06)
    middle = float(1 / depth.median())
    assert max(n.triangulation for n in drawn) <= 0.08 * middle
    assert 0.03 < max(n.relative for n in drawn) <= 0.05
    assert all(abs(n.row_shift) <= 1 for n in drawn) and any(n.col_shift for n in drawn)
    row = torch.zeros(200, 300)
    row[100] = 5.0
    moved_rows = jitter_rows(row, 0.05, g).nonzero()
    assert len(moved_rows) == 300 and sorted(moved_rows[:, 1].tolist()) == list(range(300))
    assert float(moved_rows[:, 0].double().std()) == pytest.approx(10, rel=0.15)


def test_points_go_to_the_pixel_of_the_working_picture() -> None:
    depth = torch.zeros(4, 6)
    depth[0, 0], depth[3, 5], depth[1, 2] = 5.0, 3.0, 2.0
    up = scatter_prompt(depth, (12, 24))
    assert {tuple(i) for i in up.nonzero().tolist()} == {(1, 2), (10, 22), (4, 10)}
    assert up[10, 22] == 3.0 and up[4, 10] == 2.0
    down = scatter_prompt(depth, (1, 2))
    assert down.tolist() == [[2.0, 3.0]]  # the nearer of two points remains
    for size in ((7, 5), (1536, 1536), (4, 6)):
        for r in range(4):
            for c in range(6):
                one = torch.zeros(4, 6)
                one[r, c] = 1.0
                (at,) = scatter_prompt(one, size).nonzero().tolist()
                assert at == [math.floor((r + 0.5) * size[0] / 4), math.floor((c + 0.5) * size[1] / 6)]
    assert torch.equal(scatter_prompt(depth, (4, 6)), depth)
