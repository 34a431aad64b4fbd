"""The table of sizes in docs/metric_depth.md is that of the networks."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def test_the_table_is_up_to_date(repo: Path) -> None:
    spec = importlib.util.spec_from_file_location(
        "render_sizes", repo / "benchmarks" / "render_metric_sizes.py"
    )
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    table = (
        script.PAGE.read_text(encoding="utf-8")
        .split(script.BEGIN)[1]
        .split(script.END)[0]
        .strip()
        .split("\n")
    )
    assert tuple(table[:2]) == script.HEADER
    entries = list(script.configs())
    assert len(table) == 2 + len(entries)
    for line, (name, size, config) in zip(table[2:], entries):
        if size == "nano":
            assert line == script.row(name, size, config)
        elif size != "full":  # the cost of large ones takes long; their counts are tested with their layouts
            assert line.startswith(script.row(name, size, config, cost=False))
