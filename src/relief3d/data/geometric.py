"""Changes of the picture plane that cameras, depth and masks follow exactly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.geometry.camera_edits import quarter_turn_matrix


@dataclass(frozen=True)
class Geometric:
    """Ranges that changes are drawn from.

    Attributes:
        crop: smallest and largest share of the largest possible window's side that is kept. Below 1 pictures are
            enlarged, so ask sources for larger ones with ``margin``.
        aspect: the window's width over height differs from the picture's by up to this factor; pixels are then no
            longer square (fx differs from fy).
        centred: keep the window in the middle, so that the principal point hardly moves.
        mirror: probability of a mirrored world; always of the whole scene.
        quarter_turns: probability of a camera turned about its axis by 90, 180 or 270 degrees.
        per_view: draw window and turn for every view; else once per scene.
        margin: sources are asked for pictures larger by this factor.
    """

    crop: tuple[float, float] = (0.8, 1.0)
    aspect: float = 1.0
    centred: bool = False
    mirror: float = 0.5
    quarter_turns: float = 0.0
    per_view: bool = False
    margin: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise InputError(f"crop {self.crop} is not a range of shares in (0, 1]")
        if self.aspect < 1 or self.margin < 1:
            raise InputError("aspect and margin of an augmentation must be at least 1")


@dataclass(frozen=True)
class Edit:
    """What happens to one view, in this order.

    Attributes:
        turns: clockwise quarter turns.
        mirror: left and right change sides, and so does the world.
        window: left, top, width, height in whole pixels of the turned picture.
    """

    turns: int
    mirror: bool
    window: tuple[int, int, int, int]


def draw_edits(
    rule: Geometric,
    scenes: int,
    views: int,
    size: tuple[int, int],
    out: tuple[int, int],
    generator: torch.Generator,
) -> list[list[Edit]]:
    """Edits of all views of all scenes.

    Args:
        rule: ranges.
        scenes: B.
        views: N.
        size: height and width of the pictures.
        out: height and width of the result; gives the window's shape.
        generator: on any device.
    """
    numbers = (
        torch.rand((scenes, views, 7), generator=generator, device=generator.device).cpu().double().tolist()
    )
    rows = []
    for scene in numbers:
        mirror = scene[0][0] < rule.mirror
        rows.append([_edit(rule, mirror, view if rule.per_view else scene[0], size, out) for view in scene])
    return rows


def _edit(
    rule: Geometric, mirror: bool, numbers: list[float], size: tuple[int, int], out: tuple[int, int]
) -> Edit:
    _, turned, which, share, shape, left, top = numbers
    turns = 1 + min(2, int(which * 3)) if turned < rule.quarter_turns else 0
    height, width = size if turns % 2 == 0 else size[::-1]
    aspect = out[1] / out[0] * math.exp((2 * shape - 1) * math.log(rule.aspect))
    scale = rule.crop[0] + (rule.crop[1] - rule.crop[0]) * share
    w = min(float(width), height * aspect) * scale
    w, h = max(1, min(width, round(w))), max(1, min(height, round(w / aspect)))
    if rule.centred:
        left = top = 0.5
    return Edit(turns, mirror, (round(left * (width - w)), round(top * (height - h)), w, h))


def apply_edits(batch: Batch, edits: list[list[Edit]], out: tuple[int, int]) -> Batch:
    """Edit every view of a batch; pictures become ``out`` = (height, width) pixels.

    Pictures are resized smoothly, dense depth and masks by the nearest pixel, sparse depth by moving its points (where
    two meet, the nearer stays). A turned camera turns with its picture, so the world stays; a mirrored world has poses
    M T M with M = diag(-1, 1, 1, 1).

    Raises:
        InputError: the edits do not fit the batch, or only some views of a scene are mirrored.
    """
    scenes, views = batch.images.shape[:2]
    if len(edits) != scenes or any(len(row) != views for row in edits):
        raise InputError(f"edits do not fit a batch of {scenes} scenes of {views} views")
    if any(len({edit.mirror for edit in row}) > 1 for row in edits):
        raise InputError("a world cannot be mirrored for some of its views only")
    changed: dict[str, Any] = {"images": _each(batch.images, edits, out, _smooth).clamp(0, 1)}
    for name in ("depth", "depth_valid", "mask"):
        value = getattr(batch, name)
        if value is not None:
            changed[name] = _each(value, edits, out, _nearest)
    if batch.sparse_depth is not None:
        changed["sparse_depth"] = _each(batch.sparse_depth, edits, out, _moved)
    size = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    if batch.K is not None:
        changed["K"] = _intrinsics(batch.K, batch.has_K, edits, size, out)
    if batch.world_from_cam is not None:
        changed["world_from_cam"] = _poses(batch.world_from_cam, batch.has_pose, edits)
    return dataclasses.replace(batch, **changed)


def pixel_map(edit: Edit, size: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """(3, 3) float64 map of pixels of the original picture to pixels of the edited one, centres at +0.5."""
    height, width = size
    matrix = quarter_turn_matrix(edit.turns, width, height)
    if edit.turns % 2:
        height, width = width, height
    if edit.mirror:
        flip = torch.tensor([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
        matrix = flip @ matrix
    left, top, w, h = edit.window
    sx, sy = out[1] / w, out[0] / h
    window = torch.tensor([[sx, 0, -left * sx], [0, sy, -top * sy], [0, 0, 1]], dtype=torch.float64)
    return window @ matrix


def _axes(edit: Edit) -> Tensor:
    """(3, 3) float64 map of camera coordinates before the edit to those after it."""
    axes = torch.eye(3, dtype=torch.float64)
    axes[:2, :2] = quarter_turn_matrix(edit.turns, 1, 1)[:2, :2]
    return torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64)) @ axes if edit.mirror else axes


def _intrinsics(
    K: Tensor, known: Tensor | None, edits: list[list[Edit]], size: tuple[int, int], out: tuple[int, int]
) -> Tensor:
    pixels = torch.stack([torch.stack([pixel_map(e, size, out) for e in row]) for row in edits])
    axes = torch.stack([torch.stack([_axes(e) for e in row]) for row in edits])
    edited = pixels.to(K.device) @ K.double() @ axes.transpose(-1, -2).to(K.device)
    return _where_known(edited.to(K.dtype), K, known)


def _poses(pose: Tensor, known: Tensor | None, edits: list[list[Edit]]) -> Tensor:
    """A new camera's axes are the old ones turned; a mirrored world is mirrored on both sides."""
    after, world = [], []
    for row in edits:
        square = torch.eye(4, dtype=torch.float64).repeat(len(row), 1, 1)
        square[:, :3, :3] = torch.stack([_axes(e) for e in row])
        after.append(square)
        mirror = torch.eye(4, dtype=torch.float64)
        mirror[0, 0] = -1.0 if row[0].mirror else 1.0
        world.append(mirror.expand(len(row), 4, 4))
    left, right = torch.stack(world).to(pose.device), torch.stack(after).transpose(-1, -2).to(pose.device)
    return _where_known((left @ pose.double() @ right).to(pose.dtype), pose, known)


def _where_known(edited: Tensor, before: Tensor, known: Tensor | None) -> Tensor:
    return edited if known is None else torch.where(known[..., None, None], edited, before)


def _cut(value: Tensor, edit: Edit) -> Tensor:
    turned = torch.rot90(value, -edit.turns, dims=(-2, -1)) if edit.turns else value
    turned = turned.flip(-1) if edit.mirror else turned
    left, top, w, h = edit.window
    return turned[..., top : top + h, left : left + w]


def _each(
    value: Tensor,
    edits: list[list[Edit]],
    out: tuple[int, int],
    change: Callable[[Tensor, Edit, tuple[int, int]], Tensor],
) -> Tensor:
    """Maps (B, N, *, H, W), each view by its edit; views of a scene at once where their edits are the same."""
    rows = []
    for maps, row in zip(value, edits):
        if len(set(row)) == 1:
            rows.append(change(maps, row[0], out))
        else:
            rows.append(torch.stack([change(one, edit, out) for one, edit in zip(maps, row)]))
    return torch.stack(rows)


def _smooth(image: Tensor, edit: Edit, out: tuple[int, int]) -> Tensor:
    cut = _cut(image, edit)
    if tuple(cut.shape[-2:]) == out:
        return cut
    planes = cut.reshape(1, -1, *cut.shape[-2:])
    small = F.interpolate(planes, out, mode="bilinear", antialias=True, align_corners=False)
    return small.reshape(*cut.shape[:-2], *out)


def _nearest(value: Tensor, edit: Edit, out: tuple[int, int]) -> Tensor:
    cut = _cut(value, edit)
    if tuple(cut.shape[-2:]) == out:
        return cut
    rows, columns = (_nearest_pixels(n, m, cut.device) for n, m in zip(cut.shape[-2:], out))
    return cut[..., rows, :][..., columns]


def _nearest_pixels(length: int, count: int, device: torch.device) -> Tensor:
    """(count,) source pixel under every target pixel's centre, in exact whole-number arithmetic."""
    return ((2 * torch.arange(count, device=device) + 1) * length) // (2 * count)


def _moved(sparse: Tensor, edit: Edit, out: tuple[int, int]) -> Tensor:
    cut = _cut(sparse, edit)
    maps = cut.reshape(-1, *cut.shape[-2:])
    view, rows, columns = torch.nonzero(maps > 0, as_tuple=True)
    y = ((2 * rows + 1) * out[0]) // (2 * cut.shape[-2])
    x = ((2 * columns + 1) * out[1]) // (2 * cut.shape[-1])
    flat = torch.full((len(maps) * out[0] * out[1],), torch.inf, dtype=cut.dtype, device=cut.device)
    flat.scatter_reduce_(0, (view * out[0] + y) * out[1] + x, maps[view, rows, columns], "amin")
    return torch.where(torch.isfinite(flat), flat, 0.0).reshape(*cut.shape[:-2], *out)
