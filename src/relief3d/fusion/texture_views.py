"""Which picture colours which face: visibility, quality, and exposure between pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.geometry.sampling import sample_image
from relief3d.render.pictures import scaled_camera
from relief3d.render.protocols import DepthRenderer

CANDIDATES = 3


@dataclass(frozen=True)
class TextureView:
    """A picture that may colour a mesh.

    Attributes:
        camera: posed pinhole camera at the size of the picture.
        image: (3, H, W) float32 RGB in [0, 1], or a function that loads it.
    """

    camera: Camera
    image: Tensor | Callable[[], Tensor]

    def load(self) -> Tensor:
        """(3, H, W) picture."""
        return self.image() if callable(self.image) else self.image


@dataclass(frozen=True)
class ViewScores:
    """The best pictures of every face.

    Attributes:
        view: (F, C) int64 view indices, best first, -1 where fewer see the face.
        score: (F, C) float32 pixels that the face covers in that view, 0 where there is none.
        vertex_seen: (V, N) bool, vertex seen by view.
    """

    view: Tensor
    score: Tensor
    vertex_seen: Tensor


def project_points(points: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Pixels (N, 2) and z-depth (N,), float64, of world points; pixels are NaN behind the camera."""
    cam_from_world = camera.cam_from_world
    assert camera.K is not None and cam_from_world is not None
    local = points.double() @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    image = local @ camera.K.T
    z = local[:, 2]
    return image[:, :2] / torch.where(z > 0, z, torch.full_like(z, torch.nan))[:, None], z


def face_adjacency(faces: Tensor) -> Tensor:
    """(E, 2) pairs of faces that share an edge; edges of more than two faces pair consecutive ones."""
    edges = torch.cat((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]))
    key = edges.min(1).values * (int(faces.max()) + 1 if faces.numel() else 1) + edges.max(1).values
    order = torch.argsort(key, stable=True)
    owner = torch.arange(faces.shape[0]).repeat(3)[order]
    same = key[order][1:] == key[order][:-1]
    return torch.stack((owner[:-1][same], owner[1:][same]), -1)


def score_views(
    mesh: Mesh,
    views: Sequence[TextureView],
    renderer: DepthRenderer,
    *,
    slack: float,
    max_render: int = 1024,
    margin: float = 2.0,
    progress: Progress | None = None,
) -> ViewScores:
    """For every face, the pictures that see it whole, ranked by the pixels it covers there.

    A vertex is seen when it projects inside the picture and lies at most ``slack`` behind the rendered depth.

    Args:
        mesh: triangles.
        views: candidate pictures.
        renderer: makes the depth maps.
        slack: world units; about one voxel.
        max_render: longest side of the depth maps.
        margin: pixels along the rim of the pictures that are not used.
        progress: what to report to.
    """
    progress = progress or SilentProgress()
    count = mesh.faces.shape[0]
    best_view = torch.full((count, CANDIDATES), -1, dtype=torch.int64)
    best_score = torch.zeros(count, CANDIDATES)
    seen_by = torch.zeros(mesh.vertices.shape[0], len(views), dtype=torch.bool)
    with stage(progress, "choosing pictures for the texture", len(views)):
        for number, view in enumerate(views):
            camera = view.camera
            small = scaled_camera(camera, min(1.0, max_render / max(camera.width, camera.height)))
            depth = renderer.render(mesh, small, back_faces="discard").cpu()
            # The farthest of 3x3 forgives vertices on silhouettes that fall on the pixel beside.
            depth = torch.nn.functional.max_pool2d(depth[None, None], 3, 1, 1)[0, 0]
            xy, z = project_points(mesh.vertices, camera)
            inside = (xy > margin).all(-1)
            inside &= (xy[:, 0] < camera.width - margin) & (xy[:, 1] < camera.height - margin)
            index = torch.nonzero(inside).squeeze(1)
            column = (xy[index, 0] * small.width / camera.width).long().clamp(0, small.width - 1)
            row = (xy[index, 1] * small.height / camera.height).long().clamp(0, small.height - 1)
            surface = depth[row, column].double()
            seen_by[index, number] = (surface > 0) & (z[index] <= surface + slack)
            a, b, c = xy[mesh.faces].unbind(1)
            # Positive for faces turned towards the camera (y points down in pictures).
            area = 0.5 * ((b - a)[:, 1] * (c - a)[:, 0] - (b - a)[:, 0] * (c - a)[:, 1])
            whole = seen_by[mesh.faces, number].all(1)
            score = torch.where(whole & (area > 0), area, torch.zeros_like(area)).float()
            scores = torch.cat((best_score, score[:, None]), 1)
            names = torch.cat((best_view, torch.full((count, 1), number)), 1)
            best_score, order = torch.topk(scores, CANDIDATES, dim=1)
            best_view = torch.gather(names, 1, order)
            best_view[best_score <= 0] = -1
            progress.advance()
    return ViewScores(best_view, best_score, seen_by)


def choose_views(scores: ViewScores, adjacency: Tensor, *, bonus: float = 0.35, rounds: int = 12) -> Tensor:
    """(F,) int64 view of each face, -1 where none; neighbours are drawn to the same view.

    Iterated conditional modes: each face takes the candidate whose score, raised by ``bonus`` for every
    neighbour of that view, is largest. Faces take turns in two colours so that pairs cannot swap forever.

    Args:
        scores: candidates of every face.
        adjacency: (E, 2) pairs of neighbouring faces.
        bonus: how much one agreeing neighbour is worth, as a share of the score.
        rounds: passes over all faces.
    """
    label = scores.view[:, 0].clone()
    count = label.shape[0]
    turn = torch.arange(count) % 2
    for step in range(2 * rounds):
        support = torch.zeros_like(scores.score)
        for one, two in ((0, 1), (1, 0)):
            near = label[adjacency[:, two]]
            agree = (scores.view[adjacency[:, one]] == near[:, None]) & (near >= 0)[:, None]
            support.index_add_(0, adjacency[:, one], agree.float())
        value = scores.score * (1 + bonus * support)
        choice = torch.gather(scores.view, 1, value.argmax(1, keepdim=True))[:, 0]
        new = torch.where(turn == step % 2, choice, label)
        if step and torch.equal(new, label):
            break
        label = new
    return label


def exposure_gains(mesh: Mesh, views: Sequence[TextureView], seen: Tensor, sample: int = 20_000) -> Tensor:
    """(N, 3) factors that make the pictures agree on the faces they share; their geometric mean is 1.

    Log colours at the middle of a shared face should be equal after gains: least squares by alternating means,
    with Cauchy weights against mixed pixels, highlights and wrong visibility, and a small pull to 1 that
    settles pictures without overlap.

    Args:
        mesh: triangles.
        views: pictures.
        seen: (V, N) bool, vertex seen by view.
        sample: number of faces used.
    """
    whole = seen[mesh.faces].all(1)
    shared = torch.nonzero(whole.sum(1) >= 2).squeeze(1)
    gains = torch.zeros(len(views), 3, dtype=torch.float64)
    if shared.numel() == 0:
        return gains.exp()
    shared = shared[:: max(1, shared.numel() // sample)]
    middle = mesh.vertices[mesh.faces[shared]].mean(1)
    values = torch.zeros(shared.numel(), len(views), 3, dtype=torch.float64)
    usable = whole[shared].clone()
    for number, view in enumerate(views):
        rows = torch.nonzero(usable[:, number]).squeeze(1)
        if rows.numel() == 0:
            continue
        xy, _ = project_points(middle[rows], view.camera)
        color = sample_image(view.load().double(), xy, padding="border").T
        values[rows, number] = color.clamp_min(1e-3).log()
        # Clipped and black pixels say nothing about exposure.
        usable[rows, number] = ((color > 0.02) & (color < 0.98)).all(-1)
    usable &= (usable.sum(1) >= 2)[:, None]
    weight = usable.double()[..., None]
    pull = 0.01 * weight.sum(0).max()
    for _ in range(60):
        corrected = values + gains
        mean = (corrected * weight).sum(1) / weight.sum(1).clamp_min(1e-9)
        gap = (corrected - mean[:, None]).abs().mean(-1, keepdim=True)
        weight = usable[..., None] / (1 + (gap / 0.1) ** 2)
        gains = ((mean[:, None] - values) * weight).sum(0) / (weight.sum(0) + pull)
        gains = gains - gains.mean(0)
    return gains.clamp(-0.7, 0.7).exp()
