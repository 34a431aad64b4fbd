"""Writes the report: one HTML file that needs nothing else and talks to nobody."""

from __future__ import annotations

import base64
import hashlib
import logging
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from relief3d.io.atomic import write_text
from relief3d.report import html, sections
from relief3d.report.data import ReportData
from relief3d.report.html import section, text
from relief3d.report.panels import panel
from relief3d.report.payload import Payload, PayloadLimits, build_payload
from relief3d.report.pictures import PictureLimits, depth_ramp

_log = logging.getLogger(__name__)
_SCRIPTS = (
    "linear.js",
    "payload.js",
    "draw.js",
    "camera.js",
    "frusta.js",
    "panel.js",
    "explorer.js",
    "page.js",
)


@dataclass(frozen=True)
class ReportLimits:
    """What keeps the file small: limits of the 3D data and of the pictures."""

    payload: PayloadLimits = field(default_factory=PayloadLimits)
    pictures: PictureLimits = field(default_factory=PictureLimits)


def write_report(data: ReportData, path: str | Path, limits: ReportLimits | None = None) -> Path:
    """Write ``data`` as one self-contained HTML file, atomically.

    The file holds its own styles, scripts, pictures and 3D data. A content security policy inside it forbids every
    request and every script or style other than its own, so hostile file names cannot run anything either.

    Args:
        data: what to show; a missing mesh, depth or point cloud only leaves out its part.
        path: the HTML file to write; its folder must exist.
        limits: sizes; the default keeps ordinary reports below about 15 MB.

    Returns:
        The path written.

    Raises:
        InputError, RunError: when the file cannot be written.
    """
    target = Path(path)
    page = render_report(data, limits or ReportLimits())
    write_text(target, page)
    _log.info("report written: %s (%s)", target, html.size(len(page.encode())))
    return target


def render_report(data: ReportData, limits: ReportLimits) -> str:
    """The whole page as text."""
    style = _asset("report.css")
    # One function scope for all parts: nothing leaks into the page's global names.
    script = '"use strict";(()=>{\n' + "\n".join(_asset(name) for name in _SCRIPTS) + "\n})();\n"
    payload = build_payload(data.scene, limits.payload)
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{text(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{text(data.title)} · relief3d</title><style>{style}</style></head><body>"
        f"{_ramp_definition()}{_body(data, payload, limits)}"
        f'<script type="application/json" id="r3d-header">{html.script_json(payload.header)}</script>'
        f'<script type="text/plain" id="r3d-data">{payload.base64() if payload.blocks else ""}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _body(data: ReportData, payload: Payload, limits: ReportLimits) -> str:
    low, high = payload.header["bounds"]["low"], payload.header["bounds"]["high"]
    something = bool(payload.blocks or payload.header["cameras"])
    extent = " × ".join(f"{b - a:.3g}" for a, b in zip(low, high)) if payload.blocks else ""
    viewer = _asset("viewer.html") if something else ""
    records = data.records()
    parts = [
        section("view", "Explore", viewer),
        section("orbit", "The mesh from around it", sections.orbit(data.orbit, limits.pictures)),
        section("evaluation", "Against the reference", sections.evaluation(data.evaluation)),
        *(section(p.anchor, p.title, panel(p, limits.pictures)) for p in data.panels),
        section("stages", "Where the time went", sections.stages(data.stages)),
        section("failed", "Views without a camera", sections.failures(records)),
        section(
            "views",
            "Views",
            _sorting(len(records)) + sections.cards(data, limits.pictures) if records else "",
        ),
        section("run", "This run", sections.facts(data)),
    ]
    links = [("view", "3D"), ("orbit", "Mesh"), ("evaluation", "Accuracy")]
    links += [*((p.anchor, p.name) for p in data.panels), ("stages", "Time")]
    links += [("failed", "Failures"), ("views", "Views"), ("run", "Run")]
    body = "".join(parts)
    present = "".join(f'<a href="#{i}">{text(n)}</a>' for i, n in links if f'<section id="{i}">' in body)
    return (
        f'<nav class="top"><a class="brand" href="#top"><span class="mark" aria-hidden="true"></span>relief3d</a>'
        f'<div class="links">{present}</div><button type="button" id="theme" title="Light or dark">◐</button></nav>'
        f'<main id="top"><header class="hero">{sections.header(data, extent)}</header>'
        f"{sections.warnings(data.warnings)}{body}</main>"
        "<footer>Made by relief3d. This file is self-contained and makes no network request.</footer>"
    )


def _sorting(views: int) -> str:
    if views < 3:
        return ""
    return (
        '<p class="sorting"><label>Order <select id="sort"><option value="order">as captured</option>'
        '<option value="name">by name</option><option value="kept">least depth first</option>'
        '<option value="error">largest error first</option></select></label></p>'
    )


def _ramp_definition() -> str:
    """The depth colours once, as an SVG gradient that legends refer to; near is left."""
    ramp = (depth_ramp(17) * 255).round().int().tolist()
    stops = "".join(
        f'<stop offset="{i / 16:.4f}" stop-color="#{r:02x}{g:02x}{b:02x}"/>'
        for i, (r, g, b) in enumerate(ramp)
    )
    return (
        '<svg width="0" height="0" class="definitions" aria-hidden="true"><defs>'
        f'<linearGradient id="ramp">{stops}</linearGradient></defs></svg>'
    )


def _asset(name: str) -> str:
    return resources.files("relief3d.report").joinpath("assets").joinpath(name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")
