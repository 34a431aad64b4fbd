"""SA-3DAO: reading, and the rules that set its numbers apart."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from corpora.evaluation import measure_samples, truthful
from relief3d.core.contract import Mesh
from relief3d.core.seeding import torch_generator
from relief3d.eval.metrics.icp import NeighbourTree
from relief3d.eval.metrics.mesh import sample_surface
from relief3d.eval.metrics.shapes import cube_rotations, normalise_mesh
from relief3d.eval.protocols.base import Answer, Query, Truth
from relief3d.eval.protocols.objects.sa3dao import PROTOCOLS
from relief3d.eval.protocols.objects.shape_rules import SAMPLING, ShapeProtocol, sampling_of
from relief3d.eval.twins.objects import ObjectPlan, render_objects
from relief3d.io.glb import write_glb
from relief3d.io.images import write_image

SHAPE, LAYOUT = PROTOCOLS
assert isinstance(SHAPE, ShapeProtocol)


def bumpy(mesh: Mesh, strength: float = 0.03) -> Mesh:
    return Mesh(mesh.vertices + strength * torch.sin(7 * mesh.vertices.roll(1, 1) + 1), mesh.faces)


def first() -> tuple[Query, Truth]:
    sample = SHAPE.twin("smoke")[0]
    return sample.load_query(), sample.load_truth()


def test_chamfer_column_is_plain_and_both_powers_are_there() -> None:
    query, truth = first()
    assert truth.mesh is not None
    sampling = dataclasses.asdict(dataclasses.replace(SAMPLING["smoke"], starts="identity", icp_iterations=0))
    truth = Truth(mesh=truth.mesh, facts={"sampling": sampling})
    prediction = bumpy(truth.mesh)
    values = SHAPE.measure(query, truth, Answer(mesh=prediction)).values
    x = sample_surface(normalise_mesh(prediction), 2000, torch_generator(0)).points
    y = sample_surface(normalise_mesh(truth.mesh), 2000, torch_generator(0)).points
    forward, backward = NeighbourTree(y).query(x)[0], NeighbourTree(x).query(y)[0]
    assert values["chamfer"] == pytest.approx(float(forward.mean() + backward.mean()))
    assert values["chamfer_l2"] == pytest.approx(float((forward**2).mean() + (backward**2).mean()))
    assert values["chamfer"] != pytest.approx(values["chamfer_l2"], rel=0.5)
    # The rule of the surface benchmarks takes half the sum.
    assert values["chamfer"] != pytest.approx(float(forward.mean() + backward.mean()) / 2, rel=0.1)


def test_predictions_are_aligned_by_the_cube_group_but_not_scaled_further() -> None:
    query, truth = first()
    assert truth.mesh is not None
    turned = Mesh(2 * truth.mesh.vertices @ cube_rotations()[11].T.float() + 3, truth.mesh.faces)
    aligned = SHAPE.measure(query, truth, Answer(mesh=turned)).values
    assert aligned["chamfer"] < 1e-4 and aligned["f1_001"] > 0.999
    single = dict(truth.facts["sampling"]) | {"starts": "identity", "icp_iterations": 0}
    left = SHAPE.measure(
        query, Truth(mesh=truth.mesh, facts={"sampling": single}), Answer(mesh=turned)
    ).values
    assert left["chamfer"] > 0.02
    # A squeezed copy keeps its error: a similarity per axis or ICP with scale would hide it.
    squeezed = Mesh(truth.mesh.vertices * torch.tensor([1.0, 0.6, 1.0]), truth.mesh.faces)
    assert SHAPE.measure(query, truth, Answer(mesh=squeezed)).values["chamfer"] > 0.02


def test_empty_predictions_count_and_are_not_dropped() -> None:
    samples = SHAPE.twin("smoke")

    def half(query: Query, truth: Truth) -> Answer:
        return truthful(query, truth) if query.name != samples[0].name else Answer()

    summary = SHAPE.summarise(measure_samples(SHAPE, samples, half))
    assert summary["f1_001"] == pytest.approx(2 / 3)  # dropping it would give 1
    assert summary["emd"] == pytest.approx(2 * math.sqrt(3) / 3)
    assert summary["degenerate"] == pytest.approx(100 / 3)
    query, truth = first()
    failure = SHAPE.failure(query, truth, "out of memory")
    assert failure is not None and failure.values == SHAPE.measure(query, truth, Answer()).values


def test_similarity_needs_encoders_and_never_a_substitute() -> None:
    class Fake:
        def embed_image(self, image: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            assert image.shape == (3, 48, 64) and float(image.max()) <= 1 and mask is not None
            return torch.tensor([1.0, 0.0])

        def embed_points(self, xyz: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
            assert xyz.shape == rgb.shape == (8192, 3) and float(xyz.norm(dim=1).max()) <= 1 + 1e-5
            return torch.tensor([3.0, 4.0])

    query, truth = first()
    answer = truthful(query, truth)
    assert math.isnan(SHAPE.summarise([SHAPE.measure(query, truth, answer)])["ulip"])
    protocol = ShapeProtocol("x", "x", "x", tuple, {"ulip": Fake()})
    summary = protocol.summarise([protocol.measure(query, truth, answer)])
    assert summary["ulip"] == pytest.approx(0.6) and math.isnan(summary["uni3d"])
    empty = protocol.summarise([protocol.measure(query, truth, Answer())])
    assert empty["ulip"] == 0.0


def test_published_rows_of_tables_2_and_4_and_the_knockouts() -> None:
    rows = SHAPE.published()
    assert len(rows) == 7 + 6 + 4
    assert rows[6].values == {
        "f1_001": 0.2344, "viou": 0.2311, "chamfer": 0.04, "emd": 0.1211,
    }  # fmt: skip
    layout = LAYOUT.published()
    assert len(layout) == 6 and "MIDI" not in " ".join(r.method for r in layout)
    assert layout[-1].values == {"iou3d": 0.4254, "icp_rot": 20.7667, "add_s": 0.2661, "add_s_01": 0.7232}


def test_a_folder_gives_the_same_numbers_as_the_twin(tmp_path: Path) -> None:
    picture = render_objects(ObjectPlan(0, (48, 64)))
    item = picture.objects[0]
    folder = tmp_path / "cup"
    folder.mkdir()
    write_image(folder / "image.png", picture.image.float() / 255)
    write_image(folder / "mask.png", item.mask.float().expand(3, -1, -1))
    write_glb(folder / "mesh.glb", item.mesh, up="z")
    (sample,) = SHAPE.open(tmp_path)
    query, truth = sample.load_query(), sample.load_truth()
    assert query.scene is not None and torch.allclose(
        query.scene.views[0].load_image(), picture.image.float() / 255, atol=1e-6
    )
    assert torch.equal(query.tensors["mask"][0], item.mask) and query.wants == ("mesh",)
    # The published million of points; measured with fewer here.
    assert sampling_of(truth).points == 1_000_000 and sampling_of(truth).emd_points == 2048
    assert truth.mesh is not None
    quick = Truth(mesh=truth.mesh, facts={"sampling": dataclasses.asdict(SAMPLING["smoke"])})
    measured = SHAPE.measure(query, quick, Answer(mesh=bumpy(item.mesh)))
    twin = Truth(mesh=item.mesh, facts=quick.facts)
    assert measured.values == pytest.approx(
        SHAPE.measure(query, twin, Answer(mesh=bumpy(item.mesh))).values, abs=1e-3
    )
    assert (measured.name, measured.group) == ("cup", "cup") == (sample.name, sample.group)
