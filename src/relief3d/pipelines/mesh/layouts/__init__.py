"""Recordings with cameras as public benchmarks and phone programs write them: one folder in, named frames out.

Every reader gives a scene with one view per frame in time order. Poses are turned into ``world_from_cam`` with OpenCV
axes, principal points into pixel centres at +0.5, depth maps into metres as seen by the colour camera. A frame whose
tracking failed keeps its place and has no pose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.pipelines.mesh.layouts import phone, scannet, seven_scenes, tanks, tum


@dataclass(frozen=True)
class Layout:
    """A way to lay out a recording.

    Attributes:
        name: for ``--layout``.
        title: for people.
        holds: whether a folder is laid out so; cheap.
        read: the folder as a scene.
    """

    name: str
    title: str
    holds: Callable[[Path], bool]
    read: Callable[[Path], Scene]


LAYOUTS: tuple[Layout, ...] = (
    Layout("tum", "TUM RGB-D", tum.is_tum, tum.read_tum_sequence),
    Layout("scannet", "ScanNet (exported by SensReader)", scannet.is_scannet, scannet.read_scannet_scan),
    Layout("7scenes", "7-Scenes", seven_scenes.is_seven_scenes, seven_scenes.read_seven_scenes),
    Layout("polycam", "Polycam raw data", phone.is_polycam, phone.read_polycam),
    Layout("record3d", "Record3D (EXR and pictures)", phone.is_record3d, phone.read_record3d),
    Layout("arkit", "ARKit frames with a JSON each (3D Scanner App)", phone.is_arkit, phone.read_arkit),
    Layout("tanks", "Tanks and Temples (.log trajectory)", tanks.is_tanks, tanks.read_tanks),
)
"""In the order in which they are tried; each is told from the others by files that only it has."""

NAMES = tuple(layout.name for layout in LAYOUTS)


def find_layout(folder: Path, name: str = "auto") -> Layout | None:
    """The layout of a folder; None when it is none of these (photos, a COLMAP model, cameras.json ...).

    Raises:
        InputError: ``name`` is unknown, or the folder is not laid out so.
    """
    if name in ("auto", "files"):
        if name == "files" or not folder.is_dir():
            return None
        return next((layout for layout in LAYOUTS if layout.holds(folder)), None)
    found = next((layout for layout in LAYOUTS if layout.name == name), None)
    if found is None:
        raise InputError(f"unknown layout '{name}'", remedy=f"use auto, files, {', '.join(NAMES)}")
    if not folder.is_dir() or not found.holds(folder):
        raise InputError(
            f"this is not laid out as {found.title}", path=folder, remedy="drop --layout, or see docs/mesh.md"
        )
    return found
