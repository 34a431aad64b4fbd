"""An endless stream of batches, addressed by position."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError, MissingExtraError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.augmentation import Augmentation, augment
from relief3d.data.batching import collate
from relief3d.data.mixtures import Draw, Mixture
from relief3d.data.view_groups import Grouping, Modality, ViewRequest

_log = logging.getLogger(__name__)
_ATTEMPTS = 10


@dataclass(frozen=True)
class StreamConfig:
    """What a batch looks like.

    Attributes:
        views: smallest and largest number of views; one number per batch. In every run of ``largest - smallest + 1``
            batches each number comes once.
        images: pictures per batch: a batch has max(1, images // views) scenes, all of them on all processes together.
        scenes: scenes per batch whatever the number of views; instead of ``images`` when not None.
        divisible_by: the number of scenes is rounded down to a multiple of it (at least one), so that batches can be
            shared between so many processes.
        sizes: height and width of the pictures; one of them per batch.
        need: modalities that every view of a sample must have.
        grouping: which views go together.
        on_error: what happens with a sample that cannot be used: ``skip``: another one of the same source comes
            instead, and a warning is logged; ``stop``: the error is raised.
        augmentation: None: pictures and cameras stay as they are.
    """

    views: tuple[int, int] = (4, 4)
    images: int = 64
    scenes: int | None = None
    divisible_by: int = 1
    sizes: tuple[tuple[int, int], ...] = ((48, 48),)
    need: frozenset[Modality] = frozenset()
    grouping: Grouping = field(default_factory=Grouping)
    on_error: Literal["skip", "stop"] = "skip"
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.views[0] <= self.views[1]:
            raise InputError(f"views {self.views} are not a range of positive numbers")
        if self.images < 1 or self.divisible_by < 1 or (self.scenes is not None and self.scenes < 1):
            raise InputError("images, scenes and divisible_by must be at least 1")
        if not self.sizes:
            raise InputError("a stream needs a picture size")

    def scenes_of(self, views: int) -> int:
        """Scenes in a batch of so many views each."""
        count = max(1, self.images // views) if self.scenes is None else self.scenes
        return max(1, count // self.divisible_by) * self.divisible_by


@dataclass(frozen=True)
class SampleKey:
    """Address of one sample of a stream.

    Attributes:
        number: of the draw, counted over the whole stream.
        draw: source, index, epoch and seed.
        name: ``source/key`` of the sample.
        views: how many.
        size: height and width.
    """

    number: int
    draw: Draw
    name: str
    views: int
    size: tuple[int, int]


class BatchStream:
    """Batches 0, 1, 2, ... of a mixture.

    A batch is a function of its position and the seed: the same with any number of workers, after any interruption, and
    the shares ``part`` of ``parts`` put together in order are the batch of one process.

    Args:
        mixture: where samples come from.
        config: what a batch looks like.
        seed: of everything that is drawn per batch; the mixture has its own.
    """

    def __init__(self, mixture: Mixture, config: StreamConfig | None = None, seed: int = 0) -> None:
        self.mixture, self.config, self.seed = mixture, config or StreamConfig(), seed

    def views(self, position: int) -> int:
        """Number of views of each sample of a batch."""
        cycle, place = divmod(position, self._cycle)
        return self._order(cycle)[place]

    def keys(self, position: int, part: int = 0, parts: int = 1) -> tuple[SampleKey, ...]:
        """Addresses of the samples of a batch, or of one of ``parts`` equal shares, before anything is read.

        Raises:
            InputError: the batch cannot be shared equally.
        """
        if position < 0 or not 0 <= part < parts:
            raise InputError(f"there is no part {part} of {parts} of batch {position}")
        cycle, place = divmod(position, self._cycle)
        order = self._order(cycle)
        counts = [self.config.scenes_of(views) for views in order]
        first = cycle * sum(counts) + sum(counts[:place])
        count, views = counts[place], order[place]
        if count % parts:
            raise InputError(
                f"a batch of {count} scenes cannot be shared between {parts} processes",
                remedy=f"set divisible_by to {parts} and ask for at least {parts} scenes per batch",
            )
        share = count // parts
        sizes = self.config.sizes
        size = sizes[derive_seed(self.seed, "size", position) % len(sizes)]
        return tuple(self._key(first + i, views, size) for i in range(part * share, part * share + share))

    def batch(self, position: int, part: int = 0, parts: int = 1) -> Batch:
        """A batch, or one of ``parts`` equal shares of it.

        Rows of ``Batch.names`` read ``source/key#view`` and name what really was used.

        Raises:
            InputError: a sample cannot be used and ``on_error`` is ``stop``, or ten tries in a row failed.
        """
        return collate([self.sample(key) for key in self.keys(position, part, parts)])

    def sample(self, key: SampleKey) -> Batch:
        """One sample (B = 1), augmented; a replacement when it cannot be used and that is allowed.

        Raises:
            InputError: see :meth:`batch`.
        """
        draw = key.draw
        error: InputError | None = None
        for attempt in range(_ATTEMPTS):
            try:
                return self._read(draw, key)
            except MissingExtraError:
                raise  # no other sample would help
            except InputError as exc:
                name = self._name(draw)
                error = InputError(
                    f"the sample '{name}' cannot be used: {exc.message}", path=exc.path, remedy=exc.remedy
                )
                if self.config.on_error == "stop":
                    raise error from exc
                _log.warning("%s; another sample of the same source is taken", error)
                draw = self.mixture.instead(key.draw, attempt)
        raise InputError(
            f"{_ATTEMPTS} samples in a row of '{self.mixture.sources[draw.source].name}' cannot be used; "
            f"the last: {error}",
            remedy="check the source, or what is asked of its samples",
        )

    def _read(self, draw: Draw, key: SampleKey) -> Batch:
        source, change = self.mixture.sources[draw.source], self.config.augmentation
        size = key.size if change is None else change.input_size(key.size)
        request = ViewRequest(key.views, size, self.config.need, self.config.grouping)
        batch = source.sample(draw.index, request, draw.seed)
        wanted = (1, key.views, 3, *size)
        if tuple(batch.images.shape) != wanted:
            raise InputError(f"gave pictures {tuple(batch.images.shape)} instead of {wanted}")
        if change is not None:
            generator = torch_generator(derive_seed(draw.seed, "augment"), batch.images.device)
            batch = augment(batch, change, key.size, generator)
        row = tuple(f"{self._name(draw)}#{view}" for view in batch.names[0])
        return dataclasses.replace(batch, names=(row,))

    def _name(self, draw: Draw) -> str:
        source = self.mixture.sources[draw.source]
        return f"{source.name}/{source.key(draw.index)}"

    def _key(self, number: int, views: int, size: tuple[int, int]) -> SampleKey:
        draw = self.mixture.draw(number)
        return SampleKey(number, draw, self._name(draw), views, size)

    @property
    def _cycle(self) -> int:
        return self.config.views[1] - self.config.views[0] + 1

    def _order(self, cycle: int) -> list[int]:
        """Numbers of views of the batches of one cycle."""
        rng = np.random.default_rng(derive_seed(self.seed, "views", cycle))
        return (rng.permutation(self._cycle) + self.config.views[0]).tolist()


def sample_names(batch: Batch) -> tuple[str, ...]:
    """``source/key`` of every sample of a batch that a stream gave."""
    return tuple(row[0].rsplit("#", 1)[0] for row in batch.names)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """The samples of a batch in order, in at most ``parts`` smaller batches of nearly equal size."""
    count = batch.images.shape[0]
    edges = np.linspace(0, count, min(parts, count) + 1).round().astype(int).tolist()
    return [take_samples(batch, range(a, b)) for a, b in pairwise(edges)]


def take_samples(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some samples of a batch, by number."""
    index = torch.tensor(list(rows), device=batch.images.device)
    cut = {
        f.name: value[index]
        for f in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, f.name), torch.Tensor)
    }
    return dataclasses.replace(batch, **cut, names=tuple(batch.names[r] for r in rows))
