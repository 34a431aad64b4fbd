"""Options of ``relief3d reconstruct``; importable without torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from relief3d.core.errors import InputError
from relief3d.pipelines.multiview.config import MultiviewConfig


@dataclass(frozen=True)
class ReconstructConfig:
    """What to do with the pictures. Every value is recorded in ``scene.json``."""

    cameras: Path | None = None
    """Known cameras: cameras.json, transforms.json or a COLMAP model folder, matched by picture name."""
    poses: Literal["auto", "fixed", "refine", "ignore"] = "auto"
    """Known poses: keep them (fixed), bundle-adjust from them (refine), or solve anew (ignore). auto: fixed."""
    depth: Path | None = None
    """Folder of known depth maps with the pictures' names (16-bit PNG, NPZ, EXR, PFM)."""
    depth_scale: float | None = None
    """Factor from stored integers to metres for 16-bit depth PNGs; default 0.001 (millimetres)."""
    depth_source: Literal["auto", "given", "model", "stereo"] = "auto"
    """Where dense depth comes from; auto takes given depth where a picture has it, and elsewhere the network's with
    --model, else stereo. stereo works with a network's cameras too."""
    completion: Literal["none", "teacher"] = "none"
    """teacher: a network fills what stereo leaves open, told the triangulated points and part of the stereo
    depth, where it is sure and another view agrees."""
    completion_model: str = ""
    """Weights of that network: a file, or a packaged name (metric-teacher-mini)."""
    masks: Path | None = None
    """Folder of masks with the pictures' names; black (0) pixels are not used."""
    video_frames: int = 60
    """Most frames to take from a video."""
    ordered: bool = False
    """The pictures are in walking order (a video always is): match neighbours instead of all pairs."""
    features: Literal["sift", "aliked-lightglue", "superpoint-lightglue", "disk-lightglue"] = "sift"
    """Feature matcher; learned ones need their weights on this machine."""
    mapper: Literal["incremental", "global"] = "incremental"
    """Structure-from-motion solver."""
    retries: bool = True
    """Try harder settings when pictures stay unregistered."""
    quality: Literal["fast", "default", "fine", "strict"] = "default"
    """Depth profile: fewer neighbours (fast), slanted-plane refinement (fine), precise pixels only (strict)."""
    depth_width: int = 0
    """Longer side of the depth maps in pixels; 0 chooses 512 (fast: 384), and the pictures' own size for a network."""
    mesh: bool = True
    """Fuse the depth maps into a mesh."""
    mesh_quality: Literal["fused", "neural"] = "fused"
    """fused: surface of the depth maps. neural: through a volumetric network that also sees the pictures
    (--mesh-weights); it needs a scene in metres."""
    mesh_weights: Path | None = None
    """Weights of that network."""
    mesh_faces: int = 500_000
    """Most triangles in mesh.glb and mesh.ply; 0 keeps all."""
    texture: Literal["vertex", "atlas", "none"] = "vertex"
    """Colour of the mesh: per vertex, a baked texture in mesh.glb, or none."""
    voxel_size: float | None = None
    """Fusion voxel in scene units; chosen from the scene when not given."""
    fuser: Literal["auto", "open3d", "torch"] = "auto"
    """Fusion back end; auto takes Open3D when it is installed."""
    splats: bool = True
    """Also write splats.ply, Gaussians initialised from the points, for splat trainers."""
    device: str = "auto"
    """cpu, cuda, mps or auto."""
    seed: int = 0
    """Seed of everything random."""
    max_memory: float | None = None
    """Refuse work that is predicted to need more than this many GiB."""
    overwrite: bool = False
    """Replace an earlier result in the output folder."""
    multiview: MultiviewConfig = field(default_factory=MultiviewConfig)
    """A multi-view network instead of structure from motion."""

    def __post_init__(self) -> None:
        if self.voxel_size is not None and not self.voxel_size > 0:
            raise InputError(f"voxel size {self.voxel_size} is not positive")
        if self.depth_width and not 64 <= self.depth_width <= 4096:
            raise InputError(f"depth width {self.depth_width} is outside 64..4096")
        if self.video_frames < 2:
            raise InputError("a video needs at least 2 frames to reconstruct", remedy="raise --video-frames")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} is negative", remedy="give a seed of 0 or more")
        if self.mesh_faces < 0:
            raise InputError("the number of mesh faces cannot be negative")
        if self.max_memory is not None and not self.max_memory > 0:
            raise InputError(f"--max-memory {self.max_memory:g} is not positive", remedy="give it in GiB")

    def check(self) -> None:
        """Refuse options that would be ignored; separate, because a network may be passed in later.

        Raises:
            InputError: options of a network without one, or of structure from motion with one.
        """
        if self.mesh_quality == "neural" and self.mesh_weights is None:
            raise InputError(
                "--mesh-quality neural needs a volumetric network, and none comes with this copy",
                remedy="name trained weights with --mesh-weights (relief3d train volume), or drop it",
            )
        if self.mesh_weights is not None and (self.mesh_quality != "neural" or not self.mesh):
            raise InputError("--mesh-weights belongs to --mesh-quality neural", remedy="add it, or drop both")
        if self.mesh_weights is not None and not self.mesh_weights.is_file():
            raise InputError(
                "there are no such weights", path=self.mesh_weights, remedy="check --mesh-weights"
            )
        if self.completion == "none" and self.completion_model:
            raise InputError("--completion-model needs a completion", remedy="add --completion teacher")
        if self.completion != "none" and (
            self.depth_source in ("given", "model") or (self.multiview.active and self.depth_source == "auto")
        ):
            raise InputError("--completion fills stereo depth", remedy="add --depth-source stereo")
        if not self.multiview.active:
            wanting = self.multiview.changed()
            if self.depth_source == "model":
                wanting.insert(0, "--depth-source model")
            if wanting:
                raise InputError(f"{wanting[0]} needs a network", remedy="name it with --model")
            return
        unused = {
            "--poses refine": self.poses == "refine",
            f"--features {self.features}": self.features != "sift",
            f"--mapper {self.mapper}": self.mapper != "incremental",
        }
        for option, used in unused.items():
            if used:
                raise InputError(
                    f"{option} belongs to structure from motion and does nothing with a network",
                    remedy="drop it, or drop --model",
                )

    @classmethod
    def of(cls, **options: Any) -> ReconstructConfig:
        """From single options by name, those of the network included: ``of(quality="fast", model="vggt")``.

        Raises:
            InputError: an option that does not exist.
        """
        inner = {f.name for f in dataclasses.fields(MultiviewConfig)}
        outer = {f.name for f in dataclasses.fields(cls)}
        unknown = [name for name in options if name not in inner | outer]
        if unknown:
            raise InputError(f"there is no option '{unknown[0]}'")
        network = {name: value for name, value in options.items() if name in inner}
        rest = {name: value for name, value in options.items() if name in outer}
        if network:
            if "multiview" in rest:
                raise InputError("give either multiview or its single options, not both")
            rest["multiview"] = MultiviewConfig(**network)
        return cls(**rest)

    def resolved_depth_width(self) -> int:
        """The longer side of depth maps in pixels."""
        return self.depth_width or (384 if self.quality == "fast" else 512)

    def fingerprint(self) -> dict[str, str]:
        """Hash of the options that shape each stage, so that a resumed run knows what is still good."""
        groups = {
            "cameras": (
                "cameras", "poses", "depth", "depth_scale", "masks", "video_frames", "ordered", "features",
                "mapper", "retries", "seed", "multiview",
            ),
            "depth": ("depth_source", "quality", "depth_width", "completion", "completion_model"),
            "mesh": ("mesh", "mesh_quality", "mesh_weights", "mesh_faces", "texture", "voxel_size", "fuser", "splats"),
        }  # fmt: skip
        out: dict[str, str] = {}
        chain = ""
        values = dataclasses.asdict(self)
        for stage, names in groups.items():
            chain += json.dumps({name: str(values[name]) for name in names}, sort_keys=True)
            out[stage] = hashlib.sha256(chain.encode()).hexdigest()[:16]
        return out
