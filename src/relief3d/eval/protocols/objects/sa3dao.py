"""SA-3DAO (SAM 3D, tables 2, 3 and 4): a thousand artist meshes of objects in natural pictures."""

from __future__ import annotations

from collections.abc import Sequence

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.objects.layout_rules import LayoutProtocol
from relief3d.eval.protocols.objects.shape_rules import ShapeProtocol
from relief3d.eval.published.sam3d import KNOCKOUTS, LAYOUT, SHAPE, STAGES
from relief3d.eval.published.table import PublishedRow

_GEOMETRY = {key: key for key in ("f1_001", "viou", "chamfer", "emd")}


def _shape_rows() -> Sequence[PublishedRow]:
    # The table's ULIP and Uni3D are of the pictures of ISO3D and stand there.
    return SHAPE.select(_GEOMETRY) + STAGES.select(_GEOMETRY) + KNOCKOUTS.select(_GEOMETRY)


def _layout_rows() -> Sequence[PublishedRow]:
    return LAYOUT.select({key: f"sa3dao.{key}" for key in ("iou3d", "icp_rot", "add_s", "add_s_01")})


PROTOCOLS: tuple[Protocol, ...] = (
    ShapeProtocol(
        "sa3dao_shape",
        "SA-3DAO: shape of single objects",
        "SAM 3D, Tables 2 and 4 and knockouts of the appendix; objects.md 6.1, 6.3, 6.5",
        _shape_rows,
    ),
    LayoutProtocol(
        "sa3dao_layout",
        "SA-3DAO: layout of single objects",
        "SAM 3D, Table 3; objects.md 6.2, 6.5",
        _layout_rows,
        objects=1,
    ),
)
