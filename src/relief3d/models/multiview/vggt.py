"""VGGT (Wang et al. 2025): cameras, depth, points and tracks of many views in one pass.

Parameter names are those of the released checkpoints; see :mod:`relief3d.models.multiview.configs` for sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from relief3d.models.multiview.aggregator import Aggregator, AggregatorConfig
from relief3d.models.multiview.camera_head import CameraHead, CameraHeadConfig
from relief3d.models.multiview.tracker import Tracker, TrackerConfig
from relief3d.nn.attention import Attend, attend_fully
from relief3d.nn.dpt import DptConfig, DptHead, head_chunk

Head = Literal["camera", "depth", "points", "tracks"]


@dataclass(frozen=True)
class VggtConfig:
    """Sizes of a VGGT.

    Attributes:
        aggregator: the trunk.
        camera: the camera head; its width is twice the trunk's.
        layers: the four pairs of blocks that the dense heads read.
        features: channels of the depth and point heads.
        out_channels: of their four levels.
        tracker: the tracker; its ``latent`` is also the width of its feature head.
        heads: which heads exist.
    """

    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    camera: CameraHeadConfig = field(default_factory=CameraHeadConfig)
    layers: tuple[int, int, int, int] = (4, 11, 17, 23)
    features: int = 256
    out_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    heads: tuple[Head, ...] = ("camera", "depth", "points", "tracks")

    def dense(self, output_dim: int | None, features: int, **changes: object) -> DptConfig:
        """Configuration of a dense head."""
        return DptConfig(
            2 * self.aggregator.vit.dim,
            features,
            self.out_channels,
            output_dim,
            patch=self.aggregator.vit.patch,
            **changes,  # type: ignore[arg-type]
        )


class TrackHead(nn.Module):
    """Feature maps for the tracker, and the tracker."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        stride = config.tracker.stride
        self.feature_extractor = DptHead(
            config.dense(None, config.tracker.latent, pos_embed=False, down_ratio=stride)
        )
        self.tracker = Tracker(config.tracker)


@dataclass(frozen=True)
class VggtOutput:
    """What the heads say; parts that were not asked for are None.

    Attributes:
        pose_encodings: (B, S, 9) after every round of the camera head.
        depth: (B, S, H, W) z-depth in the scene's own scale.
        depth_confidence: (B, S, H, W), at least 1.
        points: (B, S, H, W, 3) in the frame of the first camera.
        points_confidence: (B, S, H, W), at least 1.
        tracks: (B, S, N, 2) pixels after every round of the tracker.
        visible: (B, S, N) in [0, 1].
        track_confidence: (B, S, N) in [0, 1].
    """

    pose_encodings: tuple[Tensor, ...] = ()
    depth: Tensor | None = None
    depth_confidence: Tensor | None = None
    points: Tensor | None = None
    points_confidence: Tensor | None = None
    tracks: tuple[Tensor, ...] = ()
    visible: Tensor | None = None
    track_confidence: Tensor | None = None


def inverse_log(x: Tensor) -> Tensor:
    """sign(x) (exp |x| - 1)."""
    return x.sign() * torch.expm1(x.abs())


class Vggt(nn.Module):
    """The network; see the module's description."""

    def __init__(self, config: VggtConfig | None = None) -> None:
        super().__init__()
        config = config or VggtConfig()
        self.config = config
        self.aggregator = Aggregator(config.aggregator)
        if "camera" in config.heads:
            self.camera_head = CameraHead(config.camera)
        if "points" in config.heads:
            self.point_head = DptHead(config.dense(4, config.features))
        if "depth" in config.heads:
            self.depth_head = DptHead(config.dense(2, config.features))
        if "tracks" in config.heads:
            self.track_head = TrackHead(config)

    def forward(
        self,
        images: Tensor,
        query_points: Tensor | None = None,
        *,
        heads: Sequence[Head] | None = None,
        chunk: int | None = 8,
        attend: Attend = attend_fully,
    ) -> VggtOutput:
        """Reconstruct.

        Args:
            images: (B, S, 3, H, W) in [0, 1]; sides are multiples of the patch.
            query_points: (B, N, 2) pixels (x, y) of the first view to track.
            heads: which to run; None for all there are (tracks only with queries).
            chunk: views at a time wherever views are independent; only memory depends on it.
            attend: inner product of the attention across views.

        Raises:
            ValueError: a head that this network lacks was asked for, or tracks without points.
        """
        wanted = self._wanted(heads, query_points)
        size = (int(images.shape[-2]), int(images.shape[-1]))
        last = self.config.aggregator.depth - 1
        dense = {"depth", "points", "tracks"} & set(wanted)
        keep = {*(self.config.layers if dense else ()), *([last] if "camera" in wanted else ())}
        tokens = self.aggregator(images, keep, chunk=chunk, attend=attend)
        out: dict[str, Any] = self._cameras(tokens[last]) if "camera" in wanted else {}
        # Heads were trained, and are run, in float32 without autocast.
        chunk = head_chunk(chunk, size, images.device)
        with torch.autocast(images.device.type, enabled=False):
            layers = [self._patches(tokens[i]) for i in self.config.layers] if dense else []
            if "depth" in wanted:
                raw = self.depth_head(layers, size, chunk).unflatten(0, images.shape[:2])
                out["depth"], out["depth_confidence"] = raw[:, :, 0].exp(), 1 + raw[:, :, 1].exp()
            if "points" in wanted:
                raw = self.point_head(layers, size, chunk).unflatten(0, images.shape[:2])
                out["points"] = inverse_log(raw[:, :, :3]).movedim(2, -1)
                out["points_confidence"] = 1 + raw[:, :, 3].exp()
        if "tracks" in wanted and query_points is not None:
            maps = self.track_features(layers, images, chunk)
            tracks, out["visible"], out["track_confidence"] = self.track_head.tracker(query_points, maps)
            out["tracks"] = tuple(tracks)
        return VggtOutput(**out)

    def track_features(self, layers: Sequence[Tensor], images: Tensor, chunk: int | None = 8) -> Tensor:
        """(B, S, latent, H / stride, W / stride) feature maps for the tracker."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        return self.track_head.feature_extractor(layers, size, chunk).unflatten(0, images.shape[:2])

    def _wanted(self, heads: Sequence[Head] | None, query_points: Tensor | None) -> tuple[Head, ...]:
        if heads is None:
            return tuple(h for h in self.config.heads if h != "tracks" or query_points is not None)
        missing = set(heads) - set(self.config.heads)
        if missing:
            raise ValueError(f"this network has no head for {', '.join(sorted(missing))}")
        if "tracks" in heads and query_points is None:
            raise ValueError("tracks need points to track")
        return tuple(heads)

    def _cameras(self, tokens: Tensor) -> dict[str, Any]:
        with torch.autocast(tokens.device.type, enabled=False):
            camera = tokens[:, :, 0].to(self.camera_head.token_norm.weight.dtype)
            return {"pose_encodings": tuple(self.camera_head(camera))}

    def _patches(self, tokens: Tensor) -> Tensor:
        """(B * S, P, 2 C) patch tokens."""
        dtype = self.aggregator.camera_token.dtype
        return tokens[:, :, self.aggregator.specials :].flatten(0, 1).to(dtype)
