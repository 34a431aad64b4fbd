"""The labelers, their files, and what they say about what they know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from relief3d.core.contract import Camera, Depth, Scene, SparsePoints, View
from relief3d.core.errors import InputError, MissingExtraError
from relief3d.core.seeding import torch_generator
from relief3d.io.depth import write_depth
from relief3d.io.images import write_image
from relief3d.labelling.base import DepthLabel, Grouping, LabelerSpec, Labels, MaskLabel, TrackLabel
from relief3d.labelling.items import Recipe, WorkItem
from relief3d.labelling.labelers.moge import MogeFolder, MogeOptions
from relief3d.labelling.labelers.procedural import CorruptionOptions, ProceduralRelative, corrupt_depth
from relief3d.labelling.labelers.sam_masks import SamOptions, select_masks
from relief3d.labelling.registry import LABELERS, make_labeler, parse_options
from relief3d.labelling.writing import read_labels, write_labels

WIDTH, HEIGHT = 32, 24


def truth(height: int = HEIGHT, width: int = WIDTH) -> Depth:
    values = 2.0 + torch.rand(height, width, generator=torch_generator(5))
    valid = torch.ones(height, width, dtype=torch.bool)
    valid[:3] = False
    return Depth(values * valid, valid)


def one_view(depth: Depth | None = None, name: str = "a/b.png") -> Scene:
    image = torch.rand(3, HEIGHT, WIDTH, generator=torch_generator(1))
    return Scene((View(name, Camera(WIDTH, HEIGHT), image=image, depth=depth),))


def test_groupings() -> None:
    assert Grouping("view").groups(3) == [(0,), (1,), (2,)]
    assert Grouping("scene").groups(3) == [(0, 1, 2)]
    assert Grouping("window", 3, 2).groups(6) == [(0, 1, 2), (2, 3, 4), (3, 4, 5)]
    assert Grouping("window", 3, 2).groups(2) == [(0, 1)]
    assert Grouping("window", 3, 3).groups(3) == [(0, 1, 2)]
    covered = {i for g in Grouping("window", 8, 7).groups(30) for i in g}
    assert covered == set(range(30))
    with pytest.raises(InputError, match="windows"):
        Grouping("window", 3, 4)


def test_the_corruption_is_the_documented_formula() -> None:
    options = CorruptionOptions(0.5, 0.2, 0.06, 4, 0.03)
    depth = truth()
    found, residual = corrupt_depth(depth, options, torch_generator(9))
    g = torch_generator(9)
    a, b = torch.randn(2, generator=g)
    grid = torch.randn(4, 4, generator=g)
    e = torch.randn(HEIGHT, WIDTH, generator=g)
    s = F.interpolate(grid[None, None], (HEIGHT, WIDTH), mode="bicubic", align_corners=True)[0, 0]
    m = depth.values[depth.valid].median()
    expected = depth.values * torch.exp(0.5 * a + 0.06 * s + 0.03 * e) + 0.2 * b * m
    assert torch.allclose(found.values[found.valid], expected[found.valid], rtol=1e-5)
    assert torch.allclose(residual[found.valid], (0.06 * s + 0.03 * e)[found.valid], atol=1e-6)
    assert not found.metric and not found.valid[:3].any()
    calm, _ = corrupt_depth(depth, CorruptionOptions(0, 0, 0), torch_generator(9))
    assert torch.equal(calm.values, depth.values)


def test_the_corruption_has_the_stated_spread() -> None:
    scales = []
    for k in range(300):
        depth = Depth(torch.full((8, 8), 2.0), torch.ones(8, 8, dtype=torch.bool))
        found, _ = corrupt_depth(depth, CorruptionOptions(shape_sigma=0.0), torch_generator(k))
        scales.append(float((found.values[0, 0] / 2.0).log()))
    spread = torch.tensor(scales)
    assert abs(float(spread.std()) - 0.5) < 0.06 and abs(float(spread.mean())) < 0.09


def test_the_corruption_belongs_to_the_view_not_to_its_item(tmp_path: Path) -> None:
    labeler = ProceduralRelative(CorruptionOptions())
    a, b = one_view(truth(), "a").views[0], one_view(truth(), "b").views[0]
    both = labeler.label(Scene((a, b)), seed=3, work=tmp_path).depth
    alone = labeler.label(Scene((b,)), seed=3, work=tmp_path).depth
    assert torch.equal(both["b"].depth.values, alone["b"].depth.values)
    assert not torch.equal(both["a"].depth.values, both["b"].depth.values)
    with pytest.raises(InputError, match="no true depth"):
        labeler.label(one_view(), seed=3, work=tmp_path)


def test_all_kinds_of_labels_come_back_from_their_files(tmp_path: Path) -> None:
    g = torch_generator(0)
    item = WorkItem("ab" * 16, "scene", ("a/b.png", "c.png"), ("x", "y"))
    recipe = Recipe("toy", 1, {"k": 1.5}, None, 0)
    depth = truth()
    confident = Depth(depth.values, depth.valid, False, torch.rand(HEIGHT, WIDTH, generator=g))
    K = torch.tensor([[30.0, 0, 16.25], [0, 31.0, 11.5], [0, 0, 1]])
    pose = torch.eye(4)
    pose[0, 3] = 2.0
    visible = torch.tensor([[True, True], [True, False]])
    tracks = TrackLabel(torch.rand(2, 2, 2, generator=g) * 20, visible, visible.float() * 0.5)
    masks = torch.rand(3, HEIGHT, WIDTH, generator=g) > 0.5
    sparse = SparsePoints(
        torch.rand(2, 3, generator=g, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.float64), torch.tensor([0, 1]), torch.tensor([0, 1]),
        torch.rand(2, 2, generator=g, dtype=torch.float64),
    )  # fmt: skip
    labels = Labels(
        {"a/b.png": DepthLabel(confident, "affine-inverse")}, {"c.png": Camera(WIDTH, HEIGHT, K, pose)}, tracks,
        {"c.png": MaskLabel(masks, torch.tensor([0.9, 0.8, 0.7]))}, sparse, {"n": 3},
    )  # fmt: skip
    write_labels(tmp_path, item, recipe, labels)
    same_item, same_recipe, back = read_labels(tmp_path, verify=True)
    assert same_item == item and same_recipe == recipe and back.facts == {"n": 3}
    found = back.depth["a/b.png"]
    assert found.kind == "affine-inverse" and torch.equal(found.depth.valid, depth.valid)
    assert torch.allclose(found.depth.values, depth.values)
    assert found.depth.confidence is not None and confident.confidence is not None
    assert torch.allclose(found.depth.confidence, confident.confidence)
    camera = back.cameras["c.png"]
    assert camera.K is not None and torch.allclose(camera.K.float(), K)
    assert camera.world_from_cam is not None and torch.allclose(camera.world_from_cam.float(), pose)
    assert back.tracks is not None and torch.equal(back.tracks.visible, visible)
    assert torch.equal(back.tracks.xy[visible], tracks.xy[visible])
    assert torch.equal(back.masks["c.png"].masks, masks)
    assert back.sparse is not None and torch.equal(back.sparse.xyz, sparse.xyz)
    (tmp_path / "tracks.safetensors").write_bytes(b"0" * 64)
    with pytest.raises(InputError, match="differs from what was written"):
        read_labels(tmp_path, verify=True)


def test_labels_of_strange_views_are_refused(tmp_path: Path) -> None:
    item = WorkItem("ab" * 16, "scene", ("a",), ("x",))
    labels = Labels({"b": DepthLabel(truth())})
    with pytest.raises(InputError, match="other views"):
        write_labels(tmp_path, item, Recipe("toy", 1, {}, None, 0), labels)


def test_moge_output_is_read_with_its_field_of_view(tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR", reason="reading EXR needs the extra 'exr'")
    folder = tmp_path / "moge" / "a" / "b"
    depth = truth()
    write_depth(folder / "depth.exr", depth)
    (folder / "fov.json").write_text(json.dumps({"fov_x": 60.0, "fov_y": 46.8}))
    mask = torch.ones(HEIGHT, WIDTH)
    mask[:, :4] = 0
    write_image(folder / "mask.png", mask)
    labels = MogeFolder(MogeOptions(tmp_path / "moge")).label(one_view(), seed=0, work=tmp_path)
    found = labels.depth["a/b.png"]
    assert found.kind == "metric" and not found.depth.valid[:, :4].any()
    keep = depth.valid & (mask > 0)
    assert torch.equal(found.depth.valid, keep)
    assert torch.allclose(found.depth.values[keep], depth.values[keep])
    K = labels.cameras["a/b.png"].K
    assert K is not None and float(K[0, 0]) == pytest.approx(16 / 3**-0.5, rel=1e-6) and float(K[0, 2]) == 16
    with pytest.raises(InputError, match="no folder for"):
        MogeFolder(MogeOptions(tmp_path / "moge")).label(one_view(name="c.png"), seed=0, work=tmp_path)


def test_segments_are_stable_large_and_distinct() -> None:
    logits = torch.full((5, 20, 20), -9.0)
    logits[0, :10, :10] = 9.0
    logits[1, :10, :9] = 9.0  # nearly the first, but better
    logits[2, 12:, 12:] = 0.5  # not stable
    logits[3, 15, 15] = 9.0  # too small
    logits[4, 12:, :8] = 9.0
    scores = torch.tensor([0.90, 0.95, 0.99, 0.99, 0.88])
    found = select_masks(logits, scores, SamOptions(min_area=0.01))
    assert found.scores.tolist() == pytest.approx([0.95, 0.88])
    assert int(found.masks[0].sum()) == 90 and int(found.masks[1].sum()) == 64


def test_every_labeler_on_the_list_can_be_built_and_names_itself() -> None:
    for name in LABELERS:
        labeler = make_labeler(LabelerSpec(name))
        assert labeler.name == name and labeler.version >= 1


def test_missing_packages_and_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="cotracker"):
        make_labeler(LabelerSpec("tracks-cotracker")).weights_digest()
    with pytest.raises(InputError, match="no such folder"):
        make_labeler(LabelerSpec("masks-sam", {"model": str(tmp_path / "none")})).weights_digest()
    assert parse_options("masks-sam", ["grid=4", "min-score=0.5"]) == {"grid": 4, "min_score": 0.5}


def _saved(tmp_path: Path, kind: str) -> str:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra 'hub')")
    torch.manual_seed(0)
    if kind == "sam":
        config = transformers.SamConfig(
            vision_config={
                "hidden_size": 16, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 8,
                "mlp_dim": 16,
            },
            prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
            mask_decoder_config={
                "hidden_size": 16, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "iou_head_hidden_dim": 16,
            },
        )  # fmt: skip
        network = transformers.SamModel(config)
    else:
        backbone = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2,
            out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
        )  # fmt: skip
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8, head_hidden_size=4, depth_estimation_type=kind, max_depth=20,
        )  # fmt: skip
        network = transformers.DepthAnythingForDepthEstimation(config)
    network.save_pretrained(tmp_path / kind)
    if kind != "sam":
        recipe = {"size": {"height": 28, "width": 28}, "ensure_multiple_of": 14, "keep_aspect_ratio": True}
        (tmp_path / kind / "preprocessor_config.json").write_text(json.dumps(recipe))
    return str(tmp_path / kind)


@pytest.mark.parametrize(("kind", "expected"), [("metric", "metric"), ("relative", "affine-inverse")])
def test_depth_networks_of_transformers_run_from_a_folder(kind: str, expected: str, tmp_path: Path) -> None:
    labeler = make_labeler(LabelerSpec("transformers-depth", {"model": _saved(tmp_path, kind)}))
    digest = labeler.weights_digest()
    assert digest is not None and len(digest) == 64
    assert labeler.options.model == kind  # the name of the folder, not its place
    with torch.no_grad():
        first = labeler.label(one_view(), seed=0, work=tmp_path).depth["a/b.png"]
        second = labeler.label(one_view(), seed=0, work=tmp_path).depth["a/b.png"]
    assert first.kind == expected and first.depth.metric == (kind == "metric")
    assert tuple(first.depth.values.shape) == (HEIGHT, WIDTH)
    assert torch.equal(first.depth.values, second.depth.values)
    assert first.depth.confidence is not None and float(first.depth.confidence.min()) >= 0


def test_sam_of_transformers_runs_from_a_folder(tmp_path: Path) -> None:
    options = {
        "model": _saved(tmp_path, "sam"),
        "grid": 3,
        "min_score": -9.0,
        "min_stability": 0.0,
        "min_area": 0.0,
    }
    labeler = make_labeler(LabelerSpec("masks-sam", options))
    with torch.no_grad():
        labels = labeler.label(one_view(), seed=0, work=tmp_path)
    for found in labels.masks.values():
        assert tuple(found.masks.shape[1:]) == (HEIGHT, WIDTH) and len(found.scores) <= 9
    assert labels.facts["segments"] == sum(len(m.scores) for m in labels.masks.values())
