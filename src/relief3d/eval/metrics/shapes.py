"""Shape metrics of SAM 3D: normalisation to [-1, 1], alignment by ICP, F1, voxel IoU, Chamfer distance, EMD.

Specification objects.md 6.1. Both surfaces are sampled uniformly by area with the same seed, so identical meshes give
identical points and a perfect prediction the perfect score, whatever the number of points. For different meshes F1 at
0.01 grows with the number of points (the paper takes one million) until the samples lie closer than the threshold.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.eval.metrics.emd import POINTS, SUBSETS, EmdMethod, earth_movers
from relief3d.eval.metrics.icp import NeighbourTree, checked_points, icp
from relief3d.eval.metrics.mesh import sample_surface
from relief3d.eval.metrics.voxels import occupied_cells, set_iou, solid_cells
from relief3d.geometry.alignment import Similarity

DIAGONAL = 2 * math.sqrt(3.0)
"""Of the cube [-1, 1]^3: what Chamfer distance and EMD of an empty prediction count."""
THRESHOLDS = (0.01, 0.05)
_ALL_PAIRS = 10**10
_CHUNK = 1 << 28
Starts = Literal["cube", "identity"]


@dataclass(frozen=True)
class ShapeSampling:
    """How many points shapes are compared with.

    Attributes:
        points: on each surface; 1,000,000 in the paper.
        icp_points: of these, for the 24 trial alignments.
        refine_points: of these, for one more alignment from the best trial; 0 leaves it out.
        icp_iterations: most updates of each alignment.
        starts: the 24 rotations of the cube group, or the identity alone.
        grid: voxels per axis of [-1, 1].
        emd_points, emd_subsets, emd_method: see :func:`earth_movers`.
        seed: of both surfaces' points and of the subsets.
    """

    points: int = 1_000_000
    icp_points: int = 2000
    refine_points: int = 20_000
    icp_iterations: int = 30
    starts: Starts = "cube"
    grid: int = 64
    emd_points: int = POINTS
    emd_subsets: int = SUBSETS
    emd_method: EmdMethod = "exact"
    seed: int = 0


PUBLISHED = ShapeSampling()


@dataclass(frozen=True)
class ShapeMetrics:
    """What :func:`compare_shapes` returns; lengths in the frame where the truth fills [-1, 1].

    Attributes:
        f1_001, f1_005: F1 at 0.01 and 0.05.
        viou: of the cells that surface samples fall into.
        viou_solid: of the cells whose centres lie inside.
        chamfer_l1: sum of the two mean distances.
        chamfer_l2: sum of the two mean squared distances.
        emd: mean distance of matched points.
        emd_exact: False when EMD comes from Sinkhorn's iteration.
        degenerate: True when there was no prediction to compare.
    """

    f1_001: float
    f1_005: float
    viou: float
    viou_solid: float
    chamfer_l1: float
    chamfer_l2: float
    emd: float
    emd_exact: bool = True
    degenerate: bool = False


def worst_shape() -> ShapeMetrics:
    """What an empty prediction counts: no overlap, distances of the cube's diagonal (squared for chamfer_l2)."""
    return ShapeMetrics(0.0, 0.0, 0.0, 0.0, DIAGONAL, DIAGONAL**2, DIAGONAL, degenerate=True)


def is_degenerate(mesh: Mesh | None) -> bool:
    """True for no mesh, no faces, positions that are not finite, or no area."""
    if mesh is None or mesh.faces.numel() == 0 or mesh.vertices.numel() == 0:
        return True
    if not bool(torch.isfinite(mesh.vertices).all()):
        return True
    corners = mesh.vertices.detach().cpu().double()[mesh.faces.cpu()]
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return not float(cross.norm(dim=-1).sum()) > 0


def used_vertices(mesh: Mesh) -> Tensor:
    """(V', 3) float64 vertices that some face names: stray vertices do not count in boxes and diameters."""
    return mesh.vertices.detach().cpu().double()[torch.unique(mesh.faces.cpu())]


def normalise_mesh(mesh: Mesh) -> Mesh:
    """The mesh with the centre of its box at the origin and its longest half side 1; vertices in float64.

    Raises:
        InputError: the mesh has no surface.
    """
    if is_degenerate(mesh):
        raise InputError("the mesh has no surface to normalise")
    points = used_vertices(mesh)
    low, high = points.amin(0), points.amax(0)
    scale = 2.0 / (high - low).amax()
    vertices = (mesh.vertices.detach().cpu().double() - 0.5 * (low + high)) * scale
    return dataclasses.replace(mesh, vertices=vertices)


def cube_rotations() -> Tensor:
    """(24, 3, 3) float64 rotations that map a cube onto itself, the identity first."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = torch.zeros(3, 3, dtype=torch.float64)
            for row, (column, sign) in enumerate(zip(order, signs)):
                matrix[row, column] = sign
            if float(torch.linalg.det(matrix)) > 0:
                found.append(matrix)
    return torch.stack(found)


def align_shape(predicted: Tensor, truth: Tensor, sampling: ShapeSampling = PUBLISHED) -> Similarity:
    """Rigid motion that brings predicted (N, 3) onto true (M, 3) normalised points.

    Point-to-point ICP from every start on a thinned set; the result with the smallest symmetric mean distance wins,
    the unmoved prediction being among the candidates (so a perfect prediction is left exactly where it is). The
    winner is refined with more points. Rotation and translation only: the scale was normalised.

    Raises:
        InputError: empty or not finite points.
    """
    predicted, truth = checked_points(predicted, "the prediction"), checked_points(truth, "the truth")
    few = sampling.icp_points
    source, target = predicted[:few], truth[:few]
    tree = NeighbourTree(target)
    one, still = torch.ones((), dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    unmoved = Similarity(one, torch.eye(3, dtype=torch.float64), still)
    best, best_error = unmoved, symmetric_distance(source, target, tree)
    rotations = cube_rotations()
    for rotation in rotations if sampling.starts == "cube" else rotations[:1]:
        if best_error == 0:
            return best
        start = Similarity(one, rotation, still)
        found = icp(source, tree, init=start, iterations=sampling.icp_iterations)
        error = symmetric_distance(found.apply(source), target, tree)
        if error < best_error:
            best, best_error = Similarity(one, found.rotation, found.translation), error
    more = min(sampling.refine_points, max(predicted.shape[0], truth.shape[0]))
    if more > few:
        source, target = predicted[:more], truth[:more]
        tree = NeighbourTree(target)
        found = icp(source, tree, init=best, iterations=sampling.icp_iterations)
        before = symmetric_distance(best.apply(source), target, tree)
        if symmetric_distance(found.apply(source), target, tree) < before:
            best = Similarity(one, found.rotation, found.translation)
    return best


def symmetric_distance(a: Tensor, b: Tensor, b_tree: NeighbourTree | None = None) -> float:
    """Sum of both mean nearest-point distances of (N, 3) and (M, 3) points: one-sided errors favour fragments."""
    forward, _ = (b_tree or NeighbourTree(b)).query(a)
    backward, _ = NeighbourTree(a).query(b)
    return float(forward.mean() + backward.mean())


def nearest_both(a: Tensor, b: Tensor, *, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """Distance of every point of (N, 3) to the nearest of (M, 3), and the other way round, exact.

    Trees answer a million queries in about a minute when the sets are close, but need many times that where one set
    lies far inside the other (thousands of points are then equally far). On an accelerator large sets are
    compared all with all instead.

    Args:
        a: first set.
        b: second set.
        device: compare all with all there; None decides.

    Returns:
        (N,) and (M,) float64 on the CPU; all-with-all works in float32.
    """
    if device is None and a.shape[0] * b.shape[0] >= _ALL_PAIRS:
        found = resolve_device()
        device = None if found.type == "cpu" else found
    if device is None:
        return NeighbourTree(b).query(a)[0], NeighbourTree(a).query(b)[0]
    first, second = a.to(device, torch.float32), b.to(device, torch.float32)
    backward = torch.full((b.shape[0],), math.inf, device=device)
    forward = []
    for part in first.split(max(1, _CHUNK // b.shape[0])):
        # Differences, not the expansion of the square: equal points must have distance zero.
        pairs = torch.cdist(part, second, compute_mode="donot_use_mm_for_euclid_dist")
        forward.append(pairs.amin(1))
        backward = torch.minimum(backward, pairs.amin(0))
    return torch.cat(forward).double().cpu(), backward.double().cpu()


def f1_score(forward: Tensor, backward: Tensor, threshold: float) -> float:
    """F1 of the shares of distances strictly below a threshold.

    Args:
        forward: (N,) from predicted points to the truth (precision).
        backward: (M,) from true points to the prediction (recall).
        threshold: unit of the distances.
    """
    precision = float((forward < threshold).double().mean())
    recall = float((backward < threshold).double().mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def chamfer(forward: Tensor, backward: Tensor, power: Literal[1, 2]) -> float:
    """Sum of both means of the distances raised to a power.

    The appendix summaries of SAM 3D give power 2; the printed magnitudes look like power 1. Both are reported.
    """
    return float((forward**power).mean() + (backward**power).mean())


def compare_shapes(
    predicted: Mesh | None, truth: Mesh, sampling: ShapeSampling = PUBLISHED, *, align: bool = True
) -> ShapeMetrics:
    """All shape metrics of one object.

    Args:
        predicted: in any pose and size; an empty one gets the worst values.
        truth: in any pose and size.
        sampling: numbers of points.
        align: False compares the normalised shapes as they stand.

    Raises:
        InputError: the truth has no surface.
    """
    reference = normalise_mesh(truth)
    if predicted is None or is_degenerate(predicted):
        return worst_shape()
    own = normalise_mesh(predicted)
    # Two generators of one seed: identical meshes give identical points.
    y = sample_surface(reference, sampling.points, torch_generator(sampling.seed)).points
    x = sample_surface(own, sampling.points, torch_generator(sampling.seed)).points
    vertices = own.vertices
    if align:
        motion = align_shape(x, y, sampling)
        x, vertices = motion.apply(x), motion.apply(vertices)
    forward, backward = nearest_both(x, y)
    solid = (
        solid_cells(dataclasses.replace(own, vertices=vertices), sampling.grid),
        solid_cells(reference, sampling.grid),
    )
    moved = earth_movers(
        x,
        y,
        points=sampling.emd_points,
        subsets=sampling.emd_subsets,
        method=sampling.emd_method,
        seed=sampling.seed,
    )
    return ShapeMetrics(
        f1_001=f1_score(forward, backward, THRESHOLDS[0]),
        f1_005=f1_score(forward, backward, THRESHOLDS[1]),
        viou=set_iou(occupied_cells(x, sampling.grid), occupied_cells(y, sampling.grid)),
        viou_solid=set_iou(*solid),
        chamfer_l1=chamfer(forward, backward, 1),
        chamfer_l2=chamfer(forward, backward, 2),
        emd=moved.value,
        emd_exact=moved.method == "exact",
    )
