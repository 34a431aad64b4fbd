"""Texture preference: one win rate per picture set."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from corpora.evaluation import measure_samples, truthful
from relief3d.eval.protocols.objects.texture import PROTOCOLS, SETS

(TEXTURE,) = PROTOCOLS


def test_every_set_has_its_own_win_rate(tmp_path: Path) -> None:
    votes = [
        ("t0", "iso3d", "ours", "x", "left"), ("t1", "iso3d", "x", "ours", "left"),
        ("t2", "lvis", "ours", "x", "tie"), ("t3", "other", "ours", "x", "left"),
    ]  # fmt: skip
    lines = [json.dumps(dict(zip(("target", "set", "left", "right", "winner"), v))) for v in votes]
    (tmp_path / "votes.jsonl").write_text("\n".join(lines))
    samples = TEXTURE.open(tmp_path)
    summary = TEXTURE.summarise(measure_samples(TEXTURE, samples, truthful))
    assert summary["iso3d"] == 50 and summary["lvis"] == 50
    assert math.isnan(summary["pref"]) and math.isnan(summary["sa3dao"])
    assert summary["win_rate"] == pytest.approx(62.5)  # over all votes, also those of other sets


def test_twin_covers_all_sets_and_published_rows_name_them() -> None:
    summary = TEXTURE.summarise(measure_samples(TEXTURE, TEXTURE.twin("smoke"), truthful))
    assert all(not math.isnan(summary[s]) for s in SETS) and summary["win_rate"] > 50
    rows = TEXTURE.published()
    assert rows[0].values == {"iso3d": 81.1, "pref": 87.0, "sa3dao": 86.2, "lvis": 89.1}
    assert [r.values["win_rate"] for r in rows[4:]] == [60.7, 66.9, 66.4]
