"""ISO3D: pictures with transparency, nothing but similarity."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corpora.evaluation import measure_samples, truthful
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Truth
from relief3d.eval.protocols.objects.iso3d import Iso3d


class Colour:
    """An encoder that knows only mean colours."""

    def embed_image(self, image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        assert mask is not None
        return image[:, mask].mean(1)

    def embed_points(self, xyz: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
        return rgb.mean(0)


def picture(path: Path, alpha: int = 255) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6] = (200, 40, 40, alpha)
    Image.fromarray(pixels).save(path)


def test_masks_come_from_transparency(tmp_path: Path) -> None:
    (tmp_path / "png@1024").mkdir()
    for name in ("b10", "b2"):
        picture(tmp_path / "png@1024" / f"{name}.png")
    samples = Iso3d().open(tmp_path)
    assert [s.name for s in samples] == ["b2", "b10"]
    query = samples[0].load_query()
    assert int(query.tensors["mask"].sum()) == 16 and query.wants == ("mesh",)
    assert query.scene is not None and query.scene.views[0].load_image()[0, 0, 0] == 1  # on white
    assert samples[0].load_truth() == Truth()


def test_bad_folders_and_pictures(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        Iso3d().open(tmp_path / "none")
    with pytest.raises(InputError, match=r"no \.png"):
        Iso3d().open(tmp_path)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "opaque.png")
    with pytest.raises(InputError, match="transparency"):
        Iso3d().open(tmp_path)[0].load_query()
    picture(tmp_path / "opaque.png", alpha=0)
    with pytest.raises(InputError, match="transparent everywhere"):
        Iso3d().open(tmp_path)[0].load_query()


def test_similarity_is_not_available_without_an_encoder_and_zero_for_nothing() -> None:
    plain, plugged = Iso3d(), Iso3d({"uni3d": Colour()})
    samples = plain.twin("smoke")
    summary = plain.summarise(measure_samples(plain, samples, truthful))
    assert math.isnan(summary["ulip"]) and math.isnan(summary["uni3d"]) and summary["answered"] == 100
    with_one = plugged.summarise(measure_samples(plugged, samples, truthful))
    assert 0.5 < with_one["uni3d"] <= 1 and math.isnan(with_one["ulip"])
    query = samples[0].load_query()
    empty = plugged.measure(query, Truth(), Answer())
    assert empty.values == {"answered": 0.0, "uni3d": 0.0}
    failed = plugged.failure(query, Truth(), "x")
    assert failed is not None and failed.values == empty.values


def test_published_rows_are_the_part_of_table_2_without_shapes() -> None:
    rows = Iso3d().published()
    assert len(rows) == 7
    assert (rows[0].method, rows[0].values) == ("Trellis", {"ulip": 0.1473, "uni3d": 0.3698})
    assert rows[-1].values == {"ulip": 0.1488, "uni3d": 0.3707}


def test_twin_shows_one_object_on_white() -> None:
    query = Iso3d().twin("smoke")[0].load_query()
    assert query.scene is not None
    image, mask = query.scene.views[0].load_image(), query.tensors["mask"][0]
    assert bool((image[:, ~mask] == 1).all()) and bool(mask.any())
