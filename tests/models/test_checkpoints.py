"""Weights in every layout, and everything that must be refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from relief3d.core.errors import InputError, RunError
from relief3d.models.checkpoints import file_digest, load_weights, read_state
from relief3d.models.multiview.configs import pi3_config, reliev3r_config, vggt_config
from relief3d.models.multiview.loading import PUBLISHED, describe, fetch, identify, load_multiview
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Vggt


def nano() -> Pi3:
    torch.manual_seed(0)
    return Pi3(pi3_config("nano"))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("kind", ["safetensors", "bare", "model", "state_dict", "ema"])
def test_every_layout_in_use(tmp_path: Path, kind: str) -> None:
    net = nano()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(state, str(path))
    elif kind == "bare":
        torch.save(state, path)
    elif kind == "ema":
        noise = {k: torch.zeros_like(v) for k, v in state.items()}
        averaged = {f"module.{k}": v for k, v in state.items()} | {"n_averaged": torch.tensor(7)}
        torch.save({"model": noise, "ema_model": averaged, "steps": 3}, path)
    else:
        torch.save({kind: {f"module.{k}": v for k, v in state.items()}, "epoch": 2}, path)
    torch.manual_seed(1)
    other = Pi3(pi3_config("nano"))
    assert not same(net, other)
    loaded = load_multiview(path, network=other)
    assert same(net, loaded) and not loaded.training


def test_wrong_weights_are_listed(tmp_path: Path) -> None:
    net = nano()
    state = dict(net.state_dict())
    state.pop("camera_head.fc_t.bias")
    state["surprise"] = torch.zeros(1)
    state["register_token"] = torch.zeros(1, 1, 5, 7)
    with pytest.raises(InputError) as caught:
        load_weights(net, state, source=tmp_path / "x.pt")
    text = str(caught.value)
    assert "1 missing: camera_head.fc_t.bias" in text and "1 unknown: surprise" in text
    assert "register_token (1, 1, 5, 7) instead of (1, 1, 5, 48)" in text and "x.pt" in text


def test_optional_parts_may_be_absent() -> None:
    torch.manual_seed(0)
    net = Vggt(vggt_config("nano"))
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("track_head.")}
    absent = load_weights(net, state, optional=("track_head.",))
    assert absent and all(k.startswith("track_head.") for k in absent)
    with pytest.raises(InputError, match="missing"):
        load_weights(net, state)


def test_architectures_are_told_apart(tmp_path: Path) -> None:
    nets = {
        "vggt": Vggt(vggt_config("nano")),
        "pi3": nano(),
        "reliev3r": Reliev3rNet(reliev3r_config("nano")),
    }
    for name, net in nets.items():
        assert identify(net.state_dict()) == name
    path = tmp_path / "v.safetensors"
    save_file({k: v.clone() for k, v in nets["vggt"].state_dict().items()}, str(path))
    with pytest.raises(InputError, match="weights of vggt, not of Pi3"):
        load_multiview(path, network=nano())
    save_file({"a": torch.zeros(1)}, str(path))
    with pytest.raises(InputError, match="none of the multi-view networks"):
        load_multiview(path)


def test_damaged_and_dangerous_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "w.safetensors"
    save_file({k: v.clone() for k, v in nano().state_dict().items()}, str(good))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:5000])
    torn = tmp_path / "torn.pt"
    torch.save(nano().state_dict(), torn)
    torn.write_bytes(torn.read_bytes()[:3000])
    text, picture = tmp_path / "accounts", tmp_path / "a.png"
    text.write_text("root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n")
    Image.new("RGB", (8, 8)).save(picture)
    for path in (cut, torn, text, picture):
        with pytest.raises(InputError, match=r"damaged, truncated|more than weights"):
            read_state(path)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("executed",))

    evil = tmp_path / "evil.pt"
    torch.save({"model": Evil()}, evil)
    with pytest.raises(InputError, match="more than weights"):
        read_state(evil)
    raw = tmp_path / "raw.pt"
    raw.write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(InputError):
        read_state(raw)
    with pytest.raises(InputError, match="no such file"):
        read_state(tmp_path / "absent.pt")


def test_checksums(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(3)}, str(path))
    assert set(read_state(path, sha256=file_digest(path).upper())) == {"a"}
    with pytest.raises(InputError, match="checksum"):
        read_state(path, sha256="0" * 64)


def test_licence_size_and_source_come_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Hub:
        @staticmethod
        def hf_hub_download(name: str, file: str) -> str:
            assert said, "announced first"
            raise OSError("no route")

    monkeypatch.setattr("relief3d.models.published.require", lambda *a, **k: Hub)
    with pytest.raises(RunError, match="could not be fetched"):
        fetch("yyfz233/Pi3", announce=said.append)
    assert "CC BY-NC" in said[0] and "3.8 GB" in said[0] and "959 M" in said[0] and "arXiv" in said[0]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RunError, match="unset HF_HUB_OFFLINE"):
        fetch("yyfz233/Pi3", announce=said.append)
    with pytest.raises(InputError, match="no published model"):
        fetch("somebody/else")


def test_published_sizes_are_those_of_the_networks() -> None:
    from relief3d.models.multiview.loading import ARCHITECTURES

    for model in PUBLISHED.values():
        with torch.device("meta"):
            count = sum(p.numel() for p in ARCHITECTURES[model.architecture]().parameters())
        assert round(count / 1e6, 2) == model.parameters
        assert (
            abs(4 * count / 1024**3 - model.memory_gb) < 0.1
            and abs(4 * count / 1e9 - model.download_gb) < 0.1
        )
        assert model.name in describe(replace(model))
