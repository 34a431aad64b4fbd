"""Cameras from rendered pictures of a known room: recovered, kept, or refused with a reason."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from relief3d.core.contract import Camera, Distortion, Scene, View
from relief3d.core.errors import InputError
from relief3d.core.progress import SilentProgress
from relief3d.eval.metrics.cameras import ate, evaluate_cameras
from relief3d.geometry.distortion import project_distorted
from relief3d.sfm import SfmConfig, estimate_cameras

from .plane_room import arc_poses, intrinsics, look_at, make_scene, render

pytest.importorskip("pycolmap")

FAST = SfmConfig(max_features=1200, effort="single")


class Stages(SilentProgress):
    """Remembers the stages and their totals; presses Ctrl-C at a step."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.totals: dict[str, int | None] = {}
        self.left = stop_at

    def start(self, stage, total=None):
        self.totals[stage] = total

    def advance(self, steps=1, note=""):
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt


def poses_of(scene: Scene) -> list[torch.Tensor | None]:
    return [v.camera.world_from_cam for v in scene.views]


def reprojection(scene: Scene) -> torch.Tensor:
    """(M,) distance between sparse points projected through the contract's cameras and their observations."""
    sparse = scene.sparse
    out = []
    for index, view in enumerate(scene.views):
        mine = sparse.obs_view == index
        if not bool(mine.any()):
            continue
        T = view.camera.cam_from_world
        local = sparse.xyz[sparse.obs_point[mine]] @ T[:3, :3].T + T[:3, 3]
        xy, _ = project_distorted(local, view.camera.K, view.camera.distortion)
        out.append(torch.linalg.vector_norm(xy - sparse.obs_xy[mine], dim=-1))
    return torch.cat(out)


@pytest.fixture(scope="module")
def room():
    return make_scene(6)


@pytest.fixture(scope="module")
def solved(room, tmp_path_factory):
    scene, poses = room
    folder = tmp_path_factory.mktemp("sfm")
    return estimate_cameras(scene, FAST, folder), poses, folder


def test_cameras_and_focal_length_are_recovered_from_pictures_alone(solved):
    result, poses, _ = solved
    report = evaluate_cameras(poses_of(result.scene), poses)
    assert report.registered == 6 and report.auc["5"] > 93.0
    camera = result.scene.views[0].camera
    assert camera.K_source == "estimated" and float(camera.K[0, 0]) == pytest.approx(300.0, rel=0.02)
    assert result.report["registered"] == 6 and result.report["unplaced"] == []
    assert result.report["explained"] > 0.9
    assert [a["name"] for a in result.report["attempts"]] == ["default"]
    assert not result.scene.metric


def test_sparse_points_project_onto_their_observations(solved):
    result, _, _ = solved
    error = reprojection(result.scene)
    assert len(error) > 500 and float(error.median()) < 0.5
    assert float(error.mean()) == pytest.approx(result.report["reprojection_px"], rel=0.05)
    sparse = result.scene.sparse
    assert int(sparse.obs_point.max()) == len(sparse) - 1 and sparse.rgb.dtype == torch.uint8
    assert float(sparse.rgb.float().std()) > 10.0


def test_free_models_are_upright_and_of_unit_depth(solved):
    scene = solved[0].scene
    down = torch.stack([v.camera.world_from_cam[:3, 1] for v in scene.views]).mean(0)
    assert float(down[1] / down.norm()) == pytest.approx(1.0, abs=1e-6)
    depths = []
    for index, view in enumerate(scene.views):
        T = view.camera.cam_from_world
        mine = scene.sparse.obs_point[scene.sparse.obs_view == index]
        depths.append(scene.sparse.xyz[mine] @ T[2, :3] + T[2, 3])
    assert float(torch.cat(depths).median()) == pytest.approx(1.0, rel=1e-3)


def test_the_same_seed_gives_the_same_cameras_and_work_files_are_reused(solved, room, tmp_path):
    result, _, folder = solved
    fresh = estimate_cameras(room[0], FAST, tmp_path)
    for a, b in zip(result.scene.views, fresh.scene.views):
        assert torch.equal(a.camera.world_from_cam, b.camera.world_from_cam)
        assert torch.equal(a.camera.K, b.camera.K)
    seen = Stages()
    again = estimate_cameras(room[0], FAST, folder, seen)
    assert not {"features", "matching"} & set(seen.totals) and "mapping" in seen.totals
    assert torch.equal(again.scene.sparse.xyz, result.scene.sparse.xyz)
    assert not list(folder.glob("*.part"))


def test_an_interrupted_extraction_goes_on_where_it_stopped(room, tmp_path):
    scene = room[0]
    with pytest.raises(KeyboardInterrupt):
        estimate_cameras(scene, FAST, tmp_path, Stages(stop_at=3))
    assert list(tmp_path.glob("keypoints-*.db.part"))
    seen = Stages()
    assert estimate_cameras(scene, FAST, tmp_path, seen).report["registered"] == 6
    assert seen.totals["features"] == 3


def test_given_intrinsics_and_distortion_stay_as_given(tmp_path):
    scene, poses = make_scene(5, centre=(6.0, -4.0), bend=-0.1)
    lens = Distortion("opencv", (-0.1, 0.0, 0.0, 0.0))
    K = intrinsics(centre=(6.0, -4.0))
    views = tuple(v.replace(camera=v.camera.replace(K=K, distortion=lens)) for v in scene.views)
    result = estimate_cameras(scene.replace(views=views), FAST, tmp_path)
    report = evaluate_cameras(poses_of(result.scene), poses)
    assert report.registered == 5 and report.auc["5"] > 93.0
    for view in result.scene.views:
        assert (
            torch.equal(view.camera.K, K)
            and view.camera.distortion == lens
            and view.camera.K_source == "given"
        )
    assert float(reprojection(result.scene).median()) < 0.5


def test_known_poses_are_triangulated_in_their_own_world(tmp_path):
    scene, poses = make_scene(4, known="all", metric=True)
    result = estimate_cameras(scene, FAST, tmp_path)
    for view, pose in zip(result.scene.views, poses):
        assert torch.equal(view.camera.world_from_cam, pose)
    assert result.scene.metric and result.report["mode"] == "known poses"
    xyz = result.scene.sparse.xyz
    # Every point lies on one of the three planes of the room: z = 4, x = -2, y = 1.2.
    distance = torch.stack([(xyz[:, 2] - 4).abs(), (xyz[:, 0] + 2).abs(), (xyz[:, 1] - 1.2).abs()]).amin(0)
    assert len(xyz) > 200 and float(distance.median()) < 0.01


def disturbed(poses, degrees: float, metres: float, seed: int = 3):
    from relief3d.geometry.rotations import matrix_from_axis_angle

    generator = torch.Generator().manual_seed(seed)
    out = []
    for pose in poses:
        moved = pose.clone()
        turn = torch.randn(3, generator=generator, dtype=torch.float64) * (degrees * torch.pi / 180)
        moved[:3, :3] = matrix_from_axis_angle(turn) @ pose[:3, :3]
        moved[:3, 3] += torch.randn(3, generator=generator, dtype=torch.float64) * metres
        out.append(moved)
    return out


def test_refining_given_poses_brings_them_closer_to_the_truth(tmp_path):
    scene, poses = make_scene(6, known="all", metric=True)
    rough = disturbed(poses, 0.4, 0.01)
    views = tuple(
        v.replace(camera=v.camera.replace(world_from_cam=T)) for v, T in zip(scene.views, rough, strict=True)
    )
    config = dataclasses.replace(FAST, refine_poses=True)
    result = estimate_cameras(scene.replace(views=views), config, tmp_path)
    before, after = evaluate_cameras(rough, poses), evaluate_cameras(poses_of(result.scene), poses)
    assert after.auc["5"] > before.auc["5"] + 3.0 and after.auc["5"] > 93.0
    # World and scale stay the user's: no alignment is needed beyond the disturbance itself.
    rigid = ate(poses_of(result.scene), poses, with_scale=False)
    assert rigid.rmse < 0.02 and result.scene.metric


def test_given_poses_that_contradict_the_pictures_are_refused(tmp_path):
    scene, poses = make_scene(4, known="all")
    wrong = [poses[2], poses[0], poses[3], poses[1]]
    views = tuple(v.replace(camera=v.camera.replace(world_from_cam=T)) for v, T in zip(scene.views, wrong))
    with pytest.raises(InputError, match="given poses contradict the pictures"):
        estimate_cameras(scene.replace(views=views), FAST, tmp_path)


def test_views_without_pose_join_those_with_one(tmp_path):
    scene, poses = make_scene(5, known="all")
    views = list(scene.views)
    views[2] = views[2].replace(camera=views[2].camera.replace(world_from_cam=None))
    result = estimate_cameras(scene.replace(views=tuple(views)), FAST, tmp_path)
    assert result.report["mode"] == "some poses"
    assert torch.equal(result.scene.views[0].camera.world_from_cam, poses[0])
    joined = result.scene.views[2].camera.world_from_cam
    assert float((joined[:3, 3] - poses[2][:3, 3]).norm()) < 0.05


def test_masks_keep_keypoints_out(tmp_path):
    scene, _ = make_scene(4, known="all")
    keep = torch.zeros(240, 320, dtype=torch.bool)
    keep[:, :200] = True
    masked = scene.replace(views=tuple(v.replace(mask=keep) for v in scene.views))
    result = estimate_cameras(masked, FAST, tmp_path)
    assert len(result.scene.sparse) > 50
    assert float(result.scene.sparse.obs_xy[:, 0].max()) <= 200.0


def test_pictures_of_two_sizes_get_two_lenses(tmp_path):
    poses = arc_poses(6)
    wide, tall = (320, 240), (240, 320)
    views = []
    for k, pose in enumerate(poses):
        size = wide if k % 2 == 0 else tall
        views.append(View(f"{k}", Camera(*size), image=render(pose, intrinsics(size), size)))
    result = estimate_cameras(Scene(tuple(views)), FAST, tmp_path)
    assert evaluate_cameras(poses_of(result.scene), poses).registered == 6
    sizes = {(v.camera.width, v.camera.height, round(float(v.camera.K[0, 2]))) for v in result.scene.views}
    assert sizes == {(320, 240, 160), (240, 320, 120)}


def one_view_scene():
    return Scene((View("lonely.png", Camera(64, 48), image=torch.rand(3, 48, 64)),))


def test_no_picture_and_one_picture_are_refused(tmp_path):
    with pytest.raises(InputError, match="no pictures"):
        estimate_cameras(Scene(()), FAST, tmp_path)
    with pytest.raises(InputError, match=r"one picture \('lonely.png'\)"):
        estimate_cameras(one_view_scene(), FAST, tmp_path)


def same_size_scene(images) -> Scene:
    return Scene(
        tuple(View(f"{k}.png", Camera(i.shape[2], i.shape[1]), image=i) for k, i in enumerate(images))
    )


def test_identical_pictures_are_refused(tmp_path):
    image = render(arc_poses(1)[0], intrinsics())
    with pytest.raises(InputError, match="identical"):
        estimate_cameras(same_size_scene([image, image]), FAST, tmp_path)


def test_nearly_identical_pictures_are_refused(tmp_path):
    image = render(arc_poses(1)[0], intrinsics())
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) * 0.01
    with pytest.raises(InputError, match=r"same picture|no parallax"):
        estimate_cameras(same_size_scene([image, (image + noise).clamp(0, 1)]), FAST, tmp_path)


def test_blank_pictures_are_refused(tmp_path):
    images = [torch.full((3, 120, 160), 0.3 + 0.1 * k) for k in range(3)]
    with pytest.raises(InputError, match="almost no detail"):
        estimate_cameras(same_size_scene(images), FAST, tmp_path)


def test_pictures_without_overlap_are_refused(tmp_path):
    pose, K = arc_poses(1)[0], intrinsics()
    images = [render(pose, K, seed=seed) for seed in (1, 2)]
    with pytest.raises(InputError, match=r"overlap|enough of the same surface"):
        estimate_cameras(same_size_scene(images), FAST, tmp_path)


@pytest.mark.parametrize("known", ["nothing", "K"])
def test_turning_on_the_spot_is_refused(known, tmp_path):
    eye = (0.6, 0.0, 0.5)
    poses = [look_at(eye, (-0.7 + 0.25 * k, 0.3, 3.2)) for k in range(3)]
    scene, _ = make_scene(poses=poses, known=known)
    with pytest.raises(InputError, match="turned on the spot"):
        estimate_cameras(scene, FAST, tmp_path)


def test_a_picture_that_differs_from_its_camera_is_refused(tmp_path):
    scene, _ = make_scene(2)
    views = (scene.views[0], scene.views[1].replace(camera=Camera(640, 480)))
    with pytest.raises(InputError, match="320x240 pixels, its camera says 640x480"):
        estimate_cameras(scene.replace(views=views), FAST, tmp_path)


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match="out of range"):
        SfmConfig(threads=0)


def test_the_global_mapper_finds_the_same_cameras(room, tmp_path):
    config = dataclasses.replace(FAST, mapper="global")
    result = estimate_cameras(room[0], config, tmp_path)
    report = evaluate_cameras(poses_of(result.scene), room[1])
    assert report.registered == 6 and report.auc["5"] > 85.0
    assert result.report["chosen"] == "global"


class MutualMatcher:
    """Stands for a learned matcher: SIFT keypoints with float descriptors, paired by mutual nearest neighbours."""

    name = "disk-lightglue"

    def extract(self, image):
        import pycolmap

        from relief3d.sfm.config import FeatureRecipe
        from relief3d.sfm.database import extract_sift

        found = extract_sift(pycolmap, image, None, FeatureRecipe(max_features=600))
        values = torch.nn.functional.normalize(found.descriptors.float(), dim=1)
        return dataclasses.replace(found, descriptors=values)

    def match(self, first, second):
        similarity = first.descriptors @ second.descriptors.T
        there, back = similarity.argmax(1), similarity.argmax(0)
        mutual = (back[there] == torch.arange(len(first))) & (similarity.amax(1) > 0.8)
        rows = torch.nonzero(mutual)[:, 0]
        return torch.stack([rows, there[rows]], 1)


def test_matches_of_a_learned_matcher_reach_the_mapper(tmp_path, monkeypatch):
    monkeypatch.setattr("relief3d.sfm.estimate.make_matcher", lambda *_: MutualMatcher())
    scene, poses = make_scene(4, known="K")
    config = dataclasses.replace(FAST, features="disk-lightglue")
    result = estimate_cameras(scene, config, tmp_path)
    report = evaluate_cameras(poses_of(result.scene), poses)
    assert report.registered == 4 and report.auc["5"] > 85.0
