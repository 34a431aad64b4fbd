"""Video as it comes: poses, intrinsics and depth of new frames at once, with memory that does not grow.

Two ways, behind one interface:

- :class:`WindowStream` runs any :class:`~relief3d.models.multiview.interface.MultiViewModel` on the new frames together
  with the last ones and a few anchors from all of the past, and joins the passes by robust similarities on the frames
  they share. Every pass has the same size, so cost and memory per frame are constant.
- :class:`CachedStream` runs VGGT or pi3 causally with cached keys and values (:mod:`relief3d.models.multiview.causal`),
  for networks fine-tuned that way only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.geometry.projection import depth_to_points
from relief3d.geometry.transforms import split_similarity, transform_points
from relief3d.models.multiview.causal import causal_network
from relief3d.models.multiview.interface import (
    Known,
    MultiViewModel,
    Precision,
    autocast_dtype,
    check_images,
)
from relief3d.models.multiview.long_alignment import OverlapFit, fit_overlap

StreamMode = Literal["window", "cached"]


@dataclass(frozen=True)
class StreamOptions:
    """How a stream is cut and joined.

    Attributes:
        window: last frames that a pass sees again.
        anchors: older frames that a pass sees again, the first among them, spread over the past.
        batch: most new frames per pass.
        points: pixels kept per frame for the joints.
        worst_join: a pass whose fit is worse (see :class:`OverlapFit`) is not believed.
        fewest_inliers: nor is one with a smaller share of inliers; half are inliers by definition, nearly all of them
            are with noise alone.
        with_scale: False for networks that are metric already.
        views: past views in the caches of the mode ``cached``, the first included; None keeps all.
        precision: of the transformer in the mode ``cached``; in the mode ``window`` the model's own counts.
        seed: of the choice of pixels.
    """

    window: int = 8
    anchors: int = 4
    batch: int = 8
    points: int = 500
    worst_join: float = 0.1
    fewest_inliers: float = 0.55
    with_scale: bool = True
    views: int | None = 32
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.window, self.batch, self.points) < 1 or self.anchors < 0:
            raise InputError("window, batch and points of a stream must be positive, anchors not negative")


@dataclass(frozen=True)
class StreamUpdate:
    """What is known about new frames.

    Attributes:
        frames: their numbers.
        world_from_cam: (n, 4, 4) float64.
        K: (n, 3, 3) float64 pixels.
        depth: (n, H, W) float32 in the unit of the poses.
        confidence: (n, H, W) float32.
        segment: (n,) int64; poses of different segments are not in one frame. It grows when a joint fails.
        joins: fit of every pass to what was known, where there was something.
        problems: a sentence for every joint that failed.
    """

    frames: range
    world_from_cam: Tensor
    K: Tensor
    depth: Tensor
    confidence: Tensor
    segment: Tensor
    joins: tuple[OverlapFit, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def joined(self) -> bool:
        """Whether all of these frames are in the frame of those before."""
        return not self.problems


class StreamingReconstructor(Protocol):
    """Takes frames as they come."""

    def push(self, frames: Tensor, K: Tensor | None = None) -> StreamUpdate:
        """The next frames.

        Args:
            frames: (n, 3, H, W) in [0, 1], prepared for the network; one size for the whole stream.
            K: (n, 3, 3) pixels of these frames, for networks that take intrinsics; for all frames or for none.

        Raises:
            InputError: pictures that the network cannot take, or of another size than those before.
        """
        ...

    def held(self) -> tuple[int, int]:
        """Number and bytes of the tensors that are kept between calls."""
        ...


def make_stream(
    model: MultiViewModel, mode: StreamMode = "window", options: StreamOptions | None = None
) -> StreamingReconstructor:
    """A stream of a model.

    Raises:
        InputError: unknown mode, or a model that cannot run causally.
    """
    if mode == "window":
        return WindowStream(model, options)
    if mode == "cached":
        network = getattr(model, "network", None)
        if not isinstance(network, nn.Module):
            raise InputError(
                f"{model.name} cannot run one view after another", remedy="use the mode 'window'"
            )
        return CachedStream(network, options)
    raise InputError(f"there is no streaming mode '{mode}'", remedy="choose window or cached")


@dataclass(frozen=True)
class _Past:
    """A frame that later passes see again: its picture, and world points at fixed pixels."""

    number: int
    image: Tensor
    K: Tensor | None
    points: Tensor
    confidence: Tensor


class WindowStream:
    """See the module's description.

    A joint tells whether the network says the same about the frames that two passes share. It cannot tell whether the
    new frames show anything of them: after a cut to another place the joint may succeed and the new poses be guesses,
    which only the network's confidence may show.

    Args:
        model: any multi-view model.
        options: see :class:`StreamOptions`.
    """

    def __init__(self, model: MultiViewModel, options: StreamOptions | None = None) -> None:
        self.model, self.options = model, options or StreamOptions()
        self._anchors: list[_Past] = []
        self._window: list[_Past] = []
        self._count, self._segment = 0, 0
        self._pixels: Tensor | None = None
        self._size: tuple[int, int] = (0, 0)

    def push(self, frames: Tensor, K: Tensor | None = None) -> StreamUpdate:
        """See :class:`StreamingReconstructor`."""
        self._check(frames, K)
        step = self.options.batch
        return _joined(
            [
                self._pass(frames[i : i + step], None if K is None else K[i : i + step])
                for i in range(0, len(frames), step)
            ]
        )

    def held(self) -> tuple[int, int]:
        """See :class:`StreamingReconstructor`."""
        tensors = [
            t for p in self._anchors + self._window for t in (p.image, p.K, p.points, p.confidence)
        ] + [self._pixels]
        return _size_of(tensors)

    def _check(self, frames: Tensor, K: Tensor | None) -> None:
        check_images(frames[None], self.model.patch)
        size = (int(frames.shape[-2]), int(frames.shape[-1]))
        if self._pixels is None:
            self._size = size
            generator = torch_generator(self.options.seed)
            order = torch.rand(size[0] * size[1], generator=generator).argsort()
            self._pixels = order[: self.options.points].clone()
        _same_size(size, self._size)
        if K is not None and K.shape != (len(frames), 3, 3):
            raise InputError(f"intrinsics must be ({len(frames)}, 3, 3), got {tuple(K.shape)}")
        if self._window and (K is None) != (self._window[-1].K is None):
            raise InputError("a stream has intrinsics for all of its frames or for none")

    def _pass(self, frames: Tensor, K: Tensor | None) -> StreamUpdate:
        # The window comes first: it surely overlaps the new frames, and some networks lean on the first view.
        past = self._window + self._anchors
        images = torch.cat([*(p.image[None] for p in past), frames])
        known = None
        if K is not None:
            known = Known(K=torch.cat([*(p.K[None] for p in past if p.K is not None), K])[None])
        local = _checked(self.model.predict(images[None], known))
        points, confidence = self._sampled(local)
        fit, problem = self._fit(past, points[: len(past)], confidence[: len(past)])
        a_from_b = torch.eye(4, dtype=torch.float64) if fit is None or problem else fit.a_from_b
        points = transform_points(a_from_b, points)
        numbers = range(self._count, self._count + len(frames))
        if problem is not None:
            # What this pass says is the beginning of another segment; anchors may be what does not fit.
            self._segment += 1
            again = [
                replace(p, points=points[i].clone(), confidence=confidence[i].clone())
                for i, p in enumerate(self._window)
            ]
            self._anchors, self._window = [], again
        new = [
            _Past(
                number,
                frames[i].detach().clone(),
                None if K is None else K[i].clone(),
                points[len(past) + i].clone(),
                confidence[len(past) + i].clone(),
            )
            for i, number in enumerate(numbers)
        ]
        self._remember(new)
        self._count = numbers.stop
        return self._update(local, len(past), a_from_b, numbers, fit, problem)

    def _sampled(self, local: Prediction) -> tuple[Tensor, Tensor]:
        """World points (n, P, 3) in the frame of the pass, and their confidence (n, P)."""
        assert local.depth is not None and local.K is not None and local.world_from_cam is not None
        assert local.depth_confidence is not None and self._pixels is not None
        depth, K = local.depth[0].cpu().double(), local.K[0].cpu().double()
        poses = local.world_from_cam[0].cpu().double()
        camera = depth_to_points(depth, K).flatten(1, 2)[:, self._pixels]
        confidence = local.depth_confidence[0].cpu().double().flatten(1)[:, self._pixels]
        return transform_points(poses, camera), confidence

    def _fit(
        self, past: Sequence[_Past], points: Tensor, confidence: Tensor
    ) -> tuple[OverlapFit | None, str | None]:
        """The joint to what is known, and what is wrong with it."""
        if not past:
            return None, None
        where = f"frame {self._count} could not be joined to the frames before it: "
        before = torch.cat([p.points for p in past]), torch.cat([p.confidence for p in past])
        try:
            fit = fit_overlap(
                *before, points.flatten(0, 1), confidence.flatten(), with_scale=self.options.with_scale
            )
        except InputError as exc:
            return None, where + str(exc)
        if fit.error > self.options.worst_join:
            return fit, where + f"the fit is off by {fit.error:.3f} of the scene's size"
        if fit.inliers < self.options.fewest_inliers:
            return fit, where + f"only {fit.inliers:.0%} of the shared points agree"
        return fit, None

    def _remember(self, new: list[_Past]) -> None:
        """Move the window on; what leaves it may become an anchor."""
        together = self._window + new
        cut = max(0, len(together) - self.options.window)
        self._window = together[cut:]
        for old in together[:cut]:
            self._anchors.append(old)
            self._anchors = spread_out(self._anchors, self.options.anchors)

    def _update(
        self,
        local: Prediction,
        skip: int,
        a_from_b: Tensor,
        numbers: range,
        fit: OverlapFit | None,
        problem: str | None,
    ) -> StreamUpdate:
        assert local.depth is not None and local.K is not None and local.world_from_cam is not None
        assert local.depth_confidence is not None
        s, R, t = split_similarity(a_from_b)
        poses = local.world_from_cam[0, skip:].cpu().double().clone()
        poses[:, :3, 3] = s * poses[:, :3, 3] @ R.T + t
        poses[:, :3, :3] = R @ poses[:, :3, :3]
        return StreamUpdate(
            numbers,
            poses,
            local.K[0, skip:].cpu().double().clone(),
            (local.depth[0, skip:].cpu().double() * s).float(),
            local.depth_confidence[0, skip:].float().cpu().clone(),
            torch.full((len(numbers),), self._segment),
            () if fit is None else (fit,),
            () if problem is None else (problem,),
        )


class CachedStream:
    """See the module's description; frames are in the frame of the first one (VGGT) or of the network (pi3).

    Args:
        network: a VGGT or a pi3 that was fine-tuned causally.
        options: ``views`` and ``precision`` count.

    Raises:
        InputError: see :func:`~relief3d.models.multiview.causal.causal_network`.
    """

    def __init__(self, network: nn.Module, options: StreamOptions | None = None) -> None:
        self.options = options or StreamOptions()
        self._run = causal_network(network, self.options.views)
        self._count = 0
        self._size: tuple[int, int] = (0, 0)

    @torch.inference_mode()
    def push(self, frames: Tensor, K: Tensor | None = None) -> StreamUpdate:
        """See :class:`StreamingReconstructor`.

        Raises:
            InputError: also when intrinsics are given, which these networks do not take.
        """
        check_images(frames[None], self._run.patch)
        if K is not None:
            raise InputError("a causal VGGT or pi3 takes no intrinsics")
        size = (int(frames.shape[-2]), int(frames.shape[-1]))
        self._size = size if self._count == 0 else self._size
        _same_size(size, self._size)
        dtype = autocast_dtype(self.options.precision, frames.device)
        parts = []
        for image in frames:
            with torch.autocast(frames.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                parts.append(self._one(_checked(self._run.step(image))))
        return _joined(parts)

    def held(self) -> tuple[int, int]:
        """See :class:`StreamingReconstructor`."""
        return _size_of([t for cache in self._run.caches() for t in (cache.k, cache.v)])

    def _one(self, found: Prediction) -> StreamUpdate:
        assert found.depth is not None and found.K is not None and found.world_from_cam is not None
        assert found.depth_confidence is not None
        self._count += 1
        return StreamUpdate(
            range(self._count - 1, self._count),
            found.world_from_cam[0].cpu().double(),
            found.K[0].cpu().double(),
            found.depth[0].float().cpu(),
            found.depth_confidence[0].float().cpu(),
            torch.zeros(1, dtype=torch.int64),
        )


def spread_out(anchors: Sequence[_Past], most: int) -> list[_Past]:
    """At most ``most`` anchors: the first and the last stay, those between that leave the smallest gap go."""
    kept = list(anchors)
    while len(kept) > most:
        gaps = [kept[i + 1].number - kept[i - 1].number for i in range(1, len(kept) - 1)]
        kept.pop(gaps.index(min(gaps)) + 1 if gaps and most > 1 else len(kept) - 1)
    return kept


def _checked(out: Prediction) -> Prediction:
    if out.depth is None or out.K is None or out.world_from_cam is None:
        raise InputError("a network for streams must give depth, intrinsics and poses")
    if out.depth_confidence is not None:
        return out
    return Prediction(
        depth=out.depth,
        K=out.K,
        world_from_cam=out.world_from_cam,
        depth_confidence=torch.ones_like(out.depth),
    )


def _same_size(size: tuple[int, int], before: tuple[int, int]) -> None:
    if size != before:
        raise InputError(
            f"frames of {size[1]} x {size[0]} pixels in a stream of {before[1]} x {before[0]}",
            remedy="prepare all frames alike",
        )


def _joined(parts: Sequence[StreamUpdate]) -> StreamUpdate:
    return StreamUpdate(
        frames=range(parts[0].frames.start, parts[-1].frames.stop),
        world_from_cam=torch.cat([p.world_from_cam for p in parts]),
        K=torch.cat([p.K for p in parts]),
        depth=torch.cat([p.depth for p in parts]),
        confidence=torch.cat([p.confidence for p in parts]),
        segment=torch.cat([p.segment for p in parts]),
        joins=tuple(j for p in parts for j in p.joins),
        problems=tuple(x for p in parts for x in p.problems),
    )


def _size_of(tensors: Sequence[Tensor | None]) -> tuple[int, int]:
    """Number of tensors and bytes of what they keep alive."""
    there = [t for t in tensors if t is not None]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in there}
    return len(there), sum(storages.values())
