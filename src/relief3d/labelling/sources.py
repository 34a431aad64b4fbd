"""Where scenes to be labelled come from, and what identifies their content."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.data.readers.registry import open_dataset
from relief3d.data.readers.scene_set import SceneSet
from relief3d.labelling.base import Uses
from relief3d.worlds.config import WorldConfig


class SceneSource(Protocol):
    """A picklable set of scenes, opened by name in any process."""

    def names(self) -> Sequence[str]:
        """The scenes, in order; names are unique and relative."""
        ...

    def open(self, name: str) -> Scene:
        """One scene; pictures load on demand."""
        ...

    def digest(self, name: str, scene: Scene, view: View, uses: frozenset[Uses]) -> str:
        """What identifies the used content of one view, whichever folder or machine it lies on."""
        ...

    def left_out(self, scene: Scene) -> Sequence[str]:
        """Pictures that are there but cannot be opened, each with the reason."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-ready, without absolute paths."""
        ...


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    except OSError as exc:
        raise InputError(f"cannot be read ({exc.strerror})", path=path) from exc
    return total.hexdigest()


def tensor_digest(value: Tensor) -> str:
    """SHA-256 of type, shape and bytes."""
    array = value.detach().cpu().contiguous()
    total = hashlib.sha256(f"{array.dtype}{tuple(array.shape)}".encode())
    total.update(array.view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return total.hexdigest()


def _camera_digest(camera: Camera) -> list[Any]:
    lens = None if camera.distortion is None else [camera.distortion.model, list(camera.distortion.params)]
    K = None if camera.K is None else camera.K.tolist()
    pose = None if camera.world_from_cam is None else camera.world_from_cam.tolist()
    return [K, pose, lens, camera.K_source]


def view_digest(scene: Scene, view: View, uses: frozenset[Uses]) -> str:
    """SHA-256 over what a labeler uses of a view: the picture file's bytes (or its pixels), and so on.

    Of the scene it is the unit of its poses, and whether its views are ordered.
    """
    parts: list[Any] = [view.camera.width, view.camera.height]
    if view.path is not None and view.path.is_file():
        parts += ["file", file_digest(view.path), view.time]
    elif "image" in uses:
        parts += ["pixels", tensor_digest(view.load_image())]
    if "camera" in uses:
        parts += ["camera", _camera_digest(view.camera), scene.metric]
    if "order" in uses:
        parts += ["order", scene.ordered]
    if "depth" in uses:
        depth = view.load_depth()
        values = None if depth is None else [tensor_digest(depth.values * depth.valid), depth.metric]
        parts += ["depth", values]
    if "mask" in uses:
        mask = view.load_mask()
        parts += ["mask", None if mask is None else tensor_digest(mask)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class FolderScenes:
    """Scenes on disk: one input as ``relief3d reconstruct`` takes it, or a folder whose entries are such inputs.

    Attributes:
        root: the input.
        max_frames: frames to choose of a video, or pictures to keep.
        ordered: pictures follow each other in time; None: true for video only.
    """

    root: Path
    max_frames: int | None = None
    ordered: bool | None = None

    def names(self) -> tuple[str, ...]:
        """``"."`` for a single input, else the entries of the folder in natural order.

        Raises:
            InputError: nothing there that can be opened.
        """
        from relief3d.io.folders import detect_input
        from relief3d.io.names import natural_key

        try:
            detect_input(self.root)
            return (".",)
        except InputError as exc:
            if not self.root.is_dir():
                raise
            nothing = exc
        found = []
        for path in sorted(self.root.iterdir(), key=lambda p: natural_key(p.name)):
            if path.name.startswith("."):
                continue
            try:
                detect_input(path)
            except InputError:
                continue
            found.append(path.name)
        if not found:
            raise nothing
        return tuple(found)

    def open(self, name: str) -> Scene:
        from relief3d.io.folders import open_input

        where = self.root if name == "." else self.root / name
        return open_input(where, max_frames=self.max_frames, ordered=self.ordered, skip_bad=True)

    def digest(self, name: str, scene: Scene, view: View, uses: frozenset[Uses]) -> str:
        return view_digest(scene, view, uses)

    def left_out(self, scene: Scene) -> tuple[str, ...]:
        notes = scene.info.get("input", {}).get("notes", ())
        return tuple(note for note in notes if "was left out" in note)

    def describe(self) -> dict[str, Any]:
        return {"kind": "files", "name": self.root.resolve().name, "max_frames": self.max_frames}


@dataclass(frozen=True)
class DatasetScenes:
    """Scenes of a public data set, through its reader in :mod:`relief3d.data.readers`.

    Attributes:
        reader: name of the reader.
        root: where the data set was unpacked.
        split: one of the reader's, or None for all.
        max_frames: views to keep per scene, evenly spaced.
    """

    reader: str
    root: Path
    split: str | None = None
    max_frames: int | None = None

    @functools.cached_property
    def _set(self) -> SceneSet:
        options = {} if self.split is None else {"split": self.split}
        return open_dataset(self.reader, self.root, **options)

    def names(self) -> tuple[str, ...]:
        """Of the data set's scenes.

        Raises:
            InputError: no such reader or split, or the folder does not hold the data set.
        """
        return self._set.names

    def open(self, name: str) -> Scene:
        scene = self._set.scene(name)
        if self.max_frames is None or len(scene) <= self.max_frames:
            return scene
        keep = torch.linspace(0, len(scene) - 1, self.max_frames).round().long().tolist()
        return scene.replace(views=tuple(scene.views[i] for i in keep), sparse=None, points=None)

    def digest(self, name: str, scene: Scene, view: View, uses: frozenset[Uses]) -> str:
        return view_digest(scene, view, uses)

    def left_out(self, scene: Scene) -> tuple[str, ...]:
        return ()

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "data set",
            "reader": self.reader,
            "name": self.root.resolve().name,
            "split": self.split,
            "max_frames": self.max_frames,
        }


@dataclass(frozen=True)
class ProceduralScenes:
    """Procedural worlds with exact depth and cameras, rendered when opened; nothing is read or written.

    Attributes:
        count: scenes.
        views: pictures per scene, in the order of a walk.
        size: (width, height) pixels.
        seed: fixes everything.
        family: kind of place, see :class:`relief3d.worlds.WorldConfig`.
    """

    count: int
    views: int = 4
    size: tuple[int, int] = (64, 48)
    seed: int = 0
    family: str = "room"
    version: int = field(default=1)

    def names(self) -> tuple[str, ...]:
        return tuple(f"world{i:06d}" for i in range(self.count))

    def open(self, name: str) -> Scene:
        from relief3d.worlds import make_sequences, make_world

        own = derive_seed(self.seed, name)
        world = make_world(own % 2**31, WorldConfig(family=self.family, texture_size=64))  # type: ignore[arg-type]
        width, height = self.size
        path = make_sequences(world, views=self.views, seed=own % 2**31, size=(height, width), candidates=4)
        cameras = [
            Camera(width, height, path.K[0, v], path.world_from_cam[0, v].double()) for v in range(self.views)
        ]
        seen = world.render(cameras)
        views = tuple(
            View(
                f"{v:03d}",
                camera,
                image=seen.image[v],
                depth=Depth(torch.where(seen.valid[v], seen.depth[v], 0.0), seen.valid[v]),
                time=float(v),
            )
            for v, camera in enumerate(cameras)
        )
        return Scene(views, metric=True, ordered=True)

    def digest(self, name: str, scene: Scene, view: View, uses: frozenset[Uses]) -> str:
        facts = asdict(replace(self, count=0))
        return hashlib.sha256(json.dumps([facts, name, view.name, sorted(uses)]).encode()).hexdigest()

    def left_out(self, scene: Scene) -> tuple[str, ...]:
        return ()

    def describe(self) -> dict[str, Any]:
        return {"kind": "procedural", **asdict(self)}
