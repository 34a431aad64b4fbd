"""Texture baking: every face coloured from the picture that shows it best.

Faces that choose the same picture and touch form a chart; its flat shape is its image in that picture,
so texels and pixels correspond. Exposure differences between pictures are removed by one gain per picture
and channel, what remains at seams by a correction that fades into the charts (after Lempitsky and Ivanov,
"Seamless mosaicing of image-based texture maps", 2007).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.fusion.texture_atlas import Atlas, build_atlas, dilate, face_charts
from relief3d.fusion.texture_views import (
    TextureView,
    choose_views,
    exposure_gains,
    face_adjacency,
    project_points,
    score_views,
)
from relief3d.geometry.sampling import sample_image
from relief3d.render.factory import make_renderer
from relief3d.render.protocols import DepthRenderer, Hits
from relief3d.render.rasterizer import TorchRenderer

_UNSEEN_TEXELS = 2.0


@dataclass(frozen=True)
class TextureConfig:
    """Settings of :func:`bake_texture`.

    Attributes:
        max_size: largest width and height of the texture in texels.
        padding: texels around every chart, filled with its border colours.
        match_exposure: one gain per picture and channel.
        level_seams: smooth correction towards the mean colour on seams.
        slack: world units by which a vertex may lie behind the rendered surface; 0 takes the median edge length.
    """

    max_size: int = 4096
    padding: int = 3
    match_exposure: bool = True
    level_seams: bool = True
    slack: float = 0.0


def bake_texture(
    mesh: Mesh,
    views: Sequence[TextureView],
    config: TextureConfig | None = None,
    *,
    renderer: DepthRenderer | None = None,
    progress: Progress | None = None,
) -> Mesh:
    """The mesh with texture coordinates and a texture baked from pictures.

    Vertices on chart borders are repeated. Faces that no picture shows whole get the mean of their vertex
    colours (grey without).

    Args:
        mesh: triangles; decimate before, not after.
        views: posed pinhole pictures.
        config: settings; None takes the defaults.
        renderer: for visibility; None chooses one.
        progress: what to report to.

    Raises:
        InputError: for an empty mesh or no pictures.
    """
    config = config or TextureConfig()
    progress = progress or SilentProgress()
    if mesh.faces.shape[0] == 0:
        raise InputError("an empty mesh cannot be textured")
    if not views:
        raise InputError("texture baking needs at least one posed picture")
    adjacency = face_adjacency(mesh.faces)
    slack = config.slack
    if slack <= 0:
        a, b, _ = mesh.vertices[mesh.faces].unbind(1)
        slack = float((b - a).norm(dim=-1).median())
    scores = score_views(mesh, views, renderer or make_renderer(), slack=slack, progress=progress)
    labels = choose_views(scores, adjacency)
    gains = (
        exposure_gains(mesh, views, scores.vertex_seen)
        if config.match_exposure
        else torch.ones(len(views), 3, dtype=torch.float64)
    )
    charts = face_charts(labels, adjacency)
    atlas = build_atlas(
        mesh.faces,
        _flat_corners(mesh, views, labels),
        charts,
        max_size=config.max_size,
        padding=config.padding,
    )
    vertex_label = torch.full((atlas.vertex.shape[0],), -1, dtype=torch.int64)
    vertex_label[atlas.faces.reshape(-1)] = labels.repeat_interleave(3)
    hits = _rasterize_atlas(atlas)
    texture = _paint(mesh, views, labels, gains, atlas, hits, vertex_label, config.level_seams, progress)
    texture = dilate(texture, hits.hit, config.padding)
    uv = torch.stack((atlas.xy[:, 0] / atlas.width, 1 - atlas.xy[:, 1] / atlas.height), -1)
    return Mesh(
        mesh.vertices[atlas.vertex],
        atlas.faces,
        rgb=None if mesh.rgb is None else mesh.rgb[atlas.vertex],
        normals=None if mesh.normals is None else mesh.normals[atlas.vertex],
        uv=uv.float(),
        texture=texture.movedim(0, -1).mul(255).round().clamp(0, 255).to(torch.uint8),
    )


def _flat_corners(mesh: Mesh, views: Sequence[TextureView], labels: Tensor) -> Tensor:
    """(F, 3, 2) pixels of the corners in the chosen pictures; a small triangle for unseen faces."""
    tile = torch.tensor([[0.0, 0.0], [_UNSEEN_TEXELS, 0.0], [0.0, _UNSEEN_TEXELS]], dtype=torch.float64)
    corners = tile.expand(mesh.faces.shape[0], 3, 2).clone()
    for number, view in enumerate(views):
        mine = torch.nonzero(labels == number).squeeze(1)
        if mine.numel():
            xy, _ = project_points(mesh.vertices[mesh.faces[mine].reshape(-1)], view.camera)
            corners[mine] = xy.view(-1, 3, 2)
    return corners


def _rasterize_atlas(atlas: Atlas) -> Hits:
    """Which face covers which texel: the charts seen by a camera whose pixels are the texels."""
    flat = torch.cat((atlas.xy, torch.ones(atlas.xy.shape[0], 1, dtype=torch.float64)), -1)
    eye = torch.eye(3, dtype=torch.float64)
    camera = Camera(atlas.width, atlas.height, eye, torch.eye(4, dtype=torch.float64))
    return TorchRenderer().cast(Mesh(flat.float(), atlas.faces), camera, back_faces="keep")


def _paint(
    mesh: Mesh,
    views: Sequence[TextureView],
    labels: Tensor,
    gains: Tensor,
    atlas: Atlas,
    hits: Hits,
    vertex_label: Tensor,
    level: bool,
    progress: Progress,
) -> Tensor:
    """(3, H, W) float32 texture with colours on the covered texels."""
    texel = torch.nonzero(hits.hit.reshape(-1)).squeeze(1)
    face = hits.face.view(-1)[texel]
    weights = hits.barycentric.view(-1, 3)[texel]
    points = (mesh.vertices[mesh.faces[face]] * weights[..., None]).sum(1)
    grey = torch.full((mesh.vertices.shape[0], 3), 0.5)
    rgb = grey if mesh.rgb is None else mesh.rgb.float() / 255
    color = rgb[mesh.faces[face]].mean(1)
    own = torch.zeros(atlas.vertex.shape[0], 3)
    with stage(progress, "baking the texture", len(views)):
        for number, view in enumerate(views):
            mine = torch.nonzero(labels[face] == number).squeeze(1)
            if mine.numel():
                image = view.load().float() * gains[number].float()[:, None, None]
                xy, _ = project_points(points[mine], view.camera)
                color[mine] = sample_image(image, xy.float(), padding="border").T
                corner = torch.nonzero(vertex_label == number).squeeze(1)
                xy, _ = project_points(mesh.vertices[atlas.vertex[corner]], view.camera)
                own[corner] = sample_image(image, xy.float(), padding="border").T
            progress.advance()
    if level:
        fix = _seam_correction(atlas, own, vertex_label >= 0)
        color = color + (fix[atlas.faces[face]] * weights[..., None]).sum(1)
    picture = torch.zeros(atlas.height * atlas.width, 3)
    picture[texel] = color.clamp(0, 1)
    return picture.view(atlas.height, atlas.width, 3).movedim(-1, 0)


def _seam_correction(atlas: Atlas, own: Tensor, seen: Tensor, rounds: int = 60) -> Tensor:
    """(W, 3) colour added at each texture vertex: to the mean on seams, fading to nothing inside charts.

    Args:
        atlas: charts.
        own: (W, 3) colour of each texture vertex in its own picture.
        seen: (W,) bool, texture vertices with a picture.
        rounds: smoothing steps; about the reach of the correction in faces.
    """
    count = int(atlas.vertex.max()) + 1
    total = torch.zeros(count, 3).index_add_(0, atlas.vertex[seen], own[seen])
    number = torch.zeros(count).index_add_(0, atlas.vertex[seen], torch.ones(int(seen.sum())))
    seam = seen & (number[atlas.vertex] >= 2)
    target = total[atlas.vertex] / number[atlas.vertex].clamp_min(1)[:, None] - own
    edges = torch.cat((atlas.faces[:, [0, 1]], atlas.faces[:, [1, 2]], atlas.faces[:, [2, 0]]))
    degree = torch.bincount(edges.reshape(-1), minlength=own.shape[0]).clamp_min(1)[:, None]
    fix = torch.where(seam[:, None], target, torch.zeros_like(target))
    fixed = fix.clone()
    for _ in range(rounds):
        mean = torch.zeros_like(fix)
        mean.index_add_(0, edges[:, 0], fix[edges[:, 1]])
        mean.index_add_(0, edges[:, 1], fix[edges[:, 0]])
        # The factor below 1 lets the correction die out with the distance from the seam.
        fix = torch.where(seam[:, None], fixed, 0.97 * mean / degree)
    return torch.where(seen[:, None], fix, torch.zeros_like(fix))
