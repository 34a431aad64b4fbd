"""What dense stereo returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from relief3d.core.contract import Camera, Depth
from relief3d.stereo.neighbours import DepthRange, Neighbour


@dataclass(frozen=True)
class StereoDepth:
    """Depth of one view.

    Attributes:
        index: position in ``Scene.views``.
        name: of the view.
        camera: pinhole camera at stereo resolution (the size of the maps).
        depth: z-depth with confidence, only where it passed all checks.
        normals: (H, W, 3) float32 unit, camera frame, facing the camera, zeros where unknown.
        agreement: (H, W) int16 neighbours that confirm the depth (0 where not kept).
        raw: (H, W) float32 z-depth before the checks, 0 where there is none.
        neighbours: source views; their ``index`` points into ``Scene.views``.
        range: depths searched.
        kept: share of pixels with depth.
        strict_kept: share of pixels that two neighbours confirm within 1 px and 1 %.
    """

    index: int
    name: str
    camera: Camera
    depth: Depth
    normals: Tensor
    agreement: Tensor
    raw: Tensor
    neighbours: tuple[Neighbour, ...]
    range: DepthRange
    kept: float
    strict_kept: float


@dataclass(frozen=True)
class StereoReport:
    """Facts about a run.

    Attributes:
        poses_doubtful: few pixels agree although views overlap well; the cameras are probably wrong.
        verdict: one sentence for people when ``poses_doubtful`` or when no view got depth, else None.
        strict_share: mean strict-kept share over views with at least four neighbours (None: no such view).
        checked_views: how many views that share was measured on.
        kept_share: mean kept share over the views that got depth.
        seconds: wall time.
    """

    poses_doubtful: bool
    verdict: str | None
    strict_share: float | None
    checked_views: int
    kept_share: float
    seconds: float


@dataclass(frozen=True)
class StereoResult:
    """Depth per view of a scene; iterating gives a :class:`StereoDepth` or None for each view in order.

    Attributes:
        views: one entry per view of the scene.
        reasons: why a view has no depth (None where it has).
        report: facts about the run.
    """

    views: tuple[StereoDepth | None, ...]
    reasons: tuple[str | None, ...]
    report: StereoReport = field(compare=False)

    def __iter__(self) -> Iterator[StereoDepth | None]:
        return iter(self.views)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> StereoDepth | None:
        return self.views[index]
