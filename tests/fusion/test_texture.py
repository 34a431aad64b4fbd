"""Texture baking: a cube with known face colours is baked from pictures and drawn again."""

import pytest
import torch

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.fusion.texture import TextureConfig, bake_texture
from relief3d.fusion.texture_atlas import build_atlas, dilate, pack_shelves
from relief3d.fusion.texture_views import TextureView, exposure_gains, face_adjacency, score_views
from relief3d.render.factory import make_renderer
from relief3d.render.pictures import look_at, render_mesh

COLORS = torch.tensor(
    [[200, 40, 40], [40, 180, 60], [40, 60, 200], [200, 190, 50], [180, 60, 190], [60, 190, 190]]
)


def cube(cells=8):
    """A cube whose sides have vertices of their own and one colour each."""
    vertices, faces, rgb = [], [], []
    n = cells + 1
    axis = torch.linspace(-1, 1, n)
    for side in range(6):
        a, b = torch.meshgrid(axis, axis, indexing="ij")
        sign = 1.0 if side % 2 else -1.0
        c = torch.full_like(a, sign)
        order = {0: (c, a, b), 1: (b, c, a), 2: (a, b, c)}[side // 2]
        start = n * n * side
        vertices.append(torch.stack(order, -1).view(-1, 3))
        i = (torch.arange(cells)[:, None] * n + torch.arange(cells)).reshape(-1) + start
        quad = torch.cat((torch.stack((i, i + n, i + n + 1), -1), torch.stack((i, i + n + 1, i + 1), -1)))
        faces.append(quad if sign > 0 else quad.flip(1))
        rgb.append(COLORS[side].expand(n * n, 3))
    return Mesh(torch.cat(vertices), torch.cat(faces), rgb=torch.cat(rgb).to(torch.uint8))


def around(size=96):
    K = torch.tensor([[90.0, 0, size / 2], [0, 90, size / 2], [0, 0, 1]], dtype=torch.float64)
    eyes = [(4, 2, 2), (-4, 2, 2), (2, -4, 2), (2, 4, -2), (2, 2, -4), (-2, -4, -2), (-2, 3, 4)]
    up = torch.tensor([0.1, 0.2, 1.0])
    return [Camera(size, size, K, look_at(torch.tensor(e).float(), torch.zeros(3), up)) for e in eyes]


def photos(mesh, gains=None):
    out = []
    for i, camera in enumerate(around()):
        image = render_mesh(mesh, camera, "colour", renderer=make_renderer("torch"), background=(0, 0, 0))
        out.append(TextureView(camera, image if gains is None else (image * gains[i]).clamp(0, 1)))
    return out


def test_cube_is_recovered():
    mesh = cube()
    plain = Mesh(mesh.vertices, mesh.faces)
    baked = bake_texture(plain, photos(mesh), renderer=make_renderer("torch"))
    assert baked.faces.shape == mesh.faces.shape
    assert float(baked.uv.min()) >= 0 and float(baked.uv.max()) <= 1
    assert torch.allclose(baked.vertices[baked.faces], mesh.vertices[mesh.faces])
    eye = torch.tensor([3.0, -3.5, 2.5])
    camera = around()[0].replace(world_from_cam=look_at(eye, torch.zeros(3), torch.tensor([0.0, 0, 1])))
    renderer = make_renderer("torch")
    truth = render_mesh(mesh, camera, "colour", renderer=renderer)
    got = render_mesh(baked, camera, "colour", renderer=renderer)
    error = (truth - got).abs().amax(0)
    assert float(error.median()) < 0.01 and float((error > 0.1).float().mean()) < 0.03


def test_exposure_is_matched():
    mesh = cube()
    gains = torch.tensor([0.7, 1.0, 1.2, 0.9, 1.1, 0.8, 1.0])
    views = photos(mesh, gains)
    scores = score_views(mesh, views, make_renderer("torch"), slack=0.1)
    found = exposure_gains(mesh, views, scores.vertex_seen)
    product = found.mean(1).float() * gains
    assert float(product.std() / product.mean()) < 0.03
    assert float(gains.std() / gains.mean()) > 0.15


def test_unseen_faces_keep_their_vertex_colour():
    mesh = cube()
    baked = bake_texture(mesh, photos(mesh)[:1], TextureConfig(level_seams=False))
    # Camera 0 sees the sides +x, +y and +z; the others keep the colour of their vertices.
    hidden = mesh.rgb[mesh.faces[:, 0]].long()
    uv = baked.uv[baked.faces].mean(1)
    height, width, _ = baked.texture.shape
    seen = baked.texture[((1 - uv[:, 1]) * height).long(), (uv[:, 0] * width).long()].long()
    # Faces along the silhouette of the one picture mix with what is behind them.
    assert float(((seen - hidden).abs().amax(1) < 12).float().mean()) > 0.9


def test_score_ranks_the_frontal_view_first_and_hidden_views_never():
    mesh = cube()
    views = photos(mesh)
    scores = score_views(mesh, views, make_renderer("torch"), slack=0.1)
    top = mesh.vertices[mesh.faces].mean(1)[:, 2] > 0.99
    bottom_views = torch.tensor([3, 4, 5])
    assert not bool(torch.isin(scores.view[top], bottom_views).any())
    assert bool((scores.view[top, 0] >= 0).all())
    assert bool((scores.score[:, 0] >= scores.score[:, 1]).all())


def test_adjacency_of_two_triangles():
    assert face_adjacency(torch.tensor([[0, 1, 2], [2, 1, 3], [4, 5, 6]])).sort(1).values.tolist() == [[0, 1]]


def test_packing_never_overlaps():
    generator = torch.Generator().manual_seed(0)
    size = torch.randint(2, 30, (200, 2), generator=generator).numpy()
    place, used = pack_shelves(size[:, 0], size[:, 1], 128)
    canvas = torch.zeros(used, 128, dtype=torch.int64)
    for (x, y), (w, h) in zip(place, size):
        canvas[y : y + h, x : x + w] += 1
    assert int(canvas.max()) == 1


def test_atlas_shrinks_to_fit_and_keeps_texels_apart():
    faces = torch.arange(30).view(10, 3)
    corners = torch.tensor([[0.0, 0], [100, 0], [0, 100]]).expand(10, 3, 2)
    atlas = build_atlas(faces, corners, torch.arange(10), max_size=128, padding=2)
    assert atlas.width <= 128 and atlas.height <= 128 and atlas.scale < 0.5
    assert float(atlas.xy.min()) >= 2 and float(atlas.xy.max()) <= 126
    with pytest.raises(InputError, match="do not fit"):
        build_atlas(faces, corners, torch.arange(10), max_size=8, padding=3)


def test_dilation_spreads_border_colours():
    texture = torch.zeros(3, 5, 5)
    covered = torch.zeros(5, 5, dtype=torch.bool)
    texture[:, 2, 2], covered[2, 2] = 0.7, True
    grown = dilate(texture, covered, 1)
    assert torch.allclose(grown[:, 1:4, 1:4], torch.tensor(0.7)) and float(grown[:, 0].max()) == 0


def test_refusals():
    with pytest.raises(InputError, match="empty mesh"):
        bake_texture(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)), [])
    with pytest.raises(InputError, match="at least one"):
        bake_texture(cube(), [])
