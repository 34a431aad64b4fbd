"""Write docs/results/evaluation.md and docs/results/published.md from result files; no number is typed by hand.

    python benchmarks/render_evaluation.py [--check]

With ``--check`` nothing is written; the exit code says whether the pages agree with the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relief3d.eval.protocols.registry import load_protocols
from relief3d.eval.published.registry import load_tables
from relief3d.eval.results import EvaluationResult, read_result
from relief3d.eval.tables import MISSING, format_number, format_published, markdown_page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "evaluation"
REAL = ROOT / "results" / "foundation" / "real_sets.json"
PAGE = ROOT / "docs" / "results" / "evaluation.md"
PUBLISHED = ROOT / "docs" / "results" / "published.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def number(record: Mapping[str, Any] | None, *path: str, scale: float = 1.0) -> str:
    value: Any = record
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return MISSING if value is None else format_number(float(value) * scale)


def real_sets() -> str:
    if not REAL.exists():
        return "Not measured."
    data = json.loads(REAL.read_text())
    cameras, surfaces, refused = [], [], []
    for name, row in data["rows"].items():
        if "refused" in row:
            refused.append(f"- {name}: refused: {row['refused']}")
            continue
        if "cameras" in row:
            cell = [name, f"{row['registered']} of {row['views']}"]
            for measure in ("auc", "rra", "rta"):
                thresholds = ("3", "5", "15", "30") if measure == "auc" else ("5",)
                cell += [number(row["cameras"], measure, t) for t in thresholds]
            ate, length = (row["cameras"].get("ate_sim3") or {}), 1.0
            length = ate.get("path_length") or float("nan")
            cell.append(format_number(100 * ate["rmse"] / length) if ate else MISSING)
            cameras.append(cell)
        if "depth" in row or "mesh" in row:
            depth, mesh = row.get("depth"), row.get("mesh_of_used_views") or row.get("mesh")
            surfaces.append(
                [
                    name,
                    number(depth, "abs_rel", scale=100),
                    number(depth, "delta1", scale=100),
                    number(depth, "kept", scale=100),
                    number(mesh, "accuracy"),
                    number(mesh, "completeness"),
                    *(number(mesh, "scores", share, "fscore", scale=100) for share in ("1%", "2%")),
                ]
            )
    head = ["set", "registered", "AUC@3", "AUC@5", "AUC@15", "AUC@30", "RRA@5", "RTA@5", "ATE % of path"]
    parts = [
        "The ordinary command `relief3d reconstruct` on photos with known truth; "
        f"`python benchmarks/real_sets.py` repeats it. {data.get('hardware', '')}. "
        "Sets without truth of a kind are left out of that table.",
        "Cameras (AUC: signed directions, exact area; a view that was not registered fails in all its pairs):",
        table(head, cameras),
        "Depth and surface, after one similarity from the cameras, never per view; the surface is compared with the "
        "fused true depth of the views that were used; thresholds in percent of the scene's diagonal:",
        table(
            ["set", "AbsRel %", "δ1 %", "pixels kept %", "accuracy", "completeness", "F@1 %", "F@2 %"],
            surfaces,
        ),
    ]
    if refused:
        parts += ["Refused:", "\n".join(refused)]
    return "\n\n".join(parts)


def speed() -> str:
    path = RESULTS / "speed.json"
    if not path.exists():
        return "Not measured."
    data = json.loads(path.read_text())
    rows = [
        [
            r["name"],
            format_number(r["seconds"]),
            format_number(r.get("budget")),
            format_number(r.get("peer_ratio")),
        ]
        for r in data["rows"]
    ]
    note = f"`{data['command']}`, {data['hardware']['cores']} cores. Ratio: time of a plain implementation over ours."
    return note + "\n\n" + table(["what", "seconds", "budget", "ratio to plain"], rows)


def results_by_protocol() -> dict[str, list[EvaluationResult]]:
    protocols = load_protocols()
    found: dict[str, list[EvaluationResult]] = {}
    for path in sorted(RESULTS.glob("*.*.json")):
        result = read_result(path)
        if result.protocol in protocols and result.version == protocols[result.protocol].version:
            found.setdefault(result.protocol, []).append(result)
    for results in found.values():
        results.sort(key=lambda r: (r.oracle, r.model))
    return found


def evaluation_page() -> str:
    protocols, found = load_protocols(), results_by_protocol()
    parts = [
        "# Evaluation results",
        "Rendered by `python benchmarks/render_evaluation.py` from the files in `results/`. How to read and repeat: "
        "[evaluation](../evaluation.md). All tables of the papers, ablations included: [published](published.md).",
        "## The main job on real photo sets",
        real_sets(),
        "## Speed of the metrics",
        speed(),
        "## Protocols on their procedural twins",
        "`relief3d eval all` repeats these. The twins show that the protocols work and what plain baselines reach on "
        "them; their numbers are **not comparable** with the published rows, which are printed for the layout of the "
        "table. A published value that the specifications do not hold is a dash (not available).",
    ]
    for name, protocol in protocols.items():
        if name in found:
            parts.append(markdown_page(protocol, found[name], level=3).rstrip())
        else:
            parts.append(f"### {name}: {protocol.title}\n\nNot measured.")
    return "\n\n".join(parts) + "\n"


def published_page() -> str:
    parts = [
        "# Published tables",
        "Every table of the five papers that the specifications hold, ablations included; a dash means not available. "
        "Rendered by `python benchmarks/render_evaluation.py`.",
    ]
    for key, t in load_tables().items():
        rows = [[r.method, *(format_published(r.values.get(c)) for c in t.columns)] for r in t.rows]
        parts += [f"## {key}: {t.title}", table(["method", *t.columns], rows)]
        if t.note:
            parts.append(f"Note: {t.note}")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    stale = []
    for path, text in ((PAGE, evaluation_page()), (PUBLISHED, published_page())):
        if args.check:
            if not path.exists() or path.read_text() != text:
                stale.append(path.name)
        else:
            path.write_text(text)
    if stale:
        sys.exit(f"stale: {', '.join(stale)}; run python benchmarks/render_evaluation.py")


if __name__ == "__main__":
    main()
