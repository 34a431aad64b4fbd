"""Long sequences with an oracle: exact truth, a random similarity per pass, and noise."""

from __future__ import annotations

import errno
import gc
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.geometry.alignment import umeyama
from relief3d.geometry.projection import depth_to_world_points
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid, make_rigid, sim3_exp, split_similarity
from relief3d.models.multiview.long_alignment import (
    OverlapFit,
    fit_overlap,
    home_chunk,
    loop_candidates,
    plan_chunks,
)
from relief3d.models.multiview.long_graph import close_graph
from relief3d.models.multiview.long_sequence import LongOptions, LongResult, Predict, run_long

SIZE = (12, 16)


def walk(frames: int, laps: float = 2.0) -> torch.Tensor:
    """(N, 4, 4) cameras on laps around a block of 40 x 25 m, looking ahead."""
    a = torch.linspace(0, 2 * math.pi * laps, frames, dtype=torch.float64)
    centre = torch.stack([20 * a.cos(), 12.5 * a.sin(), 0.3 * (3 * a).sin()], -1)
    heading = torch.atan2(12.5 * a.cos(), -20 * a.sin())
    R = matrix_from_axis_angle(torch.stack([torch.zeros_like(a), torch.zeros_like(a), heading], -1))
    axes = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    return make_rigid(R @ axes, centre)


class Oracle:
    """Truth in an arbitrary similarity frame per pass, with noise on depth and poses that grows along the pass."""

    def __init__(self, frames: int, noise: float = 0.003) -> None:
        self.poses, self.noise = walk(frames), noise
        self.K = torch.tensor([[14.0, 0, 8], [0, 14, 6], [0, 0, 1]], dtype=torch.float64)
        self.calls: list[list[int]] = []
        generator = torch.Generator().manual_seed(5)
        self.depth = 3 + 5 * torch.rand(SIZE, generator=generator, dtype=torch.float64)

    def load(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.zeros(len(numbers), 3, *SIZE)

    def predict(self, images: torch.Tensor, numbers: Sequence[int]) -> Prediction:
        self.calls.append(list(numbers))
        generator = torch.Generator().manual_seed(derive_seed(0, *numbers))
        n = len(numbers)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        frame = sim3_exp(torch.cat([random(3) * 3, random(3), 0.3 * random(1)]))
        s, R, t = split_similarity(frame)
        wobble = (random(n, 6) * self.noise * 0.3).cumsum(0)
        own = self.poses[list(numbers)] @ make_rigid(
            matrix_from_axis_angle(wobble[:, 3:] * 0.1), wobble[:, :3]
        )
        poses = own.clone()
        poses[:, :3, :3], poses[:, :3, 3] = R @ own[:, :3, :3], s * own[:, :3, 3] @ R.T + t
        depth = s * self.depth * (1 + self.noise * random(n, *SIZE))
        return Prediction(
            depth=depth[None], K=self.K.expand(1, n, 3, 3), world_from_cam=poses[None],
            depth_confidence=torch.ones(1, n, *SIZE),
        )  # fmt: skip


def drift(poses: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest error of the camera centres after one similarity, over the length of the path."""
    a, b = poses[:, :3, 3], truth[:, :3, 3]
    length = (b[1:] - b[:-1]).norm(dim=-1).sum()
    return float((umeyama(a, b).apply(a) - b).norm(dim=-1).max() / length)


def test_plans_cover_every_frame_and_overlap() -> None:
    for frames, size, overlap in ((10, 4, 2), (100, 30, 10), (7, 60, 30), (61, 60, 30), (60, 60, 1)):
        chunks = plan_chunks(frames, size, overlap)
        assert chunks[0].start == 0 and chunks[-1].stop == frames
        assert all(len(c) == min(size, frames) for c in chunks)
        assert all(a.stop - b.start >= overlap and b.start > a.start for a, b in pairwise(chunks))
        home = home_chunk(chunks, frames)
        assert all(f in chunks[int(home[f])] for f in range(frames))
    for bad in ((0, 4, 2), (10, 4, 4), (10, 4, 0)):
        with pytest.raises(InputError):
            plan_chunks(*bad)


def test_overlaps_are_fitted_in_spite_of_outliers() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    S = sim3_exp(torch.tensor([1.0, -2, 0.5, 0.3, -0.8, 0.2, 0.7], dtype=torch.float64))
    s, R, t = split_similarity(S)
    b = (a - t) @ R / s
    b[:150] += torch.randn(150, 3, generator=generator, dtype=torch.float64)
    ones = torch.ones(500)
    fit = fit_overlap(a, ones, b, ones)
    assert torch.allclose(fit.a_from_b, S, atol=0.02) and fit.points == 500
    sure = ones.clone()
    sure[:150] = 0.01  # the network knows: below a tenth of the median
    exact = fit_overlap(a, sure, b, ones)
    assert torch.allclose(exact.a_from_b, S, atol=1e-9) and exact.points == 350
    with pytest.raises(InputError, match="only 5 usable"):
        fit_overlap(a[:5], ones[:5], b[:5], ones[:5])


def test_frames_live_where_they_are_farthest_from_an_end() -> None:
    home = home_chunk([range(0, 10), range(6, 16), range(8, 18)], 18)
    assert home.tolist() == [0] * 8 + [1] * 4 + [2] * 6 or home.tolist() == [0] * 8 + [1] * 5 + [2] * 5
    assert home_chunk([range(0, 8), range(4, 12)], 12).tolist() == [0] * 6 + [1] * 6


def test_deviation_is_how_far_whole_frames_are_off() -> None:
    """Noise of points averages out, an offset of a frame does not."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(6, 200, 3, generator=generator, dtype=torch.float64)
    noise = 0.05 * torch.randn(6, 200, 3, generator=generator, dtype=torch.float64)
    offset = (
        0.05 * torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)[:, None, None] * torch.eye(3)[2]
    )
    ones = torch.ones(1200)

    def fitted(b: torch.Tensor) -> float:
        return fit_overlap(a.flatten(0, 1), ones, b.flatten(0, 1), ones, frames=6).deviation

    size = fit_overlap(a.flatten(0, 1), ones, a.flatten(0, 1), ones).size
    assert fitted(a + noise) < 0.01
    assert math.isclose(fitted(a + noise + offset), 0.05 / size, rel_tol=0.25)


def test_exact_chunks_give_back_the_exact_path(tmp_path: Path) -> None:
    oracle = Oracle(90, noise=0.0)
    out = run_long(90, oracle.load, oracle.predict, tmp_path, options=LongOptions(chunk=20, overlap=8))
    assert drift(out.world_from_cam, oracle.poses) < 1e-9
    ratio = out.depth(50)[0] / out.depth(10)[0]
    assert torch.allclose(ratio, torch.ones_like(ratio), atol=1e-5), "one scale for the whole sequence"


def test_loops_keep_the_drift_below_a_percent(tmp_path: Path) -> None:
    frames = 600
    oracle = Oracle(frames, noise=0.03)
    options = LongOptions(chunk=20, overlap=6, points=200)
    open_end = run_long(frames, oracle.load, oracle.predict, tmp_path, options=options)
    loops = [(i, i + frames // 2) for i in range(5, frames // 2 - 5, 30)]
    closed = run_long(frames, oracle.load, oracle.predict, tmp_path, options=options, loops=loops)
    before, after = drift(open_end.world_from_cam, oracle.poses), drift(closed.world_from_cam, oracle.poses)
    assert after < 0.01 and after < 0.3 * before, (before, after)
    assert len(closed.loops) >= 8 and closed.graph is not None


def test_a_wrong_loop_is_not_believed(tmp_path: Path) -> None:
    oracle = Oracle(200, noise=0.001)
    options = LongOptions(chunk=30, overlap=10)

    def confused(images: torch.Tensor, numbers: Sequence[int]) -> Prediction:
        out = oracle.predict(images, numbers)
        if len(numbers) == 2 * options.loop_frames and out.depth is not None:
            noise = torch.rand(
                out.depth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
            )
            return Prediction(
                depth=out.depth * (0.3 + 2 * noise), K=out.K, world_from_cam=out.world_from_cam,
                depth_confidence=out.depth_confidence,
            )  # fmt: skip
        return out

    out = run_long(200, oracle.load, confused, tmp_path, options=options, loops=[(10, 150)])
    assert out.loops == () and out.rejected == ((10, 150),)
    with pytest.raises(InputError, match="frame 999"):
        run_long(200, oracle.load, oracle.predict, tmp_path, options=options, loops=[(10, 999)])


def test_false_loops_among_true_ones_are_dropped(tmp_path: Path) -> None:
    """The network is fooled: each end of a false loop is right by itself, but it puts the two ends together."""
    frames = 400
    oracle = Oracle(frames, noise=0.02)
    options = LongOptions(chunk=20, overlap=6, points=200)
    true = [(i, i + frames // 2) for i in range(5, frames // 2 - 5, 14)]
    generator = torch.Generator().manual_seed(3)
    false = []
    while len(false) < round(0.3 / 0.7 * len(true)):
        i, j = sorted(torch.randint(0, frames, (2,), generator=generator).tolist())
        if j - i > 60 and (oracle.poses[i, :3, 3] - oracle.poses[j, :3, 3]).norm() > 8:
            false.append((i, j))

    def fooled(images: torch.Tensor, numbers: Sequence[int]) -> Prediction:
        out = oracle.predict(images, numbers)
        middle = options.loop_frames
        ends = numbers[middle // 2], numbers[-1] - middle // 2
        if len(numbers) == 2 * middle and any(abs(a - ends[0]) + abs(b - ends[1]) < 25 for a, b in false):
            assert out.world_from_cam is not None
            poses = out.world_from_cam[0].clone()
            poses[middle:] = poses[middle // 2] @ invert_rigid(poses[-middle // 2]) @ poses[middle:]
            return replace(out, world_from_cam=poses[None])
        return out

    open_end = run_long(frames, oracle.load, fooled, tmp_path / "open", options=options)
    out = run_long(frames, oracle.load, fooled, tmp_path / "closed", options=options, loops=true + false)
    assert len(false) >= 5 and not set(false) & set(out.loops), "a false loop was believed"
    assert set(out.rejected) >= set(false) and len(out.loops) >= 0.8 * len(true)
    assert drift(out.world_from_cam, oracle.poses) < 0.7 * drift(open_end.world_from_cam, oracle.poses)


def test_joints_know_how_far_whole_frames_are_off(tmp_path: Path) -> None:
    oracle, options = Oracle(60, noise=0.02), LongOptions(chunk=20, overlap=6, points=100)
    out = run_long(60, oracle.load, oracle.predict, tmp_path, options=options)
    assert all(0.001 < j.deviation < 0.03 for j in out.joints), (
        "poses wander within a pass; 0 would be all points' mean"
    )


def test_what_a_loop_may_contradict_is_counted_in_deviations_of_joints() -> None:
    identity = torch.eye(4, dtype=torch.float64)
    joint = OverlapFit(identity, error=0.02, inliers=1.0, points=100, size=2.0, deviation=0.01)
    tolerance = LongOptions().loop_tolerance
    for deviations, kept in ((0.5 * tolerance, True), (3 * tolerance, False)):
        off = identity.clone()
        off[0, 3] = deviations * joint.deviation * joint.size
        loops = [((i, i + 6), joint) for i in range(6)] + [((2, 8), replace(joint, a_from_b=off))]
        found = close_graph(identity.repeat(12, 1, 1), [joint] * 11, loops, tolerance=tolerance)
        assert found.weights[11:].tolist() == [1.0] * 6 + [float(kept)], deviations


def test_metres_are_those_of_the_passes_that_are_used(tmp_path: Path) -> None:
    oracle, options = Oracle(60), LongOptions(chunk=20, overlap=8)

    def run(metric: Sequence[bool], source: str, stop: int = 100) -> LongResult:
        said = iter(metric)

        def predict(images: torch.Tensor, numbers: Sequence[int]) -> Prediction:
            if len(oracle.calls) - before == stop:
                raise KeyboardInterrupt
            return replace(oracle.predict(images, numbers), metric=next(said))

        before = len(oracle.calls)
        return run_long(60, oracle.load, predict, tmp_path, options=options, source=source)

    with pytest.raises(KeyboardInterrupt):
        run([False, False], "one", stop=2)
    assert run([True] * 9, "two").metric, "passes of another source say nothing"
    with pytest.raises(KeyboardInterrupt):
        run([False, True], "three", stop=2)
    assert not run([True] * 9, "three").metric, "a pass that is used again is as it was"
    assert run([], "three").metric is False


def test_interrupted_runs_continue_bit_for_bit(tmp_path: Path) -> None:
    oracle, options = Oracle(120), LongOptions(chunk=20, overlap=8)
    loops = [(10, 70), (30, 90)]

    def run(folder: str, predict: Predict, source: str | None = "walk 1") -> LongResult:
        return run_long(
            120, oracle.load, predict, tmp_path / folder, options=options, loops=loops, source=source
        )

    whole = run("whole", oracle.predict)
    made = len(oracle.calls)
    left = [made]

    def dies(images: torch.Tensor, numbers: Sequence[int]) -> Prediction:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return oracle.predict(images, numbers)

    for stop in (4, made - 3):
        left[0] = stop
        with pytest.raises(KeyboardInterrupt):
            run("resumed", dies)
    # Cut off, and of other frames: neither is taken for a whole file.
    first, second, third = (tmp_path / "resumed" / f"chunk_{i:05d}.safetensors" for i in range(3))
    first.write_bytes(first.read_bytes()[:1000])
    second.write_bytes(third.read_bytes())
    before = len(oracle.calls)
    again = run("resumed", oracle.predict)
    assert len(oracle.calls) == before + 3, "two spoilt chunks and the last loop"
    assert torch.equal(again.world_from_cam, whole.world_from_cam) and torch.equal(again.scale, whole.scale)
    assert torch.equal(again.chunks, whole.chunks) and again.loops == whole.loops
    assert torch.equal(again.depth(77)[0], whole.depth(77)[0])
    for source, fresh in (("walk 1", 0), ("walk 2", made), (None, made), (None, made)):
        before = len(oracle.calls)
        run("resumed", oracle.predict, source)
        assert len(oracle.calls) == before + fresh, (source, "files of other pictures were taken over")


def test_other_plans_start_again(tmp_path: Path) -> None:
    oracle = Oracle(60)
    for chunk in (20, 30):
        before = len(oracle.calls)
        options = LongOptions(chunk=chunk, overlap=8)
        run_long(60, oracle.load, oracle.predict, tmp_path, options=options, source="walk")
        assert len(oracle.calls) - before == len(plan_chunks(60, chunk, 8))


def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, options = Oracle(60), LongOptions(chunk=20, overlap=8)
    write, count = Path.write_bytes, [0]

    def full(self: Path, data: bytes) -> int:
        count[0] += self.suffix == ".safetensors"
        if count[0] == 3:
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="disk is full"):
        run_long(60, oracle.load, oracle.predict, tmp_path, options=options, source="a")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["chunk_00000.safetensors", "chunk_00001.safetensors", "plan.json"]
    run_long(60, oracle.load, oracle.predict, tmp_path, options=options, source="a")


def test_frames_that_cannot_be_joined_are_named(tmp_path: Path) -> None:
    oracle, options = Oracle(60), LongOptions(chunk=20, overlap=8)

    def blind(images: torch.Tensor, numbers: Sequence[int]) -> Prediction:
        out = oracle.predict(images, numbers)
        assert out.depth is not None
        hidden = torch.tensor([24 <= n < 32 for n in numbers])
        return replace(out, depth=out.depth.masked_fill(hidden[None, :, None, None], 0.0))

    with pytest.raises(InputError, match=r"frames 24 to 31 .* 0 usable points") as caught:
        run_long(60, oracle.load, blind, tmp_path, options=options)
    assert "overlap" in str(caught.value)


def test_joints_that_fit_badly_are_noted(tmp_path: Path) -> None:
    oracle, options = Oracle(60, noise=0.0), LongOptions(chunk=20, overlap=8)

    def rough(images: torch.Tensor, numbers: Sequence[int]) -> Prediction:
        out = oracle.predict(images, numbers)
        assert out.depth is not None
        bad = torch.tensor([n >= 36 for n in numbers])[None, :, None, None]
        factor = 0.2 + 3 * torch.rand(
            out.depth.shape, generator=torch.Generator().manual_seed(len(oracle.calls))
        )
        return replace(out, depth=torch.where(bad, out.depth * factor, out.depth))

    out = run_long(60, oracle.load, rough, tmp_path, options=options)
    assert out.notes and "frames 36 to 43" in out.notes[0]
    fine = run_long(60, oracle.load, oracle.predict, tmp_path, options=options)
    assert fine.notes == ()


def test_one_chunk_is_enough_for_few_frames(tmp_path: Path) -> None:
    oracle = Oracle(7, noise=0.0)
    out = run_long(7, oracle.load, oracle.predict, tmp_path, loops=[(0, 6)])
    assert oracle.calls == [list(range(7))] and out.joints == () and out.rejected == ((0, 6),)
    assert drift(out.world_from_cam, oracle.poses) < 1e-9


def test_the_last_chunk_is_as_long_as_the_others(tmp_path: Path) -> None:
    oracle = Oracle(45, noise=0.0)
    out = run_long(45, oracle.load, oracle.predict, tmp_path, options=LongOptions(chunk=20, overlap=8))
    assert [len(c) for c in oracle.calls] == [20] * 4 and out.starts == (0, 12, 24, 25)
    assert drift(out.world_from_cam, oracle.poses) < 1e-9


def test_points_come_lazily_in_one_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle(60, noise=0.0)
    out = run_long(60, oracle.load, oracle.predict, tmp_path, options=LongOptions(chunk=20, overlap=8))
    truth = depth_to_world_points(oracle.depth.expand(60, *SIZE), oracle.K.expand(60, 3, 3), oracle.poses)
    points = torch.stack([out.points(f)[0] for f in range(60)])
    fit = umeyama(points.reshape(-1, 3), truth.reshape(-1, 3))
    assert torch.allclose(fit.apply(points.reshape(-1, 3)), truth.reshape(-1, 3), atol=1e-4)
    with pytest.raises(InputError, match="no frame 60"):
        out.depth(60)


def test_no_more_than_one_pass_is_held(tmp_path: Path) -> None:
    """Tensors of maps that are alive at any time do not grow with the number of frames."""
    oracle, options = Oracle(150), LongOptions(chunk=20, overlap=8, points=50)
    most: dict[int, int] = {}

    def watched(images: torch.Tensor, numbers: Sequence[int]) -> Prediction:
        gc.collect()
        alive = sum(
            t.numel()
            for t in gc.get_objects()
            if type(t) is torch.Tensor and t.shape[-2:] == SIZE and t.ndim > 2
        )
        most[frames] = max(most.get(frames, 0), alive)
        return oracle.predict(images, numbers)

    for frames in (60, 150):
        run_long(frames, oracle.load, watched, tmp_path / str(frames), options=options)
    assert most[150] <= 1.1 * most[60]


def test_loop_candidates_are_alike_far_apart_and_thinned() -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(100, 32, generator=generator)
    features = torch.cat([places, places + 0.1 * torch.randn(100, 32, generator=generator)])
    found = loop_candidates(features, min_gap=50, apart=10)
    assert found and all(abs(j - i - 100) <= 1 for i, j in found)
    assert all(abs(a[0] - b[0]) > 10 or abs(a[1] - b[1]) > 10 for a in found for b in found if a is not b)
    assert loop_candidates(features, min_gap=150) == []
