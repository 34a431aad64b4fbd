"""3D Gaussian splats as PLY in the layout of the original implementation (62 float properties).

In memory opacities are in (0, 1) and scales are lengths; the file holds the logit of the opacity and the
natural logarithm of the scales. Spherical harmonics: degree 3, colour = 0.5 + C0 * dc; the higher
coefficients are stored channel by channel (all red, all green, all blue). Quaternions are w, x, y, z.

Source: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", SIGGRAPH 2023;
initial scales from the three nearest neighbours as described there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relief3d.core.contract import PointCloud
from relief3d.core.errors import InputError
from relief3d.io.ply import read_ply_elements, write_ply_columns

SH_C0 = 0.5 / math.sqrt(math.pi)
"""Value of the constant spherical harmonic."""

COEFFICIENTS = 16
_OPACITY_MARGIN = 1e-6


@dataclass(frozen=True)
class Gaussians:
    """N anisotropic Gaussians.

    Attributes:
        xyz: (N, 3) float32 centres.
        sh: (N, K, 3) float32 spherical harmonics, K = 1, 4, 9 or 16; the first is the constant term.
        opacity: (N,) float32 in (0, 1).
        scale: (N, 3) float32 standard deviations along the axes, > 0.
        rotation: (N, 4) float32 unit quaternions w, x, y, z.
        normals: (N, 3) float32 or None; the file has room for them, renderers ignore them.
    """

    xyz: Tensor
    sh: Tensor
    opacity: Tensor
    scale: Tensor
    rotation: Tensor
    normals: Tensor | None = None

    def __len__(self) -> int:
        return int(self.xyz.shape[0])

    @property
    def rgb(self) -> Tensor:
        """(N, 3) uint8 view-independent colours."""
        return ((0.5 + SH_C0 * self.sh[:, 0]).clamp(0, 1) * 255).round().to(torch.uint8)


def gaussians_from_points(
    points: PointCloud, *, opacity: float = 0.1, neighbours: int = 3, largest: float = 10.0
) -> Gaussians:
    """Round Gaussians at the points, as splat training starts from them.

    The standard deviation is the root mean square distance to the nearest neighbours, kept between a
    thousandth of and ``largest`` times the median, so that duplicates and strays do no harm.

    Args:
        points: N >= 1 points; grey when there is no colour.
        opacity: the same for all, in (0, 1).
        neighbours: how many nearest points set the size.
        largest: upper limit of the scale in medians.

    Raises:
        InputError: when there are no points, they are not finite, or opacity is outside (0, 1).
    """
    from scipy.spatial import cKDTree

    if not 0 < opacity < 1:
        raise InputError(f"opacity must lie between 0 and 1, got {opacity}")
    xyz = points.xyz.detach().cpu().to(torch.float32)
    count = len(xyz)
    if count == 0 or not bool(torch.isfinite(xyz).all()):
        raise InputError("splats need at least one point, and finite positions")
    size = np.full(count, 1.0)
    if count > 1:
        array = xyz.numpy().astype(np.float64)
        distance, _ = cKDTree(array).query(array, k=min(neighbours, count - 1) + 1)
        size = np.sqrt(np.mean(distance[:, 1:] ** 2, axis=1))
        typical = float(np.median(size)) or float(size.max()) or 1.0
        size = np.clip(size, 1e-3 * typical, largest * typical)
    rgb = torch.full((count, 3), 128, dtype=torch.uint8) if points.rgb is None else points.rgb.cpu()
    sh = torch.zeros(count, COEFFICIENTS, 3)
    sh[:, 0] = (rgb.to(torch.float32) / 255.0 - 0.5) / SH_C0
    rotation = torch.zeros(count, 4)
    rotation[:, 0] = 1.0
    scale = torch.from_numpy(size.astype(np.float32))[:, None].repeat(1, 3)
    normals = None if points.normals is None else points.normals.detach().cpu().to(torch.float32)
    return Gaussians(xyz, sh, torch.full((count,), opacity), scale, rotation, normals)


def write_splat_ply(path: str | Path, splats: Gaussians | PointCloud) -> Path:
    """Write splats as binary PLY with 62 properties, atomically. Points become initial Gaussians.

    Raises:
        InputError: when shapes disagree, numbers are not finite, or scales are not positive.
    """
    gaussians = gaussians_from_points(splats) if isinstance(splats, PointCloud) else splats
    count, terms = len(gaussians), int(gaussians.sh.shape[1])
    wanted = {"sh": (count, terms, 3), "opacity": (count,), "scale": (count, 3), "rotation": (count, 4)}
    for name, shape in wanted.items():
        if tuple(getattr(gaussians, name).shape) != shape:
            raise InputError(f"splat {name} must be {shape}", path=path)
    if count == 0 or terms not in (1, 4, 9, 16):
        raise InputError("splats need at least one Gaussian and 1, 4, 9 or 16 harmonics", path=path)
    sh = torch.zeros(count, COEFFICIENTS, 3)
    sh[:, :terms] = gaussians.sh.detach().cpu()
    opacity = gaussians.opacity.detach().cpu().to(torch.float64)
    opacity = torch.logit(opacity.clamp(_OPACITY_MARGIN, 1 - _OPACITY_MARGIN))
    quaternion = torch.nn.functional.normalize(gaussians.rotation.detach().cpu().to(torch.float64), dim=1)
    normals = torch.zeros(count, 3) if gaussians.normals is None else gaussians.normals.detach().cpu()
    table = torch.cat(
        [
            gaussians.xyz.detach().cpu().to(torch.float64),
            normals.to(torch.float64),
            sh[:, 0].to(torch.float64),
            sh[:, 1:].transpose(1, 2).reshape(count, -1).to(torch.float64),
            opacity[:, None],
            gaussians.scale.detach().cpu().to(torch.float64).log(),
            quaternion,
        ],
        dim=1,
    )
    values = table.to(torch.float32).numpy()
    if not np.isfinite(values).all() or not bool((quaternion.norm(dim=1) > 0.5).all()):
        raise InputError("splats hold numbers that are not finite, or scales or rotations of zero", path=path)
    names = property_names()
    return write_ply_columns(path, [(name, values[:, i]) for i, name in enumerate(names)])


def property_names() -> list[str]:
    """The 62 properties in file order."""
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(3 * (COEFFICIENTS - 1))),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]


def read_splat_ply(path: str | Path) -> Gaussians:
    """Read splats of degree 0 to 3 in the layout of the original implementation.

    Raises:
        InputError: naming the file, when it is not such a PLY or holds unusable numbers.
    """
    path = Path(path)
    vertex = read_ply_elements(path).get("vertex", {})
    rest = sum(name.startswith("f_rest_") for name in vertex)
    if rest not in (0, 9, 24, 45):
        raise InputError(f"{rest} spherical harmonics (f_rest) fit no degree from 0 to 3", path=path)

    def columns(*names: str) -> NDArray[np.float32]:
        found = [vertex.get(name) for name in names]
        arrays = [column for column in found if isinstance(column, np.ndarray)]
        if len(arrays) != len(names):
            raise InputError(
                f"the PLY file has no property '{names[0]}', so it holds no Gaussian splats", path=path
            )
        return np.stack([array.astype(np.float32) for array in arrays], axis=1)

    xyz = columns("x", "y", "z")
    dc = columns("f_dc_0", "f_dc_1", "f_dc_2")
    sh = np.concatenate(
        [
            dc[:, None],
            columns(*(f"f_rest_{i}" for i in range(rest))).reshape(len(dc), 3, -1).transpose(0, 2, 1),
        ]
        if rest
        else [dc[:, None]],
        axis=1,
    )
    logit = columns("opacity")[:, 0]
    with np.errstate(over="ignore"):
        scale = np.exp(columns("scale_0", "scale_1", "scale_2"))
        opacity = 1.0 / (1.0 + np.exp(-logit.astype(np.float64)))
    rotation = columns("rot_0", "rot_1", "rot_2", "rot_3").astype(np.float64)
    norm = np.linalg.norm(rotation, axis=1, keepdims=True)
    if len(xyz) == 0:
        raise InputError("the file holds no Gaussians", path=path)
    sound = all(bool(np.isfinite(a).all()) for a in (xyz, sh, logit, scale, norm))
    if not sound or bool((norm < 1e-12).any()):
        raise InputError("the splats hold numbers that are not finite, or rotations of zero", path=path)
    return Gaussians(
        torch.from_numpy(xyz),
        torch.from_numpy(np.ascontiguousarray(sh)),
        torch.from_numpy(opacity.astype(np.float32)),
        torch.from_numpy(scale),
        torch.from_numpy((rotation / norm).astype(np.float32)),
        torch.from_numpy(columns("nx", "ny", "nz")) if "nx" in vertex else None,
    )
