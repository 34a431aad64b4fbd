"""Depth rendered from meshes: masks, limits, the order of the means, skipped frames."""

import numpy as np
import pytest
import torch

from corpora.evaluation import measure_samples, truthful
from corpora.scans import pose, wall, write_scannet
from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Measurement, Truth
from relief3d.eval.protocols.registry import find_protocol

PROTOCOL = find_protocol("scannet_depth2d")


def measured(root, mesh):
    (sample,) = PROTOCOL.open(root)
    return PROTOCOL.measure(sample.load_query(), sample.load_truth(), Answer(mesh=mesh)).values


def test_by_an_independent_few_liner(tmp_path):
    near, far = np.full((480, 640), 2.2), np.full((480, 640), 2.0)
    near[:, :320] = 0.0  # the sensor is blind on the left
    far[:240] = 11.0  # too far at the top
    poses = {0: pose(), 1: pose(z=0.2), 2: pose(degrees=180.0), 3: pose()}
    blind = np.zeros((480, 640))
    write_scannet(tmp_path, poses=poses, depths={0: near, 1: far, 2: near, 3: blind})
    got = measured(tmp_path, wall(2.0, half=0.5))
    frames = []
    for z, g in ((2.0, near), (1.8, far)):
        u, v = (np.arange(640) + 0.5 - 320) / 500 * z, (np.arange(480) + 0.5 - 240) / 500 * z
        seen = (np.abs(u)[None] <= 0.5) & (np.abs(v)[:, None] <= 0.5)
        d = np.where(seen, z, 0.0)
        m = (d > 0) & (g > 0) & (g < 10)
        e, r = np.abs(d - g)[m], np.maximum(d[m] / g[m], g[m] / d[m])
        log = np.log(d[m] / g[m])
        frames.append(
            {
                "abs_rel": 100 * (e / g[m]).mean(),
                "abs_diff": 100 * e.mean(),
                "sq_rel": 100 * (e**2 / g[m]).mean(),
                "rmse": 100 * np.sqrt((e**2).mean()),
                "rmse_log": 100 * np.sqrt((log**2).mean()),
                **{k: 100 * (r < t).mean() for k, t in (("d105", 1.05), ("d110", 1.1), ("d125", 1.25))},
                "comp": 100 * (d > 0).mean(),
            }
        )
        frames[-1]["pixels"] = m.sum()
    for key in frames[0].keys() - {"pixels"}:
        want = (frames[0][key] + frames[1][key]) / 2
        assert got[key] == pytest.approx(want, rel=2e-5, abs=1e-4), key
    assert got["skipped"] == 2.0  # one looks away, one is blind
    # Neighbours: pixels pooled over frames, skipped frames in the divisor (NeuralRecon), Comp inside the mask.
    pooled = sum(f["abs_rel"] * f["pixels"] for f in frames) / sum(f["pixels"] for f in frames)
    assert abs(pooled - got["abs_rel"]) > 0.02
    assert abs(got["abs_rel"] - (frames[0]["abs_rel"] + frames[1]["abs_rel"]) / 4) > 1
    assert got["comp"] < 99


def test_means_run_over_scenes_and_skipped_frames_add_up():
    scenes = [{"abs_rel": 4.0, "comp": 90.0, "skipped": 2.0}, {"abs_rel": 8.0, "comp": 70.0, "skipped": 1.0}]
    got = PROTOCOL.summarise([Measurement(str(i), str(i), v) for i, v in enumerate(scenes)])
    assert got["abs_rel"] == 6.0 and got["comp"] == 80.0 and got["skipped"] == 3.0


def test_nothing_to_compare(tmp_path):
    write_scannet(tmp_path, poses={0: pose()}, depths={0: np.zeros((480, 640))})
    with pytest.raises(InputError, match="no valid pixels"):
        measured(tmp_path, wall())
    write_scannet(tmp_path, poses={0: pose()})
    behind = measured(tmp_path, wall(-2.0))
    assert behind["comp"] == 0.0 and behind["skipped"] == 1.0 and "abs_rel" not in behind
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert measured(tmp_path, empty) == behind, "its frames are skipped too, and counted"
    (sample,) = PROTOCOL.open(tmp_path)
    assert PROTOCOL.failure(sample.load_query(), Truth(), "").values["comp"] == 0.0
    reversed_faces = measured(tmp_path, wall(facing=1))
    assert reversed_faces["comp"] == 0.0, "faces seen from behind are looked through"


def test_twin_and_published_rows():
    samples = PROTOCOL.twin("smoke", 1)
    summary = PROTOCOL.summarise(measure_samples(PROTOCOL, samples, truthful))
    for column in PROTOCOL.columns:
        if column.better == "lower":
            assert summary[column.key] <= PROTOCOL.floors[column.key]
        elif column.better == "higher":
            assert summary[column.key] >= PROTOCOL.floors[column.key]
    rows = {r.method: r.values for r in PROTOCOL.published()}
    assert rows["VFM-Recon"] == {
        "abs_rel": 5.0, "abs_diff": 8.1, "sq_rel": 3.7, "d105": 85.5, "d125": 96.8, "comp": 97.5,
    }  # fmt: skip
    assert "d105" not in rows["NeuralRecon"] and len(rows) == 9
