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


def page() -> str:
    return (
        "# The training engine, measured\n\nWritten by `benchmarks/render_training.py` from `results/training/`.\n\n"
        f"## Cost over a bare loop\n\n{overhead()}\n\n## Killed runs\n\n{kills()}\n"
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
