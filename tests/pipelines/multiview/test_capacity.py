"""The quick formula for memory against dry runs of the networks, and the plans that are made of it."""

from __future__ import annotations

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.core.memory import GIB
from relief3d.models.multiview.interface import InferenceOptions
from relief3d.models.multiview.memory_plan import activation_bytes
from relief3d.pipelines.multiview.capacity import _cost, plan_capacity
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.networks import build_network

FULL = 1_257_000_000


@pytest.mark.parametrize("name", ["vggt", "pi3", "pi3x", "reliev3r"])
@pytest.mark.parametrize(("side", "views"), [(112, 2), (224, 3)])
def test_the_formula_is_on_the_safe_side_of_dry_runs(name: str, side: int, views: int) -> None:
    with torch.device("meta"):
        network = build_network(name, "small")
    parameters = sum(p.numel() for p in network.parameters())
    counted = activation_bytes(network, views, (side, side), InferenceOptions("float32"))
    guessed = _cost((side, side), parameters, 14, name, "cpu").activations(views)
    assert 0.95 * counted <= guessed <= 4 * counted


@pytest.mark.parametrize(
    ("name", "side", "views", "measured"),
    [
        # Counted bytes of the full-size networks, results/multiview/performance.json.
        ("vggt", 224, 16, 308e6),
        ("vggt", 224, 1, 38e6),
        ("pi3", 224, 16, 205e6),
        ("pi3", 518, 64, 2402e6),
        ("pi3", 518, 4, 338e6),
    ],
)
def test_the_formula_at_full_size(name: str, side: int, views: int, measured: float) -> None:
    parameters = 1_257_000_000 if name == "vggt" else 959_000_000
    guessed = _cost((side, side), parameters, 14, name, "cpu").activations(views)
    assert measured <= guessed <= 2.5 * measured


def _plan(views: int, gib: float, **options: object):  # type: ignore[no-untyped-def]
    config = MultiviewConfig(model="vggt", **options)  # type: ignore[arg-type]
    return plan_capacity(views, (392, 518), FULL, config, architecture="vggt", max_memory=gib)


def test_more_memory_gives_larger_passes() -> None:
    small, large = _plan(150, 5.8), _plan(150, 20.0)
    assert small.passes > large.passes == 1 and small.at_once < large.at_once == 150
    assert small.bytes <= 5.8 * GIB and large.bytes <= 20 * GIB
    assert 0 < small.overlap < small.at_once


def test_what_does_not_fit_names_the_plan_that_does() -> None:
    with pytest.raises(InputError, match="weights alone") as weights:
        _plan(2, 4.0)
    assert weights.value.remedy
    with pytest.raises(InputError) as pictures:
        plan_capacity(
            2, (1036, 1036), FULL, MultiviewConfig(model="vggt"), architecture="vggt", max_memory=5.3
        )
    assert "--side" in (pictures.value.remedy or "")
    side = int(str(pictures.value.remedy).split("--side ")[1].split()[0])
    assert side % 14 == 0 and side < 1036
    with pytest.raises(InputError) as chunk:
        _plan(150, 5.8, chunk=140)
    fits = int(str(chunk.value.remedy).split("--chunk ")[1].split()[0])
    assert _plan(150, 5.8, chunk=fits).at_once == fits
