"""The contract refuses what later layers could only misread."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from relief3d.core.contract import Camera, Depth, Distortion, Scene, View
from relief3d.core.errors import InputError, MissingExtraError, ReliefError


def test_pose_must_be_rigid() -> None:
    pose = torch.eye(4, dtype=torch.float64)
    pose[0, 0] = -1
    with pytest.raises(InputError, match="rigid"):
        Camera(10, 10, world_from_cam=pose)
    with pytest.raises(InputError, match="finite"):
        Camera(10, 10, world_from_cam=torch.full((4, 4), math.nan))


def test_focal_must_be_positive() -> None:
    with pytest.raises(InputError, match="focal"):
        Camera(10, 10, K=torch.diag(torch.tensor([-1.0, 1.0, 1.0])))


def test_cam_from_world_inverts() -> None:
    c, s = math.cos(0.3), math.sin(0.3)
    pose = torch.tensor([[c, -s, 0, 1], [s, c, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], dtype=torch.float64)
    camera = Camera(4, 4, world_from_cam=pose)
    assert camera.cam_from_world is not None
    assert torch.allclose(camera.cam_from_world @ pose, torch.eye(4, dtype=torch.float64), atol=1e-12)


def test_depth_marks_the_impossible_invalid() -> None:
    depth = Depth.from_values(torch.tensor([[1.0, -1.0, math.nan, math.inf, 0.0]]))
    assert depth.valid.tolist() == [[True, False, False, False, False]]
    assert torch.isfinite(depth.values).all()


def test_distortion_checks_its_coefficients() -> None:
    with pytest.raises(InputError, match="coefficients"):
        Distortion("opencv", (0.1,))
    assert Distortion("opencv", (0, 0, 0, 0)).is_identity
    assert not Distortion("fisheye", (0, 0, 0, 0)).is_identity


def test_names_are_unique() -> None:
    with pytest.raises(InputError, match="two views"):
        Scene((View("a", Camera(1, 1)), View("a", Camera(1, 1))))


def test_errors_name_file_and_remedy_and_cross_processes() -> None:
    error = MissingExtraError("needs X", path="a.jpg", remedy="install X")
    assert str(error) == "a.jpg: needs X (install X)"
    assert error.exit_code == 2 and ReliefError("x").exit_code == 1
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is MissingExtraError and str(copy) == str(error)
