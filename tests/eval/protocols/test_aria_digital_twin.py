"""Layout on pictures with several objects: boxes, ADD-S, alignment per scene, reading."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist

from corpora.evaluation import measure_samples, truthful
from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.eval.metrics.mesh import sample_surface
from relief3d.eval.protocols.base import Answer, Measurement, Query, Truth
from relief3d.eval.protocols.objects.aria_digital_twin import PROTOCOLS
from relief3d.eval.twins.objects import ObjectPlan, render_objects
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.io.glb import write_glb
from relief3d.io.images import write_image

(ADT,) = PROTOCOLS


def changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Query, Truth], Answer]:
    def oracle(query: Query, truth: Truth) -> Answer:
        return Answer({"cam_from_object": change(truth.tensors["cam_from_object"].clone())}, truth.mesh)

    return oracle


def scaled(pose: torch.Tensor, factor: float) -> torch.Tensor:
    pose[:3] *= factor
    return pose


@pytest.fixture(scope="module")
def samples() -> list:
    return ADT.twin("smoke")


def test_boxes_and_add_s_equal_brute_force(samples: list) -> None:
    query, truth = samples[0].load_query(), samples[0].load_truth()
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = matrix_from_axis_angle(torch.tensor([0.0, 0.0, 0.2], dtype=torch.float64))
    turn[:3, 3] = torch.tensor([0.02, 0.0, 0.01])
    pose, true = turn @ truth.tensors["cam_from_object"], truth.tensors["cam_from_object"]
    values = ADT.measure(query, truth, Answer({"cam_from_object": pose}, truth.mesh)).values
    v = truth.mesh.vertices.double().numpy()
    ours, ref = (
        v @ pose[:3, :3].T.numpy() + pose[:3, 3].numpy(),
        v @ true[:3, :3].T.numpy() + true[:3, 3].numpy(),
    )
    low, high = np.maximum(ours.min(0), ref.min(0)), np.minimum(ours.max(0), ref.max(0))
    overlap = np.prod(np.clip(high - low, 0, None))
    union = np.prod(np.ptp(ours, 0)) + np.prod(np.ptp(ref, 0)) - overlap
    assert values["iou3d"] == pytest.approx(overlap / union, abs=1e-6)
    assert values["iou3d"] != pytest.approx(values["iou3d_obb"], abs=1e-3)  # the oriented box is another rule
    x = sample_surface(Mesh(torch.from_numpy(ours), truth.mesh.faces), 600, torch_generator(0)).points.numpy()
    y = sample_surface(Mesh(torch.from_numpy(ref), truth.mesh.faces), 600, torch_generator(0)).points.numpy()
    pairs = cdist(x, y)
    d = pdist(ref).max()
    assert values["add_s"] == pytest.approx((pairs.min(1).mean() + pairs.min(0).mean()) / (2 * d), abs=1e-6)
    assert values["add_s_01"] == float(values["add_s"] < 0.1)
    # Dividing by the diagonal of the box or taking one direction would give other numbers.
    diagonal = np.linalg.norm(np.ptp(ref, 0))
    assert values["add_s"] != pytest.approx(
        (pairs.min(1).mean() + pairs.min(0).mean()) / (2 * diagonal), rel=1e-3
    )


def test_translation_and_scale_do_not_depend_on_the_object_frame(samples: list) -> None:
    query, truth = samples[1].load_query(), samples[1].load_truth()
    # The same posed surface with a mesh stored in the camera frame.
    pose = truth.tensors["cam_from_object"]
    posed = Mesh((truth.mesh.vertices.double() @ pose[:3, :3].T + pose[:3, 3]).float(), truth.mesh.faces)
    values = ADT.measure(query, truth, Answer({"cam_from_object": torch.eye(4)}, posed)).values
    for key in ("add_s", "icp_rot"):
        assert values[key] == pytest.approx(0, abs=1e-3)
    assert values["iou3d"] == pytest.approx(1, abs=1e-3) and values["iou2d"] == pytest.approx(1, abs=0.02)
    far = ADT.measure(query, truth, changed(lambda p: scaled(p, 1.25))(query, truth)).values
    assert far["t_rel"] == pytest.approx(0.25) and far["s_rel"] == pytest.approx(0.25)
    assert far["iou2d"] == pytest.approx(1, abs=0.02)  # scaling about the camera moves no pixel


def test_one_factor_per_picture_undoes_a_common_scale_only(samples: list) -> None:
    summary = ADT.summarise(measure_samples(ADT, samples, changed(lambda p: scaled(p, 0.5))))
    assert summary["iou3d"] < 0.2 and summary["t_rel"] == pytest.approx(0.5)
    assert summary["iou3d_aligned"] == pytest.approx(1, abs=1e-6)
    assert summary["t_rel_aligned"] == pytest.approx(0, abs=1e-6)

    first_of_scene = {s.group: s.name for s in reversed(samples)}

    def one_off(query: Query, truth: Truth) -> Answer:
        factor = 0.5 if query.name in first_of_scene.values() else 1.0
        return changed(lambda p: scaled(p, factor))(query, truth)

    measured = measure_samples(ADT, samples, one_off)
    # The median leaves the two right ones alone; aligning each object by itself would hide the wrong one.
    assert ADT.summarise(measured)["t_rel_aligned"] == pytest.approx(0.5 / 3, abs=1e-6)
    alone = [Measurement(m.name, m.name, m.values, arrays=m.arrays) for m in measured]
    assert ADT.summarise(alone)["t_rel_aligned"] == pytest.approx(0, abs=1e-6)


def test_rotation_error_is_measured_by_icp_on_centred_surfaces(samples: list) -> None:
    query, truth = samples[0].load_query(), samples[0].load_truth()
    shifted = changed(lambda p: p + torch.tensor([[0, 0, 0, 0.4]] * 3 + [[0.0] * 4]))(query, truth)
    values = ADT.measure(query, truth, shifted).values
    assert values["icp_rot"] == pytest.approx(0, abs=1e-3) and values["add_s"] > 0.1


def test_empty_predictions_count_the_worst(samples: list) -> None:
    query, truth = samples[0].load_query(), samples[0].load_truth()
    values = ADT.measure(query, truth, Answer()).values
    assert (values["iou3d"], values["iou2d"], values["add_s_01"], values["icp_rot"]) == (0, 0, 0, 180)
    assert values["add_s"] > 1 and values["t_rel"] == values["s_rel"] == 1
    unknown = Truth({k: v for k, v in truth.tensors.items() if k != "K"}, truth.mesh, truth.facts)
    assert "iou2d" not in ADT.measure(query, unknown, Answer()).values, (
        "failures alone must not make a 2D IoU"
    )
    failed = ADT.failure(query, truth, "crashed")
    assert failed is not None and failed.values == values
    broken = Answer({"cam_from_object": torch.full((4, 4), math.nan)}, truth.mesh)
    assert ADT.measure(query, truth, broken).values["degenerate"] == 1
    both = [failed, ADT.measure(query, truth, truthful(query, truth))]
    summary = ADT.summarise(both)
    assert summary["iou3d"] == summary["iou3d_aligned"] == pytest.approx(0.5)
    with pytest.raises(InputError, match="cam_from_object"):
        ADT.measure(query, truth, Answer(mesh=truth.mesh))


def test_panels_show_both_silhouettes(samples: list) -> None:
    query, truth = samples[0].load_query(), samples[0].load_truth()
    (panel,) = ADT.panels(query, truth, truthful(query, truth)).values()
    goal = truth.tensors["silhouette"][0]
    assert panel.dtype == torch.uint8 and bool((panel[:2, goal] == 255).all())


def test_published_rows_include_the_refinement() -> None:
    rows = ADT.published()
    assert len(rows) == 7 + 2 and rows[5].values["add_s"] == 2.5278
    assert rows[-1].values["iou2d"] == 0.6487 and rows[6].values["iou3d"] == 0.497


def test_an_export_is_read_with_pose_intrinsics_and_points(tmp_path: Path) -> None:
    picture = render_objects(ObjectPlan(0, (48, 64), objects=2))
    scene = tmp_path / "frame_0"
    for i, item in enumerate(picture.objects):
        folder = scene / f"object_{i}"
        folder.mkdir(parents=True)
        write_image(folder / "mask.png", item.mask.float().expand(3, -1, -1))
        write_glb(folder / "mesh.glb", item.mesh, up="z")
        (folder / "pose.json").write_text(json.dumps({"cam_from_object": item.cam_from_object.tolist()}))
    write_image(scene / "image.png", picture.image.float() / 255)
    (scene / "camera.json").write_text(json.dumps({"K": picture.K.tolist(), "pixel_centre": 0.5}))
    np.save(scene / "points.npy", np.zeros((48, 64, 3), np.float32))
    found = ADT.open(tmp_path)
    assert [(s.name, s.group) for s in found] == [
        ("frame_0/object_0", "frame_0"),
        ("frame_0/object_1", "frame_0"),
    ]
    query, truth = found[1].load_query(), found[1].load_truth()
    assert query.tensors["cam_points"].shape == (1, 48, 64, 3) and query.scene is not None
    assert torch.allclose(query.scene.views[0].camera.K, picture.K)
    assert "cam_from_object" not in query.tensors
    measured = ADT.measure(query, truth, truthful(query, truth))
    assert (measured.name, measured.group) == (found[1].name, "frame_0")
    assert measured.values["iou3d"] == 1 and measured.values["add_s"] == 0
    # The real mask is the seen part: close to, but not exactly, the silhouette.
    assert measured.values["iou2d"] > 0.5
    np.save(scene / "points.npy", np.zeros((4, 4, 3), np.float32))
    with pytest.raises(InputError, match="point map"):
        found[0].load_query()
