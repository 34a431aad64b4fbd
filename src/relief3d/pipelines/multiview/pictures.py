"""One framing for all views, so that chunks of a long sequence agree and maps lead back to the originals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from relief3d.core.contract import View
from relief3d.core.errors import InputError
from relief3d.models.multiview.preprocess import VGGT_SIDE, Mode, prepare, prepare_one
from relief3d.pipelines.multiview.config import MultiviewConfig


@dataclass(frozen=True)
class Framing:
    """How the pictures of a scene become a network's.

    Attributes:
        mode: of :func:`relief3d.models.multiview.preprocess.prepare`.
        side: its side.
        patch: sides are multiples of it.
        sizes: (width, height) of every view's original picture.
        height: rows of the network's pictures.
        width: their columns.
        network_from_original: (N, 3, 3) float64 affine maps of pixel coordinates.
        content: (N, 4) float64 x0, y0, x1, y1 of the picture inside the network's frame.
        notes: what a user should know.
    """

    mode: Mode
    side: int
    patch: int
    sizes: tuple[tuple[int, int], ...]
    height: int
    width: int
    network_from_original: Tensor
    content: Tensor
    notes: tuple[str, ...] = ()

    def load(self, views: Sequence[View], indices: Sequence[int]) -> Tensor:
        """(n, 3, height, width) pictures of some views, framed as in any other call.

        Raises:
            InputError: a picture cannot be read or has another size than its view says.
        """
        # One at a time: originals may be large, and only their small versions are kept.
        made = []
        frame = (self.width, self.height)
        for index in indices:
            picture = views[index].load_image()
            if (picture.shape[2], picture.shape[1]) != self.sizes[index]:
                raise InputError(
                    f"view '{views[index].name}': picture {picture.shape[2]}x{picture.shape[1]} does not fit its "
                    f"camera {self.sizes[index][0]}x{self.sizes[index][1]}"
                )
            made.append(
                prepare_one(
                    picture, self.mode, first=self.sizes[0], frame=frame, side=self.side, patch=self.patch
                )
            )
        return torch.stack(made)

    def intrinsics(self, index: int, K: Tensor) -> Tensor:
        """(3, 3) intrinsics of the original picture as those of the network's."""
        return self.network_from_original[index] @ K.double()

    def original_intrinsics(self, index: int, K: Tensor) -> Tensor:
        """The inverse of :meth:`intrinsics`."""
        return torch.linalg.inv(self.network_from_original[index]) @ K.double()

    def inside(self, index: int) -> Tensor:
        """(height, width) bool: network pixels whose centre shows the picture, not padding."""
        x0, y0, x1, y1 = self.content[index].tolist()
        x = torch.arange(self.width, dtype=torch.float64) + 0.5
        y = torch.arange(self.height, dtype=torch.float64) + 0.5
        return ((y > y0) & (y < y1))[:, None] & ((x > x0) & (x < x1))[None, :]

    def to_network(self, index: int, layer: Tensor) -> Tensor:
        """Nearest pixel of an original-size (H, W) map for every network pixel; 0 or False outside the picture."""
        width, height = self.sizes[index]
        A = torch.linalg.inv(self.network_from_original[index])
        x = A[0, 0] * (torch.arange(self.width, dtype=torch.float64) + 0.5) + A[0, 2]
        y = A[1, 1] * (torch.arange(self.height, dtype=torch.float64) + 0.5) + A[1, 2]
        picked = layer[y.floor().long().clamp(0, height - 1)][:, x.floor().long().clamp(0, width - 1)]
        return torch.where(self.inside(index), picked, torch.zeros_like(picked))


def frame_pictures(
    sizes: Sequence[tuple[int, int]], config: MultiviewConfig, own_mode: Mode, patch: int = 14
) -> Framing:
    """Plan the framing from sizes alone; no picture is read.

    Args:
        sizes: (width, height) of every view.
        config: ``preprocess`` and ``side``.
        own_mode: of the network.
        patch: of the network.

    Raises:
        InputError: no views, or a side that the patch does not divide.
    """
    sizes = tuple(sizes)
    mode: Mode = own_mode if config.preprocess == "auto" else config.preprocess
    notes: list[str] = []
    if config.side and mode == "pi3" and config.preprocess == "auto":
        mode = "keep"
        notes.append(f"--side {config.side}: pictures keep their shape instead of pi3's number of pixels")
    framing = plan_framing(sizes, mode, config.side or VGGT_SIDE, patch)
    return replace(framing, notes=(*notes, *framing.notes))


def plan_framing(sizes: Sequence[tuple[int, int]], mode: Mode, side: int, patch: int = 14) -> Framing:
    """The framing of a mode and side; see :func:`frame_pictures`."""
    sizes = tuple(sizes)
    models = _models(sizes)
    made = prepare(models, mode, side=side, patch=patch)
    number = {size: i for i, size in enumerate(_distinct(sizes))}
    chosen = torch.tensor([number[s] for s in sizes])
    height, width = (int(v) for v in made.images.shape[-2:])
    content, affine = made.content[chosen], made.network_from_original[chosen]
    notes = (*made.notes, *_crop_note(sizes, affine, width, height))
    return Framing(mode, side, patch, sizes, height, width, affine, content, notes)


def _distinct(sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Distinct sizes, that of the first view first: pi3 takes its shape from the first picture."""
    return list(dict.fromkeys(sizes))


def _models(sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """One picture without pixels per distinct size."""
    return [torch.empty(3, height, width, device="meta") for width, height in _distinct(sizes)]


def _crop_note(sizes: Sequence[tuple[int, int]], affine: Tensor, width: int, height: int) -> list[str]:
    """Says when parts of pictures lie outside the network's frame."""
    corners = torch.tensor([[[0.0, 0.0, 1.0], [w, h, 1.0]] for w, h in sizes], dtype=torch.float64)
    placed = (corners @ affine.mT)[..., :2]
    frame = torch.tensor([width, height], dtype=torch.float64)
    seen = placed.clamp(min=torch.zeros(2, dtype=torch.float64), max=frame).diff(dim=1)[:, 0].prod(-1)
    share = seen / placed.diff(dim=1)[:, 0].prod(-1)
    cut = int((share < 0.98).sum())
    if not cut:
        return []
    return [
        f"{cut} picture(s) lose {100 * float(1 - share.min()):.0f} % at the border, where depth stays unknown; "
        "--preprocess vggt-pad keeps all of it"
    ]
