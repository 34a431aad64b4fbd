"""The mesh as the browser gets it: an unlit, one-sided GLB in memory."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

from relief3d.core.contract import Mesh
from relief3d.io.glb import write_glb
from relief3d.report.geometry3d import decimate

_HEAD, _CHUNK = "<4sII", "<II"


def surface_glb(mesh: Mesh, max_faces: int) -> bytes:
    """GLB bytes of ``mesh`` in its own coordinates, decimated (then with vertex colours) above ``max_faces``.

    Unlit, because the colours come from photographs; one-sided, so that one looks through the back of walls into
    a room.
    """
    if mesh.faces.shape[0] > max_faces:
        mesh = decimate(mesh, max_faces)
    with tempfile.TemporaryDirectory(prefix="relief3d-") as folder:
        path = write_glb(Path(folder) / "mesh.glb", mesh, up="y")
        return one_sided(path.read_bytes())


def one_sided(data: bytes) -> bytes:
    """The same GLB with back faces hidden (``doubleSided`` false in every material)."""
    head, chunk = struct.calcsize(_HEAD), struct.calcsize(_CHUNK)
    magic, version, _ = struct.unpack_from(_HEAD, data)
    length, kind = struct.unpack_from(_CHUNK, data, head)
    document = json.loads(data[head + chunk : head + chunk + length])
    for material in document.get("materials", []):
        material["doubleSided"] = False
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    rest = data[head + chunk + length :]
    total = head + chunk + len(text) + len(rest)
    return struct.pack(_HEAD, magic, version, total) + struct.pack(_CHUNK, len(text), kind) + text + rest
