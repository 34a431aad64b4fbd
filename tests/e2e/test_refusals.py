"""Results that would be wrong are refused with the reason, and nothing stays behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora.e2e_support import Small
from relief3d.core.errors import InputError
from relief3d.io.cameras_json import read_cameras_json, write_cameras_json
from relief3d.pipelines.reconstruct import ReconstructConfig, reconstruct


def test_wrong_cameras_are_refused(small: Small, tmp_path: Path) -> None:
    truth = read_cameras_json(small.truth, require_images=False)
    views = list(truth.views)
    poses = [v.camera.world_from_cam for v in views]
    # The right cameras for the wrong pictures: every pose is plausible and none fits.
    swapped = tuple(
        v.replace(camera=v.camera.replace(world_from_cam=p)) for v, p in zip(views, poses[3:] + poses[:3])
    )
    known = tmp_path / "cameras.json"
    write_cameras_json(truth.replace(views=swapped), known)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"poses|cameras"):
        reconstruct(
            small.photos,
            out,
            config=ReconstructConfig(cameras=known, depth_source="stereo", quality="fast", depth_width=128),
        )
    assert not out.exists()


def test_too_little_confirmed_depth_is_refused(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relief3d.pipelines.reconstruct.depth.MIN_CONFIRMED", 0.999)
    out = tmp_path / "out"
    with pytest.raises(InputError, match="confirm"):
        reconstruct(
            small.photos,
            out,
            config=ReconstructConfig(
                cameras=small.truth, depth_source="stereo", quality="fast", depth_width=96
            ),
        )
    assert not out.exists(), "cameras were solved, but a refused run leaves nothing"
