"""Stacking keeps pixels, intrinsics, depth and sparse points together."""

from __future__ import annotations

import pytest
import torch

from relief3d.core.contract import Camera, Depth, Distortion, Scene, SparseDepth, View
from relief3d.core.errors import InputError
from relief3d.data import batch_from_scene, collate

K = torch.tensor([[50.0, 0, 32.5], [0, 52.0, 23.0], [0, 0, 1]], dtype=torch.float64)


def view(name: str, width: int = 64, height: int = 48, **extra: object) -> View:
    return View(name, Camera(width, height, K=K), image=torch.rand(3, height, width), **extra)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(32, 24), (64, 48), (40, 40), (96, 48)])
def test_a_projected_point_lands_on_its_depth_pixel(size: tuple[int, int]) -> None:
    values = torch.full((48, 64), 2.0)
    values[20:28, 30:38] = 1.0  # a block around the point below
    X = torch.tensor([(34.3 - 32.5) / 50, (24.3 - 23.0) / 52, 1.0], dtype=torch.float64)
    sparse = SparseDepth(torch.tensor([[34.3, 24.3]]), torch.tensor([1.0]))
    batch = batch_from_scene(
        Scene((view("a", depth=Depth.from_values(values), sparse_depth=sparse),)), [0], size
    )
    assert batch.images.shape == (1, 1, 3, size[1], size[0])
    assert batch.K is not None and batch.depth is not None and batch.sparse_depth is not None
    x, y, w = (batch.K[0, 0].double() @ X).tolist()
    column, row = int(x / w), int(y / w)
    assert batch.depth[0, 0, row, column] == 1.0
    assert batch.sparse_depth[0, 0, row, column] == 1.0
    assert int((batch.sparse_depth > 0).sum()) == 1


def test_modalities_that_nobody_has_are_absent() -> None:
    batch = batch_from_scene(Scene((view("a"), view("b"))), [1, 0], (32, 24))
    assert batch.depth is None and batch.world_from_cam is None and batch.mask is None
    assert batch.names == (("b", "a"),)


def test_partial_knowledge_is_flagged() -> None:
    pose = torch.eye(4, dtype=torch.float64)
    posed = View("b", Camera(64, 48, K=K, world_from_cam=pose), image=torch.zeros(3, 48, 64))
    batch = batch_from_scene(Scene((view("a"), posed)), [0, 1], (32, 24))
    assert batch.has_pose is not None and batch.has_pose.tolist() == [[False, True]]


def test_collate_fills_what_some_scenes_lack() -> None:
    with_depth = Scene((view("a", depth=Depth.from_values(torch.ones(48, 64))),), metric=True)
    both = collate([batch_from_scene(s, [0], (32, 24)) for s in (with_depth, Scene((view("c"),)))])
    assert both.depth_valid is not None and both.metric is not None
    assert both.depth_valid[0].all() and not both.depth_valid[1].any()
    assert both.metric.tolist() == [True, False]
    assert both.names == (("a",), ("c",))


def test_refusals() -> None:
    with pytest.raises(InputError, match="at least one view"):
        batch_from_scene(Scene((view("a"),)), [], (8, 8))
    bent = View(
        "a", Camera(64, 48, K=K, distortion=Distortion("opencv", (0.1, 0, 0, 0))), torch.zeros(3, 48, 64)
    )
    with pytest.raises(InputError, match="undistort"):
        batch_from_scene(Scene((bent,)), [0], (8, 8))
    with pytest.raises(InputError, match="different shapes"):
        collate([batch_from_scene(Scene((view("a"),)), [0], s) for s in ((8, 8), (16, 8))])


def content(**extra: object) -> View:
    """A picture, depth map and mask that hold the same known pattern of pixels."""
    generator = torch.Generator().manual_seed(3)
    near = torch.rand(48, 64, generator=generator) > 0.5
    depth = Depth.from_values(torch.where(near, 1.0, 2.0))
    return View("a", Camera(64, 48, K=K), torch.zeros(3, 48, 64), **{"depth": depth, "mask": near, **extra})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(16, 12), (21, 16), (40, 40), (96, 48)])
def test_depth_and_mask_come_from_the_same_pixel_the_one_under_the_new_centre(size: tuple[int, int]) -> None:
    width, height = size
    batch = batch_from_scene(Scene((content(),)), [0], size)
    assert batch.depth is not None and batch.mask is not None
    assert torch.equal(batch.mask[0, 0], batch.depth[0, 0] == 1)
    # By hand: the picture is enlarged or shrunk to cover the size, then cut in the middle.
    scale = max(width / 64, height / 48)
    w, h = max(width, round(64 * scale)), max(height, round(48 * scale))
    column = ((torch.arange(width) + (w - width) // 2) * 2 + 1) * 64 // (2 * w)
    row = ((torch.arange(height) + (h - height) // 2) * 2 + 1) * 48 // (2 * h)
    mask = content().load_mask()
    assert mask is not None and torch.equal(batch.mask[0, 0], mask[row][:, column])


def test_parts_of_another_size_than_the_camera_are_refused() -> None:
    small = torch.ones(10, 12)
    for name, value in (("picture", small.expand(3, 10, 12)), ("depth map", Depth.from_values(small)),
                        ("mask", small > 0)):  # fmt: skip
        key = {"picture": "image", "depth map": "depth", "mask": "mask"}[name]
        with pytest.raises(InputError, match=rf"the {name} of view 'a' has size \(10, 12\)"):
            batch_from_scene(Scene((content().replace(**{key: value}),)), [0], (16, 12))


def test_of_many_sparse_points_in_a_pixel_the_nearest_stays_with_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(0)
    xy = torch.rand(300_000, 2, generator=generator) * torch.tensor([64.0, 48.0])
    z = 1 + torch.rand(300_000, generator=generator)
    place = xy[:, 1].long() // 8 * 8 + xy[:, 0].long() // 8
    nearest = torch.stack([z[place == i].min() for i in range(48)]).view(6, 8)
    scene = Scene((view("a", sparse_depth=SparseDepth(xy, z)),))
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            batch = batch_from_scene(scene, [0], (8, 6))
            assert batch.sparse_depth is not None and torch.equal(batch.sparse_depth[0, 0], nearest)
    finally:
        torch.set_num_threads(before)


def test_poses_far_from_the_origin_keep_their_distances() -> None:
    def at(*centre: float) -> View:
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, 3] = torch.tensor(centre, dtype=torch.float64)
        return View(f"{centre}", Camera(64, 48, K=K, world_from_cam=pose), torch.zeros(3, 48, 64))

    utm = Scene((view("lost"), at(691234.5, 5334567.25, 510.0), at(691234.53, 5334567.25, 510.0)))
    poses = batch_from_scene(utm, [0, 2, 1], (8, 6)).world_from_cam
    assert poses is not None
    assert (poses[0, 1] - poses[0, 2])[:3, 3].tolist() == pytest.approx([0.03, 0, 0], abs=1e-7)
    near = batch_from_scene(Scene((at(1.0, 2, 3), at(1.5, 2, 3))), [0, 1], (8, 6)).world_from_cam
    assert near is not None and near[0, 0, :3, 3].tolist() == [1, 2, 3]  # the world stays where it can


@pytest.mark.parametrize("size", [(21, 16), (22, 15), (7, 31)])
def test_intrinsics_follow_the_whole_pixels_that_pictures_are_scaled_to(size: tuple[int, int]) -> None:
    width, height = size
    scale = max(width / 64, height / 48)
    w, h = max(width, round(64 * scale)), max(height, round(48 * scale))
    new = batch_from_scene(Scene((view("a"),)), [0], size).K
    assert new is not None
    wanted = [50 * w / 64, 32.5 * w / 64 - (w - width) // 2, 52 * h / 48, 23.0 * h / 48 - (h - height) // 2]
    assert [float(new[0, 0][i]) for i in ((0, 0), (0, 2), (1, 1), (1, 2))] == pytest.approx(wanted, rel=1e-6)
