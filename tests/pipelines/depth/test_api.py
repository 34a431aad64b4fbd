"""Depth from Python: every kind of picture, K in both forms, prompts, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import relief3d
from corpora.depth_networks import sparse, weights
from relief3d.core.errors import InputError
from relief3d.geometry.projection import depth_to_points, intrinsics
from relief3d.models import packaged as packaged_models
from relief3d.models.metric.interface import GuessedFocalWarning
from relief3d.pipelines.depth.api import DepthModel

H, W = 36, 48


def pixels() -> np.ndarray:
    g = torch.Generator().manual_seed(0)
    return (torch.rand(H, W, 3, generator=g) * 255).to(torch.uint8).numpy()


def model(folder: Path, kind: str = "depth_map") -> DepthModel:
    return relief3d.open_depth_model(str(weights(folder, kind)), device="cpu")


def test_every_kind_of_picture_gives_the_same_depth(tmp_path: Path) -> None:
    array = pixels()
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    opened = model(tmp_path)
    K = (60.0, 60.0, 24.0, 18.0)
    kinds = (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array, tensor)
    found = [opened.predict(p, K=K) for p in kinds]
    for one in found:
        assert torch.equal(one.depth, found[0].depth) and one.K_source == "given"
    assert found[0].depth.shape == (H, W) and torch.equal(found[0].K, intrinsics(*K))
    expected = depth_to_points(found[0].depth.double(), intrinsics(*K)).reshape(-1, 3).float()
    assert torch.equal(found[0].points(), expected)
    as_matrix = opened.predict(array, K=intrinsics(*K).numpy())
    assert torch.equal(as_matrix.depth, found[0].depth)
    grey = opened.predict(array[..., 0], K=K)
    assert torch.equal(grey.depth, opened.predict(np.repeat(array[..., :1], 3, -1), K=K).depth)


def test_a_guess_is_said(tmp_path: Path) -> None:
    with pytest.warns(GuessedFocalWarning, match="depth is right only up to a factor"):
        assert model(tmp_path).predict(pixels()).K_source == "guess"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(tmp_path, "depth_pro").predict(pixels()).K_source == "estimated"


def test_prompts(tmp_path: Path) -> None:
    opened = model(tmp_path, "prompt-refiner")
    assert opened.needs_prompt and opened.name == "prompt-refiner.safetensors"
    prompt = sparse(H, W)
    K = intrinsics(50, 50, 24, 18)
    found = opened.predict(pixels(), prompt=prompt, K=K)
    assert found.confidence is not None and found.confidence.shape == (H, W)
    assert 1.5 < float(found.depth.median()) < 4
    millimetres = (prompt * 1000).round().to(torch.int32).numpy()
    same = opened.predict(pixels(), prompt=millimetres, prompt_unit="mm", K=K)
    assert torch.allclose(same.depth, found.depth, rtol=2e-3)
    with pytest.raises(InputError, match="unit"):
        opened.predict(pixels(), prompt=prompt * 1000, K=K)


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = model(tmp_path)
    with pytest.raises(InputError, match="takes no prompt"):
        opened.predict(pixels(), prompt=sparse(H, W))
    with pytest.raises(InputError, match="needs sparse metric depth"):
        model(tmp_path, "prompt-refiner").predict(pixels())
    with pytest.raises(InputError, match="uint8"):
        opened.predict(pixels().astype(np.float32))
    with pytest.raises(InputError, match=r"must be \(3, H, W\)"):
        opened.predict(torch.zeros(H, W, 3))
    with pytest.raises(InputError, match="K must be"):
        opened.predict(pixels(), K=(1.0, 2.0))
    turned = intrinsics(60, 60, 24, 18).T
    for K, says in (
        (turned, "transposed"),
        (np.diag([60.0, 60.0, 2.0]), "K must be"),
        (intrinsics(60, 60, 24, 18) + torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]]), "no skew"),
        ((60, 60, 2400, 18), "outside the picture"),
        ((0.001, 0.001, 24, 18), "field of view"),
        ((float("nan"), 60, 24, 18), "finite"),
        ("wide", "K must be"),
    ):
        with pytest.raises(InputError, match=says):
            opened.predict(pixels(), K=K)  # type: ignore[arg-type]
    for deep in (np.full((H, W), 30_000, np.uint16), np.full((H, W), 0.5, np.float32)):
        with pytest.raises(InputError, match="does not say which value is white"):
            opened.predict(Image.fromarray(deep))
    with pytest.raises(InputError, match="side is not for a depth_map"):
        relief3d.open_depth_model(str(weights(tmp_path, "depth_map")), device="cpu", side=100)
    for kind, options in (
        ("prompt-refiner", {"side": 0}),
        ("depth_map", {"pixels": float("inf")}),
        ("depth_map", {"pixels": float("nan")}),
        ("pointmap", {"tokens": -1}),
    ):
        with pytest.raises(InputError, match="must be positive"):
            relief3d.open_depth_model(str(weights(tmp_path, kind)), device="cpu", **options)
    folder = tmp_path / "two"
    folder.mkdir()
    for k in range(2):
        Image.fromarray(pixels()).save(folder / f"{k}.png")
    with pytest.raises(InputError, match="2 pictures, one is asked for"):
        opened.predict(folder)
    monkeypatch.setattr(packaged_models, "weights_root", lambda: tmp_path / "none")
    for prompted, name in ((False, "student"), (True, "teacher")):
        with pytest.raises(InputError, match=f"'metric-{name}-mini' is not part of this copy"):
            relief3d.open_depth_model(prompted=prompted)
