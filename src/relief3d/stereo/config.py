"""Settings of the dense stereo stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from relief3d.core.errors import InputError

Profile = Literal["fast", "default", "fine", "strict"]


@dataclass(frozen=True)
class StereoConfig:
    """How depth is estimated from posed, undistorted views.

    Grey levels are in [0, 1]; matching costs are ``1 - ZNCC`` clipped to [0, 1]; angles are degrees.

    Attributes:
        max_width: longer side of the pictures in stereo, in pixels; smaller pictures are not enlarged.
        planes: number of depth planes, evenly spaced in inverse depth; 0 takes 96, or 128 from 512 px.
        neighbours: most source views per reference view.
        best: number of lowest costs averaged per plane; 0 takes ceil(n / 2) of the n neighbours.
        window: odd side of the ZNCC window in pixels.
        variance_floor: added to the window variances, so that flat windows match badly instead of at random.
        block: planes matched at a time; 0 takes 2 on the CPU (fits its cache) and 16 elsewhere.
        sgm: aggregate costs along 8 directions (off only for experiments).
        p1, p2: penalties for a change of one plane, and of more, between neighbouring pixels.
        edge_scale: grey difference that halves ``p2`` (depth edges like picture edges).
        range_low, range_high: percentiles of the sparse depths that give the depth range.
        widen_near, widen_far: factors on those two percentiles.
        min_angle, max_angle, best_angle: triangulation angles a neighbour may have, and the preferred one.
        min_overlap: least share of the reference's points that a neighbour must see.
        min_neighbours: with fewer usable neighbours a view is marked as not reconstructable.
        check_pixels, check_relative: a neighbour agrees when the loop reference -> neighbour -> reference
            closes within so many pixels and within this relative depth.
        min_agreeing: neighbours that must agree; lowered to ``min_agreeing_few`` when the view has fewer
            than ``few_neighbours`` neighbours.
        single_witness: one agreeing neighbour (within 1 px and 1 %) is enough for a point that at most so many
            neighbours' pictures contain, if none contradicts it: the rim of the scene; 0 switches this off.
        contradiction: how many confirmations one neighbour outweighs that sees something well behind the point.
        average: replace a kept depth by the mean over the agreeing views.
        min_component: kept regions with fewer pixels are dropped (speckles, and small patches of common
            mistakes); at most a hundredth of a small picture.
        component_step: planes by which adjacent pixels of one region may differ.
        edge_jump: second difference of inverse depth, in planes, above which a pixel lies on a depth edge
            and is dropped (fattened borders); 0 keeps them.
        refine_iterations: slanted-plane refinement passes (0: none).
        refine_neighbours: neighbours used by the refinement.
        pose_check_share: strict-kept share below which poses are reported as wrong.
        seed: for the random trials of the refinement.
    """

    max_width: int = 512
    planes: int = 0
    neighbours: int = 8
    best: int = 0
    window: int = 7
    variance_floor: float = 2.0 / 255.0**2
    block: int = 0
    sgm: bool = True
    p1: float = 0.08
    p2: float = 0.7
    edge_scale: float = 12.0 / 255.0
    range_low: float = 0.01
    range_high: float = 0.99
    widen_near: float = 0.75
    widen_far: float = 1.4
    min_angle: float = 2.0
    max_angle: float = 35.0
    best_angle: float = 10.0
    min_overlap: float = 0.15
    min_neighbours: int = 2
    check_pixels: float = 2.0
    check_relative: float = 0.02
    min_agreeing: int = 2
    min_agreeing_few: int = 1
    few_neighbours: int = 4
    single_witness: int = 2
    contradiction: float = 2.0
    average: bool = True
    min_component: int = 300
    component_step: float = 1.0
    edge_jump: float = 4.0
    refine_iterations: int = 0
    refine_neighbours: int = 4
    pose_check_share: float = 0.10
    seed: int = 0

    def __post_init__(self) -> None:
        checks: tuple[tuple[bool, str], ...] = (
            (self.max_width >= 32, "max_width must be at least 32"),
            (self.planes == 0 or self.planes >= 8, "planes must be 0 (automatic) or at least 8"),
            (self.neighbours >= 1, "neighbours must be at least 1"),
            (0 <= self.best <= self.neighbours, "best must lie between 0 and neighbours"),
            (self.window >= 3 and self.window % 2 == 1, "window must be odd and at least 3"),
            (self.variance_floor > 0, "variance_floor must be positive"),
            (self.block >= 0, "block must not be negative"),
            (0 <= self.p1 <= self.p2, "p1 must lie between 0 and p2"),
            (0 <= self.range_low < self.range_high <= 1, "range percentiles must be ordered within 0..1"),
            (0 < self.widen_near <= 1 <= self.widen_far, "widen_near must be <= 1 and widen_far >= 1"),
            (0 <= self.min_angle < self.max_angle, "min_angle must be below max_angle"),
            (self.check_pixels > 0 and self.check_relative > 0, "consistency tolerances must be positive"),
            (self.min_agreeing >= 0 and self.min_agreeing_few >= 0, "agreement counts must not be negative"),
        )
        for good, message in checks:
            if not good:
                raise InputError(f"stereo setting: {message}")

    @staticmethod
    def profile(name: Profile = "default", **changes: Any) -> StereoConfig:
        """A named profile with some fields changed.

        ``fast``: 384 px, 5 neighbours, best 2. ``default``: 512 px, 8 neighbours, 2 px / 2 %.
        ``strict``: 1 px / 1 %, at least 2 agreeing; what passes needs less filtering afterwards.
        ``fine``: strict tolerance and slanted-plane refinement, for exact cameras; three times the time.

        Raises:
            InputError: for an unknown name or impossible values.
        """
        strict = {
            "check_pixels": 1.0,
            "check_relative": 0.01,
            "contradiction": 1.0,
            "edge_jump": 8.0,
            "min_component": 16,
        }
        presets: dict[str, dict[str, Any]] = {
            "fast": {"max_width": 384, "neighbours": 5, "best": 2},
            "default": {},
            "strict": {**strict, "min_agreeing_few": 2, "single_witness": 0},
            "fine": {**strict, "refine_iterations": 2},
        }
        if name not in presets:
            raise InputError(f"unknown stereo profile '{name}'", remedy=f"choose one of {', '.join(presets)}")
        return StereoConfig(**{**presets[name], **changes})

    def replace(self, **changes: Any) -> StereoConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def plane_count(self, longer_side: int) -> int:
        """Planes used for pictures whose longer side is ``longer_side`` pixels."""
        if self.planes:
            return self.planes
        return 128 if longer_side >= 512 else 96

    def best_count(self, neighbours: int) -> int:
        """How many of ``neighbours`` costs are averaged."""
        wanted = self.best if self.best else (neighbours + 1) // 2
        return max(1, min(wanted, neighbours))

    def block_size(self, device_type: str) -> int:
        """Planes matched at a time on a kind of device."""
        if self.block:
            return self.block
        return 2 if device_type == "cpu" else 16

    def least_region(self, pixels: int) -> int:
        """Smallest region kept in a picture of so many pixels."""
        return min(self.min_component, max(8, pixels // 100))

    def needed_agreement(self, neighbours: int) -> int:
        """Agreeing neighbours required from a view with so many neighbours."""
        return self.min_agreeing_few if neighbours < self.few_neighbours else self.min_agreeing
