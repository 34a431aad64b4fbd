"""Write docs/results/multiview_long.md from results/multiview/long_sequence.json; no number is typed by hand.

    python benchmarks/render_long_sequence.py [--check]

With ``--check`` nothing is written; the exit code says whether the page agrees with the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from render_results import num, table

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "results" / "multiview" / "long_sequence.json"
PAGE = ROOT / "docs" / "results" / "multiview_long.md"


def network(part: dict[str, Any], targets: dict[str, float]) -> str:
    rows = [
        [
            r["frames"],
            r["chunks"],
            num(r["wall_ms_per_frame"], 1),
            num(r["processor_ms_per_frame"], 1),
            num(r["network_processor_s"], 1),
            num(r["joining_processor_s"], 1),
            num(r["peak_gib"]),
            num(r["disk_gib"]),
        ]
        for r in part["rows"]
    ]
    head = [
        "frames", "chunks", "ms per frame (wall)", "ms per frame (processor)", "network, processor s",
        "joining, processor s", "peak GiB of the process", "files GiB",
    ]  # fmt: skip
    longest = max(r["frames"] for r in part["rows"])
    return (
        f"`{part['network']}`, size `{part['size']}` ({num(part['parameters_m'], 1)} M parameters), random weights, "
        f"pictures {part['picture']}, chunks of {part['chunk']} that share {part['overlap']}. Weights are random, so "
        "only time and memory mean anything here. Frames are made when asked for: rendered pictures of a walk, each "
        "panned over by a smaller window.\n\n"
        + table(head, rows)
        + f"\n\nTime per frame at {longest} frames beside short runs right before and after it:\n\n"
        + table(
            [
                "clock",
                "short runs: fastest / median / slowest, ms",
                "long run, ms",
                "ratio to median",
                "ratio to fastest",
            ],
            [spread(name, part["time"][name]) for name in ("wall", "processor")],
        )
        + f"\n\nTarget: a ratio of at most {targets['time_ratio']}. Where the short runs differ much among themselves, "
        "the machine was busy with other work, and a ratio says no more than their spread allows. Peak "
        f"memory **{num(part['peak_gib'])} GiB** (target < {targets['peak_gib']:g}). Joining takes "
        f"{num(part['joining_share'], 1, 100)} % of the processor time."
    )


def spread(name: str, found: dict[str, float]) -> list[str]:
    """A row of the table of times."""
    short = " / ".join(num(found[f"short_{k}_ms"], 1) for k in ("fastest", "median", "slowest"))
    return [
        name,
        short,
        num(found["long_ms"], 1),
        num(found["ratio_to_median"]),
        num(found["ratio_to_fastest"]),
    ]


def origin(part: dict[str, Any]) -> str:
    """Command, hardware and the commit of every run."""
    machine = f"{part['hardware'].get('cores')} cores, {part['hardware'].get('machine')}"
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in part["rows"]:
        runs.setdefault((row.get("commit") or part["commit"] or "unknown")[:12], []).append(row)
    if "seed" not in part["rows"][0]:
        load = part["hardware"].get("load", part["hardware"].get("load_before"))
        said = f"commit {next(iter(runs))}, load of the machine {num(load, 1)}"
    else:
        said = "; ".join(
            f"commit {name} for seed "
            + ", ".join(f"{r['seed']} (load of the machine {num(r.get('load'), 1)})" for r in rows)
            for name, rows in runs.items()
        )
    return f"`{part['command']}`, {said}, {machine}, {num(part['seconds'], 0)} s."


def oracle(part: dict[str, Any], targets: dict[str, float]) -> str:
    kinds = ("open", "loops", "loops_30_percent_false")
    rows = [
        [
            r["seed"],
            num(r["open"]["path_m"], 0),
            *(f"{num(r[k]['ate_percent'])} / {num(r[k]['largest_percent'])}" for k in kinds),
            f"{r['loops']['believed']} of {r['true_given']}",
            f"{r[kinds[2]]['false_believed']} of {r['false_given']}",
        ]
        for r in part["rows"]
    ]
    head = [
        "seed", "path, m", "open", "true loops", "true and 30 % false loops", "true loops believed",
        "false loops believed",
    ]  # fmt: skip
    return (
        f"{part['frames']} frames of a walk of several laps through a procedural hall, chunks of {part['chunk']} that "
        f"share {part['overlap']}. Every pass gives exact depth and poses in a random similarity frame, with "
        f"noise that grows along the pass (strength {part['noise']:g}). Loops are given; a false one comes with a pass "
        "that puts both places together. Error of the camera centres after one similarity, root mean square / "
        f"largest, in percent of the path (target < {targets['drift_percent']:g} with loops).\n\n"
        + table(head, rows)
    )


def rendered(part: dict[str, Any], targets: dict[str, float]) -> str:
    rows = [
        [
            r["seed"],
            num(r["open"]["path_m"], 1),
            *(f"{num(r[k]['ate_percent'])} / {num(r[k]['largest_percent'])}" for k in ("open", "closed")),
            f"{r['verified']} of {r['tried']}",
            r["false_verified"],
            r["closed"]["believed"],
        ]
        for r in part["rows"]
    ]
    head = ["seed", "path, m", "open", "with found loops", "verified of tried", "of them false", "believed"]
    names = list(part["rows"][0]["recall"])
    found = [
        [
            n,
            *(
                f"{num(r['recall'][n]['at_1'], 1, 100)} / {num(r['recall'][n]['at_5'], 1, 100)}"
                for r in part["rows"]
            ),
        ]
        for n in names
    ]
    place = part["same_place"]
    return (
        f"{part['frames']} rendered pictures of {part['picture']} along a walk of a lap and a half. Candidates come "
        "from the encoder of a network with random weights, they are verified by SIFT matches with one epipolar "
        "geometry; only depth and poses of the passes are an oracle's. A pass over both ends of a loop gives true "
        "geometry in a frame of its own. Errors as above.\n\n"
        + table(head, rows)
        + "\n\nShare in percent of the frames with a true revisit "
        f"(within {place['metres']:g} m and {place['degrees']:g} degrees) that have one as best / among the best five "
        "candidates:\n\n" + table(["descriptor", *(f"seed {r['seed']}" for r in part["rows"])], found)
    )


SECTIONS = {
    "network": ("Thousands of frames through a network", network),
    "oracle": ("Drift with an oracle", oracle),
    "rendered": ("Loops found in rendered pictures", rendered),
}


def page() -> str:
    data = json.loads(SOURCE.read_text()) if SOURCE.exists() else {"parts": {}}
    text = ["# Long sequences", "", "Written by `benchmarks/render_long_sequence.py`."]
    for name, (title, section) in SECTIONS.items():
        part = data["parts"].get(name)
        text += ["", f"## {title}", ""]
        if part is None:
            text += [f"Not measured; `python benchmarks/long_sequence.py --part {name}` does it."]
            continue
        text += [section(part, data["targets"]), ""]
        text += [origin(part)]
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = page()
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.stderr.write(f"{PAGE.name} differs from its file; run benchmarks/render_long_sequence.py\n")
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
