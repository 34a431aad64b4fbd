"""Several sources with weights, each gone through without repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.data.draw_order import permuted, weighted_turns
from relief3d.data.sources import ENDLESS, SampleSource


@dataclass(frozen=True)
class Draw:
    """One draw from a mixture.

    Attributes:
        source: number of the source.
        index: of the sample in its source.
        epoch: how often this source was gone through before.
        seed: for everything random in the sample; another one in every epoch.
    """

    source: int
    index: int
    epoch: int
    seed: int


class Mixture:
    """Sources drawn from by weight. A draw is a function of its number and the seed alone.

    Within each source every sample comes once before any comes again, in an order of its own per epoch; endless
    sources are read in order. Shares of sources are kept in every round of draws
    (:class:`~relief3d.data.draw_order.Turns`).

    Args:
        sources: with different names.
        weights: positive; equal when None.
        seed: of all orders.

    Raises:
        InputError: no sources, two of one name, or weights that do not fit.
    """

    def __init__(
        self, sources: Sequence[SampleSource], weights: Sequence[float] | None = None, seed: int = 0
    ) -> None:
        names = [source.name for source in sources]
        if not sources or len(set(names)) != len(names):
            raise InputError(f"a mixture needs sources with different names, got {names}")
        if weights is not None and len(weights) != len(sources):
            raise InputError(f"{len(weights)} weights do not fit {len(sources)} sources")
        for source in sources:
            if len(source) < 1:
                raise InputError(f"the source '{source.name}' is empty")
        self.sources, self.seed = tuple(sources), seed
        weights = [1.0] * len(sources) if weights is None else weights
        self.turns = weighted_turns(weights, derive_seed(seed, "turns"))

    def draw(self, number: int) -> Draw:
        """Draw number 0, 1, ..."""
        turn = self.turns.at(number)
        source = self.sources[turn.source]
        epoch, place = divmod(turn.nth, len(source))
        index = place
        if len(source) < ENDLESS:
            index = permuted(place, len(source), derive_seed(self.seed, "epoch", source.name, epoch))
        return Draw(turn.source, index, epoch, derive_seed(self.seed, "sample", source.name, epoch, index))

    def instead(self, draw: Draw, attempt: int) -> Draw:
        """What is taken when a draw cannot be used: another sample of the same source, a function of both arguments.

        Attempts 0, 1, ... go through all other samples of the source before any comes again.
        """
        others = len(self.sources[draw.source]) - 1
        index = 0
        if others:
            step = permuted(attempt % others, others, derive_seed(draw.seed, "instead"))
            index = (draw.index + 1 + step) % (others + 1)
        return Draw(draw.source, index, draw.epoch, derive_seed(draw.seed, "instead", attempt))
