"""What labels of a whole run are worth, from what their labeler measured on every picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from relief3d.io.json_file import read_json_object, write_json
from relief3d.labelling.quality import LabelQuality, rejections
from relief3d.labelling.store import LABEL_FILE

REPORT = "quality.json"


def quality_report(out: Path) -> str | None:
    """Write ``quality.json``: errors at held-out pixels, and pictures to leave out.

    Besides what the labeler itself refused, pictures stand out whose global fit leaves more than is usual in their
    scene; that can only be seen when all are done. Their labels stay on disk: who trains on them decides.

    Args:
        out: folder of labels.

    Returns:
        One line for the console; None where no labeler measured anything.
    """
    found: list[LabelQuality] = []
    refused: dict[str, str] = {}
    limit = math.inf
    for path in sorted((out / "items").glob(f"*/*/{LABEL_FILE}")):
        document = read_json_object(path)
        facts = document["facts"]
        if "quality" not in facts:
            continue
        scene = str(document["item"]["scene"])
        limit = float(document["recipe"]["options"].get("max_error", limit))
        for name, measured in facts["quality"].items():
            found.append(_quality(f"{scene}/{name}", scene, measured))
        refused |= {f"{scene}/{name}": why for name, why in facts.get("rejected", {}).items()}
    if not found:
        return None
    judged = [q for q in found if not math.isnan(q.error) and q.name not in refused]
    doubtful = rejections(judged, max_error=limit)
    errors = sorted(q.error for q in found if not math.isnan(q.error))
    middle = errors[len(errors) // 2] if errors else None
    write_json(
        out / REPORT,
        {
            "pictures": len(found),
            "measured": len(errors),
            "median_error": middle,
            "without_label": refused,
            "doubtful": doubtful,
        },
    )
    said = "not measured" if middle is None else f"{100 * middle:.1f} %"
    return (
        f"{len(found)} pictures, median error at held-out pixels {said}; {len(refused)} without a label, "
        f"{len(doubtful)} doubtful: {out / REPORT}"
    )


def _quality(name: str, scene: str, measured: dict[str, Any]) -> LabelQuality:
    error, residual = measured["error"], measured["residual"]
    return LabelQuality(
        name,
        scene,
        math.nan if error is None else float(error),
        int(measured["held_out"]),
        0.0 if residual is None else float(residual),  # a network without a prompt has no fit
    )
