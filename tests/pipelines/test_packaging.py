"""From a run's weights to a network that comes with the package, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from corpora.commands import photo, run
from corpora.depth_networks import sparse
from relief3d.core.contract import Depth
from relief3d.core.errors import InputError
from relief3d.io.depth import write_depth
from relief3d.models import packaged as packaged_models
from relief3d.models.checkpoints import file_digest, read_config, read_header, read_state
from relief3d.models.metric.networks import DepthMap
from relief3d.models.metric.opening import configuration, find_metric, open_metric
from relief3d.models.metric.pointmap import PointMap
from relief3d.models.metric.pointmap_configs import pointmap_config
from relief3d.models.metric.refiner import PromptRefiner, refiner_config
from relief3d.models.metric.sizes import depth_map_config
from relief3d.models.packaged import PURPOSES, packaged, packaged_names, weights_root
from relief3d.models.shards import INDEX_FILE, SHARD_BYTES, write_shards
from relief3d.pipelines.packaging import MAX_BYTES, pack_run, render_card

BUILD = {
    "prompt-refiner": lambda: PromptRefiner(refiner_config("nano")),
    "pointmap": lambda: PointMap(pointmap_config("nano", mask=False)),
    "depth_map": lambda: DepthMap(depth_map_config("nano")),
}


def made_run(folder: Path, kind: str = "prompt-refiner", **changes: Any) -> tuple[Path, nn.Module]:
    """A folder as training leaves it, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = BUILD[kind]()
    folder.mkdir()
    path = folder / "model.safetensors"
    save_file({k: v.clone().contiguous() for k, v in network.state_dict().items()}, str(path))
    card = {
        "recipe": "metric-test", "size": "nano", "budget": "smoke", "seed": 7, "commit": "abc", "steps": 3,
        "samples": 12, "weights": "moving average", "file": path.name, "sha256": file_digest(path),
        "data": {"sources": [{"name": "room", "share": 1.0, "samples": 4}]}, "numbers": {"room_uniform-60": 0.125},
        **changes,
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(card))
    return folder, network.eval()


@pytest.mark.parametrize("kind", list(BUILD))
def test_a_packaged_network_answers_as_the_run_did(tmp_path: Path, kind: str) -> None:
    folder, network = made_run(tmp_path / "run", kind)
    made = pack_run(folder, "metric-test", tmp_path / "w", purpose="a test")
    assert packaged_names(tmp_path / "w") == ("metric-test",)
    assert made.card["seed"] == 7 and made.card["run_sha256"] == file_digest(folder / "model.safetensors")
    assert made.bytes == sum(p.stat().st_size for p in made.folder.glob("*.safetensors"))
    stored = load_file(str(made.folder / made.card["shards"][0]["file"]))
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16}
    inner = open_metric(find_metric(str(made.index)), torch.device("cpu")).module
    assert inner.config == network.config  # type: ignore[union-attr]
    for name, value in network.state_dict().items():
        mine = inner.state_dict()[name]
        assert mine.dtype == value.dtype
        scale = float(value.abs().max()) if value.is_floating_point() else 0.0
        assert float((mine.double() - value.double()).abs().max()) <= 2**-11 * scale * 1.01
    assert made.card["largest_rounding"] <= 2**-11 * 1.01
    assert (made.folder / "README.md").read_text() == render_card(made.card)
    assert "0.125" in render_card(made.card) and "metric-test" in render_card(made.card)


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    folder, network = made_run(tmp_path / "run")
    root = tmp_path / "w"
    with pytest.raises(InputError, match="what 'x' is for"):
        pack_run(folder, "x", root)
    with pytest.raises(InputError, match="cannot be the name"):
        pack_run(folder, "../x", root, purpose="p")
    with pytest.raises(InputError, match=r"more than 0\.0"):
        pack_run(folder, "x", root, purpose="p", limit=1000)
    assert not root.exists() or not any(root.iterdir())
    with pytest.raises(InputError, match="a prompt-refiner network cannot be metric-student-mini"):
        pack_run(folder, "metric-student-mini", root)
    assert not root.exists() or not any(root.iterdir())
    with pytest.raises(InputError, match="no finished training run"):
        pack_run(tmp_path / "none", "x", root, purpose="p")
    state = {k: v.clone() for k, v in network.state_dict().items()}
    state["to_key.weight"].view(-1)[0] = 1e6
    save_file(state, str(folder / "model.safetensors"))
    with pytest.raises(InputError, match=r"not what model\.json says"):
        pack_run(folder, "x", root, purpose="p")
    made_run(tmp_path / "large")
    large = tmp_path / "large"
    save_file(state, str(large / "model.safetensors"))
    card = json.loads((large / "model.json").read_text())
    (large / "model.json").write_text(
        json.dumps({**card, "sha256": file_digest(large / "model.safetensors")})
    )
    with pytest.raises(InputError, match=r"to_key\.weight is not finite, or too large"):
        pack_run(large, "x", root, purpose="p")


def test_damaged_and_absent_packaged_networks_are_refused(tmp_path: Path) -> None:
    folder, _ = made_run(tmp_path / "run")
    root = tmp_path / "w"
    made = pack_run(folder, "metric-test", root, purpose="a test")
    with pytest.raises(InputError, match=r"'metric-other' is not part of this copy.*it has metric-test"):
        packaged("metric-other", root)
    with pytest.raises(InputError, match="already"):
        pack_run(folder, "metric-test", root, purpose="a test")
    assert (
        pack_run(folder, "metric-test", root, purpose="another", overwrite=True).card["purpose"] == "another"
    )
    card = json.loads((made.folder / "model.json").read_text())
    for lost in ("licence", "parameters", "seed", "shards"):
        (made.folder / "model.json").write_text(json.dumps({k: v for k, v in card.items() if k != lost}))
        with pytest.raises(InputError, match="no card of a packaged network"):
            packaged("metric-test", root)
    (made.folder / "model.json").write_text(json.dumps(card))
    shard = made.folder / made.card["shards"][0]["file"]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(InputError, match="not what the card says"):
        packaged("metric-test", root)
    shard.unlink()
    with pytest.raises(InputError, match="is missing"):
        packaged("metric-test", root)
    (made.folder / "model.json").write_text("{}")
    with pytest.raises(InputError, match="no card"):
        packaged("metric-test", root)


def test_shards_are_as_small_as_asked_and_whole(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    state = {f"layer.{i}": torch.rand(50_000, generator=g) for i in range(9)}
    state["layer.0.count"] = torch.tensor(3)
    paths = write_shards(state, tmp_path, metadata={"key": "{}"}, limit=700_000)
    assert len(paths) == 5 and all(p.stat().st_size <= 700_000 for p in paths)
    index = tmp_path / INDEX_FILE
    back, header = read_state(index), read_header(index)
    assert back.keys() == state.keys() == header.keys()
    assert all(torch.equal(back[k], state[k]) and header[k].shape == state[k].shape for k in state)
    assert read_config(index, "key") == {}
    with safe_open(str(paths[-1]), framework="pt") as last:
        assert last.metadata() == {"key": "{}"}
    with pytest.raises(InputError, match="more than a shard"):
        write_shards(state, tmp_path, metadata={}, limit=300_000)
    content = json.loads(index.read_text())
    content["weight_map"]["layer.0"] = "../other.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no shard beside it"):
        read_state(index)
    content["weight_map"]["layer.0"] = paths[-1].name
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="does not hold what"):
        read_state(index)


def test_the_default_networks_are_used_by_name_and_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "w"
    monkeypatch.setattr(packaged_models, "weights_root", lambda: root)
    teacher, _ = made_run(tmp_path / "t")
    student, _ = made_run(tmp_path / "s", "depth_map")
    assert run("models", "pack", teacher, "--as", "metric-teacher-mini", "--root", root) == 0
    assert run("models", "list") == 0
    shown = capsys.readouterr().out
    assert "metric-student-mini: metric depth from a picture alone; not part of this copy" in shown
    assert "metric-teacher-mini: prompt-refiner" in shown
    pack_run(student, "metric-student-mini", root)
    assert run("models", "info", "metric-student-mini") == 0
    assert "seed | 7" in capsys.readouterr().out
    assert run("models", "pull", "metric-student-mini") == 2
    assert run("models", "info", "metric-student-mini", "--as", "x") == 2
    picture = photo(tmp_path / "a.png", 1, (48, 36))
    write_depth(tmp_path / "p.npz", Depth.from_values(sparse(36, 48)))
    for options, model in (
        ((), "metric-student-mini"),
        (("--prompt", tmp_path / "p.npz"), "metric-teacher-mini"),
    ):
        out = tmp_path / model
        assert run("depth", picture, "-o", out, "-q", "--device", "cpu", *options) == 0
        report = json.loads((out / "depth.json").read_text())
        assert report["model"] == model and report["state"] == "done"
    assert run("depth", picture, "-o", tmp_path / "x", "-q", "--model", "metric-teacher-mini") == 2
    assert "needs sparse metric depth" in capsys.readouterr().err


@pytest.mark.parametrize("name", packaged_names())
def test_what_comes_with_the_package(name: str) -> None:
    made = packaged(name)
    assert made.bytes <= MAX_BYTES
    assert all(s["bytes"] <= SHARD_BYTES for s in made.card["shards"])
    assert (made.folder / "README.md").read_text() == render_card(made.card)
    assert made.card["trained_on"] == "procedural worlds only" and made.card["seed"] is not None
    _, _, config = configuration(open_metric(find_metric(name), torch.device("cpu")).module)
    assert config == made.card["configuration"]


def test_the_package_data_holds_the_weights() -> None:
    import fnmatch
    import tomllib

    root = Path(__file__).resolve().parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "relief3d"
    ]
    for path in weights_root().rglob("*"):
        inside = path.relative_to(weights_root().parent).as_posix()
        assert path.is_dir() or any(fnmatch.fnmatch(inside, p) for p in data), inside
    assert set(PURPOSES) == {"metric-teacher-mini", "metric-student-mini"}
