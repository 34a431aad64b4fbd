"""Rendered depth: pixel centres, corners, back faces, misses, agreement of the back ends."""

import math

import pytest
import torch

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.render.factory import make_renderer
from relief3d.render.open3d_backend import open3d_status
from relief3d.render.rasterizer import TorchRenderer

USABLE, WHY = open3d_status()
BACKENDS = ["torch", pytest.param("open3d", marks=pytest.mark.skipif(not USABLE, reason=WHY))]


def camera(width=64, height=48, focal=40.0, pose=None):
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    return Camera(width, height, K, torch.eye(4, dtype=torch.float64) if pose is None else pose)


def plane(corner, u, v):
    """Two triangles; counter-clockwise seen from the side to which u x v points."""
    corner, u, v = (torch.tensor(x, dtype=torch.float32) for x in (corner, u, v))
    vertices = torch.stack((corner, corner + u, corner + u + v, corner + v))
    return Mesh(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))


def facing_plane(z=2.0, half=10.0):
    # u x v points to -z, towards a camera at the origin.
    return plane((-half, -half, z), (0, 2 * half, 0), (2 * half, 0, 0))


def icosphere(centre, radius, levels=3):
    t = (1 + math.sqrt(5)) / 2
    v = [(-1, t, 0), (1, t, 0), (-1, -t, 0), (1, -t, 0), (0, -1, t), (0, 1, t), (0, -1, -t), (0, 1, -t)]
    v += [(t, 0, -1), (t, 0, 1), (-t, 0, -1), (-t, 0, 1)]
    f = [(0, 11, 5), (0, 5, 1), (0, 1, 7), (0, 7, 10), (0, 10, 11), (1, 5, 9), (5, 11, 4), (11, 10, 2)]
    f += [(10, 7, 6), (7, 1, 8), (3, 9, 4), (3, 4, 2), (3, 2, 6), (3, 6, 8), (3, 8, 9), (4, 9, 5)]
    f += [(2, 4, 11), (6, 2, 10), (8, 6, 7), (9, 8, 1)]
    vertices = torch.nn.functional.normalize(torch.tensor(v, dtype=torch.float64), dim=-1)
    faces = torch.tensor(f)
    for _ in range(levels):
        a, b, c = vertices[faces].unbind(1)
        mids = torch.nn.functional.normalize(torch.cat((a + b, b + c, c + a)), dim=-1)
        n, m = faces.shape[0], vertices.shape[0]
        ab, bc, ca = (torch.arange(n) + m + k * n for k in range(3))
        i, j, k = faces.unbind(1)
        parts = ((i, ab, ca), (ab, j, bc), (ca, bc, k), (ab, bc, ca))
        faces = torch.cat([torch.stack(p, -1) for p in parts])
        vertices = torch.cat((vertices, mids))
    return Mesh((vertices * radius + torch.tensor(centre, dtype=torch.float64)).float(), faces)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tilted_plane_has_the_analytic_z_depth_at_every_pixel_and_corner(backend):
    # The plane z = 3 + 0.5 x - 0.2 y, faces towards the camera.
    mesh = plane((-20, -20, 3 - 10 + 4), (0, 40, -8), (40, 0, 20))
    cam = camera()
    depth = make_renderer(backend).render(mesh, cam)
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    a, b = (x - 32) / 40, (y - 24) / 40
    expected = 3 / (1 - 0.5 * a + 0.2 * b)
    inside = (expected > 0) & ((expected * a).abs() < 20) & ((expected * b).abs() < 20)
    assert bool(inside[0, 0]) and bool(inside[-1, -1]) and bool(inside[0, -1]) and bool(inside[-1, 0])
    assert torch.allclose(depth[inside].double(), expected[inside].double(), rtol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_back_faces_and_misses(backend):
    renderer = make_renderer(backend)
    cam = camera()
    front = facing_plane(2.0, half=0.5)
    depth = renderer.render(front, cam)
    assert depth[24, 32] == pytest.approx(2.0, rel=1e-6)
    assert depth[0, 0] == 0
    behind = Mesh(front.vertices, front.faces.flip(1))
    assert float(renderer.render(behind, cam).max()) == 0
    assert float(renderer.render(behind, cam, back_faces="keep")[24, 32]) == pytest.approx(2.0, rel=1e-6)
    # A wall seen from behind at 2 in front of a wall at 3: a miss when discarded, 3 when culled.
    far = facing_plane(3.0, half=5.0)
    both = Mesh(
        torch.cat((behind.vertices, far.vertices)),
        torch.cat((behind.faces, far.faces + behind.vertices.shape[0])),
    )
    assert float(renderer.render(both, cam)[24, 32]) == 0
    assert float(renderer.render(both, cam, back_faces="cull")[24, 32]) == pytest.approx(3.0, rel=1e-5)
    assert float(renderer.render(both, cam)[2, 2]) == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coverage_rule_is_pixel_centres(backend):
    # A square whose image spans x in [10.4, 20.6], y in [5.6, 9.4]: centres 10.5..20.5 and 6.5..8.5.
    z, f = 2.0, 40.0
    x0, x1, y0, y1 = ((p - c) * z / f for p, c in ((10.4, 32), (20.6, 32), (5.6, 24), (9.4, 24)))
    mesh = plane((x0, y0, z), (0, y1 - y0, 0), (x1 - x0, 0, 0))
    hit = make_renderer(backend).cast(mesh, camera()).hit
    expected = torch.zeros(48, 64, dtype=torch.bool)
    expected[6:9, 10:21] = True
    assert torch.equal(hit, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_triangles_across_the_camera_plane(backend):
    # A floor 1 below the camera that reaches from behind it to far ahead.
    mesh = plane((-50, 1, -50), (0, 0, 100), (100, 0, 0))
    normal = torch.linalg.cross(mesh.vertices[1] - mesh.vertices[0], mesh.vertices[2] - mesh.vertices[0])
    if normal[1] > 0:
        mesh = Mesh(mesh.vertices, mesh.faces.flip(1))
    depth = make_renderer(backend).render(mesh, camera())
    rows = torch.arange(30, 48)
    expected = 40 / (rows + 0.5 - 24)
    assert torch.allclose(depth[rows, 32], expected, rtol=1e-5)
    assert float(depth[:24].max()) == 0


def test_hits_locate_the_surface_point():
    mesh = icosphere((0.1, -0.05, 3.0), 0.8)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor([0.2, 0.1, -0.3])
    cam = camera(pose=pose)
    hits = TorchRenderer().cast(mesh, cam)
    corners = mesh.vertices.double()[mesh.faces[hits.face[hits.hit]]]
    point = (corners * hits.barycentric[hits.hit][..., None].double()).sum(1)
    local = point @ cam.cam_from_world[:3, :3].T + cam.cam_from_world[:3, 3]
    pixel = local @ cam.K.T
    y, x = torch.nonzero(hits.hit, as_tuple=True)
    assert torch.allclose(pixel[:, 0] / pixel[:, 2], x.double() + 0.5, atol=1e-4)
    assert torch.allclose(pixel[:, 1] / pixel[:, 2], y.double() + 0.5, atol=1e-4)
    assert torch.allclose(local[:, 2].float(), hits.depth[hits.hit], rtol=1e-5)
    # No cracks between neighbouring faces: the silhouette is one filled disc.
    rows = [torch.nonzero(r).squeeze(1) for r in hits.hit if bool(r.any())]
    assert all(len(r) == int(r[-1] - r[0]) + 1 for r in rows)


@pytest.mark.skipif(not USABLE, reason=WHY)
def test_back_ends_agree_on_a_sphere_and_walls():
    a, b = icosphere((0, 0, 3), 0.8, levels=4), facing_plane(5.0)
    mesh = Mesh(torch.cat((a.vertices, b.vertices)), torch.cat((a.faces, b.faces + a.vertices.shape[0])))
    one = make_renderer("torch").cast(mesh, camera(160, 120, 100.0))
    two = make_renderer("open3d").cast(mesh, camera(160, 120, 100.0))
    same = (one.hit & two.hit) & ((one.depth - two.depth).abs() < 1e-4)
    assert float(same.float().mean()) > 0.999
    agree = one.face == two.face
    assert float(agree.float().mean()) > 0.99
    assert float((one.barycentric - two.barycentric)[agree & one.hit].abs().max()) < 1e-2


def test_small_chunks_give_the_same_picture():
    mesh = icosphere((0, 0, 3), 0.8)
    whole = TorchRenderer().cast(mesh, camera())
    parts = TorchRenderer(max_candidates=50).cast(mesh, camera())
    assert torch.equal(whole.depth, parts.depth) and torch.equal(whole.face, parts.face)


def test_unusable_input_is_refused():
    mesh = facing_plane()
    with pytest.raises(InputError, match="intrinsics and pose"):
        TorchRenderer().render(mesh, Camera(8, 8))
    with pytest.raises(InputError, match="does not have"):
        TorchRenderer().render(Mesh(mesh.vertices, mesh.faces + 10), camera())
    with pytest.raises(InputError, match="not finite"):
        TorchRenderer().render(Mesh(mesh.vertices * float("nan"), mesh.faces), camera())
    with pytest.raises(InputError, match="unknown renderer"):
        make_renderer("opengl")
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))
    assert float(TorchRenderer().render(empty, camera()).max()) == 0
