"""What the recipe multiview-supervised learns in its budget mini: the numbers of a run that is done, beside constants.

    relief3d train multiview-supervised --size micro --budget mini -o RUN
    python benchmarks/training_mini.py RUN

Writes ``results/training/mini_run.json`` from the log and the card of the run, and says of every held-out family
whether the network is better than what is known without looking at the pictures. One seed: no interval, no claim beyond
this run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from relief3d.io.atomic import write_text
from relief3d.io.json_file import read_json_object
from relief3d.pipelines.train.configuration import to_plain
from relief3d.pipelines.train.run_folder import read_run

RESULT = Path(__file__).resolve().parent.parent / "results" / "training" / "mini_run.json"


def collect(folder: Path) -> dict[str, Any]:
    """The content of the result file.

    Raises:
        SystemExit: the run has not come to its end.
    """
    spec = read_run(folder)
    if not (folder / "model.json").is_file():
        raise SystemExit(f"{folder}: the run is not finished")
    card = read_json_object(folder / "model.json")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    marks = [(0, 0)] + [(line["step"], line["samples"]) for line in train]
    seconds = sum(line["seconds_per_step"] * (b[0] - a[0]) for line, a, b in zip(train, marks, marks[1:]))
    curve = [
        {k: v for k, v in line.items() if k != "kind" and "constant" not in k and "mean_map" not in k}
        for line in lines
        if line["kind"] == "evaluation"
    ]
    families = {}
    for family in spec.config.evaluation.families:
        own = {
            k.removeprefix(f"{family}_"): v for k, v in card["numbers"].items() if k.startswith(f"{family}_")
        }
        families[family] = {
            **own,
            "trained_on": family in [share.family for share in spec.config.worlds],
            "depth_beats_mean_map": own["abs_rel"] < own["abs_rel_mean_map"],
            "poses_beat_constant": own["auc30"] > own["auc30_constant"],
        }
    return {
        "command": f"relief3d train {spec.recipe.name} --size {spec.size} --budget {spec.budget} -o RUN; "
        "python benchmarks/training_mini.py RUN",
        **spec.header(),
        "parameters": card["parameters"],
        "weights": card["weights"],
        "steps": card["steps"],
        "skipped_steps": card["skipped_steps"],
        "samples": card["samples"],
        "held_out_scenes": spec.config.evaluation.scenes,
        "views": spec.config.evaluation.views,
        "families": families,
        "curve": curve,
        "wall_seconds_of_logged_steps": round(seconds, 1),
        "peak_bytes": max(line["peak_bytes"] for line in train),
        "config": to_plain(spec.config),
        "hardware": card["hardware"],
        "versions": card["versions"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    write_text(RESULT, json.dumps(collect(parser.parse_args().run), indent=1) + "\n")


if __name__ == "__main__":
    main()
