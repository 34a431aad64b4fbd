"""Write docs/results/labelling.md from the result files of labelling; no number is typed by hand.

    python benchmarks/render_labelling.py [--check]

With ``--check`` nothing is written; the exit code says whether the page agrees with the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "labelling"
PAGE = ROOT / "docs" / "results" / "labelling.md"
COUNTS = ("items", "lost", "doubled", "different", "failures", "left_over", "labelled_again")


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: list[str], rows: list[list[object]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def source(result: dict[str, Any]) -> str:
    cores = result["hardware"]["cores"]
    return (
        f"`{result['command'].strip()}`, commit {result['commit'][:10]}, {cores} cores, seed {result['seed']}, "
        f"{result['wall_s']:.0f} s."
    )


def tracks(found: dict[str, Any] | None) -> list[str]:
    lines = ["## Labels without networks: tracks and correspondences", ""]
    if found is None:
        return [*lines, "Not measured.", ""]
    width, height = found["size"]
    lines += [
        f"{found['scenes']} procedural rooms, walks of {found['views']} views of {width}x{height} pixels, exact truth; "
        f"right is within {found['right_px']} px and really visible.",
        "",
    ]
    rows: list[list[object]] = [
        [
            r["labeler"],
            f"{100 * r['precision']:.1f}",
            f"{100 * r['recall']:.1f}",
            f"{r['tracks_per_scene']:.0f}",
            f"{r['median_px']:.2f}",
            f"{r['seconds_per_scene']:.2f}",
        ]
        for r in found["tracks"]
    ]
    lines += table(
        ["labeler", "precision %", "recall %", "tracks per scene", "median error px", "s per scene"], rows
    )
    pool: list[list[object]] = [
        [r["workers"], r["items"], f"{r['items_per_second']:.1f}"] for r in found["pool"]
    ]
    lines += table(["workers", "small items", "items per s"], pool)
    return [
        *lines,
        "Workers 0 is this process; the rest includes starting the workers and opening the scenes in each.",
        "",
        source(found),
        "",
    ]


def kills(found: dict[str, Any] | None, ray: dict[str, Any] | None) -> list[str]:
    lines = [
        "## `kill -9`",
        "",
        "In the end the bytes of all labels are compared with those of an undisturbed run. Lost: items without labels; "
        "doubled: labelled twice in the folder; different: files with other bytes; left over: temporary files, claims "
        "and run files; labelled again: attempts beyond the first one per item, each of whose labels were published "
        "once.",
        "",
    ]
    head = ["killed", "kills", *(c.replace("_", " ") for c in COUNTS)]
    if found is None:
        lines += ["Local processes: not measured.", ""]
    else:
        rows = [
            [r["kind"], f"{r['kills']} ({r['during_a_save']} in a save)", *(r[c] for c in COUNTS)]
            for r in found["rows"]
        ]
        total = sum(r["kills"] for r in found["rows"])
        during = sum(r["during_a_save"] for r in found["rows"])
        lines += [f"Local processes, {total} kills, {during} of them while something was being saved:", ""]
        lines += [*table(head, rows), source(found), ""]
        if missing := found.get("not_measured"):
            lines += [f"Stopped before these kinds were measured: {', '.join(missing)}.", ""]
    if ray is None:
        return [*lines, "A Ray cluster: not measured."]
    rows = [
        [
            r["kind"],
            f"{r['kills']} actors, {r['runs_killed']} runs, {r['crashing_items']} crashing items",
            *(r[c] for c in COUNTS),
        ]
        for r in ray["rows"]
    ]
    poison = sum(len(r["quarantined"]) for r in ray["rows"])
    lines += ["A local Ray cluster:", "", *table(head, rows)]
    lines += [f"Quarantined, as they should be: {poison} item(s) that kill every worker.", "", source(ray)]
    return lines


def page() -> str:
    parts = [
        "# Labelling: measured",
        "",
        "Written by `benchmarks/render_labelling.py` from `results/labelling/`.",
        "",
    ]
    return "\n".join([*parts, *tracks(read("labelling")), *kills(read("kills"), read("ray_kills"))]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = page()
    if not check:
        PAGE.write_text(text)
        return 0
    if PAGE.read_text() != text:
        sys.stderr.write(
            f"{PAGE.relative_to(ROOT)} is out of date: run python benchmarks/render_labelling.py\n"
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
