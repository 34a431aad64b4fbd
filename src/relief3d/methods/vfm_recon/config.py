"""Options of scale alignment and depth reprojection, with the defaults of the specification's section 15."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from relief3d.core.errors import InputError
from relief3d.geometry.scale_graph import ScaleGraphOptions
from relief3d.geometry.triangulation import TriangulationGates

OverlapMode = Literal["blend", "centre", "all"]
Units = Literal["metric", "pose"]
InvalidEdge = Literal["none", "unit"]


@dataclass(frozen=True)
class SubmapConfig:
    """How keyframes are cut into submaps, each of which gets its depth in one pass of the network.

    Attributes:
        size: keyframes per submap, n.
        overlap: keyframes shared with the next submap, o; 1 <= o < n.
    """

    size: int = 8
    overlap: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.overlap < self.size:
            raise InputError(
                f"submaps of {self.size} frames cannot overlap by {self.overlap}",
                remedy="choose an overlap of at least 1 and below the size",
            )


LONG_INDOOR = SubmapConfig(16, 4)
"""For long indoor scans (the paper's choice on ScanNet; that the overlap stays 4 is our reading)."""


@dataclass(frozen=True)
class PairConfig:
    """Which keyframes of a submap are matched.

    Attributes:
        reach: pairs (i, j) with j - i up to this.
        most: per submap, the best by the keyframe penalty; 0 takes 22 for 8 frames and 40 for 16.
    """

    reach: int = 4
    most: int = 0

    def limit(self, size: int) -> int:
        """Most pairs of a submap of ``size`` frames."""
        return self.most or (22 if size <= 8 else round(22 + (size - 8) * 18 / 8))


@dataclass(frozen=True)
class MaskConfig:
    """Pixels whose depth is believed (the set Omega of the paper).

    Attributes:
        confidence_percentile: the lowest share of a frame's confidences that is dropped, in percent.
        edge_ratio: largest over smallest depth in 3 x 3 pixels beyond which a pixel lies at an edge.
        neighbour_ratio: the same among the four pixels around a sample.
    """

    confidence_percentile: float = 10.0
    edge_ratio: float = 1.1
    neighbour_ratio: float = 1.05


@dataclass(frozen=True)
class PriorConfig:
    """The scale of one submap from triangulated points (Eq. 1).

    Attributes:
        gates: which points are kept.
        sampson_px: matches farther than this from their epipolar line, at a picture 640 wide, are dropped before
            triangulation; 0 keeps them.
        weighted: weigh samples by sin(parallax) * score; False is the paper's plain median.
        second_pass: drop what lies beyond 3 robust deviations and take the median again.
        min_samples: fewer give no prior.
        half_samples: number at which a prior has half its weight.
        spread: robust deviation of the log ratios at which a prior has half its weight.
        uniform: the paper's one weight for all submaps.
    """

    gates: TriangulationGates = field(default_factory=TriangulationGates)
    sampson_px: float = 3.0
    weighted: bool = True
    second_pass: bool = True
    min_samples: int = 10
    half_samples: float = 50.0
    spread: float = 0.10
    uniform: bool = False


@dataclass(frozen=True)
class EdgeConfig:
    """The ratio of two submaps from the frames they share (Eq. 2-4).

    Attributes:
        near, far: limits of usable depth, times the median depth of the first submap.
        min_pixels: fewer common pixels make an edge invalid (a tenth of the shared pixels, if that is less).
        max_spread: a larger robust deviation of the log ratio makes an edge invalid.
        spread: deviation at which an edge has half its weight.
        most_pixels: pixels that take part, evenly taken; the specification allows up to 200,000, a median needs few.
        invalid: ``none`` leaves invalid edges out; ``unit`` is the paper's ratio of 1.
    """

    near: float = 1e-3
    far: float = 20.0
    min_pixels: int = 1000
    max_spread: float = 0.5
    spread: float = 0.05
    most_pixels: int = 50_000
    invalid: InvalidEdge = "none"


@dataclass(frozen=True)
class OverlapConfig:
    """The depth of a keyframe that lies in several submaps.

    Attributes:
        mode: ``blend`` averages the submaps' log depth pixel by pixel, ``centre`` takes the submap in which the frame
            is nearest to the middle (to reproduce the paper), ``all`` keeps every prediction with weight 1/k.
        max_difference: ``blend`` drops pixels whose predictions differ by more.
        per_frame: correct every frame by one more factor after the global solve (standard deviation 2 %).
        spatial_order: correct every frame by a polynomial in the pixel position of the log depth: 0 none, 1 plane,
            2 quadratic. Held back by the same prior; needs samples or shared frames.
    """

    mode: OverlapMode = "blend"
    max_difference: float = 0.05
    per_frame: bool = False
    spatial_order: Literal[0, 1, 2] = 0


@dataclass(frozen=True)
class LoopConfig:
    """Loop submaps: places seen again, found by poses and aligned depth.

    Attributes:
        enabled: look for loops.
        stride: pixels between the points that are carried from one frame to the other.
        agreement: largest relative difference of depth of a point that both see.
        overlap: share of the points that both must see, both ways.
        apart: a loop is not looked for where one was found within so many frames at both ends.
        most: loops in all.
    """

    enabled: bool = True
    stride: int = 16
    agreement: float = 0.10
    overlap: float = 0.3
    apart: int = 25
    most: int = 50


@dataclass(frozen=True)
class AlignConfig:
    """Everything that :func:`relief3d.methods.vfm_recon.align.align_scene` needs to know.

    Attributes:
        units: ``metric`` when the poses are in metres, ``pose`` when their unit is unknown.
        graph: of the global solve; its ``prior_weight`` is the paper's lambda.
    """

    units: Units = "metric"
    submaps: SubmapConfig = field(default_factory=SubmapConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    priors: PriorConfig = field(default_factory=PriorConfig)
    edges: EdgeConfig = field(default_factory=EdgeConfig)
    graph: ScaleGraphOptions = field(default_factory=ScaleGraphOptions)
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    loops: LoopConfig = field(default_factory=LoopConfig)
