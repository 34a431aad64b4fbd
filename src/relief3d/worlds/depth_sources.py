"""Depth as real sources give it, made from exact depth: the three families that the teacher is trained on.

Reconstructed depth (multi-view stereo) has holes and mistakes where texture is weak, thick foreground edges, lost thin
things and a scale that drifts over the picture. Captured depth (time of flight, lidar) has a range, lines, lost dark
surfaces and edges beside those of the picture. Rendered depth is exact. Nothing is learned and nothing is measured
from real data: sizes are our choice, stand in the options, and are tested against the truth. Sizes in pixels are for
pictures 640 pixels wide and scale with the width.

Source: families of MetricAnything (specification 1.3) and the errors it names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.data.prompt_noise import PromptNoise, add_noise
from relief3d.data.prompt_patterns import lidar_hits
from relief3d.geometry.normals import depth_to_normals
from relief3d.geometry.projection import intrinsics
from relief3d.worlds.sensors import DepthSensor, sense_depth

Family = Literal["reconstructed", "captured", "rendered"]
Device = Literal["tof", "lidar", "sparse"]
FULL_WIDTH = 640
LEAST_RENDERED = 0.15


@dataclass(frozen=True)
class ReconstructedErrors:
    """Errors of multi-view stereo.

    Attributes:
        texture: mean brightness gradient per pixel (of 1) at which matching starts to fail.
        holes: share of pixels lost where there is no texture at all; textured pixels are lost a tenth as often.
        failures: share of pixels in patches of wrong depth, three times as many without texture.
        wrong: largest |ln ratio| of a wrong patch.
        fatten: pixels by which the foreground grows.
        fattened: share of the outlines that do.
        thin: things thinner than this many pixels may vanish.
        drift: standard deviation of ln scale over the picture.
        noise: standard deviation of inverse depth, as a share of its median, correlated over some pixels.
    """

    texture: float = 0.012
    holes: float = 0.75
    failures: float = 0.03
    wrong: float = 1.0
    fatten: float = 5.0
    fattened: float = 0.6
    thin: float = 4.0
    drift: float = 0.03
    noise: float = 0.01


@dataclass(frozen=True)
class CapturedErrors:
    """Errors of active sensors.

    Attributes:
        devices: share of each kind of sensor.
        lines: fewest and most lidar lines.
        shift: largest misregistration in pixels.
        noise: of ranges, standard deviation of ln depth.
        dark: albedo below which lidar returns become rare.
        dropout: share of lidar returns lost anyway.
        range_share: the sensor sees the nearest share of depths, between these two.
        sparse: share of pixels that a sparse source knows, between these two.
        outliers: share of wrong points of a sparse source.
        sensor: the time-of-flight camera (its near and far limits are replaced by ``range_share``).
    """

    devices: Mapping[Device, float] = field(
        default_factory=lambda: {"tof": 0.45, "lidar": 0.4, "sparse": 0.15}
    )
    lines: tuple[int, int] = (16, 64)
    shift: float = 4.0
    noise: float = 0.008
    dark: float = 0.06
    dropout: float = 0.08
    range_share: tuple[float, float] = (0.7, 1.0)
    sparse: tuple[float, float] = (0.01, 0.05)
    outliers: float = 0.02
    sensor: DepthSensor = field(default_factory=DepthSensor)

    def __post_init__(self) -> None:
        if strange := set(self.devices) - {"tof", "lidar", "sparse"}:
            raise InputError(f"there is no sensor '{sorted(strange)[0]}'", remedy="use tof, lidar or sparse")


RECONSTRUCTED = ReconstructedErrors()
CAPTURED = CapturedErrors()


@dataclass(frozen=True)
class SourceDepth:
    """One picture's depth from an imitated source.

    Attributes:
        depth: (H, W) metres, 0 where unknown.
        family: which.
        device: of the captured family, else the family's name.
    """

    depth: Tensor
    family: Family
    device: str

    @property
    def valid(self) -> Tensor:
        """(H, W) bool."""
        return self.depth > 0

    @property
    def synthetic(self) -> bool:
        """Every pixel can be believed (rendered)."""
        return self.family == "rendered"


def observe(
    family: Family,
    image: Tensor,
    depth: Tensor,
    K: Tensor,
    generator: torch.Generator,
    *,
    normals: Tensor | None = None,
    albedo: Tensor | None = None,
    reconstructed: ReconstructedErrors = RECONSTRUCTED,
    captured: CapturedErrors = CAPTURED,
) -> SourceDepth:
    """Depth of a picture as a source of that family would give it.

    Args:
        family: which.
        image: (3, H, W) RGB in [0, 1].
        depth: (H, W) exact metres, 0 for the sky.
        K: (3, 3) pixels.
        generator: on the device of ``depth``.
        normals: (H, W, 3) in the camera; from depth when None.
        albedo: (3, H, W) linear; the picture without its display curve when None.
        reconstructed: errors of that family.
        captured: errors of that family.

    Raises:
        InputError: unknown family.
    """
    if family == "rendered":
        return SourceDepth(depth.clone(), family, family)
    if family == "reconstructed":
        return SourceDepth(reconstruct_like(image, depth, generator, reconstructed), family, family)
    if family != "captured":
        raise InputError(f"unknown family '{family}'", remedy="use reconstructed, captured or rendered")
    names = list(captured.devices)
    shares = torch.tensor([captured.devices[n] for n in names], device=depth.device)
    device = names[int(torch.multinomial(shares, 1, generator=generator))]
    albedo = image.clamp(0, 1) ** 2.2 if albedo is None else albedo
    if device == "sparse":
        made = _sparse(depth, captured, generator)
    elif device == "lidar":
        made = _lidar(depth, albedo, captured, generator)
    else:
        if normals is None:
            normals, _ = depth_to_normals(depth, K.to(depth))
        made = _time_of_flight(depth, normals, albedo, K, captured, generator)
    return SourceDepth(made, family, device)


def draw_family(sizes: Mapping[Family, int], generator: torch.Generator) -> Family:
    """A family in proportion to the square root of its number of samples, rendered (if any) at least in 15 % of draws.

    Raises:
        InputError: no family has samples.
    """
    names = [n for n in sizes if sizes[n] > 0]
    if not names:
        raise InputError("no family has samples to draw from")
    weights = torch.tensor([math.sqrt(sizes[n]) for n in names], dtype=torch.float64)
    weights = weights / weights.sum()
    if "rendered" in names:
        at = names.index("rendered")
        if weights[at] < LEAST_RENDERED < 1 and len(names) > 1:
            weights = weights * (1 - LEAST_RENDERED) / (1 - weights[at])
            weights[at] = LEAST_RENDERED
    return names[int(torch.multinomial(weights, 1, generator=generator))]


def reconstruct_like(
    image: Tensor, depth: Tensor, generator: torch.Generator, errors: ReconstructedErrors = RECONSTRUCTED
) -> Tensor:
    """(H, W) metres of multi-view stereo; see :class:`ReconstructedErrors` and :func:`observe`."""
    height, width = depth.shape
    unit = width / FULL_WIDTH
    sky = depth <= 0
    inverse = torch.where(sky, torch.zeros_like(depth), 1 / depth.clamp_min(1e-3))
    weak = torch.exp(-texture_of(image, unit) / errors.texture)
    vanish = _field(height, width, 7, generator, depth.device) < 0.5
    inverse = torch.where(vanish, _without_thin(inverse, errors.thin * unit), inverse)
    grow = _field(height, width, 12, generator, depth.device) < errors.fattened
    inverse = torch.where(grow, _fattened(inverse, errors.fatten * unit), inverse)
    empty = inverse <= 0  # sky that no foreground has grown over
    middle = inverse[~sky].median() if bool((~sky).any()) else inverse.new_ones(())
    inverse = inverse + errors.noise * middle * _smooth(
        height, width, max(height // 4, 2), generator, depth.device
    )
    inverse = inverse * torch.exp(-errors.drift * _smooth(height, width, 3, generator, depth.device))
    # Patches of one wrong ratio each, on a coarse grid of which a few cells fail.
    ratio = torch.exp(errors.wrong * (2 * _cells(height, width, 10, generator, depth.device) - 1))
    ratio = torch.where(ratio > 1, ratio * 1.2, ratio / 1.2)
    failed = _field(height, width, 14, generator, depth.device) < errors.failures * (0.5 + weak)
    inverse = torch.where(failed, inverse * ratio, inverse)
    lost = _field(height, width, 16, generator, depth.device) < errors.holes * (0.1 + 0.9 * weak)
    lost = lost | empty | (inverse < 1e-4)
    return torch.where(lost, torch.zeros_like(depth), 1 / inverse.clamp_min(1e-4))


def texture_of(image: Tensor, unit: float = 1.0) -> Tensor:
    """(H, W) mean absolute brightness gradient around every pixel of (3, H, W), over 15 pixels times ``unit``."""
    grey = image.mean(0)[None, None]
    across = F.pad((grey[..., 1:] - grey[..., :-1]).abs(), (0, 1, 0, 0), mode="replicate")
    down = F.pad((grey[..., 1:, :] - grey[..., :-1, :]).abs(), (0, 0, 0, 1), mode="replicate")
    radius = max(1, round(7 * unit))
    return F.avg_pool2d(across + down, 2 * radius + 1, 1, radius, count_include_pad=False)[0, 0] / 2


def _without_thin(inverse: Tensor, size: float) -> Tensor:
    """Foreground thinner than ``size`` pixels replaced by what is around it (opening of inverse depth)."""
    radius = max(1, round(size / 2))
    flat = inverse[None, None]
    low = -F.max_pool2d(-flat, 2 * radius + 1, 1, radius)
    opened = F.max_pool2d(low, 2 * radius + 1, 1, radius)[0, 0]
    return torch.where(inverse > 1.1 * opened, opened, inverse)


def _fattened(inverse: Tensor, size: float) -> Tensor:
    """Foreground grown by ``size`` pixels over what is at least 5 % farther in inverse depth."""
    radius = max(1, round(size))
    grown = F.max_pool2d(inverse[None, None], 2 * radius + 1, 1, radius)[0, 0]
    return torch.where(grown > 1.05 * inverse, grown, inverse)


def _limit(depth: Tensor, errors: CapturedErrors, generator: torch.Generator) -> float:
    """The farthest depth a sensor sees."""
    low, high = errors.range_share
    share = low + (high - low) * float(torch.rand((), generator=generator, device=depth.device))
    known = depth[depth > 0]
    return float(torch.quantile(known[:: max(1, known.numel() // 10**6)], share)) if known.numel() else 1.0


def _shifts(
    width: int, errors: CapturedErrors, generator: torch.Generator, device: torch.device
) -> tuple[int, int]:
    reach = errors.shift * width / FULL_WIDTH
    luck = 2 * torch.rand(2, generator=generator, device=device) - 1
    down, right = (luck * max(reach, 1.0 if errors.shift > 0 else 0.0)).round().long().tolist()
    return down, right


def _time_of_flight(
    depth: Tensor,
    normals: Tensor,
    albedo: Tensor,
    K: Tensor,
    errors: CapturedErrors,
    generator: torch.Generator,
) -> Tensor:
    unit, far = depth.shape[1] / FULL_WIDTH, _limit(depth, errors, generator)
    base = errors.sensor
    sensor = DepthSensor(
        near=min(base.near, 0.05 * far),
        far=far,
        noise=errors.noise / max(far / 2, 1e-3),
        disparity_step=base.disparity_step / max(far / 6, 1e-3),
        grazing=base.grazing,
        dark=base.dark,
        speckle=base.speckle,
        blobs=base.blobs,
        bleed=max(1, round(base.bleed * unit)),
        shift=max(1.0, errors.shift * unit) if errors.shift > 0 else 0.0,
        dead_band=max(1, round(base.dead_band * unit)),
    )
    return sense_depth(depth[None], normals[None], albedo[None], K[None].to(depth), sensor, generator)[0]


def _lidar(depth: Tensor, albedo: Tensor, errors: CapturedErrors, generator: torch.Generator) -> Tensor:
    height, width = depth.shape
    lines = int(
        torch.randint(errors.lines[0], errors.lines[1] + 1, (), generator=generator, device=depth.device)
    )
    hits = lidar_hits(height, width, min(lines, max(2, height // 3))).to(depth.device)
    luck = torch.rand(depth.shape, generator=generator, device=depth.device)
    lost = luck < errors.dropout + (1 - albedo.mean(0) / max(errors.dark, 1e-6)).clamp(0, 1)
    kept = torch.where(hits & ~lost, depth, torch.zeros_like(depth))
    down, right = _shifts(width, errors, generator, depth.device)
    noise = PromptNoise(
        relative=errors.noise, row_shift=down, col_shift=right, far=_limit(depth, errors, generator)
    )
    return add_noise(kept, noise, _own(generator))


def _sparse(depth: Tensor, errors: CapturedErrors, generator: torch.Generator) -> Tensor:
    low, high = errors.sparse
    share, luck = (
        torch.rand((), generator=generator, device=depth.device),
        torch.rand(depth.shape, generator=generator, device=depth.device),
    )
    kept = torch.where(luck < low + (high - low) * share, depth, torch.zeros_like(depth))
    return add_noise(kept, PromptNoise(relative=errors.noise, outliers=errors.outliers), _own(generator))


def _own(generator: torch.Generator) -> torch.Generator:
    """A generator on the CPU that follows from another one."""
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    return torch.Generator().manual_seed(seed)


def _smooth(height: int, width: int, cells: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(H, W) of mean 0 and standard deviation 1, varying over the height divided by ``cells``."""
    across = max(2, round(cells * width / height))
    noise = torch.randn(1, 1, max(2, cells), across, generator=generator, device=device)
    field = F.interpolate(noise, (height, width), mode="bicubic", align_corners=False)[0, 0]
    return (field - field.mean()) / field.std().clamp_min(1e-6)


def _field(height: int, width: int, cells: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(H, W) uniform in (0, 1) over the picture and connected in patches."""
    field = _smooth(height, width, cells, generator, device).reshape(-1)
    rank = torch.empty_like(field)
    rank[field.argsort()] = (
        torch.arange(field.numel(), device=device, dtype=field.dtype) + 0.5
    ) / field.numel()
    return rank.reshape(height, width)


def _cells(height: int, width: int, cells: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """(H, W) uniform numbers, one per cell."""
    across = max(1, round(cells * width / height))
    noise = torch.rand(1, 1, cells, across, generator=generator, device=device)
    return F.interpolate(noise, (height, width), mode="nearest-exact")[0, 0]


@dataclass(frozen=True)
class CameraModel:
    """A random camera: (H, W) and K (3, 3) float64 in pixels."""

    size: tuple[int, int]
    K: Tensor


def random_camera(
    generator: torch.Generator,
    *,
    pixels: int = 128 * 128,
    fov: tuple[float, float] = (30.0, 110.0),
    aspect: tuple[float, float] = (0.5, 2.0),
    offset: float = 0.03,
    multiple: int = 8,
) -> CameraModel:
    """A camera with a random field of view, shape and principal point.

    Args:
        generator: on the CPU.
        pixels: about how many the picture has.
        fov: degrees along the longer side, uniform.
        aspect: width over height, log-uniform.
        offset: largest distance of the principal point from the centre, as a share of each side.
        multiple: sides are multiples of it.
    """
    luck = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** luck[0]
    width, height = (
        max(multiple, multiple * round(math.sqrt(pixels * r) / multiple)) for r in (ratio, 1 / ratio)
    )
    angle = math.radians(fov[0] + (fov[1] - fov[0]) * luck[1])
    focal = max(width, height) / (2 * math.tan(angle / 2))
    cx, cy = (n * (0.5 + offset * (2 * u - 1)) for n, u in ((width, luck[2]), (height, luck[3])))
    return CameraModel((height, width), intrinsics(focal, focal, cx, cy))


def source_statistics(
    source: Tensor, truth: Tensor, *, edge: float = 1.1, reach: int = 2
) -> dict[str, float]:
    """How a source's depth differs from the truth.

    Args:
        source: (H, W) metres, 0 where unknown.
        truth: (H, W) metres, 0 for the sky.
        edge: ratio of neighbouring depths that makes an edge.
        reach: pixels around an edge that count as near it.

    Returns:
        ``holes`` share of surface pixels without depth, ``abs_rel`` mean and ``median`` of relative errors,
        ``outliers`` share off by more than 25 %, ``edge`` and ``flat`` mean relative error near edges and away from
        them, ``nearer`` share of pixels near edges that are too near by more than 5 %.
    """
    surface = truth > 0
    known = surface & (source > 0)
    error = torch.where(known, (source / truth.clamp_min(1e-6) - 1), torch.zeros_like(truth))
    log = torch.where(surface, truth, truth.max() * 2 + 1).log()[None, None]
    size = 2 * reach + 1
    spread = F.max_pool2d(log, size, 1, reach) + F.max_pool2d(-log, size, 1, reach)
    near = (spread[0, 0] > math.log(edge)) & known
    flat = known & ~near

    def mean(values: Tensor, where: Tensor) -> float:
        return float(values[where].float().mean()) if bool(where.any()) else 0.0

    return {
        "holes": mean(~known, surface),
        "abs_rel": mean(error.abs(), known),
        "median": float(error[known].abs().median()) if bool(known.any()) else 0.0,
        "outliers": mean(error.abs() > 0.25, known),
        "edge": mean(error.abs(), near),
        "flat": mean(error.abs(), flat),
        "nearer": mean(error < -0.05, near),
    }
