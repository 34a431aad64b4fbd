"""Bringing a result into the frame of its reference through the cameras both know."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class CameraAlignment:
    """Similarity ``x_ref = s R x_est + t``.

    Attributes:
        scale: s.
        R: (3, 3) float64.
        t: (3,) float64.
        kind: "none" when both already share a frame, else "cameras".
    """

    scale: float
    R: Tensor
    t: Tensor
    kind: str

    def points(self, xyz: Tensor) -> Tensor:
        """(N, 3) in the reference's frame, float64."""
        return self.scale * xyz.double() @ self.R.T + self.t

    def pose(self, world_from_cam: Tensor) -> Tensor:
        """(4, 4) pose in the reference's frame (the rotation stays a rotation; the centre is scaled)."""
        out = torch.eye(4, dtype=torch.float64)
        out[:3, :3] = self.R @ world_from_cam[:3, :3]
        out[:3, 3] = self.points(world_from_cam[None, :3, 3])[0]
        return out

    def mesh(self, mesh: Mesh) -> Mesh:
        """The mesh in the reference's frame."""
        normals = None if mesh.normals is None else (mesh.normals.double() @ self.R.T).float()
        return dataclasses.replace(mesh, vertices=self.points(mesh.vertices).float(), normals=normals)


def align_cameras(
    estimated: Sequence[Tensor | None], reference: Sequence[Tensor | None], same_frame: float = 1e-4
) -> CameraAlignment:
    """Similarity from the estimated to the reference cameras.

    The rotation is the chordal mean of the camera rotations, scale and translation fit the centres by least
    squares. Unlike an alignment of centres alone this stays well defined when the cameras stand on a line.

    Args:
        estimated: N ``world_from_cam`` (4, 4) or None.
        reference: the same.
        same_frame: when all poses agree this well as they are (share of the reference's extent, and radians),
            nothing is changed.

    Raises:
        InputError: fewer than two cameras in common, or all centres at one place.
    """
    pairs = [
        (e.double(), r.double()) for e, r in zip(estimated, reference) if e is not None and r is not None
    ]
    if len(pairs) < 2:
        raise InputError("result and reference share fewer than two posed views, so they cannot be aligned")
    est, ref = (torch.stack(p) for p in zip(*pairs))
    extent = (ref[:, :3, 3] - ref[:, :3, 3].mean(0)).norm(dim=-1).max()
    shift = (est[:, :3, 3] - ref[:, :3, 3]).norm(dim=-1).max()
    turn = (est[:, :3, :3] - ref[:, :3, :3]).flatten(1).norm(dim=-1).max()
    if shift <= same_frame * extent and turn <= same_frame:
        return CameraAlignment(
            1.0, torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), "none"
        )
    U, _, Vh = torch.linalg.svd((ref[:, :3, :3] @ est[:, :3, :3].transpose(-1, -2)).sum(0))
    flip = torch.diag(torch.tensor([1.0, 1.0, torch.det(U @ Vh)], dtype=torch.float64))
    R = U @ flip @ Vh
    src, dst = est[:, :3, 3] @ R.T, ref[:, :3, 3]
    a, b = src - src.mean(0), dst - dst.mean(0)
    energy = a.square().sum()
    if energy <= 0 or (a * b).sum() <= 0:
        raise InputError("the cameras of the result do not move like those of the reference")
    scale = float((a * b).sum() / energy)
    return CameraAlignment(scale, R, dst.mean(0) - scale * src.mean(0), "cameras")
