"""Mesh protocol "atlas" (Murez et al. 2020, as corrected by NeuralRecon; specification 8.2).

The prediction is rendered into every frame and the depth maps are fused again, which removes what no camera saw. The
vertices of that trimmed mesh and of the reference mesh are thinned to one per 2 cm and compared without a clamp.

Atlas names precision and recall the wrong way round; here accuracy and precision look from the prediction to the
reference, completeness and recall back, as in NeuralRecon. The F-score is the same either way.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.eval.metrics.mesh import NearestBackend, nearest_points
from relief3d.eval.metrics.surface_protocols import (
    SurfaceScores,
    has_surface,
    score_distances,
    voxel_downsample,
)
from relief3d.fusion.factory import make_fuser
from relief3d.fusion.protocols import empty_mesh
from relief3d.render.factory import make_renderer
from relief3d.render.protocols import BackFaces

VOXEL = 0.04
TRUNCATION_VOXELS = 3.0
MAX_DEPTH = 5.0
SPACING = 0.02
THRESHOLD = 0.05


def refuse_mesh(
    mesh: Mesh,
    cameras: Iterable[Camera],
    *,
    voxel_size: float = VOXEL,
    truncation_voxels: float = TRUNCATION_VOXELS,
    max_depth: float = MAX_DEPTH,
    back_faces: BackFaces = "cull",
) -> Mesh:
    """Render a mesh into cameras and fuse the depth maps: the part of it that the cameras see.

    Unobserved voxels never take part in the extraction, so no second wall appears behind the first.

    Args:
        mesh: world units are metres.
        cameras: posed pinhole cameras.
        voxel_size: metres.
        truncation_voxels: half width of the band; 3 voxels are the published 0.12 m.
        max_depth: rendered depth beyond is not fused, metres.
        back_faces: as OpenGL renderers of the published scripts have it, faces seen from behind are looked through.

    Returns:
        The trimmed mesh, empty when no camera sees anything.
    """
    renderer = make_renderer()
    fuser = make_fuser("auto", voxel_size, truncation_voxels, max_depth=max_depth, with_color=False)
    for camera in cameras:
        assert camera.K is not None and camera.cam_from_world is not None
        depth = renderer.render(mesh, camera, back_faces=back_faces)
        fuser.integrate(depth, camera.K, camera.cam_from_world)
    return fuser.extract(1.0) if fuser.frames else empty_mesh()


def atlas_scores(
    predicted: Mesh | None,
    reference: Tensor,
    cameras: Iterable[Camera],
    *,
    spacing: float = SPACING,
    threshold: float = THRESHOLD,
    backend: NearestBackend = "auto",
) -> SurfaceScores | None:
    """Compare a mesh with the vertices of the reference mesh; see the module's description.

    Args:
        predicted: mesh in the frame of the reference, metres.
        reference: (R, 3) vertices of the reference mesh, metres.
        cameras: all frames of the scan with a valid pose, at the size of the evaluation (640x480).
        spacing: cell of the thinning of both, metres.
        threshold: metres; a point at exactly this distance is not near.
        backend: nearest-neighbour search.

    Returns:
        The scores, or None when there is no mesh or no camera sees it: distances of nothing do not exist.

    Raises:
        InputError: the reference has no points.
    """
    if predicted is None or not has_surface(predicted):
        return None
    vertices = refuse_mesh(predicted, cameras).vertices
    if vertices.shape[0] == 0:
        return None
    ours, theirs = voxel_downsample(vertices, spacing), voxel_downsample(reference, spacing)
    forward, _ = nearest_points(ours, theirs, backend)
    backward, _ = nearest_points(theirs, ours, backend)
    return score_distances(forward, backward, threshold, strict=True)
