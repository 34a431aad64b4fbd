"""Videos stored as folders of numbered pictures and depth maps, as the video-depth benchmarks have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.views.camera_rules import read_pictures
from relief3d.eval.protocols.views.video_depth_rules import DepthVideo
from relief3d.io.depth import read_depth
from relief3d.io.names import natural_key

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
DepthReader = Callable[[Path], Tensor]


def numbered_files(folder: Path, endings: Sequence[str], what: str) -> list[Path]:
    """Files of a folder with one of the endings, in natural order ("2" before "10").

    Raises:
        InputError: the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise InputError(
            f"the folder with the {what} is missing", path=folder, remedy="complete the data set"
        )
    found = [p for p in folder.iterdir() if p.suffix.lower() in endings and not p.name.startswith(".")]
    if not found:
        raise InputError(
            f"holds no {what} ({', '.join(endings)})", path=folder, remedy="complete the data set"
        )
    return sorted(found, key=lambda p: natural_key(p.name))


def paired_frames(pictures: Sequence[Path], depths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pictures with their depth maps: by position where there are as many of both, otherwise by equal names.

    Names of the two may differ (time stamps), so position comes first, as in the published code.

    Raises:
        InputError: the numbers differ and no names agree.
    """
    if len(pictures) == len(depths):
        return list(zip(pictures, depths))
    by_name = {p.stem: p for p in depths}
    pairs = [(p, by_name[p.stem]) for p in pictures if p.stem in by_name]
    if not pairs:
        raise InputError(
            f"holds {len(depths)} depth maps for {len(pictures)} pictures and no names agree",
            path=depths[0].parent,
            remedy="complete the data set",
        )
    return pairs


def scaled_depth(scale: float, metric: bool = True) -> DepthReader:
    """A reader of single-channel maps (16-bit PNG, NPY): depth = stored value x scale."""
    return lambda path: read_depth(path, scale=scale, metric=metric).values


def stacked_depth(paths: Sequence[Path], read: DepthReader) -> Tensor:
    """(N, H, W) float32 depth, 0 where unknown; frames without any depth are 0 everywhere.

    Raises:
        InputError: a file is missing or damaged, sizes differ, or no frame has any depth.
    """
    maps: list[Tensor | None] = []
    for path in paths:
        if not path.is_file():
            raise InputError("the depth map is missing", path=path, remedy="complete the data set")
        try:
            maps.append(read(path))
        except InputError as exc:
            if "no valid pixels" not in exc.message:
                raise
            maps.append(None)  # a video may have a frame without depth; it then only carries no pixels
    known = [(path, m) for path, m in zip(paths, maps) if m is not None]
    if not known:
        raise InputError("no valid pixels in the depth maps of this video", path=paths[0].parent)
    size = known[0][1].shape
    for path, depth in known:
        if depth.shape != size:
            raise InputError(
                f"has {depth.shape[1]}x{depth.shape[0]} pixels, other depth maps of the video {size[1]}x{size[0]}",
                path=path,
            )
    return torch.stack([torch.zeros(size) if m is None else m for m in maps])


def folder_video(
    name: str, frames: Sequence[tuple[Path, Path]], read: DepthReader, group: str = ""
) -> DepthVideo:
    """A video of (picture, depth map) files; views carry the names of the pictures."""
    return DepthVideo(
        name,
        [picture.name for picture, _ in frames],
        pictures=lambda chosen: read_pictures([frames[i][0] for i in chosen]),
        depth=lambda chosen: stacked_depth([frames[i][1] for i in chosen], read),
        group=group,
    )
