"""Checks of pseudo labels, and their file format there and back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.data.readers.moge import read_log_depth
from relief3d.io.log_depth import log_depth_step, write_log_depth
from relief3d.labelling.quality import (
    LabelQuality,
    depth_percentiles,
    fit_residual,
    hold_out,
    hold_out_error,
    rejections,
)


def test_a_tenth_of_valid_pixels_is_held_out() -> None:
    valid = torch.rand(40, 50, generator=torch.Generator().manual_seed(0)) < 0.5
    held = hold_out(valid, 3)
    assert int(held.sum()) == int(valid.sum()) // 10 and not bool((held & ~valid).any())
    assert torch.equal(held, hold_out(valid, 3)) and not torch.equal(held, hold_out(valid, 4))
    with pytest.raises(InputError):
        hold_out(valid, 0, 1.0)


def test_hold_out_error_is_the_median_relative_error_there() -> None:
    depth, label = torch.tensor([[2.0, 4.0, 5.0, 10.0]]), torch.tensor([[2.2, 5.0, 5.0, 99.0]])
    held = torch.tensor([[True, True, True, False]])
    assert hold_out_error(label, depth, held) == pytest.approx(0.1)
    label[0, 0] = label[0, 2] = math.nan
    assert hold_out_error(label, depth, held) == 1.0
    assert math.isnan(hold_out_error(label, depth, torch.zeros_like(held)))


def test_residual_is_relative_and_zero_for_an_affine_prior() -> None:
    depth = 1 + 4 * torch.rand(20, 20, generator=torch.Generator().manual_seed(1))
    prompt = torch.where(hold_out(depth > 0, 0, 0.3), depth, torch.zeros_like(depth))
    assert fit_residual(3 / depth + 1, prompt) < 1e-5
    noisy = 1 / depth + 0.05 * torch.randn(20, 20, generator=torch.Generator().manual_seed(2))
    assert fit_residual(noisy, prompt) == pytest.approx(fit_residual(noisy, 7 * prompt), rel=1e-4)
    assert fit_residual(noisy, prompt) > 0.01


def test_percentiles_are_numpys() -> None:
    depth = torch.rand(31, 17, generator=torch.Generator().manual_seed(1)) * 9
    depth[0, :5] = 0
    expected = np.percentile(depth[depth > 0].numpy().astype(np.float64), (1, 5, 25, 50, 75, 95, 99))
    assert depth_percentiles(depth) == pytest.approx(expected.tolist())
    assert depth_percentiles(torch.zeros(3, 3)) == ()


def test_bad_labels_are_named_with_their_reason() -> None:
    usual = [LabelQuality(f"a{i}", "a", 0.05, 10, 0.10 + 0.001 * i) for i in range(9)]
    odd = LabelQuality("odd", "a", 0.05, 10, 0.2)
    poor = LabelQuality("poor", "b", 0.16, 10, 0.1)
    other = LabelQuality("other", "b", 0.15, 10, 9.0)  # too few of its source to say
    blank = LabelQuality("blank", "b", math.nan, 0, 0.1)
    found = rejections([*usual, odd, poor, other, blank])
    assert list(found) == ["odd", "poor", "blank"]
    assert "global fit" in found["odd"] and "16.0 %" in found["poor"]
    # median .1045, spread 1.4826 * .0025 (of ten): the limit is .1156
    assert "0.116" in found["odd"] and rejections([*usual, odd], sigmas=40) == {}
    assert "held out" in found["blank"]
    unfitted = LabelQuality("unfitted", "b", 0.05, 10, math.nan)
    assert list(rejections([unfitted, other])) == ["unfitted"]


def test_logarithmic_depth_there_and_back(tmp_path: Path) -> None:
    depth = torch.rand(20, 30, generator=torch.Generator().manual_seed(1)) * 80 + 0.1
    depth[0, :3], depth[1, 1] = 0.0, math.nan
    sky = torch.zeros(20, 30, dtype=torch.bool)
    sky[0, 2] = sky[5, 5] = True  # known depth is not overwritten by sky
    back = read_log_depth(write_log_depth(tmp_path / "d.png", depth, infinite=sky))
    known = torch.isfinite(depth) & (depth > 0)
    assert torch.equal(back > 0, known)
    assert float((back / depth - 1)[known].abs().max()) <= 1.05 * log_depth_step(0.1, 80.1)
    from PIL import Image

    with Image.open(tmp_path / "d.png") as picture:
        code = np.array(picture)
    assert code[0, 0] == 0 and code[0, 2] == 65535 and code[known.numpy()].min() == 1
    assert code[known.numpy()].max() == 65534
    ranged = read_log_depth(write_log_depth(tmp_path / "r.png", depth, near=1.0, far=40.0))
    assert float(ranged[known].min()) == pytest.approx(1.0) and float(ranged.max()) == pytest.approx(40.0)
    flat = read_log_depth(write_log_depth(tmp_path / "f.png", torch.full((4, 4), 3.0)))
    torch.testing.assert_close(flat, torch.full((4, 4), 3.0))
    assert not bool(read_log_depth(write_log_depth(tmp_path / "e.png", torch.zeros(4, 4))).any())
    with pytest.raises(InputError):
        write_log_depth(tmp_path / "x.png", depth, near=2.0, far=1.0)
    assert not (tmp_path / "x.png").exists()
