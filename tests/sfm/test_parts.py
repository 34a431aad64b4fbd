"""Parts of structure from motion that need no mapping: lenses, pairs, file keys, consistency, diagnosis, recipes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.contract import Camera, Distortion, Scene, View
from relief3d.core.errors import InputError
from relief3d.io.images import read_image
from relief3d.sfm import SfmConfig, estimate_cameras
from relief3d.sfm.consistency import Agreement, PairMatches, sampson_px
from relief3d.sfm.convert import _turn_to_y
from relief3d.sfm.database import to_uint8
from relief3d.sfm.diagnosis import MatchStats, explain_failure
from relief3d.sfm.lenses import camera_from_colmap, group_lenses
from relief3d.sfm.pairs import all_pairs, choose_pairs, sequential_pairs, similar_pairs
from relief3d.sfm.recipes import ladder
from relief3d.sfm.work_files import digest, view_fingerprint

from .plane_room import arc_poses, intrinsics, make_scene, render

pycolmap = pytest.importorskip("pycolmap")


def view(name: str, size=(320, 240), K=None, source="given", lens=None) -> View:
    return View(
        name, Camera(*size, K, distortion=lens, K_source=source), image=torch.zeros(3, size[1], size[0])
    )


def test_views_share_a_lens_by_size_source_and_focal_length():
    K, other = intrinsics(), intrinsics(focal=400.0)
    views = [
        view("a"), view("b"), view("c", (240, 320)),
        view("d", K=K), view("e", K=K), view("f", K=other),
        view("g", K=K, source="exif"), view("h", K=other, source="exif"),
    ]  # fmt: skip
    groups = group_lenses(views)
    assert [g.views for g in groups] == [(0, 1), (2,), (3, 4), (5,), (6,), (7,)]
    assert [g.fixed for g in groups] == [False, False, True, True, False, False]
    assert [g.prior_focal for g in groups] == [False, False, True, True, True, True]
    assert [g.model for g in groups] == ["SIMPLE_RADIAL", "SIMPLE_RADIAL", "PINHOLE", "PINHOLE"] + [
        "SIMPLE_RADIAL"
    ] * 2
    assert groups[0].params == (1.2 * 320, 160.0, 120.0, 0.0)
    assert group_lenses(views[:1], focal_factor=0.8)[0].params[0] == pytest.approx(256.0)
    assert [g.views for g in group_lenses(views[:4], per_view=True)] == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize(
    "lens",
    [
        None,
        Distortion("opencv", (0.1, -0.02, 0.003, 0.004)),
        Distortion("opencv", (0.1, -0.02, 0.003, 0.004, 0.01)),
        Distortion("opencv", (0.1, -0.02, 0.003, 0.004, 0.01, 0.02, 0.03, 0.04)),
        Distortion("fisheye", (0.1, 0.02, 0.003, 0.001)),
    ],
)
def test_lens_models_agree_with_colmap_and_survive_the_way_back(lens):
    from relief3d.geometry.distortion import project_distorted

    K = intrinsics(centre=(3.0, -2.0))
    group = group_lenses([view("a", K=K, lens=lens)])[0]
    camera = group.to_colmap(pycolmap, 1)
    points = torch.tensor([[0.2, -0.1, 1.0], [-0.3, 0.25, 1.2], [0.0, 0.0, 2.0]], dtype=torch.float64)
    ours, _ = project_distorted(points, K, lens)
    np.testing.assert_allclose(camera.img_from_cam(points.numpy()), ours.numpy(), atol=1e-9)
    back = camera_from_colmap(camera, "estimated")
    again, _ = project_distorted(points, back.K, back.distortion)
    np.testing.assert_allclose(again.numpy(), ours.numpy(), atol=1e-9)


def test_skewed_intrinsics_are_refused():
    K = intrinsics()
    K[0, 1] = 2.0
    with pytest.raises(InputError, match="skew"):
        group_lenses([view("a.png", K=K)])


def test_pairs_of_small_ordered_and_large_sets():
    assert all_pairs(3) == [(0, 1), (0, 2), (1, 2)]
    pairs = sequential_pairs(40, 3)
    assert (0, 3) in pairs and (0, 4) in pairs and (0, 8) in pairs
    assert (0, 5) not in pairs and (0, 16) not in pairs and max(j for _, j in pairs) == 39
    options = {"kind": "auto", "overlap": 2, "can_probe": False}
    assert choose_pairs(pycolmap, None, 5, ordered=True, **options) == all_pairs(5)
    assert choose_pairs(pycolmap, None, 90, ordered=True, **options) == sequential_pairs(90, 2)
    assert len(choose_pairs(pycolmap, None, 90, ordered=False, **options)) == 90 * 89 // 2


def test_similar_pairs_take_the_best_and_respect_the_gap():
    counts = torch.tensor([[0, 9, 1, 5], [9, 0, 0, 2], [1, 0, 0, 7], [5, 2, 7, 0]])
    assert similar_pairs(counts, 1) == [(0, 1), (2, 3)]
    assert similar_pairs(counts, 1, min_gap=2) == [(0, 2), (0, 3), (1, 3)]


def test_large_ordered_sets_are_matched_in_sequence_with_loops(tmp_path):
    scene, _ = make_scene(6)
    config = SfmConfig(max_features=800, effort="single", pairs="sequential", overlap=1)
    result = estimate_cameras(scene.replace(ordered=True), config, tmp_path)
    assert result.report["registered"] == 6
    database = pycolmap.Database.open(next(tmp_path.glob("matches-*.db")))
    pairs = {
        tuple(sorted(k - 1 for k in pycolmap.pair_id_to_image_pair(p)))
        for p in database.read_all_matches()[0]
    }
    database.close()
    assert {(0, 1), (1, 2), (0, 2)} <= pairs and len(pairs) < 15 + 1


def test_pictures_with_an_exif_turn_are_used_upright(tmp_path):
    poses, views = arc_poses(3), []
    for k, pose in enumerate(poses):
        pixels = Image.fromarray(to_uint8(render(pose, intrinsics())))
        path, exif = tmp_path / f"{k}.png", Image.Exif()
        if k == 1:  # stored lying on its side, with the note to turn it by 90 degrees clockwise
            exif[0x0112] = 6
            pixels = pixels.transpose(Image.Transpose.ROTATE_90)
        pixels.save(path, exif=exif)
        camera = Camera(320, 240, intrinsics(), pose)
        views.append(View(path.name, camera, image=lambda p=path: read_image(p).rgb, path=path))
    result = estimate_cameras(Scene(tuple(views)), SfmConfig(max_features=800), tmp_path / "work")
    assert result.report["explained"] > 0.95 and len(result.scene.sparse) > 200
    assert int((result.scene.sparse.obs_view == 1).sum()) > 200


def test_work_files_are_named_after_their_content(tmp_path):
    a = view("a")
    assert view_fingerprint(a) == view_fingerprint(view("a"))
    brighter = a.replace(image=a.image + 0.5)
    masked = a.replace(mask=torch.ones(240, 320, dtype=torch.bool))
    keys = {digest(view_fingerprint(v)) for v in (a, brighter, masked, view("b"))}
    assert len(keys) == 4


def test_sampson_distance_is_zero_on_true_matches_and_pixels_off_them():
    camera = group_lenses([view("a", K=intrinsics())])[0].to_colmap(pycolmap, 1)
    points = np.array([[0.3, -0.2, 3.0], [-0.5, 0.1, 2.5], [0.1, 0.4, 4.0]])
    a, b = np.eye(4)[:3], np.hstack([np.eye(3), [[-0.4], [0.0], [0.0]]])
    first, second = camera.img_from_cam(points), camera.img_from_cam(points + b[:, 3])
    assert sampson_px(camera, camera, a, b, PairMatches(0, 1, first, second)).max() < 1e-9
    # Sideways motion has level epipolar lines: 3 px up in one picture is 3 / sqrt(2) in Sampson's distance.
    off = sampson_px(camera, camera, a, b, PairMatches(0, 1, first, second + [0.0, 3.0]))
    np.testing.assert_allclose(off, 3.0 / np.sqrt(2.0), rtol=1e-3)


def test_supported_views_explain_their_matches_and_see_points():
    fit = Agreement(
        0.8, 1.0, 100, {0: 90, 1: 40, 2: 10, 3: 0}, {0: 100, 1: 100, 2: 10, 3: 0}, {0: 50, 1: 50, 2: 10, 3: 0}
    )
    assert fit.supported() == {0}


def stats(**changes) -> MatchStats:
    base = MatchStats((500, 500, 500), {(0, 1): 100, (1, 2): 90}, {}, {(0, 1): 20.0, (1, 2): 30.0}, ())
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (stats(keypoints=(500, 3, 7)), "almost no detail"),
        (stats(inliers={}), "enough of the same surface"),
        (stats(shift_px={(0, 1): 0.0, (1, 2): 0.1}), "same picture"),
        (stats(rotating=((0, 1), (1, 2))), "turned on the spot"),
        (stats(inliers={(0, 1): 100}, shift_px={(0, 1): 20.0}), "only 2 of 3 pictures overlap"),
        (stats(), "enough parallax"),
    ],
)
def test_every_failure_has_its_reason_and_remedy(facts, reason):
    error = explain_failure(facts, ["a", "b", "c"])
    assert reason in str(error) and error.remedy


def test_the_ladder_starts_plain_and_grows():
    names = [r.name for r in ladder(SfmConfig(), unknown_lens=True, fixed_lens=False, shared_lens=True)]
    assert names[:2] == ["default", "relaxed"] and "one lens per picture" in names and "global" in names
    fixed = [r.name for r in ladder(SfmConfig(), unknown_lens=False, fixed_lens=True, shared_lens=False)]
    assert not [n for n in fixed if "focal" in n or "lens" in n]
    single = SfmConfig(effort="single")
    assert len(ladder(single, unknown_lens=True, fixed_lens=False, shared_lens=True)) == 1


def test_upright_turn_is_a_rotation_for_every_direction():
    for direction in ([0, 1, 0], [0, -1, 0], [1, 0, 0], [0.3, -0.9, 0.2], [0, 0, 0]):
        d = torch.tensor(direction, dtype=torch.float64)
        R = _turn_to_y(d)
        assert torch.allclose(R @ R.T, torch.eye(3, dtype=torch.float64)) and float(
            torch.det(R)
        ) == pytest.approx(1.0)
        if float(d.norm()) > 0:
            assert torch.allclose(R @ d / d.norm(), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


def test_a_colmap_failure_is_one_sentence():
    from relief3d.core.errors import RunError
    from relief3d.sfm.colmap import run_interruptible

    def fail(_token):
        raise ValueError("bad database")

    with pytest.raises(RunError, match="COLMAP failed while matching: bad database"):
        run_interruptible(pycolmap, fail, seed=0, what="matching")


def test_ctrl_c_reaches_colmap_through_the_token(monkeypatch):
    import threading
    import time

    from relief3d.sfm import colmap

    stopped = threading.Event()

    def work(token):
        while not token.is_cancelled:
            time.sleep(0.01)
        stopped.set()

    calls = iter([None])

    class Thread(threading.Thread):
        def join(self, timeout=None):
            if next(calls, "done") is None:
                raise KeyboardInterrupt
            super().join(timeout)

    monkeypatch.setattr(colmap, "threading", SimpleNamespace(Thread=Thread))
    with pytest.raises(KeyboardInterrupt):
        colmap.run_interruptible(pycolmap, work, seed=0, what="waiting")
    assert stopped.wait(2.0)
