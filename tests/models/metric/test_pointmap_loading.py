"""Point-map networks from files: the published layout, ours, and what must be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from relief3d.core.errors import InputError
from relief3d.models.checkpoints import read_config
from relief3d.models.metric.pointmap import PointMap
from relief3d.models.metric.pointmap_configs import SIZES, config_from_dict, config_to_dict, pointmap_config
from relief3d.models.metric.pointmap_loading import PUBLISHED, load_pointmap, save_pointmap
from relief3d.models.published import describe


def nano(**options: bool) -> PointMap:
    torch.manual_seed(3)
    return PointMap(pointmap_config("nano", **options)).eval()


def same(a: PointMap, b: PointMap) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def stored(network: PointMap, **changes: Any) -> dict[str, Any]:
    return {"model_config": config_to_dict(network.config) | changes, "model": network.state_dict()}


def test_a_file_carries_its_configuration(tmp_path: Path) -> None:
    network = nano(normals=True)
    torch.save(stored(network), tmp_path / "model.pt")
    found = load_pointmap(tmp_path / "model.pt")
    assert same(found, network) and found.config == network.config and not found.training
    save_pointmap(network, tmp_path / "own.safetensors", metadata={"made_by": "test"})
    assert same(load_pointmap(tmp_path / "own.safetensors"), network)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt", "own.safetensors"]
    image = torch.rand(1, 3, 30, 40)
    with torch.no_grad():
        assert torch.equal(found(image, 20).points, network(image, 20).points)
    half = load_pointmap(tmp_path / "own.safetensors", dtype=torch.float16)
    assert next(half.parameters()).dtype == torch.float16


def test_heads_that_the_configuration_leaves_out_are_left_out(tmp_path: Path) -> None:
    network = nano(normals=True)
    whole = stored(network)
    del whole["model_config"]["normal_head"]
    torch.save(whole, tmp_path / "model.pt")
    found = load_pointmap(tmp_path / "model.pt")
    assert found.normal_head is None
    assert same(found, _without_normals(network))
    # The other way round weights are missing, which is refused.
    bare = {k: v for k, v in network.state_dict().items() if not k.startswith("mask_head")}
    torch.save({**stored(network), "model": bare}, tmp_path / "bare.pt")
    with pytest.raises(InputError, match="missing: mask_head"):
        load_pointmap(tmp_path / "bare.pt")


def _without_normals(network: PointMap) -> PointMap:
    other = nano()
    other.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("normal_head")})
    return other


def test_files_without_a_usable_configuration_are_refused(tmp_path: Path) -> None:
    network = nano()
    path = tmp_path / "w.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, str(path))
    assert read_config(path) is None
    with pytest.raises(InputError, match="no configuration") as caught:
        load_pointmap(path)
    assert str(path) in str(caught.value)
    assert same(load_pointmap(path, config=network.config), network)
    with pytest.raises(InputError, match="of another shape"):
        load_pointmap(path, config=pointmap_config("micro"))
    save_file({"a": torch.zeros(1)}, str(path), {"model_config": "{broken"})
    with pytest.raises(InputError, match="no JSON"):
        load_pointmap(path)
    save_file({"a": torch.zeros(1)}, str(path), {"model_config": "[1]"})
    with pytest.raises(InputError, match="no configuration"):
        load_pointmap(path)
    with pytest.raises(InputError, match="Ruicheng/moge-2-vitl"):
        load_pointmap("Ruicheng/moge-3")
    with pytest.raises(InputError, match="no such file"):
        load_pointmap(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": {"backbone": "dinov2_vitg14", "intermediate_layers": 4, "dim_out": 8}}, "dinov2_vitg14"),
        ({"encoder": {"backbone": "dinov2_vits14"}}, "KeyError"),
        ({"remap_output": "cube"}, "cube"),
        ({"neck": None}, "TypeError"),
    ],
)
def test_what_the_network_cannot_be_is_said(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    torch.save(stored(nano(), **change), tmp_path / "model.pt")
    with pytest.raises(InputError, match=words) as caught:
        load_pointmap(tmp_path / "model.pt")
    assert "model.pt" in str(caught.value)


def test_short_forms_of_a_configuration() -> None:
    network = nano()
    full = config_to_dict(network.config)
    full["encoder"]["intermediate_layers"] = 4
    full["neck"]["resamplers"] = "bilinear"
    full["neck"]["num_res_blocks"] = 1
    config = config_from_dict(json.loads(json.dumps(full)))
    assert config.layers == (0, 1, 2, 3)
    assert config.neck.resamplers == ("bilinear",) * 4 and config.neck.residuals == (1,) * 5
    full["neck"]["activation"] = "gelu"
    with pytest.raises(InputError, match="gelu"):
        config_from_dict(full)
    full["neck"]["activation"] = "relu"
    full["neck"]["resamplers"] = ["bilinear", "cubic", "nearest", "nearest"]
    with pytest.raises(InputError, match="cubic"):
        config_from_dict(full)


@pytest.mark.parametrize("kind", ["conv_transpose", "pixel_shuffle", "bilinear", "nearest"])
def test_every_resampler_and_norm_builds_and_runs(kind: str) -> None:
    full = config_to_dict(pointmap_config("nano"))
    for name in ("neck", "points_head", "mask_head"):
        full[name] |= {
            "resamplers": [kind] * 4, "res_block_in_norm": "layer_norm", "res_block_hidden_norm": "group_norm",
            "dim_times_res_block_hidden": 2,
        }  # fmt: skip
    torch.manual_seed(0)
    network = PointMap(config_from_dict(full))
    assert network(torch.rand(1, 3, 20, 30), 8).points.shape == (1, 20, 30, 3)
    # A new resampler has no pattern of the pixels that one pixel becomes.
    with torch.no_grad():
        up = torch.rand(1, 32, 3, 3)
        for part in list(network.neck.resamplers[0])[: 2 if kind == "pixel_shuffle" else 1]:
            up = part(up)
        up = up[..., 2:4, 2:4]
    if kind != "bilinear":
        torch.testing.assert_close(up, up[..., :1, :1].expand_as(up))
    keys = {k.split(".")[3] for k in network.state_dict() if k.startswith("neck.resamplers.0.")}
    assert keys == {"conv_transpose": {"0", "1"}, "pixel_shuffle": {"0", "2"}}.get(kind, {"1"})


def test_sizes_and_published_names() -> None:
    for size in SIZES:
        with torch.device("meta"):
            network = PointMap(pointmap_config(size))
        assert config_from_dict(config_to_dict(network.config)) == network.config
    with pytest.raises(InputError, match="nano"):
        pointmap_config("huge")  # type: ignore[arg-type]
    count = sum(p.numel() for p in PointMap(pointmap_config("mini", normals=True)).parameters())
    assert count < 6e6  # 12 MB in half precision
    text = describe(PUBLISHED["yjh001/metricanything_student_pointmap"])
    assert "326 M parameters" in text and "Apache-2.0" in text and "2601.22054" in text
