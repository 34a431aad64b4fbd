"""Error of the field of view, and average ranks over the columns of a table.

The field of view counts as that of a centred camera, 2 atan(w / (2 f)), whatever the principal point.
Source: MetricAnything, table 7; specification 9.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relief3d.core.errors import InputError


class FovError(NamedTuple):
    """Absolute errors (*,) in degrees, float64."""

    horizontal: Tensor
    vertical: Tensor


def fov_degrees(focal: Tensor, side: int) -> Tensor:
    """Field of view (*,) in degrees, float64, of focal lengths (*,) in pixels across ``side`` pixels."""
    return torch.rad2deg(2 * torch.atan(side / (2 * focal.double())))


def fov_error(predicted_K: Tensor, true_K: Tensor, width: int, height: int) -> FovError:
    """|predicted - true| field of view, edge to edge of the picture.

    Args:
        predicted_K: (*, 3, 3) in pixels of the picture.
        true_K: (*, 3, 3) likewise.
        width: pixels of the picture.
        height: pixels of the picture.

    Raises:
        InputError: a focal length is not a positive number.
    """
    for K, whose in ((predicted_K, "predicted"), (true_K, "true")):
        focal = torch.stack([K[..., 0, 0], K[..., 1, 1]])
        if not bool((torch.isfinite(focal) & (focal > 0)).all()):
            raise InputError(f"the {whose} focal length is not a positive number")
    return FovError(
        *(
            (fov_degrees(predicted_K[..., i, i], side) - fov_degrees(true_K[..., i, i], side)).abs()
            for i, side in enumerate((width, height))
        )
    )


def mean_ranks(
    rows: Sequence[Mapping[str, float]], better: Mapping[str, Literal["lower", "higher"]]
) -> list[float]:
    """The "rank" column of a table: every row's rank averaged over the columns in which it has a value.

    Args:
        rows: values by column, absent where not available. Rows that tie share the mean of their ranks.
        better: which direction is better, for every column that counts.

    Returns:
        One number per row, 1 is best; NaN for a row without any value.
    """
    ranks: list[list[float]] = [[] for _ in rows]
    for column, direction in better.items():
        sign = 1.0 if direction == "lower" else -1.0
        values = [(i, sign * row[column]) for i, row in enumerate(rows) if column in row]
        for i, value in values:
            before = sum(other < value for _, other in values)
            equal = sum(other == value for _, other in values)
            ranks[i].append(before + (equal + 1) / 2)
    return [sum(r) / len(r) if r else float("nan") for r in ranks]
