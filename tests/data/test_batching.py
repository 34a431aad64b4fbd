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
