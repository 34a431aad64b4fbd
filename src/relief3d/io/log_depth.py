"""Depth as 16-bit logarithmic PNG, the format of MoGe's tools (MetricAnything specification 1.6).

Code 0 is unknown, 65535 infinitely far, everything else ``near^(1 - t) far^t`` with ``t = (code - 1) / 65533``; near
and far stand in the file as texts. The relative step is ln(far / near) / 65533: 0.02 % between 1 mm and 400 m.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.io.atomic import write_bytes

_LAST = 65533


def write_log_depth(
    path: str | Path,
    depth: Tensor,
    *,
    near: float | None = None,
    far: float | None = None,
    infinite: Tensor | None = None,
) -> Path:
    """Write a depth map; read it with :func:`relief3d.data.readers.moge.read_log_depth`.

    Args:
        path: of the PNG.
        depth: (H, W) metres; what is not finite and positive is unknown.
        near: smallest depth that has a code; the smallest of the map when None. Nearer values are moved to it.
        far: largest, likewise.
        infinite: (H, W) bool, sky.

    Raises:
        InputError: not a map, an empty range, or the file cannot be written.
    """
    if depth.ndim != 2 or (infinite is not None and infinite.shape != depth.shape):
        raise InputError(f"a depth map must be (H, W), got {tuple(depth.shape)}", path=path)
    values = depth.detach().cpu().double().numpy()
    known = np.isfinite(values) & (values > 0)
    low = near if near is not None else (float(values[known].min()) if known.any() else 1.0)
    high = far if far is not None else (float(values[known].max()) if known.any() else 1.0)
    if not (np.isfinite(low) and np.isfinite(high) and 0 < low <= high):
        raise InputError(f"no depth lies between {low} and {high}", path=path)
    code = np.zeros(values.shape, np.uint16)
    # Texts are rounded to single precision, and codes follow the texts.
    low, high = float(np.float32(low)), float(np.float32(high))
    span = np.log(high / low)
    t = np.log(np.clip(values, low, high, where=known, out=np.full_like(values, low)) / low)
    t = t / span if span > 0 else np.zeros_like(values)
    code[known] = 1 + np.rint(t[known] * _LAST).astype(np.int64)
    if infinite is not None:
        code[infinite.cpu().numpy() & ~known] = 65535
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("near", repr(low))
    texts.add_text("far", repr(high))
    stream = io.BytesIO()
    Image.fromarray(code).save(stream, format="png", pnginfo=texts)
    return write_bytes(path, stream.getvalue())


def log_depth_step(near: float, far: float) -> float:
    """Largest relative error of a stored depth."""
    return float(torch.tensor(far / near, dtype=torch.float64).log()) / _LAST / 2
