"""Tanks and Temples: alignment by cameras, ICP, crop, thinning and strict thresholds on known similarities."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from corpora.evaluation import measure_samples, truthful
from corpora.scans import join, pose, wall, write_tanks
from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.eval.metrics.mesh_tanks import CropPolygon
from relief3d.eval.protocols.base import Answer, Query, Truth
from relief3d.eval.protocols.registry import find_protocol
from relief3d.eval.protocols.surfaces.tanks_temples import TanksTruth, estimated_centres

PROTOCOL = find_protocol("tanks_temples")
SQUARE = torch.tensor([[-0.8, -0.8, 0], [0.8, -0.8, 0], [0.8, 0.8, 0], [-0.8, 0.8, 0]], dtype=torch.float64)
POSES = [pose(), pose(0.3), pose(0.0, 0.3), pose(0.3, 0.3, 0.1), pose(0.1, 0.2, -0.2)]


def bumps(n=161, half=1.0, shift=(0.0, 0.0, 0.0)):
    mesh = wall(2.0, n=n, half=half)
    x, y, _ = mesh.vertices.unbind(-1)
    z = 2.0 + 0.15 * torch.sin(5 * x) * torch.cos(4 * y)
    return Mesh(torch.stack((x, y, z), -1) + torch.tensor(shift), mesh.faces)


def similarity(scale=0.4, degrees=35.0, shift=(3.0, -1.0, 2.0)):
    a = math.radians(degrees)
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = scale * torch.tensor(
        [[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]], dtype=torch.float64
    )
    out[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    return out


def move(mesh, matrix):
    return Mesh((mesh.vertices.double() @ matrix[:3, :3].T + matrix[:3, 3]).float(), mesh.faces)


def unscaled(poses, matrix):
    out = []
    for p in poses:
        q = torch.eye(4, dtype=torch.float64)
        q[:3, :3] = matrix[:3, :3] @ p[:3, :3] / torch.det(matrix[:3, :3]) ** (1 / 3)
        q[:3, 3] = matrix[:3, :3] @ p[:3, 3] + matrix[:3, 3]
        out.append(q)
    return torch.stack(out)


def truth_of(tau=0.05, n=301):
    to_colmap = similarity()
    return TanksTruth(
        reference=bumps(n).vertices,
        crop=CropPolygon("Z", 1.0, 3.0, SQUARE),
        poses=unscaled(POSES, to_colmap),
        scan_from_poses=torch.linalg.inv(to_colmap),
        tau=tau,
    )


def measured(truth, mesh, poses):
    query = Query("s", "surface", ("mesh",))
    return PROTOCOL.measure(query, truth, Answer({"world_from_cam": poses}, mesh)).values


def test_any_frame_and_scale_of_the_answer_is_undone():
    truth, own = truth_of(), similarity(7.0, -80.0, (-4.0, 0.5, 9.0))
    got = measured(truth, move(bumps(), own), unscaled(POSES, own))
    assert got["f1_tau"] > 99.9 and got["f1_tau_noicp"] > 99.9
    assert got["icp_refused"] == 0.0 and got["icp_scale"] < 0.5
    # The cameras alone decide: with cameras of another frame the mesh lies elsewhere.
    assert measured(truth, bumps(), unscaled(POSES, own))["f1_tau"] < 5


def test_icp_corrects_small_errors_and_both_results_are_reported():
    truth, own = truth_of(tau=0.02, n=501), similarity(1.0, 0.0, (0.0, 0.0, 0.0))
    got = measured(truth, bumps(shift=(0.0, 0.0, 0.03)), unscaled(POSES, own))
    assert got["f1_tau"] > 95 and got["f1_tau_noicp"] < 30
    assert got["icp_shift"] == pytest.approx(3.0, abs=0.7) and got["icp_refused"] == 0.0


def test_a_wild_icp_correction_is_refused():
    truth, own = truth_of(tau=0.02, n=501), similarity(1.0, 0.0, (0.0, 0.0, 0.0))
    got = measured(truth, bumps(shift=(0.0, 0.0, 0.3)), unscaled(POSES, own))
    assert got["icp_shift"] > 20 and got["icp_refused"] == 1.0
    assert got["f1_tau"] == got["f1_tau_noicp"] and got["f1_tau"] < 5


def test_scores_by_an_independent_few_liner():
    tau, one = 0.05, similarity(1.0, 0.0, (0.0, 0.0, 0.0))
    truth = truth_of(tau)
    # Half of the surface, a copy 7 cm in front of a part, and a wall outside the polygon.
    half = wall(2.0, n=81, half=0.5, x0=-0.4)
    flat = TanksTruth(
        reference=wall(2.0, n=201).vertices, crop=truth.crop, poses=truth.poses,
        scan_from_poses=truth.scan_from_poses, tau=tau,
    )  # fmt: skip
    mesh = join(half, wall(1.93, n=41, half=0.15, x0=0.4), wall(2.0, n=41, half=0.5, x0=3.0))
    got = measured(flat, mesh, unscaled(POSES, one))

    def thin(points):
        cells = {}
        for key, p in zip(
            np.floor((points - points.min(0) + tau / 4) / (tau / 2)).astype(int).tolist(), points
        ):
            cells.setdefault(tuple(key), []).append(p)
        return np.array([np.mean(c, axis=0) for c in cells.values()])

    def crop(points):
        return points[(np.abs(points[:, :2]) < 0.8).all(1)]

    rng = np.random.default_rng(0)
    parts = [(0.5, -0.4, 2.0), (0.15, 0.4, 1.93), (0.5, 3.0, 2.0)]
    ours = []
    for h, x0, z in parts:
        n = round((2 * h) ** 2 / (tau / 2) ** 2)
        ours.append(np.column_stack([rng.uniform(x0 - h, x0 + h, n), rng.uniform(-h, h, n), np.full(n, z)]))
    ours, theirs = thin(crop(np.concatenate(ours))), thin(crop(flat.reference.numpy().astype(float)))
    forward, backward = cKDTree(theirs).query(ours)[0], cKDTree(ours).query(theirs)[0]
    for name, limit in (("tau", 0.05), ("2tau", 0.1), ("5tau", 0.25), ("5cm", 0.05), ("10cm", 0.1)):
        p, r = (forward < limit).mean(), (backward < limit).mean()
        assert got[f"f1_{name}_noicp"] == pytest.approx(100 * 2 * p * r / (p + r), abs=1.5), name
    assert got["f1_tau_noicp"] < got["f1_2tau_noicp"] < got["f1_5tau_noicp"]
    uncropped = cKDTree(theirs).query(thin(np.concatenate([ours, ours + [3.0, 0, 0]])))[0]
    assert abs((uncropped < tau).mean() - (forward < tau).mean()) > 0.2


def test_long_trajectories_go_through_the_mapping():
    poses = torch.eye(4, dtype=torch.float64).repeat(1700, 1, 1)
    poses[:, 0, 3] = torch.arange(1700)
    truth = dataclasses.replace(truth_of(), mapping=torch.tensor([0, 99, 500, 1000, 1699]))
    query = Query("s", "surface", ("mesh",))
    got = estimated_centres(query, truth, Answer({"world_from_cam": poses}))
    assert got[:, 0].tolist() == [0.0, 99.0, 500.0, 1000.0, 1699.0]
    for count in (4, 1600):  # not a video by the toolbox's rule
        with pytest.raises(InputError, match=f"{count} cameras"):
            estimated_centres(query, truth, Answer({"world_from_cam": poses[:count]}))
    with pytest.raises(InputError, match="1699 entries"):
        estimated_centres(query, truth, Answer({"world_from_cam": poses[:1699]}))


def test_given_poses_stand_in_where_the_answer_brings_none(tmp_path):
    to_scan = torch.linalg.inv(similarity())
    write_tanks(tmp_path, "Church", list(unscaled(POSES, similarity())), to_scan, bumps(301).vertices)
    (sample,) = PROTOCOL.open(tmp_path)
    query, truth = sample.load_query(), sample.load_truth()
    assert truth.tau == 0.025 and query.wants == ("mesh",)
    got = PROTOCOL.measure(query, truth, Answer(mesh=move(bumps(), similarity()))).values
    assert got["f1_tau"] > 98 and got["recall_5cm"] > 99.9


def test_nothing_scores_nothing():
    truth, one = truth_of(), similarity(1.0, 0.0, (0.0, 0.0, 0.0))
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert set(measured(truth, empty, unscaled(POSES, one)).values()) == {0.0}
    assert measured(truth, wall(9.0), unscaled(POSES, one))["f1_10cm"] == 0.0
    assert PROTOCOL.failure(Query("s", "surface", ("mesh",)), Truth(), "").values["f1_tau"] == 0.0
    with pytest.raises(InputError, match="no mesh"):
        measured(truth, None, unscaled(POSES, one))
    with pytest.raises(TypeError):
        PROTOCOL.measure(Query("s", "surface", ("mesh",)), Truth(), Answer(mesh=empty))


def test_twin_and_published_rows():
    samples = PROTOCOL.twin("smoke", 1)
    scene = samples[0].load_query().scene
    assert not scene.metric and scene.views[0].camera.K is not None
    summary = PROTOCOL.summarise(measure_samples(PROTOCOL, samples, truthful))
    assert (
        all(summary[key] >= floor for key, floor in PROTOCOL.floors.items()) and summary["icp_refused"] == 0
    )
    rows = {r.method: r for r in PROTOCOL.published()}
    assert rows["VFM-Recon"].values == {"prec_5cm": 68.6, "recall_5cm": 73.7, "f1_5cm": 70.1}
    assert rows["VFM-Recon naive VGGT only"].values["f1_5cm"] == 33.4
    assert "not stated" in rows["VGGT"].source and "VoRTX" not in rows
