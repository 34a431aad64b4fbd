"""Printed figures of SAM 3D: complete, and with their doubts."""

from __future__ import annotations

from relief3d.eval.published.sam3d import HEADLINE, KNOCKOUTS, LAYOUT, SHAPE, STAGES, TABLES, TEXTURE


def test_every_table_is_listed_and_has_rows() -> None:
    assert len({t.key for t in TABLES}) == len(TABLES) == 13
    assert all(t.rows and t.paper == "SAM 3D" for t in TABLES)
    assert [len(t.rows) for t in (SHAPE, LAYOUT, STAGES, KNOCKOUTS, TEXTURE)] == [7, 7, 6, 4, 4]


def test_rows_that_tables_share_agree() -> None:
    final = {k: v for k, v in SHAPE.rows[-1].values.items() if k in KNOCKOUTS.columns}
    assert final == STAGES.rows[-1].values == KNOCKOUTS.rows[0].values
    assert "sa3dao.iou3d" not in LAYOUT.rows[5].values  # MIDI has no figures there
    assert HEADLINE.rows[0].values == {"objects": 5, "scenes": 6}


def test_doubts_are_printed() -> None:
    assert "Chamfer" in SHAPE.note and "transcription" in TEXTURE.note and "odd" in KNOCKOUTS.note
