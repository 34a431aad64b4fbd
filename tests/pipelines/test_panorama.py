"""From a panorama to metres through a network that is told the focal length of the views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from geometry.test_panorama import SIDE, SIZE, errors, room
from relief3d.core.errors import InputError
from relief3d.geometry.panorama import icosahedron_views, panorama_directions
from relief3d.geometry.projection import pixel_rays
from relief3d.models.metric.interface import Focal, MetricPrediction
from relief3d.models.metric.pointmap import PointMap
from relief3d.models.metric.pointmap_configs import pointmap_config
from relief3d.models.metric.pointmap_infer import PointMapModel
from relief3d.pipelines.panorama import PanoramaOptions, panorama_distance


class Oracle:
    """Knows the z-depth of every view, up to a scale of its own for each."""

    name, predicts_focal = "oracle", False

    def __init__(self, scales: Tensor) -> None:
        self.scales, self.at = scales, 0

    def predict(self, images: Tensor, focal: Focal | None = None) -> MetricPrediction:
        assert focal is not None and focal.sources == ("given",) * len(images)
        assert focal.pixels.tolist() == [pytest.approx(SIDE / 2)] * len(images)
        _, seen, _ = room()
        lengths = pixel_rays(icosahedron_views(SIDE).K, SIDE, SIDE).norm(dim=-1)
        part = slice(self.at, self.at + len(images))
        self.at += len(images)
        depth = (seen[part] * self.scales[part, None, None] / lengths).float()
        return MetricPrediction(depth, focal.pixels, focal.sources, torch.zeros_like(depth))


def test_metres_of_a_panorama() -> None:
    truth, _, _ = room()
    image = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    found = panorama_distance(Oracle(torch.full((12,), 1.1)), image, PanoramaOptions(SIDE, batch=5))
    wrong = errors(found.distance, 1.1 * truth)
    assert float(wrong[len(wrong) // 2]) < 0.004
    torch.testing.assert_close(found.points.norm(dim=-1), found.distance)
    torch.testing.assert_close(
        found.points / found.distance[..., None], panorama_directions(*SIZE).float(), rtol=0, atol=1e-5
    )
    small = panorama_distance(Oracle(torch.ones(12)), image, PanoramaOptions(SIDE, height=20))
    assert small.distance.shape == (20, 40) and small.scales.shape == (12,)


def test_a_network_runs_end_to_end() -> None:
    torch.manual_seed(0)
    network = PointMap(pointmap_config("nano")).eval()
    with torch.no_grad():
        assert network.mask_head is not None
        network.mask_head.output_blocks[-1].bias.fill_(2.0)
    image = torch.rand(3, 30, 60, generator=torch.Generator().manual_seed(0))
    found = panorama_distance(PointMapModel(network, tokens=9), image, PanoramaOptions(16))
    assert found.distance.shape == (30, 60) and bool(torch.isfinite(found.points).all())
    assert bool((found.distance[found.valid] > 0).all())


def test_other_pictures_are_refused() -> None:
    oracle = Oracle(torch.ones(12))
    for image, words in (
        (torch.rand(3, 40, 60), "twice as wide"),
        (torch.rand(1, 40, 80), "3, H, 2H"),
        (torch.zeros(3, 40, 80, dtype=torch.uint8), "floating"),
    ):
        with pytest.raises(InputError, match=words):
            panorama_distance(oracle, image)
    with pytest.raises(InputError, match="2 pixels"):
        panorama_distance(oracle, torch.rand(3, 40, 80), PanoramaOptions(side=1))
