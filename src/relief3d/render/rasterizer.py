"""A z-buffer rasteriser in plain torch: exact depth at pixel centres, no other library needed.

Edge functions are evaluated on homogeneous rays (Olano and Greer, "Triangle scan conversion using 2D
homogeneous coordinates", 1997), so triangles that cross the camera plane need no clipping, the depth
is that of the triangle's plane and the barycentric weights are perspective-correct.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.render.protocols import BackFaces, Hits, check_mesh, empty_hits, posed_pinhole

_MISS = torch.iinfo(torch.int64).max
_LOW_32 = (1 << 32) - 1


class TorchRenderer:
    """:class:`~relief3d.render.protocols.DepthRenderer` without any library but torch.

    Args:
        near: smallest z-depth that can be hit, in the mesh's unit; None takes a millionth of the largest.
        max_candidates: pixel-triangle pairs tested at once; bounds memory at about 100 bytes each.
        device: where to work; the mesh is moved there.
    """

    name = "torch"

    def __init__(
        self,
        near: float | None = None,
        max_candidates: int = 1_000_000,
        device: torch.device | str = "cpu",
    ) -> None:
        self.near = near
        self.max_candidates = max_candidates
        self.device = torch.device(device)

    def render(self, mesh: Mesh, camera: Camera, *, back_faces: BackFaces = "discard") -> Tensor:
        """(H, W) float32 z-depth at pixel centres, 0 where nothing is hit."""
        return self.cast(mesh, camera, back_faces=back_faces).depth

    def cast(self, mesh: Mesh, camera: Camera, *, back_faces: BackFaces = "discard") -> Hits:
        """First hits of the pixel rays; see :class:`~relief3d.render.protocols.Hits`.

        Raises:
            InputError: for a broken mesh or a camera without intrinsics or pose.
        """
        check_mesh(mesh)
        K, cam_from_world = (m.to(self.device) for m in posed_pinhole(camera))
        height, width = camera.height, camera.width
        if mesh.faces.shape[0] == 0:
            return empty_hits(height, width, self.device)
        vertices = mesh.vertices.to(self.device, torch.float64)
        vertices = vertices @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
        faces = mesh.faces.to(self.device)
        corners = vertices[faces]
        near = self.near if self.near is not None else max(1e-12, 1e-6 * float(corners[..., 2].max()))

        box = _pixel_boxes(corners, K, near, width, height)
        # The volume spanned with the camera centre is negative for counter-clockwise faces.
        volume = (corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum(-1)
        alive = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1]) & (volume != 0)
        if back_faces == "cull":
            alive &= volume < 0
        index = torch.nonzero(alive).squeeze(1)
        if index.numel() == 0:
            return empty_hits(height, width, self.device)

        edges = _edge_functions(corners[index], K)
        buffer = torch.full((height * width,), _MISS, dtype=torch.int64, device=self.device)
        for part in _parts(box[index], self.max_candidates):
            _splat(buffer, index[part], box[index[part]], edges[part], volume[index[part]], width, near)
        return self._resolve(buffer, corners, volume, K, back_faces, height, width)

    def _resolve(
        self,
        buffer: Tensor,
        corners: Tensor,
        volume: Tensor,
        K: Tensor,
        back_faces: BackFaces,
        height: int,
        width: int,
    ) -> Hits:
        """Unpack winners; recompute depth and weights of each in float64."""
        hit = torch.nonzero(buffer != _MISS).squeeze(1)
        face = buffer[hit] & _LOW_32
        if back_faces == "discard":
            front = volume[face] < 0
            hit, face = hit[front], face[front]
        pixel = torch.stack(((hit % width) + 0.5, torch.div(hit, width, rounding_mode="floor") + 0.5), -1)
        weights = _evaluate(_edge_functions(corners[face], K), pixel.to(torch.float64))
        total = weights.sum(-1)
        out = empty_hits(height, width, self.device)
        out.depth.view(-1)[hit] = (volume[face] / total).to(torch.float32)
        out.face.view(-1)[hit] = face
        barycentric = (weights / total[:, None]).clamp(0, 1)
        barycentric = barycentric / barycentric.sum(-1, keepdim=True)
        out.barycentric.view(-1, 3)[hit] = barycentric.to(torch.float32)
        return out


def _edge_functions(corners: Tensor, K: Tensor) -> Tensor:
    """(T, 3, 3) rows map pixel (x, y, 1) to the unnormalised weight of each corner."""
    a, b, c = corners.unbind(1)
    # Differences first: far, small triangles would lose their digits in a plain cross product.
    cross = torch.stack(
        (torch.linalg.cross(b, c - b), torch.linalg.cross(c, a - c), torch.linalg.cross(a, b - a)), 1
    )
    return cross @ torch.linalg.inv(K)


def _evaluate(edges: Tensor, pixel: Tensor) -> Tensor:
    """(N, 3) weights of edge functions (N, 3, 3) at pixels (N, 2)."""
    return edges[..., 0] * pixel[:, 0:1] + edges[..., 1] * pixel[:, 1:2] + edges[..., 2]


def _pixel_boxes(corners: Tensor, K: Tensor, near: float, width: int, height: int) -> Tensor:
    """(T, 4) int64 half-open boxes x0, y0, x1, y1 of pixels whose centre a triangle may cover."""
    z = corners[..., 2]
    front = z > near
    points, keep = corners, front
    crossing = front.any(1) & ~front.all(1)
    boxes = torch.zeros(corners.shape[0], 4, dtype=torch.int64, device=corners.device)

    def bound(points: Tensor, keep: Tensor) -> Tensor:
        xy = points @ K.T
        xy = xy[..., :2] / torch.where(keep, xy[..., 2], torch.ones_like(xy[..., 2]))[..., None]
        big = torch.full_like(xy, 1e9)
        low = torch.where(keep[..., None], xy, big).amin(1)
        high = torch.where(keep[..., None], xy, -big).amax(1)
        # Pixel i is covered when its centre i + 0.5 lies inside; the margin guards against rounding.
        first = torch.ceil(low - 0.5 - 1e-4)
        last = torch.floor(high - 0.5 + 1e-4) + 1
        size = torch.tensor([width, height], dtype=xy.dtype, device=xy.device)
        zero = torch.zeros_like(size)
        return torch.cat((first.clamp(zero, size), last.clamp(zero, size)), -1).to(torch.int64)

    whole = front.all(1)
    boxes[whole] = bound(points[whole], keep[whole])
    if bool(crossing.any()):
        part, part_front = corners[crossing], front[crossing]
        following, following_front = part.roll(-1, 1), part_front.roll(-1, 1)
        cut = part_front != following_front
        run = torch.where(cut, following[..., 2] - part[..., 2], torch.ones_like(part[..., 2]))
        share = torch.where(cut, (near - part[..., 2]) / run, torch.zeros_like(run))
        cuts = part + share[..., None] * (following - part)
        boxes[crossing] = bound(torch.cat((part, cuts), 1), torch.cat((part_front, cut), 1))
    return boxes


def _parts(box: Tensor, max_candidates: int) -> list[slice]:
    """Consecutive ranges of triangles whose boxes hold about ``max_candidates`` pixels each."""
    total = torch.cumsum((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]), 0)
    group = torch.div(total - 1, max_candidates, rounding_mode="floor")
    _, counts = torch.unique_consecutive(group, return_counts=True)
    ends = torch.cumsum(counts, 0).tolist()
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _splat(
    buffer: Tensor, face: Tensor, box: Tensor, edges: Tensor, volume: Tensor, width: int, near: float
) -> None:
    """Merge the hits of some triangles into the packed (depth, face) buffer."""
    span = box[:, 2] - box[:, 0]
    count = span * (box[:, 3] - box[:, 1])
    owner = torch.repeat_interleave(torch.arange(face.shape[0], device=face.device), count)
    rank = torch.arange(owner.shape[0], device=face.device) - (torch.cumsum(count, 0) - count)[owner]
    row = torch.div(rank, span[owner], rounding_mode="floor")
    x = box[owner, 0] + rank - row * span[owner]
    y = box[owner, 1] + row
    pixel = torch.stack((x + 0.5, y + 0.5), -1).to(edges.dtype)
    weights = _evaluate(edges[owner], pixel)
    total = weights.sum(-1)
    # A weight counts as inside when it has the sign of the sum; the tolerance closes shared edges.
    share = weights / total[:, None]
    depth = (volume[owner] / total).to(torch.float32)
    inside = (share.amin(-1) >= -1e-9) & torch.isfinite(depth) & (depth > near)
    # Bits of positive floats order as the floats do, so depth and face fit one comparable integer.
    packed = (depth[inside].view(torch.int32).to(torch.int64) << 32) | face[owner[inside]]
    buffer.scatter_reduce_(0, y[inside] * width + x[inside], packed, "amin", include_self=True)
