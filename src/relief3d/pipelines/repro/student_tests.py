"""What tables about students measure besides the numbers of a training's last evaluation."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from relief3d.eval.metrics.boundaries import boundary_f1
from relief3d.eval.metrics.intrinsics import fov_degrees
from relief3d.geometry.focal import focal_weiszfeld
from relief3d.labelling.quality import PERCENTILES, depth_percentiles
from relief3d.methods.metric_anything.pictures import PictureSource, pictures_folder
from relief3d.methods.metric_anything.students import evaluation
from relief3d.methods.metric_anything.students.config import (
    DepthMapStudentConfig,
    PointMapStudentConfig,
    StudentEvaluation,
)
from relief3d.methods.metric_anything.students.labels import LabelSource
from relief3d.methods.metric_anything.students.samples import chosen_pictures
from relief3d.models.metric.inference import DepthMapModel, PyramidOptions
from relief3d.models.metric.interface import Focal, GuessedFocalWarning
from relief3d.models.metric.pointmap_infer import PointMapModel
from relief3d.pipelines.repro.experiment import ArmRun
from relief3d.pipelines.repro.students import (
    depthmap_config,
    pointmap_config,
    student_task,
    trained_student,
    with_teacher,
)
from relief3d.train.recipe import Budget

PERCENTILE_KEYS = tuple(f"p{p}" for p in PERCENTILES)
_CHUNK = 8


def intrinsics_numbers(budget: Budget, config: PointMapStudentConfig, run: ArmRun) -> dict[str, float]:
    """The student's own numbers, and those with Weiszfeld's focal length and with the true one."""
    net = trained_student(run, budget, config)
    task = student_task(run, config)
    pictures, device = task.held_out, next(net.model.parameters()).device
    asked = PointMapModel(net.model, project=False, masked=False)  # type: ignore[arg-type]
    focals: list[Tensor] = []
    depths: list[Tensor] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuessedFocalWarning)
        for at in range(0, len(pictures.images), _CHUNK):
            rows = slice(at, at + _CHUNK)
            images = pictures.images[rows].to(device)
            found = asked.infer(images)
            front = found.mask & (found.points[..., 2] > 0)
            # Where the solver leaves nothing in front of the camera, its own focal length stands.
            usable = front.flatten(1).sum(1) >= 2
            fit = (
                focal_weiszfeld(found.points, front | ~usable[:, None, None]) if bool(usable.any()) else None
            )
            own = found.focal.pixels
            focals.append((own if fit is None else torch.where(usable, fit.focal, own)).cpu())
            depths.append(asked.infer(images, Focal.given(pictures.K[rows, 0, 0])).depth.cpu())
    seen = [n for n, f in enumerate(pictures.families) if f not in config.hold_out]
    known = torch.cat(depths).nan_to_num(evaluation.LIMITS[0]).clamp(*evaluation.LIMITS)
    width = int(pictures.images.shape[-1])
    error = (fov_degrees(torch.cat(focals)[seen], width) - pictures.fov[seen]).abs()
    keys = ("fov", "fov_median", "abs_rel", "unseen_fov", "unseen_abs_rel")
    return {
        **{k: float(net.card["numbers"].get(k, math.nan)) for k in keys},
        "fov_weiszfeld": float(error.mean()),
        "abs_rel_known": evaluation.depth_numbers(known, pictures, seen, config.evaluation.near)["abs_rel"],
    }


def guessed_fov(budget: Budget, run: ArmRun) -> dict[str, float]:
    """The best constant depth, and the field of view of a focal length equal to the width."""
    config = pointmap_config(budget)
    task = student_task(run, config)
    width = int(task.held_out.images.shape[-1])
    guess = torch.full((len(task.held_out.images),), float(width))
    seen = [n for n, f in enumerate(task.held_out.families) if f not in config.hold_out]
    unseen = task.held_out.of(config.hold_out)
    return {
        **{k: task.constants[k] for k in ("abs_rel", "unseen_abs_rel")},
        **evaluation.fov_numbers(guess, task.held_out, seen),
        "unseen_fov": evaluation.fov_numbers(guess, task.held_out, unseen)["fov"],
    }


def best_fov(budget: Budget, keys: Sequence[str], run: ArmRun) -> dict[str, float]:
    """The best constant field of view, which sees the truth; it gives no depth."""
    found = student_task(run, pointmap_config(budget)).constants
    known = {k: found[k] for k in ("fov", "unseen_fov")}
    return {key: known.get(key, math.nan) for key in keys}


def constant_resolution(test: StudentEvaluation, run: ArmRun) -> dict[str, float]:
    """The best constant depth of the pictures of the resolution test, and its boundaries: none."""
    pictures = evaluation.held_out_pictures(pictures_folder(""), test)
    found = evaluation.constant_numbers(pictures, range(len(pictures.families)), test.near)
    return {prefix + key: found[key] for prefix in ("", "point_") for key in ("boundary", "abs_rel")}


def resolution_numbers(
    budget: Budget, test: StudentEvaluation, factor: float, run: ArmRun
) -> dict[str, float]:
    """Boundary F1 and AbsRel of both students at so many times the pixels of training."""
    pictures = evaluation.held_out_pictures(pictures_folder(""), test)
    everything = list(range(len(pictures.families)))
    out: dict[str, float] = {}
    depthmap = trained_student(run, budget, depthmap_config(budget)).model
    points = pointmap_config(budget)
    pointmap = trained_student(run, budget, points).model
    device = next(depthmap.parameters()).device
    one = DepthMapModel(depthmap, PyramidOptions(precision="float32", pixels=factor))  # type: ignore[arg-type]
    two = PointMapModel(pointmap, tokens=round(factor * points.tokens[1]), masked=False)  # type: ignore[arg-type]

    def depth_map(images: Tensor, K: Tensor) -> tuple[Tensor, None]:
        return one.predict(images.to(device), Focal.given(K[:, 0, 0])).depth, None

    def point_map(images: Tensor, K: Tensor) -> tuple[Tensor, None]:
        return two.infer(images.to(device), Focal.given(K[:, 0, 0])).depth, None

    for prefix, predict in (("", depth_map), ("point_", point_map)):
        depth, _ = evaluation.predict_all(predict, pictures)
        numbers = evaluation.depth_numbers(depth, pictures, everything, test.near)
        out |= {prefix + key: numbers[key] for key in ("boundary", "abs_rel")}
    return out


def label_numbers(
    budget: Budget, compared: int, config: DepthMapStudentConfig, run: ArmRun
) -> dict[str, float]:
    """Percentiles of depth, coverage and errors of labels, over training pictures that have labels of a source."""
    source = PictureSource(pictures_folder(config.folder), config.pictures)
    labels = LabelSource(source, with_teacher(run, budget, config).labels)
    real = LabelSource(source, replace(config.labels, kind="raw", teacher=""))
    every = [i for i in chosen_pictures(source, 1.0) if real.source(i) != "rendered"]
    step = max(1, len(every) // compared)
    depths, covered, errors, edges, held = [], [], [], [], []
    for index in itertools.islice(every, 0, step * compared, step):
        picture = source.picture(index)
        label, truth = labels.label(index, picture), picture.depth[0]
        surface = truth > 0
        known = surface & (label.depth > 0)
        if bool(surface.any()):
            covered.append(float(known.sum() / surface.sum()))
        if not bool(known.any()):
            continue
        depths.append(label.depth[known])
        errors.append(float(((label.depth - truth).abs() / truth.clamp_min(1e-6))[known].mean()))
        edges.append(boundary_f1(label.depth.clamp_min(1e-3), truth, known).score)
        held.append(label.error)
    found = depth_percentiles(torch.cat(depths)[None])
    finite = [e for e in held if math.isfinite(e)]
    return {
        **dict(zip(PERCENTILE_KEYS, found, strict=True)),
        "coverage": 100 * fmean(covered),
        "abs_rel": fmean(errors),
        "boundary": fmean(edges),
        "held_out": 100 * fmean(finite) if config.labels.kind == "teacher" and finite else math.nan,
    }
