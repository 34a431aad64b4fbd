"""Write docs/results/training.md from the result files of the training engine; no number is typed by hand.

    python benchmarks/render_training.py [--check]

With ``--check`` nothing is written; the exit code says whether the page agrees with the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "training"
NEW = "\n"
PAGE = ROOT / "docs" / "results" / "training.md"


def read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def source(result: dict[str, Any]) -> str:
    commit = (result.get("commit") or "unknown")[:10]
    return (
        f"`{result['command']}`, commit {commit}, {result['hardware']['cores']} cores, seed {result['seed']}"
    )


def overhead() -> str:
    found = read("overhead")
    if found is None:
        return "Not measured."
    seconds, pairs = found["seconds_per_step"], found["ratio_of_pairs"]
    return (
        "| parameters | bare loop, ms per step | engine, ms per step | ratio of medians | ratios of pairs of rounds |\n"
        "|---|---|---|---|---|\n"
        f"| {found['parameters'] / 1e6:.2f} M | {1000 * seconds['bare']:.1f} | {1000 * seconds['engine']:.1f} | "
        f"{found['ratio']:.3f} | median {pairs['median']:.3f}, {pairs['lowest']:.3f} to {pairs['highest']:.3f} |\n\n"
        f"{found['rounds']} rounds of {found['steps_per_round']} steps in turns, time {found['clock']}; "
        f"the bound is 1.05. {source(found)}."
    )


def kills() -> str:
    found = read("kill_resume")
    if found is None:
        return "Not measured."
    return (
        "| kills (SIGKILL) | of these inside a save | resumed by themselves, identical weights at the end |\n"
        "|---|---|---|\n"
        f"| {found['kills']} | {found['inside_a_save']} | {found['resumed_with_identical_weights']} |\n\n"
        "Weights, average, moments and the lines of the log are compared with an uninterrupted run; "
        f"SHA-256 of the weights `{found['sha256_of_weights'][:16]}…`. {source(found)}."
    )


def mini() -> str:
    found = read("mini_run")
    if found is None:
        return "Not measured."
    rows, words = [], []
    for name, f in found["families"].items():
        where = "trained on, other worlds" if f["trained_on"] else "held out whole"
        rows.append(
            f"| {name} ({where}) | {f['abs_rel']:.3f} | {f['abs_rel_mean_map']:.3f} | {f['abs_rel_constant']:.3f} | "
            f"{f['auc30']:.1f} | {f['auc30_constant']:.1f} | {f['rotation_deg']:.1f} | {f['direction_deg']:.1f} |"
        )
        depth = (
            "is better in depth than the mean map"
            if f["depth_beats_mean_map"]
            else "is no better in depth than the mean map"
        )
        poses = (
            "beats every constant in poses"
            if f["poses_beat_constant"]
            else "does not beat the constants in poses"
        )
        words.append(f"- {name}: the network {depth} and {poses}.")
    names = list(found["families"])
    curve = []
    for line in found["curve"]:
        cells = [f"{line[f'{n}_abs_rel']:.3f} | {line[f'{n}_auc30']:.1f}" for n in names]
        curve.append(f"| {line['step']} | {' | '.join(cells)} |")
    heads = " | ".join(f"{n}: AbsRel | AUC@30" for n in names)
    minutes = found["wall_seconds_of_logged_steps"] / 60
    return (
        "| held-out worlds | AbsRel | mean depth map | one depth | AUC@30, % | best constant trajectory | "
        f"rotation, deg | direction, deg |\n|{'---|' * 8}\n{NEW.join(rows)}\n\n{NEW.join(words)}\n\n"
        f"{found['held_out_scenes']} worlds of {found['views']} views in random order per family; depth after one "
        "ratio of medians per sequence; rotation and direction are medians over pairs. "
        f"{found['parameters'] / 1e6:.2f} M parameters, {found['steps']} steps, {found['samples']} samples, "
        f"{minutes:.0f} minutes between log lines on one thread, with other programs at work, at most "
        f"{found['peak_bytes'] / 2**30:.2f} GiB. One seed, so there is no interval. {source(found)}.\n\n"
        f"| step | {heads} |\n|---|{'---|---|' * len(names)}\n{NEW.join(curve)}"
    )


def page() -> str:
    return (
        "# The training engine, measured\n\nWritten by `benchmarks/render_training.py` from `results/training/`.\n\n"
        f"## Cost over a bare loop\n\n{overhead()}\n\n## Killed runs\n\n{kills()}"
        f"\n\n## What the budget mini learns\n\n{mini()}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    text = page()
    if parser.parse_args().check:
        if not PAGE.exists() or PAGE.read_text() != text:
            print(f"{PAGE.relative_to(ROOT)} differs from the result files", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
