"""What a network is told about the cameras keeps its fine part, however far away the given frame's origin is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid, make_rigid
from relief3d.pipelines.multiview.known import Given, network_inputs

NO = torch.zeros(3, dtype=torch.bool)


def test_poses_far_from_the_origin_keep_their_fine_part() -> None:
    generator = torch.Generator().manual_seed(0)
    axes, steps = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    utm = torch.tensor([691_234.5, 5_334_567.25, 510.0], dtype=torch.float64)
    T = make_rigid(matrix_from_axis_angle(axes), utm + 0.01 * steps)
    views: Any = [
        SimpleNamespace(camera=SimpleNamespace(K=None, world_from_cam=pose), depth=None) for pose in T
    ]
    model: Any = SimpleNamespace(takes=frozenset({"world_from_cam"}))
    framing: Any = SimpleNamespace(height=28, width=28)
    for has in ((True, True, True), (False, True, True)):
        about = network_inputs(model, views, framing, Given(NO, torch.tensor(has), NO), metric=True)
        assert about is not None
        known = about(range(3))
        assert known.world_from_cam is not None and known.has_pose is not None
        assert known.world_from_cam.dtype == torch.float32 and known.has_pose[0].tolist() == list(has)
        told, first = known.world_from_cam[0].double(), has.index(True)
        want = invert_rigid(T[first]) @ T
        for view in range(first, 3):
            assert torch.allclose(told[view], want[view], atol=1e-6)
        if first:
            assert torch.equal(told[0], torch.eye(4).double()), "an unknown pose is not made up"
