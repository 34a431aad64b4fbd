"""What labelers make of networks of transformers agrees with the networks' own answers; tiny, with random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.seeding import torch_generator
from relief3d.labelling.base import LabelerSpec
from relief3d.labelling.labelers.transformers_depth import _network_size, prepare_image
from relief3d.labelling.registry import make_labeler

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra 'hub')")

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def one_view(height: int, width: int) -> Scene:
    image = torch.rand(3, height, width, generator=torch_generator(1))
    return Scene((View("a.png", Camera(width, height), image=image),))


def save(network: torch.nn.Module, folder: Path, side: int, **more: object) -> str:
    network.save_pretrained(folder)  # type: ignore[operator]
    recipe = {"size": {"height": side, "width": side}, "image_mean": MEAN, "image_std": STD, **more}
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe))
    return str(folder)


def normalised(scene: Scene) -> torch.Tensor:
    image = scene.views[0].load_image()
    return torch.stack([(image[c] - MEAN[c]) / STD[c] for c in range(3)])[None]


def depth_anything(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=2,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8, head_hidden_size=4, depth_estimation_type=kind, max_depth=20,
    )  # fmt: skip
    network = transformers.DepthAnythingForDepthEstimation(config).eval()
    with torch.no_grad():  # the last layer's ReLU must let something through
        network.head.conv3.bias.fill_(0.5)
    return network


@pytest.mark.parametrize("kind", ["metric", "relative"])
def test_depth_anything_says_what_the_network_says(kind: str, tmp_path: Path) -> None:
    network, scene = depth_anything(kind), one_view(28, 28)
    model = save(network, tmp_path / kind, 28, ensure_multiple_of=14)
    with torch.no_grad():
        expected = network(pixel_values=normalised(scene)).predicted_depth[0]
        found = make_labeler(LabelerSpec("transformers-depth", {"model": model})).label(
            scene, seed=0, work=tmp_path
        )
        mirrored = network(pixel_values=normalised(scene).flip(-1)).predicted_depth[0].flip(-1)
    depth = found.depth["a.png"].depth
    assert torch.allclose(depth.values, expected, rtol=1e-4, atol=1e-5) and bool(depth.valid.all())
    a, b = (
        (expected, mirrored)
        if kind == "metric"
        else (expected / expected.median(), mirrored / mirrored.median())
    )
    assert depth.confidence is not None
    assert torch.allclose(depth.confidence, torch.exp(-(a.log() - b.log()).abs() / 0.1), atol=1e-3)


def test_depth_pro_gives_metres_by_its_field_of_view(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = {"model_type": "dinov2", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "patch_size": 8,
           "image_size": 32, "mlp_ratio": 2}  # fmt: skip
    config = transformers.DepthProConfig(
        patch_size=32, fusion_hidden_size=16, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[8, 8],
        scaled_images_ratios=[0.5, 1.0], scaled_images_overlap_ratios=[0.0, 0.2], scaled_images_feature_dims=[8, 8],
        use_fov_model=True, num_fov_head_layers=1, image_model_config=vit, patch_model_config=vit, fov_model_config=vit,
    )  # fmt: skip
    network = transformers.DepthProForDepthEstimation(config).eval()
    scene = one_view(64, 64)
    model = save(network, tmp_path / "pro", 64)
    with torch.no_grad():
        out = network(pixel_values=normalised(scene))
        fov = math.radians(float(out.field_of_view))
        labeler = make_labeler(LabelerSpec("transformers-depth", {"model": model, "consistency": False}))
        found = labeler.label(scene, seed=0, work=tmp_path)
    if not 0.001 < abs(fov) < 3:
        pytest.skip("these random weights see no field of view")
    focal = 0.5 * 64 / math.tan(0.5 * fov)  # pixels
    inverse = torch.nn.functional.interpolate(out.predicted_depth[None], (64, 64), mode="bilinear")[0, 0]
    expected = 1 / (inverse * 64 / focal).clamp(1e-4, 1e4)
    label = found.depth["a.png"]
    assert label.kind == "metric" and label.depth.confidence is None
    assert torch.allclose(label.depth.values, expected, rtol=1e-3)
    K = found.cameras["a.png"].K
    assert K is not None and float(K[0, 0]) == pytest.approx(focal, rel=1e-5) and float(K[0, 2]) == 32


def test_sizes_and_numbers_of_the_preparation() -> None:
    # The side that needs the smaller change sets the scale: 480 -> 518 for a 640x480 picture, not 640 -> 518.
    size = {"height": 518, "width": 518}
    assert _network_size((480, 640), size, 14, True) == (518, 686)
    assert _network_size((480, 640), size, 14, False) == (518, 518)
    assert _network_size((1080, 1920), size, 14, True) == (518, 924)
    image = torch.rand(3, 28, 28, generator=torch_generator(1))
    recipe = {"size": {"height": 28, "width": 28}, "image_mean": MEAN, "image_std": STD}
    found = prepare_image(image, type("Config", (), {"model_type": "depth_anything"}), recipe)
    assert torch.allclose(found[0, 2], (image[2] - 0.6) / 0.3, atol=1e-5)


def test_sam_s_masks_are_those_of_its_prompts(tmp_path: Path) -> None:
    torch.manual_seed(0)
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
    network = transformers.SamModel(config).eval()
    network.save_pretrained(tmp_path / "sam")
    scene = one_view(48, 64)  # fills the width; the lower 16 rows are padding
    labeler = make_labeler(LabelerSpec("masks-sam", {"model": str(tmp_path / "sam"), "grid": 2}))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[:, :, :48] = (scene.views[0].load_image() - mean[:, None, None]) / std[:, None, None]
    points = torch.tensor([[[[16.0, 12.0]], [[48.0, 12.0]], [[16.0, 36.0]], [[48.0, 36.0]]]])
    with torch.no_grad():
        logits, scores = labeler._candidates(scene.views[0].load_image())  # type: ignore[attr-defined]
        out = network(pixel_values=pixels, input_points=points, multimask_output=True)
    quality, best = out.iou_scores[0].max(1)
    assert torch.allclose(scores, quality, atol=1e-5)
    low = out.pred_masks[0][torch.arange(4), best]
    full = torch.nn.functional.interpolate(low[:, None], (64, 64), mode="bilinear", align_corners=False)[
        :, 0, :48
    ]
    assert torch.allclose(logits, full, atol=1e-4)
