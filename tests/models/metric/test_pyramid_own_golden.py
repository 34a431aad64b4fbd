"""Pyramid networks with prescribed weights against our own stored outputs (tests/golden/make_pyramid.py), on any clone.

Differences are relative to the root mean square of an output.
"""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from golden.make_pyramid import CASES, FILE, digests

LIMITS = {torch.float64: 1e-6, torch.float32: 1e-4}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, torch.float32) for case in CASES),
        ("teacher.dpt", torch.float64),
        ("depth_pro", torch.float64),
    ],
    ids=str,
)
def test_outputs_are_those_stored(case: str, dtype: torch.dtype) -> None:
    stored = {k: v for k, v in load_file(str(FILE)).items() if k.startswith(f"{case}.")}
    found = digests(case, dtype)
    assert set(found) == set(stored)
    for key, reference in stored.items():
        assert found[key].shape == reference.shape, key
        assert float((found[key] - reference).abs().max() / reference[0]) < LIMITS[dtype], key


def test_the_file_is_small_and_its_outputs_differ() -> None:
    assert FILE.stat().st_size < 60_000
    with safe_open(str(FILE), "pt") as file:
        assert file.metadata() == {"made_by": "tests/golden/make_pyramid.py"}
    heads = [v for k, v in load_file(str(FILE)).items() if k.endswith(".head")]
    assert len(heads) == len(CASES)
    # Neither all cut off by the last ReLU nor constant, and no two networks alike.
    assert all(float((h[2:] > 0).double().mean()) > 0.1 and float(h[2:].std()) > 1e-3 for h in heads)
    assert all(
        float((a - b).abs().max()) > 1e-3 * float(a[0]) for i, a in enumerate(heads) for b in heads[:i]
    )
