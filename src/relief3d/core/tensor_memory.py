"""How many bytes of tensors a computation holds at its worst moment, counted exactly, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class PeakTensorBytes(TorchDispatchMode):
    """Count the bytes of the storages that operations inside the context create and that are still alive.

    What existed before (weights, inputs) and what an operation uses inside itself is not counted, so the number
    repeats exactly, unlike the resident memory of a process.

    Attributes:
        live: bytes alive now.
        peak: the most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation, then count the storages that it created."""
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage._cdata not in self._known:
                self._watch(storage)
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)

        def forget() -> None:
            self._known.discard(key)
            self.live -= size

        weakref.finalize(storage, forget)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def join_parts(parts: Iterable[tuple[torch.Tensor, ...]], total: int) -> tuple[torch.Tensor, ...]:
    """Like ``torch.cat`` of every position of the parts, but without gradients each part is released once copied.

    Args:
        parts: made one after another; tensors of a part share their first size.
        total: sum of the first sizes.
    """
    if torch.is_grad_enabled():
        return tuple(torch.cat(p) for p in zip(*parts))
    out: tuple[torch.Tensor, ...] = ()
    at = 0
    for part in parts:
        if not out:
            if len(part[0]) == total:
                return part
            out = tuple(t.new_empty(total, *t.shape[1:]) for t in part)
        for whole, piece in zip(out, part):
            whole[at : at + len(piece)] = piece
        at += len(part[0])
    return out
