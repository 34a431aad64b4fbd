"""Counts what operations do, for tests of cost that must not depend on a clock."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class WorkCount(TorchDispatchMode):
    """Multiplications of matrix products and attention, and the most elements of any one result."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if "scaled_dot_product" in name:
            q, k, v = args[:3]
            self.products += q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        elif name.startswith(("aten.mm.", "aten.bmm.")):
            self.products += args[0].numel() * args[1].shape[-1]
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
        return out
