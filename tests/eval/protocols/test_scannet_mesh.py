"""ScanNet meshes: each protocol keeps its own culling, clamp, strictness, directions and sampling."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from corpora.evaluation import truthful
from corpora.scans import join, wall, write_scannet
from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.eval.metrics.mesh import sample_surface
from relief3d.eval.metrics.mesh_atlas import refuse_mesh
from relief3d.eval.protocols.base import Answer, Measurement, Truth
from relief3d.eval.protocols.registry import find_protocol
from relief3d.eval.protocols.surfaces.surface_rules import SurfaceTruth, sensor_depth

TF, ATLAS, PLAIN = (find_protocol(n) for n in ("scannet_mesh", "scannet_mesh_atlas", "scannet_mesh_plain"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("scannet")
    write_scannet(root)
    return root


def measured(protocol, data, mesh):
    (sample,) = protocol.open(data)
    return protocol.measure(sample.load_query(), sample.load_truth(), Answer(mesh=mesh)).values


def nearest(a, b):
    return cKDTree(np.asarray(b, dtype=float)).query(np.asarray(a, dtype=float))[0]


def f1(p, r):
    return 2 * p * r / (p + r) if p + r else 0.0


# A wall with an offset of 3 cm, a piece 3 m behind it that no camera sees, and a piece in occluded space.
PREDICTED = join(wall(2.03), wall(5.0, n=5, half=0.5), wall(2.0, n=9, half=0.4, x0=1.9))


def test_transformerfusion_by_an_independent_few_liner(data):
    got = measured(TF, data, PREDICTED)
    points = sample_surface(PREDICTED, 200_000, torch.Generator().manual_seed(0)).points.numpy()
    reference = wall().vertices.numpy()
    # The mask is 1 from x index 20 on (x >= 0.5) and the grid ends at z index 40 (z = 4), y index 30.
    grid = points * 10 + np.array([15, 15, 0])
    kept = (grid[:, 0] <= 19 + 1e-5) & (grid[:, 2] <= 40) & (grid[:, 1] <= 30) & (grid[:, :2] >= 0).all(1)
    forward, backward = nearest(points[kept], reference), nearest(reference, points)
    acc, comp = np.minimum(forward, 1).mean(), np.minimum(backward, 1).mean()
    precision, recall = (forward <= 0.05).mean(), (backward <= 0.05).mean()
    want = {"acc": acc, "comp": comp, "chamfer": (acc + comp) / 2, "prec": precision, "recall": recall}
    for key, value in want.items():
        assert got[key] == pytest.approx(100 * value, rel=1e-6), key
    assert got["f1"] == pytest.approx(100 * f1(precision, recall), rel=1e-6)
    # Neighbours' rules give other numbers: no mask, no clamp, mask on completeness, area samples of the reference.
    everything = nearest(points, reference)
    assert abs(100 * np.minimum(everything, 1).mean() - got["acc"]) > 1
    assert abs(100 * (everything <= 0.05).mean() - got["prec"]) > 1
    area = sample_surface(wall(), 200_000, torch.Generator().manual_seed(1)).points.numpy()
    assert abs(100 * nearest(points[kept], area).mean() - got["acc"]) > 0.1


def test_transformerfusion_clamps_at_one_metre(data):
    got = measured(TF, data, wall(3.7, half=0.3))
    assert got["acc"] == got["comp"] == got["chamfer"] == 100.0


def test_atlas_by_an_independent_few_liner(data):
    got = measured(ATLAS, data, PREDICTED)
    (sample,) = ATLAS.open(data)
    truth = sample.load_truth()
    vertices = refuse_mesh(PREDICTED, truth.cameras()).vertices.numpy()
    assert len(truth.cameras()) == 2 and (truth.cameras()[0].width, truth.cameras()[0].height) == (640, 480)

    def thin(points):
        cells = {}
        for key, p in zip(np.floor((points - points.min(0) + 0.01) / 0.02).astype(int).tolist(), points):
            cells.setdefault(tuple(key), []).append(p)
        return np.array([np.mean(c, axis=0) for c in cells.values()])

    ours, theirs = thin(vertices.astype(float)), thin(wall().vertices.numpy().astype(float))
    forward, backward = nearest(ours, theirs), nearest(theirs, ours)
    precision, recall = (forward < 0.05).mean(), (backward < 0.05).mean()
    assert got["acc"] == pytest.approx(100 * forward.mean(), rel=1e-6)
    assert got["comp"] == pytest.approx(100 * backward.mean(), rel=1e-6)
    assert got["prec"] == pytest.approx(100 * precision, rel=1e-6)
    assert got["recall"] == pytest.approx(100 * recall, rel=1e-6)
    assert got["f1"] == pytest.approx(100 * f1(precision, recall), rel=1e-6)
    assert abs(precision - recall) > 0.02, "swapped directions must show"
    untrimmed = nearest(thin(PREDICTED.vertices.numpy().astype(float)), theirs)
    assert abs(100 * untrimmed.mean() - got["acc"]) > 1, "what no camera sees must not count"


def test_plain_by_an_independent_few_liner(data):
    got = measured(PLAIN, data, PREDICTED)
    generator = torch.Generator().manual_seed(0)
    ours = sample_surface(PREDICTED, 200_000, generator).points.numpy()
    theirs = sample_surface(wall(), 200_000, generator).points.numpy()
    forward, backward = nearest(ours, theirs), nearest(theirs, ours)
    assert got["acc"] == pytest.approx(100 * forward.mean(), rel=1e-6)  # neither mask nor clamp
    assert forward.max() > 2.9
    for cm in (2, 5, 10):
        p, r = (forward <= cm / 100).mean(), (backward <= cm / 100).mean()
        assert got[f"prec{cm}"] == pytest.approx(100 * p, rel=1e-6)
        assert got[f"recall{cm}"] == pytest.approx(100 * r, rel=1e-6)
        assert got[f"f1_{cm}"] == pytest.approx(100 * f1(p, r), rel=1e-6)
    assert got["nc"] == pytest.approx(100.0, abs=1e-3)
    # Without what lies more than 12 cm behind every depth map or beside the pictures, all of the rest is near.
    assert got["f1_5_seen"] > got["f1_5"] + 5


def test_plain_culling_has_a_slack_of_three_voxels(data):
    kept = measured(PLAIN, data, join(wall(2.0, half=0.4), wall(2.11, half=0.4)))
    assert kept["f1_5_seen"] == pytest.approx(kept["f1_5"], abs=0.5)
    culled = measured(PLAIN, data, join(wall(2.0, half=0.4), wall(2.13, half=0.4)))
    assert culled["f1_5_seen"] > culled["f1_5"] + 3


def test_the_three_protocols_disagree_on_the_same_meshes(data):
    one, two, three = (measured(p, data, PREDICTED) for p in (TF, ATLAS, PLAIN))
    for a, b in ((one, two), (one, three), (two, three)):
        assert max(abs(a[k] - b[k]) for k in ("acc", "comp", "chamfer")) > 0.3


def test_no_surface(data):
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    missing = {"acc": 100.0, "comp": 100.0, "chamfer": 100.0, "prec": 100.0, "recall": 0.0, "f1": 0.0}
    assert measured(TF, data, empty) == missing
    (sample,) = TF.open(data)
    assert TF.failure(sample.load_query(), Truth(), "no prediction").values == missing
    assert measured(ATLAS, data, empty) == {"prec": 0.0, "recall": 0.0, "f1": 0.0}
    assert measured(PLAIN, data, empty)["f1_5"] == 0.0
    assert PLAIN.failure(sample.load_query(), Truth(), "").values["nc"] == 0.0
    for protocol in (TF, ATLAS, PLAIN):
        with pytest.raises(InputError, match="no mesh"):
            measured(protocol, data, None)


def test_every_metric_is_averaged_over_scenes():
    values = [{"prec": 100.0, "recall": 50.0, "f1": 66.7}, {"prec": 20.0, "recall": 40.0, "f1": 26.7}]
    got = TF.summarise([Measurement(str(i), str(i), v) for i, v in enumerate(values)])
    assert got["f1"] == pytest.approx(46.7) and got["prec"] == pytest.approx(60.0)
    assert got["f1"] != pytest.approx(f1(60.0, 45.0), abs=1.0)
    assert np.isnan(got["acc"])
    worst = Measurement("x", "x", ATLAS.worst())
    best = Measurement("y", "y", {"acc": 2.0, "prec": 80.0, "recall": 60.0, "f1": 70.0})
    assert ATLAS.summarise([worst, best])["acc"] == 2.0 and ATLAS.summarise([worst, best])["f1"] == 35.0


@pytest.mark.parametrize("protocol", [TF, ATLAS, PLAIN], ids=lambda p: p.name)
def test_twin(protocol):
    samples = protocol.twin("smoke", 3)
    assert len({s.group for s in samples}) == 2
    sample = samples[0]
    query, truth = sample.load_query(), sample.load_truth()
    assert isinstance(truth, SurfaceTruth) and truth.reference.shape[0] > 1000
    assert all(v.camera.K is not None and v.camera.world_from_cam is not None for v in query.scene.views)
    perfect = protocol.measure(query, truth, truthful(query, truth)).values
    assert perfect[{"scannet_mesh_plain": "f1_5"}.get(protocol.name, "f1")] > 99.9
    for key, floor in protocol.floors.items():
        better = next(c.better for c in protocol.columns if c.key == key)
        assert perfect[key] <= floor if better == "lower" else perfect[key] >= floor, key
    assert float(sensor_depth(truth.views[0]).max()) > 0
    if protocol is PLAIN:
        return
    shifted = Mesh(truth.mesh.vertices + torch.tensor([0.2, 0.2, 0.2]), truth.mesh.faces)
    assert protocol.measure(query, truth, Answer(mesh=shifted)).values["f1"] < 60


def test_published_rows_say_which_protocol_they_follow():
    rows = {r.method: r for r in TF.published()}
    assert rows["VFM-Recon"].values["f1"] == 74.3 and "Atlas" in rows["VoRTX"].source
    assert "chamfer" not in rows["VoRTX"].values and rows["VFM-Recon w/o both"].values["recall"] == 71.0
    assert {r.method for r in ATLAS.published()} == {"VoRTX", "NeuralRecon", "Zuo et al.", "PanoRecon"}
    assert all("protocol" in r.source for r in PLAIN.published())
