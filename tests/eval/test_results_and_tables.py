"""Result files, intervals, tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from corpora.toy_protocol import ToyProtocol, times
from relief3d.core.errors import InputError
from relief3d.eval import aggregation
from relief3d.eval.measurements import read_measurement, write_measurement
from relief3d.eval.protocols.base import Measurement
from relief3d.eval.published.table import published_table
from relief3d.eval.results import EvaluationResult, make_result, read_result, write_result
from relief3d.eval.runner import run_protocol
from relief3d.eval.statistics import bootstrap
from relief3d.eval.tables import format_number, format_published, html_page, markdown_page, markdown_table


def measured(*pairs: tuple[str, float]) -> list[Measurement]:
    return [Measurement(f"{g}/{i}", g, {"x": v}, weight=i + 1.0) for i, (g, v) in enumerate(pairs)]


def result_of(tmp_path: Path, factor: float = 1.1, **changes: object) -> EvaluationResult:
    toy = ToyProtocol()
    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path / "cache", oracle=times(factor))
    fields: dict[str, object] = {
        "model": "mine",
        "data": "procedural twin (smoke, seed 0)",
        "comparable": False,
    }
    return make_result(toy, outcome.measurements, **{**fields, **changes})  # type: ignore[arg-type]


def test_means() -> None:
    m = measured(("a", 1.0), ("a", 3.0), ("b", 8.0))
    assert aggregation.mean(m, "x") == 4.0
    assert aggregation.weighted_mean(m, "x") == pytest.approx((1 + 6 + 24) / 6)
    assert aggregation.group_mean(m, "x") == 5.0
    assert aggregation.median(m, "x") == 3.0
    assert np.isnan(aggregation.mean(m, "absent")) and np.isnan(aggregation.group_mean(m, "absent"))


def test_pooling_joins_arrays() -> None:
    m = [Measurement(str(i), "g", {}, arrays={"e": np.arange(i + 1.0)}) for i in range(3)]
    assert aggregation.pooled(m, "e").tolist() == [0, 0, 1, 0, 1, 2]
    assert aggregation.pooled(m, "none").size == 0


def test_bootstrap_draws_scenes_not_samples() -> None:
    """With one value per scene repeated often, the interval must be as wide as scenes differ."""
    m = [Measurement(f"{g}/{i}", g, {"x": v}) for g, v in (("a", 0.0), ("b", 1.0)) for i in range(500)]
    interval = bootstrap(m, lambda ms: {"x": aggregation.mean(ms, "x")}, resamples=300)["x"]
    assert (interval.low, interval.high) == (0.0, 1.0)


def test_bootstrap_counts_a_scene_drawn_twice_as_two() -> None:
    m = measured(("a", 0.0), ("b", 1.0), ("c", 2.0))
    values = []
    bootstrap(m, lambda ms: (values.append(len({x.group for x in ms})), {"x": 0.0})[1], resamples=20)  # type: ignore[func-returns-value]
    assert set(values) == {3}


def test_bootstrap_agrees_with_the_normal_theory() -> None:
    rng = np.random.default_rng(0)
    m = measured(*[(str(i), float(v)) for i, v in enumerate(rng.normal(5, 2, 200))])
    interval = bootstrap(m, lambda ms: {"x": aggregation.mean(ms, "x")}, resamples=2000)["x"]
    half = 1.96 * 2 / np.sqrt(200)
    assert interval.low is not None and interval.high is not None
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.15)


def test_one_scene_has_no_interval() -> None:
    interval = bootstrap(measured(("a", 1.0), ("a", 2.0)), lambda ms: {"x": aggregation.mean(ms, "x")})["x"]
    assert interval.low is None and interval.high is None


def test_measurements_survive_the_disk_exactly(tmp_path: Path) -> None:
    m = Measurement(
        "s/1", "s", {"x": 0.1 + 0.2, "bad": float("nan")}, 1 / 3, {"e": np.array([1e-300, np.inf])}
    )
    write_measurement(tmp_path, m, "stamp")
    back = read_measurement(tmp_path, "s/1", "stamp")
    assert back is not None and back.values["x"] == m.values["x"] and back.weight == m.weight
    assert np.isnan(back.values["bad"]) and back.arrays["e"].tolist() == [1e-300, np.inf]
    assert read_measurement(tmp_path, "s/1", "other stamp") is None


def test_a_result_file_says_where_its_numbers_come_from(tmp_path: Path) -> None:
    result = result_of(tmp_path, seed=3, command="relief3d eval toy --model mine")
    path = write_result(tmp_path / "toy.mine.json", result)
    record = json.loads(path.read_text())
    assert record["provenance"]["command"] == "relief3d eval toy --model mine"
    assert record["provenance"]["seed"] == 3
    assert {"versions", "hardware", "commit", "bootstrap", "peak_memory_bytes"} <= set(record["provenance"])
    assert record["per_group"]["a"]["abs_rel"] == pytest.approx(10, rel=1e-5)
    assert read_result(path) == result


def test_foreign_json_is_not_a_result(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="not an evaluation result"):
        read_result(tmp_path / "x.json")


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing could be measured on toy: it broke"):
        make_result(ToyProtocol(), [], model="m", data="d", comparable=False, failed={"a": "it broke"})


def test_twins_are_never_called_comparable(tmp_path: Path) -> None:
    table = markdown_table(ToyProtocol(), [result_of(tmp_path)])
    ours = next(line for line in table.splitlines() if "mine" in line)
    assert "not comparable" in ours and "10 [10, 10]" in ours
    theirs = next(line for line in table.splitlines() if "Someone" in line)
    assert "12.5" in theirs and "Paper, Table 1" in theirs and r"Someone\|else" in theirs


def test_samples_left_out_make_a_result_incomparable(tmp_path: Path) -> None:
    result = result_of(tmp_path, data="toyset", comparable=True, left_out=1, failed={"b/1": "broke"})
    assert not result.comparable
    page = markdown_page(ToyProtocol(), [result])
    assert "incomplete: 1 samples left out" in page and "failed on b/1: broke" in page
    assert "| mine | ours |" in markdown_table(
        ToyProtocol(), [result_of(tmp_path, data="x", comparable=True)]
    )


def test_html_escapes_and_embeds(tmp_path: Path) -> None:
    result = result_of(tmp_path, model="<script>")
    page = html_page(ToyProtocol(), [result], {"a & b": b"png"})
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "data:image/png;base64,cG5n" in page and "a &amp; b" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (12.3456, "12.35"),
        (0.051234, "0.05123"),
        (1.5e7, "1.5e+07"),
        (100.0, "100"),
        (1234.5678, "1235"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize("text", ["94.795", "87.285", "0.101", "1234.567", "0.00002"])
def test_published_figures_keep_their_digits(text: str) -> None:
    assert float(format_published(float(text))) == float(text)
    assert format_published(None) == "–"


def test_published_tables_are_parsed_strictly() -> None:
    table = published_table("paper/table1", "Paper", "t", "a b", "x | 1 -\ny z | 2.5 | 3")
    assert table.rows[0].values == {"a": 1.0} and table.rows[1].method == "y z"
    assert table.rows[1].source == "Paper, Table 1"
    assert [r.method for r in table.select({"mine": "b"})] == ["y z"]
    with pytest.raises(KeyError):
        table.select({"mine": "zebra"})
    with pytest.raises(ValueError, match="1 values, expected 2"):
        published_table("p/t", "P", "t", "a b", "x | 1")
