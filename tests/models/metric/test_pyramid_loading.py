"""Pyramid networks from files: strict names, configurations, remaps, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from relief3d.cli.main import main
from relief3d.core.errors import InputError
from relief3d.models.catalogue import CATALOGUE, describe_file
from relief3d.models.metric import pyramid_loading
from relief3d.models.metric.networks import DepthMap, DepthPro, PyramidNetwork, Teacher
from relief3d.models.metric.pyramid_loading import (
    backbone_state,
    config_from_dict,
    config_to_dict,
    identify,
    load_backbone,
    load_pyramid,
    save_pyramid,
    start_teacher,
)
from relief3d.models.metric.sizes import SIZES, depth_map_config, depth_pro_config, teacher_config


def nano(name: str, seed: int = 0) -> PyramidNetwork:
    torch.manual_seed(seed)
    if name == "depth_pro":
        return DepthPro(depth_pro_config("nano"))
    return DepthMap(depth_map_config("nano")) if name == "depth_map" else Teacher(teacher_config("nano"))


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def same(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(v, state[k].to(v.dtype)) for k, v in own.items())


@pytest.mark.parametrize("name", ["depth_pro", "depth_map", "teacher"])
def test_our_files_carry_their_configuration(tmp_path: Path, name: str) -> None:
    network = nano(name)
    path = tmp_path / "w.safetensors"
    save_pyramid(network, path, metadata={"licence": "Apache-2.0"})
    loaded = load_pyramid(path)
    assert type(loaded) is type(network) and loaded.config == network.config and not loaded.training
    assert same(loaded, state_of(network)) and [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert identify(network.state_dict()) == name
    assert f"w.safetensors: {name}, {len(network.state_dict())} tensors" in describe_file(path)
    half = load_pyramid(path, dtype=torch.bfloat16)
    assert half.head[0].weight.dtype == torch.bfloat16


def test_every_configuration_survives_its_file() -> None:
    configs = [depth_pro_config(s, fov=f) for s in SIZES for f in (True, False)]
    configs += [depth_map_config(s, skip_order="unet") for s in SIZES]  # type: ignore[misc]
    configs += [
        teacher_config(s, backbone=b, injection="adaln")  # type: ignore[misc, arg-type]
        for s in SIZES
        for b in ("dinov3", "depth_pro")
    ]
    for config in configs:
        assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    for spoil in ({"network": "other"}, {"tile": 50}, {"surprise": 1}, {"vit": {"dim": 4, "width": 3}}):
        with pytest.raises(InputError, match="describes no pyramid network"):
            config_from_dict({**config_to_dict(configs[0]), **spoil})
    with pytest.raises(InputError, match="describes no"):
        config_from_dict({})


@pytest.fixture
def nano_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files without a configuration are of the published size: nano plays that part."""
    monkeypatch.setattr(pyramid_loading, "DepthMapConfig", lambda: depth_map_config("nano"))
    monkeypatch.setattr(pyramid_loading, "DepthProConfig", lambda fov=True: depth_pro_config("nano", fov=fov))
    monkeypatch.setattr(
        pyramid_loading, "teacher_config", lambda size, backbone: teacher_config("nano", backbone=backbone)
    )
    monkeypatch.setattr(pyramid_loading, "build", lambda c: next(
        k(c) for k, config in ((DepthPro, depth_pro_config("nano")), (DepthMap, depth_map_config("nano")),
                               (Teacher, teacher_config("nano"))) if type(c) is type(config)
    ))  # fmt: skip


@pytest.mark.usefixtures("nano_is_full")
@pytest.mark.parametrize("layout", ["bare", "state_dict", "model", "module"])
@pytest.mark.parametrize("name", ["depth_pro", "depth_map"])
def test_published_layouts(tmp_path: Path, name: str, layout: str) -> None:
    state = {k: v.half() for k, v in state_of(nano(name)).items()}
    stored = {f"module.{k}": v for k, v in state.items()} if layout == "module" else state
    path = tmp_path / "w.pt"
    extra = {"encoder.patch_encoder.fc_norm.weight": torch.ones(32)} if layout == "bare" else {}
    torch.save(
        {layout: stored, "epoch": 3} if layout in ("state_dict", "model") else {**stored, **extra}, path
    )
    loaded = load_pyramid(path)
    assert same(loaded, state)
    assert {v.dtype for v in (*loaded.parameters(), *loaded.buffers())} == {torch.float32}


@pytest.mark.usefixtures("nano_is_full")
def test_heads_are_those_of_the_file_and_the_rest_is_strict(tmp_path: Path) -> None:
    state = state_of(nano("depth_pro"))
    path = tmp_path / "w.pt"
    torch.save({k: v for k, v in state.items() if not k.startswith("fov.")}, path)
    loaded = load_pyramid(path)
    assert not hasattr(loaded, "fov")
    state.pop("head.4.bias")
    state["surprise"] = torch.zeros(1)
    state["head.0.bias"] = torch.zeros(3)
    torch.save(state, path)
    with pytest.raises(InputError) as caught:
        load_pyramid(path)
    text = str(caught.value)
    assert "1 missing: head.4.bias" in text and "1 unknown: surprise" in text
    assert "head.0.bias (3,) instead of (8,)" in text and "w.pt" in text


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(state_of(nano("depth_map")), str(path))
    with pytest.raises(InputError, match="weights of depth_map, not for a TeacherConfig"):
        load_pyramid(path, config=teacher_config("nano"))
    save_file({"x": torch.zeros(1)}, str(path))
    with pytest.raises(InputError, match="none of the pyramid networks"):
        load_pyramid(path)
    with pytest.raises(InputError, match="none of the networks"):
        describe_file(path)
    with pytest.raises(InputError, match="no published network 'somebody/else'"):
        load_pyramid("somebody/else")
    state = state_of(nano("depth_map"))
    state["encoder.patch_encoder.blocks.1.attn.qkv.bias_mask"][:] = float("nan")
    save_file(state, str(path))
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.qkv\.bias_mask was never filled"):
        load_pyramid(path, config=depth_map_config("nano"))
    (tmp_path / "bad.safetensors").write_bytes(path.read_bytes()[:999])
    with pytest.raises(InputError, match="damaged"):
        load_pyramid(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("injection", ["dpt", "controlnet"])
@torch.no_grad()
def test_a_teacher_starts_from_depth_pro(injection: str) -> None:
    pro = nano("depth_pro", 3).eval()
    state = state_of(pro)
    # Depth Pro whose second transformer is the first one is the network with a shared transformer.
    state |= {
        k.replace("patch_encoder", "image_encoder"): v for k, v in state.items() if "patch_encoder" in k
    }
    pro.load_state_dict(state)
    config = teacher_config("nano", backbone="depth_pro", injection=injection)  # type: ignore[arg-type]
    half = {k: v.half().float() for k, v in state.items()}
    pro.load_state_dict(half)
    teacher = start_teacher({k: v.half() for k, v in state.items()}, config).eval()
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    condition = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    # Up to rounding: one transformer sees 35 tiles at once, two see 35 and 1.
    assert torch.allclose(teacher(images, condition).canonical, pro(images).canonical, atol=1e-6)
    if injection == "controlnet":
        copy, block = teacher.injection.blocks[1], teacher.encoder.patch_encoder.blocks[1]  # type: ignore[union-attr]
        assert torch.equal(copy.attn.qkv.weight, block.attn.qkv.weight), "the copy follows the weights"
    half.pop("encoder.fuse_lowres.bias")
    with pytest.raises(InputError, match=r"1 missing: encoder\.fuse_lowres\.bias"):
        start_teacher(half, config)


@torch.no_grad()
def test_backbones_go_in_and_out() -> None:
    student, teacher = nano("depth_map", 1), nano("teacher", 2)
    alone = backbone_state(student.state_dict())
    assert "blocks.0.attn.qkv.bias_mask" in alone and not any(k.startswith("encoder") for k in alone)
    load_backbone(teacher, alone)
    assert same(teacher.encoder.patch_encoder, alone)
    load_backbone(teacher, nano("depth_map", 4).state_dict())
    assert not same(teacher.encoder.patch_encoder, alone)
    with pytest.raises(InputError, match="missing"):
        load_backbone(nano("depth_pro"), alone)


def run(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_the_command_line_knows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "list") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in CATALOGUE) and "yjh001/metricanything_student_depthmap" in shown
    assert "877 M parameters" in shown and "952 M parameters" in shown
    assert run("models", "info", "apple/DepthPro") == 0
    assert "Apple's research licence" in capsys.readouterr().out
    path = tmp_path / "t.safetensors"
    save_pyramid(nano("teacher"), path)
    assert run("models", "info", str(path)) == 0
    assert "t.safetensors: teacher" in capsys.readouterr().out
