"""Tables of single-image and multi-view metric depth: shape, arithmetic inside the tables, spot checks."""

from __future__ import annotations

import statistics

import pytest

from relief3d.eval.published import metric_depth as tables
from relief3d.eval.published.table import PublishedTable


def test_sizes_and_keys() -> None:
    sizes = {t.key.split("/")[1]: (len(t.rows), len(t.columns)) for t in tables.TABLES}
    assert sizes == {
        "table3": (9, 7), "table4": (10, 24), "table5": (11, 11), "table6": (5, 11), "table9": (2, 6),
        "table12": (2, 8), "table14": (4, 6),
    }  # fmt: skip


@pytest.mark.parametrize("table", [tables.TABLE_5, tables.TABLE_6])
def test_means_follow_from_the_data_sets(table: PublishedTable) -> None:
    for row in table.rows:
        for metric in ("abs_rel", "delta1"):
            mean = statistics.mean(row.values[f"{data}.{metric}"] for data in tables.POINT_SETS)
            assert row.values[f"mean.{metric}"] == pytest.approx(mean, abs=0.02), (row.method, metric)


def test_means_of_several_views() -> None:
    for row in tables.TABLE_9.rows:
        for metric in ("abs_rel", "delta1"):
            mean = (row.values[f"eth3d.{metric}"] + row.values[f"scannet.{metric}"]) / 2
            assert row.values[f"mean.{metric}"] == pytest.approx(mean, abs=0.02)


def test_details_only_for_methods_of_the_main_table_and_ordered_deltas() -> None:
    main = {row.method for row in tables.TABLE_3.rows}
    assert {row.method for row in tables.TABLE_4.rows} - main == {"ZeroDepth"}
    for row in tables.TABLE_4.rows:
        for data in tables.MONO_SETS:
            if f"{data}.delta2" in row.values:
                assert row.values[f"{data}.delta2"] <= row.values[f"{data}.delta3"]
    student = tables.TABLE_4.rows[0]
    assert student.method == "Student-DepthMap" and "middlebury.abs_rel" not in student.values


def test_spot_checks() -> None:
    assert tables.TABLE_3.rows[-1].values["sunrgbd.delta1"] == 97.7
    assert tables.TABLE_5.rows[-1].values["kitti.abs_rel"] == 3.22
    assert tables.TABLE_12.rows[1].values["nuscenes.pseudo.abs_rel"] == 0.125
    assert tables.TABLE_14.rows[-1].values["r50"] == 0.589
    assert "20-30" in tables.TABLE_14.note
