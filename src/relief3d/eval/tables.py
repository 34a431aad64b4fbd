"""Result tables: our rows beside the published ones, in Markdown and HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from relief3d.eval.protocols.base import Column, Protocol
from relief3d.eval.results import EvaluationResult

MISSING = "–"
ARROWS = {"lower": "↓", "higher": "↑", None: ""}


def format_number(value: float | None) -> str:
    """Four significant digits, without an exponent where it can be avoided; a dash where there is no value."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    magnitude = abs(value)
    if magnitude >= 1e6 or magnitude < 1e-5:
        return f"{value:.3g}"
    text = f"{value:.{max(0, 4 - len(str(int(magnitude))))}f}" if magnitude >= 1 else f"{value:.4g}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def format_published(value: float | None) -> str:
    """A published figure with all digits it was printed with (but for zeros at its end)."""
    return MISSING if value is None else f"{value:.12g}"


def heading(column: Column) -> str:
    """Label with unit and the better direction."""
    unit = f" {column.unit}" if column.unit else ""
    return f"{column.label}{unit} {ARROWS[column.better]}".strip()


def table_rows(protocol: Protocol, results: Sequence[EvaluationResult]) -> list[list[str]]:
    """Cells: method, source, then the columns; our rows first, then the published ones."""
    rows = []
    for result in results:
        label = result.model + (" (sees the truth)" if result.oracle else "")
        kind = "ours" if result.comparable else f"ours, {result.data}, not comparable with published rows"
        if result.left_out:
            kind += f"; incomplete: {result.left_out} samples left out"
        cells = [label, kind]
        for column in protocol.columns:
            text = format_number(result.summary.get(column.key))
            bounds = result.interval.get(column.key)
            if bounds is not None and text != MISSING:
                text += f" [{format_number(bounds[0])}, {format_number(bounds[1])}]"
            cells.append(text)
        rows.append(cells)
    for row in protocol.published():
        rows.append(
            [row.method, row.source, *(format_published(row.values.get(c.key)) for c in protocol.columns)]
        )
    return rows


def _shown_columns(protocol: Protocol, results: Sequence[EvaluationResult]) -> list[int]:
    """Columns with at least one number."""
    rows = table_rows(protocol, results)
    return [i for i in range(len(protocol.columns)) if any(r[2 + i] != MISSING for r in rows)]


def markdown_table(protocol: Protocol, results: Sequence[EvaluationResult]) -> str:
    """A Markdown table of our results and the published rows."""
    shown = _shown_columns(protocol, results)
    head = ["method", "source", *(heading(protocol.columns[i]) for i in shown)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * 2 + "---:|" * len(shown)]
    for row in table_rows(protocol, results):
        cells = [row[0], row[1], *(row[2 + i] for i in shown)]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines)


def markdown_page(protocol: Protocol, results: Sequence[EvaluationResult], level: int = 1) -> str:
    """Heading, source, notes and table of one protocol."""
    parts = [f"{'#' * level} {protocol.name}: {protocol.title}", f"Protocol: {protocol.source}."]
    if protocol.notes:
        parts.append("\n".join(f"- {note}" for note in protocol.notes))
    parts.append(markdown_table(protocol, results))
    if any(r.interval and any(v is not None for v in r.interval.values()) for r in results):
        parts.append("Brackets: 95 % bootstrap interval over scenes.")
    for result in results:
        for name, reason in list(result.failed.items())[:5]:
            parts.append(f"{result.model} failed on {name}: {reason}")
    commands = [f"`{c}`" for r in results if (c := r.provenance.get("command"))]
    if commands:
        parts.append("Made by " + ", ".join(dict.fromkeys(commands)) + ".")
    return "\n\n".join(parts) + "\n"


_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
    "table{border-collapse:collapse;display:block;overflow-x:auto}"
    "td,th{padding:.3rem .6rem;border-bottom:1px solid #ccc;text-align:right;white-space:nowrap}"
    "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}tr.ours td{background:#eef6ee}"
    "figure{display:inline-block;margin:.5rem}img{max-width:100%}"
)


def html_page(
    protocol: Protocol, results: Sequence[EvaluationResult], panels: Mapping[str, bytes] | None = None
) -> str:
    """A self-contained page: table and pictures.

    Args:
        protocol: gives columns and notes.
        results: our rows.
        panels: PNG files by caption.
    """
    shown = _shown_columns(protocol, results)
    head = ["method", "source", *(heading(protocol.columns[i]) for i in shown)]
    lines = ["<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in head) + "</tr>"]
    for index, row in enumerate(table_rows(protocol, results)):
        cells = [row[0], row[1], *(row[2 + i] for i in shown)]
        kind = ' class="ours"' if index < len(results) else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    notes = "".join(f"<li>{html.escape(n)}</li>" for n in protocol.notes)
    failed = "".join(
        f"<li>{html.escape(r.model)} failed on {html.escape(name)}: {html.escape(reason)}</li>"
        for r in results
        for name, reason in r.failed.items()
    )
    pictures = "".join(
        f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, data in (panels or {}).items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(protocol.name)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(protocol.name)}: {html.escape(protocol.title)}</h1>"
        f"<p>{html.escape(protocol.source)}</p><ul>{notes}</ul><table>{''.join(lines)}</table>"
        f"<p>Brackets: 95 % bootstrap interval over scenes.</p><ul>{failed}</ul>{pictures}</html>\n"
    )
