"""HOI4D from a tiny copy of OmniWorld's layout."""

import json

import numpy as np
import pytest
import torch

from corpora.video_layouts import check_video_rules, depth_map, frame_values, write_picture, write_png16
from relief3d.core.errors import InputError
from relief3d.eval.protocols.registry import find_protocol
from relief3d.eval.tables import markdown_table
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid
from relief3d.pipelines.evaluate.config import EvaluateConfig
from relief3d.pipelines.evaluate.run import evaluate

DEPTH, CAMERAS = find_protocol("hoi4d"), find_protocol("hoi4d_cameras")
FRAMES = {"ZY1/H1/C1": 25, "ZY2/H1/C3": 41}


def world_from_cam(index: int) -> torch.Tensor:
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = matrix_from_axis_angle(torch.tensor([0.01, 0.02, -0.01], dtype=torch.float64) * index)
    out[:3, 3] = torch.tensor([0.1, 0.0, 0.05], dtype=torch.float64) * index
    return out


@pytest.fixture
def hoi4d(tmp_path):
    for k, (name, count) in enumerate(FRAMES.items()):
        base = tmp_path / "OmniWorld-HOI4D" / name
        for i in range(count):
            write_picture(tmp_path / "HOI4D_release/images" / name / f"{i:05d}.png", i)
            write_png16(base / f"prior_depth/{i:05d}.png", depth_map(3 * k + i) * 100)
        for split, frames in ((0, range(0, 20)), (1, range(20, count))):
            info = base / f"camera/recon/split_{split}/info.json"
            info.parent.mkdir(parents=True)
            cameras = [invert_rigid(world_from_cam(i)).tolist() for i in frames]
            info.write_text(json.dumps({"split": list(frames), "extrinsics": cameras}))
    return tmp_path


def test_depth_in_stored_units_of_every_tenth_frame(hoi4d):
    samples = DEPTH.open(hoi4d)
    assert [s.name for s in samples] == list(FRAMES)
    assert frame_values(samples[1]) == [0, 13, 26, 40]
    truth = samples[1].load_truth().tensors
    np.testing.assert_array_equal(truth["depth"][1], np.floor(depth_map(16) * 100).astype(np.uint16))
    assert truth["valid"][:, 3].all()


def test_own_mask_has_no_limit_and_no_clip(hoi4d):
    check_video_rules(DEPTH, DEPTH.open(hoi4d), None, None, [(7000.0, None), (None, 7000.0)])


def test_all_sequences_are_not_the_published_choice(hoi4d, tmp_path):
    def comparable() -> tuple[bool, str]:
        config = EvaluateConfig(
            model="constant", data=hoi4d, out=tmp_path / "out", cache=tmp_path / "cache", panels=0
        )
        result = evaluate("hoi4d", config)
        return result.comparable, markdown_table(DEPTH, [result])

    fair, table = comparable()
    assert not fair and "not the published choice of sequences (no test_50.csv), not comparable" in table
    (hoi4d / "test_50.csv").write_text("Annotation Path,has_prior_depth\nZY2/H1/C3,True\n")
    fair, table = comparable()
    assert fair and "| constant | ours |" in table


def test_results_of_other_data_or_seeds_are_not_overwritten(hoi4d, tmp_path):
    def run(**more: object) -> list[str]:
        config = EvaluateConfig(
            model="constant", out=tmp_path / "out", cache=tmp_path / "cache", panels=0, **more
        )
        evaluate("hoi4d", config)
        return sorted(p.name for p in (tmp_path / "out").glob("*.json"))

    assert run(data=hoi4d) == ["hoi4d.constant.json"]
    assert run(data=hoi4d) == ["hoi4d.constant.json"]
    assert run(data=hoi4d, seed=1) == ["hoi4d.constant-2.json", "hoi4d.constant.json"]
    assert len(run(data=hoi4d, subset="1")) == 3
    assert (tmp_path / "out/hoi4d.md").read_text().count("| constant |") == 3


def test_the_list_of_test_sequences_is_followed(hoi4d):
    (hoi4d / "test_50.csv").write_text("Annotation Path,has_prior_depth\nZY2/H1/C3,True\n")
    assert [s.name for s in DEPTH.open(hoi4d)] == ["ZY2/H1/C3"]
    assert [s.name for s in CAMERAS.open(hoi4d)] == ["ZY2/H1/C3/split_0", "ZY2/H1/C3/split_1"]
    (hoi4d / "test_50.csv").write_text("Path\nZY2\n")
    with pytest.raises(InputError, match="Annotation Path"):
        DEPTH.open(hoi4d)
    (hoi4d / "test_50.csv").write_text("Annotation Path\nZY9/H1/C3\n")
    with pytest.raises(InputError, match=r"ZY9.*is missing"):
        DEPTH.open(hoi4d)


def test_cameras_of_every_split(hoi4d):
    samples = CAMERAS.open(hoi4d)
    assert [s.name for s in samples] == [f"{n}/split_{i}" for n in FRAMES for i in (0, 1)]
    assert [s.group for s in samples] == ["ZY1/H1/C1"] * 2 + ["ZY2/H1/C3"] * 2
    assert frame_values(samples[3]) == [20, 40]
    expected = torch.stack([world_from_cam(20), world_from_cam(40)])
    torch.testing.assert_close(samples[3].load_truth().tensors["world_from_cam"], expected)


def test_damaged_cameras_are_named(hoi4d):
    info = hoi4d / "OmniWorld-HOI4D/ZY1/H1/C1/camera/recon/split_0/info.json"
    for content, message in (
        ({"split": [0, 1]}, "lacks lists"),
        ({"split": [0, 99], "extrinsics": [np.eye(4).tolist()] * 2}, "names frame 99"),
        ({"split": [0, 1], "extrinsics": [[1, 2], [3, 4]]}, "cameras of shape"),
        ({"split": [0, 1], "extrinsics": ["a", "b"]}, "no matrices of numbers"),
    ):
        info.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            CAMERAS.open(hoi4d)
    for path in (hoi4d / "OmniWorld-HOI4D/ZY1").rglob("info.json"):
        path.unlink()
    with pytest.raises(InputError, match="holds no split"):
        CAMERAS.open(hoi4d)
    with pytest.raises(InputError, match="OmniWorld-HOI4D"):
        DEPTH.open(hoi4d / "HOI4D_release")
