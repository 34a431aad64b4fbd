"""VFM-Recon's tables: complete, consistent with themselves, and honest about mixed protocols."""

import pytest

from relief3d.eval.published import vfm_recon
from relief3d.eval.published.vfm_recon import TABLE1, TABLE2, TABLE3, TABLE4, ablation_rows, mesh_rows


def test_four_tables_with_all_rows():
    assert [t.key for t in vfm_recon.TABLES] == [f"vfm-recon/table{i}" for i in (1, 2, 3, 4)]
    assert [len(t.rows) for t in vfm_recon.TABLES] == [12, 9, 9, 6]
    assert all(r.values for t in vfm_recon.TABLES for r in t.rows)


@pytest.mark.parametrize("table", [TABLE1, TABLE3, TABLE4], ids=lambda t: t.key)
def test_f_scores_lie_near_the_harmonic_mean(table):
    groups = {c.removesuffix("f1") for c in table.columns if c.endswith("f1")}
    for row in table.rows:
        for group in groups:
            if f"{group}f1" not in row.values:
                continue
            p, r, f = (row.values[group + k] for k in ("prec", "recall", "f1"))
            # Means over scenes of F1, so never above the harmonic mean of the means by more than rounding.
            assert -4.6 < f - 2 * p * r / (p + r) < 0.15, (row.method, group)


def test_chamfer_is_the_mean_of_both_distances():
    for row in TABLE1.rows:
        if "chamfer" in row.values:
            assert row.values["chamfer"] == pytest.approx(
                (row.values["acc"] + row.values["comp"]) / 2, abs=0.11
            )


def test_spot_checks():
    two = {r.method: r.values for r in TABLE2.rows}
    assert two["SimpleRecon"] == {"abs_rel": 4.3, "abs_diff": 8.9, "sq_rel": 1.3, "d105": 70.2, "d125": 98.1}
    three = {r.method: r.values for r in TABLE3.rows}
    assert three["MoGe-2"]["tum.recall"] == 33.5 and three["VGGT"]["tnt.prec"] == 51.0
    assert set(three["GP-Recon"]) == {"tum.prec", "tum.recall", "tum.f1"}
    four = {r.method: r.values for r in TABLE4.rows}
    assert four["w/o depth reprojection"]["tnt.f1"] == 50.5
    assert four["w/o depth reprojection"]["scannet.f1"] == 75.8
    assert four["default"]["scannet.f1"] == {r.method: r for r in TABLE1.rows}["VFM-Recon"].values["f1"]


def test_rows_beside_ours():
    assert len(mesh_rows()) == 12 and len(mesh_rows(atlas_only=True)) == 4
    assert all("Atlas" in r.source for r in mesh_rows(atlas_only=True))
    assert ablation_rows("tnt")[0].method == "VFM-Recon w/o scale alignment"
    assert len(ablation_rows("scannet")) == 5 and set(ablation_rows("tnt")[0].values) == {
        "prec",
        "recall",
        "f1",
    }
