"""Short videos made on the spot: a camera that pans over a large random texture."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np


def texture(width: int = 900, height: int = 200, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 blobs of several sizes."""
    generator = np.random.default_rng(seed)
    out = np.zeros((height, width, 3))
    for cell, weight in ((40, 0.5), (12, 0.3), (4, 0.2)):
        coarse = generator.random((height // cell + 2, width // cell + 2, 3))
        out += weight * coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    return np.round(out * 255).astype(np.uint8)


def panning_frames(
    count: int, *, width: int = 160, height: int = 96, speed: float = 4.0, blurred: tuple[int, ...] = ()
) -> list[np.ndarray]:
    """``count`` frames (H, W, 3) uint8 that move by ``speed`` pixels each; some smeared by motion blur."""
    big = texture(int(width + speed * count + 40), height)
    frames = []
    for i in range(count):
        x = round(i * speed)
        frame = big[:, x : x + width].astype(np.float32)
        if i in blurred:
            frame = np.mean([big[:, x + d : x + d + width] for d in range(12)], axis=0)
        frames.append(np.round(frame).astype(np.uint8))
    return frames


def write_video(
    path: Path,
    frames: list[np.ndarray],
    *,
    rate: int = 30,
    times: list[float] | None = None,
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    rotation: float | None = None,
    gop: int = 12,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Encode (H, W, 3) uint8 frames; ``times`` in seconds give variable rate."""
    import av

    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.gop_size = gop
        stream.thread_count = 1
        if codec == "libx264":
            stream.options = {"crf": "12", "preset": "veryfast", **(options or {})}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file with sound only."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for i in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, 1024 * i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
