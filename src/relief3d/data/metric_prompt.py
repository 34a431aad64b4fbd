"""Prompts that users bring: maps, point clouds, low-resolution sensors, checked before anything is computed from them.

A prompt fixes the scale of the result, so what cannot be metres is refused: wrong units, negative depth, points that
all miss the picture. What can be repaired without guessing (single unusable values) is dropped and noted in ``notes``,
which a command shows to the user.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.contract import SparseDepth
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.data.nearest_points import nearest_on_grid, prompt_points
from relief3d.data.prompt_alignment import MIN_DEPTH, NEIGHBOURS
from relief3d.data.prompt_noise import scatter_nearest
from relief3d.data.prompt_patterns import Prompt, lidar_hits, low_resolution_prompt
from relief3d.data.prompt_sampling import scatter_prompt
from relief3d.geometry.point_splat import MIN_Z, drop_occluded, splat_depth
from relief3d.geometry.transforms import transform_points
from relief3d.io.depth import MAX_DEPTH

Unit = Literal["m", "cm", "mm"]
METRES: dict[Unit, float] = {"m": 1.0, "cm": 0.01, "mm": 0.001}
PLAUSIBLE = (0.01, 300.0)
"""Metres between which the median depth of a prompt of unstated unit must lie."""
USUAL = 80.0
"""Metres above which such a median is accepted with a note: centimetres of a room lie there."""
_ASPECT = 0.01
_MANY_LOST = 0.5
_COHERENT = 0.8
_ENOUGH_TO_JUDGE = 50


@dataclass(frozen=True)
class MetricPrompt:
    """A checked sparse prompt of one picture. Use the constructors below.

    Attributes:
        depth: (H, W) float32 metres, 0 where nothing is known.
        mask: (H, W) bool, ``depth > 0``.
        K: (3, 3) pixels of the picture, or None.
        notes: sentences for the user about what was dropped or looks odd.
    """

    depth: Tensor
    mask: Tensor
    K: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def points(self) -> int:
        """Number of prompt pixels."""
        return int(self.mask.sum())

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture."""
        return self.depth.shape[0], self.depth.shape[1]

    def at_size(self, size: tuple[int, int]) -> MetricPrompt:
        """The prompt for the picture stretched to (h, w); the nearest point of a pixel remains."""
        depth = scatter_prompt(self.depth, size)
        K = self.K
        if K is not None:
            factor = torch.tensor([size[1] / self.size[1], size[0] / self.size[0], 1.0], dtype=K.dtype)
            K = K * factor[:, None].to(K.device)
        return replace(self, depth=depth, mask=depth > 0, K=K)

    @staticmethod
    def from_depth_map(
        depth: Tensor,
        *,
        size: tuple[int, int] | None = None,
        valid: Tensor | None = None,
        count: int | None = None,
        seed: int = 0,
        unit: Unit | None = None,
        K: Tensor | None = None,
        least: int = NEIGHBOURS,
    ) -> MetricPrompt:
        """From a map that is 0 (or NaN) where nothing is known.

        Args:
            depth: (h, w) of any number type.
            size: (H, W) of the picture; a map of another size with the same shape is scattered into it.
            valid: (h, w) bool, in addition.
            count: keep that many of the points at random.
            seed: of ``count``.
            unit: of the values; None expects metres and refuses what cannot be.
            K: (3, 3) of the picture.
            least: fewest points; fewer than five only make sense for a fit of the scale alone.

        Raises:
            InputError: no usable or too few points, an implausible unit, or a shape that is not the picture's.
        """
        if depth.ndim != 2 or (valid is not None and valid.shape != depth.shape):
            raise InputError(f"a prompt must be a map (H, W), got {tuple(depth.shape)}")
        values, notes = _metres(
            depth if valid is None else torch.where(valid, depth, torch.zeros_like(depth)), unit
        )
        if size is not None and tuple(values.shape) != tuple(size):
            values, notes = _fitted_size(values, size, notes)
        if count is not None:
            chosen = torch.nonzero(values.reshape(-1) > 0)[:, 0]
            order = torch.randperm(len(chosen), generator=torch_generator(seed))[:count]
            kept = torch.zeros(values.numel(), dtype=torch.bool, device=values.device)
            kept[chosen[order.to(chosen.device)]] = True
            values = torch.where(kept.reshape(values.shape), values, torch.zeros_like(values))
        return _checked(values, K, notes, least)

    @staticmethod
    def from_sparse(
        sparse: SparseDepth, size: tuple[int, int], *, K: Tensor | None = None, least: int = NEIGHBOURS
    ) -> MetricPrompt:
        """From points of the data contract (pixel centres at +0.5), such as structure from motion.

        Raises:
            InputError: the points are not metric, or as :meth:`from_depth_map`.
        """
        if not sparse.metric:
            raise InputError(
                "the sparse depth is not in metres", remedy="scale it first, or use it as relative depth"
            )
        z, notes = _metres(sparse.z, "m")
        col, row = sparse.xy.floor().unbind(-1)
        inside = (row >= 0) & (row < size[0]) & (col >= 0) & (col < size[1])
        notes = _lost(int((~inside).sum()), len(z), notes)
        kept = inside & (z > 0)
        depth = scatter_nearest(size[0], size[1], row[kept].long(), col[kept].long(), z[kept])
        return _checked(depth, K, notes, least)

    @staticmethod
    def from_point_cloud(
        xyz: Tensor,
        K: Tensor,
        cam_from_sensor: Tensor,
        size: tuple[int, int],
        *,
        unit: Unit | None = None,
        occlusion: bool = False,
        z_min: float = MIN_Z,
        least: int = NEIGHBOURS,
    ) -> MetricPrompt:
        """From points of a ranging sensor, through its calibration; the nearest point of a pixel remains.

        Args:
            xyz: (N, 3) in the sensor's frame.
            K: (3, 3) pixels of the undistorted picture, centres at +0.5.
            cam_from_sensor: (4, 4) in metres.
            size: (H, W) of the picture.
            unit: of ``xyz``.
            occlusion: remove points that a nearer neighbour should hide.
            z_min: nearer points are left out.
            least: fewest points.

        Raises:
            InputError: shapes are wrong, or no point falls into the picture (the message says where they are).
        """
        if xyz.ndim != 2 or xyz.shape[1] != 3 or tuple(cam_from_sensor.shape) != (4, 4):
            raise InputError(
                f"points must be (N, 3) and the calibration (4, 4), got {tuple(xyz.shape)} and "
                f"{tuple(cam_from_sensor.shape)}"
            )
        finite = torch.isfinite(xyz).all(-1)
        points = transform_points(cam_from_sensor.double(), xyz[finite].double() * METRES[unit or "m"])
        behind = int((points[:, 2] <= z_min).sum())
        depth = splat_depth(points, K.double(), size, z_min=z_min).float()
        if not bool((depth > 0).any()):
            raise InputError(
                f"none of the {len(xyz)} prompt points falls into the picture: {behind} lie behind the camera, "
                f"{len(points) - behind} beside it",
                remedy="check the calibration (camera from sensor), the axes and the intrinsics",
            )
        depth, notes = _metres(depth, unit if unit is None else "m")
        notes = _lost(len(xyz) - len(points), len(xyz), notes, "are not finite")
        if occlusion:
            depth = drop_occluded(depth)
        return _checked(depth, K, notes, least)

    @staticmethod
    def from_low_res(
        depth: Tensor, size: tuple[int, int], *, unit: Unit | None = None, K: Tensor | None = None
    ) -> MetricPrompt:
        """From a low-resolution map (h, w) that covers the picture: value (i, j) goes to (floor(i H/h), floor(j W/w)).

        Raises:
            InputError: the map is larger than the picture, or as :meth:`from_depth_map`.
        """
        values, notes = _metres(depth, unit)
        return _checked(low_resolution_prompt(values, *size).depth, K, notes, NEIGHBOURS)

    @staticmethod
    def from_lidar_pattern(
        depth: Tensor, lines: int, *, unit: Unit | None = None, K: Tensor | None = None
    ) -> MetricPrompt:
        """Lines of a virtual lidar out of a dense map (H, W).

        Raises:
            InputError: as :meth:`from_depth_map`.
        """
        values, notes = _metres(depth, unit)
        hits = lidar_hits(values.shape[0], values.shape[1], lines).to(values.device)
        return _checked(torch.where(hits, values, torch.zeros_like(values)), K, notes, NEIGHBOURS)

    @staticmethod
    def from_prompt(prompt: Prompt, K: Tensor | None = None) -> MetricPrompt:
        """From a test pattern."""
        return _checked(
            torch.where(prompt.mask, prompt.depth, torch.zeros_like(prompt.depth)), K, (), NEIGHBOURS
        )


def coherence(depth: Tensor) -> float:
    """How alike neighbouring points are: median |ln ratio| to the nearest other point over that to any other point.

    Well below 1 for a scene, about 1 for depths that have nothing to do with their place; NaN for a constant prompt or
    fewer than three points. ``depth`` (H, W), 0 where unknown.
    """
    mask = depth > 0
    count = int(mask.sum())
    if count < 3:
        return math.nan
    points = prompt_points(mask[None])
    place, _ = nearest_on_grid(points, (depth.shape[0], depth.shape[1]), 2)
    own = points.flat[0]
    log = depth.reshape(-1)[own].log()
    beside = place[1, 0].reshape(-1)[own]
    near = (log - log[beside]).abs().median()
    any_other = (log - log[torch.randperm(count, generator=torch_generator(0)).to(log.device)]).abs().median()
    return float(near / any_other) if float(any_other) > 1e-6 else math.nan


def _metres(values: Tensor, unit: Unit | None) -> tuple[Tensor, tuple[str, ...]]:
    """float32 metres with 0 for unusable values, and notes; refuses what cannot be metres."""
    if unit is not None and unit not in METRES:
        raise InputError(f"unknown unit '{unit}'", remedy="use m, cm or mm")
    if unit is None and not values.is_floating_point():
        raise InputError(
            "a prompt of whole numbers does not say its unit", remedy="name it: mm for usual depth pictures"
        )
    values = values.to(torch.float64)
    nonzero = values != 0
    finite = torch.isfinite(values)
    usable = finite & (values > 0)
    given = int((nonzero & ~torch.isnan(values)).sum())
    negative = int((finite & (values < 0)).sum())
    if given == 0:
        raise InputError("the prompt holds no points")
    if negative > _MANY_LOST * given:
        raise InputError(
            f"{negative} of {given} prompt depths are negative",
            remedy="depth is positive in front of the camera; turn the axis",
        )
    metres = torch.where(usable, values * METRES[unit or "m"], torch.zeros_like(values))
    metres = torch.where(metres > MIN_DEPTH, metres, torch.zeros_like(metres))
    if not bool((metres > 0).any()):
        raise InputError("no prompt depth is finite and positive")
    notes = () if not negative else (f"{negative} negative prompt depths were dropped",)
    endless = int(torch.isinf(values).sum())
    notes = notes if not endless else (*notes, f"{endless} infinite prompt depths were dropped")
    absurd = int((metres >= MAX_DEPTH).sum())
    if absurd:
        # Renderers write such numbers where there is nothing.
        notes = (*notes, f"{absurd} prompt depths of {MAX_DEPTH:g} m or more were dropped")
        metres = torch.where(metres < MAX_DEPTH, metres, torch.zeros_like(metres))
        if not bool((metres > 0).any()):
            raise InputError(
                f"all prompt depths are {MAX_DEPTH:g} m or more", remedy="check its unit: m, cm or mm"
            )
    return metres.float(), notes if unit is not None else (*notes, *_doubts(metres))


def _doubts(metres: Tensor) -> tuple[str, ...]:
    """Notes about a prompt of unstated unit that may be in metres or not; refuses what cannot be.

    Raises:
        InputError: the median depth is implausible.
    """
    known = metres[metres > 0]
    middle = float(known.median())
    if not PLAUSIBLE[0] <= middle <= PLAUSIBLE[1]:
        guess = "it looks like millimetres" if middle > PLAUSIBLE[1] else "it is hardly in metres"
        raise InputError(
            f"the median depth of the prompt is {middle:.4g} m: {guess}",
            remedy="name its unit: m, cm or mm",
        )
    if middle > USUAL:
        return (f"the median depth of the prompt is {middle:.4g} m: name its unit if these are no metres",)
    if len(known.unique()) > 2 and bool((known == known.round()).all()):
        return ("all depths of the prompt are whole numbers: name its unit if these are no metres",)
    return ()


def _fitted_size(
    values: Tensor, size: tuple[int, int], notes: tuple[str, ...]
) -> tuple[Tensor, tuple[str, ...]]:
    (h, w), (height, width) = values.shape, size
    if abs(math.log((w / h) / (width / height))) > _ASPECT:
        raise InputError(
            f"the prompt has {w} x {h} pixels, the picture {width} x {height}, another shape",
            remedy="give a prompt of the picture's size",
        )
    return scatter_prompt(values, size), (
        *notes,
        f"the prompt of {w} x {h} pixels was brought to the picture's {width} x {height}",
    )


def _lost(
    lost: int, total: int, notes: tuple[str, ...], how: str = "lie outside the picture"
) -> tuple[str, ...]:
    if total and lost == total:
        raise InputError(
            f"all {total} prompt points {how}", remedy="check their positions (column, row) in pixels"
        )
    return (*notes, f"{lost} of {total} prompt points {how}") if lost else notes


def _checked(depth: Tensor, K: Tensor | None, notes: tuple[str, ...], least: int) -> MetricPrompt:
    mask = depth > MIN_DEPTH
    count = int(mask.sum())
    if count < max(1, least):
        raise InputError(
            f"not enough known points: {count} of at least {max(1, least)}",
            remedy="give a prompt with more measured pixels inside the picture",
        )
    if count >= _ENOUGH_TO_JUDGE:
        alike = coherence(depth)
        if alike > _COHERENT:
            notes = (
                *notes,
                "neighbouring prompt points are as different as distant ones: the prompt may consist of outliers",
            )
    return MetricPrompt(depth.float(), mask, K, notes)
