"""Frames of a video as views: time stamps are read from the container, pictures are decoded when asked for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from relief3d.core.contract import Camera, Distortion, View
from relief3d.core.errors import InputError
from relief3d.io.limits import DEFAULT_MAX_PIXELS
from relief3d.io.video_stream import open_video, read_frame_at


@dataclass(frozen=True)
class FrameTimes:
    """Where the frames of a video are.

    Attributes:
        path: the file.
        size: (width, height) in pixels.
        pts: time stamps in ticks of the stream, increasing, one per frame.
        tick: seconds per tick.
    """

    path: Path
    size: tuple[int, int]
    pts: tuple[int, ...]
    tick: float

    def seconds(self, frame: int) -> float:
        """Time of a frame from the first one."""
        return (self.pts[frame] - self.pts[0]) * self.tick


def frame_times(path: Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> FrameTimes:
    """Time stamps of all frames, from the container alone; nothing is decoded.

    Raises:
        InputError: missing, no video, or without time stamps.
        MissingExtraError: PyAV is not installed.
    """
    with open_video(path, max_pixels=max_pixels) as (container, stream):
        pts = sorted({p.pts for p in container.demux(stream) if p.pts is not None and p.size})
        context = stream.codec_context
        size = (int(context.width), int(context.height))
        tick = float(stream.time_base or 0)
    if not pts or min(size) < 1 or not tick > 0:
        raise InputError("the video has no usable time stamps", path=path, remedy="copy it again")
    return FrameTimes(path, size, tuple(pts), tick)


def chosen_frames(count: int, stride: int, most: int | None) -> tuple[int, ...]:
    """Every ``stride``-th frame of ``count``, at most ``most``.

    Raises:
        InputError: a stride or limit below 1.
    """
    if stride < 1 or (most is not None and most < 1):
        raise InputError(f"a stride of {stride} and at most {most} frames cannot be")
    return tuple(range(0, count, stride))[:most]


def frame_view(
    times: FrameTimes,
    frame: int,
    K: Tensor | None = None,
    world_from_cam: Tensor | None = None,
    distortion: Distortion | None = None,
    *,
    name: str | None = None,
) -> View:
    """A view of one frame; its picture is decoded from the video when asked for (seek, then decode)."""
    camera = Camera(times.size[0], times.size[1], K, world_from_cam, distortion)
    return View(
        name or f"frame_{frame:06d}",
        camera,
        image=functools.partial(load_frame, times.path, times.pts[frame], times.size),
        time=times.seconds(frame),
    )


def load_frame(path: Path, pts: int, size: tuple[int, int]) -> Tensor:
    """(3, H, W) float32 RGB of the frame with a time stamp.

    Raises:
        InputError: it cannot be decoded any more, or is turned or stretched to another size than (width, height).
    """
    image = read_frame_at(path, pts)
    if (image.shape[2], image.shape[1]) != size:
        raise InputError(
            f"a frame has {image.shape[2]} x {image.shape[1]} pixels upright, stored are {size[0]} x {size[1]}",
            path=path,
            remedy="re-encode the video upright with square pixels",
        )
    return image
