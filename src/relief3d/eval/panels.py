"""Pictures that show where an answer is wrong: error maps, boundaries, trajectories, point clouds.

Every function returns (3, H, W) uint8. Colours of relative errors run from green (none) to dark red (``limit`` and
more); pixels without truth are black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.eval.metrics.mesh import sample_surface
from relief3d.eval.metrics.surface_protocols import has_surface
from relief3d.eval.protocols.base import Answer, Query, Truth
from relief3d.geometry.alignment import umeyama
from relief3d.render.colormaps import confidence_colors, depth_colors, depth_limits

MAX_SIDE = 480
ERROR_LIMIT = 0.2
_TRUE, _OURS = (60, 140, 60), (210, 80, 40)


def to_bytes(colors: Tensor) -> Tensor:
    """(3, H, W) colours in [0, 1] as uint8."""
    return (colors.clamp(0, 1) * 255).round().to(torch.uint8)


def fit(picture: Tensor, side: int = MAX_SIDE) -> Tensor:
    """Shrink a picture (3, H, W) uint8 so that its longer side is at most ``side`` pixels (nearest)."""
    step = max(1, -(-max(picture.shape[-2:]) // side))
    return picture[:, ::step, ::step].contiguous()


def beside(pictures: Sequence[Tensor], gap: int = 4) -> Tensor:
    """Pictures of one height side by side on white."""
    height = max(p.shape[1] for p in pictures)
    parts: list[Tensor] = []
    for i, p in enumerate(pictures):
        if i:
            parts.append(torch.full((3, height, gap), 255, dtype=torch.uint8))
        pad = torch.full((3, height - p.shape[1], p.shape[2]), 255, dtype=torch.uint8)
        parts.append(torch.cat([p, pad], 1))
    return torch.cat(parts, 2)


def display_scale(predicted: Tensor, truth: Tensor, valid: Tensor) -> float:
    """Ratio of the median depths, to show relative depth beside the truth; 1 where nothing can be compared."""
    both = valid & torch.isfinite(predicted) & (predicted > 0)
    if not bool(both.any()):
        return 1.0
    return float(truth[both].median() / predicted[both].median())


def depth_error_map(predicted: Tensor, truth: Tensor, valid: Tensor, limit: float = ERROR_LIMIT) -> Tensor:
    """|p - g| / g of (H, W) maps."""
    known = valid & torch.isfinite(predicted)
    safe = torch.where(known, truth, torch.ones_like(truth))
    error = torch.where(known, (predicted - truth).abs() / safe, torch.zeros_like(safe))
    return to_bytes(confidence_colors(1 - (error / limit).clamp(0, 1), known))


def depth_panel(image: Tensor | None, predicted: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Picture, true depth, predicted depth (scaled to the same median) and the error left after that.

    Args:
        image: (3, H, W) uint8 or None.
        predicted: (H, W).
        truth: (H, W).
        valid: (H, W) bool.
    """
    if predicted.shape != truth.shape:
        predicted = torch.nn.functional.interpolate(
            predicted[None, None].float(), truth.shape, mode="nearest"
        )[0, 0]
    truth = torch.where(valid, truth, torch.zeros_like(truth)).float()
    predicted = predicted.float() * display_scale(predicted, truth, valid)
    near, far = depth_limits(truth)
    parts = [] if image is None else [image]
    parts += [
        to_bytes(depth_colors(truth, near, far)),
        to_bytes(depth_colors(predicted, near, far)),
        depth_error_map(predicted, truth, valid),
    ]
    return beside([fit(p) for p in parts])


def boundary_overlay(image: Tensor, predicted: Tensor, truth: Tensor, ratio: float = 1.15) -> Tensor:
    """Depth edges over the darkened picture: true edges green, predicted red, both yellow.

    Args:
        image: (3, H, W) uint8.
        predicted: (H, W) depth; an edge is where neighbours differ by more than ``ratio``.
        truth: (H, W) depth.
        ratio: of neighbouring depths.
    """

    def edges(depth: Tensor) -> Tensor:
        x = depth.double().clamp_min(1e-6).log()
        limit = float(np.log(ratio))
        out = torch.zeros_like(depth, dtype=torch.bool)
        out[:, 1:] |= (x[:, 1:] - x[:, :-1]).abs() > limit
        out[1:] |= (x[1:] - x[:-1]).abs() > limit
        return out

    picture = (image.float() * 0.4).to(torch.uint8)
    ours, true = edges(predicted), edges(truth)
    picture[0][ours] = 255
    picture[1][true] = 255
    picture[:, ours & ~true] = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None]
    picture[:, true & ~ours] = torch.tensor([0, 255, 0], dtype=torch.uint8)[:, None]
    return fit(picture, 640)


def _canvas(size: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (size, size), "white")
    return image, ImageDraw.Draw(image)


def _as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).contiguous()


def _main_plane(points: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (3,) and the two directions (3, 2) along which points (N, 3) spread most."""
    centre = points.mean(0)
    _, _, v = torch.linalg.svd(points - centre, full_matrices=False)
    axes = v[: min(2, v.shape[0])]
    if axes.shape[0] < 2:
        axes = torch.eye(3, dtype=points.dtype)[:2]
    return centre, axes.T


def _frame(points: Tensor, size: int, margin: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    centre, axes = _main_plane(points)
    flat = (points - centre) @ axes
    low, high = flat.amin(0), flat.amax(0)
    scale = (size - 2 * margin) / float((high - low).max().clamp_min(1e-9))
    offset = size / 2 - scale * (low + high) / 2
    return centre, axes * scale, offset


def trajectory_panel(estimated: Tensor, reference: Tensor, size: int = 360) -> Tensor:
    """Camera centres seen along the direction of least spread: true path green, estimate red after a similarity.

    Args:
        estimated: (N, 4, 4) world_from_cam, N >= 2.
        reference: likewise.
        size: pixels per side.
    """
    est, ref = estimated[:, :3, 3].double(), reference[:, :3, 3].double()
    known = torch.isfinite(est).all(-1) & torch.isfinite(ref).all(-1)
    if int(known.sum()) < 2:
        raise InputError("fewer than two cameras to draw")
    est, ref = est[known], ref[known]
    est = umeyama(est, ref).apply(est)
    centre, axes, offset = _frame(ref, size)
    image, draw = _canvas(size)
    for points, colour in ((ref, _TRUE), (est, _OURS)):
        flat = ((points - centre) @ axes + offset).tolist()
        draw.line([(x, y) for x, y in flat], fill=colour, width=2)
        for x, y in flat:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=colour)
    draw.text((6, 4), "true", fill=_TRUE)
    draw.text((40, 4), "estimated, aligned", fill=_OURS)
    return _as_tensor(image)


def cloud_panel(predicted: Tensor, truth: Tensor, size: int = 360, most: int = 20_000) -> Tensor:
    """Two point sets (N, 3) and (M, 3) in one frame, seen along the direction of least spread: true green, ours red."""
    truth, predicted = truth.double(), predicted.double()
    truth, predicted = (p[torch.isfinite(p).all(-1)] for p in (truth, predicted))
    if not len(truth):
        raise InputError("no true points to draw")
    truth, predicted = (p[:: max(1, len(p) // most)] for p in (truth, predicted))
    centre, axes, offset = _frame(truth, size)
    picture = torch.full((3, size, size), 255, dtype=torch.uint8)
    for points, colour in ((truth, _TRUE), (predicted, _OURS)):
        xy = ((points - centre) @ axes + offset).long()
        xy = xy[((xy >= 0) & (xy < size)).all(-1)]
        picture[:, xy[:, 1], xy[:, 0]] = torch.tensor(colour, dtype=torch.uint8)[:, None]
    return picture


def _image_of(query: Query, index: int) -> Tensor | None:
    if query.scene is None or index >= len(query.scene):
        return None
    return to_bytes(query.scene.views[index].load_image())


def task_panels(query: Query, truth: Truth, answer: Answer) -> Mapping[str, Tensor]:
    """The pictures that suit what was answered: depth of the middle frame, trajectory, point clouds, surfaces."""
    out: dict[str, Tensor] = {}
    if "depth" in answer.tensors and "depth" in truth.tensors:
        g, p = truth.tensors["depth"], answer.tensors["depth"]
        if g.ndim == 3 and p.ndim == 3 and len(g) == len(p):
            i = len(g) // 2
            valid = truth.tensors["valid"][i] if "valid" in truth.tensors else g[i] > 0
            image = _image_of(query, i)
            if image is not None and image.shape[1:] != g[i].shape:
                image = None
            out["depth"] = depth_panel(image, p[i], g[i], valid.bool())
    if "world_from_cam" in answer.tensors and "world_from_cam" in truth.tensors:
        est, ref = answer.tensors["world_from_cam"], truth.tensors["world_from_cam"]
        if est.shape == ref.shape and int(torch.isfinite(est).flatten(1).all(-1).sum()) > 1:
            out["trajectory"] = trajectory_panel(est, ref)
    if "world_points" in answer.tensors and "world_points" in truth.tensors:
        picture = _aligned_clouds(answer.tensors["world_points"], truth)
        if picture is not None:
            out["points"] = picture
    if answer.mesh is not None and truth.mesh is not None and len(answer.mesh.vertices):
        out["surface"] = cloud_panel(_surface_points(answer.mesh), _surface_points(truth.mesh))
    return out


def _aligned_clouds(predicted: Tensor, truth: Truth, most: int = 20_000) -> Tensor | None:
    """Both point maps (N, H, W, 3) after a similarity between their pixels; None where they do not compare."""
    true = truth.tensors["world_points"]
    if predicted.shape != true.shape:
        return None
    known = torch.isfinite(predicted).all(-1) & torch.isfinite(true).all(-1)
    if "valid" in truth.tensors and truth.tensors["valid"].shape == known.shape:
        known &= truth.tensors["valid"].bool()
    p, g = predicted[known].double(), true[known].double()
    step = max(1, len(p) // most)
    p, g = p[::step], g[::step]
    if len(p) < 3:
        return None
    return cloud_panel(umeyama(p, g).apply(p), g)


def _surface_points(mesh: Mesh, count: int = 20_000) -> Tensor:
    """(N, 3) points to draw, spread over the surface (a box has eight vertices); without a surface the vertices."""
    if has_surface(mesh) and bool(torch.isfinite(mesh.vertices).all()):
        return sample_surface(mesh, count, torch_generator(0)).points
    return mesh.vertices
