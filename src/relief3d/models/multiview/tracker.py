"""VGGT's point tracker, a CoTracker-like refinement over correlation pyramids (Karaev et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relief3d.nn.blocks import Mlp


@dataclass(frozen=True)
class TrackerConfig:
    """Sizes of the tracker.

    Attributes:
        latent: channels of the feature maps.
        hidden: width of the update transformer.
        heads: of its attention.
        depth: rounds of time and space attention per update.
        virtual: virtual tracks.
        levels: of the correlation pyramid.
        radius: of the correlation window.
        stride: pixels per cell of the feature maps.
        rounds: of refinement.
        max_scale: pixels by which flows are divided.
    """

    latent: int = 128
    hidden: int = 384
    heads: int = 8
    depth: int = 6
    virtual: int = 64
    levels: int = 7
    radius: int = 4
    stride: int = 2
    rounds: int = 4
    max_scale: float = 518.0

    @property
    def width(self) -> int:
        """Channels of the transformer's input: flow embedding and flow twice, correlation, features."""
        return 3 * self.latent + 4


class _SelfBlock(nn.Module):
    """``x = norm1(x)``, ``x + attn(x)``, ``x + mlp(norm2(x))``: the residual starts from the normalised tensor."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class _CrossBlock(nn.Module):
    """The same with a normalised context."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x, context = self.norm1(x), self.norm_context(context)
        x = x + self.cross_attn(x, context, context, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class UpdateTransformer(nn.Module):
    """Attention over time for every track, then over tracks through virtual ones."""

    def __init__(self, config: TrackerConfig) -> None:
        super().__init__()
        dim, heads = config.hidden, config.heads
        # The misspelling is in the checkpoints.
        self.virual_tracks = nn.Parameter(torch.randn(1, config.virtual, 1, dim))
        self.input_norm = nn.LayerNorm(config.width)
        self.input_transform = nn.Linear(config.width, dim)
        self.output_norm = nn.LayerNorm(dim)
        self.flow_head = nn.Linear(dim, config.latent + 2)

        def stack(kind: type[nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(kind(dim, heads) for _ in range(config.depth))

        self.time_blocks = stack(_SelfBlock)
        self.space_virtual_blocks = stack(_SelfBlock)
        self.space_point2virtual_blocks = stack(_CrossBlock)
        self.space_virtual2point_blocks = stack(_CrossBlock)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, S, width) -> (B, N, S, latent + 2) changes."""
        batch, tracks, frames, _ = x.shape
        tokens = self.input_transform(self.input_norm(x))
        start = tokens
        virtual = self.virual_tracks.expand(batch, -1, frames, -1)
        tokens = torch.cat([tokens, virtual], 1)
        blocks = zip(
            self.time_blocks,
            self.space_virtual_blocks,
            self.space_virtual2point_blocks,
            self.space_point2virtual_blocks,
        )
        for time, among_virtual, virtual_from_points, points_from_virtual in blocks:
            tokens = time(tokens.flatten(0, 1)).unflatten(0, (batch, -1))
            space = tokens.transpose(1, 2).flatten(0, 1)
            points, helpers = space[:, :tracks], space[:, tracks:]
            helpers = among_virtual(virtual_from_points(helpers, points))
            points = points_from_virtual(points, helpers)
            tokens = torch.cat([points, helpers], 1).unflatten(0, (batch, frames)).transpose(1, 2)
        return self.flow_head(self.output_norm(tokens[:, :tracks] + start))


def sample_map(maps: Tensor, xy: Tensor, padding: str = "border") -> Tensor:
    """Bilinear values (M, K, C) of maps (M, C, H, W) at pixel indices (M, K, 2), corners aligned."""
    height, width = maps.shape[-2:]
    size = maps.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    grid = (2 * xy / size - 1)[:, :, None]
    values = nn.functional.grid_sample(maps, grid, align_corners=True, padding_mode=padding)
    return values[..., 0].transpose(1, 2)


def flow_embedding(flow: Tensor, channels: int) -> Tensor:
    """(..., 2 * channels): interleaved sine and cosine of x, then of y, with frequencies k * 1000 / channels.

    The frequencies multiply pixels, up to about 1000 radians per pixel, which makes later rounds chaotic. The table is
    float32 whatever the flow is, as in the published code.
    """
    step = torch.arange(0, channels, 2, device=flow.device, dtype=torch.float32) * (1000.0 / channels)
    angle = flow[..., None] * step
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-3).float().to(flow.dtype)


def position_embedding(
    channels: int, rows: int, cols: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(1, channels, rows, cols) sine-cosine table of pixel indices, base 10000, x in the first half."""
    quarter = channels // 4
    # In double precision on the CPU, because not every device has it.
    omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)

    def embed(count: int) -> Tensor:
        angle = torch.arange(count, dtype=torch.float64)[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], 1).float().to(device)

    x = embed(cols).T[:, None].expand(-1, rows, cols)
    y = embed(rows).T[:, :, None].expand(-1, rows, cols)
    return torch.cat([x, y])[None].to(dtype)


class Tracker(nn.Module):
    """Follows points of the first view through all views."""

    def __init__(self, config: TrackerConfig) -> None:
        super().__init__()
        self.config = config
        latent = config.latent
        self.corr_mlp = Mlp(config.levels * (2 * config.radius + 1) ** 2, config.hidden, latent)
        self.query_ref_token = nn.Parameter(torch.randn(1, 2, config.width))
        self.updateformer = UpdateTransformer(config)
        self.fmap_norm = nn.LayerNorm(latent)
        self.ffeat_norm = nn.GroupNorm(1, latent)
        self.ffeat_updater = nn.Sequential(nn.Linear(latent, latent), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(latent, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(latent, 1))

    def forward(
        self, queries: Tensor, maps: Tensor, rounds: int | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Track.

        Args:
            queries: (B, N, 2) pixels (x, y) of the first view.
            maps: (B, S, latent, H / stride, W / stride) features.
            rounds: of refinement; the configured number when None.

        Returns:
            Positions (B, S, N, 2) in pixels after every round, visibility and confidence (B, S, N) in [0, 1].
        """
        config = self.config
        frames = maps.shape[1]
        maps = self.fmap_norm(maps.movedim(2, -1)).movedim(-1, 2)
        start = (queries / config.stride)[:, None]
        coords = start.expand(-1, frames, -1, -1)
        features = sample_map(maps[:, 0], start[:, 0])[:, None].expand(-1, frames, -1, -1)
        pyramid = self._pyramid(maps)
        table = position_embedding(config.width, maps.shape[-2], maps.shape[-1], maps.device, maps.dtype)
        place = sample_map(table.expand(len(maps), -1, -1, -1), start[:, 0])[:, :, None]
        roles = torch.cat(
            [self.query_ref_token[:, :1], self.query_ref_token[:, 1:].expand(-1, frames - 1, -1)], 1
        )
        out = []
        for _ in range(config.rounds if rounds is None else rounds):
            coords = coords.detach()
            correlation = self.corr_mlp(self._correlate(pyramid, features, coords))
            flow = coords - coords[:, :1]
            embedding = flow_embedding(flow, config.latent // 2)
            scaled = flow / config.max_scale
            x = torch.cat([embedding, scaled, scaled, correlation, features], -1).transpose(1, 2)
            change = self.updateformer(x + place + roles[:, None]).transpose(1, 2)
            features = features + self._feature_change(change[..., 2:])
            coords = coords + change[..., :2]
            coords = torch.cat([start, coords[:, 1:]], 1)
            out.append(coords * config.stride)
        visible = self.vis_predictor(features)[..., 0].sigmoid()
        confident = self.conf_predictor(features)[..., 0].sigmoid()
        return out, visible, confident

    def _feature_change(self, change: Tensor) -> Tensor:
        shape = change.shape
        return self.ffeat_updater(self.ffeat_norm(change.reshape(-1, shape[-1]))).reshape(shape)

    def _pyramid(self, maps: Tensor) -> list[Tensor]:
        levels = [maps]
        for _ in range(self.config.levels - 1):
            small = nn.functional.avg_pool2d(levels[-1].flatten(0, 1), 2)
            levels.append(small.unflatten(0, maps.shape[:2]))
        return levels

    def _correlate(self, pyramid: list[Tensor], features: Tensor, coords: Tensor) -> Tensor:
        """(B, S, N, levels * (2 r + 1)^2): products of the features with the maps around every point."""
        batch, frames, tracks, latent = features.shape
        radius = self.config.radius
        step = torch.arange(-radius, radius + 1, device=coords.device, dtype=coords.dtype)
        # The first axis of the window moves x, the second y.
        window = torch.stack(torch.meshgrid(step, step, indexing="ij"), -1).reshape(-1, 2)
        out = []
        for level, maps in enumerate(pyramid):
            around = coords[..., None, :] / 2**level + window
            # Sampling and the inner product commute; sampling the features first needs no map per track.
            picked = sample_map(maps.flatten(0, 1), around.flatten(2, 3).flatten(0, 1), "zeros")
            picked = picked.reshape(batch, frames, tracks, len(window), latent)
            out.append(torch.einsum("bsnkc,bsnc->bsnk", picked, features) / latent**0.5)
        return torch.cat(out, -1)
