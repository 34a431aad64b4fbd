"""The memory that a dry run predicts against what a run holds, and against the plain way to run a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from relief3d.core.errors import InputError
from relief3d.core.tensor_memory import PeakTensorBytes
from relief3d.models.multiview.configs import pi3_config, pi3x_config, reliev3r_config, vggt_config
from relief3d.models.multiview.interface import InferenceOptions, Known, compile_blocks, wrap
from relief3d.models.multiview.memory_plan import PROBES, activation_bytes, weight_bytes
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pi3x import Pi3X
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Vggt

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "vggt":
        return Vggt(vggt_config("nano")).eval()
    if name == "pi3":
        return Pi3(pi3_config("nano")).eval()
    if name == "pi3x":
        return Pi3X(pi3x_config("nano")).eval()
    return Reliev3rNet(reliev3r_config("nano")).eval()


@pytest.mark.parametrize("name", ["vggt", "pi3", "pi3x", "reliev3r"])
@pytest.mark.parametrize(("views", "chunk"), [(1, 8), (9, 2)])
def test_a_dry_run_of_few_layers_foretells_a_run_of_all(name: str, views: int, chunk: int) -> None:
    network, size = _network(name), (56, 70)
    options = InferenceOptions(precision="float32", chunk=chunk)
    images = torch.rand(1, views, 3, *size)
    known = Known(K=torch.eye(3).expand(1, views, 3, 3)) if name == "reliev3r" else None
    with PeakTensorBytes() as memory:
        wrap(network, options).predict(images, known)
    assert activation_bytes(network, views, size, options) == pytest.approx(memory.peak, rel=0.02)


def test_many_views_are_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    network, size = _network("pi3"), (28, 28)
    true = activation_bytes(network, 40, size)
    monkeypatch.setattr("relief3d.models.multiview.memory_plan.PROBES", (10, 20))
    assert activation_bytes(network, 40, size) == pytest.approx(true, rel=0.05)
    assert PROBES[0] < PROBES[1]


def test_weights_are_counted_where_they_are_not() -> None:
    with torch.device("meta"):
        network = Pi3(pi3_config("nano"))
    assert weight_bytes(network) == weight_bytes(_network("pi3")) > 0


def test_other_networks_are_refused() -> None:
    with pytest.raises(InputError, match="not a multi-view network"):
        activation_bytes(nn.Linear(2, 2), 1, (14, 14))


@pytest.mark.parametrize("name", ["vggt", "pi3"])
def test_the_engine_holds_much_less_than_the_plain_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import multiview_plain

    torch.manual_seed(0)
    # Wide enough that the trunk counts as it does at full size; the published depth, since the plain way keeps it all.
    if name == "vggt":
        config = vggt_config("micro")
        config = replace(
            config, aggregator=replace(config.aggregator, depth=24), layers=(4, 11, 17, 23), features=24
        )
        network: nn.Module = Vggt(config).eval()
    else:
        network = Pi3(pi3_config("micro")).eval()
    images = torch.rand(1, 6, 3, 140, 140)
    with torch.inference_mode():
        with PeakTensorBytes() as plain:
            expected = (multiview_plain.vggt if name == "vggt" else multiview_plain.pi3)(network, images)
        with PeakTensorBytes() as engine:
            found = (
                network(images, heads=("camera", "depth", "points"), chunk=1)
                if name == "vggt"
                else network(images, chunk=1)
            )
    # The plain pi3 keeps no layers either, so there is less to save.
    assert engine.peak <= (0.4 if name == "vggt" else 0.7) * plain.peak
    if name == "vggt":
        torch.testing.assert_close(found.depth, expected["depth"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.pose_encodings[-1], expected["pose"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.points, expected["points"], atol=1e-4, rtol=1e-3)
    else:
        torch.testing.assert_close(found.world_points, expected["points"], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.world_from_cam, expected["pose"], atol=1e-4, rtol=1e-3)


def test_compiled_blocks_say_the_same() -> None:
    network = _network("pi3")
    images = torch.rand(1, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    plain = wrap(network).predict(images)
    assert compile_blocks(network, backend="eager") == 4 + 2 + 3 * 2
    compiled = wrap(network).predict(images)
    torch.testing.assert_close(compiled.depth, plain.depth)
