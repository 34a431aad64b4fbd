"""Simulated annotators with a known taste (specification objects.md 5.7): votes for the twins of preference tests."""

from __future__ import annotations

import math

import numpy as np

from relief3d.core.contract import Mesh
from relief3d.core.seeding import torch_generator
from relief3d.eval.metrics.icp import NeighbourTree
from relief3d.eval.metrics.mesh import sample_surface
from relief3d.eval.metrics.preference import Winner
from relief3d.eval.metrics.shapes import chamfer, f1_score, normalise_mesh
from relief3d.eval.metrics.voxels import occupied_cells, set_iou

INDIFFERENCE = 0.05
"""Utilities closer than this are judged equal."""
SHARPNESS = 0.25
RATING_NOISE = 0.05


def shape_utility(candidate: Mesh, truth: Mesh, *, points: int = 800, grid: int = 32, seed: int = 0) -> float:
    """How good a shape is to the annotator: -CD / 0.05 + F1@0.05 + vIoU, with the plain Chamfer distance.

    Both shapes are normalised but not aligned: annotators see them in one frame.

    Args:
        candidate: in the frame of the truth.
        truth: the known shape.
        points: on each surface.
        grid: voxels per axis.
        seed: of the points.

    Raises:
        InputError: a mesh without surface.
    """
    x = sample_surface(normalise_mesh(candidate), points, torch_generator(seed)).points
    y = sample_surface(normalise_mesh(truth), points, torch_generator(seed)).points
    forward, _ = NeighbourTree(y).query(x)
    backward, _ = NeighbourTree(x).query(y)
    overlap = set_iou(occupied_cells(x, grid), occupied_cells(y, grid))
    return -chamfer(forward, backward, 1) / 0.05 + f1_score(forward, backward, 0.05) + overlap


def chance_left(left: float, right: float) -> float:
    """Probability that the left of two candidates with these utilities wins, if they are not judged equal."""
    return 1.0 / (1.0 + math.exp(-max(-60.0, min(60.0, (left - right) / SHARPNESS))))


def simulated_vote(left: float, right: float, rng: np.random.Generator) -> Winner:
    """One vote between candidates with these utilities; a tie when they differ by less than 0.05."""
    if abs(left - right) < INDIFFERENCE:
        return "tie"
    return "left" if rng.random() < chance_left(left, right) else "right"


def simulated_rating(normalised: float, rng: np.random.Generator) -> float:
    """Rating in [0, 1] of a candidate whose utility, normalised to about [-1, 1], is given."""
    return float(np.clip(0.5 + 0.5 * normalised + rng.normal(0, RATING_NOISE), 0, 1))
