"""A network that knows the truth goes through the whole chain: the scene must come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from corpora.multiview_oracle import Oracle, Room, make_room, scaling
from relief3d.core.contract import Depth, Prediction, Scene, View
from relief3d.core.errors import InputError, RunError
from relief3d.eval.alignment import align_cameras
from relief3d.eval.metrics.cameras import evaluate_cameras
from relief3d.eval.reference import compare
from relief3d.geometry.projection import project_world
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.io.cameras_json import read_cameras_json
from relief3d.io.colmap import read_colmap_model
from relief3d.io.transforms_json import read_transforms_json
from relief3d.models.multiview.interface import Known
from relief3d.models.multiview.preprocess import prepare
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.maps import Judge, make_map
from relief3d.pipelines.multiview.pictures import plan_framing
from relief3d.pipelines.multiview.solve import NetworkScene, predict_scene
from relief3d.pipelines.reconstruct import ReconstructConfig, reconstruct
from relief3d.pipelines.reconstruct import depth as depth_stage

VIEWS, SIZE, SIDE = 5, (126, 84), 84
NETWORK = MultiviewConfig(side=SIDE, refine="off", loops=False)


@pytest.fixture(scope="module")
def room() -> Room:
    return make_room([SIZE] * VIEWS)


def oracle(room: Room, **changes: object) -> Oracle:
    prepared = prepare(room.images, "keep", side=SIDE).images
    # 126 x 84 becomes 84 x 56.
    return Oracle(room, prepared, lambda i: scaling(2 / 3, 2 / 3), **changes)  # type: ignore[arg-type]


def solve(
    room: Room, network: Oracle, work: Path, scene: Scene | None = None, **changes: object
) -> NetworkScene:
    config = replace(NETWORK, **changes)  # type: ignore[arg-type]
    return predict_scene(scene or room.scene(), config, work, network=network, device="cpu")


def check_cameras(found: Scene, room: Room, tolerance: float = 1e-5) -> float:
    """Intrinsics are the true ones in original pixels, poses up to a similarity; returns its scale."""
    for view, true in zip(found.views, room.cameras):
        assert view.camera.K is not None and true.K is not None
        assert (view.camera.width, view.camera.height) == (true.width, true.height)
        assert torch.allclose(view.camera.K, true.K, rtol=0, atol=1e-3), view.name
    poses = [v.camera.world_from_cam for v in found.views]
    truth = [c.world_from_cam for c in room.cameras]
    assert evaluate_cameras(poses, truth).auc["5"] > 100 - 1e3 * tolerance
    alignment = align_cameras(poses, truth)
    for pose, true_pose in zip(poses, truth):
        assert pose is not None and true_pose is not None
        assert torch.allclose(alignment.pose(pose), true_pose, atol=tolerance)
    return alignment.scale


def check_maps(found: NetworkScene, room: Room, scale: float, least: float = 0.9) -> list[Depth]:
    """Depth at the original size is the true one, but for a few pixels at edges."""
    poses = torch.stack([v.camera.world_from_cam for v in found.scene.views])  # type: ignore[misc]
    judge, maps = Judge(poses, found.depth), []
    framing = plan_framing([(c.width, c.height) for c in room.cameras], found.depth.mode, found.depth.side)
    for index, (view, true) in enumerate(zip(found.scene.views, room.cameras)):
        small = framing.load(found.scene.views, [index])[0]
        made = make_map(view, index, judge, metric=False, small_picture=small).depth
        assert tuple(made.values.shape) == (true.height, true.width)
        truth = room.depth(true)
        error = (made.values * scale / truth - 1).abs()[made.valid]
        assert float((error < 0.01).float().mean()) > least and float(error.median()) < 2e-3
        maps.append(made)
    return maps


@pytest.fixture(scope="module")
def whole(room: Room, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the command makes, from the oracle."""
    root = tmp_path_factory.mktemp("oracle")
    room.write(root)
    config = ReconstructConfig(multiview=NETWORK, splats=False)
    reconstruct(root / "photos", root / "out", network=oracle(room), config=config)
    return root


def test_the_whole_chain_gives_the_scene_back(whole: Path) -> None:
    numbers = compare(
        whole / "out", whole / "truth" / "cameras.json", mesh=whole / "truth" / "mesh.ply", samples=20_000
    )
    assert numbers["cameras"]["auc"]["5"] > 99.9
    assert numbers["depth"]["mean"]["abs_rel"] < 0.005
    assert numbers["mesh"]["scores"]["2%"]["fscore"] > 0.9


def test_exports_agree_and_describe_the_original_pictures(whole: Path, room: Room) -> None:
    colmap = read_colmap_model(whole / "out" / "sparse" / "0")
    nerf = read_transforms_json(whole / "out" / "transforms.json")
    maps = read_cameras_json(whole / "out" / "depth" / "cameras.json", require_images=False)
    for a, b, c, true in zip(colmap.views, nerf.views, maps.views, room.cameras):
        assert a.name == b.name == c.name
        for camera in (a.camera, b.camera, c.camera):
            assert camera.K is not None and true.K is not None and camera.world_from_cam is not None
            assert (camera.width, camera.height) == SIZE
            assert torch.allclose(camera.K, true.K, atol=1e-4)
            assert torch.allclose(camera.world_from_cam, a.camera.world_from_cam, atol=1e-6)  # type: ignore[arg-type]
        depth = c.load_depth()
        assert depth is not None and tuple(depth.values.shape) == SIZE[::-1]


def test_colmap_points_reproject_where_they_were_observed(whole: Path) -> None:
    model = read_colmap_model(whole / "out" / "sparse" / "0")
    points = model.sparse
    assert points is not None and len(points) > 100
    assert float(torch.bincount(points.obs_point).double().mean()) > 2.5, "tracks over several views"
    for index, view in enumerate(model.views):
        mine = points.obs_view == index
        camera = view.camera
        assert camera.K is not None and camera.cam_from_world is not None and int(mine.sum()) > 20
        xy, z = project_world(points.xyz[points.obs_point[mine]], camera.K, camera.cam_from_world)
        off = (xy - points.obs_xy[mine]).norm(dim=-1)
        assert float(z.min()) > 0 and float(off.max()) < 3 and float(off.median()) < 0.3
    assert float(points.error.mean()) < 0.5


def test_the_world_stands_upright_as_in_the_classical_path(whole: Path) -> None:
    model = read_colmap_model(whole / "out" / "sparse" / "0")
    down = torch.stack([v.camera.world_from_cam[:3, 1] for v in model.views]).mean(0)  # type: ignore[index]
    assert float(down[1] / down.norm()) > 0.99


def test_tall_pictures_lose_their_ends_and_nothing_is_invented_there(tmp_path: Path) -> None:
    tall = make_room([(100, 150)] * 3)
    prepared = prepare(tall.images, "vggt-crop", side=84).images
    # Width 100 becomes 84, height 150 becomes 126, of which rows 21..105 stay.
    network = Oracle(tall, prepared, lambda i: scaling(0.84, 0.84, 0, -21), mode="vggt-crop")
    found = solve(tall, network, tmp_path)
    scale = check_cameras(found.scene, tall)
    for made in check_maps(found, tall, scale, least=0.85):
        assert not bool(made.valid[:25].any()) and not bool(made.valid[125:].any())
        assert float(made.valid[25:125].float().mean()) > 0.9
    assert any("lose 33 %" in w for w in found.facts["warnings"])


def test_pictures_of_mixed_shapes_keep_their_own_geometry(tmp_path: Path) -> None:
    mixed = make_room([(126, 84), (84, 126), (126, 84), (63, 84)])
    prepared = prepare(mixed.images, "keep", side=84).images
    maps = [scaling(2 / 3, 2 / 3, 0, 14), scaling(2 / 3, 2 / 3, 14, 0), scaling(2 / 3, 2 / 3, 0, 14)]
    maps.append(scaling(56 / 63, 1, 14, 0))  # 63 x 84 becomes 56 x 84: four and a half patches round to four
    network = Oracle(mixed, prepared, maps.__getitem__)
    found = solve(mixed, network, tmp_path)
    check_maps(found, mixed, check_cameras(found.scene, mixed), least=0.85)
    assert any("different shapes" in w for w in found.facts["warnings"])


def test_chunks_are_joined_to_one_scene(room: Room, tmp_path: Path) -> None:
    network = oracle(room)
    found = solve(room, network, tmp_path, chunk=3, overlap=2)
    assert len(network.passes) == 3 and found.facts["passes"] == 3
    check_maps(found, room, check_cameras(found.scene, room, 1e-3))


def test_interrupted_chunks_are_used_again_and_stay_metric(room: Room, tmp_path: Path) -> None:
    class Dies(Oracle):
        """A network that is killed when it is asked once too often."""

        allowed = 2

        def predict(self, images: torch.Tensor, known: Known | None = None) -> Prediction:
            if len(self.passes) >= self.allowed:
                raise KeyboardInterrupt
            return replace(super().predict(images, known), metric=True)

    prepared = prepare(room.images, "keep", side=SIDE).images
    network = Dies(room, prepared, lambda i: scaling(2 / 3, 2 / 3))
    with pytest.raises(KeyboardInterrupt):
        solve(room, network, tmp_path, chunk=3, overlap=2)
    network.allowed = 100
    found = solve(room, network, tmp_path, chunk=3, overlap=2)
    assert len(network.passes) == 3, "the two passes of the first attempt are not asked for again"
    assert found.scene.metric
    whole = Dies(room, prepared, lambda i: scaling(2 / 3, 2 / 3))
    whole.allowed = 100
    at_once = solve(room, whole, tmp_path / "whole", chunk=3, overlap=2)
    for a, b in zip(found.scene.views, at_once.scene.views):
        assert torch.equal(a.camera.world_from_cam, b.camera.world_from_cam)  # type: ignore[arg-type]


def test_known_cameras_are_kept_and_give_metres(room: Room, tmp_path: Path) -> None:
    scene = room.scene()
    posed = scene.replace(
        views=tuple(v.replace(camera=c) for v, c in zip(scene.views, room.cameras)), metric=True
    )
    found = solve(room, oracle(room), tmp_path, posed)
    assert found.scene.metric
    for view, true in zip(found.scene.views, room.cameras):
        assert torch.equal(view.camera.world_from_cam, true.world_from_cam)  # type: ignore[arg-type]
        assert torch.allclose(view.camera.K, true.K, rtol=0, atol=1e-9)  # type: ignore[arg-type]
    check_maps(found, room, 1.0)


def test_poses_of_some_views_place_the_others(room: Room, tmp_path: Path) -> None:
    scene = room.scene()
    views = [
        v.replace(camera=v.camera.replace(world_from_cam=c.world_from_cam)) if i in (0, 3) else v
        for i, (v, c) in enumerate(zip(scene.views, room.cameras))
    ]
    found = solve(room, oracle(room), tmp_path, scene.replace(views=tuple(views), metric=True))
    assert abs(check_cameras(found.scene, room, 1e-3) - 1) < 1e-3 and found.scene.metric


def test_known_depth_gives_metres(room: Room, tmp_path: Path) -> None:
    scene = room.scene()
    views = list(scene.views)
    views[2] = views[2].replace(depth=Depth.from_values(room.depth(room.cameras[2])))
    found = solve(room, oracle(room), tmp_path, scene.replace(views=tuple(views)))
    assert found.scene.metric and abs(check_cameras(found.scene, room) - 1) < 2e-3


def test_given_depth_comes_first_and_the_network_fills_the_rest(
    room: Room, whole: Path, tmp_path: Path
) -> None:
    depth = tmp_path / "depth"
    depth.mkdir()
    for name in ("view_01", "view_02"):
        (depth / f"{name}.npz").write_bytes((whole / "truth" / f"{name}.npz").read_bytes())
    config = ReconstructConfig(multiview=NETWORK, depth=depth, mesh=False, splats=False)
    scene = reconstruct(whole / "photos", tmp_path / "out", network=oracle(room), config=config)
    sources = {n: f["source"] for n, f in scene.info["details"]["depth"]["views"].items()}
    assert [sources[n] for n in room.names] == ["network", "given", "given", "network", "network"]
    numbers = compare(tmp_path / "out", whole / "truth" / "cameras.json", samples=1000)
    assert scene.metric and numbers["depth"]["mean"]["abs_rel"] < 0.01


def test_stereo_works_with_the_cameras_of_a_network(room: Room, whole: Path, tmp_path: Path) -> None:
    config = ReconstructConfig(
        multiview=NETWORK, depth_source="stereo", quality="fast", depth_width=126, mesh=False, splats=False
    )
    scene = reconstruct(whole / "photos", tmp_path / "out", network=oracle(room), config=config)
    facts = scene.info["details"]["depth"]["views"]
    assert {f["source"] for f in facts.values()} == {"stereo"}
    assert (
        compare(tmp_path / "out", whole / "truth" / "cameras.json", samples=1000)["depth"]["mean"]["abs_rel"]
        < 0.05
    )


def test_masked_pixels_have_no_depth_and_carry_no_points(room: Room, tmp_path: Path) -> None:
    mask = torch.ones(SIZE[::-1], dtype=torch.bool)
    mask[:, :40] = False
    scene = room.scene()
    masked = scene.replace(views=tuple(v.replace(mask=mask) for v in scene.views))
    found = solve(room, oracle(room), tmp_path, masked)
    for made in check_maps(found, room, check_cameras(found.scene, room)):
        assert not bool(made.valid[:, :40].any()) and bool(made.valid[:, 45:].any())
    points = found.scene.sparse
    assert points is not None and len(points) > 30 and float(points.obs_xy[:, 0].min()) >= 39


def test_one_picture_is_enough(room: Room, whole: Path, tmp_path: Path) -> None:
    single = tmp_path / "in"
    single.mkdir()
    (single / "view_02.png").write_bytes((whole / "photos" / "view_02.png").read_bytes())
    config = ReconstructConfig(multiview=NETWORK, mesh=False, splats=False)
    scene = reconstruct(single, tmp_path / "out", network=oracle(room), config=config)
    assert scene.info["registered"] == scene.info["depth_views"] == 1 and scene.info["depth_kept"] > 0.9
    assert scene.sparse is not None and len(scene.sparse) > 50
    assert (tmp_path / "out" / "report.html").is_file()


def test_values_that_are_no_geometry_are_refused_by_name(room: Room, tmp_path: Path) -> None:
    def spoilt(change: str) -> Oracle:
        def spoil(out: Prediction, numbers: list[int]) -> Prediction:
            assert out.depth is not None and out.K is not None and out.world_from_cam is not None
            depth, K, poses = out.depth.clone(), out.K.clone(), out.world_from_cam.clone()
            at = numbers.index(3)
            if change == "depth":
                depth[0, at, 10:20] = torch.nan
            elif change == "negative":
                depth[0, at] = -depth[0, at]
            elif change == "few":
                depth[0, at, 10, 10:15] = torch.inf
            elif change == "lens":
                K[0, at, 0, 0] = torch.inf
            else:
                poses[0, at, 0, 3] = torch.nan
            return replace(out, depth=depth, K=K, world_from_cam=poses)

        return oracle(room, spoil=spoil)

    for change, words in (
        ("depth", "no usable depth"),
        ("negative", "no usable"),
        ("lens", "lens"),
        ("pose", "pose"),
    ):
        with pytest.raises(RunError, match=words) as stop:
            solve(room, spoilt(change), tmp_path / change)
        assert "view_03.png" in str(stop.value)
    found = solve(room, spoilt("few"), tmp_path / "few")
    values, _ = found.depth.read(3)
    assert bool(torch.isfinite(values).all()) and int((values == 0).sum()) == 5


def test_views_that_contradict_each_other_are_reported(room: Room, whole: Path, tmp_path: Path) -> None:
    def spoil(out: Prediction, numbers: list[int]) -> Prediction:
        assert out.depth is not None
        factor = torch.tensor([1.0, 0.6, 1.5, 0.7, 1.3])[numbers]
        return replace(out, depth=out.depth * factor[None, :, None, None])

    config = ReconstructConfig(multiview=NETWORK, mesh=False, splats=False)
    scene = reconstruct(whole / "photos", tmp_path / "out", network=oracle(room, spoil=spoil), config=config)
    assert any("contradict each other" in w for w in scene.info["warnings"])


def test_interrupted_runs_do_not_ask_the_network_again(
    room: Room, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ReconstructConfig(multiview=NETWORK, mesh=False, splats=False)
    network, real = oracle(room), depth_stage.solve_depth

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(depth_stage, "solve_depth", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(whole / "photos", tmp_path / "out", network=network, config=config)
    monkeypatch.setattr(depth_stage, "solve_depth", real)
    reconstruct(whole / "photos", tmp_path / "out", network=network, config=config)
    assert len(network.passes) == 1
    with pytest.raises(InputError, match="other options"):
        other = replace(config, multiview=replace(NETWORK, preprocess="keep"))
        reconstruct(whole / "photos", tmp_path / "out", network=network, config=other)


def test_lenses_are_removed_for_the_network_and_kept_in_the_result(room: Room, tmp_path: Path) -> None:
    from relief3d.core.contract import Distortion
    from relief3d.geometry.distortion import distort_image, project_distorted

    lens = Distortion("opencv", (-0.12, 0.03, 0.001, -0.001))
    cameras = [c.replace(distortion=lens) for c in room.cameras]
    views = []
    for name, camera, image in zip(room.names, cameras, room.images):
        views.append(View(name, camera.replace(world_from_cam=None), image=distort_image(image, camera)[0]))
    network = oracle(room)
    # Resampling twice blurs, so the oracle recognises the nearest picture instead of the same one.
    network.recognise = lambda image: int((network.prepared - image).square().flatten(1).mean(-1).argmin())  # type: ignore[method-assign]
    found = solve(room, network, tmp_path, Scene(tuple(views), ordered=True))
    check_cameras(found.scene, room)
    assert all(v.camera.distortion == lens for v in found.scene.views)
    points = found.scene.sparse
    assert points is not None
    mine = points.obs_view == 1
    camera = found.scene.views[1].camera
    pose = camera.cam_from_world
    assert pose is not None and camera.K is not None
    local = points.xyz[points.obs_point[mine]] @ pose[:3, :3].T + pose[:3, 3]
    xy, _ = project_distorted(local, camera.K, lens)
    assert float((xy - points.obs_xy[mine]).norm(dim=-1).median()) < 0.3


def test_bundle_adjustment_repairs_disturbed_cameras_and_says_so(tmp_path: Path) -> None:
    room = make_room([(320, 240)] * 5)
    prepared = prepare(room.images, "keep", side=112).images

    def spoil(out: Prediction, numbers: list[int]) -> Prediction:
        assert out.world_from_cam is not None
        generator = torch.Generator().manual_seed(0)
        turn = 0.02 * torch.randn(1, len(numbers), 3, generator=generator, dtype=torch.float64)
        poses = out.world_from_cam.clone()
        poses[..., :3, :3] = poses[..., :3, :3] @ matrix_from_axis_angle(turn)
        return replace(out, world_from_cam=poses)

    truth = [c.world_from_cam for c in room.cameras]
    errors = {}
    for refine in ("off", "auto"):
        network = Oracle(room, prepared, lambda i: scaling(112 / 320, 84 / 240), spoil=spoil)
        config = MultiviewConfig(side=112, refine=refine)  # type: ignore[arg-type]
        found = predict_scene(room.scene(), config, tmp_path / refine, network=network, device="cpu")
        poses = [v.camera.world_from_cam for v in found.scene.views]
        errors[refine] = evaluate_cameras(poses, truth).auc["5"]
    facts = found.facts["refinement"]
    assert facts["accepted"] and facts["after"]["median_px"] < 0.3 * facts["before"]["median_px"]
    assert errors["auto"] > errors["off"] + 10
    points = found.scene.sparse
    assert points is not None and float(points.error.mean()) < 1, "points of real tracks"
    # Depth follows the cameras: what the points say is what the maps say.
    assert torch.allclose(found.depth.factor, torch.ones(5, dtype=torch.float64), atol=0.1)
    framing = plan_framing([(320, 240)] * 5, found.depth.mode, found.depth.side)
    for i, view in enumerate(found.scene.views):
        assert view.camera.K is not None
        refined = framing.intrinsics(i, view.camera.K)
        assert torch.allclose(found.depth.K[i], refined, rtol=0, atol=1e-6)


def test_loops_are_looked_for_between_chunks(tmp_path: Path) -> None:
    """There and back again: the way back shows the places of the way there."""
    there = make_room([(320, 240)] * 6)
    back = Room(there.mesh, (*there.cameras, *there.cameras[::-1]), (*there.images, *there.images[::-1]))
    prepared = prepare(there.images, "keep", side=112).images
    network = Oracle(there, prepared, lambda i: scaling(112 / 320, 84 / 240))
    config = MultiviewConfig(side=112, chunk=4, overlap=2, refine="off")
    found = predict_scene(back.scene(), config, tmp_path, network=network, device="cpu")
    assert found.facts["loops_checked"] >= found.facts["loops_found"] >= 1
    check_cameras(found.scene, back, 1e-3)
