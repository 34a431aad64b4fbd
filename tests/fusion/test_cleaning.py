"""Mesh cleaning on surfaces whose answer is known."""

import pytest
import torch

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.fusion.cleaning import (
    CleanConfig,
    clean_mesh,
    cluster_vertices,
    decimate_mesh,
    drop_degenerate,
    drop_isolated,
    drop_small_components,
    face_areas,
    face_components,
    taubin_smooth,
    vertex_normals,
)


def grid(n=20, size=1.0, shift=(0.0, 0.0, 0.0), noise=0.0, seed=0):
    axis = torch.linspace(0, size, n)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    z = noise * torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    v = torch.stack((x, y, z), -1).view(-1, 3) + torch.tensor(shift)
    i = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).reshape(-1)
    f = torch.cat((torch.stack((i, i + n, i + n + 1), -1), torch.stack((i, i + n + 1, i + 1), -1)))
    return Mesh(v, f, rgb=torch.full((n * n, 3), 100, dtype=torch.uint8))


def join(*meshes):
    offsets = [0]
    for m in meshes:
        offsets.append(offsets[-1] + m.vertices.shape[0])
    return Mesh(
        torch.cat([m.vertices for m in meshes]),
        torch.cat([m.faces + o for m, o in zip(meshes, offsets)]),
        rgb=torch.cat([m.rgb for m in meshes]),
    )


def test_small_components_go():
    mesh = join(grid(20), grid(4, 0.1, (3.0, 0, 0)), grid(12, 0.01, (5.0, 0, 0)))
    assert torch.unique(face_components(mesh)).numel() == 3
    assert drop_small_components(mesh, 200).faces.shape[0] == 722 + 242
    assert drop_small_components(mesh, 1, min_area_share=0.005).faces.shape[0] == 722 + 18
    assert drop_small_components(mesh, 1, keep_largest=1).faces.shape[0] == 722
    assert drop_small_components(mesh, 1000).faces.shape[0] == 0


def test_isolated_floaters_go_and_near_pieces_stay():
    mesh = join(grid(20), grid(4, 0.1, (1.02, 0, 0)), grid(4, 0.1, (4.0, 0, 0)))
    kept = drop_isolated(mesh, max_gap=0.05)
    assert kept.faces.shape[0] == 722 + 18
    assert float(kept.vertices[:, 0].max()) < 2


def test_broken_faces_go():
    good = grid(5)
    vertices = torch.cat((good.vertices, torch.tensor([[float("nan"), 0, 0], [0, 0, 0.0]])))
    bad = torch.tensor([[0, 0, 1], [0, 1, 25], [0, 26, 26], [0, 1, 2]])  # repeated, NaN, repeated, collinear?
    mesh = Mesh(vertices, torch.cat((good.faces, bad[:3], good.faces[:1].roll(1, 1))))
    fixed = drop_degenerate(mesh)
    assert fixed.faces.shape[0] == good.faces.shape[0]
    assert bool(torch.isfinite(fixed.vertices).all()) and fixed.vertices.shape[0] == 25


def test_normals_and_areas():
    mesh = grid(10)
    assert torch.allclose(vertex_normals(mesh), torch.tensor([0.0, 0, 1]).expand(100, 3), atol=1e-6)
    assert float(face_areas(mesh).sum()) == pytest.approx(1.0)


def test_taubin_removes_noise_keeps_size_and_rim():
    noisy = grid(40, noise=0.005)
    smooth = taubin_smooth(noisy, 10)
    inner = (noisy.vertices[:, :2] > 0.2).all(-1) & (noisy.vertices[:, :2] < 0.8).all(-1)
    assert float(smooth.vertices[inner, 2].std()) < 0.5 * float(noisy.vertices[inner, 2].std())
    rim = (noisy.vertices[:, :2] == 0).any(-1)
    assert torch.equal(smooth.vertices[rim], noisy.vertices[rim])


def test_decimation_keeps_the_plane_and_the_colour():
    mesh = grid(60)
    for small in (decimate_mesh(mesh, 500), cluster_vertices(mesh, 0.07)):
        assert 50 < small.faces.shape[0] <= 600
        assert float(small.vertices[:, 2].abs().max()) < 1e-5
        assert float(face_areas(small).sum()) == pytest.approx(1.0, abs=0.2)
        assert bool((small.rgb.long() - 100).abs().max() <= 1)
        assert bool((vertex_normals(small)[:, 2] > 0.9).all())
    assert decimate_mesh(mesh, 10**6) is mesh


def test_clean_mesh_presets():
    mesh = join(grid(30, noise=0.002), grid(4, 0.1, (3.0, 0, 0)))
    for preset in ("draft", "standard", "smooth", "full"):
        out = clean_mesh(mesh, preset)
        assert out.faces.shape[0] == 1682 and out.normals is not None
        assert torch.allclose(out.normals.norm(dim=-1), torch.ones(900), atol=1e-5)
    assert clean_mesh(mesh, CleanConfig(min_triangles=5000)).faces.shape[0] == 0
    with pytest.raises(InputError, match="unknown mesh quality"):
        clean_mesh(mesh, "ultra")
