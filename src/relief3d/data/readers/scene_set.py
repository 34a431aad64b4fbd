"""What every reader returns: named scenes that are built when asked for, and a card that says what they are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError


@dataclass(frozen=True)
class DatasetCard:
    """What a data set is and how its files are read.

    Attributes:
        name: by which :func:`relief3d.data.readers.registry.open_dataset` knows it.
        title: as its authors write it.
        sources: addresses of the public descriptions of the layout.
        licence: what its owners allow, in a few words; no legal advice.
        gives: what views carry, such as "image", "K", "pose", "depth", "sparse depth", "mask", "time", "mesh".
        metric: lengths are metres.
        layout: the files that are read, one per line, relative to ``root``.
        conventions: how the files' conventions become ours.
        splits: names that ``split`` takes; empty when the data set has none.
        open_points: what the public description leaves open, or could not be confirmed.
    """

    name: str
    title: str
    sources: tuple[str, ...]
    licence: str
    gives: tuple[str, ...]
    metric: bool
    layout: str
    conventions: str
    splits: tuple[str, ...] = ()
    open_points: tuple[str, ...] = ()

    def check_split(self, split: str | None) -> str | None:
        """The same split.

        Raises:
            InputError: the data set has no split of that name.
        """
        if split is None or split in self.splits:
            return split
        known = f"use {', '.join(self.splits)}" if self.splits else "leave split out"
        raise InputError(f"{self.title} has no split '{split}'", remedy=known)


class SceneSet(Sequence[Scene]):
    """Scenes of a data set, built one by one.

    A set holds names and what is needed to build each scene (paths), never pictures. It can be sent to worker
    processes: builders are module-level functions.

    Attributes:
        card: the data set.
        names: of the scenes, in order.
    """

    def __init__(
        self, card: DatasetCard, items: Mapping[str, Any], build: Callable[[str, Any], Scene]
    ) -> None:
        """A set.

        Args:
            card: the data set.
            items: by scene name, whatever ``build`` needs for it.
            build: (name, item) to the scene; it must be picklable for worker processes.
        """
        self.card = card
        self.names = tuple(items)
        self._items = dict(items)
        self._build = build

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Scene: ...

    @overload
    def __getitem__(self, index: slice) -> SceneSet: ...

    def __getitem__(self, index: int | slice) -> Scene | SceneSet:
        """The scene at a position, or the set of a slice."""
        if isinstance(index, slice):
            return self.subset(self.names[index])
        name = self.names[index]
        return self._build(name, self._items[name])

    def __iter__(self) -> Iterator[Scene]:
        return (self[i] for i in range(len(self)))

    def scene(self, name: str) -> Scene:
        """The scene of that name.

        Raises:
            InputError: there is none; names the nearest.
        """
        return self[self.index_of(name)]

    def index_of(self, name: str) -> int:
        """The position of a scene.

        Raises:
            InputError: there is none of that name; names the nearest.
        """
        if name not in self._items:
            near = difflib.get_close_matches(name, self.names, n=1, cutoff=0.4)
            raise InputError(
                f"{self.card.title} has no scene '{name}' here",
                remedy=f"did you mean '{near[0]}'?" if near else "see its names",
            )
        return self.names.index(name)

    def subset(self, names: Iterable[str]) -> SceneSet:
        """A set of some scenes, in the given order.

        Raises:
            InputError: one of them is not here.
        """
        chosen = [self.names[self.index_of(name)] for name in names]
        return SceneSet(self.card, {name: self._items[name] for name in chosen}, self._build)

    def __repr__(self) -> str:
        return f"SceneSet({self.card.name}, {len(self)} scenes)"
