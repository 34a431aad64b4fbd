"""Options of ``relief3d mesh``; importable without torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from relief3d.core.errors import InputError

DepthSource = Literal["auto", "stereo", "metric", "model", "sensor", "files"]
PoseReading = Literal["given", "opengl", "inverse", "inverse-opengl", "ignore"]
VOLUME_MODEL = "volume-mini"


@dataclass(frozen=True)
class MeshConfig:
    """What to do with the recording. Every value is recorded in ``report.json``."""

    layout: str = "auto"
    """How INPUT is laid out: tum, scannet, 7scenes, tanks, polycam, record3d, arkit, or files (photos, a video, a
    COLMAP model, cameras.json, transforms.json)."""
    cameras: Path | None = None
    """Known cameras of pictures or a video: cameras.json, transforms.json or a COLMAP model, matched by name."""
    trajectory: Path | None = None
    """Known poses of pictures in their order: a TUM, KITTI or Tanks and Temples (.log) file, one pose per picture."""
    intrinsics: str | None = None
    """fx,fy,cx,cy in pixels of the pictures (centres at +0.5), or a JSON file with them; instead of the input's own."""
    poses: PoseReading = "given"
    """How poses are meant when the input has them in another convention (camera axes of OpenGL, camera from world, or
    both); ignore finds them anew by structure from motion."""
    metres_per_unit: float | None = None
    """Scale of the poses, where it is known: 1 says that they are in metres."""
    masks: Path | None = None
    """Folder of masks with the pictures' names; black (0) pixels, moving objects for example, are not used."""
    ordered: bool = False
    """Photos are in walking order (recordings and videos always are)."""
    video_frames: int = 200
    """Most frames to take from a video."""
    keyframe_distance: float = 0.1
    """A frame becomes a keyframe when it has moved so far (metres, and 0.1 is also 7 degrees) from the last one."""
    max_keyframes: int | None = None
    """Raise the distance until at most so many keyframes remain."""
    submap: int = 8
    """Keyframes whose depth is found together; 16 suits long indoor scans."""
    overlap: int = 4
    """Keyframes that neighbouring submaps share."""
    depth: DepthSource = "auto"
    """Where depth comes from: stereo (plane sweep), metric (a network on single pictures, told triangulated points
    where it takes them), model (a multi-view network, --model), sensor (the recording's own), or files
    (--depth-files). auto: files, else model, else sensor, else stereo, by what is there."""
    model: str = ""
    """For depth model: vggt, pi3, pi3x, reliev3r, a published name or a file of weights. For depth metric: a file or
    name of a network for metric depth (metric-teacher-mini when it comes along)."""
    depth_files: Path | None = None
    """Depth maps of any scale: a folder with maps named as the pictures, or with one folder per submap (0, 1, ...)."""
    depth_scale: float | None = None
    """Depth = stored value x this, for --depth-files; default millimetres for 16-bit PNG, 1 for others."""
    align: bool = True
    """Find one scale per submap. Without it maps are fused with one scale for all: for comparison only."""
    anchor: str = ""
    """Network for metric depth that tells how long a metre is, where poses have no unit; or 'sensor'."""
    overlap_mode: Literal["blend", "centre", "all"] = "blend"
    """Depth of a keyframe that lies in two submaps."""
    spatial_order: Literal[0, 1, 2] = 0
    """Also correct every depth map by a smooth factor over the picture: 0 none, 1 plane, 2 quadratic."""
    loops: bool = True
    """Look for places that are seen again and tie their scales together."""
    quality: Literal["fuse", "refine"] = "fuse"
    """fuse: surface of the aligned depth. refine: through the volumetric network (--weights)."""
    weights: Path | None = None
    """Weights of the volumetric network."""
    width: int = 640
    """Longer side of the pictures that are matched and fused, in pixels; texture comes from the originals."""
    voxel_size: float | None = None
    """Fusion voxel in scene units; by default 0.04 m, and 1/50 of the median depth outdoors or without metres."""
    voxels_along_longest_axis: int | None = None
    """The voxel size by the number of voxels along the scene's longest side."""
    max_depth: float | None = None
    """Farther depth is not fused, in scene units; by default 5 m where metres are known and depth is of a room, else
    the 98th percentile of depth."""
    texture: Literal["atlas", "vertex", "none"] = "atlas"
    """Colour of mesh.glb: a baked texture, per vertex, or none."""
    mesh_faces: int = 500_000
    """Most triangles of mesh.glb and mesh.ply; 0 keeps all."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    max_memory: float = 4.0
    """GiB that the volume may take; the voxel size doubles until it fits."""
    seed: int = 0
    """Of everything random."""
    overwrite: bool = False
    """Replace an earlier result in the output folder."""

    def __post_init__(self) -> None:
        for name in ("keyframe_distance", "max_memory"):
            if not getattr(self, name) > 0:
                raise InputError(f"--{name.replace('_', '-')} must be positive")
        for name in (
            "metres_per_unit",
            "voxel_size",
            "max_depth",
            "depth_scale",
            "voxels_along_longest_axis",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"--{name.replace('_', '-')} {value:g} is not positive")
        if self.max_keyframes is not None and self.max_keyframes < 2:
            raise InputError("--max-keyframes must be at least 2")
        if not 64 <= self.width <= 4096:
            raise InputError(f"--width {self.width} is outside 64..4096")
        if not 1 <= self.overlap < self.submap:
            raise InputError(
                f"submaps of {self.submap} keyframes cannot overlap by {self.overlap}",
                remedy="choose an --overlap of at least 1 and below --submap",
            )
        if self.voxel_size is not None and self.voxels_along_longest_axis is not None:
            raise InputError("give --voxel-size or --voxels-along-longest-axis, not both")

    def check(self) -> None:
        """Refuse options that contradict each other or would be ignored.

        Raises:
            InputError: naming the option and what to do.
        """
        if self.depth == "model" and not self.model:
            raise InputError("--depth model needs a network", remedy="name it with --model")
        if self.model and self.depth in ("stereo", "sensor", "files"):
            raise InputError(f"--depth {self.depth} needs no --model", remedy="drop one of them")
        if self.depth == "files" and self.depth_files is None:
            raise InputError("--depth files needs a folder", remedy="name it with --depth-files")
        if self.depth_files is not None and self.depth not in ("auto", "files"):
            raise InputError(f"--depth {self.depth} does not use --depth-files", remedy="drop one of them")
        if self.depth_scale is not None and self.depth_files is None:
            raise InputError("--depth-scale belongs to --depth-files", remedy="drop it")
        if self.trajectory is not None and self.cameras is not None:
            raise InputError("give --cameras or --trajectory, not both")
        if self.poses == "ignore" and (self.trajectory is not None or self.metres_per_unit is not None):
            raise InputError("--poses ignore makes no use of --trajectory and --metres-per-unit")
        if self.quality == "refine" and self.weights is None:
            raise InputError(
                "--quality refine needs a volumetric network, and none comes with this copy",
                remedy="name trained weights with --weights (relief3d train volume), or use --quality fuse",
            )
        if self.quality == "refine" and self.weights is not None and not self.weights.is_file():
            raise InputError("there are no such weights", path=self.weights, remedy="check --weights")
        if self.weights is not None and self.quality != "refine":
            raise InputError("--weights belongs to --quality refine", remedy="add it, or drop --weights")

    def fingerprint(self) -> dict[str, str]:
        """Hash of the options that shape each step, for a run that goes on where another stopped."""
        steps = {
            "cameras": (
                "layout", "cameras", "trajectory", "intrinsics", "poses", "metres_per_unit", "masks", "ordered",
                "video_frames", "seed",
            ),
            "keyframes": ("keyframe_distance", "max_keyframes", "width", "submap", "overlap"),
            "depth": ("depth", "model", "depth_files", "depth_scale"),
            "scale": ("align", "anchor", "overlap_mode", "spatial_order", "loops"),
            "mesh": (
                "quality", "weights", "voxel_size", "voxels_along_longest_axis", "max_depth", "texture", "mesh_faces",
                "max_memory",
            ),
        }  # fmt: skip
        out: dict[str, str] = {}
        chain = ""
        values: dict[str, Any] = dataclasses.asdict(self)
        for step, names in steps.items():
            chain += json.dumps({name: str(values[name]) for name in names}, sort_keys=True)
            out[step] = hashlib.sha256(chain.encode()).hexdigest()[:16]
        return out

    def input_files(self) -> tuple[Path | None, ...]:
        """Files and folders beside INPUT whose change makes another result."""
        own = Path(self.model) if self.model and Path(self.model).is_file() else None
        known = Path(self.intrinsics) if self.intrinsics and Path(self.intrinsics).is_file() else None
        return (
            self.cameras,
            self.trajectory,
            known,
            self.masks,
            self.depth_files,
            own,
            self.weights,
        )
