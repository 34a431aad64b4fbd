"""Finds the published tables: every module of this package names its own in ``TABLES``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

import relief3d.eval.published as package
from relief3d.eval.published.table import PublishedTable


def load_tables() -> Mapping[str, PublishedTable]:
    """All published tables by key, ablations included, sorted by key."""
    found: dict[str, PublishedTable] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for table in getattr(module, "TABLES", ()):
            if table.key in found:
                raise RuntimeError(f"two published tables have the key {table.key}")
            found[table.key] = table
    return dict(sorted(found.items()))
