"""Finds the protocols: every module below ``eval/protocols/<family>/`` names its own in ``PROTOCOLS``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping

import relief3d.eval.protocols as package
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Protocol


def load_protocols() -> Mapping[str, Protocol]:
    """All protocols by name, sorted by family and name."""
    found: dict[str, Protocol] = {}
    for info in sorted(pkgutil.walk_packages(package.__path__, package.__name__ + "."), key=lambda m: m.name):
        if info.ispkg or info.name.count(".") != 4:
            continue
        module = importlib.import_module(info.name)
        for protocol in getattr(module, "PROTOCOLS", ()):
            if protocol.name in found:
                raise RuntimeError(f"two protocols are called {protocol.name}")
            found[protocol.name] = protocol
    return found


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        InputError: there is none; names the nearest ones.
    """
    known = load_protocols()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    raise InputError(f"there is no protocol '{name}'", remedy=f"{hint}relief3d eval --list shows all")
