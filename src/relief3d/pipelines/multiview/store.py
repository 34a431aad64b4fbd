"""What a network said, one file per view on disk, so that memory does not grow with the number of views."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.io.atomic import write_text
from relief3d.models.multiview.preprocess import Mode

INDEX = "index.json"


@dataclass
class DepthStore:
    """Depth and confidence of every view at the network's size.

    Args:
        folder: of the files; created when absent.
        kept: maps held in memory at a time.
    """

    folder: Path
    kept: int = 48
    _recent: OrderedDict[int, tuple[Tensor, Tensor]] = field(default_factory=OrderedDict, repr=False)

    def write(self, index: int, depth: Tensor, confidence: Tensor) -> None:
        """Store (H, W) float32 depth (0: unknown) and confidence of one view, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(index)
        partial = path.with_suffix(".partial")
        tensors = {"depth": depth.float().contiguous(), "confidence": confidence.float().contiguous()}
        save_file(tensors, str(partial))
        partial.replace(path)
        self._recent.pop(index, None)

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Depth (H, W) in units of the network and its confidence.

        Raises:
            InputError: the file is gone.
        """
        if index in self._recent:
            self._recent.move_to_end(index)
            return self._recent[index]
        path = self._path(index)
        if not path.is_file():
            raise InputError("the network's depth is missing", path=path, remedy="run again with --overwrite")
        stored = load_file(str(path))
        found = stored["depth"], stored["confidence"]
        self._recent[index] = found
        if len(self._recent) > self.kept:
            self._recent.popitem(last=False)
        return found

    def _path(self, index: int) -> Path:
        return self.folder / f"view_{index:05d}.safetensors"


@dataclass(frozen=True)
class NetworkDepth:
    """Depth of a solved scene at the network's size, in the scene's unit.

    Attributes:
        store: raw predictions.
        names: of the views.
        K: (N, 3, 3) float64 intrinsics of the network's pictures.
        factor: (N,) float64 from the network's unit to the scene's.
        network_from_original: (N, 3, 3) float64 affine maps of pixels.
        content: (N, 4) float64 box of the picture inside the network's frame.
        mode: of preprocessing.
        side: of preprocessing.
        patch: of the network.
        untrained: random weights made it.
    """

    store: DepthStore
    names: tuple[str, ...]
    K: Tensor
    factor: Tensor
    network_from_original: Tensor
    content: Tensor
    mode: Mode = "keep"
    side: int = 0
    patch: int = 14
    untrained: bool = False

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """(H, W) depth in the scene's unit, 0 where unknown, and the network's own confidence."""
        depth, confidence = self.store.read(index)
        return depth * float(self.factor[index]), confidence

    def save(self) -> None:
        """Everything but the maps, beside them."""
        write_text(
            self.store.folder / INDEX,
            json.dumps(
                {
                    "names": list(self.names),
                    "K": self.K.tolist(),
                    "factor": self.factor.tolist(),
                    "network_from_original": self.network_from_original.tolist(),
                    "content": self.content.tolist(),
                    "mode": self.mode,
                    "side": self.side,
                    "patch": self.patch,
                    "untrained": self.untrained,
                }
            ),
        )


def load_network_depth(folder: Path, names: Sequence[str]) -> NetworkDepth:
    """What :meth:`NetworkDepth.save` wrote.

    Raises:
        InputError: it is gone, or belongs to other views.
    """
    try:
        stored = json.loads((folder / INDEX).read_text())
    except (OSError, ValueError) as exc:
        raise InputError(
            "the network's predictions are missing", path=folder, remedy="run again with --overwrite"
        ) from exc
    if stored["names"] != list(names):
        raise InputError(
            "the network's predictions belong to other views",
            path=folder,
            remedy="run again with --overwrite",
        )

    def tensor(name: str) -> Tensor:
        return torch.tensor(stored[name], dtype=torch.float64)

    return NetworkDepth(
        DepthStore(folder),
        tuple(names),
        tensor("K"),
        tensor("factor"),
        tensor("network_from_original"),
        tensor("content"),
        stored["mode"],
        int(stored["side"]),
        int(stored["patch"]),
        bool(stored["untrained"]),
    )
