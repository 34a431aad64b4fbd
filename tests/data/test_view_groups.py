"""Rules by which views go together."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.data.covisibility import (
    OverlapStore,
    depth_overlap,
    pose_overlap,
    scene_overlap,
    sparse_overlap,
)
from relief3d.data.view_groups import (
    Grouping,
    ViewRequest,
    choose_from_order,
    choose_from_overlap,
    choose_views,
    select_student_frames,
)

SIZE = (48, 64)


def request(views: int, **rule: object) -> ViewRequest:
    return ViewRequest(views, (8, 8), grouping=Grouping(**rule))  # type: ignore[arg-type]


def test_contiguous_views_are_neighbours_and_all_starts_occur() -> None:
    starts = set()
    for seed in range(60):
        chosen = choose_from_order(7, request(3, kind="contiguous", shuffled=False), torch_generator(seed))
        assert chosen == list(range(chosen[0], chosen[0] + 3))
        starts.add(chosen[0])
    assert starts == {0, 1, 2, 3, 4}


def test_strides_shrink_until_the_views_fit() -> None:
    steps: Counter[int] = Counter()
    for seed in range(300):
        chosen = choose_from_order(
            11, request(3, kind="strided", strides=(1, 6), shuffled=False), torch_generator(seed)
        )
        step = chosen[1] - chosen[0]
        assert chosen == [chosen[0] + step * i for i in range(3)] and chosen[0] >= 0 and chosen[-1] < 11
        steps[step] += 1
    # Strides 5 and 6 of [1, 6]: 2 * 5 = 10 still fits into 11 views, 2 * 6 does not and becomes 5.
    assert set(steps) == {1, 2, 3, 4, 5}
    assert steps[5] / 300 == pytest.approx(1 / 3, abs=0.09)


def test_views_are_shuffled_unless_told_otherwise() -> None:
    first = Counter(choose_from_order(4, request(4), torch_generator(seed))[0] for seed in range(400))
    assert set(first) == {0, 1, 2, 3} and min(first.values()) > 60
    with pytest.raises(InputError, match="has 3 views, 4 are wanted"):
        choose_from_order(3, request(4), torch_generator(0))


def wall_scene(offsets: list[float], depth: bool = True) -> Scene:
    """Cameras side by side (metres) in front of a wall at 2 m; the picture is 2 m wide there."""
    height, width = SIZE
    K = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]], dtype=torch.float64)
    views = []
    for i, x in enumerate(offsets):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = x
        dense = Depth.from_values(torch.full(SIZE, 2.0)) if depth else None
        views.append(View(f"{i}", Camera(width, height, K, pose), torch.zeros(3, *SIZE), dense))
    return Scene(tuple(views))


def test_overlap_of_shifted_cameras_is_the_shared_part_of_the_wall() -> None:
    overlap = scene_overlap(wall_scene([0.0, 0.5, 1.0, 3.0]))
    expected = torch.tensor([1.0, 0.75, 0.5, 0.0], dtype=torch.float64)
    assert torch.allclose(overlap[0], expected, atol=0.05)
    assert torch.allclose(overlap, overlap.T, atol=0.05)


def test_a_wall_in_between_hides_what_is_behind_it() -> None:
    scene = wall_scene([0.0, 0.5])
    depth = torch.stack([v.load_depth().values for v in scene.views])  # type: ignore[union-attr]
    depth[1] = 1.0
    K = torch.stack([v.camera.K for v in scene.views])  # type: ignore[misc]
    pose = torch.stack([v.camera.world_from_cam for v in scene.views])  # type: ignore[misc]
    overlap = depth_overlap(depth, K, pose)
    assert overlap[0, 1] == 0 and overlap[1, 0] == 0 and overlap[0, 0] == 1


def test_overlap_from_cameras_alone() -> None:
    K = torch.tensor([[32.0, 0, 32], [0, 32.0, 24], [0, 0, 1]], dtype=torch.float64).repeat(3, 1, 1)
    pose = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    for i, angle in enumerate((0.0, math.pi / 4, math.pi)):
        c, s = math.cos(angle), math.sin(angle)
        pose[i, :3, :3] = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    overlap = pose_overlap(K, pose, torch.tensor([[64, 48]] * 3))
    assert overlap[0, 0] == 1 and overlap[0, 2] == 0 and 0.25 < overlap[0, 1] < 0.6


def test_overlap_from_points() -> None:
    points = SparsePoints(
        torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(4),
        torch.tensor([0, 1, 2, 3, 2, 3]), torch.tensor([0, 0, 0, 0, 1, 1]), torch.zeros(6, 2),
    )  # fmt: skip
    overlap = sparse_overlap(points, 3)
    assert overlap.tolist() == [[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_covisible_groups_hang_together_within_the_range() -> None:
    scene = wall_scene([0.25 * i for i in range(20)])
    overlap = scene_overlap(scene)
    for seed in range(20):
        rule = request(4, kind="covisible", overlap=(0.4, 0.8), shuffled=False)
        chosen = choose_from_overlap(overlap, rule, torch_generator(seed))
        assert len(set(chosen)) == 4
        pairs = [min(overlap[a, b], overlap[b, a]) for a in chosen for b in chosen if a != b]
        linked = [[0.4 <= min(overlap[a, b], overlap[b, a]) <= 0.8 for b in chosen if b != a] for a in chosen]
        assert all(any(row) for row in linked) and max(pairs) < 1
    assert choose_views(scene, request(3, kind="covisible", among=5), torch_generator(0))


def test_scenes_without_a_group_say_so() -> None:
    far = wall_scene([0.0, 10.0, 20.0])
    with pytest.raises(InputError, match=r"no 2 of its 3 views overlap by 0.3 to 1 \(at most 1 do\)"):
        choose_views(far, request(2, kind="covisible"), torch_generator(0))
    unposed = Scene(tuple(View(f"{i}", Camera(8, 8)) for i in range(3)))
    with pytest.raises(InputError, match="without poses or triangulated points"):
        choose_views(unposed, request(2, kind="covisible"), torch_generator(0))


def test_overlaps_are_stored_once(tmp_path: Path) -> None:
    store, scene = OverlapStore(tmp_path), wall_scene([0.0, 0.5, 1.0])
    first = store.get("s/0", scene)
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(first, store.get("s/0", wall_scene([9.0, 5.0, 1.0], depth=False)))
    with pytest.raises(InputError, match="belongs to a scene of 3 views"):
        store.get("s/0", wall_scene([0.0, 1.0]))
    next(iter(tmp_path.iterdir())).write_bytes(b"x")
    with pytest.raises(InputError, match="is damaged"):
        store.get("s/0", scene)


def test_student_frames_follow_the_released_rule() -> None:
    count, keep, runs = 40, 6, 2000
    even = tight = 0
    frequency = torch.zeros(count)
    for seed in range(runs):
        chosen = select_student_frames(count, keep, torch_generator(seed))
        assert chosen == sorted(set(chosen)) and chosen[0] == 0 and len(chosen) == keep and chosen[-1] < count
        frequency[chosen] += 1
        gaps: Tensor = torch.tensor(chosen[1:]).diff()
        # Steps of 3 to 7 with each end moved by at most 1: gaps of 1 to 9 that differ by at most 4.
        tight += int(gaps.max() <= 2)
        even += int(gaps.min() >= 1 and gaps.max() <= 9 and int(gaps.max() - gaps.min()) <= 4)
    assert tight / runs < 0.01  # no step below 3 where 3 fits
    # 30 % are even by rule; a uniform draw of 5 from 39 is even by chance now and then.
    assert 0.3 < even / runs < 0.45
    assert frequency[1:].min() > 0
    assert select_student_frames(5, 5, torch_generator(0)) == [0, 1, 2, 3, 4]
    assert select_student_frames(5, 1, torch_generator(0)) == [0]
    with pytest.raises(InputError):
        select_student_frames(3, 4, torch_generator(0))


def test_lost_frames_do_not_spoil_a_scene() -> None:
    whole = wall_scene([0.25 * i for i in range(8)])
    lost = whole.views[3].replace(camera=whole.views[3].camera.replace(world_from_cam=None))
    scene = whole.replace(views=(*whole.views[:3], lost, *whole.views[4:]))
    overlap = scene_overlap(scene)
    assert overlap[3].sum() == 0 and overlap[:, 3].sum() == 0
    keep = [i for i in range(8) if i != 3]
    assert torch.equal(overlap[keep][:, keep], scene_overlap(whole)[keep][:, keep])
    for seed in range(12):
        for known in (None, overlap):
            chosen = choose_views(scene, request(4, kind="covisible"), torch_generator(seed), known)
            assert 3 not in chosen and len(set(chosen)) == 4
        # Neither is it the one view of a sample.
        assert choose_views(scene, request(1, kind="covisible"), torch_generator(seed)) != [3]


def test_every_rule_gives_all_views_of_a_scene_that_has_just_enough() -> None:
    same = wall_scene([0.0] * 5)  # all cameras in one place: overlap 1
    for kind in ("contiguous", "strided", "random", "covisible"):
        orders = {tuple(choose_views(same, request(5, kind=kind), torch_generator(s))) for s in range(20)}
        assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2, 3, 4)} and len(orders) > 10, kind
        with pytest.raises(InputError, match="has 5 views, 6 are wanted"):
            choose_views(same, request(6, kind=kind), torch_generator(0))
        for views in (1, 2):
            chosen = choose_views(same, request(views, kind=kind, shuffled=False), torch_generator(1))
            assert len(chosen) == views and chosen == sorted(chosen)
    below = request(2, kind="covisible", overlap=(0.3, 0.99))
    with pytest.raises(InputError, match=r"overlap by 0\.3 to 0\.99"):
        choose_views(same, below, torch_generator(0))


def test_random_groups_hold_every_view_equally_often() -> None:
    counts = Counter(
        v for s in range(600) for v in choose_from_order(6, request(2, kind="random"), torch_generator(s))
    )
    assert sorted(counts) == list(range(6)) and max(counts.values()) - min(counts.values()) < 80


def test_long_scenes_are_looked_at_around_the_first_view_only() -> None:
    opened: list[str] = []
    scene = wall_scene([0.1 * i for i in range(40)])

    def watched(view: View) -> View:
        def load() -> Depth:
            opened.append(view.name)
            return view.depth  # type: ignore[return-value]

        return view.replace(depth=load)

    scene = scene.replace(views=tuple(map(watched, scene.views)))
    chosen = choose_views(scene, request(3, kind="covisible", among=6), torch_generator(4))
    near = sorted(int(n) for n in set(opened))
    assert len(near) == 6 and near == list(range(near[0], near[0] + 6)) and set(chosen) <= set(near)


def test_a_chain_of_overlaps_is_a_group() -> None:
    """Each view overlaps with its two neighbours alone: a group of six is any six in a row, linked both ways."""
    overlap = torch.eye(8, dtype=torch.float64)
    for i in range(7):
        overlap[i, i + 1] = overlap[i + 1, i] = 0.5
    rule = request(6, kind="covisible", shuffled=False)
    found = {tuple(choose_from_overlap(overlap, rule, torch_generator(s))) for s in range(40)}
    assert found == {tuple(range(start, start + 6)) for start in range(3)}
    one_way = torch.tensor([[1.0, 0.9], [0.1, 1.0]], dtype=torch.float64)
    with pytest.raises(InputError, match="at most 1"):
        choose_from_overlap(one_way, request(2, kind="covisible"), torch_generator(0))


def test_overlap_counts_pixel_centres() -> None:
    """A step by 10.25 pixels: of 64 columns with centres at +0.5 the first ten leave the picture."""
    K = torch.tensor([[64.0, 0, 32], [0, 64.0, 24], [0, 0, 1]], dtype=torch.float64).repeat(2, 1, 1)
    pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    pose[1, 0, 3] = 10.25 / 64 * 2
    overlap = depth_overlap(torch.full((2, *SIZE), 2.0, dtype=torch.float64), K, pose, grid=SIZE)
    assert overlap.tolist() == [[1.0, 54 / 64], [54 / 64, 1.0]]
