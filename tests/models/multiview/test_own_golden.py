"""Networks with prescribed weights against our own stored outputs (tests/golden/make_multiview.py), on any clone.

Differences are relative to the root mean square of an output. Double precision holds to 1e-6 (the rotary tables and
the tracker's flow table are float32 in any case), single precision to 5e-5: measured are 2.4e-5 for world points,
2e-5 for depth, 1e-5 or less elsewhere.
"""

from __future__ import annotations

import zlib

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from golden.make_multiview import CASES, FILE, digest, digests, hashed

LIMITS = {torch.float64: 1e-6, torch.float32: 5e-5}
SMALL = 0.1
"""Outputs whose size is below this are compared with this instead."""


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_stored(name: str, dtype: torch.dtype) -> None:
    stored = {k: v for k, v in load_file(str(FILE)).items() if k.startswith(f"{name}.")}
    found = digests(name, dtype)
    assert set(found) == set(stored)
    wrong = {}
    for key, reference in stored.items():
        assert found[key].shape == reference.shape, key
        error = float((found[key] - reference).abs().max() / reference[0].clamp_min(SMALL))
        if not error < LIMITS[dtype]:
            wrong[key] = error
    assert not wrong


def test_the_file_is_small_and_says_where_it_comes_from() -> None:
    assert FILE.stat().st_size < 300_000
    with safe_open(str(FILE), "pt") as file:
        assert file.metadata() == {"made_by": "tests/golden/make_multiview.py"}
        assert all(torch.isfinite(file.get_tensor(key)).all() for key in file.keys())  # noqa: SIM118


def test_hashed_numbers_are_these() -> None:
    """The generator itself, computed once by hand in Python integers, must not change either."""
    x = (2 + zlib.crc32(b"pictures") * 2**32) % 2**64
    x = x * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    x ^= x >> 31
    values = hashed("pictures", 4000)
    assert float(values[1]) == 2 * ((x >> 11) * 2.0**-53 + 2.0**-54) - 1
    assert (
        values.abs().max() < 1 and values.mean().abs() < 0.03 and abs(values.square().mean() - 1 / 3) < 0.02
    )
    assert not torch.equal(values, hashed("picture", 4000)) and (values != 0).all()


def test_a_digest_sees_one_number_and_their_order() -> None:
    values = hashed("values", 3, 500)
    one, other = digest(values), values.clone()
    other[2, 7] += 1e-3
    assert float((digest(other) - one).abs().max()) > 1e-5
    assert float((digest(values.flip(0)) - one).abs().max()) > 1e-3
