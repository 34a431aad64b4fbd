"""Nano volumetric networks with prescribed weights against our own stored outputs (tests/golden/make_volume.py).

Differences are relative to the root mean square of an output.
"""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from golden.make_volume import CASES, FILE, digests, fragment, network
from relief3d.models.volume.config import Variant

LIMITS = {torch.float64: 1e-6, torch.float32: 2e-4}


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, torch.float64) for case in CASES), ("vfm", torch.float32)], ids=str
)
def test_outputs_are_those_stored(case: Variant, dtype: torch.dtype) -> None:
    stored = {k: v for k, v in load_file(str(FILE)).items() if k.startswith(f"{case}.")}
    found = digests(case, dtype)
    assert set(found) == set(stored)
    for key, reference in stored.items():
        assert found[key].shape == reference.shape, key
        assert float((found[key] - reference).abs().max() / reference[0]) < LIMITS[dtype], key


def test_the_file_is_small_and_its_outputs_differ() -> None:
    assert FILE.stat().st_size < 60_000
    with safe_open(str(FILE), "pt") as file:
        assert file.metadata() == {"made_by": "tests/golden/make_volume.py"}
    said = [v for k, v in load_file(str(FILE)).items() if k.endswith(".distance")]
    assert len(said) == len(CASES)
    assert all(float(v[2:].std()) > 1e-3 * float(v[0]) for v in said)
    assert all(float((a - b).abs().max()) > 1e-3 * float(a[0]) for i, a in enumerate(said) for b in said[:i])


def test_every_variant_sees_enough_of_the_fragment() -> None:
    with torch.no_grad():
        out = network("finerecon").double()(fragment(torch.float64))
    assert float(out.valid.float().mean()) > 0.3 and bool(out.seen.any())
