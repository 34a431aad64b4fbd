"""Pictures of meshes: shaded, coloured, textured, normals, depth; orbits; camera frusta drawn over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.geometry.projection import intrinsics_from_fov, pixel_rays
from relief3d.geometry.transforms import look_at
from relief3d.render.colormaps import depth_colors, normal_colors
from relief3d.render.factory import make_renderer
from relief3d.render.protocols import BackFaces, DepthRenderer, Hits, posed_pinhole

PictureMode = Literal["shaded", "colour", "normals", "depth"]
BACKGROUND = (1.0, 1.0, 1.0)
_CLAY = (0.80, 0.79, 0.76)


def render_mesh(
    mesh: Mesh,
    camera: Camera,
    mode: PictureMode = "shaded",
    *,
    renderer: DepthRenderer | None = None,
    background: tuple[float, float, float] = BACKGROUND,
    back_faces: BackFaces = "keep",
    supersample: int = 2,
) -> Tensor:
    """A picture of a mesh.

    Args:
        mesh: with normals, colours or texture as the mode wants; what is missing is computed or left grey.
        camera: posed pinhole camera; its size is the size of the picture.
        mode: ``shaded`` clay lit from the camera; ``colour`` texture, else vertex colours, unlit; ``normals``
            in the camera frame; ``depth`` in colours of :func:`~relief3d.render.colormaps.depth_colors`.
        renderer: back end; None chooses one.
        background: RGB in [0, 1] where nothing is hit.
        back_faces: ``cull`` looks into a room from outside; see the protocol.
        supersample: rays per pixel along each axis.

    Returns:
        (3, H, W) float32 RGB in [0, 1].

    Raises:
        InputError: for an unknown mode or a camera that cannot be rendered.
    """
    if mode not in ("shaded", "colour", "normals", "depth"):
        raise InputError(f"unknown picture mode '{mode}'", remedy="choose shaded, colour, normals or depth")
    renderer = renderer or make_renderer()
    fine = scaled_camera(camera, supersample)
    hits = renderer.cast(mesh, fine, back_faces=back_faces)
    hit = hits.hit
    if mode == "depth":
        picture = depth_colors(hits.depth)
    elif mode == "normals":
        picture = normal_colors(_camera_normals(mesh, hits, fine))
    elif mode == "colour":
        picture = surface_colors(mesh, hits).movedim(-1, 0)
    else:
        picture = _shade(mesh, hits, fine).movedim(-1, 0)
    back = torch.tensor(background, dtype=torch.float32, device=picture.device)[:, None, None]
    picture = torch.where(hit, picture.float(), back.expand_as(picture))
    if supersample > 1:
        picture = torch.nn.functional.avg_pool2d(picture[None], supersample)[0]
    return picture.clamp(0, 1)


def scaled_camera(camera: Camera, factor: float) -> Camera:
    """The camera with ``factor`` times the pixels along each axis."""
    K, _ = posed_pinhole(camera)
    width, height = max(1, round(camera.width * factor)), max(1, round(camera.height * factor))
    scale = torch.tensor([width / camera.width, height / camera.height, 1.0], dtype=torch.float64)
    return camera.replace(width=width, height=height, K=K * scale[:, None])


def _interpolate(values: Tensor, mesh: Mesh, hits: Hits) -> Tensor:
    """(H, W, C) float32 vertex values (V, C) at the hits, 0 elsewhere."""
    out = values.new_zeros(*hits.face.shape, values.shape[1], dtype=torch.float32)
    hit = hits.hit
    corners = mesh.faces.to(hits.face.device)[hits.face[hit]]
    out[hit] = (values.to(hits.face.device).float()[corners] * hits.barycentric[hit][..., None]).sum(1)
    return out


def _camera_normals(mesh: Mesh, hits: Hits, camera: Camera) -> Tensor:
    """(H, W, 3) unit normals in the camera frame, turned towards the camera, 0 where nothing is hit."""
    K, cam_from_world = posed_pinhole(camera)
    device = hits.face.device
    rotation = cam_from_world[:3, :3].float().to(device)
    out = torch.zeros(*hits.face.shape, 3, device=device)
    a, b, c = mesh.vertices.to(device)[mesh.faces.to(device)[hits.face[hits.hit]]].unbind(1)
    flat = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-30)
    if mesh.normals is not None:
        smooth = _interpolate(mesh.normals, mesh, hits)[hits.hit]
        flat = torch.nn.functional.normalize(
            torch.where(smooth.norm(dim=-1, keepdim=True) > 0.1, smooth, flat), dim=-1
        )
    out[hits.hit] = flat @ rotation.T
    rays = pixel_rays(K, camera.height, camera.width).float().to(device)
    away = (out * rays).sum(-1, keepdim=True) > 0
    return torch.where(away, -out, out)


def surface_colors(mesh: Mesh, hits: Hits) -> Tensor:
    """(H, W, 3) float32 colours at the hits in [0, 1]: texture, else vertex colours, else grey."""
    if mesh.uv is not None and mesh.texture is not None:
        uv = _interpolate(mesh.uv, mesh, hits)
        # Texture coordinates start at the bottom left, grids at the top left.
        grid = torch.stack((2 * uv[..., 0] - 1, 1 - 2 * uv[..., 1]), -1)
        texture = mesh.texture.to(uv.device).permute(2, 0, 1)[None].float() / 255
        seen = torch.nn.functional.grid_sample(
            texture, grid[None], mode="bilinear", padding_mode="border", align_corners=False
        )
        return seen[0].movedim(0, -1)
    if mesh.rgb is not None:
        return _interpolate(mesh.rgb.float() / 255, mesh, hits)
    return torch.tensor(_CLAY, device=hits.face.device).expand(*hits.face.shape, 3).float()


def _shade(mesh: Mesh, hits: Hits, camera: Camera) -> Tensor:
    """Clay lit by a lamp beside the camera plus light from above, darker in creases seen at an angle."""
    normals = _camera_normals(mesh, hits, camera)
    lamp = torch.nn.functional.normalize(normals.new_tensor([-0.35, -0.5, -1.0]), dim=0)
    fill = torch.nn.functional.normalize(normals.new_tensor([0.8, 0.1, -0.6]), dim=0)
    light = 0.25 + 0.62 * (normals @ lamp).clamp_min(0) + 0.28 * (normals @ fill).clamp_min(0)
    return normals.new_tensor(_CLAY) * light[..., None]


def up_direction(cameras: Sequence[Camera]) -> Tensor:
    """(3,) float64 world direction that is up in most pictures: the mean of the cameras' up axes."""
    ups = [-c.world_from_cam[:3, 1] for c in cameras if c.world_from_cam is not None]
    mean = torch.stack(ups).mean(0) if ups else torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    if float(mean.norm()) < 1e-3:
        mean = ups[0]
    return mean / mean.norm()


def orbit_cameras(
    mesh: Mesh,
    count: int = 8,
    *,
    size: tuple[int, int] = (640, 480),
    up: Tensor | None = None,
    elevation: float = 25.0,
    start: Tensor | None = None,
    fov: float = 45.0,
    distance: float = 1.0,
) -> list[Camera]:
    """Cameras on a circle around a mesh, looking at its middle.

    The middle and the size come from the 2 % to 98 % quantiles of the vertices, so that a few floaters do
    not push the cameras away.

    Args:
        mesh: with at least one vertex.
        count: number of cameras.
        size: (width, height) of the pictures.
        up: (3,) world direction; None takes +z.
        elevation: degrees above the horizon.
        start: (3,) world direction from the middle to the first camera; None takes any.
        fov: horizontal field of view in degrees.
        distance: factor on the distance at which the whole mesh fits.

    Raises:
        InputError: for a mesh without vertices.
    """
    if mesh.vertices.shape[0] == 0:
        raise InputError("an empty mesh cannot be looked at")
    vertices = mesh.vertices.detach().cpu().double()
    if vertices.shape[0] > 200_000:
        vertices = vertices[:: vertices.shape[0] // 100_000]
    low, high = (torch.quantile(vertices, q, dim=0) for q in (0.02, 0.98))
    middle = (low + high) / 2
    core = vertices[((vertices >= low) & (vertices <= high)).all(-1)]
    core = (core if core.shape[0] else vertices) - middle
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) if up is None else up.double()
    axis = axis / axis.norm()
    first = torch.tensor([1.0, 0.3, 0.2], dtype=torch.float64) if start is None else start.double()
    first = first - (first @ axis) * axis
    if float(first.norm()) < 1e-6:
        first = torch.linalg.cross(axis, torch.tensor([0.31, 0.85, 0.42], dtype=torch.float64))
    first = first / first.norm()
    second = torch.linalg.cross(axis, first)
    width, height = size
    K = intrinsics_from_fov(width, height, math.radians(fov))
    lift = math.radians(elevation)
    cameras = []
    for i in range(count):
        turn = 2 * math.pi * i / count
        flat = math.cos(turn) * first + math.sin(turn) * second
        away = math.cos(lift) * flat + math.sin(lift) * axis
        pose = look_at(middle + away, middle, axis)
        # Each point needs |x| / (reach + z) <= half width / focal length, likewise for y.
        local = core @ pose[:3, :3]
        need = torch.maximum(
            local[:, 0].abs() * K[0, 0] / (width / 2), local[:, 1].abs() * K[1, 1] / (height / 2)
        )
        reach = 1.08 * distance * max(float((need - local[:, 2]).max()), 1e-6)
        pose[:3, 3] = middle + reach * away
        cameras.append(Camera(width, height, K, pose))
    return cameras


def draw_frusta(
    picture: Tensor,
    camera: Camera,
    frusta: Sequence[Camera],
    size: float,
    *,
    color: tuple[float, float, float] = (0.85, 0.15, 0.10),
    thickness: float = 1.4,
) -> Tensor:
    """The picture with the pyramids of some cameras drawn over it (not hidden by the mesh).

    Args:
        picture: (3, H, W) in [0, 1], made by ``camera``.
        camera: the camera of the picture.
        frusta: cameras to draw; those without intrinsics or pose are left out.
        size: depth of the pyramids in world units.
        color: RGB in [0, 1].
        thickness: of the lines in pixels.
    """
    segments = []
    for other in frusta:
        if other.K is None or other.world_from_cam is None:
            continue
        w, h = float(other.width), float(other.height)
        corners = torch.tensor([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1]], dtype=torch.float64)
        tips = corners @ torch.linalg.inv(other.K).T * size
        tips = tips @ other.world_from_cam[:3, :3].T + other.world_from_cam[:3, 3]
        apex = other.world_from_cam[:3, 3]
        segments += [torch.stack((apex, tip)) for tip in tips]
        segments += [torch.stack((tips[i], tips[(i + 1) % 4])) for i in range(4)]
    if not segments:
        return picture
    return draw_segments(picture, camera, torch.stack(segments), color=color, thickness=thickness)


def draw_segments(
    picture: Tensor,
    camera: Camera,
    segments: Tensor,
    *,
    color: tuple[float, float, float],
    thickness: float = 1.4,
) -> Tensor:
    """The picture with world segments (S, 2, 3) drawn as anti-aliased lines; parts behind the camera are cut."""
    K, cam_from_world = posed_pinhole(camera)
    local = segments.double() @ cam_from_world[:3, :3].T + cam_from_world[:3, 3]
    near = 1e-3 * max(1e-9, float(local[..., 2].abs().max()))
    cover = torch.zeros(camera.height, camera.width, dtype=torch.float64)
    for a, b in local:
        if a[2] < near and b[2] < near:
            continue
        if a[2] < near or b[2] < near:
            cut = a + (near - a[2]) / (b[2] - a[2]) * (b - a)
            a, b = (cut, b) if a[2] < near else (a, cut)
        p, q = ((K @ v)[:2] / v[2] for v in (a, b))
        _cover_line(cover, p, q, thickness)
    ink = torch.tensor(color, dtype=picture.dtype)[:, None, None]
    share = cover.to(picture.dtype)
    return picture * (1 - share) + ink * share


def _cover_line(cover: Tensor, p: Tensor, q: Tensor, thickness: float) -> None:
    """Raise the coverage of the pixels near the segment p-q, in place."""
    height, width = cover.shape
    margin = thickness + 1
    low = (torch.minimum(p, q) - margin).floor()
    high = (torch.maximum(p, q) + margin).ceil()
    x0, y0 = (max(0, int(v.clamp(-1, 1e6))) for v in low)
    x1, y1 = min(width, int(high[0].clamp(-1, 1e6))), min(height, int(high[1].clamp(-1, 1e6)))
    if x0 >= x1 or y0 >= y1:
        return
    y, x = torch.meshgrid(torch.arange(y0, y1) + 0.5, torch.arange(x0, x1) + 0.5, indexing="ij")
    pixel = torch.stack((x, y), -1).double()
    run = q - p
    t = (((pixel - p) @ run) / run.square().sum().clamp_min(1e-12)).clamp(0, 1)
    gap = (pixel - p - t[..., None] * run).norm(dim=-1)
    part = cover[y0:y1, x0:x1]
    torch.maximum(part, (thickness / 2 + 0.5 - gap).clamp(0, 1), out=part)
