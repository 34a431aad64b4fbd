"""The framing that is planned from sizes alone against pictures that are really prepared."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from relief3d.core.contract import Camera, View
from relief3d.models.multiview import preprocess
from relief3d.models.multiview.preprocess import Mode, prepare
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.pictures import frame_pictures, plan_framing

SIZES = [(60, 40), (40, 60), (61, 33), (60, 40), (28, 90)]


def pictures(sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, h, w, generator=generator) for w, h in sizes]


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("sizes", [SIZES, SIZES[1:], SIZES[:1], [(56, 42)] * 2])
def test_sizes_alone_give_the_framing_of_the_pictures(mode: Mode, sizes: list[tuple[int, int]]) -> None:
    images = pictures(sizes)
    truth = prepare(images, mode, side=56)
    framing = plan_framing(sizes, mode, 56)
    assert (framing.height, framing.width) == tuple(truth.images.shape[-2:])
    assert torch.equal(framing.network_from_original, truth.network_from_original)
    assert torch.equal(framing.content, truth.content)
    assert framing.notes[: len(truth.notes)] == truth.notes
    views = [View(f"{i}.png", Camera(w, h), image=im) for i, ((w, h), im) in enumerate(zip(sizes, images))]
    order = list(range(len(sizes)))[::-1]
    assert torch.equal(framing.load(views, order), truth.images[order])


def test_a_picture_is_loaded_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(60 + i, 40) for i in range(30)]
    views = [View(f"{i}.png", Camera(*s), image=im) for i, (s, im) in enumerate(zip(sizes, pictures(sizes)))]
    resized, real = [], preprocess._resized

    def counted(image: torch.Tensor, size: tuple[int, int], how: str) -> object:
        resized.append(image.is_meta)
        return real(image, size, how)

    monkeypatch.setattr(preprocess, "_resized", counted)
    framing = plan_framing(sizes, "keep", 56)
    assert resized == [True] * 30, "no pixels are made for a plan"
    resized.clear()
    framing.load(views, [3, 17])
    assert resized == [False, False]


def test_padding_is_not_picture() -> None:
    framing = plan_framing([(56, 28), (28, 56)], "keep", 56)
    assert (framing.width, framing.height) == (56, 56)
    for index, inside in ((0, framing.inside(0)), (1, framing.inside(1).T)):
        assert bool(inside[14:42].all()) and not bool(inside[:14].any()) and not bool(inside[42:].any()), (
            index
        )
    layer = torch.ones(28, 56)
    assert torch.equal(framing.to_network(0, layer) > 0, framing.inside(0))


def test_a_side_given_to_pi3_keeps_shapes_and_says_so() -> None:
    framing = frame_pictures([(80, 40)], MultiviewConfig(model="pi3", side=56), "pi3")
    assert framing.mode == "keep" and any("--side 56" in n for n in framing.notes)
