"""Late imports of optional packages, with the remedy in the error."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from relief3d.core.errors import MissingExtraError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module`` or say which extra brings it.

    Args:
        module: importable name, for example ``"pycolmap"``.
        extra: the relief3d extra that installs it, for example ``"sfm"``.
        purpose: what it is needed for, to complete "… needs the package X".

    Raises:
        MissingExtraError: when the package is absent or cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise MissingExtraError(
            f"{purpose} needs the package '{module}' ({exc})",
            remedy=f"pip install 'relief3d[{extra}]'",
        ) from exc


def available(module: str) -> bool:
    """True when ``module`` is installed (it is not imported)."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
