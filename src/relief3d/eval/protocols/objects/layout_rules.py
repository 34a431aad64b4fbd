"""Rules shared by the layout benchmarks: posed objects in the camera frame."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.boxes3d import aabb_iou, bounds_of, obb_iou, posed_box
from relief3d.eval.metrics.mesh import sample_surface
from relief3d.eval.metrics.object_pose import (
    ADD_S_LIMIT,
    absent_add_s,
    add_s,
    diameter,
    icp_rotation,
    mask_iou,
    relative_scale_error,
    relative_translation_error,
    scene_scale,
    silhouette,
)
from relief3d.eval.metrics.shapes import is_degenerate, used_vertices
from relief3d.eval.panels import fit
from relief3d.eval.protocols.base import (
    Answer,
    Budget,
    Column,
    Measurement,
    Protocol,
    Query,
    Sample,
    Truth,
)
from relief3d.eval.protocols.objects.readers_objects import LAYOUT, ObjectFiles, find_objects
from relief3d.eval.protocols.objects.shape_rules import (
    NOT_COMPARABLE,
    group_of,
    object_query,
    picture_points,
    twin_plans,
)
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.objects import ObjectPlan, object_cache
from relief3d.geometry.transforms import transform_points

POINTS: Mapping[Budget, int] = {"smoke": 600, "mini": 5000}
PUBLISHED_POINTS = 10_000
WANTS = ("mesh", "cam_from_object")

LAYOUT_COLUMNS = (
    Column("iou3d", "3D IoU", better="higher"),
    Column("icp_rot", "ICP-Rot", "deg"),
    Column("add_s", "ADD-S"),
    Column("add_s_01", "ADD-S@0.1", better="higher"),
    Column("iou2d", "2D IoU", better="higher"),
    Column("iou3d_obb", "3D IoU, oriented", better="higher"),
    Column("t_rel", "t rel. error"),
    Column("s_rel", "s rel. error"),
    Column("iou3d_aligned", "3D IoU, scene scale aligned", better="higher"),
    Column("t_rel_aligned", "t rel. error, scene scale aligned"),
    Column("degenerate", "empty", "%"),
)


class LayoutProtocol(Protocol):
    """Pose, size and place of single objects in the camera frame.

    The answer holds a mesh in any object frame and ``cam_from_object`` (4, 4): column vectors, a rotation times a scale
    per object axis, OpenCV camera, metres (or the unit of the given point map). A mesh already in the camera frame
    comes with the identity.
    """

    task = "object"
    version = 2  # failures without intrinsics have no 2D IoU
    columns = LAYOUT_COLUMNS
    layout = LAYOUT
    notes = (
        "3D IoU is that of the axis-aligned boxes of the posed vertices in the camera frame; the oriented box is the "
        "object frame's box carried along by the pose.",
        "ADD-S sums both mean nearest distances and divides by twice the true diameter; ICP-Rot centres both posed "
        "surfaces on their mean and divides by their root-mean-square radius before ICP.",
        "t is the posed centre of the object frame's box, s its longest side times the mean scale: independent of "
        "how a model chooses its object frame.",
        "2D IoU compares the rendered silhouette with the mask; the twin takes the unoccluded mask, a data set "
        "whatever mask it has (occluded objects then cannot reach 1). It needs intrinsics.",
        "'Scene scale aligned' multiplies all objects of a picture by the median ratio of true to predicted depth of "
        "their centres; ADD-S is reported without that alignment only.",
        "Empty predictions count 3D IoU = 2D IoU = ADD-S@0.1 = 0, ICP-Rot = 180 degrees, errors of t and s = 1, and "
        "the ADD-S of a single point at the camera.",
        NOT_COMPARABLE,
    )

    def __init__(
        self, name: str, title: str, source: str, rows: Callable[[], Sequence[PublishedRow]], objects: int
    ) -> None:
        self.name, self.title, self.source = name, title, source
        self._rows, self._objects = rows, objects

    def open(self, data: Path) -> list[Sample]:
        return [self._sample(files) for files in find_objects(data, posed=True)]

    def _sample(self, files: ObjectFiles) -> Sample:
        def query() -> Query:
            return object_query(
                files.name,
                files.load_image(),
                files.load_mask(),
                wants=WANTS,
                K=files.load_K(),
                points=files.load_points(),
            )

        def truth() -> Truth:
            return layout_truth(
                files.load_mesh(),
                files.load_pose(),
                files.load_mask(),
                files.load_K(),
                group=files.group,
                points=PUBLISHED_POINTS,
            )

        return Sample(files.name, files.group, query, truth)

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        make = object_cache()

        def sample(plan: ObjectPlan, index: int) -> Sample:
            scene = f"scene_{plan.seed:06d}"
            name = f"{scene}/object_{index}"

            def query() -> Query:
                picture = make(plan)
                return object_query(
                    name,
                    picture.image,
                    picture.objects[index].mask,
                    wants=WANTS,
                    K=picture.K,
                    points=picture_points(picture),
                )

            def truth() -> Truth:
                picture = make(plan)
                item = picture.objects[index]
                return layout_truth(
                    item.mesh,
                    item.cam_from_object,
                    item.silhouette,
                    picture.K,
                    group=scene,
                    points=POINTS[budget],
                )

            return Sample(name, scene, query, truth)

        plans = twin_plans(budget, seed, smoke=2, mini=10, objects=self._objects)
        return [sample(plan, index) for plan in plans for index in range(plan.objects)]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        if truth.mesh is None:
            raise InputError(f"the truth of '{query.name}' has no mesh")
        if answer.mesh is None or is_degenerate(answer.mesh):
            return self._absent(query, truth)
        pose = answer.need("cam_from_object", (4, 4)).detach().cpu().double()
        if not bool(torch.isfinite(pose).all()) or not bool((pose[:3, :3].norm(dim=0) > 0).all()):
            return self._absent(query, truth)
        true_pose = truth.need("cam_from_object", (4, 4)).double()
        ours, true = _Posed(answer.mesh, pose), _Posed(truth.mesh, true_pose)
        count = int(truth.facts.get("points", PUBLISHED_POINTS))
        x, y = ours.sample(count), true.sample(count)
        span = diameter(true.vertices)
        distance = add_s(x, y, span)
        values = {
            "iou3d": float(aabb_iou(ours.bounds, true.bounds)),
            "iou3d_obb": float(obb_iou(ours.box, true.box)),
            "icp_rot": icp_rotation(x, y),
            "add_s": distance,
            "add_s_01": float(distance < ADD_S_LIMIT),
            "t_rel": float(relative_translation_error(ours.centre, true.centre)),
            "s_rel": float(relative_scale_error(ours.size, true.size)),
            "degenerate": 0.0,
        }
        if "K" in truth.tensors and "silhouette" in truth.tensors:
            goal = truth.tensors["silhouette"][0]
            seen = silhouette(answer.mesh, pose, truth.tensors["K"][0], (goal.shape[0], goal.shape[1]))
            values["iou2d"] = mask_iou(seen, goal)
        arrays = {
            "boxes": torch.stack([*ours.bounds, *true.bounds]).flatten().numpy(),
            "centres": torch.stack([ours.centre, true.centre]).flatten().numpy(),
        }
        return Measurement(query.name, group_of(query, truth), values, arrays=arrays)

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        return self._absent(query, truth)

    def _absent(self, query: Query, truth: Truth) -> Measurement:
        if truth.mesh is None:
            raise InputError(f"the truth of '{query.name}' has no mesh")
        true = _Posed(truth.mesh, truth.need("cam_from_object", (4, 4)).double())
        count = int(truth.facts.get("points", PUBLISHED_POINTS))
        values = dict.fromkeys(("iou3d", "iou3d_obb", "add_s_01"), 0.0)
        if "K" in truth.tensors and "silhouette" in truth.tensors:
            values["iou2d"] = 0.0  # without intrinsics nobody has a 2D IoU, so that failures do not make one
        values |= {"icp_rot": 180.0, "t_rel": 1.0, "s_rel": 1.0, "degenerate": 1.0}
        values["add_s"] = absent_add_s(true.sample(count), diameter(true.vertices))
        return Measurement(query.name, group_of(query, truth), values)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        summary = {c.key: mean(measurements, c.key) for c in self.columns}
        summary["degenerate"] *= 100
        return summary | aligned_means(measurements)

    def published(self) -> Sequence[PublishedRow]:
        return self._rows()

    def panels(self, query: Query, truth: Truth, answer: Answer) -> Mapping[str, Tensor]:
        """The picture with the true silhouette in green, the predicted one in red, both in yellow."""
        if query.scene is None or answer.mesh is None or "K" not in truth.tensors:
            return {}
        goal = truth.need("silhouette")[0]
        size = (goal.shape[0], goal.shape[1])
        seen = silhouette(answer.mesh, answer.need("cam_from_object", (4, 4)), truth.tensors["K"][0], size)
        image = query.scene.views[0].load_image()
        picture = image.clone() if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
        picture[0][seen] = 255
        picture[1][goal] = 255
        return {"silhouettes": fit(picture, 640)}


def layout_truth(
    mesh: Mesh, cam_from_object: Tensor, mask: Tensor, K: Tensor | None, *, group: str, points: int
) -> Truth:
    """Truth of one posed object: mesh, pose, the mask its silhouette is compared with, intrinsics if known."""
    tensors = {"cam_from_object": cam_from_object.double(), "silhouette": mask[None]}
    if K is not None:
        tensors["K"] = K[None].double()
    return Truth(tensors, mesh, {"group": group, "points": points})


def aligned_means(measurements: Sequence[Measurement]) -> dict[str, float]:
    """3D IoU and error of t after one factor per picture (median ratio of depths), means over objects."""
    groups: dict[str, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(m.group, []).append(m)
    overlaps: list[float] = []
    errors: list[float] = []
    for members in groups.values():
        shown = [m for m in members if "centres" in m.arrays]
        depths = [(m.arrays["centres"][2], m.arrays["centres"][5]) for m in shown]
        usable = [(p, t) for p, t in depths if p > 0 and t > 0]
        factor = scene_scale([p for p, _ in usable], [t for _, t in usable]) if usable else 1.0
        overlaps += [0.0] * (len(members) - len(shown))
        errors += [1.0] * (len(members) - len(shown))
        for m in shown:
            box = torch.from_numpy(np.asarray(m.arrays["boxes"], dtype=np.float64)).reshape(4, 3)
            centre = torch.from_numpy(np.asarray(m.arrays["centres"], dtype=np.float64)).reshape(2, 3)
            overlaps.append(float(aabb_iou((factor * box[0], factor * box[1]), (box[2], box[3]))))
            errors.append(float(relative_translation_error(factor * centre[0], centre[1])))
    count = len(overlaps)
    return {
        "iou3d_aligned": math.fsum(overlaps) / count if count else float("nan"),
        "t_rel_aligned": math.fsum(errors) / count if count else float("nan"),
    }


class _Posed:
    """A mesh carried into the camera frame."""

    def __init__(self, mesh: Mesh, pose: Tensor) -> None:
        own = used_vertices(mesh)
        low, high = bounds_of(own)
        self.vertices = transform_points(pose, own)
        self.bounds = bounds_of(self.vertices)
        self.box = posed_box(low, high, pose)
        self.centre = transform_points(pose, 0.5 * (low + high)[None])[0]
        self.size = (high - low).amax() * pose[:3, :3].norm(dim=0).mean()
        posed = transform_points(pose, mesh.vertices.detach().cpu().double())
        self._mesh = dataclasses.replace(mesh, vertices=posed, faces=mesh.faces.cpu())

    def sample(self, count: int) -> Tensor:
        """(count, 3) points spread over the posed surface; identical meshes give identical points."""
        return sample_surface(self._mesh, count, torch_generator(0)).points
