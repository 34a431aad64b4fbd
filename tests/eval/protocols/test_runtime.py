"""Run time: what is timed, the median, columns by device and precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Query, Truth
from relief3d.eval.protocols.downstream.runtime import SIZES, Runtime, time_model, timed

CPU = torch.device("cpu")


def model_counting(calls: list[Query]) -> Callable[[Query], Answer]:
    def model(query: Query) -> Answer:
        calls.append(query)
        return Answer()

    return model


def test_warm_ups_do_not_count_and_every_call_is_made() -> None:
    query = Runtime().twin("smoke")[0].load_query()
    calls: list[Query] = []
    answer = time_model(
        model_counting(calls),
        query,
        device=CPU,
        warmups=2,
        repeats=3,
        clock=reading([0.3, 0.1, 0.2], warmups=2),
    )
    assert len(calls) == 5
    assert answer.facts["seconds"] == pytest.approx([0.3, 0.1, 0.2])
    assert answer.facts["device"] == "cpu" and answer.facts["scope"] == "call"


def reading(durations: list[float], warmups: int) -> Callable[[], float]:
    """A clock that is read once for a warm-up (its start) and twice for a call that counts."""
    readings = [0.0] * warmups
    for d in durations:
        readings += [100.0, 100.0 + d]
    source = iter(readings)
    return lambda: next(source)


def test_prepared_models_are_timed_from_the_prepared_tensor() -> None:
    class Prepared:
        def __init__(self) -> None:
            self.prepared, self.ran = 0, 0

        def prepare(self, query: Query) -> Callable[[], Any]:
            self.prepared += 1

            def forward() -> None:
                self.ran += 1

            return forward

        def __call__(self, query: Query) -> Answer:
            raise AssertionError("the whole call must not be timed")

    model = Prepared()
    answer = time_model(model, Runtime().twin("smoke")[0].load_query(), device=CPU, warmups=1, repeats=4)
    assert (model.prepared, model.ran) == (1, 5) and answer.facts["scope"] == "forward"
    assert len(answer.facts["seconds"]) == 4


def test_precision_is_set_while_timing_and_put_back() -> None:
    query = Runtime().twin("smoke")[0].load_query()
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    seen = []

    def model(q: Query) -> Answer:
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return Answer()

    for tf32 in (True, False):
        answer = time_model(model, query, device=CPU, warmups=0, repeats=1, tf32=tf32)
        assert answer.facts["tf32"] is tf32
    assert seen == [("high", True), ("highest", False)]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_sizes_and_counts(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    samples = Runtime().open(tmp_path)
    assert [s.name for s in samples] == ["vga", "hd", "4k"]
    query = samples[0].load_query()
    assert (query.facts["warmups"], query.facts["repeats"]) == (10, 50)
    assert query.scene is not None and tuple(query.scene.views[0].load_image().shape) == (3, 480, 640)
    twin = [s.load_query() for s in Runtime().twin("smoke")]
    assert [(q.facts["height"], q.facts["width"]) for q in twin] == [(480, 640), (1080, 1920), (3024, 4032)]
    assert twin[0].facts["repeats"] < 50
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        Runtime().open(tmp_path / "empty")


def measured(size: str, facts: dict[str, Any]) -> dict[str, float]:
    query = Query(size, "runtime", ("seconds",))
    return dict(Runtime().measure(query, Truth(facts={"size": size}), Answer(facts=facts)).values)


def test_median_goes_to_the_column_of_its_device() -> None:
    seconds = [0.1, 0.2, 0.3, 5.0]
    assert measured("hd", {"seconds": seconds, "device": "cpu"}) == {"cpu_hd": pytest.approx(250)}
    assert measured("hd", {"seconds": seconds, "device": "cuda:0"}) == {"gpu_hd": pytest.approx(250)}
    assert measured("4k", {"seconds": seconds, "device": "cuda", "tf32": False}) == {
        "gpu_4k_fp32": pytest.approx(250)
    }
    facts = {"seconds": [1.0], "params": 877, "native": 1536, "gflops": 21516.4}
    assert measured("hd", facts) == {"cpu_hd": 1000, "params": 877, "native": 1536, "gflops_hd": 21516.4}
    assert "gflops_hd" not in measured("vga", facts)


def test_without_a_gpu_its_columns_stay_empty() -> None:
    protocol = Runtime()
    samples = protocol.twin("smoke")
    model = timed(lambda q: Answer(), CPU, {"params": 1.5})
    found = [protocol.measure(s.load_query(), s.load_truth(), model(s.load_query())) for s in samples]
    summary = protocol.summarise(found)
    assert all(np.isnan(summary[f"gpu_{k}"]) for k in SIZES) and all(summary[f"cpu_{k}"] >= 0 for k in SIZES)
    assert summary["params"] == 1.5
    assert measured("vga", {}) == {}  # nothing measured, nothing made up


def test_facts_that_say_nothing_are_left_out() -> None:
    assert measured("hd", {"seconds": [0.25], "device": None, "params": float("inf"), "native": 840}) == {
        "cpu_hd": pytest.approx(250),
        "native": 840,
    }
    assert measured("hd", {"params": float("nan"), "gflops": float("inf")}) == {}


def test_bad_times_are_refused() -> None:
    for wrong in ([0.0], [float("nan")], "fast", [-1.0]):
        with pytest.raises(InputError, match="list of positive numbers"):
            measured("vga", {"seconds": wrong})
    with pytest.raises(InputError, match="cannot take the time"):
        time_model(lambda q: Answer(), Runtime().twin("smoke")[0].load_query(), device=CPU, repeats=0)


def test_published_rows() -> None:
    rows = {r.method: r.values for r in Runtime().published()}
    assert rows["Student-PointMap"] == {
        "params": 326, "native": 840, "gflops_hd": 4015.7, "gpu_vga": 29.4, "gpu_hd": 369.8, "gpu_4k": 5043.9
    }  # fmt: skip
