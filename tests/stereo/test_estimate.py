"""Depth of whole scenes with exact cameras, and what happens to input that cannot work."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from relief3d.core.contract import Camera, Distortion, Scene, SparsePoints, View
from relief3d.core.errors import InputError
from relief3d.stereo import StereoConfig, StereoResult, estimate_depths
from stereo.analytic_scenes import ARC, Plane, Sphere, make_scene

ROOM = [Plane((0.0, 0.0, 1.0), 4.0), Plane((0.0, 1.0, 0.15), 1.3), Sphere((0.1, 0.1, 3.0), 0.5)]
SMALL = StereoConfig.profile("strict", planes=48)
RANGE = (1.6, 6.0)


def _run(scene: Scene, config: StereoConfig = SMALL, **options: object) -> StereoResult:
    ranges = dict.fromkeys(range(len(scene)), RANGE)
    return estimate_depths(scene, config, ranges=ranges, **options)  # type: ignore[arg-type]


def _score(scene: Scene, result: StereoResult, index: int) -> tuple[float, float, float]:
    """AbsRel, share within 1 %, share kept of the pixels with true depth."""
    got, truth = result[index], scene.views[index].load_depth()
    assert got is not None and truth is not None
    both = got.depth.valid & truth.valid
    error = (got.depth.values[both] / truth.values[both] - 1).abs()
    return float(error.mean()), float((error < 0.01).float().mean()), float(both.sum() / truth.valid.sum())


@pytest.mark.parametrize(
    ("surfaces", "limit", "least_close"),
    [
        pytest.param([Plane((0.0, 0.0, 1.0), 3.0)], 0.002, 0.99, id="plane"),
        pytest.param([Plane((0.35, 0.3, 1.0), 3.0)], 0.002, 0.97, id="slanted"),
        pytest.param(ROOM, 0.011, 0.6, id="room"),
    ],
)
def test_sub_plane_accuracy_with_exact_cameras(surfaces: list, limit: float, least_close: float) -> None:
    scene = make_scene(surfaces, ARC)
    result = _run(scene)
    assert result.reasons == (None,) * 5
    error, close, kept = _score(scene, result, 2)
    # Forty-eight planes from 1.6 to 6 m are 3 % apart at 3 m: a fraction of a plane. One pixel of disparity
    # is about 8 % of depth at this tiny size, so the curved scene is right to about an eighth of a pixel.
    assert error < limit and close > least_close and kept > 0.6
    assert not result.report.poses_doubtful and result.report.verdict is None


def test_result_fields_fit_together() -> None:
    scene = make_scene(ROOM, ARC)
    got = _run(scene)[2]
    assert got is not None and got.depth.confidence is not None
    depth = got.depth
    shape = (got.camera.height, got.camera.width)
    assert depth.values.shape == got.agreement.shape == got.raw.shape == shape and got.normals.shape == (
        *shape,
        3,
    )
    assert bool((depth.values[~depth.valid] == 0).all()) and bool((depth.values[depth.valid] > 0).all())
    assert bool((got.agreement[depth.valid] >= 2).all())
    assert float(depth.confidence[depth.valid].min()) > 0 and float(depth.confidence.max()) <= 1
    assert depth.metric and got.kept == pytest.approx(float(depth.valid.float().mean()))
    facing = got.normals[depth.valid]
    facing = facing[facing.norm(dim=-1) > 0.5]
    assert len(facing) > 1000 and float((facing[:, 2] < 0.2).float().mean()) > 0.99
    assert [n.index for n in got.neighbours] and 2 not in [n.index for n in got.neighbours]


def test_normals_of_a_slanted_plane() -> None:
    scene = make_scene([Plane((0.3, 0.0, 1.0), 3.0)], ARC)
    got = _run(scene)[2]
    assert got is not None
    n = -torch.nn.functional.normalize(torch.tensor([0.3, 0.0, 1.0]), dim=0)
    solved = got.normals.norm(dim=-1) > 0.5
    angle = torch.rad2deg(torch.acos((got.normals[solved] @ n).clamp(-1, 1)))
    assert float(angle.median()) < 8


def test_exposure_changes_hardly_matter() -> None:
    scene = make_scene(ROOM, ARC)
    gains = ((0.6, 0.05), (1.25, -0.1), (1.0, 0.0), (0.8, 0.15), (1.1, -0.05))
    changed = tuple(
        v.replace(image=(v.load_image() * a + b).clamp(0, 1))
        for v, (a, b) in zip(scene.views, gains, strict=True)
    )
    plain, other = _score(scene, _run(scene), 2), _score(scene, _run(scene.replace(views=changed)), 2)
    assert other[0] < plain[0] + 0.001 and other[2] > plain[2] - 0.05


def test_masked_pixels_get_no_depth() -> None:
    scene = make_scene(ROOM, ARC)
    mask = torch.ones(96, 128, dtype=torch.bool)
    mask[30:60, 40:80] = False
    views = tuple(v.replace(mask=mask) if i == 2 else v for i, v in enumerate(scene.views))
    got = _run(scene.replace(views=views))[2]
    assert got is not None
    assert not bool(got.depth.valid[~mask].any()) and float(got.depth.valid[mask].float().mean()) > 0.6


def test_works_at_lower_resolution_and_reports_that_camera() -> None:
    scene = make_scene(ROOM, ARC, size=(192, 144), focal=180.0)
    result = estimate_depths(scene, SMALL.replace(max_width=96), ranges=dict.fromkeys(range(5), RANGE))
    got = result[2]
    assert got is not None and (got.camera.width, got.camera.height) == (96, 72)
    assert got.camera.K is not None
    torch.testing.assert_close(got.camera.K[:2], scene.views[2].camera.K[:2] * 0.5)  # type: ignore[index]
    truth = scene.views[2].load_depth().values[::2, ::2]  # type: ignore[union-attr]
    error = (got.depth.values / truth - 1).abs()[got.depth.valid]
    assert float(error.median()) < 0.01


def test_sparse_points_give_range_and_neighbours() -> None:
    scene = make_scene(ROOM, ARC)
    xyz, point, view = [], [], []
    for i, v in enumerate(scene.views):
        depth, K, pose = v.load_depth().values, v.camera.K, v.camera.world_from_cam  # type: ignore[union-attr]
        ys, xs = torch.meshgrid(torch.arange(4, 96, 12), torch.arange(4, 128, 12), indexing="ij")
        z = depth[ys, xs].double().reshape(-1)
        rays = torch.stack([xs + 0.5, ys + 0.5, torch.ones_like(xs)], -1).double().reshape(-1, 3)
        world = (rays @ torch.linalg.inv(K).T * z[:, None]) @ pose[:3, :3].T + pose[:3, 3]
        point.append(torch.arange(len(z)) + sum(len(x) for x in xyz))
        xyz.append(world)
        view.append(torch.full((len(z),), i))
    n = sum(len(x) for x in xyz)
    sparse = SparsePoints(
        torch.cat(xyz),
        torch.zeros(n, 3, dtype=torch.uint8),
        torch.zeros(n, dtype=torch.float64),
        torch.cat(point),
        torch.cat(view),
        torch.zeros(n, 2, dtype=torch.float64),
    )
    scene = scene.replace(sparse=sparse)
    result = estimate_depths(scene, SMALL)
    assert result[2] is not None and result[2].range.source == "sparse"
    assert _score(scene, result, 2)[0] < 0.011


def test_nothing_but_poses() -> None:
    scene = make_scene(ROOM, ARC)
    result = estimate_depths(scene, SMALL.replace(planes=96))
    assert result[2] is not None and result[2].range.source == "poses"
    assert _score(scene, result, 2)[0] < 0.02


def test_wrong_poses_raise_the_flag() -> None:
    scene = make_scene(ROOM, ARC)
    turned = []
    for i, view in enumerate(scene.views):
        pose = view.camera.world_from_cam.clone()  # type: ignore[union-attr]
        angle = torch.tensor([0.0, 0.08, -0.06, 0.07, -0.09][i], dtype=torch.float64)
        c, s = angle.cos(), angle.sin()
        turn = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
        pose[:3, :3] = pose[:3, :3] @ turn
        turned.append(view.replace(camera=view.camera.replace(world_from_cam=pose)))
    report = _run(scene.replace(views=tuple(turned))).report
    assert report.poses_doubtful and report.verdict is not None and "poses" in report.verdict


def _finite(result: StereoResult) -> bool:
    maps = [
        m for r in result if r is not None for m in (r.depth.values, r.depth.confidence, r.normals, r.raw)
    ]
    return all(bool(torch.isfinite(m).all()) for m in maps if m is not None)


def test_identical_cameras_give_reasons() -> None:
    scene = make_scene(ROOM, [(0.0, 0.0, 0.0)] * 4)
    result = _run(scene)
    assert list(result) == [None] * 4 and all("angle" in str(r) for r in result.reasons)
    assert result.report.verdict is not None


def test_black_pictures_give_reasons() -> None:
    scene = make_scene(ROOM, ARC)
    views = tuple(v.replace(image=torch.zeros(3, 96, 128)) for v in scene.views)
    result = _run(scene.replace(views=views))
    assert list(result) == [None] * 5 and all("structure" in str(r) for r in result.reasons)


def test_noise_gives_a_flag_and_no_nan() -> None:
    scene = make_scene(ROOM, ARC)
    generator = torch.Generator().manual_seed(0)
    views = tuple(v.replace(image=torch.rand(3, 96, 128, generator=generator)) for v in scene.views)
    result = _run(scene.replace(views=views))
    assert _finite(result) and result.report.poses_doubtful and result.report.kept_share < 0.05


def test_no_overlap_gives_reasons() -> None:
    targets = ((0.0, 0.0, 3.0), (3.0, 0.0, 0.01), (0.0, 0.0, -3.0))
    views = [
        make_scene(ROOM, [(0.1 * i, 0.0, 0.0)], t).views[0].replace(name=str(i))
        for i, t in enumerate(targets)
    ]
    result = _run(Scene(tuple(views)))
    assert list(result) == [None] * 3 and result.report.verdict is not None


def test_two_views_only_when_asked() -> None:
    scene = make_scene(ROOM, ARC[1:4:2])
    assert list(_run(scene)) == [None, None]
    result = _run(scene, StereoConfig(planes=48, min_neighbours=1))
    assert result[0] is not None and _score(scene, result, 0)[0] < 0.02


def test_views_without_camera_are_skipped_with_a_reason() -> None:
    scene = make_scene(ROOM, ARC)
    views = (*scene.views, View("loose", Camera(64, 48), torch.zeros(3, 48, 64)))
    result = _run(scene.replace(views=views))
    assert result[5] is None and "camera" in str(result.reasons[5]) and len(result) == 6


def test_distorted_views_are_refused() -> None:
    scene = make_scene(ROOM, ARC)
    bent = scene.views[1].camera.replace(distortion=Distortion("opencv", (0.1, 0.0, 0.0, 0.0)))
    views = (scene.views[0], scene.views[1].replace(camera=bent), *scene.views[2:])
    with pytest.raises(InputError, match="01"):
        _run(scene.replace(views=views))


def test_same_input_same_bits() -> None:
    scene = make_scene(ROOM, ARC[:4])
    a, b = _run(scene)[1], _run(scene)[1]
    assert a is not None and b is not None and torch.equal(a.depth.values, b.depth.values)


def test_config_is_checked_and_frozen() -> None:
    for bad in ({"window": 6}, {"planes": 3}, {"p1": 0.5, "p2": 0.1}, {"best": 9}, {"max_width": 8}):
        with pytest.raises(InputError):
            StereoConfig(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="profile"):
        StereoConfig.profile("best")  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        StereoConfig().planes = 3  # type: ignore[misc]
    assert StereoConfig().plane_count(384) == 96 and StereoConfig().plane_count(512) == 128
    assert StereoConfig().best_count(5) == 3 and StereoConfig.profile("fast").best_count(5) == 2
    assert StereoConfig().needed_agreement(3) == 1 and StereoConfig().needed_agreement(4) == 2


def test_the_fine_profile_is_more_accurate_on_curved_and_slanted_surfaces() -> None:
    scene = make_scene(ROOM, ARC)
    plain, fine = (
        _score(scene, _run(scene), 2),
        _score(scene, _run(scene, SMALL.replace(refine_iterations=1)), 2),
    )
    assert fine[0] < 0.6 * plain[0] and fine[2] > plain[2]
