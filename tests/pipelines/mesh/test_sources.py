"""Depth sources, keyframes, matches and the groups that the volumetric network gets, each against the truth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from corpora.walk import COUNT, SIZE, Walk, write_walk
from relief3d.core.contract import Depth, Mesh, Prediction, Scene
from relief3d.core.errors import InputError, RunError
from relief3d.core.progress import SilentProgress
from relief3d.fusion.frames import DepthFrame
from relief3d.io.cameras_json import read_cameras_json
from relief3d.methods.vfm_recon.config import AlignConfig, SubmapConfig
from relief3d.methods.vfm_recon.submaps import Submap
from relief3d.models.multiview.interface import Known
from relief3d.models.volume.config import volume_config
from relief3d.models.volume.network import VolumeNetwork
from relief3d.models.volume.opening import file_metadata
from relief3d.models.volume.reconstruct import FrameGroup, VolumeReport
from relief3d.pipelines.mesh import refine
from relief3d.pipelines.mesh.config import MeshConfig
from relief3d.pipelines.mesh.depth_sources import ModelSource, SensorSource, StereoSource
from relief3d.pipelines.mesh.keyframes import choose_keyframes
from relief3d.pipelines.mesh.matching import SiftMatches, match_descriptors
from relief3d.pipelines.mesh.pictures import KeyframeViews
from relief3d.pipelines.mesh.points import SubmapPoints, measured_depth
from relief3d.pipelines.mesh.run import make_mesh
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.reconstruct.config import ReconstructConfig


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    return write_walk(tmp_path_factory.mktemp("walk"))


@pytest.fixture(scope="module")
def scene(walk: Walk) -> Scene:
    return read_cameras_json(walk.folder / "cameras.json")


def points_of(views: KeyframeViews, folder: Path) -> SubmapPoints:
    config = AlignConfig(submaps=SubmapConfig(4, 2))
    return SubmapPoints(views.cameras, SiftMatches(views, folder), config, {})


def test_triangulated_points_lie_on_the_walls(walk: Walk, scene: Scene, tmp_path: Path) -> None:
    found = points_of(KeyframeViews(scene, range(COUNT), SIZE[0]), tmp_path)(Submap(0, (2, 3, 4, 5)))
    assert set(found) == {2, 3, 4, 5}
    for k, known in found.items():
        x, y = known.xy.floor().long().unbind(-1)
        ratio = known.z / walk.depths[k][y, x]
        assert len(ratio) > 50 and abs(float(ratio.median()) - 1) < 0.01
    assert measured_depth(scene, SIZE[0], tmp_path) == pytest.approx(
        float(torch.stack(walk.depths).median()), rel=0.15
    )


def test_stereo_depth_is_in_the_unit_of_the_poses(walk: Walk, scene: Scene, tmp_path: Path) -> None:
    views = KeyframeViews(scene, range(COUNT), SIZE[0])
    submap = Submap(0, (3, 4, 5, 6))
    found = StereoSource(views, points_of(views, tmp_path), torch.device("cpu"))(submap)
    truth = torch.stack([walk.depths[k] for k in submap.frames])
    known = found.depth > 0
    assert float(known.float().mean()) > 0.4
    assert float((found.depth / truth - 1).abs()[known].median()) < 0.01


def test_sensor_depth_is_thinned_with_the_picture(walk: Walk, scene: Scene) -> None:
    views = [
        v.replace(depth=Depth.from_values(d)) for v, d in zip(scene.views[:2], walk.depths, strict=False)
    ]
    small = KeyframeViews(Scene(tuple(views), metric=True), (0, 1), 80)
    assert (small.cameras[0].width, small.cameras[0].height) == (80, 60)
    found = SensorSource(small)(Submap(0, (0, 1)))
    wanted = torch.stack(walk.depths[:2]).unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    assert float((found.depth / wanted - 1).abs().max()) < 0.05


class Slope:
    """A network that says how far right a pixel of its own picture lies."""

    name, patch, prepare_mode, takes = "slope", 14, "vggt-crop", frozenset[str]()

    def predict(self, images: Tensor, known: Known | None = None) -> Prediction:
        b, n, _, h, w = images.shape
        depth = (torch.arange(w) + 0.5).expand(b, n, h, w) / w
        K = torch.tensor([[w, 0, w / 2], [0, w, h / 2], [0, 0, 1.0]]).expand(b, n, 3, 3)
        pose = torch.eye(4).expand(b, n, 4, 4)
        return Prediction(depth=depth, depth_confidence=torch.ones_like(depth), K=K, world_from_cam=pose)


@pytest.mark.parametrize("mode", ["vggt-crop", "vggt-pad", "keep"])
def test_network_depth_covers_the_picture_whatever_its_framing(scene: Scene, mode: str) -> None:
    views = KeyframeViews(scene, (0, 1), SIZE[0])
    options = MultiviewConfig(model="vggt", preprocess=mode, side=56)  # type: ignore[arg-type]
    found = ModelSource(views, Slope(), options, torch.device("cpu"))(Submap(0, (0, 1)))  # type: ignore[arg-type]
    h, w = found.depth.shape[-2:]
    assert abs(w / h - SIZE[0] / SIZE[1]) < 0.15
    middle = found.depth[0, h // 2]
    # Depth grows linearly from the left to the right border of the picture.
    wanted = middle[0] + (middle[-1] - middle[0]) * torch.linspace(0, 1, w)
    assert float((middle - wanted).abs().max()) < 0.04 and float(middle[-1] - middle[0]) > 0.9
    assert found.K is not None
    assert float(found.K[0, 0, 2]) == pytest.approx(w / 2, abs=0.6)


def test_photos_out_of_order_are_walked_through(scene: Scene) -> None:
    order = [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    mixed = scene.replace(views=tuple(scene.views[k] for k in order), ordered=False)
    chosen = choose_keyframes(mixed)
    assert [order[k] for k in chosen.frames] == list(range(COUNT))
    spaced = choose_keyframes(scene.replace(ordered=True), distance=0.35).frames
    assert len(spaced) in (5, 4) and spaced[0] == 0


def test_descriptors_match_only_each_other() -> None:
    a = torch.tensor([[0, 0], [10, 0], [50, 50], [52, 50]], dtype=torch.uint8)
    b = torch.tensor([[11, 0], [0, 1], [51, 50]], dtype=torch.uint8)
    # The last of b is as near to both of the last of a, so it matches none.
    assert match_descriptors(a, b).tolist() == [[0, 1], [1, 0]]


def test_every_keyframe_counts_once_in_the_volume(
    walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = VolumeNetwork(volume_config("nano", "finerecon"))
    weights = tmp_path / "volume.safetensors"
    save_file(network.state_dict(), str(weights), metadata=file_metadata(network))
    kept: list[Tensor] = []
    errors: list[float] = []

    def fake(
        net: VolumeNetwork, groups: list[FrameGroup], grid: object, options: object, **_: object
    ) -> object:
        for group in groups:
            assert group.depth is not None and group.keep is not None
            for k in range(len(group.images)):
                number = next(
                    i
                    for i, c in enumerate(walk.cameras)
                    if torch.allclose(c.cam_from_world, group.cam_from_world[k])
                )
                if bool(group.keep[k]):
                    kept.append(torch.tensor(number))
                    both = group.depth[k] > 0
                    errors.append(float((group.depth[k] / walk.depths[number] - 1).abs()[both].median()))
        triangle = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
        return triangle, VolumeReport(len(kept), 1, 1, 0, 1, 1, 1, 1, 1.0, {})

    monkeypatch.setattr(refine, "reconstruct", fake)
    options = MeshConfig(depth_files=walk.maps, submap=4, overlap=2, texture="vertex", width=160)
    options = dataclasses.replace(options, quality="refine", weights=weights, voxel_size=0.06)
    done = make_mesh(walk.folder, tmp_path / "out", options)
    assert sorted(int(k) for k in kept) == list(range(COUNT))
    assert max(errors) < 0.02
    assert len(done.mesh.faces) == 1
    assert done.summary["details"]["mesh"]["network"]["weights"] == "volume.safetensors"


def test_reconstruct_gives_the_network_what_it_fused(
    walk: Walk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = VolumeNetwork(volume_config("nano", "finerecon"))
    weights = tmp_path / "volume.safetensors"
    save_file(network.state_dict(), str(weights), metadata=file_metadata(network))
    with pytest.raises(InputError, match="--mesh-weights"):
        ReconstructConfig(mesh_quality="neural").check()
    ReconstructConfig(mesh_quality="neural", mesh_weights=weights).check()
    seen: list[FrameGroup] = []

    def fake(
        net: VolumeNetwork, groups: list[FrameGroup], grid: object, options: object, **_: object
    ) -> object:
        seen.extend(groups)
        return Mesh(torch.eye(3), torch.tensor([[0, 1, 2]])), VolumeReport(1, 1, 1, 0, 1, 1, 1, 1, 1.0, {})

    monkeypatch.setattr(refine, "reconstruct", fake)
    frames = [
        DepthFrame(str(k), Depth.from_values(d), c, torch.full((3, SIZE[1], SIZE[0]), k / COUNT))
        for k, (c, d) in enumerate(zip(walk.cameras, walk.depths, strict=True))
    ]
    # One triangle far in front of the first camera stands for the fused surface.
    corner = torch.tensor([[-9.0, -9.0, 3.0], [9.0, -9.0, 3.0], [0.0, 18.0, 3.0]])
    fused = Mesh(corner, torch.tensor([[0, 2, 1]]), torch.full((3, 3), 7, dtype=torch.uint8))
    run = refine.VolumeRun(weights, "cpu", 2**30, tmp_path / "work")
    mesh, _ = refine.neural_surface(frames, fused, run, metric=True, progress=SilentProgress())
    assert [len(g.images) for g in seen] == [8, 2] and all(bool(g.keep.all()) for g in seen)
    assert [round(float(g.images[-1].mean()) * COUNT) for g in seen] == [7, 9]
    assert seen[0].depth is not None and float(seen[0].depth[0].max()) > 2
    assert mesh.rgb is not None and int(mesh.rgb[0, 0]) == 7
    with pytest.raises(RunError, match="metre"):
        refine.neural_surface(frames, fused, run, metric=False, progress=SilentProgress())
