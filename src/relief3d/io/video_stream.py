"""Decoding a video file frame by frame: rotation, time stamps, damage. Needs PyAV (extra ``video``)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.io.exif import orient_array, orientation_from_matrix, oriented_size
from relief3d.io.formats import VIDEO_FORMATS, sniff, unreadable
from relief3d.io.limits import DEFAULT_MAX_PIXELS, check_pixels

_DEMUXERS = {
    "mp4": "mov",
    "matroska": "matroska",
    "avi": "avi",
    "mpegts": "mpegts",
    "mpegps": "mpeg",
    "flv": "flv",
    "ogg": "ogg",
    "asf": "asf",
}
_MAX_FILE_BYTES = 1 << 44
_MAX_BAD_PACKETS = 2000


@dataclass
class DecodeCount:
    """What happened while decoding; filled in as frames are drawn.

    Attributes:
        frames: frames delivered.
        bad: packets or frames that could not be decoded.
        stopped: the file ended in an error.
    """

    frames: int = 0
    bad: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class RawFrame:
    """One decoded frame, not yet converted.

    Attributes:
        index: position in decoding order, from 0, damaged ones not counted.
        pts: time stamp in ticks of the stream.
        time: seconds from the first time stamp of the stream; goes on rising where time stamps restart.
        unique: time stamps have not restarted so far, so ``pts`` names the frame.
        orientation: EXIF-like orientation that turns the stored frame upright.
        width, height: size of the upright frame, with square pixels.
    """

    index: int
    pts: int
    time: float
    orientation: int
    width: int
    height: int
    unique: bool
    frame: Any = field(repr=False)

    def rgb(self) -> Tensor:
        """(3, H, W) float32 RGB in [0, 1], upright, square pixels."""
        width, height = oriented_size(self.orientation, self.width, self.height)
        array = _reformat(self.frame, width, height, "rgb24").to_ndarray()
        pixels = torch.from_numpy(array).permute(2, 0, 1).to(torch.float32) / 255
        return orient_array(pixels, self.orientation).contiguous()

    def grey(self, long_side: int) -> NDArray[np.float32]:
        """(h, w) float32 brightness in [0, 1], shrunk so that the longer side has ``long_side`` pixels.

        The frame is not turned upright: sharpness and amount of motion do not depend on it.
        """
        scale = min(1.0, long_side / max(self.frame.width, self.frame.height))
        width = max(16, round(self.frame.width * scale))
        height = max(16, round(self.frame.height * scale))
        array = _reformat(self.frame, width, height, "gray").to_ndarray()
        return np.asarray(array, dtype=np.float32) / np.float32(255)


def _reformat(frame: Any, width: int, height: int, pixel_format: str) -> Any:
    # Untagged video is BT.709 when it is HD and BT.601 below, as all players assume.
    unspecified = int(frame.colorspace) == 2
    source = ("ITU709" if frame.height >= 720 else "ITU601") if unspecified else None
    return frame.reformat(width=width, height=height, format=pixel_format, src_colorspace=source)


@contextmanager
def open_video(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Iterator[tuple[Any, Any]]:
    """Open a video file; yields PyAV's (container, video stream).

    The demuxer is chosen by the file's first bytes and only local files are opened, so a play list or
    script dressed up as a video cannot make us read other files or the network.

    Raises:
        InputError: not a video, no index, audio only, or frames larger than ``max_pixels``.
        MissingExtraError: PyAV is not installed.
    """
    path = Path(path)
    kind = sniff(path, max_bytes=_MAX_FILE_BYTES)
    if kind not in VIDEO_FORMATS:
        found = f"is a {kind} file" if kind else "is in no known format"
        raise InputError(f"{found}, not a video", path=path, remedy="use MP4, MOV, MKV, WebM or AVI")
    av = require("av", extra="video", purpose="reading video")
    try:
        container = av.open(
            f"file:{path.absolute()}",
            format=_DEMUXERS[kind],
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except av.error.FFmpegError as exc:
        raise InputError(
            "the video has no readable index or is cut off, so nothing can be decoded",
            path=path,
            remedy="copy it again, or repair it with ffmpeg or untrunc",
        ) from exc
    except OSError as exc:
        raise unreadable(path, exc) from exc
    with container:
        stream = _video_stream(container, av)
        if stream is None:
            raise InputError("the file has sound but no video", path=path)
        context = stream.codec_context
        if context is None:
            raise InputError(
                "the video's codec is not supported here", path=path, remedy="convert it to H.264"
            )
        if context.width or context.height:
            check_pixels(context.width, context.height, path=path, max_pixels=max_pixels)
        stream.thread_type = "AUTO"
        yield container, stream


def _video_stream(container: Any, av: Any) -> Any:
    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & cover), None)


def decode_frames(
    path: str | Path,
    container: Any,
    stream: Any,
    count: DecodeCount,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[RawFrame]:
    """Yield the frames of an open video one after the other; at most a few are held in memory.

    Damaged packets and frames are skipped and counted. Frames without a time stamp get one from the
    frame rate.

    Args:
        path: for messages.
        container: from :func:`open_video`.
        stream: from :func:`open_video`.
        count: filled in while frames are drawn.
        max_pixels: larger frames are refused.

    Raises:
        InputError: a frame larger than ``max_pixels``.
    """
    start = stream.start_time
    tick = float(stream.time_base) if stream.time_base else 0.0
    rate = float(stream.average_rate or stream.guessed_rate or 30)
    orientation = 1
    last: int | None = None
    offset, time = 0.0, 0.0
    unique = True
    for frame in _frames(container, stream, count):
        check_pixels(frame.width, frame.height, path=path, max_pixels=max_pixels)
        pts = frame.pts
        if pts is None or not tick:
            pts = 0 if last is None else last + max(1, round(1 / (rate * tick)) if tick else 1)
        if start is None:
            start = pts
        if last is not None and pts <= last:  # files glued together start their clock again
            offset += time + 1 / rate - ((pts - start) * tick + offset)
            unique = False
        last = pts
        matrix = _display_orientation(frame)
        orientation = matrix if matrix is not None else orientation
        width, height = _square_size(frame, stream)
        width, height = oriented_size(orientation, width, height)
        time = (pts - start) * tick + offset if tick else count.frames / rate
        yield RawFrame(count.frames, pts, time, orientation, width, height, unique, frame)
        count.frames += 1


def _frames(container: Any, stream: Any, count: DecodeCount) -> Iterator[Any]:
    av = require("av", extra="video", purpose="reading video")
    packets = container.demux(stream)
    while count.bad < _MAX_BAD_PACKETS:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.error.FFmpegError, OSError):
            count.stopped = True
            return
        try:
            decoded = packet.decode()
        except (av.error.FFmpegError, ValueError):
            count.bad += 1
            continue
        for frame in decoded:
            if frame.is_corrupt:
                count.bad += 1
            else:
                yield frame
    count.stopped = True


def _display_orientation(frame: Any) -> int | None:
    """The EXIF orientation equal to the frame's display matrix (ISO 14496-12, 8.3.2), or None."""
    for item in frame.side_data or ():
        if item.type.name == "DISPLAYMATRIX" and item.buffer_size >= 36:
            a, b, _, c, d = struct.unpack("=5i", bytes(item)[:20])
            return orientation_from_matrix(((a, c), (b, d)))
    return None


def _square_size(frame: Any, stream: Any) -> tuple[int, int]:
    """Stored size with the width stretched so that pixels are square."""
    ratio = stream.sample_aspect_ratio
    if not ratio or ratio == 1 or not 0.25 < float(ratio) < 4:
        return frame.width, frame.height
    return max(1, round(frame.width * float(ratio))), frame.height


def read_frame_at(
    path: str | Path, pts: int, index: int | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Tensor:
    """Decode one frame: (3, H, W) float32 RGB in [0, 1], upright.

    Seeks to the key frame before it; files that cannot seek are decoded from the start.

    Args:
        path: the video file.
        pts: time stamp of the frame.
        index: position in decoding order, for files whose time stamps restart; decodes from the start.
        max_pixels: larger frames are refused.

    Raises:
        InputError: the frame cannot be found any more.
    """
    for seek in (True, False) if index is None else (False,):
        with open_video(path, max_pixels=max_pixels) as (container, stream):
            if seek and not _seek(container, stream, pts):
                continue
            for raw in decode_frames(path, container, stream, DecodeCount(), max_pixels=max_pixels):
                if raw.pts == pts and index in (None, raw.index):
                    return raw.rgb()
                if seek and raw.pts > pts:
                    break
    raise InputError(f"the frame at time stamp {pts} cannot be decoded any more", path=path)


def _seek(container: Any, stream: Any, pts: int) -> bool:
    av = require("av", extra="video", purpose="reading video")
    try:
        container.seek(pts, stream=stream, backward=True, any_frame=False)
    except (av.error.FFmpegError, OSError, ValueError):
        return False
    return True
