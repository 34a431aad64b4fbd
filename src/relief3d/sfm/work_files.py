"""Names of the files an interrupted estimate is continued from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from relief3d.core.contract import View
from relief3d.io.atomic import write_text
from relief3d.sfm.database import to_uint8
from relief3d.sfm.lenses import Lens

FORMAT = 1
"""Raise when the content of the work files changes its meaning."""


def digest(*parts: object) -> str:
    """Short stable name for JSON-like values."""
    text = json.dumps([FORMAT, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def view_fingerprint(view: View) -> list[object]:
    """What identifies a view's pixels: the file's size and time, or the pixels themselves."""
    camera = view.camera
    identity: list[object] = [view.name, camera.width, camera.height]
    if view.path is not None and view.path.is_file():
        facts = view.path.stat()
        identity += [facts.st_size, facts.st_mtime_ns, view.time]
    else:
        identity.append(pixel_digest(view))
    mask = view.load_mask()
    if mask is not None:
        identity.append(hashlib.sha256(np.packbits(mask.cpu().numpy()).tobytes()).hexdigest())
    return identity


def pixel_digest(view: View) -> str:
    """SHA-256 of the picture's 8-bit pixels."""
    return hashlib.sha256(to_uint8(view.load_image()).tobytes()).hexdigest()


def lens_key(lenses: Sequence[Lens]) -> list[dict[str, Any]]:
    """JSON-ready description of the lenses."""
    return [asdict(lens) for lens in lenses]


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(report, indent=1, sort_keys=True))
