"""An aligned scene: scales of all submaps, cameras, and the depth of every keyframe when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Depth
from relief3d.fusion.frames import DepthFrame
from relief3d.geometry.camera_edits import resize_camera
from relief3d.geometry.scale_graph import ScaleGraphResult
from relief3d.methods.vfm_recon.config import AlignConfig
from relief3d.methods.vfm_recon.corrections import correction_map
from relief3d.methods.vfm_recon.edges import Edge
from relief3d.methods.vfm_recon.inputs import DepthSource, checked_depth
from relief3d.methods.vfm_recon.masks import BelievedDepth
from relief3d.methods.vfm_recon.overlap import Prediction, combine, home, triangle_window
from relief3d.methods.vfm_recon.pose_check import PoseCheck
from relief3d.methods.vfm_recon.priors import Prior
from relief3d.methods.vfm_recon.submaps import Submap, submaps_of_frames

SceneUnits = Literal["metric", "pose", "normalised", "model"]
Masks = Callable[[int], Tensor | None]


@dataclass(frozen=True)
class AlignedFrame:
    """Aligned depth of one keyframe.

    Attributes:
        frame: keyframe number.
        depth: z-depth with its camera at the size of the map, in the unit of the scene.
        weight: of the whole map in fusion; below 1 where several maps stand for one keyframe.
        disagreement: share of the pixels with several predictions on which these differ too much (dropped).
    """

    frame: int
    depth: DepthFrame
    weight: float
    disagreement: float


@dataclass(frozen=True)
class SubmapFacts:
    """What is known about the depth of a submap before alignment.

    Attributes:
        log_median: ln of its median depth.
        log_far: ln of the 98th percentile of its depth.
        size: (width, height) of its maps.
    """

    log_median: float
    log_far: float
    size: tuple[int, int]


@dataclass(frozen=True)
class SceneAlignment:
    """Result of :func:`relief3d.methods.vfm_recon.align.align_scene`.

    Attributes:
        submaps: chain submaps, then loop submaps; ``submaps[m].index == m``.
        log_scale: (M,) float64 ln s_m: depth of submap m times s_m is in the unit of the scene.
        cameras: of the keyframes, poses in the unit of the scene; pose None where not registered.
        units: ``metric`` metres; ``pose`` the unit of the given poses; ``normalised`` median depth 2, because nothing
            told the scale; ``model`` the depth source's own.
        factor: by which given poses (and depth) were multiplied to reach metres; 1 without a metric anchor.
        usable: keyframes with a pose and a scale, to be fused, in order.
        solution: of the scale graph.
        priors: (M,) scale of every submap from triangulation.
        prior_weights: (M,) lambda_m.
        edges: ratios of submaps, with ``edge_weights`` (E,).
        facts: of every submap.
        corrections: log factor of single predictions, by (submap, place).
        pose_check: how well the poses explain the matches.
        flags: per submap, words such as ``no prior`` and ``unscaled``; empty when all is well.
        suspicious_edges: places in ``edges`` that contradict the rest.
        warnings: sentences for the user, weak spots by name.
        dropped: keyframes left out as duplicates, with the one they repeat.
        config: what it was made with.
        names: of the keyframes, for messages.
    """

    submaps: tuple[Submap, ...]
    log_scale: Tensor
    cameras: tuple[Camera, ...]
    units: SceneUnits
    factor: float
    usable: tuple[int, ...]
    solution: ScaleGraphResult
    priors: tuple[Prior, ...]
    prior_weights: Tensor
    edges: tuple[Edge, ...]
    edge_weights: Tensor
    facts: tuple[SubmapFacts, ...]
    corrections: Mapping[tuple[int, int], Tensor]
    pose_check: PoseCheck
    flags: tuple[tuple[str, ...], ...]
    suspicious_edges: tuple[int, ...]
    warnings: tuple[str, ...]
    dropped: Mapping[int, int]
    config: AlignConfig
    names: tuple[str, ...]
    masks: Masks | None = field(default=None, compare=False)

    @property
    def metric(self) -> bool:
        """Lengths are metres."""
        return self.units == "metric"

    @property
    def median_depth(self) -> float:
        """Median over the chain submaps of their median aligned depth, in the unit of the scene."""
        chain = [m.index for m in self.submaps if m.kind == "chain"]
        values = torch.tensor([self.facts[m].log_median + float(self.log_scale[m]) for m in chain])
        return float(values[torch.isfinite(values)].median().exp())

    @property
    def far_depth(self) -> float:
        """Median over the chain submaps of the 98th percentile of their aligned depth, in the unit of the scene."""
        chain = [m.index for m in self.submaps if m.kind == "chain"]
        values = torch.tensor([self.facts[m].log_far + float(self.log_scale[m]) for m in chain])
        return float(values[torch.isfinite(values)].median().exp())

    def depth_camera(self, frame: int) -> Camera:
        """Camera of a keyframe at the size of its depth map."""
        places = [
            (m.index, m.position(frame)) for m in self.submaps if m.kind == "chain" and frame in m.frames
        ]
        return resize_camera(self.cameras[frame], *self.facts[places[0][0]].size)

    def depth_frames(
        self, depths: DepthSource, frames: Sequence[int] | None = None
    ) -> Iterator[AlignedFrame]:
        """Aligned depth of keyframes, one after the other; no more submaps are held than one keyframe needs.

        Args:
            depths: the source that the scene was aligned with.
            frames: which, in ascending order; all usable ones when None.
        """
        places = submaps_of_frames([m for m in self.submaps if m.kind == "chain"])
        held: dict[int, BelievedDepth] = {}
        for frame in self.usable if frames is None else frames:
            own = places[frame]
            held = {m: d for m, d in held.items() if any(m == k for k, _ in own)}
            for m, _ in own:
                if m not in held:
                    maps = checked_depth(depths, self.submaps[m])
                    held[m] = BelievedDepth(self.submaps[m], maps, self.config.mask)
            yield from self._frame(frame, own, held)

    def _frame(
        self, frame: int, own: Sequence[tuple[int, int]], held: Mapping[int, BelievedDepth]
    ) -> Iterator[AlignedFrame]:
        size = held[own[0][0]].maps.depth.shape[-2:]
        central = own.index(home(own, self.submaps))
        if self.config.overlap.mode == "centre":
            own, central = [own[central]], 0
        mask = None if self.masks is None else self.masks(frame)
        if mask is not None and mask.shape != size:
            shrunk = torch.nn.functional.interpolate(mask[None, None].float(), tuple(size), mode="nearest")
            mask = shrunk[0, 0] > 0.5
        predictions = [self._prediction(held[m], m, place, mask) for m, place in own]
        predictions = [p for p in predictions if p.depth.shape == size]
        camera = resize_camera(self.cameras[frame], int(size[1]), int(size[0]))
        for depth, valid, weight, share in combine(predictions, central, self.config.overlap):
            aligned = Depth(depth, valid, self.metric)
            yield AlignedFrame(frame, DepthFrame(self.names[frame], aligned, camera), weight, share)

    def _prediction(self, held: BelievedDepth, m: int, place: int, mask: Tensor | None) -> Prediction:
        depth = held.maps.depth[place] * float(self.log_scale[m].exp())
        correction = self.corrections.get((m, place))
        if correction is not None:
            depth = depth * correction_map(correction, *depth.shape).exp()
        weight = torch.tensor(triangle_window(place, len(self.submaps[m].frames)))
        if held.maps.confidence is not None:
            confidence = held.maps.confidence[place].float()
            weight = weight * confidence / confidence.mean().clamp_min(1e-12)
        return Prediction(depth, held.full(place, mask), weight)

    def scaled(self, factor: float, units: SceneUnits) -> SceneAlignment:
        """The same scene with all lengths multiplied by ``factor``."""
        cameras = []
        for camera in self.cameras:
            pose = camera.world_from_cam
            if pose is not None:
                pose = pose.clone()
                pose[:3, 3] *= factor
            cameras.append(camera.replace(world_from_cam=pose))
        log = float(torch.tensor(factor, dtype=torch.float64).log())
        return replace(
            self,
            cameras=tuple(cameras),
            log_scale=self.log_scale + log,
            factor=self.factor * factor,
            units=units,
        )
