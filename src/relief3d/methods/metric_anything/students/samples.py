"""From pictures and labels to training samples of the students."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.draw_order import permuted
from relief3d.data.photometric import change_colours
from relief3d.geometry.projection import crop_intrinsics, resize_intrinsics
from relief3d.losses.metric_depth import LABEL_RANGE, LEAST_PIXELS, DepthTarget
from relief3d.losses.moge_objective import Label
from relief3d.methods.metric_anything.pictures import Pictures, PictureSource, pictures_folder
from relief3d.methods.metric_anything.students.config import StudentConfig
from relief3d.methods.metric_anything.students.labels import LabelSource, PictureLabel

_TRIES = 20
_SUBSETS = 17
"""Seed of the shuffle that makes parts of the data; one for all runs, so that parts are nested."""


@dataclass(frozen=True)
class StudentBatch:
    """B samples of one size.

    Attributes:
        image: (B, 3, H, W) in [0, 1].
        depth: (B, H, W) label in metres, 0 where nothing is known.
        sky: (B, H, W) bool, known to have no surface.
        K: (B, 3, 3) pixels.
        kinds: of the labels, for MoGe-2's loss.
        rendered: of each, whether the label is rendered truth.
        names: of the pictures.
    """

    image: Tensor
    depth: Tensor
    sky: Tensor
    K: Tensor
    kinds: tuple[Label, ...]
    rendered: tuple[bool, ...]
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> StudentBatch:
        """On a device."""
        return replace(self, **{n: getattr(self, n).to(device) for n in ("image", "depth", "sky", "K")})

    def targets(self) -> list[DepthTarget]:
        """For the losses of the depth map."""
        width = self.image.shape[-1]
        return [
            DepthTarget(depth, depth > 0, float(K[0, 0]) / width, synthetic=made, depth_range=LABEL_RANGE)
            for depth, K, made in zip(self.depth, self.K, self.rendered, strict=True)
        ]


class StudentStream:
    """Training batches by position; a function of position and configuration alone.

    Args:
        config: of the run.
    """

    def __init__(self, config: StudentConfig) -> None:
        self.config = config
        self.pictures = PictureSource(pictures_folder(config.folder), config.pictures)
        self.labels = LabelSource(self.pictures, config.labels)

    @cached_property
    def indices(self) -> list[int]:
        """Numbers of the pictures that training draws from."""
        return chosen_pictures(self.pictures, self.config.share, self.config.hold_out)

    def keys(self, position: int, part: int = 0, parts: int = 1) -> list[tuple[int, int]]:
        """Place among :attr:`indices` and seed of every sample of a batch.

        Raises:
            InputError: the batch cannot be shared equally.
        """
        if self.config.batch % parts:
            raise InputError(
                f"a batch of {self.config.batch} samples cannot be shared between {parts} processes",
                remedy="batch",
            )
        share, seed, count = self.config.batch // parts, self.config.train.seed, len(self.indices)
        first = position * self.config.batch + part * share
        out = []
        for number in range(first, first + share):
            epoch, place = divmod(number, count)
            out.append(
                (
                    permuted(place, count, derive_seed(seed, "epoch", epoch)),
                    derive_seed(seed, "sample", number),
                )
            )
        return out

    def batch(self, position: int, part: int = 0, parts: int = 1) -> StudentBatch:
        """A batch or a share of it."""
        return collate([self.sample(*key) for key in self.keys(position, part, parts)])

    def sample(self, place: int, seed: int) -> StudentBatch:
        """One sample (B = 1); the next picture takes the place of one that teaches too little.

        Raises:
            InputError: many in a row do.
        """
        for attempt in range(_TRIES):
            index = self.indices[(place + attempt) % len(self.indices)]
            picture = self.pictures.picture(index)
            label = self.labels.label(index, picture)
            if not label.usable:
                continue
            generator = torch_generator(derive_seed(seed, "view", attempt))
            made = student_sample(picture, label, self.config, generator)
            if int((made.depth > 0).sum()) >= LEAST_PIXELS:
                return made
        raise InputError(f"{_TRIES} pictures in a row have almost no label that may be used")


def chosen_pictures(source: PictureSource, share: float, hold_out: Sequence[str] = ()) -> list[int]:
    """Numbers of the pictures of a share of the worlds of every set and family, some families left out.

    The shuffle is always the same one, so that a smaller share is a part of a larger one.
    """
    ranks = []
    for rule in source.rules:
        order = torch.randperm(rule.worlds, generator=torch_generator(derive_seed(_SUBSETS, rule.digest)))
        rank = torch.empty_like(order)
        rank[order] = torch.arange(rule.worlds)
        ranks.append(rank.tolist())
    out = []
    for index in range(len(source)):
        which, world, _ = source.place(index)
        family, own = source.rules[which].place(world)
        most = max(1, math.ceil(share * source.rules[which].worlds - 1e-9))
        if family not in hold_out and ranks[which][own] < most:
            out.append(index)
    return out


def student_sample(
    picture: Pictures, label: PictureLabel, config: StudentConfig, generator: torch.Generator
) -> StudentBatch:
    """A window of a picture (V = 1) at the training size, perhaps mirrored, in other colours.

    Depth and sky are picked at the nearest pixel, never mixed; depth does not change with the size of the window, the
    focal length in pixels does.
    """
    luck = torch.rand(4, generator=generator).tolist()
    rows, cols = window(tuple(picture.depth.shape[-2:]), config, luck[0], (luck[1], luck[2]))
    image = picture.image[..., rows, cols].float() / 255
    image = F.interpolate(image, config.shape, mode="bilinear", align_corners=False, antialias=True)
    depth = _picked(label.depth[rows, cols], config.shape)
    sky = _picked((picture.depth[0, rows, cols] <= 0).float(), config.shape) > 0
    height, width = config.shape
    K = crop_intrinsics(picture.K[0].float(), cols.start, rows.start)
    K = resize_intrinsics(K, (cols.stop - cols.start, rows.stop - rows.start), (width, height))
    if luck[3] < config.mirror:
        image, depth, sky = image.flip(-1), depth.flip(-1), sky.flip(-1)
        K[0, 2] = width - K[0, 2]
    image = change_colours(image[None], config.colours, generator)[0]
    return StudentBatch(
        image,
        depth[None],
        sky[None],
        K[None],
        (label.kind(config.labels),),
        (label.source == "rendered",),
        picture.names,
    )


def window(
    size: tuple[int, ...], config: StudentConfig, zoom: float, place: tuple[float, float]
) -> tuple[slice, slice]:
    """Rows and columns of a window of the training shape's aspect, from three numbers in [0, 1)."""
    height, width = config.shape
    largest = min(size[0] / height, size[1] / width)
    low, high = config.zoom
    side = largest * (low + (high - low) * zoom)
    out = []
    for full, wanted, where in zip(size, (height, width), place, strict=True):
        length = min(full, max(1, round(wanted * side)))
        middle = 0.5 + config.place * (where - 0.5)
        start = min(full - length, round((full - length) * middle))
        out.append(slice(start, start + length))
    return out[0], out[1]


def _picked(values: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(values[None, None], shape, mode="nearest-exact")[0, 0]


def collate(samples: Sequence[StudentBatch]) -> StudentBatch:
    """Samples of one size in a batch."""
    return StudentBatch(
        torch.cat([s.image for s in samples]),
        torch.cat([s.depth for s in samples]),
        torch.cat([s.sky for s in samples]),
        torch.cat([s.K for s in samples]),
        tuple(k for s in samples for k in s.kinds),
        tuple(r for s in samples for r in s.rendered),
        tuple(n for s in samples for n in s.names),
    )


def split(batch: StudentBatch, parts: int) -> list[StudentBatch]:
    """The samples in order, in at most ``parts`` smaller batches."""
    count = len(batch.image)
    size = math.ceil(count / min(parts, count))
    out = []
    for at in range(0, count, size):
        rows = slice(at, at + size)
        out.append(
            StudentBatch(
                batch.image[rows],
                batch.depth[rows],
                batch.sky[rows],
                batch.K[rows],
                batch.kinds[rows],
                batch.rendered[rows],
                batch.names[rows],
            )
        )
    return out
