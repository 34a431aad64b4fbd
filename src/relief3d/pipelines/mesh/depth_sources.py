"""Where the depth of a submap comes from: each source gives depth of its keyframes, consistent up to one scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from relief3d.core.contract import Scene, SparseDepth
from relief3d.core.errors import InputError, RunError
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.io.attachments import match_names
from relief3d.io.depth import read_depth
from relief3d.methods.vfm_recon.inputs import SubmapDepth
from relief3d.methods.vfm_recon.submaps import Submap
from relief3d.models.metric.interface import Focal
from relief3d.models.metric.opening import MetricEstimator
from relief3d.models.multiview.interface import MultiViewModel
from relief3d.pipelines.mesh.pictures import KeyframeViews
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.pictures import frame_pictures
from relief3d.pipelines.multiview.predict import Asker
from relief3d.stereo import StereoConfig, estimate_depths

Points = Callable[[Submap], Mapping[int, SparseDepth]]
"""Depth known at some pixels of a submap's keyframes, in the unit of the poses; from triangulation."""

FEW_POINTS = 12
PROMPT_DEPTH = 2.0
"""Median that prompts of unknown unit are brought to, because networks know metres."""
SUFFIXES = (".npz", ".npy", ".png", ".exr", ".pfm", ".tif", ".tiff")


class Source(Protocol):
    """One way to get depth."""

    name: str

    def __call__(self, submap: Submap) -> SubmapDepth:
        """Depth of the keyframes of a submap."""
        ...


class StereoSource:
    """Plane sweep among the keyframes of the submap; in the unit of the poses."""

    name = "stereo"

    def __init__(self, views: KeyframeViews, points: Points, device: torch.device, seed: int = 0) -> None:
        self._views, self._points, self._device = views, points, device
        longest = max(max(c.width, c.height) for c in views.cameras)
        self._config = StereoConfig.profile("default", max_width=longest, seed=seed)

    def __call__(self, submap: Submap) -> SubmapDepth:
        """See :class:`Source`; a keyframe without enough overlap has no depth."""
        scene = Scene(tuple(self._views.view(k) for k in submap.frames))
        ranges = {}
        for place, k in enumerate(submap.frames):
            known = self._points(submap).get(k)
            if known is not None and len(known.z) >= FEW_POINTS:
                low, high = torch.quantile(known.z.double(), torch.tensor([0.01, 0.99], dtype=torch.float64))
                ranges[place] = (0.6 * float(low), 1.8 * float(high))
        found = estimate_depths(scene, self._config, self._device, ranges=ranges or None)
        maps, trust = [], []
        for place, k in enumerate(submap.frames):
            camera, one = self._views.cameras[k], found[place]
            if one is None or one.depth.values.shape != (camera.height, camera.width):
                maps.append(torch.zeros(camera.height, camera.width))
                trust.append(torch.zeros(camera.height, camera.width))
                continue
            maps.append(one.depth.values * one.depth.valid)
            own = one.depth.confidence
            trust.append(torch.ones_like(maps[-1]) if own is None else own)
        return SubmapDepth(*_stacked(maps, trust))


class SensorSource:
    """The recording's own depth."""

    name = "sensor"

    def __init__(self, views: KeyframeViews) -> None:
        self._views = views

    def __call__(self, submap: Submap) -> SubmapDepth:
        """See :class:`Source`; a keyframe without a map has no depth."""
        maps = []
        for k in submap.frames:
            found, camera = self._views.depth(k), self._views.cameras[k]
            if found is None:
                maps.append(torch.zeros(camera.height, camera.width))
            else:
                maps.append(torch.where(found.valid, found.values, torch.zeros_like(found.values)))
        return SubmapDepth(_stacked(maps)[0])


class FileSource:
    """A folder of depth maps named as the pictures, or with one such folder per submap (0, 1, ...).

    Maps of any size cover the picture's field of view and may have any scale; with one folder per submap each its own.

    Raises:
        InputError: a picture without a map.
    """

    name = "files"

    def __init__(self, views: KeyframeViews, folder: Path, scale: float | None) -> None:
        self._views, self._scale, self._folder = views, scale, folder
        if not folder.is_dir():
            raise InputError(
                "there is no such folder of depth maps", path=folder, remedy="check --depth-files"
            )
        self._by_submap = (folder / "0").is_dir()
        if not self._by_submap:
            self._files(folder, range(len(views)))

    def _files(self, folder: Path, frames: Sequence[int]) -> dict[int, Path]:
        found = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
        names = [self._views.names[k] for k in frames]
        matched = match_names(names, [p.relative_to(folder).as_posix() for p in found])
        missing = [name for name in names if name not in matched]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(names)} keyframes have no depth map here, for example {missing[0]}",
                path=folder,
                remedy="name maps as the pictures (.npz, .png, .exr, .pfm)",
            )
        return {k: folder / matched[name] for k, name in zip(frames, names, strict=True)}

    def __call__(self, submap: Submap) -> SubmapDepth:
        """See :class:`Source`."""
        folder = self._folder / str(submap.index) if self._by_submap else self._folder
        if not folder.is_dir():
            raise InputError(
                f"submap {submap.index} has no folder of depth maps",
                path=folder,
                remedy="give one folder per submap; --no-loops asks for no further submaps",
            )
        files = self._files(folder, submap.frames)
        maps, trust = [], []
        for k in submap.frames:
            depth = read_depth(files[k], scale=self._scale, metric=False)
            maps.append(depth.values * depth.valid)
            trust.append(torch.ones_like(maps[-1]) if depth.confidence is None else depth.confidence)
        if len({m.shape for m in maps}) > 1:
            raise InputError("depth maps of one submap have several sizes", path=folder)
        return SubmapDepth(torch.stack(maps), torch.stack(trust))


class MetricSource:
    """A network for metric depth, picture by picture, told triangulated points where it takes them."""

    name = "metric"

    def __init__(
        self, views: KeyframeViews, estimator: MetricEstimator, points: Points, metric: bool
    ) -> None:
        self._views, self._estimator, self._points, self._metric = views, estimator, points, metric
        self.without_prompt: list[str] = []

    def __call__(self, submap: Submap) -> SubmapDepth:
        """See :class:`Source`. A network that needs points gives no depth where there are too few."""
        known = self._points(submap) if self._estimator.weights.needs_prompt else {}
        factor = 1.0
        if known and not self._metric:
            # All keyframes of the submap by the same factor, so that they stay consistent.
            factor = PROMPT_DEPTH / float(torch.cat([s.z for s in known.values()]).median())
        maps, trust = [], []
        for k in submap.frames:
            camera, image = self._views.cameras[k], self._views.picture(k)
            prompt = None
            if self._estimator.weights.needs_prompt:
                prompt = self._prompt(known.get(k), factor, image, k)
                if prompt is None:
                    maps.append(torch.zeros(camera.height, camera.width))
                    trust.append(torch.zeros(camera.height, camera.width))
                    continue
            said = self._estimator.estimate(image, Focal.of_cameras([camera]), prompt)
            depth = said.depth_map(0)
            values = depth.values.float().cpu() * depth.valid.cpu()
            if not bool(torch.isfinite(values).all()):
                raise RunError(
                    f"the depth of '{self._views.names[k]}' is not finite", remedy="check the weights"
                )
            maps.append(values / factor)
            sure = said.confidence
            trust.append(torch.ones_like(values) if sure is None else sure[0].float().cpu())
        return SubmapDepth(*_stacked(maps, trust))

    def _prompt(self, known: SparseDepth | None, factor: float, image: Tensor, k: int) -> MetricPrompt | None:
        if known is None or len(known.z) < FEW_POINTS:
            self.without_prompt.append(self._views.names[k])
            return None
        points = SparseDepth(known.xy.float(), (known.z * factor).float(), metric=True)
        return MetricPrompt.from_sparse(points, (int(image.shape[-2]), int(image.shape[-1])))


class ModelSource:
    """A multi-view network on all keyframes of the submap at once."""

    def __init__(
        self, views: KeyframeViews, model: MultiViewModel, config: MultiviewConfig, device: torch.device
    ) -> None:
        self.name = model.name
        self._views, self._model, self._config, self._device = views, model, config, device

    def __call__(self, submap: Submap) -> SubmapDepth:
        """See :class:`Source`; with the network's own cameras in pixels of its maps."""
        small = [self._views.view(k) for k in submap.frames]
        sizes = [(v.camera.width, v.camera.height) for v in small]
        framing = frame_pictures(sizes, self._config, self._model.prepare_mode, self._model.patch)
        asker = Asker(self._model, small, framing, None, self._device)
        numbers = list(range(len(small)))
        said = asker.ask(asker.load(numbers)[None], numbers)
        assert said.depth is not None and said.depth_confidence is not None and said.K is not None
        maps, trust, Ks = [], [], []
        for place, (width, height) in enumerate(sizes):
            # At the network's own resolution, but covering the whole picture: what it cut off stays unknown.
            A = framing.network_from_original[place]
            w, h = max(1, round(width * float(A[0, 0]))), max(1, round(height * float(A[1, 1])))
            x = (torch.arange(w, dtype=torch.float64) + 0.5) * width / w * A[0, 0] + A[0, 2]
            y = (torch.arange(h, dtype=torch.float64) + 0.5) * height / h * A[1, 1] + A[1, 2]
            inside = ((y >= 0) & (y < framing.height))[:, None] & ((x >= 0) & (x < framing.width))[None]
            rows = y.floor().long().clamp(0, framing.height - 1)
            cols = x.floor().long().clamp(0, framing.width - 1)
            maps.append(said.depth[0, place][rows][:, cols] * inside)
            trust.append(said.depth_confidence[0, place][rows][:, cols] * inside)
            K = framing.original_intrinsics(place, said.K[0, place])
            Ks.append(torch.diag(torch.tensor([w / width, h / height, 1.0], dtype=torch.float64)) @ K)
        depth, confidence = _stacked(maps, trust)
        assert said.world_from_cam is not None
        return SubmapDepth(depth, confidence, torch.stack(Ks), said.world_from_cam[0])


def _stacked(maps: Sequence[Tensor], trust: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """(n, h, w) depth and confidence; maps of other sizes than the first are brought to it by nearest pixels."""
    trust = [torch.ones_like(m) for m in maps] if trust is None else trust
    size = tuple(maps[0].shape)

    def fitted(value: Tensor) -> Tensor:
        if tuple(value.shape) == size:
            return value.float()
        return torch.nn.functional.interpolate(value[None, None].float(), size, mode="nearest-exact")[0, 0]

    return torch.stack([fitted(m) for m in maps]), torch.stack([fitted(t) for t in trust])
