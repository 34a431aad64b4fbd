"""What every keypoint matcher offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError


@dataclass(frozen=True)
class Features:
    """Keypoints of one picture.

    Attributes:
        xy: (N, 2) float32 pixels, centres at +0.5.
        descriptors: (N, D), uint8 for SIFT, float32 for learned features.
        scale_angle: (N, 2) float32, size in pixels and orientation in radians, or None.
        scores: (N,) float32, or None.
        size: (width, height) of the picture; learned matchers need it to normalise positions.
    """

    xy: Tensor
    descriptors: Tensor
    scale_angle: Tensor | None = None
    scores: Tensor | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        n = self.xy.shape[0]
        others = (self.descriptors, self.scale_angle, self.scores)
        if self.xy.ndim != 2 or any(t is not None and t.shape[0] != n for t in others):
            raise InputError("keypoints, descriptors and scores differ in number")

    def __len__(self) -> int:
        return int(self.xy.shape[0])

    def select(self, keep: Tensor) -> Features:
        """The keypoints at ``keep``, an (N,) bool mask or an index."""
        return Features(
            self.xy[keep],
            self.descriptors[keep],
            None if self.scale_angle is None else self.scale_angle[keep],
            None if self.scores is None else self.scores[keep],
            self.size,
        )

    def inside(self, mask: Tensor) -> Features:
        """The keypoints whose pixel is True in ``mask`` (H, W)."""
        height, width = mask.shape
        column = self.xy[:, 0].floor().long().clamp(0, width - 1)
        row = self.xy[:, 1].floor().long().clamp(0, height - 1)
        return self.select(mask.to(self.xy.device)[row, column])

    def keypoint_rows(self) -> np.ndarray:
        """(N, 4) float32 rows of x, y, scale, orientation (1 and 0 where unknown)."""
        rows = torch.zeros(len(self), 4, dtype=torch.float32)
        rows[:, 2] = 1.0
        rows[:, :2] = self.xy.cpu()
        if self.scale_angle is not None:
            rows[:, 2:] = self.scale_angle.cpu()
        return rows.numpy()


class Matcher(Protocol):
    """Finds keypoints and pairs them. Implementations keep their weights and device to themselves."""

    name: str

    def extract(self, image: Tensor) -> Features:
        """Keypoints of an upright picture (3, H, W), float RGB in [0, 1]."""
        ...

    def match(self, first: Features, second: Features) -> Tensor:
        """(M, 2) int64 indices of corresponding keypoints, each keypoint at most once."""
        ...
