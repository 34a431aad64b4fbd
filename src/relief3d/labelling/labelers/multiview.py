"""Depth, cameras and confidence by the multi-view networks of relief3d: published weights, or a file of one's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth, Prediction, Scene, View
from relief3d.core.device import Precision, resolve_device
from relief3d.core.errors import InputError
from relief3d.geometry.rotations import matrix_from_quat_wxyz, quat_wxyz_from_matrix
from relief3d.geometry.sampling import sample_depth, sample_map
from relief3d.labelling.base import DepthKind, DepthLabel, Grouping, Labels, Uses
from relief3d.labelling.sources import file_digest
from relief3d.models.multiview.interface import InferenceOptions, Known, MultiViewModel, in_unit_range, wrap
from relief3d.models.multiview.loading import PUBLISHED, fetch, load_multiview
from relief3d.models.multiview.preprocess import VGGT_SIDE, PreparedImages, prepare
from relief3d.models.multiview.sizes import network_for_file
from relief3d.models.published import cached_file

SizeName = Literal["nano", "micro", "mini", "small", "full"]


@dataclass(frozen=True)
class MultiviewOptions:
    """Options of ``multiview``.

    Attributes:
        model: a file of weights (VGGT, pi3, Pi3X, Reliev3R; also those that ``relief3d train`` exports), or a name of
            ``relief3d models list``.
        size: of the network that a file of weights is for.
        download: fetch published weights when they are not on this machine.
        window: views per item; 0: all views of a scene.
        step: views from one item to the next.
        side: longer side of the network's pictures; 0: its own.
        given: use trusted intrinsics of the input where the network takes them.
        precision: arithmetic of the transformer.
    """

    model: str = ""
    size: SizeName = "full"
    download: bool = False
    window: int = 8
    step: int = 7
    side: int = 0
    given: bool = False
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.window:
            Grouping("window", self.window, self.step)
        if self.window < 0 or self.side < 0:
            raise InputError("multiview options are out of range", remedy="window >= 0, side >= 0")


class Multiview:
    """Depth of every view in one unit for the whole item, its intrinsics and poses, and the network's confidence.

    Depth is ``metric`` where the network gives metres, else ``scale``; then the unknown factor is the same for all
    views and the poses of an item. Poses are relative to a frame of the network's own. Confidence is the network's,
    brought to [0, 1]; it is 0, and depth unknown, where the picture lies outside the network's frame. Between two
    pixels of the network depth is interpolated, at depth edges the nearest pixel is taken.
    """

    name = "multiview"
    version = 1

    def __init__(self, options: MultiviewOptions, device: str = "cpu") -> None:
        published = options.model in PUBLISHED
        self.options = options if published else replace(options, model=Path(options.model).name)
        self._model = options.model
        self._device = device
        self._network: MultiViewModel | None = None
        self.uses: frozenset[Uses] = frozenset({"image", "camera"} if options.given else {"image"})
        self.grouping = (
            Grouping("window", options.window, options.step) if options.window else Grouping("scene")
        )

    def _file(self) -> Path:
        if self._model not in PUBLISHED:
            path = Path(self._model)
            if not self._model or not path.is_file():
                raise InputError(
                    "there is no such file of weights" if self._model else "no network is named",
                    path=path if self._model else None,
                    remedy=f"set model=FILE, or one of {', '.join(PUBLISHED)}",
                )
            return path
        if self.options.download:
            return fetch(self._model)
        found = cached_file(PUBLISHED[self._model])
        if found is None:
            raise InputError(
                f"the weights of '{self._model}' are not on this machine",
                remedy="set download=true, or give a file",
            )
        return found

    def weights_digest(self) -> str:
        """SHA-256 of the file of weights.

        Raises:
            InputError: there is none.
        """
        return file_digest(self._file())

    def _load(self) -> MultiViewModel:
        if self._network is None:
            path = self._file()
            own = network_for_file(path, self.options.size)
            network = load_multiview(path, network=own, device=resolve_device(self._device))
            self._network = wrap(network, InferenceOptions(self.options.precision))
        return self._network

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Depth and cameras of all views of an item.

        Raises:
            InputError: the network needs intrinsics that are not there.
            RuntimeError: the network gives an impossible lens or pose, or no positive depth at all.
        """
        model = self._load()
        device = resolve_device(self._device)
        pictures = [view.load_image() for view in scene.views]
        side = self.options.side or VGGT_SIDE
        mode = "keep" if self.options.side and model.prepare_mode == "pi3" else model.prepare_mode
        framed = prepare(pictures, mode, side=side, patch=model.patch)
        known = self._known(model, scene, framed, device)
        with torch.inference_mode():
            found = model.predict(framed.images[None].to(device), known)
        return _labels(scene, framed, found, model.name)

    def _known(
        self, model: MultiViewModel, scene: Scene, framed: PreparedImages, device: torch.device
    ) -> Known | None:
        given = [v.camera.K if v.camera.K_source == "given" else None for v in scene.views]
        if not self.options.given or "K" not in model.takes or all(K is None for K in given):
            return None
        eye = torch.eye(3, dtype=torch.float64)
        K = framed.intrinsics(torch.stack([eye if k is None else k for k in given]))
        has = torch.tensor([k is not None for k in given])
        return Known(K=K.float()[None].to(device), has_K=has[None].to(device))


def _labels(scene: Scene, framed: PreparedImages, found: Prediction, name: str) -> Labels:
    if found.depth is None or found.K is None or found.world_from_cam is None:
        raise RuntimeError(f"{name} does not give depth, intrinsics and poses")
    depth = found.depth[0].float().cpu().clone()
    trust = torch.ones_like(depth)
    if found.depth_confidence is not None:
        trust = in_unit_range(found.depth_confidence[0].float().cpu().clone(), name)
    K = framed.original_intrinsics(found.K[0].cpu().double())
    poses = found.world_from_cam[0].cpu().double().clone()
    lens = torch.isfinite(K).all() and (K[:, 0, 0] > 0).all() and (K[:, 1, 1] > 0).all()
    if not bool(lens and torch.isfinite(poses).all() and (depth > 0).any()):
        raise RuntimeError(f"{name} gives an impossible lens or pose, or no depth at all")
    # Rotations of single precision, orthogonal to double precision.
    poses[:, :3, :3] = matrix_from_quat_wxyz(quat_wxyz_from_matrix(poses[:, :3, :3]))
    kind: DepthKind = "metric" if found.metric else "scale"
    maps, cameras = {}, {}
    for i, view in enumerate(scene.views):
        values, confidence = _at_original(
            depth[i], trust[i], framed.network_from_original[i], framed.content[i], view
        )
        maps[view.name] = DepthLabel(
            Depth.from_values(values, metric=found.metric, confidence=confidence), kind
        )
        cameras[view.name] = Camera(
            view.camera.width, view.camera.height, K[i], poses[i], K_source="estimated"
        )
    facts = {"network": name, "views": len(scene.views), "metric": found.metric}
    mean = sum(float(m.depth.confidence.mean()) for m in maps.values() if m.depth.confidence is not None)
    return Labels(depth=maps, cameras=cameras, facts={**facts, "confidence": round(mean / len(maps), 6)})


def _at_original(
    depth: Tensor, trust: Tensor, affine: Tensor, content: Tensor, view: View
) -> tuple[Tensor, Tensor]:
    """Depth and confidence (H, W) at the size of the picture."""
    width, height = view.camera.width, view.camera.height
    x = affine[0, 0] * (torch.arange(width, dtype=torch.float64) + 0.5) + affine[0, 2]
    y = affine[1, 1] * (torch.arange(height, dtype=torch.float64) + 0.5) + affine[1, 2]
    xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2).float()
    good = torch.isfinite(depth) & (depth > 0) & torch.isfinite(trust) & (trust > 0)
    clean = torch.where(good, depth, torch.zeros_like(depth))
    smooth, whole = sample_depth(clean, xy)
    nearest = sample_map(clean, xy, "nearest")
    score = sample_map(torch.where(good, trust, torch.zeros_like(trust)), xy, "nearest")
    values = torch.where(whole, smooth, nearest)
    x0, y0, x1, y1 = content.tolist()
    inside = (xy[:, 0] > x0) & (xy[:, 0] < x1) & (xy[:, 1] > y0) & (xy[:, 1] < y1)
    values = torch.where(inside & (score > 0), values, torch.zeros_like(values))
    score = torch.where(values > 0, score.clamp(0, 1), torch.zeros_like(score))
    return values.reshape(height, width), score.reshape(height, width)
