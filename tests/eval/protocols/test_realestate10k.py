"""A tiny copy of RealEstate10K: camera text files, frames, and the index file."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from corpora.video_layouts import byte
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.views.camera_rules import CameraSequence
from relief3d.eval.protocols.views.realestate10k import (
    INDEX_FILE,
    PROTOCOLS,
    choose_random,
    read_camera_file,
)

(PROTOCOL,) = PROTOCOLS


def cam_from_world(index: int) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("yx", [0.1 * index, 0.05 * index]).as_matrix()
    out[:3, 3] = (0.3 * index, 0.1, -0.2 * index)
    return out


def write_sequence(
    root, name: str, frames: int, by_time: bool = False, cameras: str = "metadata/test"
) -> None:
    (root / cameras).mkdir(parents=True, exist_ok=True)
    lines = [f"https://www.youtube.com/watch?v={name}"]
    for i in range(frames):
        pose = " ".join(f"{v:.9f}" for v in cam_from_world(i)[:3].ravel())
        lines.append(f"{33000 * (i + 1)} 0.5 0.9 0.5 0.5 0.0 0.0 {pose}")
    (root / cameras / f"{name}.txt").write_text("\n".join(lines) + "\n")
    folder = root / "test" / name if by_time else root / name / "images"
    folder.mkdir(parents=True)
    for i in range(frames):
        file = f"{33000 * (i + 1)}.jpg" if by_time else f"{i:04d}.png"
        Image.new("RGB", (16, 9), (10 * i, 0, 0)).save(folder / file)


def shown(query) -> list[int]:
    return [round(byte(v, 4, 8) / 10) for v in query.scene.views]


def test_random_frames_and_poses(tmp_path):
    write_sequence(tmp_path, "abc", 20)
    write_sequence(tmp_path, "xyz", 6, by_time=True)
    samples = PROTOCOL.open(tmp_path)
    assert [s.name for s in samples] == ["abc", "xyz"]
    for sample, count in zip(samples, (10, 6)):
        query, truth = sample.load_query(), sample.load_truth()
        frames = shown(query)
        assert len(set(frames)) == len(frames) == count  # all frames of a short sequence
        assert frames != sorted(frames)
        expected = np.linalg.inv(np.stack([cam_from_world(i) for i in frames]))
        np.testing.assert_allclose(truth.tensors["world_from_cam"].numpy(), expected, atol=1e-7)
        assert all(v.camera.K is None for v in query.scene.views)
    assert shown(PROTOCOL.open(tmp_path)[0].load_query()) == shown(samples[0].load_query())


def test_the_draw_depends_on_the_name_only():
    def sequence(name):
        return CameraSequence(name, [str(i) for i in range(100)], torch.zeros, torch.zeros)

    assert choose_random(sequence("a")) == choose_random(sequence("a")) != choose_random(sequence("b"))
    assert len(choose_random(sequence("a"))) == 10


def test_the_index_file_decides(tmp_path):
    for name in ("abc", "left_out", "xyz"):
        write_sequence(tmp_path, name, 20)
    order = [7, 3, 19, 0, 11, 5, 2, 14, 9, 16]
    index = {"xyz": [{"idx": i} for i in order], "abc": order[::-1]}
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    samples = PROTOCOL.open(tmp_path)
    assert [s.name for s in samples] == ["xyz", "abc"]
    assert shown(samples[0].load_query()) == order and shown(samples[1].load_query()) == order[::-1]
    # Another order of frames turns relative translations round: the rule matters for imperfect answers.
    index["gone"] = [0, 1]
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"1 of 3 sequences .* have no pictures, such as gone"):
        PROTOCOL.open(tmp_path)
    for bad, message in (
        ({"abc": 3}, "no list"),
        ({"abc": ["x", "y"]}, "no number"),
        ({"abc": [0, 99]}, "frame 99"),
    ):
        (tmp_path / INDEX_FILE).write_text(json.dumps(bad))
        with pytest.raises(InputError, match=message):
            PROTOCOL.open(tmp_path)


def test_truth_scores_perfectly_on_files(tmp_path):
    write_sequence(tmp_path, "abc", 12, cameras="test")
    (sample,) = PROTOCOL.open(tmp_path)
    query, truth = sample.load_query(), sample.load_truth()
    perfect = PROTOCOL.measure(query, truth, Answer({"world_from_cam": truth.tensors["world_from_cam"]}))
    assert PROTOCOL.summarise([perfect])["auc_5"] == 100
    swapped = torch.linalg.inv(truth.tensors["world_from_cam"])  # camera-from-world given by mistake
    wrong = PROTOCOL.measure(query, truth, Answer({"world_from_cam": swapped}))
    assert PROTOCOL.summarise([wrong])["auc_30"] < 90


def test_camera_file(tmp_path):
    write_sequence(tmp_path, "abc", 4)
    file = tmp_path / "metadata" / "test" / "abc.txt"
    cameras = read_camera_file(file)
    assert cameras.timestamps == ("33000", "66000", "99000", "132000")
    assert cameras.intrinsics[0].tolist() == [0.5, 0.9, 0.5, 0.5]
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], lines[3] + " 1.0"]))
    with pytest.raises(InputError, match="no camera file of RealEstate10K"):
        read_camera_file(file)
    file.write_text("\n".join([*lines[:2], lines[2].replace("0.100000000", "x")]))
    with pytest.raises(InputError, match="no camera file of RealEstate10K"):
        read_camera_file(file)
    words = lines[2].split()
    words[7:10] = ["2.0", "0.0", "0.0"]
    file.write_text("\n".join([*lines[:2], " ".join(words)]))
    with pytest.raises(InputError, match="the pose of frame 1 is not a rigid transform"):
        read_camera_file(file).world_from_cam([1])
    file.write_text(lines[0] + "\n" + lines[1])
    with pytest.raises(InputError, match="1 frames, at least two"):
        PROTOCOL.open(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="does not look like RealEstate10K"):
        PROTOCOL.open(tmp_path)
    write_sequence(tmp_path, "abc", 12)
    (tmp_path / "abc" / "images" / "0005.png").unlink()
    (sample,) = PROTOCOL.open(tmp_path)
    chosen = choose_random(CameraSequence("abc", ["x"] * 12, torch.zeros, torch.zeros))
    if 5 not in chosen:
        (tmp_path / "abc" / "images" / f"{chosen[0]:04d}.png").unlink()
    with pytest.raises(InputError, match="is missing"):
        sample.load_query()
    (tmp_path / "abc" / "images").rename(tmp_path / "abc" / "elsewhere")
    (tmp_path / "abc").rename(tmp_path / "def")
    with pytest.raises(InputError, match="no sequence has pictures"):
        PROTOCOL.open(tmp_path)


def test_published_rows():
    rows = {r.method: r.values for r in PROTOCOL.published()}
    assert rows["VGGT"] == {"auc_5": 38.597, "auc_15": 66.404, "auc_30": 78.833}


def test_without_the_index_file_frames_are_not_the_published_ones(tmp_path):
    write_sequence(tmp_path, "aa", 12)
    samples = PROTOCOL.open(tmp_path)
    assert "other sequences and frames" in PROTOCOL.deviation(tmp_path, samples)
    (tmp_path / INDEX_FILE).write_text('{"aa": [1, 3]}')
    assert PROTOCOL.deviation(tmp_path, samples) is None
