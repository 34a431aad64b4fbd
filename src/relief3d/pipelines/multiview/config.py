"""Options of reconstruction by a multi-view network; importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relief3d.core.errors import InputError

PATCH = 14
ARCHITECTURE_NAMES = ("vggt", "pi3", "pi3x", "reliev3r")
UNTRAINED = "UNTRAINED"
"""Label of every result that random weights made."""


@dataclass(frozen=True)
class MultiviewConfig:
    """Which network predicts cameras and depth, and how it runs; the default is no network."""

    model: str = ""
    """Multi-view network: vggt, pi3, pi3x, reliev3r, a published name ('relief3d models list') or a file of weights;
    empty: structure from motion and dense stereo, without any network."""
    weights: Path | None = None
    """File of weights for --model vggt, pi3, pi3x or reliev3r, instead of the published ones."""
    model_size: Literal["nano", "micro", "mini", "small", "full"] = "full"
    """Size of the network that a file of weights (or --untrained) is for; published weights are full."""
    untrained: bool = False
    """Random weights: tests the chain, and the result means nothing; it is labelled UNTRAINED everywhere."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the transformer; auto: bfloat16 on accelerators that have it, else float32."""
    preprocess: Literal["auto", "vggt-crop", "vggt-pad", "square", "pi3", "keep"] = "auto"
    """How pictures become the network's; auto: as the network was trained (vggt cuts top and bottom off tall pictures),
    or keep when --side is given to pi3."""
    side: int = 0
    """Width or longer side of the network's pictures, a multiple of 14; 0: its own (518, or 255,000 pixels)."""
    chunk: int = 0
    """Frames per pass of the network, at least 2; 0: all at once when they fit in memory, else chunks that do."""
    overlap: int = 0
    """Frames that neighbouring chunks share; 0: half of the chunk."""
    loops: bool = True
    """In chunked runs, look for places seen again and close the loops."""
    attention: Literal["exact", "merged", "sparse"] = "exact"
    """Attention across views: exact, or an approximation (merged tokens, sparse blocks) for many views."""
    refine: Literal["auto", "on", "off"] = "auto"
    """Bundle adjustment of the predicted cameras with classical matches; auto: with 3 to 300 views, when pycolmap is
    installed and the poses were not given. Kept only where it is better."""

    def __post_init__(self) -> None:
        named = self.model in ARCHITECTURE_NAMES
        if self.side and (self.side < PATCH or self.side % PATCH):
            near = max(PATCH, round(self.side / PATCH) * PATCH)
            raise InputError(f"--side {self.side} is not a multiple of {PATCH}", remedy=f"use {near}")
        if self.chunk < 0 or self.chunk == 1:
            raise InputError(f"--chunk {self.chunk} is not possible", remedy="use 0 or at least 2 frames")
        if self.overlap < 0:
            raise InputError(
                f"--overlap {self.overlap} is not possible", remedy="use 0 (half of the chunk) or more frames"
            )
        if self.chunk and self.overlap >= self.chunk:
            raise InputError(
                f"--overlap {self.overlap} leaves nothing new in a chunk of {self.chunk}",
                remedy="use a smaller overlap",
            )
        if not self.model and (self.untrained or self.weights is not None or self.model_size != "full"):
            raise InputError("these options need a network", remedy="name it with --model")
        if self.untrained and self.weights is not None:
            raise InputError("--untrained and --weights contradict each other", remedy="drop one of them")
        if self.untrained and not named:
            raise InputError(
                f"--untrained builds a network by name, and '{self.model}' is a file or published weights",
                remedy=f"use --model {', '.join(ARCHITECTURE_NAMES)}",
            )
        if self.untrained and self.refine == "on":
            raise InputError(
                "--refine on has nothing to refine in random weights", remedy="use --refine off or auto"
            )
        if self.weights is not None and not named:
            raise InputError(
                f"--weights needs the name of a network, not '{self.model}'",
                remedy=f"use --model {', '.join(ARCHITECTURE_NAMES)}, or --model FILE alone",
            )

    def files(self) -> tuple[Path, ...]:
        """Files of weights whose change is another result."""
        named = self.weights or (Path(self.model) if self.model else None)
        return (named,) if named is not None and named.is_file() else ()

    def changed(self) -> list[str]:
        """Options that do nothing without a network, as they are written on the command line."""
        options = {
            "--side": self.side,
            "--chunk": self.chunk,
            "--overlap": self.overlap,
            "--attention": self.attention != "exact",
            "--preprocess": self.preprocess != "auto",
            "--precision": self.precision != "auto",
            "--refine on": self.refine == "on",
            "--no-loops": not self.loops,
        }
        return [name for name, changed in options.items() if changed]

    @property
    def active(self) -> bool:
        """Whether a network is used at all."""
        return bool(self.model)
