"""Thousands of frames through a network that takes dozens: chunks, overlaps, loops, one similarity per chunk.

Frames are loaded when their chunk is computed; what a chunk says goes to disk at once, and only a few thousand points
per overlap stay in memory, so memory does not grow with the length of the video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.core.seeding import torch_generator
from relief3d.geometry.pose_graph import PoseGraphResult, chain_poses
from relief3d.geometry.projection import depth_to_points
from relief3d.geometry.transforms import invert_similarity, split_similarity, transform_points
from relief3d.models.multiview.long_alignment import OverlapFit, fit_overlap, home_chunk, plan_chunks
from relief3d.models.multiview.long_graph import close_graph
from relief3d.models.multiview.long_store import PassStore, chunk_name, loop_name, pack

Frames = Callable[[Sequence[int]], Tensor]
"""Frame numbers -> pictures (n, 3, H, W) in [0, 1]."""
Predict = Callable[[Tensor, Sequence[int]], Prediction]
"""Pictures (1, n, 3, H, W) and their frame numbers -> prediction with depth, K, world_from_cam."""


@dataclass(frozen=True)
class LongOptions:
    """How a long sequence is cut and joined.

    Attributes:
        chunk: frames per pass of the network.
        overlap: frames that neighbouring chunks share.
        loop_frames: frames taken around each end of a loop.
        points: most points kept per shared frame.
        worst_loop: a loop whose fit is worse (see :class:`OverlapFit`) is not believed; a joint between neighbours
            that is worse is kept, for there is no other, and noted.
        loop_tolerance: a loop is not believed when it contradicts joints and other loops by more, in deviations
            of a typical joint.
        with_scale: False for networks that are metric already.
        seed: of the choice of points.
    """

    chunk: int = 60
    overlap: int = 30
    loop_frames: int = 10
    points: int = 2000
    worst_loop: float = 0.1
    loop_tolerance: float = 10.0
    with_scale: bool = True
    seed: int = 0


@dataclass(frozen=True)
class LongResult:
    """A long sequence in one frame; depth and points stay on disk until asked for.

    Attributes:
        world_from_cam: (N, 4, 4) float64, in the frame of the first chunk.
        K: (N, 3, 3) float64.
        scale: (N,) float64 factor for the depth that the network gave.
        home: (N,) int64 chunk whose prediction a frame takes.
        chunks: (C, 4, 4) similarity of every chunk.
        joints: one fit per pair of neighbours, and one per accepted loop.
        loops: accepted pairs of frames.
        rejected: loops that were not believed: their fit is bad, they contradict the rest, or they tell nothing new.
        graph: what the pose graph said, None without loops.
        store: of the chunks' files.
        starts: first frame of every chunk.
        metric: every chunk is in metres.
        notes: what a user should know, such as joints that fit badly.
    """

    world_from_cam: Tensor
    K: Tensor
    scale: Tensor
    home: Tensor
    chunks: Tensor
    joints: tuple[OverlapFit, ...]
    loops: tuple[tuple[int, int], ...]
    rejected: tuple[tuple[int, int], ...]
    graph: PoseGraphResult | None
    store: PassStore
    starts: tuple[int, ...]
    metric: bool = False
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Of the chunks' files."""
        return self.store.folder

    def depth(self, frame: int) -> tuple[Tensor, Tensor]:
        """Scaled depth (H, W) and its confidence, read from disk; only this frame is read.

        Raises:
            InputError: there is no such frame.
        """
        if not 0 <= frame < len(self.home):
            raise InputError(f"there is no frame {frame} in a sequence of {len(self.home)}")
        index = int(self.home[frame])
        stored = self.store.frames(chunk_name(index), frame - self.starts[index], 1)
        return stored["depth"][0] * float(self.scale[frame]), stored["confidence"][0]

    def points(self, frame: int) -> tuple[Tensor, Tensor]:
        """World points (H, W, 3) float64 of a frame and their confidence (H, W), read from disk.

        Raises:
            InputError: see :meth:`depth`.
        """
        depth, confidence = self.depth(frame)
        local = depth_to_points(depth.double(), self.K[frame])
        return transform_points(self.world_from_cam[frame], local.reshape(-1, 3)).view_as(local), confidence


@dataclass(frozen=True)
class _Shared:
    """Points of some frames of one chunk, at fixed pixels."""

    points: Tensor
    confidence: Tensor
    frames: int


@dataclass(frozen=True)
class _Run:
    """What all steps of one run need."""

    chunks: Sequence[range]
    home: Tensor
    load: Frames
    predict: Predict
    store: PassStore
    pick: Tensor
    options: LongOptions

    def chunk(self, index: int) -> dict[str, Tensor]:
        """What the network says about a chunk."""
        numbers = list(self.chunks[index])
        return self.store.get(
            chunk_name(index), numbers, lambda: _predicted(numbers, self.load, self.predict)
        )

    def points(self, stored: dict[str, Tensor]) -> _Shared:
        """World points of stored frames, at the same pixels in every pass."""
        height, width = stored["depth"].shape[-2:]
        count = min(self.options.points, height * width)
        order = self.pick.repeat(-(-height * width // len(self.pick)))[: height * width]
        pixels = order.topk(count).indices
        local = depth_to_points(stored["depth"].double(), stored["K"]).flatten(1, 2)[:, pixels]
        points = transform_points(stored["world_from_cam"], local)
        known = stored["depth"].flatten(1)[:, pixels] > 0
        confidence = stored["confidence"].flatten(1)[:, pixels] * known
        return _Shared(points.flatten(0, 1), confidence.flatten(), len(points))

    def join(self, a: _Shared, b: _Shared) -> OverlapFit:
        """Similarity between the same points of two passes."""
        return fit_overlap(
            a.points,
            a.confidence,
            b.points,
            b.confidence,
            with_scale=self.options.with_scale,
            frames=a.frames,
        )


def run_long(
    frames: int,
    load: Frames,
    predict: Predict,
    folder: Path,
    *,
    options: LongOptions | None = None,
    loops: Sequence[tuple[int, int]] = (),
    source: str | None = None,
    progress: Progress | None = None,
) -> LongResult:
    """Reconstruct a long sequence.

    An interrupted run that is started again with the same ``source`` gives the same result bit for bit.

    Args:
        frames: number of frames.
        load: gives pictures of some frames.
        predict: the network.
        folder: for the passes' files.
        options: see :class:`LongOptions`.
        loops: pairs of frames that show the same place; each is checked by its fit, and against the others, before
            it is believed.
        source: fingerprint of the pictures, the network and its settings. Files that are in the folder already are
            taken over only when it, the number of frames and the options are the same; None takes over none.
        progress: shown per chunk.

    Raises:
        InputError: bad options, a loop that names no frame, neighbouring chunks that share too little, a full disk.
    """
    options = options or LongOptions()
    chunks = plan_chunks(frames, options.chunk, options.overlap)
    for frame in (f for pair in loops for f in pair):
        if not 0 <= frame < frames:
            raise InputError(f"the loop names frame {frame} of a sequence of {frames}")
    plan = {"frames": frames, "source": source, **asdict(options)}
    pick = torch.rand(1 << 16, generator=torch_generator(options.seed))
    store = PassStore(folder, plan, reuse=source is not None)
    run = _Run(chunks, home_chunk(chunks, frames), load, predict, store, pick, options)
    progress = progress or SilentProgress()
    joints = _join_chunks(run, progress)
    similarity = chain_poses(torch.stack([j.a_from_b for j in joints])) if joints else _identity(1)
    accepted: list[tuple[int, int]] = []
    fits, graph = list(joints), None
    if joints:
        found = _close_loops(run, loops, progress)
        if found:
            graph = close_graph(similarity, joints, [f[1:] for f in found], tolerance=options.loop_tolerance)
            similarity = graph.poses
            believed = [f for f, weight in zip(found, graph.weights[len(joints) :]) if float(weight) > 0]
            accepted = [f[0] for f in believed]
            fits += [f[2] for f in believed]
    rejected = tuple(pair for pair in loops if tuple(pair) not in accepted)
    poses, K, scale, metric = _assemble(run, similarity)
    return LongResult(
        poses,
        K,
        scale,
        run.home,
        similarity,
        tuple(fits),
        tuple(accepted),
        rejected,
        graph,
        store,
        tuple(c.start for c in chunks),
        metric,
        _weak_joints(chunks, joints, options),
    )


def _identity(count: int) -> Tensor:
    return torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)


def _join_chunks(run: _Run, progress: Progress) -> list[OverlapFit]:
    """Compute all chunks and fit each to the one before; one chunk is in memory at a time."""
    joints: list[OverlapFit] = []
    shared: _Shared | None = None
    with stage(progress, "chunks", len(run.chunks)):
        for index, chunk in enumerate(run.chunks):
            stored = run.chunk(index)
            if shared is not None:
                common = range(chunk.start, run.chunks[index - 1].stop)
                joints.append(_neighbours(run, shared, stored, common))
            if index + 1 < len(run.chunks):
                first = run.chunks[index + 1].start - chunk.start
                shared = run.points({k: v[first:] for k, v in stored.items()})
            progress.advance(1)
    return joints


def _neighbours(run: _Run, shared: _Shared, stored: dict[str, Tensor], common: range) -> OverlapFit:
    own = run.points({k: v[: len(common)] for k, v in stored.items()})
    try:
        return run.join(shared, own)
    except InputError as exc:
        raise InputError(
            f"frames {common.start} to {common.stop - 1} do not join the chunks that share them: {exc.message}",
            remedy="use a larger overlap, leave out frames that are blank or blurred there, or cut the sequence",
        ) from exc


def _weak_joints(
    chunks: Sequence[range], joints: Sequence[OverlapFit], options: LongOptions
) -> tuple[str, ...]:
    return tuple(
        f"the chunks that share frames {chunks[i + 1].start} to {chunks[i].stop - 1} fit badly "
        f"({100 * joint.error:.0f} % of the scene's size): the path may be bent there"
        for i, joint in enumerate(joints)
        if joint.error > options.worst_loop
    )


def _predicted(numbers: Sequence[int], load: Frames, predict: Predict) -> dict[str, Tensor]:
    out = predict(load(numbers)[None], numbers)
    if out.depth is None or out.K is None or out.world_from_cam is None:
        raise InputError("a network for long sequences must give depth, intrinsics and poses")
    confidence = torch.ones_like(out.depth) if out.depth_confidence is None else out.depth_confidence
    return pack(numbers, out.depth[0], confidence[0], out.K[0], out.world_from_cam[0], metric=out.metric)


def _close_loops(
    run: _Run, loops: Sequence[tuple[int, int]], progress: Progress
) -> list[tuple[tuple[int, int], tuple[int, int], OverlapFit]]:
    """Frames, chunks and similarity of the loops that fit."""
    found = []
    with stage(progress, "loops", len(loops)):
        for pair in loops:
            closed = _close(run, pair)
            if closed is not None:
                found.append(((pair[0], pair[1]), *closed))
            progress.advance(1)
    return found


def _close(run: _Run, pair: tuple[int, int]) -> tuple[tuple[int, int], OverlapFit] | None:
    """Edge and similarity of a loop: a pass over frames around both ends is fitted to the chunks they live in."""
    around = run.options.loop_frames
    ends, homes = [], []
    for frame in pair:
        index = int(run.home[frame])
        chunk = run.chunks[index]
        start = max(chunk.start, min(frame - around // 2, chunk.stop - around))
        ends.append(range(start, min(start + around, chunk.stop)))
        homes.append(index)
    if homes[0] == homes[1] or set(ends[0]) & set(ends[1]):
        return None
    numbers = [*ends[0], *ends[1]]
    both = run.store.get(loop_name(pair), numbers, lambda: _predicted(numbers, run.load, run.predict))
    fits, offset = [], 0
    for index, end in zip(homes, ends):
        part = {k: v[offset : offset + len(end)] for k, v in both.items()}
        own = run.store.frames(chunk_name(index), end.start - run.chunks[index].start, len(end))
        offset += len(end)
        try:
            fits.append(run.join(run.points(own), run.points(part)))
        except InputError:
            return None  # nothing to hold on to: such a loop is not believed
    first, second = fits
    if max(first.error, second.error) > run.options.worst_loop:
        return None
    a_from_b = first.a_from_b @ invert_similarity(second.a_from_b)
    worst = max(fits, key=lambda f: f.error)
    # Sizes are those of end b, whose chunk the edge leads to, brought to the unit of chunk a.
    size = second.size * float(split_similarity(a_from_b)[0])
    least = min(f.inliers for f in fits)
    return (homes[0], homes[1]), replace(worst, a_from_b=a_from_b, inliers=least, size=size)


def _assemble(run: _Run, similarity: Tensor) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Poses, intrinsics and depth factors of all frames, and whether all chunks are metric."""
    frames = len(run.home)
    poses, K = _identity(frames), torch.zeros(frames, 3, 3, dtype=torch.float64)
    scale, metric = torch.ones(frames, dtype=torch.float64), True
    for index, own in _cameras(run):
        s, R, t = split_similarity(similarity[index])
        mine = (run.home == index).nonzero()[:, 0]
        rows = mine - run.chunks[index].start
        poses[mine, :3, :3] = R @ own["world_from_cam"][rows, :3, :3]
        poses[mine, :3, 3] = s * own["world_from_cam"][rows, :3, 3] @ R.T + t
        K[mine], scale[mine] = own["K"][rows], s
        metric = metric and bool(own["metric"].all())
    return poses, K, scale, metric


def _cameras(run: _Run) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Cameras of every chunk; the maps are left on disk."""
    for index in range(len(run.chunks)):
        yield index, run.store.read(chunk_name(index), ("K", "world_from_cam", "metric"))
