"""A nano point-map network with prescribed weights against our own stored outputs, on any clone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from golden.make_pointmap import FILE, digests, network, picture

LIMITS = {torch.float64: 1e-6, torch.float32: 5e-5}
SOLVER_LIMIT = 1e-3


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_outputs_are_those_stored(dtype: torch.dtype) -> None:
    stored, found = load_file(str(FILE)), digests(dtype)
    assert set(found) == {k for k in stored if dtype == torch.float32 or not k.startswith(("free", "fov"))}
    wrong = {}
    for key, value in found.items():
        reference = stored[key]
        assert value.shape == reference.shape, key
        error = float((value - reference).abs().max() / reference[0].clamp_min(0.1))
        limit = SOLVER_LIMIT if key.startswith(("free", "fov")) else LIMITS[dtype]
        if not error < limit:
            wrong[key] = error
    assert not wrong


def test_the_stored_outputs_are_of_use() -> None:
    """Most pixels have a surface but not all, points vary, and the file is small."""
    with torch.no_grad():
        out = network(torch.float32)(picture(torch.float32), 35)
    assert out.mask is not None
    share = float((out.mask > 0.5).float().mean())
    assert share > 0.5
    z = out.points[..., 2]
    assert float(z.std() / z.mean()) > 0.05 and float(out.mask.std()) > 1e-3
    assert FILE.stat().st_size < 100_000
