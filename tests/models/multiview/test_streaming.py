"""Streams: an oracle for the joints and the memory, and masked attention for the causal networks."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relief3d.core.contract import Prediction
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.geometry.alignment import umeyama
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import make_rigid, sim3_exp, split_similarity
from relief3d.models.multiview.causal import causal_network
from relief3d.models.multiview.configs import pi3_config, reliev3r_config, vggt_config
from relief3d.models.multiview.interface import InferenceOptions, Known, wrap
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.streaming import (
    CachedStream,
    StreamOptions,
    StreamUpdate,
    WindowStream,
    _Past,
    make_stream,
    spread_out,
)
from relief3d.models.multiview.vggt import Vggt
from relief3d.nn.attention import Attend

SIZE = (14, 28)
FRAMES = 400


def walk(frames: int) -> Tensor:
    """(N, 4, 4) cameras on one lap of 40 x 25 m, looking ahead."""
    a = torch.linspace(0, 2 * math.pi, frames, dtype=torch.float64)
    centre = torch.stack([20 * a.cos(), 12.5 * a.sin(), 0.3 * (3 * a).sin()], -1)
    heading = torch.atan2(12.5 * a.cos(), -20 * a.sin())
    R = matrix_from_axis_angle(torch.stack([torch.zeros_like(a), torch.zeros_like(a), heading], -1))
    axes = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]], dtype=torch.float64)
    return make_rigid(R @ axes, centre)


def frames_of(*numbers: int) -> Tensor:
    """Pictures that say which frame they are."""
    return (torch.tensor(numbers, dtype=torch.float32) / 1024)[:, None, None, None].expand(-1, 3, *SIZE)


class Oracle:
    """Truth in an arbitrary similarity frame per call, with noise on depth and poses that grows along the call.

    Where ``cut`` is set, a call that sees frames on both sides of it gives the earlier ones another shape.
    """

    name, patch, prepare_mode, takes = "oracle", 14, "keep", frozenset({"K"})

    def __init__(self, noise: float = 0.003, cut: int | None = None) -> None:
        self.poses, self.noise, self.cut = walk(FRAMES), noise, cut
        self.K = torch.tensor([[14.0, 0, 14], [0, 14, 7], [0, 0, 1]], dtype=torch.float64)
        self.calls: list[list[int]] = []
        self.known: list[Known | None] = []
        generator = torch.Generator().manual_seed(5)
        self.depth = 3 + 5 * torch.rand(SIZE, generator=generator, dtype=torch.float64)
        self.wrong = 0.2 + 3 * torch.rand(SIZE, generator=generator, dtype=torch.float64)

    def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
        numbers = (images[0, :, 0, 0, 0] * 1024).round().long().tolist()
        self.calls.append(numbers)
        self.known.append(known)
        generator = torch.Generator().manual_seed(derive_seed(0, *numbers))
        n = len(numbers)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        s, R, t = split_similarity(sim3_exp(torch.cat([random(3) * 3, random(3), 0.3 * random(1)])))
        wobble = (random(n, 6) * self.noise * 0.3).cumsum(0)
        turn = matrix_from_axis_angle(wobble[:, 3:] * 0.1)
        own = self.poses[numbers] @ make_rigid(turn, wobble[:, :3])
        poses = own.clone()
        poses[:, :3, :3], poses[:, :3, 3] = R @ own[:, :3, :3], s * own[:, :3, 3] @ R.T + t
        depth = s * self.depth * (1 + self.noise * random(n, *SIZE))
        if self.cut is not None and min(numbers) < self.cut <= max(numbers):
            depth = torch.where((torch.tensor(numbers) < self.cut)[:, None, None], depth * self.wrong, depth)
        return Prediction(
            depth=depth[None], K=self.K.expand(1, n, 3, 3), world_from_cam=poses[None],
            depth_confidence=torch.ones(1, n, *SIZE),
        )  # fmt: skip


def run(
    oracle: Oracle, options: StreamOptions, per_push: int = 4, frames: int = FRAMES
) -> list[StreamUpdate]:
    stream = WindowStream(oracle, options)
    return [stream.push(frames_of(*range(i, min(i + per_push, frames)))) for i in range(0, frames, per_push)]


def drift(poses: Tensor, truth: Tensor) -> float:
    """Largest error of the camera centres after one similarity, over the length of the path."""
    a, b = poses[:, :3, 3], truth[:, :3, 3]
    length = (b[1:] - b[:-1]).norm(dim=-1).sum()
    return float((umeyama(a, b).apply(a) - b).norm(dim=-1).max() / length)


def test_a_perfect_oracle_gives_the_perfect_path() -> None:
    oracle = Oracle(noise=0.0)
    updates = run(oracle, StreamOptions(window=3, anchors=2, points=50), frames=60)
    poses = torch.cat([u.world_from_cam for u in updates])
    assert drift(poses, oracle.poses[:60]) < 1e-9
    relative, truth = poses[0].inverse() @ poses[40], oracle.poses[0].inverse() @ oracle.poses[40]
    assert torch.allclose(relative[:3, :3], truth[:3, :3], atol=1e-9)
    ratio = torch.cat([u.depth for u in updates]) / oracle.depth
    assert torch.allclose(ratio, ratio[0, 0, 0].expand_as(ratio), rtol=1e-5), "one scale for all frames"
    assert [list(u.frames) for u in updates[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert all(u.joined for u in updates) and not updates[0].joins and len(updates[1].joins) == 1


LONG = StreamOptions(window=6, anchors=4, points=50)


@pytest.fixture(scope="module")
def long_run() -> tuple[Oracle, list[StreamUpdate], list[tuple[int, int]]]:
    """400 frames, eight at a time, and what was kept after every push."""
    oracle = Oracle()
    stream = WindowStream(oracle, LONG)
    updates, held = [], []
    for i in range(0, FRAMES, 8):
        updates.append(stream.push(frames_of(*range(i, i + 8))))
        held.append(stream.held())
    return oracle, updates, held


def test_memory_and_cost_do_not_grow(long_run: tuple[Any, ...]) -> None:
    oracle, updates, held = long_run
    assert all(u.joined and set(u.segment.tolist()) == {0} for u in updates)
    assert len(set(held[5:])) == 1, "number and bytes of what is kept"
    assert held[-1][0] == 3 * (6 + 4) + 1, "picture, points and confidence per frame, and the pixels"
    assert held[-1][1] == 10 * (4 * 3 * SIZE[0] * SIZE[1] + 8 * 4 * 50) + 8 * 50, "and nothing behind them"
    assert {len(c) for c in oracle.calls[5:]} == {6 + 4 + 8}, "frames per pass"
    assert oracle.calls[-1][:7] == [*range(FRAMES - 14, FRAMES - 8), 0], "window, then anchors"


def test_drift_stays_small_thanks_to_anchors(long_run: tuple[Any, ...]) -> None:
    oracle, updates, _ = long_run
    with_anchors = drift(torch.cat([u.world_from_cam for u in updates]), oracle.poses)
    blind = run(Oracle(), replace(LONG, anchors=0), 8)
    without = drift(torch.cat([u.world_from_cam for u in blind]), oracle.poses)
    assert with_anchors < 5e-4 and with_anchors < without / 3, (with_anchors, without)


def test_large_pushes_are_passes_of_one_size() -> None:
    oracle = Oracle(noise=0.0)
    stream = WindowStream(oracle, StreamOptions(window=4, anchors=1, batch=5, points=50))
    update = stream.push(frames_of(*range(23)))
    assert [len(c) for c in oracle.calls] == [5, 10, 10, 10, 8]
    assert update.frames == range(23) and update.depth.shape == (23, *SIZE) and len(update.joins) == 4
    assert drift(update.world_from_cam, oracle.poses[:23]) < 1e-9


def test_a_failed_joint_is_told_and_begins_a_segment() -> None:
    oracle = Oracle(noise=0.001, cut=21)
    updates = run(oracle, StreamOptions(window=4, anchors=3, points=50), per_push=1, frames=45)
    assert [i for i, u in enumerate(updates) if not u.joined] == [21], "later passes join what this one said"
    assert "frame 21 could not be joined" in updates[21].problems[0] and "off by" in updates[21].problems[0]
    assert oracle.calls[22] == [18, 19, 20, 21, 17, 22], "anchors of the old segment are gone"
    segments = torch.cat([u.segment for u in updates])
    assert segments.tolist() == [0] * 21 + [1] * 24
    poses = torch.cat([u.world_from_cam for u in updates])
    assert drift(poses[:21], oracle.poses[:21]) < 0.01 and drift(poses[21:], oracle.poses[21:45]) < 0.01
    assert drift(poses, oracle.poses[:45]) > 0.02, "as one path it would be wrong, hence the segments"


def test_a_joint_with_too_few_inliers_fails() -> None:
    """A third of the pixels is elsewhere: the median does not see it, the share of inliers does."""
    joined = {}
    for fewest in (0.55, 0.8):
        oracle = Oracle(noise=0.001, cut=10)
        oracle.wrong = torch.where(torch.arange(SIZE[1]).expand(SIZE) % 3 == 0, 1.8, 1.0).double()
        options = StreamOptions(window=4, anchors=0, points=100, fewest_inliers=fewest)
        joined[fewest] = run(oracle, options, per_push=1, frames=11)[10]
    fit = joined[0.8].joins[0]
    assert fit.error < 0.05 and 0.55 < fit.inliers < 0.8
    assert joined[0.55].joined and "of the shared points agree" in joined[0.8].problems[0]
    assert StreamOptions().fewest_inliers > 0.5, "less would refuse nothing"


def test_points_without_confidence_cannot_be_joined() -> None:
    class Silent(Oracle):
        def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
            out = super().predict(images, known)
            return replace(out, depth_confidence=torch.zeros(1, images.shape[1], *SIZE))

    updates = run(Silent(), StreamOptions(window=2), frames=8)
    assert "share only 0 usable points" in updates[1].problems[0] and not updates[1].joins


def test_intrinsics_are_handed_on_with_their_frames() -> None:
    oracle = Oracle()
    stream = WindowStream(oracle, StreamOptions(window=2, anchors=1))
    K = oracle.K.expand(3, 3, 3) * torch.tensor([1.0, 2, 3])[:, None, None]
    stream.push(frames_of(0, 1, 2), K)
    stream.push(frames_of(3), oracle.K[None] * 4)
    known = oracle.known[1]
    assert oracle.calls[1] == [1, 2, 0, 3] and known is not None and known.K is not None
    assert (known.K[0, :, 0, 0] / 14).tolist() == [2, 3, 1, 4]
    with pytest.raises(InputError, match="for all of its frames or for none"):
        stream.push(frames_of(4))
    with pytest.raises(InputError, match="must be"):
        stream.push(frames_of(4), K)


def test_anchors_stay_spread() -> None:
    anchors: list[_Past] = []
    empty = torch.zeros(0)
    for number in range(500):
        anchors = spread_out([*anchors, _Past(number, empty, None, empty, empty)], 6)
    numbers = [a.number for a in anchors]
    assert len(numbers) == 6 and numbers[0] == 0
    gaps = [b - a for a, b in pairwise(numbers)]
    assert max(gaps) <= 0.4 * 500 and sum(g >= 30 for g in gaps) >= 4, numbers
    assert spread_out(anchors, 0) == [] and [a.number for a in spread_out(anchors, 1)] == [0]


def test_any_model_streams() -> None:
    torch.manual_seed(0)
    stream = make_stream(wrap(Pi3(pi3_config("nano"))), "window", StreamOptions(window=2, anchors=1))
    pictures = torch.rand(5, 3, 28, 28)
    updates = [stream.push(pictures[i : i + 1]) for i in range(5)]
    assert updates[-1].frames == range(4, 5) and updates[-1].depth.shape == (1, 28, 28)
    assert all(torch.isfinite(u.world_from_cam).all() for u in updates)
    with pytest.raises(InputError, match="stream of 28 x 28"):
        stream.push(torch.rand(1, 3, 14, 28))


def causal_mask(views: int, tokens: int, keep: int | None = None) -> Attend:
    """Attention over all views at once that sees no later view; with ``keep``, the first and the last of the past."""
    view = torch.arange(views * tokens) // tokens
    mask = view[:, None] >= view
    if keep is not None:
        mask &= (view[:, None] - view < keep) | (view == 0)
    return lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class MaskedTrunk(nn.Module):
    """A block of the camera head with the mask that its streamed twin must equal."""

    def __init__(self, block: nn.Module, attend: Attend) -> None:
        super().__init__()
        self.block, self.attend = block, attend

    def forward(self, x: Tensor, cache: Any = None) -> Tensor:
        return self.block(x, None, self.attend)


def lively(network: nn.Module) -> nn.Module:
    """Random weights under which attention matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith("gamma"):
                p.fill_(1.0)
            elif name.endswith("q_norm.weight"):
                p.fill_(4.0)
            elif "token" in name:
                p.copy_(torch.randn(p.shape, generator=generator))
            elif name == "camera_head.pose_branch.fc2.bias":
                p[7:] += 2.0  # fields of view that exist
    return network.eval()


@pytest.mark.parametrize("keep", [None, 3])
@pytest.mark.parametrize("per_push", [1, 3])
def test_causal_vggt_is_masked_vggt(keep: int | None, per_push: int) -> None:
    torch.manual_seed(0)
    network = lively(Vggt(vggt_config("nano")))
    pictures = torch.rand(6, 3, 28, 42)
    stream = make_stream(wrap(network), "cached", StreamOptions(views=keep, precision="float32"))
    parts = [stream.push(pictures[i : i + per_push]) for i in range(0, 6, per_push)]
    tokens = 6 + network.aggregator.specials
    model = wrap(network, InferenceOptions("float32", attend=causal_mask(6, tokens, keep)))
    plain = wrap(network, InferenceOptions("float32")).predict(pictures[None])
    for i, block in enumerate(network.camera_head.trunk):
        network.camera_head.trunk[i] = MaskedTrunk(block, causal_mask(6, 1, keep))
    expected = model.predict(pictures[None])
    check(parts, expected)
    assert plain.depth is not None and expected.depth is not None
    assert (plain.depth - expected.depth).abs().max() > 1e-3, "the mask matters"


@pytest.mark.parametrize("keep", [None, 2])
def test_causal_pi3_is_masked_pi3(keep: int | None) -> None:
    torch.manual_seed(0)
    network = lively(Pi3(pi3_config("nano")))
    pictures = torch.rand(5, 3, 28, 42)
    stream = CachedStream(network, StreamOptions(views=keep, precision="float32"))
    parts = [stream.push(pictures[i : i + 1]) for i in range(5)]
    tokens = 6 + network.config.registers
    expected = wrap(network, InferenceOptions("float32", attend=causal_mask(5, tokens, keep)))
    check(parts, expected.predict(pictures[None]))


def check(parts: list[StreamUpdate], expected: Prediction) -> None:
    for name, other in (("world_from_cam", "world_from_cam"), ("K", "K"), ("depth", "depth"),
                        ("confidence", "depth_confidence")):  # fmt: skip
        got, wanted = torch.cat([getattr(p, name) for p in parts]), getattr(expected, other)[0]
        scale = wanted.abs().amax().clamp_min(1.0)
        assert float((got - wanted).abs().max() / scale) < 1e-5, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("build", [lambda: Vggt(vggt_config("nano")), lambda: Pi3(pi3_config("nano"))])
def test_caches_stop_growing(build: Any, precision: Any) -> None:
    torch.manual_seed(0)
    stream = CachedStream(build(), StreamOptions(views=4, precision=precision))
    held, lengths = [], []
    for _ in range(9):
        update = stream.push(torch.rand(1, 3, 14, 28))
        assert update.depth.dtype == torch.float32 and bool(torch.isfinite(update.depth).all())
        held.append(stream.held())
        lengths.append(max(len(c) for c in stream._run.caches()))
    assert held[0][1] < held[2][1] and len(set(held[4:])) == 1, held
    tokens = lengths[0]
    assert lengths == [tokens * min(i + 1, 4) for i in range(9)]


def test_only_the_first_pushed_frame_is_vggts_first_view() -> None:
    torch.manual_seed(0)
    network = lively(Vggt(vggt_config("nano")))
    stream = CachedStream(network, StreamOptions(views=1))
    picture = torch.rand(1, 3, 28, 28)
    first, second, third = (stream.push(picture) for _ in range(3))
    assert (first.depth - second.depth).abs().max() > 1e-4
    assert torch.allclose(second.depth, third.depth, rtol=1e-4), "with one view kept, all others are alike"


def test_bad_requests_are_refused() -> None:
    for bad in ({"window": 0}, {"batch": 0}, {"points": 0}, {"anchors": -1}):
        with pytest.raises(InputError):
            StreamOptions(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no streaming mode 'fast'"):
        make_stream(Oracle(), "fast")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="oracle cannot run one view after another"):
        make_stream(Oracle(), "cached")
    with pytest.raises(InputError, match="Reliev3rNet cannot run"):
        causal_network(Reliev3rNet(reliev3r_config("nano")))
    with pytest.raises(InputError, match="at least the first view"):
        causal_network(Pi3(pi3_config("nano")), 0)
    with pytest.raises(InputError, match="takes no intrinsics"):
        CachedStream(Pi3(pi3_config("nano"))).push(torch.rand(1, 3, 14, 14), torch.eye(3)[None])
    with pytest.raises(InputError, match="patches of 14"):
        WindowStream(Oracle()).push(torch.rand(1, 3, 15, 28))
