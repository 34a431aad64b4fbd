"""Write docs/results/vfm_recon_alignment.md from results/vfm_recon/alignment_*.json; no number is typed by hand.

    python benchmarks/render_scene_alignment.py [--check]

With ``--check`` nothing is written; the exit code says whether the page agrees with the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from render_results import num, table

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "results" / "vfm_recon"
PAGE = ROOT / "docs" / "results" / "vfm_recon_alignment.md"

SPECIFICATION = {
    "exact depth": (0, 0.91, 0.93, 99.7),
    "true scales, noisy depth": (0, 1.54, 1.51, 98.8),
    "graph, Huber weights, lambda 0.1 (as 11.2)": (0.010, 2.71, 2.58, 93.3),
    "graph, plain least squares, lambda 0.1": (0.026, 4.75, 4.52, 56.5),
    "priors only (Eq. 1)": (0.060, 17.0, 4.16, 55.7),
    "graph, literal sign of Eq. 5, lambda 0.1": (0.164, 46.1, 10.6, 21.8),
    "one global scale": (0.102, 25.4, 10.8, 19.9),
}
"""Log error, accuracy, completeness and F1 of the specification's own run (11.2), in a similar room."""


def speed(part: dict[str, Any]) -> str:
    rows = [
        [
            name,
            num(part[key]["wall_s"]),
            num(part[key]["processor_s"]),
            num(part[key]["log_error"], 4),
        ]
        for name, key in (("relief3d", "alignment"), ("plain", "plain"))
    ]
    return (
        f"{part['keyframes']} keyframes of {part['size'][0]} x {part['size'][1]}, {part['submaps']} submaps, "
        f"{part['pairs']} matched pairs with {part['matches']} matches; network and matching not counted. The plain "
        "one loops over pairs, triangulates by singular values, looks at all pixels and lets scipy minimise.\n\n"
        + table(["", "wall, s", "processor, s", "mean log-scale error"], rows)
        + f"\n\nTarget: {num(part['target_s'], 0)} s."
    )


def fusion(part: dict[str, Any]) -> str:
    rows = [
        [name, num(part[key]["wall_s"], 1), num(part[key]["processor_s"], 1)]
        for name, key in (("relief3d", "ours"), ("plain", "plain"))
    ]
    plain, error = part["plain"], part["abs_rel_percent"]
    return (
        f"Blending, fusion at {num(part['voxel_m'], 2)} m, mesh and rendering of {part['frames']} frames of "
        f"{part['size'][0]} x {part['size'][1]}. Plain: {plain['what']} from {plain['measured_frames']} "
        "measured ones.\n\n"
        + table(["", "wall, s", "processor, s"], rows)
        + f"\n\nTarget: {num(part['target_s'], 0)} s for 100 frames. AbsRel {num(error['aligned'])} % before and "
        f"{num(error['refined'])} % after reprojection; the surface covers "
        f"{num(part['ours']['covered'], 1, 100)} % of the pixels."
    )


def chains(part: dict[str, Any]) -> str:
    rows = [
        [
            r["submaps"],
            r["priors"],
            f"{num(r['open_error'], 4)} / {num(r['open_worst'], 4)}",
            f"{num(r['loops_error'], 4)} / {num(r['loops_worst'], 4)}",
            num(r["solve_s"], 1, 1000),
            num(r["solve_worst_s"], 1, 1000),
        ]
        for r in part["rows"]
    ]
    head = ["submaps", "priors", "open chain", "with loop edges", "solve, ms (median)", "solve, ms (worst)"]
    noise = part["noise"]
    return (
        f"A camera walks laps of 24 submaps ({part['draws']} draws; noise of priors {noise['prior']:g}, of edges "
        f"{noise['edge']:g}; wrong priors {noise['wrong_priors']}). Every {noise['loop_every']}th "
        "submap after the first lap has an edge to an earlier visit. Mean absolute log-scale error, mean / worst over "
        "the draws.\n\n" + table(head, rows) + f"\n\nTarget: {num(part['target_s'], 0)} s per solve."
    )


def scales(part: dict[str, Any]) -> str:
    rows = []
    for r in part["rows"]:
        given = SPECIFICATION.get(r["scales"])
        rows.append(
            [
                r["scales"],
                r["overlap"],
                num(r["log_error"], 3),
                num(r["accuracy_cm"]),
                num(r["completeness_cm"]),
                num(r["precision"], 1),
                num(r["recall"], 1),
                num(r["f1"], 1),
                "–" if given is None else f"{given[0]:.3f} / {given[3]:.1f}",
            ]
        )
    head = [
        "scales", "overlap", "log error", "acc, cm", "comp, cm", "precision", "recall", "F1", "spec.: log error / F1",
    ]  # fmt: skip
    return (
        f"{part['keyframes']} keyframes, fusion at {num(part['voxel_m'], 2)} m, F1 at {num(part['threshold_m'], 2)} m. "
        "The room resembles that of the specification (last column) but is not the same, and scales are drawn anew. "
        "Priors have 3 % noise, two are wrong by factors 1.5 and 0.6; the last row triangulates its own from "
        "matches.\n\n" + table(head, rows)
    )


SECTIONS = {
    "speed": ("Speed of alignment", speed),
    "fusion": ("Fusion, mesh and refined depth", fusion),
    "chains": ("Long chains of submaps", chains),
    "scales": ("What errors of scale cost", scales),
}


def page() -> str:
    text = [
        "# Scale alignment",
        "",
        "Written by `benchmarks/render_scene_alignment.py`. Synthetic room, one seed.",
    ]
    for name, (title, section) in SECTIONS.items():
        path = SOURCE / f"alignment_{name}.json"
        text += ["", f"## {title}", ""]
        if not path.exists():
            text += [f"Not measured; `python benchmarks/scene_alignment.py --parts {name}` does it."]
            continue
        part = json.loads(path.read_text())
        machine = f"{part['hardware']['cores']} cores, {part['hardware']['threads']} thread"
        commit = part["commit"] or "unknown"
        commit = commit[:12] + ("+" if commit.endswith("+") else "")
        text += [section(part), ""]
        if "note" in part:
            text += [f"**{part['note']}.**", ""]
        text += [
            f"`{part['command']}`, commit {commit}, {machine}, load of the machine before: "
            f"{num(part['hardware']['load_before'], 1)}, {num(part['wall_s'], 0)} s in all.",
        ]
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = page()
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.stderr.write(
                f"{PAGE.name} differs from its files; run benchmarks/render_scene_alignment.py\n"
            )
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
