"""Context analysis: choice of frames, errors on the anchors, covisibility, and ScanNet's exported layout."""

import numpy as np
import pytest
import torch
from PIL import Image

from corpora.evaluation import measure_samples, truthful
from corpora.video_layouts import byte
from relief3d.core.errors import InputError
from relief3d.eval.metrics.camera_conventions import auc_unit_bins, pi3_pair_errors
from relief3d.eval.metrics.depth_alignment import fit_alignment
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.views.scannet_context import (
    CONTEXT,
    GAP,
    PROTOCOLS,
    context_frames,
    covisibility,
)
from relief3d.geometry.projection import depth_to_world_points, project_world
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid, make_rigid

(PROTOCOL,) = PROTOCOLS


def test_anchors_are_far_apart_and_sets_nested():
    sets = [context_frames("scan", 1000, m) for m in CONTEXT]
    for m, frames in zip(CONTEXT, sets):
        assert len(frames) == m + 2 and frames == sorted(set(frames))
        assert frames[-1] - frames[0] == GAP and frames[0] == sets[0][0]
        assert set(sets[0]) <= set(frames) <= set(sets[-1])
    assert len({context_frames(f"scan{i}", 1000, 0)[0] for i in range(10)}) > 5
    assert context_frames("short", 40, 2)[0] == 0 and context_frames("short", 40, 2)[-1] == 39
    with pytest.raises(InputError, match="has 9 frames with a pose, at least 10"):
        context_frames("tiny", 9, 0)


def small_views() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three cameras before a wavy wall."""
    K = torch.tensor([[10.0, 0, 6], [0, 10.0, 4], [0, 0, 1]], dtype=torch.float64).expand(3, 3, 3)
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 0.5, 2.5])
    x, y = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(8) + 0.5, indexing="xy")
    depth = (4 + 0 * x + 0 * y).double().expand(3, 8, 12).clone()
    depth[0, 0, :5] = 0
    depth[1, :, 6:] = 2.0  # something near in the second view hides the wall there
    return depth, K, poses


def test_covisibility_equals_a_loop():
    depth, K, poses = small_views()
    shares = []
    for i in range(3):
        world = depth_to_world_points(depth[i], K[i], poses[i])[depth[i] > 0]
        for j in range(3):
            if j == i:
                continue
            xy, z = project_world(world, K[j], invert_rigid(poses[j]))
            seen = 0
            for (u, v), d in zip(xy.tolist(), z.tolist()):
                if 0 <= u < 12 and 0 <= v < 8 and d > 0:
                    known = float(depth[j, int(v), int(u)])
                    seen += known > 0 and d <= 1.05 * known
            shares.append((i, seen / len(world)))
    expected = np.mean([np.mean([s for v, s in shares if v == i]) for i in range(3)])
    assert covisibility(depth, K, poses) == pytest.approx(expected)
    same = covisibility(depth[2:].expand(2, 8, 12), K[:2], poses[:1].expand(2, 4, 4))
    assert same == 1
    with pytest.raises(InputError, match="no valid pixels"):
        covisibility(torch.zeros_like(depth), K, poses)
    with pytest.raises(InputError, match="two views"):
        covisibility(depth[:1], K[:1], poses[:1])


@pytest.fixture(scope="module")
def twin():
    return PROTOCOL.twin("smoke")[: len(CONTEXT)]


def test_only_the_anchors_count(twin):
    sample = twin[2]
    query, truth = sample.load_query(), sample.load_truth()
    t = truth.tensors
    generator = torch.Generator().manual_seed(0)
    depth = 3 * t["depth"] * (1 + 0.1 * torch.randn(t["depth"].shape, generator=generator))
    turn = 0.1 * torch.randn(len(depth), 3, generator=generator, dtype=torch.float64)
    poses = t["world_from_cam"] @ make_rigid(matrix_from_axis_angle(turn), 0.1 * turn.flip(0))
    got = PROTOCOL.measure(query, truth, Answer({"depth": depth, "world_from_cam": poses}))
    ends = [0, -1]
    p, g = (d[ends][t["valid"][ends]].double() for d in (depth, t["depth"]))
    scale = fit_alignment(p, g, "scale").scale
    expected = float(((scale * p - g).abs() / g).mean())
    m = CONTEXT[2]
    assert got.values[f"abs_rel_m{m}"] == pytest.approx(expected, rel=1e-3)
    worst = pi3_pair_errors(invert_rigid(poses[ends]), invert_rigid(t["world_from_cam"][ends])).worst
    np.testing.assert_allclose(got.arrays[f"worst_m{m}"], worst.numpy(), rtol=1e-9)
    # Errors of the frames between change nothing; those of an anchor do. The scale is one for both anchors.
    between, anchor = depth.clone(), depth.clone()
    between[1:-1] = 7.0
    anchor[0] *= 1.5
    moved = poses.clone()
    moved[1:-1] = torch.eye(4).double()
    same = PROTOCOL.measure(query, truth, Answer({"depth": between, "world_from_cam": moved}))
    assert same.values == got.values and same.arrays[f"worst_m{m}"] == got.arrays[f"worst_m{m}"]
    other = PROTOCOL.measure(query, truth, Answer({"depth": anchor, "world_from_cam": poses}))
    assert other.values[f"abs_rel_m{m}"] > expected + 0.05


def test_summary_by_number_of_frames(twin):
    measurements = measure_samples(PROTOCOL, twin, truthful)
    assert [m.name for m in measurements] == [f"clip000/m{m}" for m in CONTEXT]
    assert {m.group for m in measurements} == {"clip000"}
    failed = PROTOCOL.failure(twin[0].load_query(), twin[0].load_truth(), "crashed")
    got = PROTOCOL.summarise([*measurements, failed])
    assert got["abs_rel_m0"] == pytest.approx(0.5) and got["auc_30_m0"] == pytest.approx(50)
    assert got["abs_rel_m1"] < 1e-6 and got["auc_30_m8"] == 100
    assert failed.arrays["worst_m0"].tolist() == [180.0]
    assert auc_unit_bins(torch.from_numpy(failed.arrays["worst_m0"]), 30) == 0
    assert 0 < got["covisibility_m0"] <= 1
    assert set(got) == {c.key for c in PROTOCOL.columns}


def write_scan(root, name: str, frames: int = 14) -> None:
    folder = root / name
    for part in ("color", "depth", "pose", "intrinsic"):
        (folder / part).mkdir(parents=True)
    np.savetxt(
        folder / "intrinsic" / "intrinsic_depth.txt",
        np.array([[9.0, 0, 5.5, 0], [0, 9.0, 3.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    )
    for i in range(frames):
        Image.new("RGB", (24, 16), (15 * i, 0, 0)).save(folder / "color" / f"{i}.jpg")
        depth = np.full((8, 12), 1500 + i, dtype=np.uint16)
        depth[0, 0] = 0
        Image.fromarray(depth).save(folder / "depth" / f"{i}.png")
        pose = np.eye(4)
        pose[0, 3] = 0.1 * i
        if i == 3:
            pose[:] = -np.inf  # tracking lost
        np.savetxt(folder / "pose" / f"{i}.txt", pose)


def test_exported_layout(tmp_path):
    write_scan(tmp_path / "scans_test", "scene0707_00")
    samples = PROTOCOL.open(tmp_path)
    assert [s.name for s in samples] == [f"scene0707_00/m{m}" for m in CONTEXT]
    query, truth = samples[-1].load_query(), samples[-1].load_truth().tensors
    names = [v.name for v in query.scene.views]
    assert names[0] == "0.jpg" and names[-1] == "13.jpg" and "3.jpg" not in names  # 10 follows 9, not 1
    numbers = [int(n.split(".")[0]) for n in names]
    assert numbers == sorted(numbers)
    assert torch.allclose(truth["world_from_cam"][:, 0, 3], torch.tensor(numbers).double() * 0.1)
    for view, number, depth in zip(query.scene.views, numbers, truth["depth"]):
        assert view.load_image().shape == (3, 8, 12) and abs(byte(view, 4, 6) - 15 * number) < 6
        assert view.camera.K is None
        assert float(depth[3, 3]) == pytest.approx(1.5 + 0.001 * number) and depth[0, 0] == 0
    assert truth["K"][0, :2, 2].tolist() == [6.0, 4.0]  # centres at integers in the file


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="does not look like exported ScanNet"):
        PROTOCOL.open(tmp_path)
    write_scan(tmp_path, "scene0000_00", frames=10)  # one of them without a pose
    with pytest.raises(InputError, match="9 frames with a pose"):
        PROTOCOL.open(tmp_path)[0].load_truth()
    write_scan(tmp_path, "scene0001_00")
    (tmp_path / "scene0001_00" / "pose" / "4.txt").unlink()
    with pytest.raises(InputError, match="is missing"):
        PROTOCOL.open(tmp_path)[-1].load_truth()
    (tmp_path / "scene0001_00" / "pose" / "4.txt").write_text("1 2 3\n")
    with pytest.raises(InputError, match="rows of 3 numbers"):
        PROTOCOL.open(tmp_path)[-1].load_truth()
    (tmp_path / "scene0001_00" / "pose" / "4.txt").write_text("a b c d\n")
    with pytest.raises(InputError, match="not a table of numbers"):
        PROTOCOL.open(tmp_path)[-1].load_truth()
