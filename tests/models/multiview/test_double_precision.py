"""Accelerators without double precision: it must appear on the processor only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from relief3d.core.contract import Prediction
from relief3d.models.multiview.interface import Known
from relief3d.models.multiview.long_store import pack
from relief3d.models.multiview.streaming import CachedStream, StreamOptions, WindowStream
from relief3d.pipelines.multiview.pictures import plan_framing
from relief3d.pipelines.multiview.predict import Asker

SIZE = (14, 28)


class NoDouble(TorchDispatchMode):
    """The device ``meta`` stands for one without float64; what is copied from it to the processor is ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = args[0] if args and isinstance(args[0], Tensor) else None
        target = kwargs.get("device")
        if (
            source is not None
            and source.device.type == "meta"
            and target is not None
            and target.type == "cpu"
        ):
            return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta" and leaf.dtype == torch.float64:
                raise TypeError(f"{func} makes float64 on a device that has none")
        return out


class Elsewhere:
    """Answers on the device of the pictures, in single precision."""

    name, patch, prepare_mode, takes = "elsewhere", 14, "keep", frozenset[str]()

    def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
        n = images.shape[1]

        def answer(*shape: int) -> Tensor:
            return torch.zeros(1, n, *shape, device="meta")

        return Prediction(
            depth=answer(*SIZE), depth_confidence=answer(*SIZE), K=answer(3, 3), world_from_cam=answer(4, 4)
        )  # fmt: skip


def test_the_guard_sees_double_precision() -> None:
    with NoDouble():
        value = torch.zeros(3, device="meta")
        assert value.cpu().double().dtype == torch.float64
        with pytest.raises(TypeError, match="float64"):
            value.double().cpu()


def test_stored_passes() -> None:
    out = Elsewhere().predict(torch.zeros(1, 2, 3, *SIZE))
    assert out.depth is not None and out.depth_confidence is not None
    assert out.K is not None and out.world_from_cam is not None
    with NoDouble():
        stored = pack([0, 1], out.depth[0], out.depth_confidence[0], out.K[0], out.world_from_cam[0])
    assert stored["K"].dtype == stored["world_from_cam"].dtype == torch.float64


def test_window_streams() -> None:
    with NoDouble():
        stream = WindowStream(Elsewhere(), StreamOptions(points=20))
        for _ in range(2):
            update = stream.push(torch.zeros(2, 3, *SIZE))
    assert update.world_from_cam.dtype == torch.float64 and update.depth.device.type == "cpu"


def test_cached_streams() -> None:
    stream = CachedStream.__new__(CachedStream)
    stream._count = 0
    with NoDouble():
        update = stream._one(Elsewhere().predict(torch.zeros(1, 1, 3, *SIZE)))
    assert update.K.dtype == torch.float64


def test_the_pipeline() -> None:
    class Unmasked:
        name = "view"

        def load_mask(self) -> None:
            return None

    framing = plan_framing([(SIZE[1], SIZE[0])] * 2, "keep", SIZE[1], 14)
    asker = Asker(Elsewhere(), [Unmasked(), Unmasked()], framing, None, torch.device("meta"), untrained=True)  # type: ignore[list-item]
    with NoDouble():
        out = asker.ask(torch.zeros(1, 2, 3, *SIZE), [0, 1])
    assert out.K is not None and out.K.dtype == torch.float64
