"""TSDF fusion with both back ends on walls and spheres whose surface is known."""

import pytest
import torch

from relief3d.core.errors import InputError, RunError
from relief3d.fusion.factory import choose_backend, make_fuser
from relief3d.fusion.protocols import Fuser
from relief3d.render.open3d_backend import open3d_status

USABLE, WHY = open3d_status()
needs_open3d = pytest.mark.skipif(not USABLE, reason=WHY)
BACKENDS = ["torch", pytest.param("open3d", marks=needs_open3d)]
K = torch.tensor([[120.0, 0, 80], [0, 120, 60], [0, 0, 1]], dtype=torch.float64)
EYE = torch.eye(4, dtype=torch.float64)
SHAPE = (120, 160)


def sphere_depth(cam_from_world, radius=0.5, centre=(0.0, 0.0, 0.0)):
    """Exact z-depth of a sphere at the pixel centres."""
    y, x = torch.meshgrid(torch.arange(120) + 0.5, torch.arange(160) + 0.5, indexing="ij")
    ray = torch.stack(((x - 80) / 120, (y - 60) / 120, torch.ones_like(x)), -1).double()
    c = cam_from_world[:3, :3] @ torch.tensor(centre, dtype=torch.float64) + cam_from_world[:3, 3]
    a, b = (ray * ray).sum(-1), (ray * c).sum(-1)
    disc = b * b - a * (c @ c - radius**2)
    return torch.where(disc > 0, (b - disc.clamp_min(0).sqrt()) / a, torch.zeros_like(a)).float()


def around(count=12, distance=2.0):
    """Poses that look at the origin from a ring."""
    poses = []
    for i in range(count):
        angle = torch.tensor(2 * torch.pi * i / count, dtype=torch.float64)
        c, s = angle.cos(), angle.sin()
        pose = EYE.clone()
        pose[:3, :3] = torch.stack(
            (
                torch.stack((c, 0 * c, -s)),
                torch.tensor([0, 1.0, 0], dtype=torch.float64),
                torch.stack((s, 0 * c, c)),
            )
        )
        pose[:3, 3] = torch.tensor([0, 0, distance])
        poses.append(pose)
    return poses


def face_normals(mesh):
    a, b, c = mesh.vertices.double()[mesh.faces].unbind(1)
    return torch.linalg.cross(b - a, c - a), (a + b + c) / 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_flat_wall_is_exact_and_faces_the_camera(backend):
    fuser = make_fuser(backend, 0.04)
    assert isinstance(fuser, Fuser)
    assert fuser.integrate(torch.full(SHAPE, 2.013), K, EYE)
    mesh = fuser.extract(1.0)
    assert mesh.faces.shape[0] > 5000
    assert float((mesh.vertices[:, 2] - 2.013).abs().max()) < 0.1 * 0.04 * 0.01
    normals, _ = face_normals(mesh)
    assert bool((normals[:, 2] < 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_sphere_vertices_within_a_tenth_of_a_voxel_and_outward(backend):
    voxel = 0.02
    fuser = make_fuser(backend, voxel)
    for pose in around():
        fuser.integrate(sphere_depth(pose), K, pose)
    mesh = fuser.extract(2.0)
    radius = mesh.vertices.double().norm(dim=-1)
    # Grazing rays see the silhouette a little in front (projective distance); the median and the mean are tight.
    equator = mesh.vertices[:, 1].abs() < 0.25
    assert float((radius[equator] - 0.5).abs().mean()) < 0.1 * voxel
    normals, centres = face_normals(mesh)
    assert float(((normals * centres).sum(-1) > 0).double().mean()) > 0.999


@pytest.mark.parametrize("backend", BACKENDS)
def test_running_average_of_two_depths_is_their_mean(backend):
    fuser = make_fuser(backend, 0.04)
    fuser.integrate(torch.full(SHAPE, 2.00), K, EYE)
    fuser.integrate(torch.full(SHAPE, 2.03), K, EYE)
    z = fuser.extract(2.0).vertices[:, 2]
    assert torch.allclose(z, torch.full_like(z, 2.015), atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_confidence_weights_shift_the_average(backend):
    fuser = make_fuser(backend, 0.04)
    fuser.integrate(torch.full(SHAPE, 2.00), K, EYE, weight=torch.full(SHAPE, 3.0))
    fuser.integrate(torch.full(SHAPE, 2.04), K, EYE, weight=torch.full(SHAPE, 1.0))
    z = fuser.extract(4.0).vertices[:, 2]
    assert z.numel() and torch.allclose(z, torch.full_like(z, 2.01), atol=1e-4)
    assert fuser.extract(4.5).faces.shape[0] == 0
    blocked = torch.zeros(SHAPE)
    assert not fuser.integrate(torch.full(SHAPE, 2.0), K, EYE, weight=blocked)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_frames_are_skipped(backend):
    fuser = make_fuser(backend, 0.04)
    assert not fuser.integrate(torch.zeros(SHAPE), K, EYE)
    assert not fuser.integrate(torch.full(SHAPE, float("nan")), K, EYE)
    assert not fuser.integrate(torch.full(SHAPE, -1.0), K, EYE)
    assert fuser.frames == 0 and fuser.extract(1.0).faces.shape[0] == 0
    assert fuser.integrate(torch.full(SHAPE, 2.0), K, EYE) and fuser.frames == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_weight_threshold_and_no_filled_holes(backend):
    fuser = make_fuser(backend, 0.04)
    hole = torch.full(SHAPE, 2.0)
    hole[40:80, 60:100] = float("nan")
    fuser.integrate(hole, K, EYE)
    half = torch.full(SHAPE, 2.0)
    half[:, 80:] = 0
    fuser.integrate(half, K, EYE)
    once, twice = fuser.extract(1.0), fuser.extract(2.0)
    assert float(once.vertices[:, 0].max()) > 1.0 and float(twice.vertices[:, 0].max()) < 0.05
    # The hole spans x in (-20..20)/120*2, y likewise: nothing of the right half of it may be covered.
    x, y = once.vertices[:, 0], once.vertices[:, 1]
    assert not bool(((x > 0.06) & (x < 0.27) & (y.abs() < 0.27)).any())
    assert fuser.extract(3.0).faces.shape[0] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_colours_come_from_the_picture(backend):
    fuser = make_fuser(backend, 0.04)
    color = torch.zeros(*SHAPE, 3)
    color[:, :80, 0], color[:, 80:, 2] = 1.0, 0.5
    fuser.integrate(torch.full(SHAPE, 2.0), K, EYE, color)
    mesh = fuser.extract(1.0)
    left, right = mesh.rgb[mesh.vertices[:, 0] < -0.1].long(), mesh.rgb[mesh.vertices[:, 0] > 0.1].long()
    assert bool((left == torch.tensor([255, 0, 0])).all())
    assert bool(((right - torch.tensor([0, 0, 128])).abs() <= 1).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_slanted_wall_is_not_shifted_by_a_part_of_a_pixel(backend):
    # Half a pixel here is 6 mm along the normal; nearest-pixel reading must average out.
    x = (torch.arange(160) + 0.5 - 80) / 120
    depth = (2.013 / (1 - x)).expand(SHAPE).contiguous()
    fuser = make_fuser(backend, 0.02)
    fuser.integrate(depth, K, EYE)
    mesh = fuser.extract(1.0)
    v = mesh.vertices.double()
    inner = (v[:, :2].abs() < 0.4).all(-1)
    error = (v[:, 2] - 2.013 - v[:, 0])[inner] / 2**0.5
    assert abs(float(error.mean())) < 3e-4 and float(error.abs().max()) < 0.01
    # The far, grazing end is covered: pixels there are several blocks apart.
    assert float(v[:, 2].max()) > 5.8


@needs_open3d
def test_back_ends_agree():
    voxel = 0.03
    meshes = []
    for backend in ("torch", "open3d"):
        fuser = make_fuser(backend, voxel)
        for i, pose in enumerate(around()):
            noise = 0.01 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(i))
            depth = sphere_depth(pose)
            fuser.integrate(torch.where(depth > 0, depth + noise, depth), K, pose)
        meshes.append(fuser.extract(2.0))
    a, b = (m.vertices.double() for m in meshes)
    forward, backward = torch.cdist(a, b).amin(1), torch.cdist(b, a).amin(1)
    assert float(forward.mean()) < 0.1 * voxel and float(backward.mean()) < 0.1 * voxel
    assert abs(len(a) / len(b) - 1) < 0.02
    assert float(forward.mean()) < 0.01 * voxel


def test_chunk_seams_are_welded():
    # The wall spans several chunks of 64 voxels; a seam would double vertices and open the surface.
    fuser = make_fuser("torch", 0.02)
    fuser.integrate(torch.full(SHAPE, 2.013), K, EYE)
    mesh = fuser.extract(1.0)
    grid = torch.round(mesh.vertices.double() / 0.02 * 1000).long()
    assert torch.unique(grid, dim=0).shape[0] == mesh.vertices.shape[0]
    edges = torch.cat((mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]))
    _, uses = torch.unique(torch.sort(edges, dim=1).values, dim=0, return_counts=True)
    assert int(uses.max()) == 2
    rim = int((uses == 1).sum())
    width = (mesh.vertices[:, :2].amax(0) - mesh.vertices[:, :2].amin(0)) / 0.02
    assert rim < 2.2 * float(width.sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_from_the_origin(backend):
    shift = EYE.clone()
    shift[:3, 3] = torch.tensor([-5000.0, 3000.0, -40.0])
    fuser = make_fuser(backend, 0.04)
    fuser.integrate(torch.full(SHAPE, 2.013), K, shift)
    z = fuser.extract(1.0).vertices[:, 2]
    assert z.numel() > 2500 and float((z - 42.013).abs().median()) < 0.004


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_limit_and_depth_limit(backend):
    fuser = make_fuser(backend, 0.01, max_bytes=2 * 1024**2)
    with pytest.raises(RunError, match="larger voxel size"):
        fuser.integrate(torch.full(SHAPE, 2.0), K, EYE)
    near = make_fuser(backend, 0.04, max_depth=2.5)
    depth = torch.full(SHAPE, 2.0)
    depth[:, 80:] = 3.0
    near.integrate(depth, K, EYE)
    assert float(near.extract(1.0).vertices[:, 2].max()) < 2.1


def test_refusals():
    with pytest.raises(InputError, match="positive"):
        make_fuser("torch", 0.0)
    with pytest.raises(InputError, match="unknown fusion back end"):
        make_fuser("vdb", 0.1)
    fuser = make_fuser("torch", 0.04)
    with pytest.raises(InputError, match="colours"):
        fuser.integrate(torch.ones(SHAPE), K, EYE, torch.zeros(3, 4, 3))
    with pytest.raises(InputError, match="not be negative"):
        fuser.integrate(torch.ones(SHAPE), K, EYE, weight=-torch.ones(SHAPE))
    with pytest.raises(InputError, match=r"\(H, W\)"):
        fuser.integrate(torch.ones(1, 4, 4), K, EYE)


def test_auto_explains_itself():
    backend, why = choose_backend("auto")
    assert backend == ("open3d" if USABLE else "torch") and why
    assert choose_backend("auto", "meta") == ("torch", "the work is on meta")


def test_sample_reads_voxels():
    fuser = make_fuser("torch", 0.04)
    fuser.integrate(torch.full(SHAPE, 2.0), K, EYE)
    points = torch.tensor([[0.0, 0, 1.92], [0, 0, 2.0], [0, 0, 2.08], [0, 0, 9.0]])
    tsdf, weight = fuser.sample(points)
    assert torch.allclose(tsdf[:3], torch.tensor([0.5, 0.0, -0.5]), atol=1e-5)
    assert bool(tsdf[3].isnan()) and weight.tolist() == [1, 1, 1, 0]
