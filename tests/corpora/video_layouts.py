"""Tiny videos on disk, and the rules of video depth written out a second time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from relief3d.core.contract import View
from relief3d.eval.protocols.base import Answer, Query, Sample, Truth
from relief3d.eval.protocols.views.video_depth_rules import VideoDepthProtocol

SIZE = (12, 16)


def write_picture(path: Path, value: int, size: tuple[int, int] = SIZE) -> None:
    """A picture of one colour, so that a test can tell frames apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def write_png16(path: Path, stored: np.ndarray) -> None:
    """A 16-bit grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(stored).astype(np.uint16)).save(path)


def depth_map(seed: int, far: float = 80.0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Metres: mostly 1 to 9, one row at 60, one at ``far``, a corner that differs in size from map to map unknown."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1, 9, size)
    depth[2], depth[3] = 60.0, far
    depth[: 1 + seed % 2, : 3 + seed % 5] = 0
    return depth.astype(np.float32)


def drifting(query: Query, truth: Truth) -> Answer:
    """Noisy depth whose scale drifts from frame to frame, with a few far too large values."""
    depth = truth.tensors["depth"]
    generator = torch.Generator().manual_seed(sum(map(ord, query.name)))
    noise = 1 + 0.1 * torch.randn(depth.shape, generator=generator)
    drift = torch.linspace(0.5, 0.8, len(depth))[:, None, None]
    depth = torch.where(depth > 0, depth, torch.full_like(depth, 3.0)) * noise * drift
    depth[:, 2, :4] *= 2.5
    return Answer({"depth": depth})


def brute_force(
    p: np.ndarray, g: np.ndarray, max_depth: float | None, clip: float | None, scope: str = "video"
) -> tuple[float, float, int]:
    """AbsRel, delta < 1.25 and number of pixels of one video after least-squares scale and shift."""
    mask = g > 0 if max_depth is None else (g > 0) & (g < max_depth)
    ps, gs = [], []
    for part in [slice(None)] if scope == "video" else [slice(i, i + 1) for i in range(len(g))]:
        a, b = p[part][mask[part]].astype(float), g[part][mask[part]].astype(float)
        s, t = np.linalg.lstsq(np.stack([a, np.ones_like(a)], 1), b, rcond=None)[0]
        a = s * a + t
        ps.append(a if clip is None else np.minimum(a, clip))
        gs.append(b)
    a, b = np.concatenate(ps), np.concatenate(gs)
    raised = np.maximum(a, 1e-5)
    ratio = np.maximum(raised / b, b / raised)
    return float(np.mean(abs(a - b) / b)), float(np.mean(ratio < 1.25)), len(a)


def check_video_rules(
    protocol: VideoDepthProtocol,
    samples: Sequence[Sample],
    max_depth: float | None,
    clip: float | None,
    neighbours: Sequence[tuple[float | None, float | None]],
) -> None:
    """The protocol's numbers are those of its own mask, clip, scope and weights, and of none of its neighbours'.

    Args:
        protocol: under test.
        samples: of a tiny copy of its data set; videos of different numbers of valid pixels.
        max_depth, clip: its own rules.
        neighbours: (max_depth, clip) of other benchmarks.
    """
    loaded = [(s.load_query(), s.load_truth()) for s in samples]
    answers = [drifting(q, t) for q, t in loaded]
    measured = [protocol.measure(q, t, a) for (q, t), a in zip(loaded, answers)]
    summary = protocol.summarise(measured)
    maps = [(a.tensors["depth"].numpy(), t.tensors["depth"].numpy()) for a, (_, t) in zip(answers, loaded)]

    def pooled(
        limit: float | None, cut: float | None, scope: str = "video", weighted: bool = True
    ) -> np.ndarray:
        rows = np.array([brute_force(p, g, limit, cut, scope) for p, g in maps])
        weights = rows[:, 2] if weighted else np.ones(len(rows))
        return (rows[:, :2] * weights[:, None]).sum(0) / weights.sum()

    ours = np.array([summary["abs_rel_lstsq"], summary["delta1_lstsq"]])
    np.testing.assert_allclose(ours, pooled(max_depth, clip), rtol=1e-5)
    assert len({m.weight for m in measured}) > 1, "all videos weigh the same, the test shows nothing"
    assert abs(ours[0] - pooled(max_depth, clip, weighted=False)[0]) > 1e-5
    assert abs(ours[0] - pooled(max_depth, clip, scope="frame")[0]) > 1e-3
    for limit, cut in neighbours:
        assert abs(ours[0] - pooled(limit, cut)[0]) > 1e-4, (limit, cut)
    for key in ("abs_rel_scale", "abs_rel_scale_shift", "abs_rel_lad"):
        assert 0 < summary[key] < 2 and summary[key] != ours[0]


def frame_values(sample: Sample) -> list[int]:
    """Grey values of the pictures that a sample shows (see :func:`write_picture`)."""
    scene = sample.load_query().scene
    assert scene is not None
    pictures = [view.load_image() for view in scene.views]
    return [int((p.float() * (1 if p.dtype == torch.uint8 else 255)).mean().round()) for p in pictures]


def byte(view: View, row: int, column: int) -> int:
    """The red value of a pixel of a picture, 0 to 255, as it was stored."""
    return round(float(view.load_image()[0, row, column]) * 255)
