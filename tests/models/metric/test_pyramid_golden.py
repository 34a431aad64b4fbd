"""Student-DepthMap and Depth Pro against golden values of the published code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from corpora.golden import golden, part, worst
from relief3d.models.metric.decoder import run_head
from relief3d.models.metric.inference import DepthMapModel, DepthProModel, PyramidOptions
from relief3d.models.metric.interface import Focal
from relief3d.models.metric.networks import (
    DepthMap,
    DepthMapConfig,
    DepthPro,
    DepthProConfig,
    PyramidNetwork,
    normalise,
)
from relief3d.nn.dinov3 import DinoV3Config
from relief3d.nn.vit import VitConfig

RELATIVE, ABSOLUTE = 1e-4, 2e-4
"""Of encodings, and of canonical inverse depth (README of the golden files)."""


class Case(NamedTuple):
    stored: dict[str, Tensor]
    meta: dict[str, str]
    network: PyramidNetwork


def load(shared_data: Path, name: str, build: type) -> Case:
    stored = golden(shared_data, name)
    with safe_open(str(shared_data.parent / "golden" / f"{name}.safetensors"), "pt") as file:
        meta = file.metadata()
    features, dims = json.loads(meta["decoder_features"]), tuple(json.loads(meta["encoder_dims"]))
    hooks = tuple(json.loads(meta["hook_block_ids"]))
    if build is DepthMap:
        vit: DinoV3Config | VitConfig = DinoV3Config(32, 5, 2, 4)
        network: PyramidNetwork = DepthMap(DepthMapConfig(vit, 96, hooks, dims, features))
    else:
        vit = VitConfig(32, 4, 2, 4, registers=0, img_size=96, mask_token=False)
        network = DepthPro(DepthProConfig(vit, 96, hooks[:2], dims, features))
    network.load_state_dict(part(stored, "weights/"), strict=True)
    return Case(stored, meta, network.eval())


@pytest.fixture(scope="module")
def student(shared_data: Path) -> Case:
    return load(shared_data, "metricanything_student_tiny", DepthMap)


@pytest.fixture(scope="module")
def depth_pro(shared_data: Path) -> Case:
    return load(shared_data, "depthpro_tiny", DepthPro)


def off(found: Tensor, stored: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return worst(found, stored) / float(stored.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", ["student", "depth_pro"])
def test_encodings_decoder_and_result(name: str, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(name)
    net, stored = case.network, case.stored
    images = stored["input/image_u8"].float() / 255
    encodings = net.encoder(normalise(images, net.config.normalisation), 96)
    count = sum(k.endswith("_mean_c") for k in stored)
    assert len(encodings) == count == {"student": 7, "depth_pro": 5}[name]
    for i, encoding in enumerate(encodings):
        assert off(encoding.mean((-1, -2)), stored[f"output/enc{i}_mean_c"]) < RELATIVE
        assert off(encoding[..., :12, -12:], stored[f"output/enc{i}_crop"]) < RELATIVE
    features, low = net.decoder([encodings[i] for i in net.order])
    assert off(low[..., ::4, ::4], stored["output/decoder_lowres"]) < RELATIVE
    if "output/decoder_crop" in stored:
        assert off(features[..., :16, :16], stored["output/decoder_crop"]) < RELATIVE
    y = run_head(net.head, features, 96)
    assert y.shape[-1] == 1536
    assert worst(y[..., ::4, ::4], stored["output/canonical_inverse_depth_stride4"]) < ABSOLUTE
    assert worst(y[..., 500:564, 700:764], stored["output/canonical_inverse_depth_crop"]) < ABSOLUTE
    if name == "depth_pro":
        assert isinstance(net, DepthPro)
        assert off(net.fov(normalise(images, "half"), low), stored["output/fov_deg"]) < RELATIVE


@torch.no_grad()
def test_tokens_of_the_coarse_tile(student: Case) -> None:
    images = student.stored["input/image_u8"].float() / 255
    coarse = torch.nn.functional.interpolate(
        normalise(images, "imagenet"), scale_factor=0.25, mode="bilinear"
    )
    found = student.network.encoder.patch_encoder(coarse)
    assert off(found, student.stored["output/vit_tokens_lowres"]) < RELATIVE


def inverse_error(depth: Tensor, stored: Tensor) -> float:
    return worst(1 / depth, 1 / stored)


def test_student_in_metres(student: Case) -> None:
    stored = student.stored
    images = stored["input/image_infer_u8"][None].float() / 255
    assert isinstance(student.network, DepthMap)
    model = DepthMapModel(student.network, PyramidOptions(chunk=7, rows=96))
    found = model.predict(images, Focal.given(float(student.meta["f_px"])))
    assert inverse_error(found.depth[0], stored["output/infer_depth"]) < ABSOLUTE
    # The published default of 1000 pixels, from the same pass.
    known = found.canonical[0] * 360 / 1000
    assert inverse_error(1 / known.clamp(1e-3, 1e3), stored["output/infer_depth_default_f"]) < ABSOLUTE


def test_depth_pro_in_metres_with_predicted_and_given_focal_length(depth_pro: Case) -> None:
    stored = depth_pro.stored
    images = stored["input/image_infer_u8"][None].float() / 255
    assert isinstance(depth_pro.network, DepthPro)
    model = DepthProModel(depth_pro.network)
    found = model.predict(images)
    assert found.focal_sources == ("predicted",)
    assert off(found.focal, stored["output/infer_auto_focallength_px"]) < RELATIVE
    assert inverse_error(found.depth[0], stored["output/infer_auto_depth"]) < ABSOLUTE
    # With a given focal length only the factor changes: the same pass again, in metres.
    f_px = float(depth_pro.meta["f_px"])
    given = 1 / (found.canonical[0] * 360 / f_px).clamp(1e-4, 1e4)
    assert inverse_error(given, stored["output/infer_f_depth"]) < ABSOLUTE
