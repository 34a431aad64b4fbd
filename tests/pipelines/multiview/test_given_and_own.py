"""What reaches a network, units that disagree, networks that are passed in, and runs that are interrupted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from corpora.multiview_oracle import Oracle, Room, make_room, scaling
from relief3d.core.contract import Depth, Prediction, Scene
from relief3d.core.errors import InputError
from relief3d.models.multiview.interface import InferenceOptions, Known, Pi3Model, wrap
from relief3d.models.multiview.preprocess import prepare
from relief3d.nn.attention import attend_fully
from relief3d.pipelines.multiview import solve as solving
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.maps import Judge, make_map
from relief3d.pipelines.multiview.networks import build_network
from relief3d.pipelines.multiview.pictures import plan_framing
from relief3d.pipelines.multiview.solve import NetworkScene, predict_scene
from relief3d.pipelines.reconstruct import ReconstructConfig, reconstruct
from relief3d.pipelines.reconstruct import cameras as camera_stage

SIZE, SIDE, VIEWS = (84, 56), 56, 4
NETWORK = MultiviewConfig(side=SIDE, refine="off", loops=False)


@dataclass
class Recorder(Oracle):
    """An oracle that keeps what it is told."""

    told: list[Known | None] = field(default_factory=list)

    def predict(self, images: torch.Tensor, known: Known | None = None) -> Prediction:
        self.told.append(known)
        return super().predict(images, known)


@pytest.fixture(scope="module")
def room() -> Room:
    return make_room([SIZE] * VIEWS)


def oracle(room: Room, **changes: object) -> Recorder:
    prepared = prepare(room.images, "keep", side=SIDE).images
    return Recorder(room, prepared, lambda i: scaling(2 / 3, 2 / 3), **changes)  # type: ignore[arg-type]


def solve(room: Room, network: Oracle, work: Path, scene: Scene, **changes: object) -> NetworkScene:
    config = replace(NETWORK, **changes)  # type: ignore[arg-type]
    return predict_scene(scene, config, work, network=network, device="cpu")


def posed(room: Room, *, metric: bool, scale: float = 1.0, turned: bool = False) -> Scene:
    views = []
    for view, camera in zip(room.scene().views, room.cameras):
        pose = camera.world_from_cam.clone()  # type: ignore[union-attr]
        pose[:3, 3] *= scale
        if turned:
            quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
            pose[:3] = quarter @ pose[:3]
        views.append(view.replace(camera=camera.replace(world_from_cam=pose)))
    return room.scene().replace(views=tuple(views), metric=metric)


def with_depth(room: Room, scene: Scene) -> Scene:
    views = [
        v.replace(depth=Depth.from_values(room.depth(c), metric=True))
        for v, c in zip(scene.views, room.cameras)
    ]
    return scene.replace(views=tuple(views))


def test_the_network_gets_what_is_known(room: Room, tmp_path: Path) -> None:
    takes = frozenset({"K", "world_from_cam", "depth"})
    network = oracle(room, takes=takes)
    scene = with_depth(room, posed(room, metric=True))
    solve(room, network, tmp_path / "a", scene)
    known = network.told[0]
    assert known is not None and known.K is not None and known.world_from_cam is not None
    assert known.depth is not None and known.metric
    framing = plan_framing([SIZE] * VIEWS, "keep", SIDE)
    for i, camera in enumerate(room.cameras):
        assert torch.allclose(known.K[0, i].double(), framing.intrinsics(i, camera.K), atol=1e-4)  # type: ignore[arg-type]
    first, second = room.cameras[0].world_from_cam, room.cameras[1].world_from_cam
    relative = torch.linalg.inv(known.world_from_cam[0, 0]) @ known.world_from_cam[0, 1]
    assert torch.allclose(relative.double(), torch.linalg.inv(first) @ second, atol=1e-5)  # type: ignore[arg-type, operator]
    assert float((known.depth > 0).float().mean()) > 0.9
    nothing = oracle(room, takes=frozenset())
    solve(room, nothing, tmp_path / "b", scene)
    assert nothing.told == [None]


def test_unscaled_poses_and_metric_depth_give_metres(room: Room, tmp_path: Path) -> None:
    network = oracle(room, takes=frozenset({"K", "world_from_cam", "depth"}))
    found = solve(room, network, tmp_path, with_depth(room, posed(room, metric=False, scale=2.7)))
    assert found.scene.metric and abs(found.facts["metric_scale"] * 2.7 - 1) < 0.01
    assert any("scaled to metres" in w for w in found.facts["warnings"])
    for view, true in zip(found.scene.views, room.cameras):
        offset = (view.camera.world_from_cam - true.world_from_cam).abs().max()  # type: ignore[operator]
        assert float(offset) < 0.02
    values, _ = found.depth.read(0)
    true_depth = plan_framing([SIZE] * VIEWS, "keep", SIDE).to_network(0, room.depth(room.cameras[0]))
    assert abs(float((values / true_depth)[true_depth > 0].median()) - 1) < 0.02
    known = network.told[0]
    assert known is not None and not known.metric and known.depth is None, "two units are not mixed"


def test_unscaled_poses_alone_stay_without_unit(room: Room, tmp_path: Path) -> None:
    found = solve(room, oracle(room), tmp_path, posed(room, metric=False, scale=2.7))
    assert not found.scene.metric and "metric_scale" not in found.facts
    for view, true in zip(found.scene.views, posed(room, metric=False, scale=2.7).views):
        assert torch.equal(view.camera.world_from_cam, true.camera.world_from_cam)  # type: ignore[arg-type]
        assert torch.allclose(view.camera.K, true.camera.K, rtol=0, atol=1e-9)  # type: ignore[arg-type]


def test_skew_is_not_dropped_silently(room: Room, tmp_path: Path) -> None:
    scene = posed(room, metric=True)
    K = scene.views[0].camera.K.clone()  # type: ignore[union-attr]
    K[0, 1] = 3.0
    first = scene.views[0].replace(camera=scene.views[0].camera.replace(K=K))
    found = solve(room, oracle(room), tmp_path, scene.replace(views=(first, *scene.views[1:])))
    assert any("skew" in w for w in found.facts["warnings"])


def test_given_poses_are_not_turned_upright(room: Room, tmp_path: Path) -> None:
    scene = posed(room, metric=True, turned=True)
    config = ReconstructConfig(multiview=NETWORK)
    solved, _ = camera_stage.solve_cameras(scene, config, tmp_path, solving.SilentProgress(), oracle(room))
    for view, true in zip(solved.views, scene.views):
        assert torch.equal(view.camera.world_from_cam, true.camera.world_from_cam)  # type: ignore[arg-type]


def test_masks_hold_at_the_size_of_the_picture(room: Room, tmp_path: Path) -> None:
    # Finer than the network's pixels, so that only the mask itself can decide.
    mask = torch.rand(SIZE[::-1], generator=torch.Generator().manual_seed(0)) > 0.3
    scene = room.scene()
    masked = scene.replace(views=tuple(v.replace(mask=mask) for v in scene.views))
    found = solve(room, oracle(room), tmp_path, masked)
    judge = Judge(torch.stack([v.camera.world_from_cam for v in found.scene.views]), found.depth)  # type: ignore[misc]
    made = make_map(found.scene.views[1], 1, judge, metric=False).depth
    assert bool(made.valid.any()) and not bool((made.valid & ~mask).any())


def own_network(seed: int = 0) -> Pi3Model:
    torch.manual_seed(seed)
    network = wrap(build_network("pi3", "nano"), InferenceOptions("float32", chunk=3))
    assert isinstance(network, Pi3Model)
    return network


@pytest.fixture(scope="module")
def photos(room: Room, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("given")
    room.write(root)
    return root / "photos"


def test_a_network_that_is_passed_in_runs_as_it_is(room: Room, tmp_path: Path) -> None:
    network, seen = own_network(), []
    pinhole = torch.tensor([[50.0, 0, 28], [0, 50, 21], [0, 0, 1]])

    class Mine(torch.nn.Module):
        """Has a network of its own kind inside."""

        name, patch, prepare_mode, takes = "mine", 14, "keep", frozenset[str]()
        network = torch.nn.Linear(2, 2)

        def predict(self, images: torch.Tensor, known: Known | None = None) -> Prediction:
            seen.append(network.options)
            out = network.predict(images, known)
            assert out.depth is not None
            return replace(out, depth=out.depth.abs() + 1, K=pinhole.expand(1, images.shape[1], 3, 3))

    predict_scene(room.scene(), NETWORK, tmp_path, network=Mine(), device="cpu")  # type: ignore[arg-type]
    assert seen[0].chunk == 3 and seen[0].precision == "float32"
    for change in ({"attention": "merged"}, {"precision": "bfloat16"}):
        with pytest.raises(InputError, match="runs as it is"):
            solve(room, network, tmp_path, room.scene(), **change)  # type: ignore[arg-type]


def test_the_attention_that_is_asked_for_is_used(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, real = [], Pi3Model.predict

    def recorded(self: Pi3Model, images: torch.Tensor, known: Known | None = None) -> Prediction:
        used.append(self.options.attend)
        return real(self, images, known)

    monkeypatch.setattr(Pi3Model, "predict", recorded)
    named = MultiviewConfig(model="pi3", model_size="nano", untrained=True, side=28)
    for attention in ("exact", "merged", "sparse"):
        predict_scene(room.scene(), replace(named, attention=attention), tmp_path / attention, device="cpu")
    assert used[0] is attend_fully and attend_fully not in used[1:] and type(used[1]) is not type(used[2])


def test_depth_of_a_network_that_is_passed_in(room: Room, photos: Path, tmp_path: Path) -> None:
    config = ReconstructConfig(multiview=NETWORK, depth_source="model", mesh=False, splats=False)
    scene = reconstruct(photos, tmp_path / "out", network=oracle(room), config=config)
    assert {f["source"] for f in scene.info["details"]["depth"]["views"].values()} == {"network"}
    with pytest.raises(InputError, match="--depth-source model needs a network"):
        reconstruct(photos, tmp_path / "other", depth_source="model")


def test_other_weights_are_another_result(room: Room, photos: Path, tmp_path: Path) -> None:
    class Weighted(Recorder):
        """An oracle with weights, which change nothing but the fingerprint."""

        network = torch.nn.Linear(1, 1)

    prepared = prepare(room.images, "keep", side=SIDE).images
    network = Weighted(room, prepared, lambda i: scaling(2 / 3, 2 / 3))
    config = ReconstructConfig(multiview=NETWORK, mesh=False, splats=False)
    reconstruct(photos, tmp_path / "out", network=network, config=config)
    reconstruct(photos, tmp_path / "out", network=network, config=config)
    assert len(network.told) == 1
    with torch.no_grad():
        network.network.weight += 1
    with pytest.raises(InputError, match="other options"):
        reconstruct(photos, tmp_path / "out", network=network, config=config)


def test_chunks_are_kept_until_the_stage_is_complete(
    room: Room, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, real, memory = oracle(room), solving.sparse_points, solving.plan_capacity
    views = {"chunk": 3}

    def planned(*args: object, **options: object) -> object:
        # As if memory held so many pictures: first three at a time, then all.
        return replace(memory(*args, **options), at_once=views["chunk"], overlap=2, passes=views["chunk"] % 4)  # type: ignore[arg-type]

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(solving, "plan_capacity", planned)
    monkeypatch.setattr(solving, "sparse_points", interrupted)
    config = ReconstructConfig(multiview=NETWORK, mesh=False, splats=False)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(photos, tmp_path / "out", network=network, config=config)
    asked = len(network.told)
    assert asked == 2
    monkeypatch.setattr(solving, "sparse_points", real)
    views["chunk"] = 5
    scene = reconstruct(photos, tmp_path / "out", network=network, config=config)
    assert len(network.told) == asked and scene.info["details"]["cameras"]["chunk"] == 3
    assert not list((tmp_path / "out").rglob("chunks*"))


def test_random_weights_write_given_depth_with_a_note(photos: Path, tmp_path: Path) -> None:
    depth = tmp_path / "depth"
    depth.mkdir()
    for file in (photos.parent / "truth").glob("view_*.npz"):
        (depth / file.name).write_bytes(file.read_bytes())
    scene = reconstruct(
        photos, tmp_path / "out", model="pi3", model_size="nano", untrained=True, side=28, depth=depth, mesh=False,
        splats=False,
    )  # fmt: skip
    warnings = scene.info["warnings"]
    assert warnings[0].startswith("UNTRAINED") and any("given depth is in metres" in w for w in warnings)
    assert {f["source"] for f in scene.info["details"]["depth"]["views"].values()} == {"given"}
    assert "<title>UNTRAINED" in (tmp_path / "out" / "report.html").read_text()
