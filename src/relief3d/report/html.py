"""Building blocks of the page. Everything that comes from outside passes through :func:`text`."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_UNITS = (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))


def text(value: object) -> str:
    """``value`` as HTML text, also safe inside a quoted attribute."""
    return html.escape(str(value), quote=True)


def script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    dumped = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return dumped.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def count(value: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def seconds(value: float) -> str:
    """A duration for people: ``0.42 s``, ``38 s``, ``3 min 07 s``, ``2 h 05 min``."""
    if not math.isfinite(value):
        return "unknown"
    if value < 10:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(value: float) -> str:
    """Bytes for people."""
    for unit, scale in _UNITS:
        if value >= scale:
            return f"{value / scale:.2f} {unit}" if value < 10 * scale else f"{value / scale:.0f} {unit}"
    return f"{value:.0f} B"


def number(value: object) -> str:
    """A fact as text: numbers to four significant digits, everything else as it is."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return count(value) if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not available"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {number(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ", ".join(number(v) for v in value)
    return str(value)


def length(value: float, metric: bool) -> str:
    """A length with its unit; scenes of unknown scale say so with the unit sign u."""
    return f"{value:.3g}\u202f{'m' if metric else 'u'}"


def tile(label: str, value: str, detail: str = "", tone: str = "") -> str:
    """One summary number."""
    more = f'<span class="tile-detail">{text(detail)}</span>' if detail else ""
    return (
        f'<div class="tile {text(tone)}"><span class="tile-label">{text(label)}</span>'
        f'<span class="tile-value">{text(value)}</span>{more}</div>'
    )


def table(rows: Iterable[tuple[object, object]], kind: str = "facts") -> str:
    """Two columns: label and value."""
    body = "".join(f'<tr><th scope="row">{text(a)}</th><td>{text(number(b))}</td></tr>' for a, b in rows)
    return f'<div class="scroll"><table class="{kind}">{body}</table></div>'


def section(identifier: str, title: str, body: str, lead: str = "") -> str:
    """One part of the page; empty text when there is nothing to show."""
    if not body:
        return ""
    intro = f'<p class="lead">{text(lead)}</p>' if lead else ""
    return f'<section id="{identifier}"><h2>{text(title)}</h2>{intro}{body}</section>'


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted rows."""
    rows: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            rows.extend(flatten(item, f"{name}."))
        else:
            rows.append((name, item))
    return rows
