"""Coloured clouds and the interface of perceptual encoders."""

from __future__ import annotations

import pytest
import torch

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.eval.metrics.perceptual import (
    NOT_AVAILABLE,
    PerceptualEncoder,
    coloured_cloud,
    cosine,
    perceptual_similarity,
)

SQUARE = torch.tensor([[0.0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]])
FACES = torch.tensor([[0, 1, 2], [0, 2, 3]])


class Constant:
    def __init__(self, image: list[float], points: list[float]) -> None:
        self.image, self.points = torch.tensor(image), torch.tensor(points)

    def embed_image(self, image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self.image

    def embed_points(self, xyz: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
        return self.points


def test_cloud_lies_in_the_unit_ball_and_carries_interpolated_colours() -> None:
    rgb = torch.tensor([[0, 0, 0], [200, 0, 0], [200, 100, 0], [0, 100, 0]], dtype=torch.uint8)
    cloud = coloured_cloud(Mesh(SQUARE, FACES, rgb=rgb), count=500)
    assert cloud.rgb is not None and float(cloud.xyz.norm(dim=1).max()) == pytest.approx(1, abs=1e-6)
    # Red is proportional to x, green to y: undo centring by the relation between colour and place.
    x, y = cloud.xyz[:, 0], cloud.xyz[:, 1]
    red, green = cloud.rgb[:, 0].float(), cloud.rgb[:, 1].float()
    for place, colour in ((x, red), (y, green)):
        a = torch.stack([place, torch.ones_like(place)], 1)
        residual = colour - a @ torch.linalg.lstsq(a, colour[:, None]).solution[:, 0]
        assert float(residual.abs().max()) < 1.5


def test_texture_is_read_with_its_origin_at_the_bottom_left() -> None:
    texture = torch.zeros(2, 2, 3, dtype=torch.uint8)
    texture[0] = 255  # the upper row of the picture is at v > 0.5
    mesh = Mesh(SQUARE, FACES, uv=SQUARE[:, :2] / 2, texture=texture)
    cloud = coloured_cloud(mesh, count=400)
    assert cloud.rgb is not None
    white = cloud.rgb[:, 0] == 255
    assert float(cloud.xyz[white, 1].min()) > float(cloud.xyz[~white, 1].max())


def test_similarity_is_the_cosine_and_empty_without_encoders() -> None:
    mesh, image = Mesh(SQUARE, FACES), torch.zeros(3, 4, 4, dtype=torch.uint8)
    encoder = Constant([1.0, 1.0], [1.0, 0.0])
    assert isinstance(encoder, PerceptualEncoder)
    got = perceptual_similarity({"ulip": encoder}, mesh, image, None)
    assert got == {"ulip": pytest.approx(0.5**0.5)}
    assert perceptual_similarity({}, mesh, image, None) == {} and NOT_AVAILABLE == "n/a"
    with pytest.raises(InputError, match="zero or not finite"):
        cosine(torch.zeros(3), torch.ones(3))
    with pytest.raises(InputError, match="cannot be compared"):
        cosine(torch.ones(2), torch.ones(3))
