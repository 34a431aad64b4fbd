"""What the passes of a long sequence say, on disk: written whole or not at all, read lazily, never stale."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from relief3d.io.atomic import remove_leftovers, write_bytes, write_text

_FIELDS = frozenset({"frames", "depth", "confidence", "K", "world_from_cam", "metric"})


class PassStore:
    """Files of the passes in one folder.

    Args:
        folder: made when absent.
        plan: everything that the passes depend on, as JSON types; files of another plan are removed.
        reuse: False removes whatever is there.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], *, reuse: bool) -> None:
        self.folder = folder
        text = json.dumps(plan, sort_keys=True)
        listed = folder / "plan.json"
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if reuse and listed.is_file() and listed.read_text() == text:
            return
        # The plan goes last: a crash in between leaves too few files, never files of another plan.
        for pattern in ("chunk_*.safetensors", "loop_*.safetensors"):
            for old in folder.glob(pattern):
                old.unlink()
        write_text(listed, text)

    def path(self, name: str) -> Path:
        """The file of a pass."""
        return self.folder / f"{name}.safetensors"

    def get(
        self, name: str, numbers: Sequence[int], compute: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """A pass over frames ``numbers``, from disk when it is there whole, else computed and written.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        found = self._readable(name, numbers)
        if found is None:
            # Through bytes, so that a full disk is an error of the operating system with its reason.
            write_bytes(self.path(name), save(compute()))
            found = load_file(str(self.path(name)))
        return found

    def _readable(self, name: str, numbers: Sequence[int]) -> dict[str, Tensor] | None:
        """The stored pass; None when absent, cut off, or of other frames."""
        try:
            found = load_file(str(self.path(name)))
        except (OSError, SafetensorError):
            return None
        fits = set(found) == _FIELDS and found["frames"].tolist() == list(numbers)
        return found if fits else None

    def read(self, name: str, fields: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors of a stored pass."""
        with safe_open(str(self.path(name)), framework="pt") as file:
            return {key: file.get_tensor(key) for key in fields}

    def frames(self, name: str, first: int, count: int) -> dict[str, Tensor]:
        """Some consecutive rows of a stored pass; the rest of the file is not read."""
        with safe_open(str(self.path(name)), framework="pt") as file:
            return {key: file.get_slice(key)[first : first + count] for key in sorted(_FIELDS)}


def chunk_name(index: int) -> str:
    """Name of the pass over a chunk."""
    return f"chunk_{index:05d}"


def loop_name(pair: tuple[int, int]) -> str:
    """Name of the pass over both ends of a loop."""
    return f"loop_{pair[0]:06d}_{pair[1]:06d}"


def pack(
    numbers: Sequence[int],
    depth: Tensor,
    confidence: Tensor,
    K: Tensor,
    world_from_cam: Tensor,
    *,
    metric: bool = False,
) -> dict[str, Tensor]:
    """One pass as it is stored: (n, H, W) float32 maps, (n, 3, 3) and (n, 4, 4) float64 cameras, (n,) bool metric.

    Whether lengths are metres belongs to the pass, so that it is as fresh as the pass itself.
    """
    # To the processor before double precision, which some accelerators do not have.
    return {
        "frames": torch.tensor(list(numbers)),
        "depth": depth.float().cpu().contiguous(),
        "confidence": confidence.float().cpu().contiguous(),
        "K": K.cpu().double().contiguous(),
        "world_from_cam": world_from_cam.cpu().double().contiguous(),
        "metric": torch.full((len(numbers),), metric),
    }
