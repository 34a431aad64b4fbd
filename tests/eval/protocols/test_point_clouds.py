"""Point cloud protocols: frames, measuring on the true grid, and tiny copies of 7-Scenes and NRGBD."""

import numpy as np
import pytest
import torch
from PIL import Image

from corpora.evaluation import measure_samples, truthful
from corpora.video_layouts import byte
from relief3d.core.errors import InputError
from relief3d.eval.metrics.points import score_point_maps
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.views.point_clouds import NRGBD_K, PROTOCOLS, SEVENSCENES_K, strided_frames
from relief3d.geometry.rotations import matrix_from_axis_angle

SEVENSCENES, NRGBD = PROTOCOLS
SIZE = (480, 640)


@pytest.mark.parametrize(
    ("count", "stride", "expected"),
    [
        (1000, 200, [0, 200, 400, 600, 800]),
        (500, 200, [0, 200, 400]),
        (6, 200, [0, 3]),
        (3, 200, [0, 1, 2]),
        (5, 2, [0, 2, 4]),
    ],
)
def test_strided_frames(count, stride, expected):
    assert strided_frames(count, stride) == expected


def test_too_few_frames():
    with pytest.raises(InputError, match="at least two frames"):
        strided_frames(1, 200)


@pytest.fixture(scope="module")
def sample():
    return NRGBD.twin("smoke")[0]


def test_twin_takes_strided_frames(sample):
    query = sample.load_query()
    assert [v.name for v in query.scene.views] == ["000000.png", "000003.png"]
    assert all(v.camera.K is None and v.camera.world_from_cam is None for v in query.scene.views)


def test_measured_as_section_6_4_says(sample):
    query, truth = sample.load_query(), sample.load_truth()
    t = truth.tensors
    generator = torch.Generator().manual_seed(0)
    noise = 0.03 * torch.randn(t["world_points"].shape, generator=generator, dtype=torch.float64)
    turn = matrix_from_axis_angle(torch.tensor([0.3, 0.2, -1.0]).double())
    points = 0.2 * (t["world_points"] + noise) @ turn.T + 4
    points[~t["valid"]] = torch.nan
    got = NRGBD.measure(query, truth, Answer({"world_points": points})).values
    scores = score_point_maps(points, t["world_points"], t["valid"], 0.1)
    assert got["accuracy"] == scores.accuracy and got["completeness_median"] == scores.completeness_median
    assert got["normals"] == pytest.approx((scores.normals_accuracy + scores.normals_completeness) / 2)
    assert scores.normals_accuracy != pytest.approx(scores.normals_completeness, abs=1e-6)
    assert 0.005 < got["accuracy"] < 0.05
    assert got["accuracy_median"] < got["accuracy"]


def test_points_of_another_size_and_depth_answers(sample):
    query, truth = sample.load_query(), sample.load_truth()
    t = truth.tensors
    half = t["world_points"][:, ::2, ::2]
    values = NRGBD.measure(query, truth, Answer({"world_points": half})).values
    assert 1e-4 < values["accuracy"] < 0.2
    posed = {"depth": t["depth"], "K": t["K"], "world_from_cam": t["world_from_cam"]}
    assert NRGBD.measure(query, truth, Answer(posed)).values["accuracy"] < 1e-6
    with pytest.raises(InputError, match="expected"):
        NRGBD.measure(query, truth, Answer({"world_points": half[:1]}))
    with pytest.raises(InputError, match="lacks"):
        NRGBD.measure(query, truth, Answer({"world_from_cam": t["world_from_cam"]}))


def test_sequences_count_the_same_and_failures_too(sample):
    perfect = measure_samples(NRGBD, [sample], truthful)[0]
    query, truth = sample.load_query(), sample.load_truth()
    failed = NRGBD.failure(query, truth, "crashed")
    xyz = truth.tensors["world_points"][truth.tensors["valid"]]
    assert failed.values["completeness"] == pytest.approx(float((xyz - xyz.mean(0)).norm(dim=-1).mean()))
    got = NRGBD.summarise([perfect, failed])
    assert got["completeness"] == pytest.approx(failed.values["completeness"] / 2)
    assert got["normals"] == pytest.approx(0.5)


def write_depth(path, value: int) -> None:
    depth = np.full(SIZE, value, dtype=np.uint16)
    depth[0], depth[1], depth[2] = 0, 65535, 10500  # unknown, the sensor's mark, beyond 10 m
    Image.fromarray(depth).save(path)


def write_sevenscenes(root, scene: str, sequence: int, frames: int = 3) -> None:
    folder = root / scene / f"seq-{sequence:02d}"
    folder.mkdir(parents=True)
    (root / scene / "TestSplit.txt").write_text(f"sequence{sequence}\n")
    for i in range(frames):
        stem = folder / f"frame-{i:06d}"
        Image.new("RGB", SIZE[::-1], (50 * i, 0, 0)).save(f"{stem}.color.png")
        write_depth(f"{stem}.depth.proj.png", 1000 + 100 * i)
        pose = np.eye(4)
        pose[2, 3] = 0.1 * i
        np.savetxt(f"{stem}.pose.txt", pose)


def check_truth(truth, K: tuple[float, float, float, float]) -> None:
    """Pixel (u, v) counted from 0 at depth z is ((u - cx) z / fx, (v - cy) z / fy, z), as the papers' code has it."""
    assert not truth["valid"][:, :3].any() and bool(truth["valid"][:, 3:].all())
    fx, fy, cx, cy = K
    u, v = 600, 100
    z = float(truth["depth"][0, v, u])
    local = torch.linalg.inv(truth["world_from_cam"][0]) @ torch.cat(
        [truth["world_points"][0, v, u], torch.ones(1)]
    )
    assert local[:3].tolist() == pytest.approx([(u - cx) * z / fx, (v - cy) * z / fy, z], rel=1e-6)


def test_sevenscenes_layout(tmp_path):
    write_sevenscenes(tmp_path, "chess", 3)
    write_sevenscenes(tmp_path, "fire", 4, frames=2)
    (tmp_path / "chess" / "seq-01").mkdir()  # a training sequence
    samples = SEVENSCENES.open(tmp_path)
    assert [(s.name, s.group) for s in samples] == [("chess/seq-03", "chess"), ("fire/seq-04", "fire")]
    query, truth = samples[0].load_query(), samples[0].load_truth().tensors
    assert [byte(v, 0, 0) for v in query.scene.views] == [0, 50, 100]
    assert truth["depth"][:, 9, 9].tolist() == pytest.approx([1.0, 1.1, 1.2])
    assert truth["world_from_cam"][:, 2, 3].tolist() == pytest.approx([0.0, 0.1, 0.2])
    check_truth(truth, SEVENSCENES_K)


def test_sevenscenes_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="does not look like 7-Scenes"):
        SEVENSCENES.open(tmp_path)
    write_sevenscenes(tmp_path, "chess", 3)
    (tmp_path / "chess" / "TestSplit.txt").write_text("sequence3\nsequence5\n")
    with pytest.raises(InputError, match=r"holds no frame-\*\.color\.png"):
        SEVENSCENES.open(tmp_path)
    (tmp_path / "chess" / "TestSplit.txt").write_text("sequence3\n")
    (tmp_path / "chess" / "seq-03" / "frame-000000.depth.proj.png").unlink()
    with pytest.raises(InputError, match="not in the release") as caught:
        SEVENSCENES.open(tmp_path)[0].load_truth()
    assert "7scenes_preprocessing" in caught.value.remedy
    (tmp_path / "chess" / "TestSplit.txt").write_text("none\n")
    with pytest.raises(InputError, match="names no sequence"):
        SEVENSCENES.open(tmp_path)


def write_nrgbd(root, scene: str, frames: int = 4) -> None:
    folder = root / scene
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    rows = []
    for i in range(frames):
        Image.new("RGB", SIZE[::-1], (50 * i, 0, 0)).save(folder / "images" / f"img{i}.png")
        write_depth(folder / "depth" / f"depth{i}.png", 2000 + 100 * i)
        pose = np.eye(4)
        pose[0, 3] = 0.1 * i
        rows.append(np.full((4, 4), np.nan) if i == 1 else pose)
    np.savetxt(folder / "poses.txt", np.concatenate(rows))


def test_nrgbd_layout(tmp_path):
    write_nrgbd(tmp_path, "kitchen")
    (one,) = NRGBD.open(tmp_path)
    query, truth = one.load_query(), one.load_truth().tensors
    # Frame 1 has no pose; three are left, of which every one is taken.
    assert [v.name for v in query.scene.views] == ["img0.png", "img2.png", "img3.png"]
    assert [byte(v, 0, 0) for v in query.scene.views] == [0, 100, 150]
    assert truth["depth"][:, 9, 9].tolist() == pytest.approx([2.0, 2.2, 2.3])
    # OpenGL cameras of the file look along -z: in front of the identity is negative z of the world.
    assert torch.equal(truth["world_from_cam"][0, :3, :3], torch.diag(torch.tensor([1.0, -1, -1])).double())
    assert float(truth["world_points"][0, 9, 9, 2]) == pytest.approx(-2.0)
    check_truth(truth, NRGBD_K)


def test_nrgbd_names_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="does not look like NRGBD"):
        NRGBD.open(tmp_path)
    write_nrgbd(tmp_path, "kitchen")
    (tmp_path / "kitchen" / "depth" / "depth2.png").unlink()
    with pytest.raises(InputError, match="depth map is missing"):
        NRGBD.open(tmp_path)[0].load_truth()
    (tmp_path / "kitchen" / "images" / "img3.png").unlink()
    with pytest.raises(InputError, match="16 rows for 3 pictures"):
        NRGBD.open(tmp_path)
