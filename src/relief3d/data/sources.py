"""Where samples come from: anything that gives a sample for an index."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import torch
from torch import Tensor

from relief3d.core.contract import Batch, Scene
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.batching import batch_from_scene
from relief3d.data.covisibility import OverlapStore
from relief3d.data.readers.scene_set import SceneSet
from relief3d.data.view_groups import ViewRequest, choose_views

ENDLESS = 1 << 62
"""Length of a source that never repeats itself."""


@runtime_checkable
class SampleSource(Protocol):
    """Samples by index. Everything is a function of the arguments, so that any process may ask for any sample.

    Attributes:
        name: short, for logs and sample names; unique in a mixture.
    """

    name: str

    def __len__(self) -> int:
        """Number of samples; :data:`ENDLESS` for sources that make new ones for ever."""
        ...

    def key(self, index: int) -> str:
        """Name of a sample, for errors and logs; stable between runs."""
        ...

    def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
        """Sample number ``index`` as a batch of B = 1.

        Args:
            index: 0 ... len - 1.
            request: number, size and grouping of the views.
            seed: for everything that is drawn at random (which views, their order).

        Raises:
            InputError: this sample cannot be used (damaged file, too few views, a needed modality is missing).
        """
        ...


class SceneSource:
    """Samples from scenes: folders of pictures, videos, readers of public data sets.

    Args:
        name: of the source.
        scenes: looked at only when asked for: a data set of :mod:`relief3d.data.readers`, :class:`LazyScenes`, a list.
        keys: a name per scene; when None those of the data set, or numbers.
        overlaps: where overlap matrices are kept (grouping ``covisible``); None: worked out for each sample.
    """

    def __init__(
        self,
        name: str,
        scenes: Sequence[Scene],
        *,
        keys: Sequence[str] | None = None,
        overlaps: OverlapStore | None = None,
    ) -> None:
        if not len(scenes):
            raise InputError(f"the source '{name}' has no scenes")
        if keys is not None and len(keys) != len(scenes):
            raise InputError(f"the source '{name}' has {len(scenes)} scenes but {len(keys)} names")
        if keys is None and isinstance(scenes, SceneSet):
            keys = scenes.names
        self.name, self.scenes, self.keys, self.overlaps = name, scenes, keys, overlaps

    def __len__(self) -> int:
        return len(self.scenes)

    def key(self, index: int) -> str:
        return str(index) if self.keys is None else self.keys[index]

    def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
        scene = self.scenes[index]
        overlap = None
        if self.overlaps is not None and request.grouping.kind == "covisible":
            overlap = self.overlaps.get(f"{self.name}/{self.key(index)}", scene)
        return sample_of_scene(scene, request, torch_generator(derive_seed(seed, "views")), overlap)


def sample_of_scene(
    scene: Scene, request: ViewRequest, generator: torch.Generator, overlap: Tensor | None = None
) -> Batch:
    """Chosen views of a scene as a batch of B = 1 with all that was asked for.

    Raises:
        InputError: the scene does not have it.
    """
    chosen = choose_views(scene, request, generator, overlap)
    height, width = request.size
    return check_modalities(batch_from_scene(scene, chosen, (width, height)), request)


def check_modalities(batch: Batch, request: ViewRequest) -> Batch:
    """The batch, if every view has what was asked for and all its numbers are finite.

    Raises:
        InputError: a modality is missing, or a number is not finite.
    """
    have = {
        "K": batch.has_K is not None and bool(batch.has_K.all()),
        "pose": batch.has_pose is not None and bool(batch.has_pose.all()),
        "depth": batch.depth_valid is not None and bool(batch.depth_valid.flatten(2).any(-1).all()),
    }
    missing = sorted(name for name in request.need if not have[name])
    if missing:
        raise InputError(f"has no {missing[0]} for every view", remedy="leave it out or do not ask for it")
    for name in ("images", "K", "world_from_cam", "depth", "sparse_depth"):
        value = getattr(batch, name)
        if value is not None and not bool(torch.isfinite(value).all()):
            raise InputError(f"holds numbers in {name} that are not finite")
    return batch


class LazyScenes(Sequence[Scene]):
    """Scenes that are opened when asked for.

    Args:
        openers: one function per scene; picklable where workers are started afresh.
    """

    def __init__(self, openers: Sequence[Callable[[], Scene]]) -> None:
        self.openers = openers

    def __len__(self) -> int:
        return len(self.openers)

    @overload
    def __getitem__(self, index: int) -> Scene: ...

    @overload
    def __getitem__(self, index: slice) -> LazyScenes: ...

    def __getitem__(self, index: int | slice) -> Scene | LazyScenes:
        if isinstance(index, slice):
            return LazyScenes(self.openers[index])
        return self.openers[index]()

    def __iter__(self) -> Iterator[Scene]:
        return (opener() for opener in self.openers)


@dataclasses.dataclass(frozen=True)
class _Opener:
    path: Path
    options: tuple[tuple[str, Any], ...]

    def __call__(self) -> Scene:
        from relief3d.io.folders import open_input

        return open_input(self.path, **dict(self.options))


def open_folders(name: str, paths: Sequence[str | Path], **options: Any) -> SceneSource:
    """A source of folders of pictures, camera files, COLMAP models or videos, one scene each.

    A video is decoded anew for every sample unless ``frames_folder`` is given; write its frames or shards once
    (docs/training_data.md) when it is used for training.

    Args:
        name: of the source.
        paths: see :func:`relief3d.io.folders.open_input`; nothing is read yet.
        options: passed on to it.
    """
    shared = tuple(sorted(options.items()))
    places = [Path(p) for p in paths]
    return SceneSource(
        name, LazyScenes([_Opener(p, shared) for p in places]), keys=[p.as_posix() for p in places]
    )
