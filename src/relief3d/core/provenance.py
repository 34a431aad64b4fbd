"""Where a number comes from: versions, hardware, commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from relief3d.core.device import accelerator_name

PACKAGES = (
    "relief3d",
    "torch",
    "numpy",
    "scipy",
    "pillow",
    "scikit-image",
    "pycolmap",
    "open3d-cpu",
    "open3d",
    "av",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def hardware() -> dict[str, Any]:
    """Processor kind, number of cores this process may use, memory, and the accelerator if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    out: dict[str, Any] = {"machine": platform.machine(), "cores": cores, "threads": torch.get_num_threads()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        out["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3, 1)
    name = accelerator_name()
    return out if name is None else {**out, "accelerator": name}


def commit() -> str | None:
    """Commit of the checkout that this package is imported from, with "+" when files differ from it; None elsewhere."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        head = git("rev-parse", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "src")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")
