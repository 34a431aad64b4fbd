"""Poses and intrinsics of the network, where nothing is given."""

from __future__ import annotations

import pytest
import torch

from relief3d.core.errors import InputError
from relief3d.geometry.alignment import umeyama
from relief3d.methods.vfm_recon.inputs import SubmapDepth
from relief3d.methods.vfm_recon.predicted import chain_poses, fill_intrinsics
from relief3d.methods.vfm_recon.submaps import Submap, plan_submaps

from .room import FakeDepth, orbit

CAMERAS = orbit(14, 0.5, (40, 30))
SUBMAPS = plan_submaps([range(14)])


def network(submap: Submap) -> SubmapDepth:
    """Exact geometry in a frame and unit of the submap's own."""
    depth = FakeDepth(CAMERAS)(submap).depth
    first = CAMERAS[submap.frames[0]].world_from_cam
    assert first is not None
    unit = 1.0 + 0.7 * submap.index
    poses = torch.stack([torch.linalg.inv(first) @ CAMERAS[t].world_from_cam for t in submap.frames])
    poses[:, :3, 3] /= unit
    K = torch.stack([CAMERAS[t].K for t in submap.frames])  # type: ignore[misc]
    return SubmapDepth(depth / unit, None, K, poses)


def test_chained_poses_are_the_true_ones_up_to_one_similarity() -> None:
    blind = [c.replace(world_from_cam=None) for c in CAMERAS]
    got = chain_poses(blind, SUBMAPS, network)
    assert all(c.world_from_cam is not None for c in got)
    centres = torch.stack([c.centre for c in got])  # type: ignore[misc]
    truth = torch.stack([c.centre for c in CAMERAS])  # type: ignore[misc]
    fit = umeyama(centres, truth)
    assert (fit.apply(centres) - truth).norm(dim=-1).max() < 1e-3
    for mine, true in zip(got, CAMERAS, strict=True):
        assert mine.world_from_cam is not None
        assert true.world_from_cam is not None
        turned = fit.rotation @ mine.world_from_cam[:3, :3]
        assert (turned - true.world_from_cam[:3, :3]).abs().max() < 1e-3


def test_missing_intrinsics_come_from_the_network_at_the_size_of_the_pictures() -> None:
    blind = [c.replace(K=None, width=80, height=60) for c in CAMERAS]
    got = fill_intrinsics(blind, SUBMAPS, network)
    assert CAMERAS[0].K is not None
    expected = CAMERAS[0].K * torch.tensor([[2.0], [2.0], [1.0]])
    for camera in got:
        assert camera.K is not None
        assert torch.allclose(camera.K, expected.double())
        assert camera.K_source == "estimated"


def test_a_source_without_cameras_is_refused() -> None:
    depths = FakeDepth(CAMERAS)
    with pytest.raises(InputError, match="no poses"):
        chain_poses(CAMERAS, SUBMAPS, depths)
    with pytest.raises(InputError, match="no intrinsics"):
        fill_intrinsics([c.replace(K=None) for c in CAMERAS], SUBMAPS, depths)
