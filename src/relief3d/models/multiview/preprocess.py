"""Pictures of any size to what a network was trained on, and the way back.

Every function returns, per view, the affine map from original to network pixels (centres at +0.5 on both sides), so
that intrinsics and tracks can be given in, and returned to, the original resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError

Mode = Literal["vggt-crop", "vggt-pad", "square", "pi3", "keep"]
VGGT_SIDE = 518
PI3_PIXELS = 255_000
WHITE = 1.0


@dataclass(frozen=True)
class PreparedImages:
    """Pictures for a network.

    Attributes:
        images: (N, 3, H, W) float32 in [0, 1]; H and W are multiples of the patch.
        network_from_original: (N, 3, 3) float64 affine maps of pixel coordinates.
        content: (N, 4) float64, x0, y0, x1, y1 of the picture inside the network's frame (padding lies outside).
        notes: what a user should know, such as sizes that were changed.
    """

    images: Tensor
    network_from_original: Tensor
    content: Tensor
    notes: tuple[str, ...] = ()

    def intrinsics(self, K: Tensor) -> Tensor:
        """(N, 3, 3) intrinsics of the original pictures as those of the network's."""
        return self.network_from_original @ K.double()

    def original_intrinsics(self, K: Tensor) -> Tensor:
        """The inverse of :meth:`intrinsics`."""
        return torch.linalg.inv(self.network_from_original) @ K.double()


@dataclass(frozen=True)
class _Place:
    """One picture after its own resize and crop, before padding to the common size."""

    pixels: Tensor
    affine: Tensor


def prepare(
    images: Sequence[Tensor], mode: Mode, *, side: int = VGGT_SIDE, patch: int = 14
) -> PreparedImages:
    """Bring pictures to a network's size.

    Args:
        images: (3, h, w) float in [0, 1], or (4, h, w) with opacity, which is laid on white; sizes may differ. Those
            on the meta device are framed by their sizes alone.
        mode: ``vggt-crop`` (width 518, tall pictures lose top and bottom), ``vggt-pad`` (longer side 518, white
            borders to a square), ``square`` (black borders, then resized), ``pi3`` (all to the first picture's
            shape with at most 255,000 pixels), ``keep`` (longer side ``side``, aspect kept to within a patch).
        side: longer side, or width, of the result.
        patch: sides become multiples of it.

    Raises:
        InputError: no pictures, an empty one, or a side that is not a multiple of the patch.
    """
    if not images:
        raise InputError("there are no pictures to prepare")
    if any(i.ndim != 3 or i.shape[0] not in (3, 4) or 0 in i.shape for i in images):
        raise InputError("pictures must be (3, H, W) or (4, H, W) and not empty")
    if side % patch:
        raise InputError(
            f"the side {side} is not a multiple of the patch, {patch}", remedy=f"use {side // patch * patch}"
        )
    rgb = [_on_white(i) for i in images]
    first = (int(rgb[0].shape[2]), int(rgb[0].shape[1]))
    return _common_frame([_placed(i, mode, side, patch, first) for i in rgb], rgb)


def prepare_one(
    image: Tensor,
    mode: Mode,
    *,
    first: tuple[int, int],
    frame: tuple[int, int],
    side: int = VGGT_SIDE,
    patch: int = 14,
) -> Tensor:
    """One picture as :func:`prepare` gives it among others.

    Args:
        image: (3, h, w) or (4, h, w), see :func:`prepare`.
        mode: see :func:`prepare`.
        first: (width, height) of the first picture of all.
        frame: (width, height) common to all.
        side: see :func:`prepare`.
        patch: see :func:`prepare`.

    Returns:
        (3, height, width) of ``frame``.
    """
    return _bordered(_placed(_on_white(image), mode, side, patch, first), frame, WHITE).pixels


def pi3_size(width: int, height: int, patch: int = 14, limit: int = PI3_PIXELS) -> tuple[int, int]:
    """(width, height) of pi3's pictures for a first picture of this size (specification 2.2)."""
    scale = (limit / (width * height)) ** 0.5
    columns, rows = round(width * scale / patch), round(height * scale / patch)
    while (patch * columns) * (patch * rows) > limit:
        if columns / rows > width / height:
            columns -= 1
        else:
            rows -= 1
    return patch * max(1, columns), patch * max(1, rows)


def _placed(image: Tensor, mode: Mode, side: int, patch: int, first: tuple[int, int]) -> _Place:
    """The picture by itself; pi3 takes the shape of the first one."""
    if mode == "pi3":
        return _resized(image, pi3_size(*first, patch), "lanczos")
    make = {"vggt-crop": _crop, "vggt-pad": _pad, "square": _square, "keep": _keep}[mode]
    return make(image, side, patch)


def _on_white(image: Tensor) -> Tensor:
    if image.shape[0] == 3:
        return image.float()
    opacity = image[3:].float()
    return image[:3].float() * opacity + WHITE * (1 - opacity)


def _resized(image: Tensor, size: tuple[int, int], how: str) -> _Place:
    """Resize with Pillow's antialiasing filters on 8-bit pixels, as the published code does, to (width, height)."""
    if image.is_meta:
        return _Place(
            image.new_empty(3, size[1], size[0]), _scaling(size[0] / image.shape[2], size[1] / image.shape[1])
        )
    from PIL import Image

    filters: dict[str, Any] = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}
    height, width = image.shape[1:]
    eight = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    small = np.asarray(Image.fromarray(eight).resize(size, filters[how]))
    pixels = torch.from_numpy(small.copy()).permute(2, 0, 1).float() / 255
    return _Place(pixels, _scaling(size[0] / width, size[1] / height))


def _scaling(x: float, y: float) -> Tensor:
    return torch.diag(torch.tensor([x, y, 1.0], dtype=torch.float64))


def _shifted(affine: Tensor, x: float, y: float) -> Tensor:
    shift = torch.eye(3, dtype=torch.float64)
    shift[0, 2], shift[1, 2] = x, y
    return shift @ affine


def _crop(image: Tensor, side: int, patch: int) -> _Place:
    height, width = image.shape[1:]
    rows = max(1, round(height * side / width / patch))
    placed = _resized(image, (side, rows * patch), "bicubic")
    if rows * patch <= side:
        return placed
    first = (rows * patch - side) // 2
    return _Place(placed.pixels[:, first : first + side], _shifted(placed.affine, 0, -first))


def _longer_side(image: Tensor, side: int, patch: int) -> tuple[int, int]:
    height, width = image.shape[1:]
    if width >= height:
        return side, max(1, round(height * side / width / patch)) * patch
    return max(1, round(width * side / height / patch)) * patch, side


def _pad(image: Tensor, side: int, patch: int) -> _Place:
    placed = _resized(image, _longer_side(image, side, patch), "bicubic")
    return _bordered(placed, (side, side), WHITE)


def _keep(image: Tensor, side: int, patch: int) -> _Place:
    return _resized(image, _longer_side(image, side, patch), "bicubic")


def _square(image: Tensor, side: int, patch: int) -> _Place:
    height, width = image.shape[1:]
    longest = max(height, width)
    whole = _bordered(_Place(image, _scaling(1, 1)), (longest, longest), 0.0)
    placed = _resized(whole.pixels, (side, side), "bicubic")
    return _Place(placed.pixels, placed.affine @ whole.affine)


def _bordered(placed: _Place, size: tuple[int, int], value: float) -> _Place:
    """The picture in the middle of a larger frame (width, height)."""
    height, width = placed.pixels.shape[1:]
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    frame = torch.full((3, size[1], size[0]), value, device=placed.pixels.device)
    frame[:, top : top + height, left : left + width] = placed.pixels
    return _Place(frame, _shifted(placed.affine, left, top))


def _common_frame(placed: list[_Place], originals: list[Tensor]) -> PreparedImages:
    """Pictures of different shapes get white borders, so that they fit one batch."""
    height, width = (max(p.pixels.shape[d] for p in placed) for d in (1, 2))
    notes = []
    if len({tuple(p.pixels.shape) for p in placed}) > 1:
        notes.append(f"pictures of different shapes were centred in {width} x {height} with white borders")
    if any(i.shape[1:] != (height, width) for i in originals):
        notes.append(f"pictures were resized to {width} x {height} for the network")
    framed = [_bordered(p, (width, height), WHITE) for p in placed]
    affine = torch.stack([p.affine for p in framed])
    corners = torch.tensor(
        [[[0.0, 0.0, 1.0], [i.shape[2], i.shape[1], 1.0]] for i in originals], dtype=torch.float64
    )
    content = (corners @ affine.mT)[..., :2].flatten(1)
    content[:, 0::2].clamp_(0, width)
    content[:, 1::2].clamp_(0, height)
    return PreparedImages(torch.stack([p.pixels for p in framed]), affine, content, tuple(notes))
