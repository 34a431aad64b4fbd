"""What ``relief3d eval --list`` shows."""

from __future__ import annotations

from collections.abc import Sequence

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.registry import load_protocols
from relief3d.eval.published.registry import load_tables
from relief3d.eval.tables import MISSING, format_published, heading
from relief3d.pipelines.evaluate.models import MODELS


def format_list(name: str = "") -> str:
    """All protocols with their published rows, the models, and the published tables; or one protocol.

    Args:
        name: of the only protocol to show; empty for all.
    """
    lines: list[str] = []
    family = ""
    for key, protocol in load_protocols().items():
        if name and key != name:
            continue
        own = type(protocol).__module__.split(".")[-2]
        if own != family and not name:
            family = own
            lines.append(f"\n== {family}")
        lines += ["", *_describe(protocol)]
    if not name:
        lines.append("\n== models (--model)")
        lines += [f"{m.name:16} {m.title} ({', '.join(m.tasks)})" for m in MODELS]
        lines.append("\n== published tables")
        lines += [f"{t.key:36} {len(t.rows):2} rows  {t.title}" for t in load_tables().values()]
    return "\n".join(lines).strip()


def _describe(protocol: Protocol) -> list[str]:
    lines = [f"{protocol.name}: {protocol.title}", f"  {protocol.source} (task: {protocol.task})"]
    lines += [f"  layout: {line}" for line in protocol.layout.strip().splitlines()]
    rows = protocol.published()
    shown = [c for c in protocol.columns if not rows or any(c.key in r.values for r in rows)]
    head = ["published", *(heading(c) for c in shown)]
    body = [[r.method, *(format_published(r.values.get(c.key)) for c in shown)] for r in rows]
    return lines + [f"  {line}" for line in _aligned([head, *(body or [["none", *[MISSING] * len(shown)]])])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths)))
        for r in rows
    ]
