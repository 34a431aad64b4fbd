"""ETH3D: metric depth of several views (MetricAnything, table 9)."""

from functools import partial
from pathlib import Path

from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.metric.frames import FrameFile
from relief3d.eval.protocols.metric.mono_depth_rules import Shot, file_shot
from relief3d.eval.protocols.metric.multiview_depth import MultiViewDepthProtocol, ViewSet, spread_keys
from relief3d.eval.protocols.metric.readers_eth3d import LAYOUT, read_eth3d


def open_scenes(root: Path) -> list[ViewSet]:
    """Scenes of the training set with their raw pictures.

    Raises:
        InputError: see :func:`read_eth3d`.
    """
    scenes: dict[str, list[FrameFile]] = {}
    for frame in read_eth3d(root):
        scenes.setdefault(frame.group, []).append(frame)

    def shot(frames: list[FrameFile], index: int) -> Shot:
        return file_shot(frames[index])

    return [
        ViewSet(name, [Path(f.name).name for f in frames], partial(shot, frames))
        for name, frames in scenes.items()
    ]


PROTOCOLS: tuple[Protocol, ...] = (
    MultiViewDepthProtocol(
        name="eth3d_multiview",
        title="ETH3D: metric depth of several views",
        layout=LAYOUT,
        data="eth3d",
        scenes=open_scenes,
        choose=spread_keys(8),
        size=(1024, 1536),
        family="outdoor",
        frames=12,
        notes=(
            "8 key views spread over each of the 13 scenes with the 7 views nearest in order of the recording "
            "(our choice); the benchmark's own list is a pickle, which is not read: write it to samples.txt to use it",
            "pictures shown at 1536 x 1024; raw (distorted) pictures, to which the laser depth belongs",
        ),
    ),
)
