"""Mesh protocol "transformerfusion" (Bozic et al. 2021, public evaluation script; specification 8.1).

Reference points are all vertices of the reference mesh. The prediction is sampled uniformly. Predicted points in
space that the reference scan never observed are left out of accuracy and precision, but not of completeness and
recall, which look for the nearest of all predicted points. Distances are clamped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.eval.metrics.mesh import NearestBackend, nearest_points, sample_surface
from relief3d.eval.metrics.surface_protocols import SurfaceScores, has_surface, score_distances

SAMPLES = 200_000
THRESHOLD = 0.05
CLAMP = 1.0
_VISIBLE = 1 - 1e-5

MISSING = SurfaceScores(CLAMP, CLAMP, CLAMP, 1.0, 0.0, 0.0)
"""What a missing or empty mesh counts. The precision of 1 is the published script's, strange as it is."""


@dataclass(frozen=True)
class OcclusionGrid:
    """Where the reference scan has seen something.

    Attributes:
        mask: (X, Y, Z), 1 (or True) where occluded or never observed.
        world2grid: (4, 4) float64, world coordinates to indices of voxel centres.
    """

    mask: Tensor
    world2grid: Tensor

    def __post_init__(self) -> None:
        if self.mask.ndim != 3 or tuple(self.world2grid.shape) != (4, 4):
            raise InputError(
                f"an occlusion mask is (X, Y, Z) with a 4x4 world2grid, got {tuple(self.mask.shape)} and "
                f"{tuple(self.world2grid.shape)}"
            )

    def visibility(self, points: Tensor) -> Tensor:
        """Trilinear 1 - mask at world points (N, 3), (N,) float64; voxels outside the grid count as occluded."""
        world2grid = self.world2grid.double()
        at = points.detach().cpu().double() @ world2grid[:3, :3].T + world2grid[:3, 3]
        low = torch.floor(at)
        share = at - low
        # Far points would overflow the integers; all their corners are outside either way.
        corner = low.clamp(-2, max(self.mask.shape) + 1).long()
        size = torch.tensor(self.mask.shape)
        total = torch.zeros(at.shape[0], dtype=torch.float64)
        for code in range(8):
            step = torch.tensor([code >> 2 & 1, code >> 1 & 1, code & 1])
            weight = torch.where(step.bool(), share, 1 - share).prod(-1)
            index = corner + step
            inside = ((index >= 0) & (index < size)).all(-1)
            x, y, z = torch.where(inside[:, None], index, torch.zeros_like(index)).unbind(-1)
            total += torch.where(inside, weight * (1 - self.mask[x, y, z].double()), torch.zeros_like(weight))
        return total

    def visible(self, points: Tensor) -> Tensor:
        """(N,) bool: every voxel around the point was observed."""
        return self.visibility(points) >= _VISIBLE


def transformerfusion_scores(
    predicted: Mesh | None,
    reference: Tensor,
    occlusion: OcclusionGrid | None,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    threshold: float = THRESHOLD,
    clamp: float = CLAMP,
    backend: NearestBackend = "auto",
) -> SurfaceScores:
    """Compare a mesh with the vertices of the reference mesh; see the module's description.

    Args:
        predicted: mesh in the frame of the reference, metres; None, or no surface, counts :data:`MISSING`.
        reference: (R, 3) all vertices of the reference mesh, metres.
        occlusion: None keeps all predicted points.
        samples: points on the prediction.
        seed: of the sampling.
        threshold: metres; a point at exactly this distance is near.
        clamp: largest distance that counts, metres.
        backend: nearest-neighbour search.

    Raises:
        InputError: the reference has no points.
    """
    if predicted is None or not has_surface(predicted):
        return MISSING
    points = sample_surface(predicted, samples, torch.Generator().manual_seed(seed)).points
    visible = torch.ones(samples, dtype=torch.bool) if occlusion is None else occlusion.visible(points)
    kept = points[visible] if bool(visible.any()) else points
    forward, _ = nearest_points(kept, reference, backend)
    backward, _ = nearest_points(reference, points, backend)
    return score_distances(forward.clamp(max=clamp), backward.clamp(max=clamp), threshold, strict=False)


def observed_space(
    frames: Iterable[tuple[Camera, Tensor]],
    low: Tensor,
    high: Tensor,
    voxel_size: float,
    *,
    slack_voxels: float = 2.0,
) -> OcclusionGrid:
    """Occlusion grid of a scan from its depth maps (specification 8.5).

    A voxel is occluded when no frame sees it in front of (its depth + ``slack_voxels`` voxels). A frame sees a voxel
    whose centre projects on a pixel of known depth. Only voxels not seen yet are looked at again, so memory is that of
    one coordinate triple per unseen voxel.

    Args:
        frames: posed pinhole cameras with (H, W) z-depth, 0 where unknown; read once, one at a time.
        low: (3,) smallest voxel centre, world units.
        high: (3,) the grid reaches at least so far.
        voxel_size: world units.
        slack_voxels: how far behind the surface counts as seen.

    Raises:
        InputError: a camera without intrinsics or pose, or more than 2e9 voxels.
    """
    low, high = low.double(), high.double()
    size = (torch.ceil((high - low) / voxel_size).long() + 1).clamp(min=1)
    if float(size.double().prod()) > 2e9:
        raise InputError(f"a grid of {tuple(size.tolist())} voxels is too large", remedy="use larger voxels")
    mask = torch.ones(int(size.prod()), dtype=torch.bool)
    axes = [low[k] + voxel_size * torch.arange(int(size[k]), dtype=torch.float64) for k in range(3)]
    left = torch.cartesian_prod(*(axis.float() for axis in axes)).view(-1, 3)
    index = torch.arange(mask.shape[0])
    for camera, depth in frames:
        seen = _in_front(left, camera, depth, slack_voxels * voxel_size)
        mask[index[seen]] = False
        left, index = left[~seen], index[~seen]
    world2grid = torch.eye(4, dtype=torch.float64)
    world2grid[:3, :3] /= voxel_size
    world2grid[:3, 3] = -low / voxel_size
    return OcclusionGrid(mask.view(*size.tolist()), world2grid)


def _in_front(points: Tensor, camera: Camera, depth: Tensor, slack: float) -> Tensor:
    """(N,) bool: in front of depth + slack of the pixel the point falls on."""
    if camera.K is None or camera.cam_from_world is None:
        raise InputError("visibility needs cameras with intrinsics and pose")
    pose, K = camera.cam_from_world.float(), camera.K.float()
    out = torch.zeros(points.shape[0], dtype=torch.bool)
    for first in range(0, points.shape[0], 1 << 20):
        local = points[first : first + (1 << 20)] @ pose[:3, :3].T + pose[:3, 3]
        z = local[:, 2]
        front = torch.nonzero(z > 1e-6)[:, 0]
        x, y = (local[front, :2] / z[front, None] * K.diagonal()[:2] + K[:2, 2]).unbind(-1)
        inside = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
        front, x, y = front[inside], x[inside].long(), y[inside].long()
        known = depth[y, x].float()
        out[first + front[(known > 0) & (z[front] <= known + slack)]] = True
    return out
