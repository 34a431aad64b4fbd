"""Results as a page: our rows beside the published ones. No number comes from anywhere but result files and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relief3d.core.memory import GIB
from relief3d.eval.protocols.base import Column
from relief3d.eval.published.registry import load_tables
from relief3d.eval.tables import format_number, format_published, heading
from relief3d.io.atomic import write_text
from relief3d.io.json_file import read_json_object
from relief3d.pipelines.repro.experiment import Experiment, folder_name
from relief3d.pipelines.repro.registry import find_experiments

MISSING = "not available"


def write_page(root: Path, paper: str) -> Path:
    """Render ``results/PAPER/*.json`` below a folder to ``docs/results/PAPER.md`` there; returns the page."""
    return write_text(root / "docs" / "results" / f"{folder_name(paper)}.md", render_page(root, paper))


def render_page(root: Path, paper: str) -> str:
    """Markdown of everything measured of a paper; tables without a result say so.

    Raises:
        InputError: unknown paper, or a result file is damaged.
    """
    parts = [f"# {paper}: miniatures", f"Made by `relief3d repro {paper}`; every number comes from a file."]
    folder = root / "results" / folder_name(paper)
    files = [read_json_object(path) for path in sorted(folder.glob("*.json"))]
    for experiment in find_experiments(paper):
        mine = [f for f in files if f.get("name") == experiment.name and f.get("paper") == paper]
        parts.append(f"## {experiment.title}")
        parts += [f"- {note}" for note in experiment.notes]
        if not mine:
            parts.append("Not measured.")
        for result in mine:
            parts += _section(experiment, result)
        parts += _published(experiment)
    return "\n\n".join(parts) + "\n"


def _section(experiment: Experiment, result: Mapping[str, Any]) -> list[str]:
    columns, seeds = experiment.columns, result["seeds"]
    head = f"### Budget {result['budget']}, size {result['size']}, seeds {', '.join(map(str, seeds))}"
    rows, single = [], []
    for arm in result["arms"].values():
        rows.append([arm["title"], *(_cell(arm, column) for column in columns)])
        for seed, numbers in arm["per_seed"].items():
            cells = [format_number(numbers.get(c.key)) for c in columns]
            attempts = arm["attempts"][seed]
            took = f"{arm['wall_seconds'][seed]:.0f} s" + ("" if attempts == 1 else f" (attempt {attempts})")
            memory = f"{arm['peak_bytes'][seed] / GIB:.2f} GiB"
            single.append([arm["title"], "–" if arm["baseline"] else seed, *cells, took, memory])
    parts = [
        head,
        _table(["arm", *(heading(c) for c in columns)], rows),
        "Mean over seeds, in brackets the 95 % interval of Student's t.",
        *_comparisons(experiment, result),
        "Every seed:",
        _table(["arm", "seed", *(heading(c) for c in columns), "time", "memory"], single),
        "Time is that of the last attempt, which went on where the one before was interrupted. Memory is the most of "
        + ("the run." if result["peak_is_own"] else "the process since it began, earlier runs included."),
    ]
    committed = (
        f"Parameters stood in commit {_short(str(result['parameters_commit']))} before the first run."
        if result["parameters_were_committed"]
        else "Parameters were not committed before the first run, so this result proves only that everything runs."
    )
    machines = [result["hardware"], *result["other_hardware"]]
    commits = result["run_commits"]
    parts.append(
        f"{committed} Runs of commit{'s' if len(commits) > 1 else ''} {', '.join(map(_short, commits))}. "
        f"`{result['command']}`, {'; '.join(map(_machine, machines))}, {result['wall_seconds']:.0f} s in all runs "
        f"together, at most {result['peak_bytes'] / GIB:.2f} GiB."
    )
    return parts


def _short(commit: str) -> str:
    """The beginning of a commit; a plus sign at its end says that files had been changed."""
    return commit[:12] + ("+" if commit.endswith("+") else "")


def _machine(facts: Mapping[str, Any]) -> str:
    return f"{facts.get('accelerator', facts['machine'])}, {facts['cores']} cores, {facts['threads']} threads"


def _cell(arm: Mapping[str, Any], column: Column) -> str:
    text = format_number(arm["mean"].get(column.key))
    bounds = arm["interval"].get(column.key)
    return text if bounds is None else f"{text} [{format_number(bounds[0])}, {format_number(bounds[1])}]"


def _comparisons(experiment: Experiment, result: Mapping[str, Any]) -> list[str]:
    if not result["comparisons"]:
        return []
    labels = {column.key: column.label for column in experiment.columns}
    lines = []
    for c in result["comparisons"]:
        first, second = (result["arms"][c[side]]["title"] for side in ("first", "second"))
        text = f"- {labels[c['column']]}, {first} minus {second}: {format_number(c['mean'])}"
        if c["interval"] is not None:
            text += f" [{format_number(c['interval'][0])}, {format_number(c['interval'][1])}]"
        verdict = ": an effect." if c["claimed"] else ": no effect can be claimed"
        if not c["claimed"]:
            why = (
                "an arm is no better than a constant"
                if c["baselines"]
                else "there is no constant to compare with"
            )
            verdict += "." if c["learned"] else f", because {why}."
        lines.append(text + verdict)
    return ["\n".join(lines)]


def _published(experiment: Experiment) -> list[str]:
    """Published rows, of other sizes and data: beside ours, never comparable with them."""
    parts = []
    tables = load_tables()
    for key, mapping in experiment.published.items():
        table = tables[key]
        shown = [c for c in experiment.columns if c.key in mapping]
        rows = []
        for row in table.rows:
            values = [row.values.get(mapping[c.key]) for c in shown]
            cells = [MISSING if value is None else format_published(value) for value in values]
            rows.append([row.method, row.source, *cells])
        parts.append(f"Published (full size, other data): {table.title}.")
        parts.append(_table(["method", "source", *(heading(c) for c in shown)], rows))
        if table.note:
            parts.append(table.note)
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)
