"""Running a network on the views of a scene: all at once, or in chunks with frames decoded as they are needed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Prediction, View
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import Progress, stage
from relief3d.models.multiview.interface import Known, MultiViewModel, in_unit_range
from relief3d.models.multiview.long_sequence import LongOptions, run_long
from relief3d.pipelines.multiview.pictures import Framing
from relief3d.pipelines.multiview.store import DepthStore

UNUSABLE_SHARE = 0.01
"""Share of a view's pixels without a finite positive depth above which the network is called broken."""
FOCAL_RANGE = (0.05, 50.0)
"""Focal lengths outside, in units of the longer side, are no lens."""
GUESSED_FOV_DEG = 60.0
"""Lens that stands in for the impossible one of a network with random weights."""


@dataclass(frozen=True)
class Predicted:
    """What a network said about all views, in the network's pixels and unit.

    Attributes:
        world_from_cam: (N, 4, 4) float64.
        K: (N, 3, 3) float64.
        factor: (N,) float64 for the stored depth.
        metric: lengths are metres.
        store: depth and confidence in [0, 1]; confidence is 0 outside the picture and its mask.
        facts: for ``scene.json``.
        notes: what a user should know.
    """

    world_from_cam: Tensor
    K: Tensor
    factor: Tensor
    metric: bool
    store: DepthStore
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asker:
    """A network together with the views it is asked about.

    Attributes:
        model: the network.
        views: of the scene, without lens distortion.
        framing: of their pictures.
        known: numbers of views to what the network takes itself about them, (1, n, ...) in its pixels; None: nothing.
        device: where it runs.
        untrained: impossible lenses are replaced instead of refused.
    """

    model: MultiViewModel
    views: Sequence[View]
    framing: Framing
    known: Callable[[Sequence[int]], Known] | None
    device: torch.device
    untrained: bool = False

    def load(self, numbers: Sequence[int]) -> Tensor:
        """(n, 3, H, W) pictures."""
        return self.framing.load(self.views, numbers)

    def ask(self, images: Tensor, numbers: Sequence[int]) -> Prediction:
        """Predict some views (1, n, 3, H, W); checked, on the CPU, confidence 0 where there is nothing to trust.

        Raises:
            RunError: values that are not numbers, no positive depth, or an impossible lens, naming the view.
        """
        known = None if self.known is None else _moved(self.known(numbers), self.device)
        out = self.model.predict(images.to(self.device), known)
        if out.depth is None or out.K is None or out.world_from_cam is None:
            raise InputError(f"{self.model.name} does not give depth, intrinsics and poses, which this needs")
        depth = out.depth[0].float().cpu()
        trust = torch.ones_like(depth)
        if out.depth_confidence is not None:
            trust = out.depth_confidence[0].float().cpu()
        # First to the processor: some accelerators have no double precision.
        K, poses = out.K[0].cpu().double(), out.world_from_cam[0].cpu().double()
        depth, trust, K = depth.clone(), trust.clone(), K.clone()
        for at, number in enumerate(numbers):
            name = self.views[number].name
            inside = self.framing.inside(number)
            good = torch.isfinite(depth[at]) & (depth[at] > 0)
            broken = float((inside & ~good).sum()) / max(1, int(inside.sum()))
            if broken > UNUSABLE_SHARE or not bool(torch.isfinite(poses[at]).all()):
                raise RunError(_complaint(self.model.name, name, broken), remedy=_remedy(self.untrained))
            K[at] = self._lens(K[at], name)
            mask = self.views[number].load_mask()
            if mask is not None:
                inside = inside & self.framing.to_network(number, mask)
            depth[at] = torch.where(good, depth[at], torch.zeros_like(depth[at]))
            usable = good & inside & torch.isfinite(trust[at])
            trust[at] = torch.where(usable, trust[at], torch.zeros_like(trust[at]))
        return Prediction(
            depth=depth[None],
            depth_confidence=trust[None],
            K=K[None],
            world_from_cam=_rigid(poses)[None],
            metric=out.metric,
        )

    def _lens(self, K: Tensor, name: str) -> Tensor:
        """The intrinsics, or for random weights a plain lens in place of an impossible one."""
        longest = max(self.framing.width, self.framing.height)
        focal = torch.stack([K[0, 0], K[1, 1]]) / longest
        fits = bool(torch.isfinite(K).all()) and bool(
            ((focal > FOCAL_RANGE[0]) & (focal < FOCAL_RANGE[1])).all()
        )
        if fits:
            return K
        if not self.untrained:
            raise RunError(
                f"{self.model.name} predicts an impossible lens for view '{name}'", remedy=_remedy(False)
            )
        f = longest / 2 / math.tan(math.radians(GUESSED_FOV_DEG) / 2)
        return K.new_tensor([[f, 0, self.framing.width / 2], [0, f, self.framing.height / 2], [0, 0, 1]])


def predict_whole(asker: Asker, folder: Path, progress: Progress) -> Predicted:
    """One pass over all views.

    Raises:
        InputError: see :class:`Asker`.
        RunError: see :meth:`Asker.ask`.
    """
    numbers = list(range(len(asker.views)))
    store = DepthStore(folder)
    with stage(progress, f"{asker.model.name} on {len(numbers)} pictures", 1):
        out = asker.ask(asker.load(numbers)[None], numbers)
        progress.advance()
    assert out.depth is not None and out.depth_confidence is not None
    assert out.K is not None and out.world_from_cam is not None
    for index in numbers:
        store.write(
            index, out.depth[0, index], in_unit_range(out.depth_confidence[0, index], asker.model.name)
        )
    ones = torch.ones(len(numbers), dtype=torch.float64)
    return Predicted(out.world_from_cam[0], out.K[0], ones, out.metric, store, {"passes": 1})


def predict_chunks(
    asker: Asker,
    folder: Path,
    options: LongOptions,
    progress: Progress,
    *,
    loops: Sequence[tuple[int, int]] = (),
    source: str | None = None,
) -> Predicted:
    """Chunks that overlap, joined by similarities; memory does not grow with the number of views.

    Args:
        asker: network and views, in walking order.
        folder: for the maps; chunks lie below it until :func:`forget_passes`, so that an interrupted run continues.
        options: see :func:`relief3d.models.multiview.long_sequence.run_long`.
        progress: shown per chunk.
        loops: pairs of views that show the same place.
        source: fingerprint of pictures, network and settings; chunks of an interrupted run with the same one are
            used again. None: nothing is.

    Raises:
        InputError: neighbouring chunks share too little.
        RunError: see :meth:`Asker.ask`.
    """
    count = len(asker.views)
    chunks = folder / "chunks"
    long = run_long(
        count, asker.load, asker.ask, chunks, options=options, loops=loops, source=source, progress=progress
    )
    store = DepthStore(folder)
    for frame in range(count):
        depth, confidence = long.depth(frame)
        store.write(frame, depth, in_unit_range(confidence, asker.model.name))
    worst = max((j.error for j in long.joints), default=0.0)
    facts = {
        "passes": len(long.chunks),
        "chunk": options.chunk,
        "overlap": options.overlap,
        "worst_joint": round(worst, 5),
        "loops": [list(p) for p in long.loops],
        "loops_rejected": len(long.rejected),
    }
    notes: tuple[str, ...] = (
        f"{count} pictures went through the network in {len(long.chunks)} overlapping chunks",
    )
    notes += long.notes
    return Predicted(
        long.world_from_cam,
        long.K,
        torch.ones_like(long.scale),
        long.metric,
        store,
        facts,
        notes,
    )


def forget_passes(folder: Path) -> None:
    """Remove the chunks, once everything that is made of them is stored."""
    shutil.rmtree(folder / "chunks", ignore_errors=True)
    (folder / "chunks.json").unlink(missing_ok=True)


def _moved(known: Known, device: torch.device) -> Known:
    """What is known, on the network's device."""

    def move(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(device)

    return replace(
        known,
        K=move(known.K),
        world_from_cam=move(known.world_from_cam),
        depth=move(known.depth),
        has_K=move(known.has_K),
        has_pose=move(known.has_pose),
    )


def _rigid(poses: Tensor) -> Tensor:
    """Rotations of single precision made orthogonal to double precision (nearest, by SVD)."""
    U, _, Vh = torch.linalg.svd(poses[..., :3, :3])
    flip = torch.ones(*U.shape[:-2], 3, dtype=U.dtype)
    flip[..., 2] = torch.det(U @ Vh)
    out = torch.eye(4, dtype=torch.float64).repeat(*poses.shape[:-2], 1, 1)
    out[..., :3, :3] = U @ torch.diag_embed(flip) @ Vh
    out[..., :3, 3] = poses[..., :3, 3]
    return out


def _complaint(model: str, view: str, broken: float) -> str:
    if broken > UNUSABLE_SHARE:
        return (
            f"{model} gives no usable depth for view '{view}': {100 * broken:.0f} % of its pixels are not finite "
            "or not positive"
        )
    return f"{model} gives a camera pose that is not finite for view '{view}'"


def _remedy(untrained: bool) -> str:
    if untrained:
        return "random weights may do this; try another --seed"
    return "the weights are damaged, or belong to another preprocessing or precision; try --precision float32"
