"""Poses from files: checked, completed to 4x4 and made exactly rigid."""

from __future__ import annotations

import torch
from torch import Tensor

ROTATION_TOLERANCE = 1e-3
"""Largest deviation of ``R R^T`` from the identity that still counts as rounding in the file."""


def rigid_from_file(matrix: Tensor, *, tolerance: float = ROTATION_TOLERANCE) -> Tensor:
    """Check a pose matrix read from a file and remove its rounding errors.

    Files store rotations with few digits; the nearest rotation in the Frobenius norm (by SVD) makes
    inverses and quaternions exact again.

    Args:
        matrix: (3, 4) or (4, 4).
        tolerance: largest accepted entry of ``|R R^T - I|``.

    Returns:
        (4, 4) float64 with an orthonormal rotation of determinant +1.

    Raises:
        ValueError: one clause that says what is wrong; the caller adds file and place.
    """
    matrix = matrix.to(torch.float64)
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("holds numbers that are not finite")
    if matrix.shape[0] == 4:
        expected = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
        if not torch.allclose(matrix[3], expected, atol=1e-6):
            raise ValueError("does not end with the row 0 0 0 1")
    R = matrix[:3, :3]
    deviation = float((R @ R.T - torch.eye(3, dtype=torch.float64)).abs().max())
    if not deviation <= tolerance:
        raise ValueError(f"is not a rigid transform (rotation off by {deviation:.2g})")
    U, _, Vh = torch.linalg.svd(R)
    rotation = U @ Vh
    if float(torch.linalg.det(rotation)) < 0:
        raise ValueError("mirrors space (determinant -1)")
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3], out[:3, 3] = rotation, matrix[:3, 3]
    return out
