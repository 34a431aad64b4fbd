"""Run time of one picture at three sizes (MetricAnything Tab 13)."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.device import synchronize
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.eval.aggregation import median
from relief3d.eval.protocols.base import (
    Answer,
    Budget,
    Column,
    Measurement,
    Model,
    Protocol,
    Query,
    Sample,
    Truth,
)
from relief3d.eval.protocols.metric.frames import load_rgb8
from relief3d.eval.published.metric_downstream import TABLE_13
from relief3d.eval.published.table import PublishedRow
from relief3d.geometry.projection import intrinsics
from relief3d.io.images import list_images

SIZES: Mapping[str, tuple[int, int]] = {"vga": (480, 640), "hd": (1080, 1920), "4k": (3024, 4032)}
"""(H, W) of the three pictures."""
WARMUPS, REPEATS = 10, 50
_COUNTS: Mapping[Budget, tuple[int, int]] = {"smoke": (1, 3), "mini": (3, 10)}


class Runtime(Protocol):
    """Median milliseconds per picture, batch 1, on a GPU and on the CPU, each in its own columns."""

    name = "runtime"
    title = "Milliseconds per picture at 640x480, 1920x1080 and 4032x3024"
    source = "MetricAnything Tab 13; metric_depth 10.8"
    task = "runtime"
    columns = (
        Column("params", "Parameters", "M", None),
        Column("native", "Native side", "px", None),
        Column("gflops_hd", "GFLOPs HD", "", None),
        Column("gpu_vga", "GPU VGA", "ms", "lower"),
        Column("gpu_hd", "GPU HD", "ms", "lower"),
        Column("gpu_4k", "GPU 4K", "ms", "lower"),
        Column("gpu_vga_fp32", "GPU VGA, TF32 off", "ms", "lower"),
        Column("gpu_hd_fp32", "GPU HD, TF32 off", "ms", "lower"),
        Column("gpu_4k_fp32", "GPU 4K, TF32 off", "ms", "lower"),
        Column("cpu_vga", "CPU VGA", "ms", "lower"),
        Column("cpu_hd", "CPU HD", "ms", "lower"),
        Column("cpu_4k", "CPU 4K", "ms", "lower"),
    )
    layout = "a folder with any picture: its first one is resized to the three sizes (the time does not depend on it)"
    notes = (
        "Batch 1, 10 warm-ups, median of 50 calls, the device waited for before every reading of the clock; procedural "
        "runs take fewer calls and say how many.",
        "Answers carry 'seconds' (a list) and 'device' among their facts, and 'tf32', 'params', 'native', 'gflops' "
        "where known; without a GPU its columns stay empty, nothing is estimated.",
        "The published times start from a prepared tensor on the device; a model with a method 'prepare' is timed like "
        "that ('scope': 'forward'), any other as a whole call ('scope': 'call').",
    )

    def open(self, data: Path) -> list[Sample]:
        """Three samples with the full number of calls; see :class:`Protocol`."""
        pictures = list_images(data)
        if not pictures:
            raise InputError("holds no pictures", path=data, remedy="put one picture there")
        picture = Path(pictures[0])
        return [_sample(key, WARMUPS, REPEATS, lambda s: _resize(load_rgb8(picture), s)) for key in SIZES]

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Coloured tiles of the three sizes, fewer calls."""
        warmups, repeats = _COUNTS[budget]
        own = derive_seed(seed, self.name)
        return [_sample(key, warmups, repeats, lambda s: _tiles(own, s)) for key in SIZES]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """Median milliseconds; an answer without ``seconds`` counts as not measured."""
        size = str(truth.facts["size"])
        values: dict[str, float] = {}
        seconds = answer.facts.get("seconds")
        if seconds:
            values[_column(size, answer.facts)] = 1e3 * _median(seconds, query.name)
        for key, fact in (("params", "params"), ("native", "native"), ("gflops_hd", "gflops")):
            known = answer.facts.get(fact)
            if isinstance(known, int | float) and known < math.inf and (key != "gflops_hd" or size == "hd"):
                values[key] = float(known)
        return Measurement(query.name, size, values)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """One number per column; NaN where nothing was measured."""
        return {column.key: median(measurements, column.key) for column in self.columns}

    def published(self) -> Sequence[PublishedRow]:
        """All rows of Tab 13 (on an H200)."""
        return TABLE_13.rows


def time_model(
    model: Model,
    query: Query,
    *,
    device: torch.device,
    warmups: int | None = None,
    repeats: int | None = None,
    tf32: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Answer:
    """Call a model again and again and take the time of every call.

    Args:
        model: anything that answers the query. One with a method ``prepare(query)`` that returns a function without
            arguments is timed from there: everything up to the tensor on the device is then left out.
        query: of this protocol; says how many calls are made unless the next two do.
        device: on which the model computes; it is waited for before every reading of the clock.
        warmups: calls before the first that counts.
        repeats: calls that count.
        tf32: allow TF32 in matrix products and convolutions while the time is taken, as the published times did;
            without effect on a CPU.
        clock: seconds.

    Returns:
        Facts: ``seconds`` (a list), ``device``, ``device_name``, ``warmups``, ``scope``, ``tf32``.

    Raises:
        InputError: fewer than one call.
    """
    warmups = int(query.facts.get("warmups", WARMUPS)) if warmups is None else warmups
    repeats = int(query.facts.get("repeats", REPEATS)) if repeats is None else repeats
    if repeats < 1 or warmups < 0:
        raise InputError(f"cannot take the time of {repeats} calls after {warmups} warm-ups")
    prepare = getattr(model, "prepare", None)
    call: Callable[[], Any] = prepare(query) if callable(prepare) else lambda: model(query)
    seconds = []
    with torch.no_grad(), _precision(tf32):
        for index in range(warmups + repeats):
            synchronize(device)
            start = clock()
            call()
            synchronize(device)
            if index >= warmups:
                seconds.append(clock() - start)
    facts = {
        "seconds": seconds,
        "device": device.type,
        "device_name": _device_name(device),
        "warmups": warmups,
        "scope": "forward" if callable(prepare) else "call",
        "tf32": tf32,
    }
    return Answer(facts=facts)


@contextlib.contextmanager
def _precision(tf32: bool) -> Iterator[None]:
    """Both switches of TF32, as they were afterwards."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def timed(
    model: Model, device: torch.device, facts: Mapping[str, Any] | None = None, *, tf32: bool = True
) -> Model:
    """A model that answers this protocol with its own run time.

    Args:
        model: to be timed.
        device: on which it computes.
        facts: further facts such as ``params`` (millions), ``native`` (pixels) and ``gflops`` (at HD).
        tf32: see :func:`time_model`; False fills the columns "TF32 off".
    """

    def run(query: Query) -> Answer:
        answer = time_model(model, query, device=device, tf32=tf32)
        return Answer(facts={**(facts or {}), **answer.facts})

    return run


def _device_name(device: torch.device) -> str:
    if device.type == "cpu":
        return f"CPU, {torch.get_num_threads()} threads"
    properties = getattr(torch, device.type, None)
    name = getattr(properties, "get_device_name", None)
    return str(name(device)) if callable(name) else device.type


def _column(size: str, facts: Mapping[str, Any]) -> str:
    device = str(facts.get("device") or "cpu").split(":")[0]
    if device == "cpu":
        return f"cpu_{size}"
    return f"gpu_{size}" if facts.get("tf32", True) else f"gpu_{size}_fp32"


def _median(seconds: Any, name: str) -> float:
    if not isinstance(seconds, list | tuple) or not all(
        isinstance(s, int | float) and math.isfinite(s) and s > 0 for s in seconds
    ):
        raise InputError(f"'seconds' of the answer to '{name}' must be a list of positive numbers")
    ordered = sorted(float(s) for s in seconds)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    out = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False, antialias=True)
    return out[0].round().clamp(0, 255).to(torch.uint8)


def _tiles(seed: int, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 coloured tiles: a small picture enlarged, so that 4K costs no time to make."""
    small = torch.randint(0, 256, (3, 24, 32), generator=torch_generator(seed), dtype=torch.uint8)
    return F.interpolate(small[None], size, mode="nearest")[0]


def _sample(key: str, warmups: int, repeats: int, picture: Callable[[tuple[int, int]], Tensor]) -> Sample:
    height, width = SIZES[key]

    def query() -> Query:
        focal = float(max(height, width))
        camera = Camera(width, height, intrinsics(focal, focal, width / 2, height / 2))
        view = View(name=f"{key}.png", camera=camera, image=lambda: picture((height, width)).float() / 255)
        facts = {"size": key, "height": height, "width": width, "warmups": warmups, "repeats": repeats}
        return Query(key, "runtime", ("seconds",), scene=Scene((view,), metric=True), facts=facts)

    return Sample(key, key, query, lambda: Truth(facts={"size": key}))


PROTOCOLS: tuple[Protocol, ...] = (Runtime(),)
