"""Sparse metric prompts cut out of a depth map: the test-time patterns of the field.

A pattern is named by a short text, as in Prior Depth Anything's sampler:

==================  ==========================================================================================
``"100"``           that many valid pixels, uniform without replacement ("extreme")
``"downscale_8"``   super-resolution: a picture 8 times smaller, its pixels put back on a regular grid
``"downscale_"``    the same for a given low-resolution map (a phone's depth sensor)
``"LiDAR_64"``      that many lines of a virtual spinning lidar
``"sift"``, ``"orb"``  pixels at keypoints of the picture; 2000 random pixels when fewer than 20 are found
``"cubic_120"``     everything but a square hole of that side
``"distance_1_5"``  only depths strictly between the two numbers, metres
``"radar"``         30 to 100 returns around the horizon whose height in the picture is unreliable
==================  ==========================================================================================

Every random pattern is fixed by a seed; :func:`image_seed` gives the one of a picture's name, so that all methods and
all runs see the same points.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.data.prompt_alignment import MIN_DEPTH, NEIGHBOURS, fill_holes

FIT_POINTS = 2000
"""Points drawn from an area that is known as a whole, and the number that replaces missing keypoints."""
MIN_KEYPOINTS = 20
LIDAR_COLUMNS = 200
RADAR_POINTS = (30, 100)
RADAR_REACH = 80.0

_PITCH = 0.5
_YAW = math.pi / 2.1
_RADAR_ROWS = 0.05
"""Standard deviation of a radar return's row, as a share of the picture's height."""


@dataclass(frozen=True)
class Prompt:
    """Sparse metric depth of one picture.

    Attributes:
        depth: (H, W) float32 metres, 0 where nothing is given.
        mask: (H, W) bool, the pixels to align with.
        cover: (H, W) bool, an area whose depth is given as a whole (square hole, distance range): ``depth`` holds
            all of it and ``mask`` 2000 of its pixels. None for point patterns, where ``mask`` is all there is.
    """

    depth: Tensor
    mask: Tensor
    cover: Tensor | None = None


def image_seed(image_id: str) -> int:
    """The seed of a picture's random prompts: CRC-32 of its name, so that they can be compared between runs."""
    return zlib.crc32(image_id.encode())


def make_prompt(
    pattern: str, depth: Tensor, valid: Tensor | None = None, *, seed: int = 0, image: Tensor | None = None
) -> Prompt:
    """Cut the prompt of a pattern out of a depth map.

    Args:
        pattern: as listed above.
        depth: (H, W) metres, 0 in holes; for ``"downscale_"`` use :func:`low_resolution_prompt`.
        valid: (H, W) bool; depth above 1e-4 when None. Pixels at or below 1e-4 never count.
        seed: of the random patterns, see :func:`image_seed`.
        image: (3, H, W) RGB in [0, 1] or uint8, for keypoints.

    Raises:
        InputError: unknown pattern, or "not enough known points": fewer than five pixels remain.
    """
    depth = depth.float()
    known = (depth > MIN_DEPTH) & torch.isfinite(depth)
    known = known if valid is None else known & valid
    kind, numbers = parse_pattern(pattern)
    height, width = depth.shape
    if kind == "points":
        prompt = _points(depth, _draw(known, int(numbers[0]), seed))
    elif kind == "downscale":
        prompt = downscale_prompt(depth, known, int(numbers[0]))
    elif kind == "lidar":
        prompt = _points(depth, lidar_hits(height, width, int(numbers[0])).to(known.device) & known)
    elif kind in ("sift", "orb"):
        prompt = keypoint_prompt(depth, known, kind, image, seed)
    elif kind == "cubic":
        hole = square_hole(height, width, int(numbers[0]), seed).to(known.device)
        prompt = _cover(depth, known & ~hole, seed)
    elif kind == "distance":
        prompt = _cover(depth, known & (depth > numbers[0]) & (depth < numbers[1]), seed)
    elif kind == "radar":
        prompt = radar_like_prompt(depth, known, seed)
    else:
        raise InputError(
            "the pattern 'downscale_' takes a map that is already small", remedy="use low_resolution_prompt"
        )
    return _enough(prompt)


def parse_pattern(pattern: str) -> tuple[str, tuple[float, ...]]:
    """Kind and numbers of a pattern: ``"LiDAR_64"`` -> ``("lidar", (64.0,))``.

    Raises:
        InputError: the text names no pattern.
    """
    text = pattern.strip()
    if text.isdigit() and int(text) > 0:
        return "points", (float(text),)
    if text in ("sift", "orb", "radar"):
        return text, ()
    if text == "downscale_":
        return "sensor", ()
    number = r"(\d+(?:\.\d+)?)"
    forms = {
        "downscale": r"downscale_([1-9]\d*)",
        "lidar": r"(?:LiDAR|lidar)_([1-9]\d*)",
        "cubic": r"cubic_([1-9]\d*)",
        "distance": rf"distance_{number}_{number}",
    }
    for kind, form in forms.items():
        if found := re.fullmatch(form, text):
            return kind, tuple(float(n) for n in found.groups())
    raise InputError(
        f"there is no prompt pattern '{pattern}'",
        remedy="use a number of points, downscale_K, LiDAR_L, sift, orb, cubic_N, distance_A_B or radar",
    )


def lidar_hits(height: int, width: int, lines: int) -> Tensor:
    """(H, W) bool pixels that a virtual spinning lidar of that many lines hits in a camera with f = H.

    Pitch runs over [-0.5, 0.5] rad, yaw over [-pi/2.1, pi/2.1] in 200 steps; pixels are rounded half to even, with
    the principal point at (W/2, H/2) of integer pixel positions, as in Prior Depth Anything.
    """
    pitch = np.linspace(-_PITCH, _PITCH, lines)[:, None]
    yaw = np.linspace(-_YAW, _YAW, LIDAR_COLUMNS)[None]
    y = np.broadcast_to(np.sin(pitch), (lines, LIDAR_COLUMNS))
    x = np.cos(pitch) * np.sin(yaw)
    z = np.sqrt(np.maximum(1.0 - x**2 - y**2, 0.0)) + 1e-8
    u = np.round(height * x / z + width / 2).astype(np.int64)
    v = np.round(height * y / z + height / 2).astype(np.int64)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    hits = torch.zeros(height, width, dtype=torch.bool)
    hits[torch.from_numpy(v[inside]), torch.from_numpy(u[inside])] = True
    return hits


def downscale_prompt(depth: Tensor, valid: Tensor, factor: int) -> Prompt:
    """Fill holes, shrink bilinearly (align_corners=True), put the small map's pixels back on a regular grid.

    Args:
        depth: (H, W) metres.
        valid: (H, W) bool; a grid pixel only counts where the original was valid.
        factor: how many times smaller, rounding down.

    Raises:
        InputError: the picture is smaller than the factor, or has fewer than five valid pixels.
    """
    height, width = depth.shape
    if height < factor or width < factor:
        raise InputError(f"a map of {width} x {height} pixels cannot be made {factor} times smaller")
    rows, cols = height // factor, width // factor
    # Filling is slow on large pictures, and the resize reads few of their pixels.
    read = _rows_read(height, rows)[:, None] & _rows_read(width, cols)[None]
    filled = fill_holes(depth, valid, k=NEIGHBOURS, where=read.to(valid.device))
    small = F.interpolate(filled[None, None], (rows, cols), mode="bilinear", align_corners=True)[0, 0]
    prompt = low_resolution_prompt(small, height, width)
    mask = prompt.mask & valid
    return Prompt(torch.where(mask, prompt.depth, torch.zeros_like(prompt.depth)), mask)


def _rows_read(size: int, small: int) -> Tensor:
    """(size,) bool: what a bilinear resize with aligned corners reads, with a margin for its rounding."""
    step = (size - 1) / (small - 1) if small > 1 else 0.0
    at = torch.arange(small, dtype=torch.float64) * step
    read = torch.zeros(size, dtype=torch.bool)
    for offset in (-0.01, 0.01, 1.01):
        read[(at + offset).floor().clamp(0, size - 1).long()] = True
    return read


def low_resolution_prompt(small: Tensor, height: int, width: int) -> Prompt:
    """A given low-resolution map on the grid of its picture: value (i, j) goes to (floor(i H/h), floor(j W/w)).

    Args:
        small: (h, w) metres, 0 in holes, not larger than the picture.
        height: of the picture.
        width: of the picture.

    Raises:
        InputError: the map is larger than the picture.
    """
    rows, cols = small.shape
    if rows > height or cols > width:
        raise InputError(f"a prompt of {cols} x {rows} pixels does not fit a picture of {width} x {height}")
    i = (torch.arange(rows, device=small.device) * height) // rows
    j = (torch.arange(cols, device=small.device) * width) // cols
    depth = torch.zeros(height, width, device=small.device)
    depth[i[:, None], j[None]] = small.float()
    return _points(depth, (depth > MIN_DEPTH) & torch.isfinite(depth))


def keypoint_prompt(depth: Tensor, valid: Tensor, kind: str, image: Tensor | None, seed: int) -> Prompt:
    """Depth at the picture's SIFT or ORB keypoints; 2000 random pixels when fewer than 20 fall on valid pixels.

    The detectors are scikit-image's with their usual settings (ORB: 500 points), not OpenCV's, so the points differ
    in detail from those of other programs.

    Raises:
        InputError: no picture, or of another size than the depth.
    """
    if image is None:
        raise InputError(f"the pattern '{kind}' needs the picture")
    if tuple(image.shape[-2:]) != tuple(depth.shape):
        raise InputError(
            f"the picture has {tuple(image.shape[-2:])} pixels, the depth map {tuple(depth.shape)}",
            remedy="resize the picture to the depth map",
        )
    hits = torch.zeros_like(valid)
    for row, col in _keypoints(image, kind):
        hits[min(row, depth.shape[0] - 1), min(col, depth.shape[1] - 1)] = True
    hits &= valid
    if int(hits.sum()) < MIN_KEYPOINTS:
        hits = _draw(valid, FIT_POINTS, seed)
    return _points(depth, hits)


def _keypoints(image: Tensor, kind: str) -> list[tuple[int, int]]:
    """(row, column) of keypoints."""
    from skimage.feature import ORB, SIFT

    grey = image.float().mean(0).cpu().numpy()
    grey = grey / 255.0 if grey.max() > 1.0 else grey
    try:
        detector = SIFT() if kind == "sift" else ORB(n_keypoints=500)
        detector.detect(grey)
    except (RuntimeError, ValueError, IndexError):  # raised for pictures without a single keypoint
        return []
    return [(int(r), int(c)) for r, c in np.asarray(detector.keypoints)]


def square_hole(height: int, width: int, side: int, seed: int) -> Tensor:
    """(H, W) bool, a square of that side at a random place inside the picture (cut at its borders if larger)."""
    generator = torch_generator(seed)
    top = int(torch.randint(0, max(height - side, 0) + 1, (1,), generator=generator))
    left = int(torch.randint(0, max(width - side, 0) + 1, (1,), generator=generator))
    hole = torch.zeros(height, width, dtype=torch.bool)
    hole[top : top + side, left : left + side] = True
    return hole


def radar_like_prompt(depth: Tensor, valid: Tensor, seed: int) -> Prompt:
    """What an automotive radar would give: few returns with good range in a wrong row.

    30 to 100 points are drawn from valid pixels in the middle third of the rows with depth below 80 m, and their row
    is moved by a Gaussian of 5 % of the height; on collision the nearest remains. Our choice, for data without radar.
    """
    height, width = depth.shape
    generator = torch_generator(seed)
    band = torch.zeros_like(valid)
    band[height // 3 : max(height - height // 3, height // 3 + 1)] = True
    count = int(torch.randint(RADAR_POINTS[0], RADAR_POINTS[1] + 1, (1,), generator=generator))
    chosen = torch.nonzero(_draw(valid & band & (depth < RADAR_REACH), count, seed))
    moved = torch.randn(len(chosen), generator=generator).to(depth.device) * (_RADAR_ROWS * height)
    rows = (chosen[:, 0] + moved.round().long()).clamp(0, height - 1)
    nearest = torch.full((height * width,), torch.inf, device=depth.device)
    nearest.scatter_reduce_(0, rows * width + chosen[:, 1], depth[chosen[:, 0], chosen[:, 1]], "amin")
    out = torch.where(torch.isfinite(nearest), nearest, torch.zeros_like(nearest)).reshape(height, width)
    return _points(out, out > 0)


def _draw(valid: Tensor, count: int, seed: int) -> Tensor:
    """(H, W) bool, that many valid pixels uniformly without replacement; all of them when there are fewer."""
    flat = torch.nonzero(valid.reshape(-1))[:, 0]
    order = torch.randperm(len(flat), generator=torch_generator(seed))[:count]
    out = torch.zeros_like(valid.reshape(-1))
    out[flat[order.to(flat.device)]] = True
    return out.reshape(valid.shape)


def _points(depth: Tensor, mask: Tensor) -> Prompt:
    return Prompt(torch.where(mask, depth, torch.zeros_like(depth)), mask)


def _cover(depth: Tensor, area: Tensor, seed: int) -> Prompt:
    return Prompt(torch.where(area, depth, torch.zeros_like(depth)), _draw(area, FIT_POINTS, seed), area)


def _enough(prompt: Prompt) -> Prompt:
    count = int(prompt.mask.sum())
    if count < NEIGHBOURS:
        raise InputError(
            f"not enough known points: {count} of at least {NEIGHBOURS}",
            remedy="use a denser pattern or a depth map with more valid pixels",
        )
    return prompt
