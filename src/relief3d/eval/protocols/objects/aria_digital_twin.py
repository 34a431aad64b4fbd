"""Aria Digital Twin (SAM 3D, table 3): rooms with exact copies of about thirty objects in each of forty pictures."""

from __future__ import annotations

from collections.abc import Sequence

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.objects.layout_rules import LayoutProtocol
from relief3d.eval.protocols.objects.readers_objects import LAYOUT as FOLDERS
from relief3d.eval.published.sam3d import LAYOUT, REFINEMENT
from relief3d.eval.published.table import PublishedRow


def _rows() -> Sequence[PublishedRow]:
    keys = ("iou3d", "icp_rot", "add_s", "add_s_01")
    refined = REFINEMENT.select({key: key for key in (*keys, "iou2d")})
    return LAYOUT.select({key: f"adt.{key}" for key in keys}) + refined


class AriaDigitalTwin(LayoutProtocol):
    """Layout with several objects per picture."""

    layout = (
        "The release is VRS recordings with instances.json, scene_objects.csv, aria_trajectory.csv and object meshes; "
        "undistort the frames with its own tools and export <frame>/image.png, <frame>/camera.json, "
        "<frame>/points.npy and <frame>/<instance>/{mask.png, mesh.glb, pose.json}.\n" + FOLDERS
    )


PROTOCOLS: tuple[Protocol, ...] = (
    AriaDigitalTwin(
        "adt_layout",
        "Aria Digital Twin: layout of all objects of a picture",
        "SAM 3D, Table 3 and layout refinement of the appendix; objects.md 6.2, 6.5, 3.11",
        _rows,
        objects=3,
    ),
)
