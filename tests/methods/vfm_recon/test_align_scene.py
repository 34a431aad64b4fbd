"""Scale alignment of a small room: accuracy, invariances, and what bad input becomes."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, SparseDepth
from relief3d.core.errors import InputError
from relief3d.methods.vfm_recon.align import align_scene, plan_scene
from relief3d.methods.vfm_recon.alignment import SceneAlignment
from relief3d.methods.vfm_recon.config import AlignConfig, LoopConfig, OverlapConfig
from relief3d.methods.vfm_recon.inputs import DepthSource, PairMatches, SubmapDepth
from relief3d.methods.vfm_recon.pose_check import ALTERNATIVES
from relief3d.methods.vfm_recon.submaps import Submap

from .room import Corruption, FakeDepth, exact_depth, orbit, true_matches, turning

SIZE = (40, 30)
SCALES = [0.25, -0.3, 0.1, -0.15]
CALM = AlignConfig(loops=LoopConfig(enabled=False))

Pairs = dict[tuple[int, int], PairMatches]


@lru_cache(maxsize=1)
def cameras() -> tuple[Camera, ...]:
    return tuple(orbit(20, 0.6, SIZE))


@lru_cache(maxsize=4)
def matches(noise: float = 0.02, outliers: float = 0.0) -> Pairs:
    source = true_matches(cameras(), 40, noise, outliers)
    found = {pair: source(*pair) for pair in plan_scene(cameras()).pairs}
    return {pair: m for pair, m in found.items() if m is not None}


def errors(alignment: SceneAlignment) -> Tensor:
    return (alignment.log_scale[: len(SCALES)] - torch.tensor(SCALES, dtype=torch.float64)).abs()


def source(noise: float = 0.01, frame: float = 0.0) -> FakeDepth:
    return FakeDepth(cameras(), Corruption(SCALES, noise, frame))


def test_scales_are_recovered_and_depth_is_aligned() -> None:
    depths = source()
    alignment = align_scene(cameras(), depths, matches(), CALM)
    assert len(alignment.submaps) == 4
    assert float(errors(alignment).max()) < 0.01
    assert alignment.units == "metric"
    assert alignment.warnings == ()
    assert alignment.usable == tuple(range(20))
    seen = 0
    for aligned in alignment.depth_frames(depths):
        values = aligned.depth.depth.values
        known = values > 0
        exact = depths.exact[aligned.frame]
        assert float(known.float().mean()) > 0.75
        assert float((values[known] / exact[known]).log().abs().median()) < 0.02
        seen += 1
    assert seen == 20


def test_exact_input_gives_exact_scales() -> None:
    """Matches without noise; what is left is interpolation of depth between pixels of a coarse map."""
    alignment = align_scene(cameras(), source(0.0), matches(0.0), CALM)
    assert float(errors(alignment).max()) < 3e-3
    # Edges are exact, because shared frames are the same up to scale.
    x = torch.tensor(SCALES, dtype=torch.float64)
    for edge in alignment.edges:
        assert edge.rho == pytest.approx(float(x[edge.j] - x[edge.i]), abs=1e-6)
        assert edge.frames == 4
        assert edge.valid


def moved(change: Callable[[Tensor], Tensor]) -> list[Camera]:
    out = []
    for c in cameras():
        assert c.world_from_cam is not None
        out.append(c.replace(world_from_cam=change(c.world_from_cam)))
    return out


def test_scaling_the_poses_scales_depth() -> None:
    def scale(pose: Tensor) -> Tensor:
        out = pose.clone()
        out[:3, 3] *= 25.0
        return out

    config = replace(CALM, units="pose")
    one = align_scene(cameras(), source(), matches(), config)
    two = align_scene(moved(scale), source(), matches(), config)
    assert two.units == "pose"
    assert (two.log_scale - one.log_scale - math.log(25.0)).abs().max() < 1e-6
    assert two.median_depth == pytest.approx(25 * one.median_depth, rel=1e-4)


def test_turning_and_moving_the_world_changes_nothing() -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    turn = turn * torch.linalg.det(turn)
    rigid = torch.eye(4, dtype=torch.float64)
    rigid[:3, :3], rigid[:3, 3] = turn, torch.tensor([40.0, -7.0, 3.0])
    one = align_scene(cameras(), source(), matches(), CALM)
    two = align_scene(moved(lambda pose: rigid @ pose), source(), matches(), CALM)
    assert (two.log_scale - one.log_scale).abs().max() < 1e-6


def test_metric_depth_anchors_poses_of_unknown_scale() -> None:
    def scale(pose: Tensor) -> Tensor:
        out = pose.clone()
        out[:3, 3] /= 3.0
        return out

    anchored = align_scene(
        moved(scale),
        source(),
        matches(),
        replace(CALM, units="pose"),
        metric_depth=lambda t: Depth.from_values(exact_depth(cameras()[t])),
    )
    assert anchored.units == "metric"
    assert anchored.factor == pytest.approx(3.0, rel=0.01)
    assert float(errors(anchored).max()) < 0.02
    given, got = cameras()[4].world_from_cam, anchored.cameras[4].world_from_cam
    assert given is not None
    assert got is not None
    assert (given - got).abs().max() < 0.02


def test_a_loop_joins_both_ends_of_the_sequence() -> None:
    around = orbit(20, 1.0, (32, 24))
    made, every = true_matches(around, 20, 0.02), Pairs()

    def found(a: int, b: int) -> PairMatches | None:
        if (a, b) not in every and (m := made(a, b)) is not None:
            every[a, b] = m
        return every.get((a, b))

    depths = FakeDepth(around, Corruption([0.2, -0.2, 0.1, 0.0], 0.01))
    alignment = align_scene(around, depths, found)
    loops = [m for m in alignment.submaps if m.kind == "loop"]
    assert loops
    assert all(min(m.frames) < 8 and max(m.frames) > 11 for m in loops)
    joined = {k for e in alignment.edges if e.j == loops[0].index for k in (e.i,)}
    assert {0, len(alignment.submaps) - len(loops) - 1} <= joined
    assert not any(m.kind == "loop" for m in align_scene(around, depths, found, CALM).submaps)


def test_a_submap_without_matches_gets_its_scale_from_neighbours_and_is_named() -> None:
    inside = set(range(8, 12))
    left = {pair: m for pair, m in matches().items() if not inside & set(pair)}
    names = [f"photo_{k:02d}" for k in range(20)]
    plan = plan_scene(cameras())
    only = [m for m in plan.submaps if all(not set(p) <= set(m.frames) for p in left)]
    assert not only  # others still have some
    none = {p: m for p, m in left.items() if not set(p) <= set(plan.submaps[1].frames)}
    alignment = align_scene(cameras(), source(), none, CALM, names=names)
    assert "no matches" in alignment.flags[1]
    assert "no prior" in alignment.flags[1]
    assert float(alignment.prior_weights[1]) == 0
    assert float(errors(alignment)[1]) < 0.02
    assert any("no matches" in w and "photo_04 to photo_11" in w for w in alignment.warnings)


def test_a_camera_that_only_turns_has_no_scale_but_finite_depth() -> None:
    still = turning(12, SIZE)
    found = true_matches(still, 30)
    pairs = {
        (a, b): m for a in range(12) for b in range(a + 1, min(a + 5, 12)) if (m := found(a, b)) is not None
    }
    nearly = [c.replace(world_from_cam=_nudged(c, k)) for k, c in enumerate(still)]
    depths = FakeDepth(still, Corruption([0.4, -0.2]))
    for given in (still, nearly):
        alignment = align_scene(given, depths, pairs, CALM)
        assert alignment.units == "normalised"
        assert alignment.median_depth == pytest.approx(2.0, rel=1e-3)
        assert any("only turns" in w or "normalised" in w for w in alignment.warnings)
        # Edges still make both submaps agree.
        assert float(alignment.log_scale[0] - alignment.log_scale[1]) == pytest.approx(0.6, abs=1e-3)
        assert all(bool(torch.isfinite(f.depth.values()).all()) for f in alignment.depth_frames(depths))


def _nudged(camera: Camera, k: int) -> Tensor:
    assert camera.world_from_cam is not None
    pose = camera.world_from_cam.clone()
    pose[0, 3] += 1e-5 * k
    return pose


@pytest.mark.parametrize("name", list(ALTERNATIVES))
def test_a_wrong_pose_convention_is_named(name: str) -> None:
    wrong = {
        "world-to-camera (inverse) poses": torch.linalg.inv,
        "OpenGL camera axes (y up, z backward)": _gl,
        "world-to-camera (inverse) poses of OpenGL cameras": lambda pose: torch.linalg.inv(_gl(pose)),
    }
    depths = source()
    with pytest.raises(InputError) as caught:
        align_scene(moved(wrong[name]), depths, matches(), CALM)
    assert f"read as {name}" in caught.value.message
    assert depths.asked == []  # refused before any network runs


def _gl(pose: Tensor) -> Tensor:
    return pose @ torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=pose.dtype))


def test_poses_of_another_recording_are_refused() -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3)).tolist()
    shuffled = [cameras()[k] for k in order]
    with pytest.raises(InputError, match="order"):
        align_scene(shuffled, source(), matches(), CALM)


def test_half_of_the_matches_wrong() -> None:
    alignment = align_scene(cameras(), source(), matches(0.02, 0.5), CALM)
    assert float(errors(alignment).max()) < 0.03


def test_half_of_the_depth_wrong_in_one_submap_is_outvoted_and_named() -> None:
    depths = source()

    def spoil(submap: Submap, depth: Tensor) -> Tensor:
        if submap.index != 2:
            return depth
        generator = torch.Generator().manual_seed(5)
        wrong = torch.rand(depth.shape, generator=generator) < 0.5
        return torch.where(
            wrong, depth * torch.exp(2 * torch.rand(depth.shape, generator=generator) - 1), depth
        )

    depths.edit = spoil
    alignment = align_scene(cameras(), depths, matches(), CALM)
    assert float(errors(alignment).max()) < 0.1
    assert float(errors(alignment)[[0, 1, 3]].max()) < 0.03
    assert alignment.flags[2] != ()
    assert any("keyframe 8 to keyframe 15" in w for w in alignment.warnings)
    for aligned in alignment.depth_frames(depths):
        assert bool(torch.isfinite(aligned.depth.values()).all())


def test_a_wrong_prior_is_outvoted_and_named() -> None:
    """Things that move with the camera give consistent but wrong points in one submap."""
    sparse = {}
    for t in range(5, 11):
        depth = exact_depth(cameras()[t])
        row, column = torch.meshgrid(torch.arange(2, 28, 2), torch.arange(2, 38, 2), indexing="ij")
        xy = torch.stack([column + 0.5, row + 0.5], -1).reshape(-1, 2)
        sparse[t] = SparseDepth(xy, 1.6 * depth[row, column].reshape(-1))
    none = {p: m for p, m in matches().items() if not set(p) <= set(range(4, 12))}
    alignment = align_scene(cameras(), source(), none, CALM, sparse=sparse)
    assert float(errors(alignment)[[0, 3]].max()) < 0.05
    assert "prior rejected" in alignment.flags[1]


def test_one_submap_one_keyframe_and_no_poses() -> None:
    few = cameras()[:6]
    depths = FakeDepth(few, Corruption([0.5], 0.01))
    alignment = align_scene(few, depths, matches(), CALM)
    assert len(alignment.submaps) == 1
    assert alignment.edges == ()
    assert float(alignment.log_scale[0]) == pytest.approx(0.5, abs=0.01)
    single = align_scene(few[:1], FakeDepth(few[:1]), {}, CALM)
    assert single.units == "model"
    assert float(single.log_scale[0]) == 0.0
    assert single.warnings
    blind = align_scene([c.replace(world_from_cam=None) for c in few], depths, {}, CALM)
    assert blind.units == "model"
    assert blind.usable == ()


def test_a_keyframe_without_pose_is_left_out_but_named() -> None:
    lost = [c if k != 7 else c.replace(world_from_cam=None) for k, c in enumerate(cameras())]
    alignment = align_scene(lost, source(), matches(), CALM)
    assert 7 not in alignment.usable
    assert any("keyframe 7" in w for w in alignment.warnings)
    assert float(errors(alignment).max()) < 0.02


def test_two_segments_without_a_common_frame() -> None:
    """The second part has no matches: its scale is a guess, and it is not used for the surface."""
    segments = [range(10), range(10, 20)]
    first = {p: m for p, m in matches().items() if p[1] < 10}
    depths = FakeDepth(cameras(), Corruption([0.2, -0.1, 0.3, 0.1], 0.01))
    alignment = align_scene(cameras(), depths, first, CALM, segments=segments)
    assert alignment.usable == tuple(range(10))
    assert int(alignment.solution.component.max()) == 1
    assert any("left out of the surface" in w for w in alignment.warnings)
    anchored = align_scene(
        cameras(),
        depths,
        first,
        CALM,
        segments=segments,
        metric_depth=lambda t: Depth.from_values(exact_depth(cameras()[t])),
    )
    assert anchored.usable == tuple(range(20))
    assert float(anchored.log_scale[3]) == pytest.approx(0.1, abs=0.03)


def test_depth_of_another_number_of_frames_is_refused() -> None:
    def short(submap: Submap) -> SubmapDepth:
        return SubmapDepth(source()(submap).depth[:-1])

    with pytest.raises(InputError, match="has 8 frames but its depth has 7 maps"):
        align_scene(cameras(), short, matches(), CALM)


def test_memory_does_not_grow_with_the_number_of_frames() -> None:
    """Never more than three submaps' depth is alive, in alignment and in what follows."""
    alive: weakref.WeakSet[SubmapDepth] = weakref.WeakSet()
    most = 0
    inner = source()

    class Hashable(SubmapDepth):
        __hash__ = object.__hash__
        __eq__ = object.__eq__  # type: ignore[assignment]

    def counted(submap: Submap) -> SubmapDepth:
        nonlocal most
        made = Hashable(inner(submap).depth)
        alive.add(made)
        most = max(most, len(alive))
        return made

    depths: DepthSource = counted
    alignment = align_scene(cameras(), depths, matches(), CALM)
    assert most <= 3
    list(alignment.depth_frames(depths))
    assert most <= 3


@pytest.mark.parametrize("order", [0, 1])
def test_corrections_of_single_predictions_help(order: int) -> None:
    """Every prediction is off by 3 % as a whole, or by a plane over the picture."""

    def worst(overlap: OverlapConfig) -> float:
        depths = FakeDepth(cameras(), Corruption(SCALES))

        def bend(submap: Submap, depth: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(submap.index)
            u = torch.linspace(-1, 1, depth.shape[2])
            off = 0.04 * torch.randn(len(depth), 1, 1, generator=generator)
            return depth * (off * (u if order else torch.ones_like(u))).exp()

        depths.edit = bend
        alignment = align_scene(cameras(), depths, matches(0.0), replace(CALM, overlap=overlap))
        found = []
        for aligned in alignment.depth_frames(depths):
            values = aligned.depth.values()
            known = values > 0
            found.append((values[known] / depths.exact[aligned.frame][known]).log().abs().mean())
        return float(torch.stack(found).mean())

    plain = worst(OverlapConfig("centre"))
    better = worst(OverlapConfig("centre", per_frame=order == 0, spatial_order=1 if order else 0))
    assert better < 0.75 * plain
