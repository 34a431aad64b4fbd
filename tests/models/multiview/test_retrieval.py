"""Descriptors of frames from the encoders that the networks have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from relief3d.core.errors import InputError
from relief3d.models.multiview.configs import pi3_config, vggt_config
from relief3d.models.multiview.pi3 import Pi3
from relief3d.models.multiview.retrieval import SHRINKAGE, thumbnail_descriptors, view_descriptors, whitened
from relief3d.models.multiview.vggt import Vggt

PLACES = 12


class Twice:
    """A video that shows every place twice, the second time shifted by some pixels and noisier."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(PLACES, 3, 6, 6, generator=generator)
        wide = nn.functional.interpolate(coarse, size=(76, 76), mode="bicubic").clamp(0, 1)
        again = (wide[..., 4:74, 5:75] + 0.03 * torch.randn(PLACES, 3, 70, 70, generator=generator)).clamp(
            0, 1
        )
        self.images = torch.cat([wide[..., :70, :70], again])
        self.most = 0

    def load(self, numbers: Sequence[int]) -> torch.Tensor:
        self.most = max(self.most, len(numbers))
        return self.images[list(numbers)]


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"vggt": Vggt(vggt_config("nano")).eval(), "pi3": Pi3(pi3_config("nano")).eval()}


@pytest.mark.parametrize("name", ["vggt", "pi3"])
def test_places_seen_again_are_found(name: str, networks: dict[str, nn.Module]) -> None:
    video = Twice()
    found = view_descriptors(networks[name], video.load, 2 * PLACES, batch=5)
    assert video.most == 5, "no more pictures than asked for at a time"
    assert torch.allclose(found.norm(dim=-1), torch.ones(2 * PLACES), atol=1e-5)
    best = (found[PLACES:] @ found[:PLACES].T).argmax(1)
    assert float((best == torch.arange(PLACES)).double().mean()) >= 0.9


def test_batches_change_nothing(networks: dict[str, nn.Module]) -> None:
    video = Twice()
    one, many = (view_descriptors(networks["vggt"], video.load, 2 * PLACES, batch=b) for b in (1, 24))
    assert torch.allclose(one @ one.T, many @ many.T, atol=1e-4)


def test_whitening_removes_what_all_frames_share(networks: dict[str, nn.Module]) -> None:
    video = Twice()
    raw = view_descriptors(networks["vggt"], video.load, 2 * PLACES, components=None)
    white = whitened(raw, 16)
    different = ~torch.eye(2 * PLACES, dtype=torch.bool).roll(PLACES, 1) & ~torch.eye(
        2 * PLACES, dtype=torch.bool
    )
    assert float((raw @ raw.T)[different].min()) > 0.8, "all frames look alike before"
    assert float((white @ white.T)[different].abs().mean()) < 0.35
    generator = torch.Generator().manual_seed(0)
    blob = torch.randn(200, 6, generator=generator) * torch.tensor([9.0, 5, 4, 3, 3, 2]) + 50
    flat = whitened(blob, 6)
    spread = flat.T @ flat / len(flat)
    assert torch.allclose(spread, torch.eye(6) / 6, atol=0.06), "no axis dominates"
    assert torch.isfinite(whitened(torch.ones(5, 4), 3)).all(), "frames that are all the same"


def test_whitening_is_that_of_the_dense_decomposition_with_little_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    frames, size, kept = 700, 900, 24
    strength = 0.9 ** torch.arange(120.0)
    factors = torch.randn(frames, 120, generator=generator) * strength
    x = factors @ torch.randn(120, size, generator=generator) + 3
    largest = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.dtype == torch.float64:
                largest[0] = max(largest[0], out.numel())
            return out

    with Watch():
        found = whitened(x, kept)
    assert largest[0] <= 0.4 * frames * size, "not all of the descriptors in double precision at once"
    centred = x.double() - x.double().mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    dense = u[:, :kept] * s[:kept] / (s[:kept].square() + SHRINKAGE * s[0].square()).sqrt()
    dense = nn.functional.normalize(dense, dim=-1).float()
    assert found.shape == (frames, kept)
    assert torch.allclose(found @ found.T, dense @ dense.T, atol=2e-3)
    assert torch.equal(found, whitened(x, kept)), "the same every time"


def test_cells_see_where_things_are(networks: dict[str, nn.Module]) -> None:
    """Mirrored pictures have the same contents: told apart only by the grid of cells."""
    image = torch.zeros(1, 3, 70, 70)
    image[..., :35] = 1.0
    both = torch.cat([image, image.flip(-1)])
    both_ways = {
        c: view_descriptors(networks["vggt"], lambda n: both[list(n)], 2, cells=c, components=None)
        for c in (1, 2)
    }
    distance = {c: float(1 - d[0] @ d[1]) for c, d in both_ways.items()}
    assert distance[2] > 2 * distance[1]


def test_thumbnails_ignore_exposure() -> None:
    video = Twice()
    dimmed = thumbnail_descriptors(lambda n: 0.5 * video.load(n) + 0.2, 24, components=None)
    plain = thumbnail_descriptors(video.load, 24, components=None)
    assert torch.allclose(dimmed, plain, atol=1e-4)


def test_bad_input_is_refused(networks: dict[str, nn.Module]) -> None:
    video = Twice()
    with pytest.raises(InputError, match="no encoder"):
        view_descriptors(nn.Linear(2, 2), video.load, 3)
    with pytest.raises(InputError, match="at least one frame"):
        view_descriptors(networks["vggt"], video.load, 0)
    with pytest.raises(InputError, match="patches of 14"):
        view_descriptors(networks["vggt"], lambda n: torch.zeros(len(n), 3, 60, 70), 2)
