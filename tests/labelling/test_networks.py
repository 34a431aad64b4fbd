"""Networks of our own as labelers, data sets as input, and structure from motion: what comes out is what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.errors import InputError
from relief3d.core.progress import SilentProgress
from relief3d.core.seeding import torch_generator
from relief3d.geometry.projection import depth_to_points
from relief3d.io.images import write_image
from relief3d.labelling.base import LabelerSpec, Labels
from relief3d.labelling.items import make_plan
from relief3d.labelling.registry import make_labeler
from relief3d.labelling.run import LabelSettings, label_scenes
from relief3d.labelling.sources import DatasetScenes, FolderScenes
from relief3d.labelling.store import LabelStore
from relief3d.labelling.writing import read_labels
from relief3d.models.multiview.interface import InferenceOptions, Known, in_unit_range, wrap
from relief3d.models.multiview.preprocess import prepare
from relief3d.models.multiview.sizes import build_network
from relief3d.pipelines.label.config import LabelConfig
from relief3d.pipelines.label.run import run_label

SIDE = (56, 42)
NAMES = ("vggt", "pi3", "pi3x", "reliev3r")


SEEDS = {"vggt": 1, "pi3": 2, "pi3x": 1, "reliev3r": 1}
"""Random weights with which the lenses happen to be possible."""


def network(name: str, fov_head: bool = True) -> torch.nn.Module:
    torch.manual_seed(SEEDS[name])
    made = build_network(name, "nano", fov_head=fov_head)
    if name == "vggt":
        with torch.no_grad():  # of the field of view, which random weights leave at 0
            made.camera_head.pose_branch.fc2.bias[7:] = 0.3  # type: ignore[union-attr, index]
    return made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        save_file(network(name).state_dict(), str(root / f"{name}.safetensors"))
    save_file(network("reliev3r", fov_head=False).state_dict(), str(root / "blind.safetensors"))
    return root


def pictures(size: tuple[int, int] = SIDE, count: int = 3, K: torch.Tensor | None = None) -> Scene:
    width, height = size
    g = torch_generator(2)
    images = (torch.rand(count, 3, height, width, generator=g) * 255).round() / 255
    return Scene(tuple(View(f"{i}.png", Camera(width, height, K), image=images[i]) for i in range(count)))


def labels_of(file: Path, scene: Scene, **options: object) -> Labels:
    spec = LabelerSpec("multiview", {"model": str(file), "size": "nano", "side": 56, **options})
    return make_labeler(spec).label(scene, seed=0, work=Path())


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_what_the_network_says(name: str, weights: Path) -> None:
    """At the network's own size nothing lies between its prediction and the labels."""
    scene = pictures()
    found = labels_of(weights / f"{name}.safetensors", scene)
    model = wrap(network(name), InferenceOptions("float32"))
    said = model.predict(torch.stack([v.load_image() for v in scene.views])[None])
    assert said.depth is not None and said.K is not None and said.world_from_cam is not None
    assert said.depth_confidence is not None
    trust = in_unit_range(said.depth_confidence[0], name)
    for i, view in enumerate(scene.views):
        label, camera = found.depth[view.name], found.cameras[view.name]
        assert label.kind == ("metric" if name == "pi3x" else "scale")
        sure = (said.depth[0, i] > 0) & (trust[i] > 0)
        assert torch.equal(label.depth.valid, sure) and bool(sure.any())
        assert torch.allclose(label.depth.values[sure], said.depth[0, i][sure], rtol=1e-5)
        assert label.depth.confidence is not None
        assert torch.allclose(label.depth.confidence[sure], trust[i][sure], atol=1e-6)
        assert camera.K is not None and camera.world_from_cam is not None
        assert torch.allclose(camera.K.float(), said.K[0, i], rtol=1e-5)
        assert torch.allclose(camera.world_from_cam.float(), said.world_from_cam[0, i], atol=1e-5)
        R = camera.world_from_cam[:3, :3]
        assert (R @ R.T - torch.eye(3, dtype=R.dtype)).abs().max() < 1e-12
    assert found.facts["network"] == name and 0 < found.facts["confidence"] <= 1


def test_labels_of_larger_pictures_show_the_same_points(weights: Path) -> None:
    """Depth and intrinsics go back to the original size together: a pixel's point in space stays where it is."""
    scene = pictures((112, 84))
    found = labels_of(weights / "vggt.safetensors", scene)
    model = wrap(network("vggt"), InferenceOptions("float32"))
    framed = prepare([v.load_image() for v in scene.views], "vggt-crop", side=56)
    said = model.predict(framed.images[None])
    assert said.cam_points is not None and said.depth is not None
    label, camera = found.depth["1.png"].depth, found.cameras["1.png"]
    assert camera.K is not None and tuple(label.values.shape) == (84, 112)
    points = depth_to_points(label.values, camera.K.float()).clone()
    # Four pixels surround the centre of a network pixel, at equal distances.
    middle = points.reshape(42, 2, 56, 2, 3).mean((1, 3))
    depth = said.depth[0, 1]
    pad = torch.nn.functional.pad(depth[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    flat = torch.stack([pad[y : y + 42, x : x + 56] for y in range(3) for x in range(3)])
    calm = flat.max(0).values / flat.min(0).values < 1.04
    assert int(calm.sum()) > 20
    miss = (middle - said.cam_points[0, 1]).norm(dim=-1) / depth
    assert float(miss[calm].max()) < 0.03


def test_what_the_network_does_not_see_has_no_depth(weights: Path) -> None:
    scene = pictures((56, 112))  # VGGT's own framing cuts top and bottom off
    found = labels_of(weights / "vggt.safetensors", scene).depth["0.png"].depth
    rows = found.valid.any(1)
    assert not rows[:28].any() and rows[28:84].all() and not rows[84:].any()
    assert found.confidence is not None and float(found.confidence[~found.valid].abs().max()) == 0


def test_given_intrinsics_reach_a_network_that_needs_them(weights: Path) -> None:
    blind = weights / "blind.safetensors"
    with pytest.raises(InputError, match="intrinsics"):
        labels_of(blind, pictures())
    K = torch.tensor([[50.0, 0, 28], [0, 50, 21], [0, 0, 1]], dtype=torch.float64)
    scene = pictures(K=K)
    found = labels_of(blind, scene, given=True)
    model = wrap(network("reliev3r", fov_head=False), InferenceOptions("float32"))
    known = Known(K=K.float().expand(1, 3, 3, 3))
    said = model.predict(torch.stack([v.load_image() for v in scene.views])[None], known)
    assert said.world_from_cam is not None
    pose = found.cameras["2.png"].world_from_cam
    assert pose is not None and torch.allclose(pose.float(), said.world_from_cam[0, 2], atol=1e-5)
    kept = found.cameras["2.png"].K
    assert kept is not None and torch.allclose(kept, K, rtol=1e-5)
    guessed = pictures(K=K)
    guessed = guessed.replace(
        views=tuple(v.replace(camera=v.camera.replace(K_source="guess")) for v in guessed.views)
    )
    with pytest.raises(InputError, match="intrinsics"):
        labels_of(blind, guessed, given=True)


def test_a_network_s_identity_is_its_file(weights: Path, tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / "in" / f"{i}.png", pictures().views[i].load_image())
    options = {
        "model": str(weights / "reliev3r.safetensors"),
        "size": "nano",
        "side": 56,
        "window": 2,
        "step": 1,
    }
    spec = LabelerSpec("multiview", options)
    summary = label_scenes(FolderScenes(tmp_path / "in"), tmp_path / "out", spec, LabelSettings(workers=0))
    assert summary.complete and summary.items == 2
    store = LabelStore(tmp_path / "out")
    ((_, plan),) = store.plans().items()
    assert plan.recipe.options["model"] == "reliev3r.safetensors" and plan.recipe.weights is not None
    item, recipe, labels = read_labels(store.item_folder(plan.items[1].id), verify=True)
    assert item.views == ("1.png", "2.png") and recipe == plan.recipe
    assert set(labels.depth) == set(labels.cameras) == {"1.png", "2.png"}
    moved = tmp_path / "elsewhere" / "reliev3r.safetensors"
    moved.parent.mkdir()
    moved.write_bytes((weights / "reliev3r.safetensors").read_bytes())
    again = make_plan(
        FolderScenes(tmp_path / "in"),
        make_labeler(LabelerSpec("multiview", {**options, "model": str(moved)})),
    )
    assert [i.id for i in again.items] == [i.id for i in plan.items]
    moved.write_bytes((weights / "vggt.safetensors").read_bytes())
    other = make_plan(
        FolderScenes(tmp_path / "in"),
        make_labeler(LabelerSpec("multiview", {**options, "model": str(moved)})),
    )
    assert not {i.id for i in other.items} & {i.id for i in plan.items}
    for model, text in (
        ("", "no network is named"),
        ("nowhere.pt", "no such file"),
        ("yyfz233/Pi3", "not on this"),
    ):
        with pytest.raises(InputError, match=text):
            make_labeler(LabelerSpec("multiview", {"model": model})).weights_digest()


def tartanair(root: Path, views: int = 3) -> None:
    folder = root / "office" / "Hard" / "P001"
    g = torch_generator(1)
    (folder / "depth_left").mkdir(parents=True)
    for i in range(views):
        write_image(folder / "image_left" / f"{i:06d}_left.png", torch.rand(3, 24, 32, generator=g))
        depth = 2 + torch.rand(24, 32, generator=g).numpy().astype(np.float32)
        np.save(folder / "depth_left" / f"{i:06d}_left_depth.npy", depth)
    (folder / "pose_left.txt").write_text("0 0 0 0 0 0 1\n" * views)


def test_a_data_set_s_reader_feeds_a_labeler(tmp_path: Path) -> None:
    tartanair(tmp_path / "in")
    text, complete = run_label(
        tmp_path / "in", tmp_path / "out", "procedural-relative", ["shape-sigma=0"],
        LabelConfig(reader="tartanair", split="hard", max_frames=2, workers=0), SilentProgress(),
    )  # fmt: skip
    assert complete and "2 of 2" in text
    store = LabelStore(tmp_path / "out")
    ((_, plan),) = store.plans().items()
    assert (
        plan.source["reader"] == "tartanair"
        and str(tmp_path) not in store.manifest_path(plan.recipe).read_text()
    )
    assert {i.scene for i in plan.items} == {"office/Hard/P001"}
    truth = DatasetScenes("tartanair", tmp_path / "in").open("office/Hard/P001")
    assert [i.views[0] for i in plan.items] == [truth.views[0].name, truth.views[2].name]
    _, _, labels = read_labels(store.item_folder(plan.items[1].id), verify=True)
    ratio = labels.depth[truth.views[2].name].depth.values / truth.views[2].load_depth().values
    assert float(ratio.std() / ratio.mean()) < 1e-5
    for config, message in (
        (LabelConfig(split="hard"), "--reader"),
        (LabelConfig(reader="tartanair", ordered=True), "--ordered"),
        (LabelConfig(reader="tartanare"), "tartanair"),
        (LabelConfig(max_frames=0), "at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            run_label(tmp_path / "in", tmp_path / "no", "procedural-relative", [], config, SilentProgress())


def test_the_order_of_pictures_is_part_of_the_identity_where_it_matters(tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / f"{i}.png", pictures().views[i].load_image())
    for name, same in (("sfm-cameras", False), ("correspondences", False), ("tracks-lk", True)):
        plans = [
            make_plan(FolderScenes(tmp_path, ordered=o), make_labeler(LabelerSpec(name)))
            for o in (True, False)
        ]
        assert (plans[0].items[0].id == plans[1].items[0].id) is same
