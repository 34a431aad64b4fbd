"""Files to networks of the published size, played through with a small size in its place; verified downloads."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from relief3d.core.errors import InputError, RunError
from relief3d.models import checkpoints, published
from relief3d.models.catalogue import describe_file
from relief3d.models.checkpoints import file_digest, read_header, read_state
from relief3d.models.multiview import loading
from relief3d.models.multiview.configs import pi3_config, pi3x_config, reliev3r_config, vggt_config
from relief3d.models.multiview.loading import PUBLISHED, fetch, load_multiview
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.pi3x import Pi3X
from relief3d.models.multiview.reliev3r import Reliev3rNet
from relief3d.models.multiview.vggt import Vggt
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.networks import open_network


@pytest.fixture(autouse=True)
def nano_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "VggtConfig", lambda: vggt_config("nano"))
    monkeypatch.setattr(loading, "Reliev3rConfig", lambda: reliev3r_config("nano"))
    small = {"pi3": lambda: Pi3(pi3_config("nano")), "pi3x": lambda: Pi3X(pi3x_config("nano"))}
    monkeypatch.setattr(loading, "ARCHITECTURES", {**loading.ARCHITECTURES, **small})


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def stored(path: Path, state: dict[str, Tensor]) -> Path:
    save_file(state, str(path)) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def same(network: nn.Module, state: dict[str, Tensor]) -> bool:
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(v, state[k].to(v.dtype)) for k, v in own.items())


def test_a_vggt_has_the_heads_of_its_file(tmp_path: Path) -> None:
    full = Vggt(vggt_config("nano"))
    absent = ("point_head.", "track_head.")
    state = {k: v for k, v in state_of(full).items() if not k.startswith(absent)}
    loaded = load_multiview(stored(tmp_path / "v.safetensors", state))
    assert isinstance(loaded, Vggt) and loaded.config.heads == ("camera", "depth") and same(loaded, state)
    for mine, theirs in zip(loaded.buffers(), full.buffers()):
        assert torch.equal(mine, theirs), "constants that no file holds"
    pictures = torch.rand(1, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        depth = full.eval()(pictures, heads=("depth",)).depth
        assert depth is not None and torch.equal(loaded(pictures, heads=("depth",)).depth, depth)


def test_constants_of_the_file_are_kept(tmp_path: Path) -> None:
    state = state_of(Pi3(pi3_config("nano")))
    state["image_mean"] += 0.25
    loaded = load_multiview(stored(tmp_path / "p.safetensors", state))
    assert same(loaded, state)


@pytest.mark.parametrize("fov", [False, True])
def test_a_reliev3r_has_the_lens_head_of_its_file(tmp_path: Path, fov: bool) -> None:
    state = state_of(Reliev3rNet(reliev3r_config("nano", fov_head=fov)))
    loaded = load_multiview(stored(tmp_path / "r.pt", state))
    assert isinstance(loaded, Reliev3rNet) and loaded.settings.fov_head is fov and same(loaded, state)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_half_precision_files_become_single(tmp_path: Path, kind: str) -> None:
    state = {k: v.half() for k, v in state_of(Pi3X(pi3x_config("nano"))).items()}
    loaded = load_multiview(stored(tmp_path / f"x.{kind}", state))
    assert isinstance(loaded, Pi3X) and same(loaded, state)
    assert {v.dtype for v in (*loaded.parameters(), *loaded.buffers())} == {torch.float32}


def test_half_a_part_is_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that a publisher may leave out are absent as a whole, or it is an error: nothing stays without values."""
    state = state_of(Vggt(vggt_config("nano")))
    state.pop("track_head.tracker.query_ref_token")
    path = stored(tmp_path / "v.safetensors", state)
    name = "Changearthmore/SelfEvoVGGT"
    monkeypatch.setattr(loading, "fetch", lambda *args, **kwargs: path)
    assert "track_head." in PUBLISHED[name].optional
    with pytest.raises(InputError, match=r"v.safetensors: lacks 1 values .*query_ref_token"):
        load_multiview(name)
    with pytest.raises(InputError, match="1 missing"):
        load_multiview(path)


def test_headers_say_what_states_say(tmp_path: Path) -> None:
    state = state_of(Pi3(pi3_config("nano")))
    state["register_token"] = state["register_token"].bfloat16()
    old = tmp_path / "old.pt"
    torch.save({"model": state}, old, _use_new_zipfile_serialization=False)
    wrapped = tmp_path / "w.pt"
    torch.save({"ema_model": {f"module.{k}": v for k, v in state.items()}, "model": {}, "step": 1}, wrapped)
    for path in (stored(tmp_path / "s.safetensors", state), stored(tmp_path / "b.pt", state), old, wrapped):
        header = read_header(path)
        assert {k: (v.shape, v.dtype) for k, v in header.items()} == {
            k: (v.shape, v.dtype) for k, v in read_state(path).items()
        }
        assert all(v.is_meta for v in header.values())
    said = describe_file(old)
    assert "pi3" in said and f"{len(state)} tensors" in said and "bfloat16, float32" in said
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((tmp_path / "s.safetensors").read_bytes()[:-8])
    with pytest.raises(InputError, match="damaged, truncated"):
        read_header(torn)
    with pytest.raises(InputError, match="no such file"):
        read_header(tmp_path / "none.pt")


@pytest.mark.parametrize("size", ["full", "nano"])
def test_values_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    path = stored(tmp_path / "r.safetensors", state_of(Reliev3rNet(reliev3r_config("nano", fov_head=True))))
    read: list[Path] = []
    real = checkpoints.load_file
    monkeypatch.setattr(checkpoints, "load_file", lambda p: read.append(Path(p)) or real(p))
    model, source = open_network(
        MultiviewConfig(model=str(path), model_size=size),
        announce=lambda text: None,  # type: ignore[arg-type]
    )
    assert read == [path] and source.architecture == "reliev3r" and model.name == "reliev3r"


def cached(root: Path, content: bytes, *, shared: bool = False) -> tuple[Path, Path]:
    """A file in the layout of the hub's cache, and where its bytes lie."""
    made = root / "content"
    made.write_bytes(content)
    digest = file_digest(made)
    blobs, snapshot = root / "models--a--b" / "blobs", root / "models--a--b" / "snapshots" / ("c" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    payload = blobs / digest
    if shared:  # newer caches: one store for all repositories, named by another hash
        payload = root / "blobs" / "ab" / ("ab" * 32)
        payload.parent.mkdir(parents=True)
        (blobs / digest).symlink_to(os.path.relpath(payload, blobs))
    made.rename(payload)
    (snapshot / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    return snapshot / "model.safetensors", payload


def flip(path: Path) -> None:
    """One bit of one byte: same length."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture
def digests(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read for their digest."""
    seen: list[Path] = []
    monkeypatch.setattr(checkpoints, "file_digest", lambda p: seen.append(p) or file_digest(p))
    return seen


def hub(monkeypatch: pytest.MonkeyPatch, path: Path, etag: str | None = None) -> None:
    def metadata(url: str) -> SimpleNamespace:
        if etag is None:
            raise OSError("no route")
        assert url.endswith("/" + "c" * 40)
        return SimpleNamespace(etag=etag)

    fake = SimpleNamespace(
        hf_hub_download=lambda name, file: str(path),
        hf_hub_url=lambda name, file, revision: f"https://hub/{name}/{file}/{revision}",
        get_hf_file_metadata=metadata,
    )
    monkeypatch.setattr(published, "require", lambda *args, **kwargs: fake)


@pytest.mark.parametrize("shared", [False, True])
def test_a_damaged_download_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digests: list[Path], shared: bool
) -> None:
    path, payload = cached(tmp_path, os.urandom(5000), shared=shared)
    hub(monkeypatch, path)
    said: list[str] = []
    assert fetch("yyfz233/Pi3", announce=said.append) == path and len(digests) == 1
    assert fetch("yyfz233/Pi3", announce=said.append) == path and len(digests) == 1, "not at every load"
    assert sum("SHA-256" in line for line in said) == 1
    flip(payload)
    os.utime(payload, ns=(1, 1))
    for _ in range(2):
        with pytest.raises(RunError, match="checksum does not match"):
            fetch("yyfz233/Pi3", announce=said.append)
    flip(payload)
    assert fetch("yyfz233/Pi3", announce=said.append) == path and len(digests) == 4


def test_a_damaged_first_download_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, payload = cached(tmp_path, b"weights" * 99)
    flip(payload)
    hub(monkeypatch, path)
    with pytest.raises(RunError, match="checksum does not match"):
        fetch("yyfz233/Pi3", announce=lambda text: None)
    assert not list(path.parent.parent.parent.glob("blobs/*.verified"))


def test_caches_without_links_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = tmp_path / "snapshots" / ("c" * 40) / "model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    said: list[str] = []
    hub(monkeypatch, path, "0" * 64)
    with pytest.raises(RunError, match="checksum does not match"):
        fetch("yyfz233/Pi3", announce=said.append)
    hub(monkeypatch, path)
    with pytest.raises(RunError, match="checksum of yyfz233/Pi3 could not be fetched"):
        fetch("yyfz233/Pi3", announce=said.append)
    hub(monkeypatch, path, file_digest(path))
    assert fetch("yyfz233/Pi3", announce=said.append) == path
    marker = json.loads(path.with_name(path.name + ".verified").read_text())
    assert marker["sha256"] == file_digest(path) and marker["size"] == 7
    assert "could not be verified" not in " ".join(said)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch("yyfz233/Pi3", announce=said.append) == path
    assert "could not be verified" in said[-1], "no digest anywhere is said, not passed over"


def test_a_known_digest_counts_more_than_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = cached(tmp_path, b"another publisher's bytes")
    hub(monkeypatch, path)
    mine = replace(PUBLISHED["yyfz233/Pi3"], sha256="1" * 64)
    monkeypatch.setattr(loading, "PUBLISHED", {**PUBLISHED, mine.name: mine})
    with pytest.raises(RunError, match="instead of 111111111111"):
        fetch(mine.name, announce=lambda text: None)
    assert all(m.sha256 is None for m in PUBLISHED.values()), "digests here must be true ones"
