"""Pictures: colours, orbit cameras, lines, point splats, colour maps."""

import pytest
import torch

from relief3d.core.contract import Camera, Mesh, PointCloud
from relief3d.core.errors import InputError
from relief3d.geometry.transforms import look_at
from relief3d.render.colormaps import (
    confidence_colors,
    depth_colors,
    depth_limits,
    normal_colors,
    oklab_to_srgb,
)
from relief3d.render.pictures import (
    draw_frusta,
    draw_segments,
    orbit_cameras,
    render_mesh,
    scaled_camera,
    up_direction,
)
from relief3d.render.points import rasterize_points, render_points
from relief3d.render.rasterizer import TorchRenderer

K = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]], dtype=torch.float64)
CAMERA = Camera(64, 48, K, torch.eye(4))


def quad(z=2.0, half=3.0, **extra):
    v = torch.tensor([[-half, -half, z], [-half, half, z], [half, half, z], [half, -half, z]])
    return Mesh(v, torch.tensor([[0, 1, 2], [0, 2, 3]]), **extra)


def test_vertex_colours_and_background():
    mesh = quad(half=0.5, rgb=torch.tensor([[255, 0, 0]] * 4, dtype=torch.uint8))
    picture = render_mesh(mesh, CAMERA, "colour", renderer=TorchRenderer(), background=(0, 1, 0))
    assert picture.shape == (3, 48, 64)
    assert torch.allclose(picture[:, 24, 32], torch.tensor([1.0, 0, 0]))
    assert torch.allclose(picture[:, 0, 0], torch.tensor([0.0, 1, 0]))


def test_texture_orientation():
    texture = torch.zeros(2, 2, 3, dtype=torch.uint8)
    texture[0, 0] = torch.tensor([255, 0, 0])  # top left red
    texture[1, 1] = torch.tensor([0, 0, 255])  # bottom right blue
    # Vertices: top left, bottom left, bottom right, top right in the picture.
    uv = torch.tensor([[0.0, 1], [0, 0], [1, 0], [1, 1]])
    picture = render_mesh(
        quad(z=2, half=1, uv=uv, texture=texture), CAMERA, "colour", renderer=TorchRenderer()
    )
    assert picture[0, 4, 12] > 0.9 and picture[2, 4, 12] < 0.1
    assert picture[2, 43, 51] > 0.9 and picture[0, 43, 51] < 0.1


def test_normals_and_shading():
    mesh = quad()
    picture = render_mesh(mesh, CAMERA, "normals", renderer=TorchRenderer())
    assert torch.allclose(picture[:, 24, 32], torch.tensor([0.5, 0.5, 1.0]), atol=1e-3)
    flat = render_mesh(mesh, CAMERA, "shaded", renderer=TorchRenderer())[:, 24, 32]
    tilted = Mesh(mesh.vertices + torch.tensor([0, 0, 1.0]) * mesh.vertices[:, :1], mesh.faces)
    slanted = render_mesh(tilted, CAMERA, "shaded", renderer=TorchRenderer())[:, 24, 32]
    assert 0.3 < float(flat.mean()) < 1 and abs(float(flat.mean() - slanted.mean())) > 0.02
    depth = render_mesh(mesh, CAMERA, "depth", renderer=TorchRenderer())
    assert float(depth.max()) <= 1
    with pytest.raises(InputError, match="unknown picture mode"):
        render_mesh(mesh, CAMERA, "wire")  # type: ignore[arg-type]


def test_look_at_and_up():
    pose = look_at(torch.tensor([0.0, -5, 0]), torch.zeros(3), torch.tensor([0.0, 0, 1])).double()
    camera = CAMERA.replace(world_from_cam=pose)
    assert torch.allclose(pose[:3, 2], torch.tensor([0.0, 1, 0], dtype=torch.float64))
    assert torch.allclose(pose[:3, 1], torch.tensor([0.0, 0, -1], dtype=torch.float64))
    assert torch.allclose(up_direction([camera]), torch.tensor([0.0, 0, 1], dtype=torch.float64))


def test_orbit_cameras_see_the_whole_mesh():
    generator = torch.Generator().manual_seed(0)
    vertices = torch.rand(500, 3, generator=generator) * torch.tensor([4.0, 1, 2]) + 7
    vertices[0] = 1000.0  # a floater must not push the cameras away
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2]]))
    cameras = orbit_cameras(mesh, 6, size=(320, 200))
    assert len(cameras) == 6
    for camera in cameras:
        local = vertices[1:].double() @ camera.cam_from_world[:3, :3].T + camera.cam_from_world[:3, 3]
        xy = (local @ camera.K.T)[:, :2] / local[:, 2:]
        inside = (local[:, 2] > 0) & (xy > 0).all(-1) & (xy[:, 0] < 320) & (xy[:, 1] < 200)
        assert float(inside.double().mean()) > 0.95
        # and the mesh fills a good part of the picture
        assert float((xy.amax(0) - xy.amin(0) > torch.tensor([150, 90])).double().max()) == 1
    with pytest.raises(InputError, match="empty mesh"):
        orbit_cameras(Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64)))


def test_scaled_camera_covers_the_same_field():
    big = scaled_camera(CAMERA, 2)
    assert (big.width, big.height) == (128, 96)
    assert torch.allclose(big.K[:2], CAMERA.K[:2] * 2)


def test_lines_are_where_they_should_be():
    white = torch.ones(3, 48, 64)
    segment = torch.tensor([[[-0.4, 0.0, 2.0], [0.4, 0.0, 2.0]]])
    drawn = draw_segments(white, CAMERA, segment, color=(1, 0, 0), thickness=2)
    rows = torch.nonzero(drawn[1].amin(1) < 0.5).squeeze(1)
    assert rows.tolist() == [23, 24]
    columns = torch.nonzero(drawn[1].amin(0) < 0.5).squeeze(1)
    assert columns[0] in (21, 22) and columns[-1] in (41, 42)
    behind = draw_segments(white, CAMERA, -segment, color=(1, 0, 0))
    assert torch.equal(behind, white)
    crossing = draw_segments(white, CAMERA, torch.tensor([[[0.1, 0, -1.0], [0.1, 0, 3.0]]]), color=(1, 0, 0))
    assert float(crossing[1].min()) < 0.5
    other = CAMERA.replace(
        world_from_cam=look_at(torch.tensor([1.0, 0, 3]), torch.zeros(3), torch.tensor([0, -1.0, 0]))
    )
    assert float(draw_frusta(white, CAMERA, [other, Camera(4, 4)], 0.4)[1].min()) < 0.5
    assert draw_frusta(white, CAMERA, [], 0.4) is white


def test_points_keep_the_nearest():
    xyz = torch.tensor([[0.0, 0, 2], [0, 0, 1.5], [0, 0, -1], [9, 0, 1], [0.2, 0.1, 2], [float("nan"), 0, 1]])
    depth, index = rasterize_points(xyz, CAMERA)
    assert int(index[24, 32]) == 1 and float(depth[24, 32]) == pytest.approx(1.5)
    assert int(index[26, 37]) == 4 and int((index >= 0).sum()) == 2
    wide, _ = rasterize_points(xyz, CAMERA, pixel_radius=1)
    assert int((wide > 0).sum()) == 18
    world, _ = rasterize_points(xyz[:1], CAMERA, radius=0.08)
    assert int((world > 0).sum()) == 25
    rgb = torch.tensor([[255, 0, 0]] * 6, dtype=torch.uint8)
    picture = render_points(PointCloud(xyz, rgb), CAMERA, pixel_radius=0)
    assert picture[:, 24, 32].tolist() == [1, 0, 0] and picture[:, 0, 0].tolist() == [1, 1, 1]
    assert render_points(PointCloud(xyz), CAMERA).shape == (3, 48, 64)


def test_depth_colours_darken_evenly_and_mark_unknown():
    depth = 1 / torch.linspace(1, 0.1, 256)[None]
    colors = depth_colors(depth, 1.0, 10.0)[:, 0]
    grey = (colors * torch.tensor([0.2126, 0.7152, 0.0722])[:, None]).sum(0)
    assert bool((grey[1:] <= grey[:-1] + 2e-3).all()) and float(grey[0] - grey[-1]) > 0.5
    unknown = depth_colors(torch.tensor([[0.0, 2.0, float("nan")]]), 1, 3)
    assert float(unknown[:, 0, 0].max()) == 0 and float(unknown[:, 0, 2].max()) == 0
    assert float(unknown[:, 0, 1].max()) > 0.3
    assert depth_limits(torch.zeros(4, 4)) == (1.0, 2.0)
    with pytest.raises(InputError, match="near < far"):
        depth_colors(depth, 3, 2)


def test_other_colours():
    low, high = confidence_colors(torch.tensor([[0.0, 1.0]]))[:, 0].unbind(-1)
    assert float(high.mean()) > float(low.mean()) + 0.3 and low[0] > low[2]
    hidden = confidence_colors(torch.ones(1, 2), torch.tensor([[True, False]]))
    assert float(hidden[:, 0, 1].max()) == 0
    normals = torch.tensor([[[0.0, 0, -1], [0, 0, 0]]])
    assert normal_colors(normals)[:, 0, 0].tolist() == [0.5, 0.5, 1.0]
    assert float(normal_colors(normals)[:, 0, 1].max()) == 0
    white = oklab_to_srgb(torch.tensor([[1.0, 0, 0]], dtype=torch.float64))
    assert torch.allclose(white, torch.ones(1, 3, dtype=torch.float64), atol=1e-3)
