"""The viewer's scene and its controls."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera, View
from relief3d.core.errors import InputError
from relief3d.core.seeding import torch_generator
from relief3d.geometry.rotations import quat_wxyz_from_matrix
from relief3d.pipelines.reconstruct.pinhole import pinhole_view
from relief3d.report.geometry3d import camera_centres, estimate_up, scene_bounds
from relief3d.report.pictures import fit
from relief3d.viewer.loading import LoadedOutput, world_points
from relief3d.viewer.picking import pickable_points, point_on_ray
from relief3d.viewer.surface import surface_glb

_UPS = {
    "+x": (1, 0, 0), "-x": (-1, 0, 0), "+y": (0, 1, 0), "-y": (0, -1, 0), "+z": (0, 0, 1), "-z": (0, 0, -1),
}  # fmt: skip
_FROM_CAMERAS = "from cameras"
_MAX_POINTS = 400_000
_MAX_FACES = 600_000
_PICTURE_SIDE = 320
_NOBODY = "(none)"
_OVERVIEW_FOV = 0.9


@dataclass(frozen=True)
class _Cloud:
    """Points in memory as the viewer draws them: (N, 3) float32, (N, 3) uint8, (N,) float32 or None."""

    xyz: np.ndarray
    rgb: np.ndarray
    confidence: np.ndarray | None


class Stage:
    """Fills a viser server with an output folder and wires the controls.

    Args:
        server: a viser server.
        output: what to show.
    """

    def __init__(self, server: Any, output: LoadedOutput) -> None:
        self.server = server
        self.output = output
        self.scene = output.scene
        self.up = estimate_up(self.scene)
        self.bounds = scene_bounds(self.scene)
        self.unit = "m" if self.scene.metric else "units"
        self._cloud = self._fused_cloud()
        self._targets = pickable_points(self.scene)
        self._marks: list[Tensor] = []
        self._lock = threading.Lock()
        self.frusta: dict[str, Any] = {}
        self._build_scene()
        self._build_controls()
        self._place_visitors()

    def _build_scene(self) -> None:
        scene = self.server.scene
        scene.set_up_direction(tuple(self.up.tolist()))
        self.mesh_node = None
        if self.scene.mesh is not None and self.scene.mesh.faces.shape[0]:
            self.mesh_node = scene.add_glb("/mesh", surface_glb(self.scene.mesh, _MAX_FACES))
        size = 0.0016 * self.bounds.diagonal
        self.points_node = None
        if self._cloud is not None:
            self.points_node = scene.add_point_cloud(
                "/points", self._cloud.xyz, self._cloud.rgb, point_size=size, precision="float32",
                point_shape="circle", visible=self.mesh_node is None,
            )  # fmt: skip
        self.sparse_node = None
        if self.scene.sparse is not None and len(self.scene.sparse):
            self.sparse_node = scene.add_point_cloud(
                "/tie points", self.scene.sparse.xyz.float().numpy(), self.scene.sparse.rgb.numpy(),
                point_size=1.5 * size, precision="float32", point_shape="circle",
                visible=self.mesh_node is None and self.points_node is None,
            )  # fmt: skip
        self._point_size = size
        self.length = self._frustum_length()
        for index in self.scene.posed:
            self._add_camera(self.scene.views[index])

    def _add_camera(self, view: View) -> None:
        camera = view.camera
        assert camera.K is not None and camera.world_from_cam is not None
        node = self.server.scene.add_camera_frustum(
            f"/cameras/{len(self.frusta):05d}", fov=_vertical_fov(camera), aspect=camera.width / camera.height,
            scale=self.length, thickness=1.5, thickness_units="screen", color=(70, 90, 220), image=_thumbnail(view),
            wxyz=quat_wxyz_from_matrix(camera.world_from_cam[:3, :3]).numpy(),
            position=camera.world_from_cam[:3, 3].numpy(), cast_shadow=False, receive_shadow=False,
        )  # fmt: skip
        self.frusta[view.name] = node

        @node.on_click
        def _(event: Any) -> None:
            self.choose.value = view.name
            self.jump(event.client, view)

    def _frustum_length(self) -> float:
        centres = camera_centres(self.scene)
        length = 0.05 * self.bounds.diagonal
        if centres.shape[0] > 1:
            gaps = torch.cdist(centres, centres).fill_diagonal_(torch.inf).min(dim=1).values
            length = min(length, 0.35 * float(gaps.median()))
        return max(length, 0.008 * self.bounds.diagonal)

    def _fused_cloud(self) -> _Cloud | None:
        points = self.scene.points
        if points is None or points.xyz.shape[0] == 0:
            return None
        keep = torch.nonzero(torch.isfinite(points.xyz).all(dim=-1)).squeeze(1)
        if keep.shape[0] > _MAX_POINTS:
            keep = keep[torch.randperm(keep.shape[0], generator=torch_generator(0))[:_MAX_POINTS]]
        rgb = (
            torch.full((keep.shape[0], 3), 150, dtype=torch.uint8) if points.rgb is None else points.rgb[keep]
        )
        level = (
            None if points.confidence is None else torch.nan_to_num(points.confidence[keep]).float().numpy()
        )
        return _Cloud(points.xyz[keep].float().numpy(), rgb.numpy(), level)

    def _build_controls(self) -> None:
        gui = self.server.gui
        gui.add_markdown(self._facts())
        with gui.add_folder("Show"):
            self._toggle("Mesh", self.mesh_node)
            self._toggle("Points", self.points_node)
            self._toggle("Tie points", self.sparse_node)
            cameras = gui.add_checkbox("Cameras", bool(self.frusta), disabled=not self.frusta)
            cameras.on_update(lambda _: self._set_visible(self.frusta.values(), cameras.value))
            self.size = gui.add_slider("Point size", 0.2, 5.0, 0.1, 1.0)
            self.size.on_update(lambda _: self._resize_points())
            self.scale = gui.add_slider("Camera size", 0.2, 5.0, 0.1, 1.0)
            self.scale.on_update(lambda _: self._resize_cameras())
            if self._cloud is not None and self._cloud.confidence is not None:
                self.least = gui.add_slider("Confidence from", 0.0, 1.0, 0.01, 0.0)
                self.least.on_update(lambda _: self._filter_points())
            up = gui.add_dropdown("Up", (_FROM_CAMERAS, *_UPS))
            up.on_update(
                lambda _: self.server.scene.set_up_direction(_UPS.get(up.value, tuple(self.up.tolist())))
            )
        with gui.add_folder("Cameras"):
            names = tuple(self.frusta) or (_NOBODY,)
            self.choose = gui.add_dropdown("View", names)
            jump = gui.add_button("Jump to camera", disabled=not self.frusta)
            jump.on_click(lambda event: self.jump(event.client, self._view(self.choose.value)))
            self.with_depth = gui.add_dropdown(
                "Depth as points", ("off", "this view", "all views"), disabled=not self.output.depths
            )
            self.with_depth.on_update(lambda _: self.show_depth())
            self.choose.on_update(lambda _: self.show_depth())
            reset = gui.add_button("Reset view")
            reset.on_click(lambda event: self._overview(event.client.camera))
        with gui.add_folder("Measure"):
            self.measuring = gui.add_checkbox("Click two points", False, disabled=self._targets.shape[0] == 0)
            self.distance = gui.add_text("Distance", "–", disabled=True)
            self.measuring.on_update(lambda _: self._switch_measuring())

    def _facts(self) -> str:
        scene = self.scene
        rows = [f"**{len(scene.posed)}** cameras"]
        if scene.sparse is not None:
            rows.append(f"**{len(scene.sparse):,}** tie points")
        if scene.points is not None:
            rows.append(f"**{scene.points.xyz.shape[0]:,}** points")
        if scene.mesh is not None:
            rows.append(f"**{scene.mesh.faces.shape[0]:,}** triangles")
        side = " × ".join(f"{float(s):.3g}" for s in self.bounds.high - self.bounds.low)
        lost = f"  \nnot there: {', '.join(self.output.missing)}" if self.output.missing else ""
        return f"{', '.join(rows)}  \n{side} {self.unit}{lost}"

    def _toggle(self, label: str, node: Any) -> None:
        box = self.server.gui.add_checkbox(label, node is not None and node.visible, disabled=node is None)
        if node is not None:
            box.on_update(lambda _: self._set_visible([node], box.value))

    def _set_visible(self, nodes: Any, value: bool) -> None:
        for node in nodes:
            node.visible = value

    def _resize_points(self) -> None:
        for node, factor in ((self.points_node, 1.0), (self.sparse_node, 1.5)):
            if node is not None:
                node.point_size = factor * self._point_size * self.size.value

    def _resize_cameras(self) -> None:
        for node in self.frusta.values():
            node.scale = self.length * self.scale.value

    def _filter_points(self) -> None:
        assert self._cloud is not None and self._cloud.confidence is not None and self.points_node is not None
        keep = self._cloud.confidence >= self.least.value
        with self.server.atomic():
            self.points_node.points = self._cloud.xyz[keep]
            self.points_node.colors = self._cloud.rgb[keep]

    def _view(self, name: str) -> View:
        return next(view for view in self.scene.views if view.name == name)

    def _place_visitors(self) -> None:
        """Where a visitor starts, and the clicks of all of them."""
        self._overview(self.server.initial_camera)

    def _overview(self, camera: Any) -> None:
        """Above and behind the cameras, looking at the middle."""
        middle = (self.bounds.low + self.bounds.high) / 2
        back = torch.zeros(3, dtype=torch.float64)
        for index in self.scene.posed:
            pose = self.scene.views[index].camera.world_from_cam
            assert pose is not None
            back -= pose[:3, 2]
        back = back - (back @ self.up) * self.up
        if float(back.norm()) < 0.15 * max(1, len(self.scene.posed)):
            helper = torch.tensor([1.0, 0.3, 0.2], dtype=torch.float64)
            back = helper - (helper @ self.up) * self.up
        eye = middle + 0.95 * self.bounds.diagonal * (0.85 * back / back.norm() + 0.53 * self.up)
        camera.position, camera.look_at = tuple(eye.tolist()), tuple(middle.tolist())
        camera.fov = _OVERVIEW_FOV

    def jump(self, client: Any, view: View) -> None:
        """Put one visitor's eye into a camera."""
        camera = view.camera
        if client is None or camera.world_from_cam is None:
            return
        pose = camera.world_from_cam
        with client.atomic():
            client.camera.wxyz = quat_wxyz_from_matrix(pose[:3, :3]).numpy()
            client.camera.position = pose[:3, 3].numpy()
            client.camera.look_at = (pose[:3, 3] + 0.25 * self.bounds.diagonal * pose[:3, 2]).numpy()
            client.camera.fov = min(_vertical_fov(camera) * 1.08, 2.8)

    def show_depth(self) -> None:
        """Depth maps as points: none, of the chosen view, or of all."""
        wanted: Sequence[str] = ()
        if self.with_depth.value == "this view":
            wanted = [self.choose.value]
        elif self.with_depth.value == "all views":
            wanted = list(self.output.depths)
        parts = [self._depth_cloud(name) for name in wanted if name in self.output.depths]
        with self._lock:
            if not parts:
                self.server.scene.remove_by_name("/depth")
                return
            xyz, rgb = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
            if xyz.shape[0] > _MAX_POINTS:
                keep = torch.randperm(xyz.shape[0], generator=torch_generator(0))[:_MAX_POINTS]
                xyz, rgb = xyz[keep], rgb[keep]
            self.server.scene.add_point_cloud(
                "/depth", xyz.float().numpy(), rgb.numpy(), point_size=self._point_size * self.size.value,
                precision="float32", point_shape="circle",
            )  # fmt: skip

    def _depth_cloud(self, name: str) -> tuple[Tensor, Tensor]:
        """(N, 3) positions and (N, 3) uint8 colours of one depth map."""
        found, view = self.output.depths[name], self._view(name)
        depth = found.load()
        xyz, index = world_points(depth, found.camera)
        if view.image is None:
            return xyz, torch.full((xyz.shape[0], 3), 150, dtype=torch.uint8)
        size = (found.camera.height, found.camera.width)
        image = torch.nn.functional.interpolate(
            pinhole_view(view).load_image()[None], size=size, mode="area"
        )[0]
        rgb = (image.reshape(3, -1).T[index].clamp(0, 1) * 255).round().to(torch.uint8)
        return xyz, rgb

    def _switch_measuring(self) -> None:
        scene = self.server.scene
        self._marks.clear()
        self.distance.value = "–"
        scene.remove_by_name("/measure")
        scene.remove_click_callback("all")
        if self.measuring.value:
            scene.on_click()(self._measure)

    def _measure(self, event: Any) -> None:
        origin = torch.tensor(event.ray_origin, dtype=torch.float64)
        hit = point_on_ray(self._targets, origin, torch.tensor(event.ray_direction, dtype=torch.float64))
        if hit is None:
            return
        with self._lock:
            self.mark(hit)

    def mark(self, point: Tensor) -> float | None:
        """Add a mark at a (3,) world point; the second one gives the distance in scene units."""
        scene = self.server.scene
        if len(self._marks) == 2:
            self._marks.clear()
            scene.remove_by_name("/measure")
        self._marks.append(point)
        scene.add_icosphere(
            f"/measure/{len(self._marks)}",
            0.004 * self.bounds.diagonal,
            (230, 90, 50),
            position=tuple(point.tolist()),
        )
        if len(self._marks) < 2:
            self.distance.value = "click the second point"
            return None
        a, b = self._marks
        length = float((a - b).norm())
        self.distance.value = f"{length:.4g} {self.unit}"
        scene.add_line_segments(
            "/measure/line",
            torch.stack([a, b])[None].float().numpy(),
            (230, 90, 50),
            thickness=3,
            thickness_units="screen",
        )
        scene.add_label("/measure/label", self.distance.value, position=tuple(((a + b) / 2).tolist()))
        return length


def _vertical_fov(camera: Camera) -> float:
    assert camera.K is not None
    return float(2 * torch.atan(camera.height / (2 * camera.K[1, 1])))


def _thumbnail(view: View) -> np.ndarray | None:
    """(h, w, 3) uint8 undistorted picture, or None when it is not at hand."""
    if view.image is None:
        return None
    try:
        image = pinhole_view(view).load_image()
    except InputError:
        return None  # the pictures may have moved since; the cameras are still worth showing
    return (fit(image, _PICTURE_SIDE).permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
