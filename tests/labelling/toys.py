"""Labelers and scenes of a few bytes, with faults on demand. Imported by name in worker processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from relief3d.core.contract import Camera, Depth, Scene, View
from relief3d.core.errors import InputError, MissingExtraError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.labelling.base import DepthLabel, Grouping, Labels

WIDTH, HEIGHT = 6, 4


@dataclass(frozen=True)
class ToyScenes:
    """``count`` views of 6x4 pixels in scenes of ten."""

    count: int
    per_scene: int = 10

    def names(self) -> tuple[str, ...]:
        return tuple(f"s{i:03d}" for i in range((self.count + self.per_scene - 1) // self.per_scene))

    def open(self, name: str) -> Scene:
        first = int(name[1:]) * self.per_scene
        last = min(self.count, first + self.per_scene)
        views = [
            View(f"v{i:04d}", Camera(WIDTH, HEIGHT), image=torch.full((3, HEIGHT, WIDTH), i % 97 / 97))
            for i in range(first, last)
        ]
        return Scene(tuple(views))

    def digest(self, name: str, scene: Scene, view: View, uses: frozenset[str]) -> str:
        return hashlib.sha256(view.name.encode()).hexdigest()

    def left_out(self, scene: Scene) -> tuple[str, ...]:
        return ()

    def describe(self) -> dict[str, Any]:
        return {"kind": "toy"}


@dataclass(frozen=True)
class ToyOptions:
    """Which views misbehave, by the number in their name modulo these; 0 for none."""

    log: str = ""
    crash: int = 0
    crash_times: int = 1
    poison: int = -1
    """Number of the one view that always crashes."""
    fail: int = 0
    fail_times: int = 1
    bad: int = 0
    hang: int = 0
    sleep: float = 0.0
    forks: bool = False
    """A worker that crashes leaves a child behind, which holds all that it had open."""
    cut: int = 0
    """Kill the worker while the labels of these views are renamed or flushed, in their first attempt."""
    pids: str = ""
    """Folder that gets an empty file per worker, named by its process id."""


class Toy:
    """Noise as depth; a faulty view kills its worker, raises or hangs in its first attempts."""

    name = "toy"
    version = 1
    grouping = Grouping("view")
    uses: frozenset[str] = frozenset({"image"})

    def __init__(self, options: ToyOptions, device: str = "cpu") -> None:
        # Where attempts are counted and how long they take must not change the items.
        still = {
            "log": "",
            "sleep": 0.0,
            "crash_times": 0,
            "crash": 0,
            "forks": False,
            "cut": 0,
            "pids": "",
            "poison": -1,
        }
        self.options = ToyOptions(**{**vars(options), **still})
        self._faults = options

    def weights_digest(self) -> str | None:
        return None

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        faults = self._faults
        (view,) = scene.views
        number = int(view.name[1:])
        tries = self._count(view.name) if faults.log else 1

        def hit(every: int, times: int) -> bool:
            return every > 0 and number % every == every - 1 and tries <= times

        if faults.pids:
            (Path(faults.pids) / str(os.getpid())).touch()
        if faults.sleep:
            time.sleep(faults.sleep)
        if hit(faults.crash, faults.crash_times) or number == faults.poison:
            if faults.forks and os.fork() == 0:
                time.sleep(20)
                os._exit(0)
            os._exit(17)
        if hit(faults.cut, 1):
            die_at_call(1 + number // faults.cut % 8)
        if hit(faults.hang, 1):
            time.sleep(600)
        if hit(faults.fail, faults.fail_times):
            raise ValueError("bad luck")
        if hit(faults.bad, 99):
            raise InputError(f"'{view.name}' is no picture")
        noise = torch.rand(HEIGHT, WIDTH, generator=torch_generator(derive_seed(seed, view.name)))
        depth = Depth.from_values(1 + noise + view.load_image()[0], confidence=noise)
        return Labels(depth={view.name: DepthLabel(depth)}, facts={"number": number})

    def _count(self, name: str) -> int:
        path = Path(self._faults.log) / name
        with path.open("ab") as stream:
            stream.write(b"x")
        return path.stat().st_size


def die_at_call(number: int) -> None:
    """Kill this process at the ``number``-th call that a save makes of the disk: 1 before the first."""
    calls = [0]

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            found = real(*arguments)
            if calls[0] == number - 1 and real is os.replace:  # after the rename, before anything else
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return call

    os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)


class SlowToBuild(Toy):
    """Cannot even be built in a worker."""

    def __init__(self, options: ToyOptions, device: str = "cpu") -> None:
        if multiprocessing.parent_process() is not None:
            os._exit(3)
        super().__init__(options, device)


class Clumsy(Toy):
    """Fails in ways that are not the item's fault, or returns what is no label; ``log`` says how."""

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        how = self._faults.log
        if how == "full":
            try:
                raise OSError(28, "No space left on device")
            except OSError as exc:
                raise InputError("cannot be written") from exc
        if how == "words":
            raise RuntimeError("sqlite: No space left on device")
        if how == "extra":
            raise MissingExtraError("this needs the package 'nothing'")
        labels = Toy(ToyOptions()).label(scene, seed=seed, work=work)
        if how == "facts":
            return replace(labels, facts={"what": object()})
        return replace(labels, depth={"stranger": next(iter(labels.depth.values()))})


class Unbuildable(Toy):
    """Raises in the workers' constructor, in another way than our errors."""

    def __init__(self, options: ToyOptions, device: str = "cpu") -> None:
        super().__init__(options, device)
        if multiprocessing.parent_process() is not None:
            raise ZeroDivisionError("of all things")
