"""The parts of the page, one function each: data in, escaped HTML out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from relief3d.report import html
from relief3d.report.data import ReportData, StageTiming, ViewRecord
from relief3d.report.html import text
from relief3d.report.pictures import (
    PictureLimits,
    confidence_picture,
    depth_picture,
    fit,
    jpeg_address,
    masked_address,
)

_PLACED = {
    "command",
    "seed",
    "seconds",
    "peak_memory_bytes",
    "versions",
    "hardware",
    "created",
    "input",
    "config",
}


def header(data: ReportData, extent: str) -> str:
    """Title, one-sentence outcome and the summary numbers."""
    scene, summary = data.scene, data.summary
    records = data.records()
    registered = sum(r.registered for r in records)
    tone = "good" if registered == len(records) and records else "warn" if registered else "bad"
    tiles = [html.tile("Cameras", f"{registered} / {len(records)}", "views registered", tone)]
    errors = [r.reprojection_error for r in records if r.reprojection_error is not None]
    if scene.sparse is not None:
        detail = f"mean error {sum(errors) / len(errors):.2f} px" if errors else "triangulated"
        tiles.append(html.tile("Tie points", html.count(len(scene.sparse)), detail))
    shares = [s for s in (kept_share(r) for r in records) if s is not None]
    if shares:
        tiles.append(
            html.tile(
                "Depth kept",
                f"{100 * sum(shares) / len(shares):.0f} %",
                f"of the pixels of {len(shares)} views",
            )
        )
    if scene.points is not None:
        tiles.append(html.tile("Points", html.count(int(scene.points.xyz.shape[0])), "fused cloud"))
    if scene.mesh is not None:
        faces, vertices = int(scene.mesh.faces.shape[0]), int(scene.mesh.vertices.shape[0])
        tiles.append(html.tile("Mesh", html.count(faces), f"triangles, {html.count(vertices)} vertices"))
    if extent:
        tiles.append(html.tile("Extent", extent, "metres" if scene.metric else "unscaled units"))
    total = _number(summary.get("seconds")) or sum(s.seconds for s in data.stages)
    if total:
        tiles.append(html.tile("Time", html.seconds(total), "wall clock"))
    memory = _number(summary.get("peak_memory_bytes"))
    if memory:
        tiles.append(html.tile("Memory", html.size(memory), "peak resident"))
    source = summary.get("input")
    under = [text(source)] if source else []
    if summary.get("created"):
        under.append(text(summary["created"]))
    line = f'<p class="under">{" · ".join(under)}</p>' if under else ""
    return f'<h1>{text(data.title)}</h1>{line}<div class="tiles">{"".join(tiles)}</div>'


def kept_share(record: ViewRecord) -> float | None:
    """Share of the pixels with a depth, in [0, 1]: the record's own number, or counted."""
    if record.kept_share is not None:
        return float(record.kept_share)
    depth = record.load_depth()
    return None if depth is None else float(depth.valid.to(torch.float32).mean())


def warnings(messages: Sequence[str]) -> str:
    """Warnings as a list, or nothing."""
    if not messages:
        return ""
    items = "".join(f"<li>{text(m)}</li>" for m in messages)
    return f'<aside class="warnings" role="note"><strong>Please note</strong><ul>{items}</ul></aside>'


def stages(timings: Sequence[StageTiming]) -> str:
    """Bars of wall time; widths are SVG attributes, because the page forbids inline styles."""
    total = sum(max(0.0, s.seconds) for s in timings)
    if not timings or total <= 0:
        return ""
    longest = max(s.seconds for s in timings)
    rows = []
    for stage in timings:
        share = 100 * stage.seconds / total
        width = max(0.4, 100 * stage.seconds / longest)
        extra = [html.size(stage.peak_bytes)] if stage.peak_bytes else []
        extra += [stage.note] if stage.note else []
        rows.append(
            f'<tr><th scope="row">{text(stage.name)}</th><td class="bar"><svg width="100%" height="14" '
            f'role="img" aria-label="{share:.0f} percent"><rect class="bar-back" width="100%" height="14" rx="4"/>'
            f'<rect class="bar-fill" width="{width:.2f}%" height="14" rx="4"/></svg></td>'
            f'<td class="num">{text(html.seconds(stage.seconds))}</td><td class="num dim">{share:.0f} %</td>'
            f'<td class="dim">{text(", ".join(extra))}</td></tr>'
        )
    return f'<div class="scroll"><table class="stages">{"".join(rows)}</table></div>'


def orbit(pictures: Sequence[Tensor], limits: PictureLimits) -> str:
    """Pictures of the mesh from around it."""
    figures = [
        f'<figure><img loading="lazy" alt="The mesh from direction {i + 1} of {len(pictures)}" '
        f'src="{jpeg_address(fit(p, max(limits.max_side, 720)), quality=85)}"></figure>'
        for i, p in enumerate(pictures)
    ]
    return f'<div class="orbit">{"".join(figures)}</div>' if figures else ""


def evaluation(numbers: Mapping[str, object] | None) -> str:
    """Numbers against a reference."""
    return html.table(html.flatten(numbers)) if numbers else ""


def failures(records: Sequence[ViewRecord]) -> str:
    """Views without a camera and why."""
    lost = [r for r in records if not r.registered]
    return (
        html.table([(r.name, r.reason or "no reason given") for r in lost], "facts failures") if lost else ""
    )


def cards(data: ReportData, limits: PictureLimits) -> str:
    """One card per view: picture, depth, confidence and numbers."""
    records = data.records()
    side = limits.side(len(records))
    known = {view.name: i for i, view in enumerate(data.scene.views)}
    posed = set(data.scene.posed)
    body = [
        _card(r, known.get(r.name, -1), known.get(r.name) in posed, side, data.scene.metric) for r in records
    ]
    return f'<div class="cards">{"".join(body)}</div>' if body else ""


def _card(record: ViewRecord, index: int, posed: bool, side: int, metric: bool) -> str:
    panels, legend = _panels(record, index, side, metric)
    facts: list[tuple[str, object]] = []
    share = kept_share(record)
    if share is not None:
        facts.append(("Depth kept", f"{100 * share:.1f} %"))
    if record.reprojection_error is not None:
        facts.append(("Reprojection", f"{record.reprojection_error:.2f} px"))
    if record.observations is not None:
        facts.append(("Tie points", html.count(int(record.observations))))
    facts += [(str(k), html.number(v)) for k, v in record.extra.items()]
    rows = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in facts)
    near = ""
    if record.neighbours:
        near = (
            f'<p class="near"><span>Compared with</span> {", ".join(text(n) for n in record.neighbours)}</p>'
        )
    badge = (
        '<span class="badge good">camera</span>'
        if record.registered
        else '<span class="badge bad">no camera</span>'
    )
    reason = f'<p class="reason">{text(record.reason)}</p>' if record.reason else ""
    jump = f'<button type="button" class="jump" data-view="{index}">Look through</button>' if posed else ""
    meter = "" if share is None else _meter(share)
    return (
        f'<article class="card" data-name="{text(record.name)}" data-kept="{-1 if share is None else share:.4f}" '
        f'data-error="{-1 if record.reprojection_error is None else record.reprojection_error:.4f}">'
        f'<header><h3 title="{text(record.name)}">{text(record.name)}</h3>{badge}{jump}</header>'
        f'<div class="panels n{len(panels)}">{"".join(panels)}</div>{legend}{meter}'
        f"<dl>{rows}</dl>{near}{reason}</article>"
    )


def _meter(share: float) -> str:
    return (
        '<svg class="meter" width="100%" height="4" aria-hidden="true">'
        '<rect class="bar-back" width="100%" height="4" rx="2"/>'
        f'<rect class="bar-fill" width="{100 * min(1.0, max(0.0, share)):.2f}%" height="4" rx="2"/></svg>'
    )


def _panels(record: ViewRecord, index: int, side: int, metric: bool) -> tuple[list[str], str]:
    panels, legend = [], ""
    image, depth = record.load_image(), record.load_depth()
    if image is not None:
        identifier = f' id="picture-{index}"' if index >= 0 else ""
        small = fit(image, side)
        panels.append(
            _figure(jpeg_address(small), "Picture", f"Picture {record.name}", _size(small), identifier)
        )
    if depth is not None:
        coloured = depth_picture(depth, side)
        if coloured is not None:
            address = masked_address(coloured.rgb, coloured.valid)
            panels.append(_figure(address, "Depth", f"Depth of {record.name}", _size(coloured.rgb)))
            legend = _legend(coloured.near, coloured.far, metric)
    confidence = record.load_confidence(depth)
    if confidence is not None:
        shown = confidence_picture(confidence, side)
        panels.append(
            _figure(jpeg_address(shown), "Confidence", f"Confidence of {record.name}", _size(shown))
        )
    return panels, legend


def _legend(near: float, far: float, metric: bool) -> str:
    """The depth scale; it is even in inverse depth, so its middle is the harmonic mean."""
    marks = [html.length(v, metric) for v in (near, 2 * near * far / (near + far), far)]
    labels = "".join(f"<span>{text(m)}</span>" for m in marks)
    return (
        '<div class="legend"><svg width="100%" height="8" aria-hidden="true">'
        f'<rect width="100%" height="8" rx="4" fill="url(#ramp)"/></svg><div>{labels}</div></div>'
    )


def _figure(address: str, caption: str, alt: str, size: tuple[int, int], identifier: str = "") -> str:
    height, width = size
    return (
        f'<figure><img{identifier} width="{width}" height="{height}" decoding="async" '
        f'alt="{text(alt)}" src="{address}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def _size(picture: Tensor) -> tuple[int, int]:
    return int(picture.shape[-2]), int(picture.shape[-1])


def facts(data: ReportData) -> str:
    """Command, seed, versions, hardware, configuration and whatever else the run says about itself."""
    summary = data.summary
    parts = []
    command = summary.get("command")
    if command:
        line = command if isinstance(command, str) else shlex.join(str(c) for c in command)
        parts.append(f'<pre class="command"><code>{text(line)}</code></pre>')
    rows: list[tuple[object, object]] = []
    if "seed" in summary:
        rows.append(("Seed", str(summary["seed"])))
    for key, label in (("versions", "Versions"), ("hardware", "Hardware")):
        value = summary.get(key)
        if isinstance(value, Mapping):
            rows.append((label, " · ".join(f"{k} {v}" for k, v in html.flatten(value))))
        elif value:
            rows.append((label, value))
    if rows:
        parts.append(html.table(rows))
    config = summary.get("config")
    if isinstance(config, Mapping) and config:
        parts.append(_folded("Options of this run", html.flatten(config)))
    others = {k: v for k, v in summary.items() if k not in _PLACED and not _is_matrix_list(v)}
    if others:
        parts.append(_folded("Everything scene.json says", html.flatten(others)))
    return "".join(parts)


def _folded(title: str, rows: list[tuple[str, object]]) -> str:
    return f"<details><summary>{text(title)}</summary>{html.table(rows)}</details>"


def _is_matrix_list(value: object) -> bool:
    """Lists of records (cameras) are better read in the file than on the page."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
