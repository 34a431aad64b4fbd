"""Sparse depth that is read when first looked at: sweeps of lidar and radar are many and large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from relief3d.core.contract import SparseDepth


class LazySparseDepth(SparseDepth):
    """A :class:`~relief3d.core.contract.SparseDepth` whose points are loaded at the first look at any of them.

    It stands wherever the contract wants sparse depth. What was loaded stays in memory as long as the view does;
    a copy sent to another process loads again.
    """

    def __init__(self, load: Callable[[], SparseDepth]) -> None:
        """Points that ``load`` (picklable, for worker processes) returns."""
        object.__setattr__(self, "_load", load)
        object.__setattr__(self, "_points", None)

    def points(self) -> SparseDepth:
        """The loaded points."""
        loaded: SparseDepth | None = self.__dict__["_points"]
        if loaded is None:
            loaded = self.__dict__["_load"]()
            object.__setattr__(self, "_points", loaded)
        return loaded

    @property
    def xy(self) -> Tensor:
        """(N, 2) pixel positions, centres at +0.5."""
        return self.points().xy

    @property
    def z(self) -> Tensor:
        """(N,) z-depth."""
        return self.points().z

    @property
    def sigma(self) -> Tensor | None:
        """(N,) standard deviation, or None."""
        return self.points().sigma

    @property
    def metric(self) -> bool:
        """True when z is in metres."""
        return self.points().metric

    def __reduce__(self) -> tuple[Any, ...]:
        return (LazySparseDepth, (self.__dict__["_load"],))

    def __repr__(self) -> str:
        state = "not loaded" if self.__dict__["_points"] is None else f"{len(self.z)} points"
        return f"LazySparseDepth({state})"
