"""TUM RGB-D meshes: the reference is fused from near sensor depth, and the mask is what was observed."""

import pytest
import torch

from corpora.evaluation import measure_samples, truthful
from corpora.scans import join, pose, wall, write_tum
from relief3d.core.contract import Camera, Depth, View
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.registry import find_protocol
from relief3d.eval.protocols.surfaces.tum_mesh import near_depth, sensor_truth

PROTOCOL, ATLAS = find_protocol("tum_mesh"), find_protocol("tum_mesh_atlas")
K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]], dtype=torch.float64)


def view(depth, name="a", at=None):
    return View(name, Camera(64, 48, K, pose() if at is None else at), depth=Depth.from_values(depth))


def test_depth_beyond_three_and_a_half_metres_is_neither_surface_nor_observed_space():
    depth = torch.full((48, 64), 2.0)
    depth[:, 32:] = 3.6
    assert float(near_depth(view(torch.full((4, 4), 3.5).repeat(12, 16))).min()) == 3.5
    truth = sensor_truth([view(depth)], 0.04, 0.1)
    assert float(truth.mesh.vertices[:, 2].max()) < 2.1
    # Free space in front of the far half was seen only as far as the near half allows: not at all.
    points = torch.tensor([[-0.5, 0.0, 1.5], [0.5, 0.0, 1.5], [-0.5, 0.0, 2.05], [-0.5, 0.0, 2.4]])
    assert truth.occlusion.visible(points).tolist() == [True, False, True, False]
    with pytest.raises(InputError, match="no valid pixels"):
        sensor_truth([view(torch.full((48, 64), 5.0))], 0.04, 0.1)


def test_the_mask_excuses_hidden_surfaces_and_not_floaters():
    truth = sensor_truth([view(torch.full((48, 64), 2.0))], 0.04, 0.04)
    plain = wall(2.0, n=41, half=0.6)
    hidden, floater = wall(2.6, n=41, half=0.6), wall(1.4, n=41, half=0.3)

    def score(mesh):
        return PROTOCOL.values(None, truth, Answer(mesh=mesh))

    assert score(plain)["prec"] == 100.0 and score(join(plain, hidden))["prec"] == 100.0
    assert score(join(plain, floater))["prec"] == pytest.approx(80.0, abs=1)
    # The neighbour's rule trims what no camera sees; its mask-free answer to the same hidden wall:
    without = type(truth)(mesh=truth.mesh, reference=truth.reference)
    assert PROTOCOL.values(None, without, Answer(mesh=join(plain, hidden)))["prec"] == pytest.approx(
        50, abs=1
    )


def test_real_layout(tmp_path):
    write_tum(tmp_path, "freiburg3_structure_texture_far", [10.0, 10.1])
    (sample,) = PROTOCOL.open(tmp_path)
    assert sample.name == "freiburg3_structure_texture_far"
    query, truth = sample.load_query(), sample.load_truth()
    assert len(query.scene) == 2 and query.wants == ("mesh",)
    assert float((truth.mesh.vertices[:, 2] - 2.0).abs().max()) < 2e-3
    spread = (truth.reference[:, 0].max() - truth.reference[:, 0].min()).item()
    assert truth.reference.shape[0] == pytest.approx(spread * 1.78 / 0.02**2, rel=0.2), "2 cm voxels"
    got = PROTOCOL.measure(query, truth, truthful(query, truth)).values
    assert got["f1"] > 99.9 and got["acc"] < 1.5


@pytest.mark.parametrize("protocol", [PROTOCOL, ATLAS], ids=lambda p: p.name)
def test_twin_and_published_rows(protocol):
    samples = protocol.twin("smoke", 2)
    summary = protocol.summarise(measure_samples(protocol, samples, truthful))
    assert summary["f1"] > 99.9 and summary["acc"] <= protocol.floors.get("acc", 1e-6)
    rows = {r.method: r.values for r in protocol.published()}
    assert rows["VFM-Recon"] == {"prec": 43.6, "recall": 50.7, "f1": 46.7} and len(rows) == 9
