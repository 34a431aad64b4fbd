"""Further parts of a report that a method brings itself: a note, a table, a chart, pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from relief3d.report import html
from relief3d.report.html import text
from relief3d.report.pictures import PictureLimits, fit, jpeg_address

_WIDTH, _HEIGHT, _MARGIN = 720.0, 220.0, 36.0
_COLOURS = ("#2f7de1", "#d9822b", "#3a9d5d", "#8b5cf6")


@dataclass(frozen=True)
class Chart:
    """Values over whole numbers, and lines between them.

    Attributes:
        label: of the vertical axis.
        across: of the horizontal axis.
        series: name to one value per number; NaN leaves a gap. Drawn as dots joined by a line.
        links: pairs of numbers that are joined by an arc, with True for those drawn in red.
    """

    label: str
    across: str
    series: dict[str, Sequence[float]]
    links: Sequence[tuple[int, int, bool]] = ()


@dataclass(frozen=True)
class Panel:
    """One section of the page.

    Attributes:
        name: short, for the link at the top.
        title: of the section.
        note: what it shows, in a sentence.
        columns: of the table.
        rows: of the table; numbers are formatted.
        chart: drawn above the table.
        pictures: (caption, (3, h, w) RGB in [0, 1]) in rows of ``across``.
        across: pictures beside each other.
    """

    name: str
    title: str
    note: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    chart: Chart | None = None
    pictures: Sequence[tuple[str, Tensor]] = field(default=())
    across: int = 4

    @property
    def anchor(self) -> str:
        """Of the section."""
        return "panel-" + "".join(c for c in self.name.lower() if c.isalnum())


def panel(data: Panel, limits: PictureLimits) -> str:
    """The inside of a section."""
    parts = [f'<p class="under">{text(data.note)}</p>' if data.note else ""]
    if data.chart is not None:
        parts.append(chart(data.chart))
    if data.rows:
        head = "".join(f'<th scope="col">{text(c)}</th>' for c in data.columns)
        body = "".join(
            "<tr>" + "".join(f'<td class="num">{text(html.number(v))}</td>' for v in row) + "</tr>"
            for row in data.rows
        )
        parts.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{body}</table></div>')
    if data.pictures:
        figures = "".join(
            f'<figure><img loading="lazy" alt="{text(caption)}" src="{jpeg_address(fit(p, limits.max_side))}">'
            f"<figcaption>{text(caption)}</figcaption></figure>"
            for caption, p in data.pictures
        )
        parts.append(f'<div class="orbit">{figures}</div>')
    return "".join(parts)


def chart(data: Chart) -> str:
    """An SVG drawing; nothing without a finite value."""
    every = [v for values in data.series.values() for v in values if math.isfinite(v)]
    count = max((len(v) for v in data.series.values()), default=0)
    if not every or not count:
        return ""
    low, high = min(every), max(every)
    pad = 0.08 * (high - low) or max(0.01, 0.05 * abs(high))
    low, high = low - pad, high + pad

    def x(k: float) -> float:
        return _MARGIN + (_WIDTH - 2 * _MARGIN) * (k / max(1, count - 1) if count > 1 else 0.5)

    def y(v: float) -> float:
        return _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * (v - low) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="100%" role="img" aria-label="{text(data.label)}">',
        _words(4, 14, data.label),
        _words(_WIDTH - _MARGIN, _HEIGHT - 6, data.across, "end"),
        _words(4, y(high - pad) + 4, f"{high - pad:.3g}"),
        _words(4, y(low + pad) + 4, f"{low + pad:.3g}"),
    ]
    first = next(iter(data.series.values()))
    for a, b, bad in data.links:
        if a < len(first) and b < len(first) and math.isfinite(first[a]) and math.isfinite(first[b]):
            top = min(y(first[a]), y(first[b])) - 14
            parts.append(
                f'<path d="M{x(a):.1f} {y(first[a]):.1f} Q{x((a + b) / 2):.1f} {top:.1f} {x(b):.1f} '
                f'{y(first[b]):.1f}" fill="none" stroke="{"#d23f3f" if bad else "#999999"}" '
                f'stroke-width="{2 if bad else 1}"/>'
            )
    for n, (name, values) in enumerate(data.series.items()):
        colour = _COLOURS[n % len(_COLOURS)]
        dots = [(x(k), y(v)) for k, v in enumerate(values) if math.isfinite(v)]
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in dots]
        parts.append(_words(_MARGIN + 150 * (n + 1), 14, f"● {name}", colour=colour))
    return "".join(parts) + "</svg>"


def _words(x: float, y: float, words: str, anchor: str = "start", colour: str = "#888888") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}" fill="{colour}">{text(words)}</text>'
