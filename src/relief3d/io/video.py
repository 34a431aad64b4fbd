"""Video in: facts, sharp and well-spaced frames, each decoded only when it is used."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress
from relief3d.io.frame_motion import BLOCK, MotionTrack, sharpness
from relief3d.io.frame_selection import DEFAULT_MOTION, choose_frames
from relief3d.io.images import read_image, write_image
from relief3d.io.limits import DEFAULT_MAX_PIXELS
from relief3d.io.video_stream import DecodeCount, RawFrame, decode_frames, open_video, read_frame_at

logger = logging.getLogger(__name__)

DEFAULT_MAX_FRAMES = 80
ANALYSIS_SIDE = 480
"""Frames are judged for sharpness with their longer side shrunk to this many pixels."""

ANALYSIS_RATE = 30.0
"""Frames judged per second of video at most."""

KEY_FRAMES_ONLY_ABOVE = 40_000
"""Longer videos (in frames) are judged by their key frames alone, which decodes many times faster."""

_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video file.

    Attributes:
        path: the file.
        width, height: of the upright first frame with square pixels.
        orientation: EXIF-like orientation of the stored frames.
        frame_rate: average frames per second, None when unknown.
        duration: seconds as declared, None when unknown.
        declared_frames: number of frames as declared, None when unknown.
        codec: short name.
        notes: remarks for the user.
    """

    path: Path
    width: int
    height: int
    orientation: int
    frame_rate: float | None
    duration: float | None
    declared_frames: int | None
    codec: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VideoFrame:
    """A chosen frame: where it is and how good it is.

    Attributes:
        index: position in decoding order among the frames that decode.
        pts: time stamp in ticks of the stream; identifies the frame.
        time: seconds from the start.
        width, height: of the upright frame.
        sharpness: see :func:`relief3d.io.frame_motion.sharpness`.
        unique: ``pts`` names the frame; otherwise the file restarts its clock and ``index`` does.
    """

    index: int
    pts: int
    time: float
    width: int
    height: int
    sharpness: float
    unique: bool = True


@dataclass(frozen=True)
class VideoSample:
    """Frames chosen from a video.

    Attributes:
        info: facts about the file.
        frames: chosen frames in time order.
        decoded: frames that could be decoded.
        damaged: packets and frames that could not.
        notes: what was decided or given up.
    """

    info: VideoInfo
    frames: tuple[VideoFrame, ...]
    decoded: int
    damaged: int
    notes: tuple[str, ...] = ()

    def name(self, frame: VideoFrame) -> str:
        """The view name of a frame, unique and in time order."""
        return f"frame_{frame.index:06d}.png"

    def views(self, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[View, ...]:
        """One view per frame; each decodes its picture from the video when asked (seek, then decode)."""
        return tuple(
            View(
                name=self.name(f),
                camera=Camera(f.width, f.height),
                image=partial(
                    read_frame_at,
                    self.info.path,
                    f.pts,
                    None if f.unique else f.index,
                    max_pixels=max_pixels,
                ),
                time=f.time,
            )
            for f in self.frames
        )


def read_video_info(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> VideoInfo:
    """Facts about a video; decodes its first frame to be sure that there is one.

    Raises:
        InputError: not a video, audio only, damaged, no frame.
        MissingExtraError: PyAV is not installed.
    """
    path = Path(path)
    with open_video(path, max_pixels=max_pixels) as (container, stream):
        count = DecodeCount()
        first = next(decode_frames(path, container, stream, count, max_pixels=max_pixels), None)
        if first is None:
            raise _no_frames(path, count)
        duration = None
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / 1e6
        rate = float(stream.average_rate or stream.guessed_rate or 0) or None
        notes = []
        hdr = _HDR_TRANSFERS.get(int(first.frame.color_trc))
        if hdr:
            notes.append(f"HDR video ({hdr}): colours are used without tone mapping and look flat")
        return VideoInfo(
            path,
            first.width,
            first.height,
            first.orientation,
            rate,
            duration,
            int(stream.frames) or None,
            stream.codec_context.name,
            tuple(notes),
        )


def sample_video(
    path: str | Path,
    *,
    max_frames: int = DEFAULT_MAX_FRAMES,
    min_frames: int = 8,
    motion: float = DEFAULT_MOTION,
    start: float = 0.0,
    end: float | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> VideoSample:
    """Choose sharp frames with enough motion and overlap; memory does not grow with frame size.

    Every frame is decoded once and shrunk; what stays is a few hundred bytes per judged frame. See
    :func:`relief3d.io.frame_selection.choose_frames` for the choice. A damaged or cut file is used as
    far as it decodes, and a note says how far.

    Args:
        path: the video file.
        max_frames: upper limit of chosen frames.
        min_frames: wanted at least when the video moves little.
        motion: wanted motion between neighbours, as a fraction of the frame width.
        start: first second to use.
        end: last second to use, None for all.
        max_pixels: larger frames are refused.
        progress: told about every judged frame.

    Raises:
        InputError: not a video, audio only, or not a single frame decodes.
        MissingExtraError: PyAV is not installed.
    """
    info = read_video_info(path, max_pixels=max_pixels)
    progress = SilentProgress() if progress is None else progress
    expected = info.declared_frames or round((info.duration or 0) * (info.frame_rate or 30))
    keys_only = expected > KEY_FRAMES_ONLY_ABOVE
    progress.start("choosing video frames", expected or None)
    count = DecodeCount()
    frames, track = _judge(info, count, keys_only, (start, end), max_pixels, progress)
    progress.finish(f"{count.frames} frames decoded")
    if not frames:
        if count.frames:
            raise InputError(f"no frame lies between second {start:g} and {end}", path=path)
        raise _no_frames(path, count)
    if not all(f.unique for f in frames):
        frames = [replace(f, unique=False) for f in frames]
    choice = choose_frames(
        np.array([f.sharpness for f in frames], dtype=np.float32),
        track.positions(),
        max_frames=max_frames,
        min_frames=min_frames,
        motion=motion,
    )
    notes = [*info.notes, *choice.notes]
    if keys_only:
        notes.append("the video is long, so only its key frames were considered")
    elif end is None and (damage := _damage(info, count, frames[-1].time)):
        notes.append(damage)
    if len({(f.width, f.height) for f in frames}) > 1:
        notes.append("the picture size changes during the video")
    for note in notes:
        logger.warning("%s: %s", path, note)
    return VideoSample(info, tuple(frames[i] for i in choice.kept), count.frames, count.bad, tuple(notes))


def _damage(info: VideoInfo, count: DecodeCount, last_time: float) -> str | None:
    """A note when fewer frames decoded than the file declares."""
    short = info.declared_frames is not None and count.frames < 0.98 * info.declared_frames
    if info.declared_frames is None and info.duration and info.frame_rate:
        short = last_time < 0.95 * info.duration - 2 / info.frame_rate
    if not (short or count.bad or count.stopped):
        return None
    of = f" of {info.declared_frames}" if info.declared_frames else ""
    return f"the video is damaged: {count.frames}{of} frames could be decoded and were used"


def _no_frames(path: str | Path, count: DecodeCount) -> InputError:
    reason = f" ({count.bad} damaged packets)" if count.bad else ""
    return InputError(
        f"not a single frame of the video can be decoded{reason}", path=path, remedy="copy it again"
    )


def _judge(
    info: VideoInfo,
    count: DecodeCount,
    keys_only: bool,
    window: tuple[float, float | None],
    max_pixels: int,
    progress: Progress,
) -> tuple[list[VideoFrame], MotionTrack]:
    """Judge frames for sharpness and motion; of frames closer than the analysis rate the sharpest counts."""
    frames: list[VideoFrame] = []
    track = MotionTrack()
    pending: tuple[VideoFrame, np.ndarray] | None = None
    slot_end = -1.0

    def accept(frame: VideoFrame, grey: np.ndarray) -> None:
        frames.append(frame)
        track.add(_shrink(grey))

    with open_video(info.path, max_pixels=max_pixels) as (container, stream):
        if keys_only:
            stream.codec_context.skip_frame = "NONKEY"
        for raw in decode_frames(info.path, container, stream, count, max_pixels=max_pixels):
            progress.advance()
            if raw.time < window[0]:
                continue
            if window[1] is not None and raw.time > window[1]:
                break
            frame, grey = _measure(raw)
            if pending is not None and raw.time >= slot_end:
                accept(*pending)
                pending = None
            if pending is None:
                slot_end = raw.time + 0.9 / ANALYSIS_RATE
                pending = (frame, grey)
            elif frame.sharpness > pending[0].sharpness:
                pending = (frame, grey)
    if pending is not None:
        accept(*pending)
    return frames, track


def _measure(raw: RawFrame) -> tuple[VideoFrame, np.ndarray]:
    grey = raw.grey(ANALYSIS_SIDE)
    judged = VideoFrame(raw.index, raw.pts, raw.time, raw.width, raw.height, sharpness(grey), raw.unique)
    return judged, grey


def _shrink(grey: np.ndarray) -> np.ndarray:
    """A third of the size by averaging, never smaller than two blocks across."""
    factor = 3 if min(grey.shape) >= 6 * BLOCK // 2 else 1
    height, width = (side - side % factor for side in grey.shape)
    cut = grey[:height, :width].reshape(height // factor, factor, width // factor, factor)
    small = cut.mean(axis=(1, 3))
    pad = [max(0, BLOCK - side) for side in small.shape]
    return np.pad(small, ((0, pad[0]), (0, pad[1])), mode="edge") if any(pad) else small


def write_video_frames(
    sample: VideoSample,
    folder: str | Path,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: Progress | None = None,
) -> tuple[View, ...]:
    """Decode the chosen frames once, in one pass, to PNG files; views then read those.

    Worth it when pictures are read several times. Files that are there already are kept.

    Args:
        sample: from :func:`sample_video`.
        folder: where the files go.
        max_pixels: larger frames are refused.
        progress: told about every written frame.

    Raises:
        InputError: the folder cannot be written, or a frame does not decode any more.
    """
    folder = Path(folder)
    progress = SilentProgress() if progress is None else progress
    # Key-frame decoding counts only key frames, so the time stamp is the safer name where it is unique.
    missing = {_place(f): f for f in sample.frames if not (folder / sample.name(f)).is_file()}
    progress.start("writing video frames", len(missing))
    if missing:
        with open_video(sample.info.path, max_pixels=max_pixels) as (container, stream):
            for raw in decode_frames(
                sample.info.path, container, stream, DecodeCount(), max_pixels=max_pixels
            ):
                places = ((raw.pts, -1), (raw.pts, raw.index))
                frame = next((missing.pop(p) for p in places if p in missing), None)
                if frame is not None:
                    write_image(folder / sample.name(frame), raw.rgb())
                    progress.advance()
                if not missing:
                    break
    progress.finish()
    if missing:
        raise InputError(f"{len(missing)} chosen frames cannot be decoded any more", path=sample.info.path)
    return tuple(
        view.replace(image=partial(_read_rgb, folder / view.name, max_pixels), path=folder / view.name)
        for view in sample.views()
    )


def _place(frame: VideoFrame) -> tuple[int, int]:
    return frame.pts, -1 if frame.unique else frame.index


def _read_rgb(path: Path, max_pixels: int) -> Tensor:
    return read_image(path, max_pixels=max_pixels).rgb


def video_scene(sample: VideoSample, views: tuple[View, ...] | None = None) -> Scene:
    """An ordered scene of the chosen frames, with the facts about the video in ``info``."""
    info = {
        "video": {
            "file": sample.info.path.name,
            "codec": sample.info.codec,
            "frames_decoded": sample.decoded,
            "packets_damaged": sample.damaged,
            "notes": list(sample.notes),
        }
    }
    return Scene(sample.views() if views is None else views, ordered=True, info=info)


__all__ = [
    "VideoFrame",
    "VideoInfo",
    "VideoSample",
    "read_video_info",
    "sample_video",
    "video_scene",
    "write_video_frames",
]
