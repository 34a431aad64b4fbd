"""Augmentation of batches: picture plane first, light and colour after it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from relief3d.core.contract import Batch
from relief3d.data.geometric import Geometric, apply_edits, draw_edits
from relief3d.data.photometric import Photometric, change_colours


@dataclass(frozen=True)
class Augmentation:
    """What is done to samples.

    Attributes:
        geometric: None: the picture plane stays.
        photometric: None: light and colours stay.
    """

    geometric: Geometric | None = None
    photometric: Photometric | None = None

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that a source has to deliver for results of ``size``."""
        margin = 1.0 if self.geometric is None else self.geometric.margin
        return (math.ceil(size[0] * margin - 1e-9), math.ceil(size[1] * margin - 1e-9))


def augment(batch: Batch, rule: Augmentation, size: tuple[int, int], generator: torch.Generator) -> Batch:
    """A batch after augmentation; a function of its arguments and the generator's state alone.

    Args:
        batch: of any size.
        rule: what is drawn.
        size: height and width of the result.
        generator: on the device of the batch.
    """
    scenes, views, _, height, width = batch.images.shape
    if rule.geometric is not None:
        edits = draw_edits(rule.geometric, scenes, views, (height, width), size, generator)
        batch = apply_edits(batch, edits, size)
    if rule.photometric is not None:
        batch = dataclasses.replace(batch, images=change_colours(batch.images, rule.photometric, generator))
    return batch
