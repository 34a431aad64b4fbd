"""What ``relief3d doctor`` looks at: is this machine ready, and if not, what to install."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relief3d.core.errors import MissingExtraError
from relief3d.core.memory import GIB, available_memory


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


_CORE = ("torch", "numpy", "scipy", "pillow", "tyro", "safetensors", "trimesh", "scikit-image")
_EXTRAS = {
    "sfm": ("pycolmap", "pycolmap", "solving for cameras"),
    "video": ("av", "av", "reading video"),
    "mesh": ("open3d-cpu", "open3d", "fast fusion (without it the slower torch back end is used)"),
    "viewer": ("viser", "viser", "relief3d view"),
    "heic": ("pillow-heif", "pillow_heif", "HEIC photos"),
    "exr": ("OpenEXR", "OpenEXR", "EXR images and depth"),
    "hub": ("transformers", "transformers", "learned matchers"),
}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_import(module: str, extra: str) -> str | None:
    """None when the module loads, otherwise the reason."""
    import importlib

    try:
        if module == "open3d":
            from relief3d.fusion.open3d_backend import load_open3d

            load_open3d()
        else:
            importlib.import_module(module)
    except (ImportError, OSError, MissingExtraError) as exc:
        return str(exc).splitlines()[0]
    return None


def examine() -> list[Finding]:
    """All findings, required ones first."""
    found = [
        Finding(
            "python",
            sys.version_info >= (3, 11),
            f"{platform.python_version()} on {platform.platform()}",
            "install Python 3.11 or newer",
            required=True,
        )
    ]
    for name in _CORE:
        version = _version(name)
        found.append(
            Finding(name, version is not None, version or "missing", f"pip install {name}", required=True)
        )
    for extra, (distribution, module, purpose) in _EXTRAS.items():
        version = _version(distribution) or (_version("open3d") if module == "open3d" else None)
        problem = None if version is None else _check_import(module, extra)
        detail = f"{version or 'missing'}: {purpose}" + (f" – does not load: {problem}" if problem else "")
        found.append(
            Finding(
                f"[{extra}]",
                version is not None and problem is None,
                detail,
                f"pip install 'relief3d[{extra}]'",
                required=extra == "sfm",
            )
        )
    found += _machine()
    return found


def _machine() -> list[Finding]:
    import torch

    memory = available_memory()
    devices = ["cpu"]
    from relief3d.core.device import resolve_device

    best = resolve_device("auto")
    if best.type != "cpu":
        devices.append(str(best))
    free = shutil.disk_usage(Path.cwd()).free
    return [
        Finding("devices", True, f"{', '.join(devices)}; {os.cpu_count()} cores, torch {torch.__version__}"),
        Finding(
            "memory",
            memory is None or memory > 3 * GIB,
            "unknown" if memory is None else f"{memory / GIB:.1f} GiB free",
            "close programs, or use --quality fast and a smaller --depth-width",
        ),
        Finding("disk", free > 2 * GIB, f"{free / GIB:.1f} GiB free here", "free some space"),
        Finding(
            "temporary folder",
            os.access(tempfile.gettempdir(), os.W_OK),
            tempfile.gettempdir(),
            "set TMPDIR to a folder you may write to",
            required=True,
        ),
    ]


def format_findings(findings: list[Finding]) -> str:
    """A table for people."""
    lines = []
    for f in findings:
        mark = "ok  " if f.ok else ("MISS" if f.required else "--  ")
        lines.append(f"{mark} {f.name:<17} {f.detail}" + ("" if f.ok else f"  -> {f.remedy}"))
    bad = [f for f in findings if f.required and not f.ok]
    lines.append("ready" if not bad else f"not ready: {', '.join(f.name for f in bad)}")
    return "\n".join(lines)
