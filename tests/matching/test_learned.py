"""Learned matchers: the adapters with random weights, and the errors when something is missing."""

import importlib.util

import pytest
import torch
from safetensors.torch import save_file

from relief3d.core.errors import InputError, MissingExtraError
from relief3d.matching.base import Features
from relief3d.matching.learned import (
    DETECTOR_FILE,
    MATCHER_FILE,
    KorniaMatcher,
    SuperPointMatcher,
    load_weights,
    shrink,
)
from relief3d.matching.registry import LEARNED, LICENCE_NOTICE, make_matcher


def missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def picture(height=96, width=128, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LEARNED)
def test_without_weights_there_is_a_clear_error(name, tmp_path):
    with pytest.raises(InputError, match="weights"):
        make_matcher(name, None)
    with pytest.raises(InputError, match="nowhere"):
        make_matcher(name, tmp_path / "nowhere")


def test_unknown_matcher_names_the_choices():
    with pytest.raises(InputError, match="disk-lightglue"):
        make_matcher("orb", None)


@pytest.mark.parametrize("name", LEARNED)
def test_an_empty_weights_folder_or_a_missing_library_is_an_input_error(name, tmp_path):
    library = "transformers" if name.startswith("superpoint") else "kornia"
    expected = MissingExtraError if missing(library) else InputError
    with pytest.raises(expected, match="hub" if missing(library) else "weights are missing"):
        make_matcher(name, tmp_path)


def test_superpoint_has_a_licence_notice():
    assert "non-commercial" in LICENCE_NOTICE["superpoint-lightglue"]


def test_shrink_keeps_positions():
    small, scale = shrink(picture(300, 2000), max_size=512)
    assert small.shape[-1] == 512 and small.shape[-2] % 16 == 0
    assert torch.allclose(
        torch.tensor([small.shape[-1], small.shape[-2]]) * scale, torch.tensor([2000.0, 300.0])
    )
    same, one = shrink(picture(96, 128))
    assert torch.equal(one, torch.ones(2)) and torch.allclose(same[0], picture(96, 128))


class TinyDetector(torch.nn.Module):
    """Stands for DISK: reports three fixed keypoints with integer pixel centres."""

    def forward(self, images):
        class Found:
            keypoints = torch.tensor([[3.0, 4.0], [10.0, 20.0], [30.0, 8.0]])
            descriptors = torch.eye(3)
            detection_scores = torch.tensor([0.1, 0.9, 0.5])

        return [Found()]


class TinyMatcher(torch.nn.Module):
    """Stands for LightGlue: matches equal descriptors and remembers what it was given."""

    def forward(self, data):
        self.seen = data
        same = data["image0"]["descriptors"][0] @ data["image1"]["descriptors"][0].T
        return {"matches": [torch.nonzero(same > 0.5)]}


def test_kornia_adapter_orders_by_score_and_moves_pixel_centres():
    matcher = TinyMatcher()
    adapter = KorniaMatcher("disk-lightglue", TinyDetector(), matcher, max_features=2)
    features = adapter.extract(picture(96, 128))
    assert features.xy.tolist() == [[10.5, 20.5], [30.5, 8.5]]
    assert features.size == (128, 96)
    found = adapter.match(features, features.select(torch.tensor([1, 0])))
    assert sorted(found.tolist()) == [[0, 1], [1, 0]]
    assert matcher.seen["image0"]["image_size"].tolist() == [[128.0, 96.0]]
    empty = features.select(torch.zeros(2, dtype=torch.bool))
    assert adapter.match(features, empty).shape == (0, 2)


def test_features_check_their_numbers_and_follow_masks():
    with pytest.raises(InputError, match="differ in number"):
        Features(torch.zeros(3, 2), torch.zeros(2, 8))
    features = Features(torch.tensor([[0.5, 0.5], [3.5, 1.5], [9.9, 9.9]]), torch.eye(3))
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[1, 3] = True
    assert features.inside(mask).xy.tolist() == [[3.5, 1.5]]
    assert features.keypoint_rows().shape == (3, 4)


def test_weights_of_another_network_are_refused(tmp_path):
    network = torch.nn.Linear(3, 2)
    good, bad, broken = (
        tmp_path / "good.safetensors",
        tmp_path / "bad.safetensors",
        tmp_path / "broken.safetensors",
    )
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, good)
    load_weights(network, good)
    assert torch.equal(network.weight, torch.ones(2, 3))
    save_file({"weight": torch.ones(3, 3), "bias": torch.zeros(2)}, bad)
    with pytest.raises(InputError, match="another network"):
        load_weights(network, bad)
    broken.write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="safetensors"):
        load_weights(network, broken)


@pytest.mark.skipif(missing("kornia"), reason="kornia is not installed (extra 'hub')")
@pytest.mark.parametrize("name", ["disk-lightglue", "aliked-lightglue"])
def test_kornia_networks_load_from_a_folder_and_run(name, tmp_path):
    import kornia.feature as feature

    torch.manual_seed(0)
    detector = (
        feature.DISK() if name.startswith("disk") else feature.ALIKED("aliked-n16", max_num_keypoints=2048)
    )
    matcher = feature.LightGlue(features=None, input_dim=128)
    save_file({k: v.contiguous().clone() for k, v in detector.state_dict().items()}, tmp_path / DETECTOR_FILE)
    save_file({k: v.contiguous().clone() for k, v in matcher.state_dict().items()}, tmp_path / MATCHER_FILE)
    adapter = make_matcher(name, tmp_path)
    first, second = adapter.extract(picture(64, 96)), adapter.extract(picture(96, 64, seed=1))
    assert first.descriptors.shape[1] == 128 and bool((first.xy >= 0).all())
    pairs = adapter.match(first, second)
    assert pairs.ndim == 2 and pairs.shape[1] == 2


@pytest.mark.skipif(missing("transformers"), reason="transformers is not installed (extra 'hub')")
def test_superpoint_network_loads_from_a_folder_and_runs(tmp_path):
    from transformers import LightGlueConfig, LightGlueForKeypointMatching

    torch.manual_seed(0)
    LightGlueForKeypointMatching(LightGlueConfig()).save_pretrained(tmp_path)
    adapter = make_matcher("superpoint-lightglue", tmp_path)
    assert isinstance(adapter, SuperPointMatcher)
    first, second = adapter.extract(picture(64, 96)), adapter.extract(picture(96, 64, seed=1))
    assert first.size == (96, 64) and len(first) > 0
    assert bool((first.xy >= 0).all()) and float(first.xy[:, 0].max()) <= 96
    same = adapter.match(first, first)
    assert same.shape[1] == 2
    assert adapter.match(first, second).shape[1] == 2
