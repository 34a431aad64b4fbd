"""ONNX files of the students: onnxruntime gives the numbers of the network; what a caller must know stands in the file.

Writing a file takes ten seconds and more of processor time, most of it in torch's exporter, so networks here are as
small as their kind allows, and the depth-map network (thousands of operations) is left to the full counts.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from relief3d.core.errors import InputError, MissingExtraError
from relief3d.models.metric import onnx_export
from relief3d.models.metric.networks import DepthMap
from relief3d.models.metric.onnx_export import export_onnx, onnx_differences, onnx_metadata, run_onnx
from relief3d.models.metric.pointmap import PointMap
from relief3d.models.metric.pointmap_configs import config_from_dict, pointmap_config
from relief3d.models.metric.sizes import depth_map_config

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
LIMIT = 1e-4


def point_map() -> PointMap:
    torch.manual_seed(0)
    config = pointmap_config("nano", normals=True)
    network = PointMap(replace(config, vit=replace(config.vit, depth=1), layers=(0,)))
    with torch.no_grad():
        # Large enough that pixels and positions show in the outputs.
        for p in network.parameters():
            if p.ndim > 1:
                p.normal_(0, 1.5 / p[0].numel() ** 0.5)
        network.encoder.backbone.pos_embed.normal_(0, 1)
        assert network.mask_head is not None
        for head in (network.points_head, network.mask_head):
            head.output_blocks[-1].weight.mul_(0.02)
    return network


def test_a_point_map_network_gives_the_same_numbers(tmp_path: Path) -> None:
    """On a picture whose sides are no multiples of anything and a grid other than the stored one."""
    network, path = point_map().train(), tmp_path / "p.onnx"
    facts = export_onnx(network, path, (37, 58), tokens=23)
    assert network.training and [p.name for p in tmp_path.iterdir()] == ["p.onnx"]
    image = torch.rand(1, 3, 37, 58, generator=torch.Generator().manual_seed(1))
    differences = onnx_differences(network, path, image)
    assert set(differences) == {"points", "normals", "mask", "scale"}
    assert max(differences.values()) < LIMIT, differences
    assert onnx_metadata(path) == facts
    assert facts["grid"] == [4, 6] and facts["outputs"]["points"] == [1, 37, 58, 3]
    assert config_from_dict(facts["model_config"]) == network.config
    other = point_map()
    with torch.no_grad():
        other.encoder.backbone.pos_embed.mul_(1.01)
    assert max(onnx_differences(other, path, image).values()) > LIMIT
    with pytest.raises(InputError, match="takes pictures of shape"):
        run_onnx(path, image[..., 1:])


@pytest.mark.stress
@pytest.mark.skipif("RELIEF3D_STRESS" not in os.environ, reason="minutes: set RELIEF3D_STRESS to run it")
def test_a_depth_map_network_gives_the_same_numbers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = depth_map_config("nano")
    network, path = DepthMap(config).eval(), tmp_path / "d.onnx"
    facts = export_onnx(network, path, (config.side, config.side))
    image = torch.rand(1, 3, config.side, config.side, generator=torch.Generator().manual_seed(1))
    differences = onnx_differences(network, path, image)
    assert set(differences) == {"canonical"} and differences["canonical"] < LIMIT
    assert float(run_onnx(path, image)["canonical"].std()) > 0
    assert facts["network"] == "DepthMap" and "grid" not in facts


def test_what_cannot_be_exported_or_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = point_map()
    for size, tokens, words in (((0, 5), 9, "pixels"), ((5, 5), 0, "positive")):
        with pytest.raises(InputError, match=words):
            export_onnx(network, tmp_path / "x.onnx", size, tokens=tokens)
    deep = DepthMap(depth_map_config("nano"))
    with pytest.raises(InputError, match="no number of tokens"):
        export_onnx(deep, tmp_path / "x.onnx", (64, 64), tokens=9)
    with pytest.raises(InputError, match="cannot be exported for this size"):
        export_onnx(deep, tmp_path / "x.onnx", (50, 70))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no such file"):
        run_onnx(tmp_path / "none.onnx", torch.zeros(1))
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(InputError, match=r"bad\.onnx.*cannot be read"):
        onnx_metadata(tmp_path / "bad.onnx")

    def absent(*_: object, **__: object) -> None:
        raise MissingExtraError("no", remedy="pip install 'relief3d[onnx]'")

    monkeypatch.setattr(onnx_export, "require", absent)
    with pytest.raises(MissingExtraError, match="onnx"):
        export_onnx(network, tmp_path / "x.onnx", (5, 5), tokens=2)


def test_a_missing_folder_is_said_before_work_begins(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        export_onnx(point_map(), tmp_path / "none" / "a.onnx", (37, 58))
    assert not (tmp_path / "none").exists()
