"""Options of ``relief3d depth``; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DepthFormat = Literal["npz", "png", "exr"]


@dataclass(frozen=True)
class DepthConfig:
    """Options of ``relief3d depth``."""

    model: str = ""
    """File of weights, or name of a packaged or published network (relief3d models list). Without it the packaged ones:
    metric-teacher-mini with --prompt, metric-student-mini without."""
    model_size: Literal["nano", "micro", "mini", "small", "full"] | None = None
    """Of our own weights, where neither the file nor the model.json beside it says so."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    side: int | None = None
    """Longer side in pixels at which a prompt-refiner works (480)."""
    pixels: float | None = None
    """Pixels that Depth Pro, Student-DepthMap or the teacher see, relative to their own resolution (1)."""
    tokens: int | None = None
    """Tokens of a point-map network (the most it was trained with)."""
    intrinsics: str | None = None
    """fx,fy,cx,cy in pixels of the pictures (pixel centres at +0.5), or a JSON file with these or with K, or
    cameras.json, transforms.json or a COLMAP model with cameras of these pictures. Otherwise cameras of the input,
    EXIF, the network's own estimate, or a guess with a warning."""
    prompt: Path | None = None
    """Sparse metric depth: PNG, TIFF, NPZ, NPY, EXR or PFM of the picture's shape, a PLY cloud in the camera frame, or
    a folder with one for every picture, by name."""
    prompt_scale: float | None = None
    """Metres per stored unit of the prompts; by default 0.001 for whole numbers and 1 for others."""
    prior: str = ""
    """For a teacher: file or name of a network without prompts, whose depth of the same picture guides how the prompt
    is filled. Without it the prompt alone is filled."""
    format: DepthFormat = "npz"
    """Of the depth maps: npz (float32 metres), png (16 bits, see --png-scale) or exr."""
    png_scale: float = 0.001
    """Metres per unit of 16-bit PNG; millimetres reach 65 m."""
    points: bool = False
    """Also write a point cloud (PLY, camera frame)."""
    max_points: int = 2_000_000
    """Of a cloud at most; more are thinned evenly."""
    normals: bool = False
    """Also write a picture of the surface normals."""
    steady: bool = True
    """Even out the scale from frame to frame of a video (without a prompt)."""
    max_frames: int | None = None
    """Frames to choose of a video (80), or pictures to keep, evenly spaced."""
    recursive: bool = False
    """Look for pictures in sub-folders too."""
    overwrite: bool = False
    """Write into a folder that holds other files, and remove what an earlier run made of pictures that are no longer
    among the inputs."""
