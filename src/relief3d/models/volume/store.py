"""What reconstruction keeps of its frames and of its volume: in memory, or in files of a work folder.

With a folder, memory does not grow with the number of frames nor with the size of the scene.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from relief3d.models.volume.back_projection import Views

KEPT = 16
"""Frames of a folder that are held in memory as well."""


@dataclass(frozen=True)
class StoredFrame:
    """One frame.

    Attributes:
        voxel: (C, h, w) map for the voxels.
        point: (C, h, w) map for the points.
        depth: (Hd, Wd) or None.
    """

    voxel: Tensor
    point: Tensor
    depth: Tensor | None


class FrameStore:
    """Feature maps and depth of frames, by number.

    Args:
        folder: for files; None: in memory.
        dtype: of stored maps; depth stays float32.
    """

    def __init__(self, folder: Path | None = None, dtype: torch.dtype = torch.float16) -> None:
        self.folder, self.dtype = folder, dtype
        self._frames: OrderedDict[int, StoredFrame] = OrderedDict()
        self._K: list[Tensor] = []
        self._poses: list[Tensor] = []
        self._size = (0, 0)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._K)

    def add(
        self,
        voxel: Tensor,
        point: Tensor,
        depth: Tensor | None,
        K: Tensor,
        pose: Tensor,
        size: tuple[int, int],
    ) -> None:
        """Add a frame: maps (C, h, w), depth (Hd, Wd), K (3, 3) of pictures of ``size``, cam_from_world (4, 4)."""
        limit = torch.finfo(self.dtype).max
        maps = [
            m.detach().float().clamp(-limit, limit).to("cpu", self.dtype).contiguous() for m in (voxel, point)
        ]
        kept = None if depth is None else depth.detach().float().nan_to_num(0, 0, 0).cpu().contiguous()
        number = len(self)
        frame = StoredFrame(maps[0], maps[1], kept)
        if self.folder is not None:
            tensors = {"voxel": frame.voxel, "point": frame.point}
            save_file(tensors if kept is None else {**tensors, "depth": kept}, str(self._file(number)))
        self._keep(number, frame)
        self._K.append(K.detach().float().cpu())
        self._poses.append(pose.detach().float().cpu())
        self._size = size

    def __getitem__(self, number: int) -> StoredFrame:
        frame = self._frames.get(number)
        if frame is None:
            found = load_file(str(self._file(number)))
            frame = StoredFrame(found["voxel"], found["point"], found.get("depth"))
            self._keep(number, frame)
        return frame

    @property
    def views(self) -> Views:
        """Cameras of all frames."""
        return Views(torch.stack(self._K), torch.stack(self._poses), self._size)

    def _keep(self, number: int, frame: StoredFrame) -> None:
        self._frames[number] = frame
        if self.folder is not None:
            self._frames.move_to_end(number)
            while len(self._frames) > KEPT:
                self._frames.popitem(last=False)

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"frame-{number:05d}.safetensors"


def host_tensor(shape: tuple[int, ...], dtype: torch.dtype, file: Path | None = None) -> Tensor:
    """Zeros on the host; with a file they are mapped from it and need no memory that the system cannot take back."""
    if file is None:
        return torch.zeros(shape, dtype=dtype)
    file.unlink(missing_ok=True)
    flat = torch.from_file(str(file), shared=True, size=math.prod(shape), dtype=dtype)
    return flat.view(shape)


def views_near(views: Views, centre: Tensor, radius: float) -> Tensor:
    """(V,) bool: views whose frustum meets a ball around ``centre`` (3,). May keep a view that just misses it."""
    height, width = views.size
    local = centre.to(views.K) @ views.cam_from_world[:, :3, :3].mT + views.cam_from_world[:, :3, 3]
    x, y, z = local.unbind(-1)
    fx, fy, skew, cx, cy = (views.K[:, i, j] for i, j in ((0, 0), (1, 1), (0, 1), (0, 2), (1, 2)))
    near = z > -radius
    # Planes through the centre of the camera and the four borders, pointing inwards.
    u, v = fx * x + skew * y + cx * z, fy * y + cy * z
    for inside, normal in (
        (u, (fx, skew, cx)),
        (width * z - u, (-fx, -skew, width - cx)),
        (v, (torch.zeros_like(fy), fy, cy)),
        (height * z - v, (torch.zeros_like(fy), -fy, height - cy)),
    ):
        near &= inside > -radius * torch.stack(normal).norm(dim=0)
    return near
