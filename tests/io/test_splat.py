from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.corpora.known_scene import known_scene

from relief3d.core.contract import PointCloud
from relief3d.core.errors import InputError
from relief3d.io.ply import read_ply_elements, write_ply
from relief3d.io.splat import (
    SH_C0,
    Gaussians,
    gaussians_from_points,
    property_names,
    read_splat_ply,
    write_splat_ply,
)


def random_gaussians(count: int = 20, terms: int = 16) -> Gaussians:
    g = torch.Generator().manual_seed(3)
    return Gaussians(
        xyz=torch.randn(count, 3, generator=g),
        sh=torch.randn(count, terms, 3, generator=g),
        opacity=torch.rand(count, generator=g) * 0.98 + 0.01,
        scale=torch.rand(count, 3, generator=g) + 1e-3,
        rotation=torch.nn.functional.normalize(torch.randn(count, 4, generator=g), dim=1),
    )


def test_layout_is_the_original_one(tmp_path: Path) -> None:
    path = write_splat_ply(tmp_path / "s.ply", random_gaussians())
    header = path.read_bytes().split(b"end_header\n")[0].decode().splitlines()
    properties = [line.split() for line in header if line.startswith("property")]
    assert len(properties) == 62 and all(kind == "float" for _, kind, _ in properties)
    names = [name for _, _, name in properties]
    assert names == property_names()
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9] == "f_rest_0" and names[53] == "f_rest_44"
    assert names[54:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]


def test_stored_numbers_are_log_and_logit_and_channel_major(tmp_path: Path) -> None:
    gaussians = random_gaussians()
    vertex = read_ply_elements(write_splat_ply(tmp_path / "s.ply", gaussians))["vertex"]
    opacity, scale, red_third = vertex["opacity"], vertex["scale_1"], vertex["f_rest_2"]
    green_first = vertex["f_rest_15"]
    for column in (opacity, scale, red_third, green_first):
        assert isinstance(column, np.ndarray)
    p = gaussians.opacity.numpy()
    assert np.allclose(opacity, np.log(p / (1 - p)), atol=1e-4)
    assert np.allclose(scale, np.log(gaussians.scale[:, 1].numpy()), atol=1e-6)
    assert np.array_equal(red_third, gaussians.sh[:, 3, 0].numpy())
    assert np.array_equal(green_first, gaussians.sh[:, 1, 1].numpy())


@pytest.mark.parametrize("terms", [1, 4, 9, 16])
def test_round_trip(tmp_path: Path, terms: int) -> None:
    gaussians = random_gaussians(terms=terms)
    again = read_splat_ply(write_splat_ply(tmp_path / "s.ply", gaussians))
    assert torch.equal(again.xyz, gaussians.xyz) and torch.equal(again.sh[:, :terms], gaussians.sh)
    assert not again.sh[:, terms:].any()
    for name in ("opacity", "scale", "rotation"):
        assert torch.allclose(getattr(again, name), getattr(gaussians, name), rtol=1e-5, atol=1e-6), name


def test_points_become_round_splats_of_neighbour_size(tmp_path: Path) -> None:
    n = 6
    grid = torch.stack(
        torch.meshgrid(*[torch.arange(n, dtype=torch.float32)] * 3, indexing="ij"), -1
    ).reshape(-1, 3)
    points = PointCloud(0.1 * grid, torch.randint(0, 256, (len(grid), 3), dtype=torch.uint8))
    gaussians = gaussians_from_points(points)
    assert torch.allclose(gaussians.scale, torch.full_like(gaussians.scale, 0.1), rtol=1e-4)
    assert torch.equal(gaussians.rgb, points.rgb if points.rgb is not None else gaussians.rgb)
    assert torch.allclose(gaussians.opacity, torch.tensor(0.1))
    assert torch.equal(gaussians.rotation, torch.tensor([1.0, 0, 0, 0]).expand(len(grid), 4))
    again = read_splat_ply(write_splat_ply(tmp_path / "s.ply", points))
    assert torch.equal(again.rgb, gaussians.rgb)


def test_duplicates_and_strays_get_sane_sizes() -> None:
    g = torch.Generator().manual_seed(0)
    xyz = torch.rand(200, 3, generator=g)
    xyz[:10] = xyz[0]
    xyz[-1] = 1e6
    scale = gaussians_from_points(PointCloud(xyz)).scale
    typical = float(scale.median())
    assert float(scale.min()) > 0 and float(scale.max()) <= 10.5 * typical
    one = gaussians_from_points(PointCloud(torch.zeros(1, 3)))
    same = gaussians_from_points(PointCloud(torch.zeros(5, 3)))
    assert bool(torch.isfinite(one.scale.log()).all()) and bool(torch.isfinite(same.scale.log()).all())


def test_constant_harmonic() -> None:
    assert pytest.approx(0.28209479177387814, abs=1e-15) == SH_C0 and math.isclose(SH_C0**2 * 4 * math.pi, 1)


def test_bad_files_are_named(tmp_path: Path) -> None:
    points = known_scene().points
    assert points is not None
    path = write_ply(tmp_path / "points.ply", points)
    with pytest.raises(InputError, match="f_dc_0"):
        read_splat_ply(path)
    path = write_splat_ply(tmp_path / "s.ply", random_gaussians())
    data = path.read_bytes()
    for length in (0, 3, 100, len(data) - 4):
        path.write_bytes(data[:length])
        with pytest.raises(InputError) as caught:
            read_splat_ply(path)
        assert caught.value.path == path
    head, body = data.split(b"end_header\n", 1)
    rows = np.frombuffer(body, "<f4").reshape(-1, 62).copy()
    for column, value in ((0, np.nan), (54, np.inf), (55, 1e6), (slice(58, 62), 0.0)):
        broken = rows.copy()
        broken[3, column] = value
        path.write_bytes(head + b"end_header\n" + broken.tobytes())
        with pytest.raises(InputError, match=r"s\.ply"):
            read_splat_ply(path)
    path.write_bytes(data.replace(b"f_rest_44", b"g_rest_44"))
    with pytest.raises(InputError, match="harmonics"):
        read_splat_ply(path)


def test_bad_splats_are_not_written(tmp_path: Path) -> None:
    good = random_gaussians()
    bad = [
        Gaussians(good.xyz, good.sh, good.opacity, torch.zeros(20, 3), good.rotation),
        Gaussians(good.xyz * float("nan"), good.sh, good.opacity, good.scale, good.rotation),
        Gaussians(good.xyz, good.sh, good.opacity, good.scale, torch.zeros(20, 4)),
        Gaussians(good.xyz, good.sh[:, :5], good.opacity, good.scale, good.rotation),
        Gaussians(good.xyz, good.sh, good.opacity[:5], good.scale, good.rotation),
    ]
    for gaussians in bad:
        with pytest.raises(InputError):
            write_splat_ply(tmp_path / "s.ply", gaussians)
    with pytest.raises(InputError):
        gaussians_from_points(PointCloud(torch.zeros(0, 3)))
    assert list(tmp_path.iterdir()) == []
