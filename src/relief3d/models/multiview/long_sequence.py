"""Thousands of frames through a network that takes dozens: chunks, overlaps, loops, one similarity per chunk.

Frames are loaded when their chunk is computed; what a chunk says goes to disk at once, and only a few thousand points
per overlap stay in memory, so memory does not grow with the length of the video.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.core.seeding import torch_generator
from relief3d.geometry.pose_graph import PoseGraphResult, chain_poses, solve_pose_graph
from relief3d.geometry.projection import depth_to_points
from relief3d.geometry.transforms import invert_similarity, split_similarity, transform_points
from relief3d.models.multiview.long_alignment import OverlapFit, fit_overlap, home_chunk, plan_chunks

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
        worst_loop: a loop whose fit is worse (see :class:`OverlapFit`) is not believed.
        drop_below: see :func:`solve_pose_graph`.
        with_scale: False for networks that are metric already.
        seed: of the choice of points.
    """

    chunk: int = 60
    overlap: int = 30
    loop_frames: int = 10
    points: int = 2000
    worst_loop: float = 0.1
    drop_below: float = 0.05
    with_scale: bool = True
    seed: int = 0


@dataclass(frozen=True)
class LongResult:
    """A long sequence in one frame.

    Attributes:
        world_from_cam: (N, 4, 4) float64, in the frame of the first chunk.
        K: (N, 3, 3) float64.
        scale: (N,) float64 factor for the depth that the network gave.
        home: (N,) int64 chunk whose prediction a frame takes.
        chunks: (C, 4, 4) similarity of every chunk.
        joints: one fit per pair of neighbours, and one per accepted loop.
        loops: accepted pairs of frames.
        rejected: loops that were not believed.
        graph: what the pose graph said, None without loops.
        folder: of the chunks' files.
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
    folder: Path

    def depth(self, frame: int) -> tuple[Tensor, Tensor]:
        """Scaled depth (H, W) and its confidence, read from disk."""
        index = int(self.home[frame])
        stored = load_file(str(_chunk_file(self.folder, index)))
        at = frame - int(stored["frames"][0])
        return stored["depth"][at] * float(self.scale[frame]), stored["confidence"][at]


@dataclass(frozen=True)
class _Shared:
    """Points of some frames of one chunk, at fixed pixels."""

    points: Tensor
    confidence: Tensor


def run_long(
    frames: int,
    load: Frames,
    predict: Predict,
    folder: Path,
    *,
    options: LongOptions | None = None,
    loops: Sequence[tuple[int, int]] = (),
    progress: Progress | None = None,
) -> LongResult:
    """Reconstruct a long sequence.

    Args:
        frames: number of frames.
        load: gives pictures of some frames.
        predict: the network.
        folder: for the chunks' files; chunks that are there already, of the same plan, are not computed again.
        options: see :class:`LongOptions`.
        loops: pairs of frames that show the same place; each is checked by its fit before it is believed.
        progress: shown per chunk.

    Raises:
        InputError: bad options, or neighbouring chunks that share too little.
    """
    options = options or LongOptions()
    chunks = plan_chunks(frames, options.chunk, options.overlap)
    folder.mkdir(parents=True, exist_ok=True)
    _keep_plan(folder, frames, options)
    generator = torch_generator(options.seed)
    pick = torch.rand(1 << 16, generator=generator)
    joints: list[OverlapFit] = []
    shared: _Shared | None = None
    with stage(progress or SilentProgress(), "chunks", len(chunks)) as shown:
        for index, chunk in enumerate(chunks):
            stored = _chunk(folder, index, chunk, load, predict)
            if shared is not None:
                common = range(chunk.start, chunks[index - 1].stop)
                joints.append(_join(shared, _points(stored, chunk, common, pick, options.points), options))
            if index + 1 < len(chunks):
                common = range(chunks[index + 1].start, chunk.stop)
                shared = _points(stored, chunk, common, pick, options.points)
            shown.advance(1)
    similarity = chain_poses(torch.stack([j.a_from_b for j in joints])) if joints else _identity(1)
    home = home_chunk(chunks, frames)
    accepted, rejected, loop_joints, graph = [], [], [], None
    if loops and len(chunks) > 1:
        edges = [(i, i + 1) for i in range(len(chunks) - 1)]
        measured = [j.a_from_b for j in joints]
        for pair in loops:
            found = _close(pair, frames, chunks, home, folder, load, predict, pick, options)
            if found is None:
                rejected.append(pair)
                continue
            edge, fit = found
            accepted.append(pair)
            loop_joints.append(fit)
            edges.append(edge)
            measured.append(fit.a_from_b)
        if accepted:
            deviation = _typical(joints)
            information = torch.full((len(edges), 7), 1 / deviation, dtype=torch.float64)
            graph = solve_pose_graph(
                similarity,
                torch.tensor(edges),
                torch.stack(measured),
                information=information,
                huber=3.0,
                drop_below=options.drop_below,
            )
            similarity = graph.poses
    poses, K, scale = _assemble(frames, chunks, home, similarity, folder)
    fits = tuple(joints + loop_joints)
    return LongResult(
        poses, K, scale, home, similarity, fits, tuple(accepted), tuple(rejected), graph, folder
    )


def _identity(count: int) -> Tensor:
    return torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)


def _typical(joints: Sequence[OverlapFit]) -> float:
    return max(1e-4, sorted(j.error for j in joints)[len(joints) // 2])


def _keep_plan(folder: Path, frames: int, options: LongOptions) -> None:
    """Chunks of another plan in the same folder are removed."""
    text = json.dumps({"frames": frames, **asdict(options)}, sort_keys=True)
    plan = folder / "plan.json"
    if plan.is_file() and plan.read_text() == text:
        return
    for old in folder.glob("chunk_*.safetensors"):
        old.unlink()
    plan.write_text(text)


def _chunk_file(folder: Path, index: int) -> Path:
    return folder / f"chunk_{index:05d}.safetensors"


def _chunk(folder: Path, index: int, chunk: range, load: Frames, predict: Predict) -> dict[str, Tensor]:
    """What the network says about a chunk, from disk when it is there."""
    path = _chunk_file(folder, index)
    if not path.is_file():
        stored = _predicted(list(chunk), load, predict)
        temporary = path.with_suffix(".partial")
        save_file(stored, str(temporary))
        temporary.replace(path)
    return load_file(str(path))


def _predicted(numbers: Sequence[int], load: Frames, predict: Predict) -> dict[str, Tensor]:
    out = predict(load(numbers)[None], numbers)
    if out.depth is None or out.K is None or out.world_from_cam is None:
        raise InputError("a network for long sequences must give depth, intrinsics and poses")
    confidence = torch.ones_like(out.depth) if out.depth_confidence is None else out.depth_confidence
    return {
        "frames": torch.tensor(list(numbers)),
        "depth": out.depth[0].float().cpu().contiguous(),
        "confidence": confidence[0].float().cpu().contiguous(),
        "K": out.K[0].double().cpu().contiguous(),
        "world_from_cam": out.world_from_cam[0].double().cpu().contiguous(),
    }


def _points(
    stored: dict[str, Tensor], chunk: Sequence[int], common: Sequence[int], pick: Tensor, most: int
) -> _Shared:
    """World points of the common frames at the same pixels in every chunk."""
    first = chunk[0]
    height, width = stored["depth"].shape[-2:]
    count = min(most, height * width)
    pixels = (
        (
            pick[: height * width]
            if height * width <= len(pick)
            else pick.repeat(height * width // len(pick) + 1)
        )[: height * width]
        .topk(count)
        .indices
    )
    points, confidence = [], []
    for frame in common:
        at = frame - first
        local = depth_to_points(stored["depth"][at].double(), stored["K"][at]).reshape(-1, 3)[pixels]
        points.append(transform_points(stored["world_from_cam"][at], local))
        confidence.append(stored["confidence"][at].reshape(-1)[pixels])
    return _Shared(torch.cat(points), torch.cat(confidence))


def _join(a: _Shared, b: _Shared, options: LongOptions) -> OverlapFit:
    return fit_overlap(a.points, a.confidence, b.points, b.confidence, with_scale=options.with_scale)


def _close(
    pair: tuple[int, int],
    frames: int,
    chunks: Sequence[range],
    home: Tensor,
    folder: Path,
    load: Frames,
    predict: Predict,
    pick: Tensor,
    options: LongOptions,
) -> tuple[tuple[int, int], OverlapFit] | None:
    """Edge and similarity of a loop: a pass over frames around both ends is fitted to the chunks they live in."""
    ends = []
    for frame in pair:
        if not 0 <= frame < frames:
            raise InputError(f"the loop names frame {frame} of a sequence of {frames}")
        chunk = chunks[int(home[frame])]
        start = max(chunk.start, min(frame - options.loop_frames // 2, chunk.stop - options.loop_frames))
        ends.append(range(start, min(start + options.loop_frames, chunk.stop)))
    a, b = (int(home[frame]) for frame in pair)
    if a == b or set(ends[0]) & set(ends[1]):
        return None
    numbers = [*ends[0], *ends[1]]
    both = _predicted(numbers, load, predict)
    fits = []
    offset = 0
    for index, end in ((a, ends[0]), (b, ends[1])):
        part = {k: v[offset : offset + len(end)] for k, v in both.items()}
        offset += len(end)
        stored = load_file(str(_chunk_file(folder, index)))
        own = _points(stored, chunks[index], end, pick, options.points)
        fits.append(_join(own, _points(part, end, end, pick, options.points), options))
    worst = max(fits, key=lambda f: f.error)
    if worst.error > options.worst_loop:
        return None
    a_from_b = fits[0].a_from_b @ invert_similarity(fits[1].a_from_b)
    return (a, b), OverlapFit(a_from_b, worst.error, min(f.inliers for f in fits), worst.points)


def _assemble(
    frames: int, chunks: Sequence[range], home: Tensor, similarity: Tensor, folder: Path
) -> tuple[Tensor, Tensor, Tensor]:
    poses, K = _identity(frames), torch.zeros(frames, 3, 3, dtype=torch.float64)
    scale = torch.ones(frames, dtype=torch.float64)
    for index, stored in _each(chunks, folder):
        s, R, t = split_similarity(similarity[index])
        for frame in chunks[index]:
            if int(home[frame]) != index:
                continue
            own = stored["world_from_cam"][frame - chunks[index].start]
            poses[frame, :3, :3] = R @ own[:3, :3]
            poses[frame, :3, 3] = s * R @ own[:3, 3] + t
            K[frame], scale[frame] = stored["K"][frame - chunks[index].start], s
    return poses, K, scale


def _each(chunks: Sequence[range], folder: Path) -> Iterator[tuple[int, dict[str, Tensor]]]:
    for index in range(len(chunks)):
        yield index, load_file(str(_chunk_file(folder, index)))
