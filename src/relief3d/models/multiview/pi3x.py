"""Pi3X: pi3 that also takes depth, rays and poses of some views, with a metric scale and smoother maps.

Layout-exact to the released checkpoint (names, shapes and count of the specification); there are no reference values to
compare with, so what the text leaves open is our reading: the block that injects poses has no skip connections inside,
and the metric token attends with the position of the first register.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.core.tensor_memory import join_parts
from relief3d.geometry.projection import pixel_rays, points_to_world
from relief3d.geometry.transforms import invert_rigid
from relief3d.models.multiview.known_inputs import check_shapes, finite_matrices, known_depth
from relief3d.models.multiview.pi3 import MAX_LOG_DEPTH, AlternatingDecoder, Pi3Config, PoseHead
from relief3d.nn.attention import Attend, CrossAttention, attend_fully
from relief3d.nn.blocks import Block, Mlp
from relief3d.nn.conv_head import ConvHead
from relief3d.nn.dpt import head_chunk
from relief3d.nn.prope import projective_attention
from relief3d.nn.rope import RopeTable, grid_positions, rope_table
from relief3d.nn.vit import PatchEmbed, VisionTransformer, VitConfig

STATIC_DISTANCE = 0.02
"""Sequences whose cameras are all closer than this to the first keep their translations' unit."""


@dataclass(frozen=True)
class Pi3XConfig:
    """Sizes of a Pi3X.

    Attributes:
        decoder: encoder, alternating blocks and head decoders as in pi3.
        inject_after: decoder blocks after which poses are injected.
        widths: channels of the convolutional heads.
        metric_dim: width of the metric head.
        metric_heads: its attention heads.
        metric_depth: its blocks.
        multimodal: whether depth, rays and poses can be given.
    """

    decoder: Pi3Config = field(default_factory=Pi3Config)
    inject_after: tuple[int, ...] = (1, 9, 17, 25, 33)
    widths: tuple[int, int, int] = (256, 128, 64)
    metric_dim: int = 512
    metric_heads: int = 8
    metric_depth: int = 5
    multimodal: bool = True


@dataclass(frozen=True)
class Conditions:
    """What is known about the views; flags say for which views.

    Attributes:
        depth: (B, N, H, W) z-depth; what is not finite and positive is unknown.
        has_depth: (B, N) bool; None for all, as below.
        K: (B, N, 3, 3) pixels; matrices that are not finite are unknown, as below.
        has_rays: (B, N) bool.
        world_from_cam: (B, N, 4, 4), any common frame, in the unit of ``depth``.
        has_pose: (B, N) bool.
    """

    depth: Tensor | None = None
    has_depth: Tensor | None = None
    K: Tensor | None = None
    has_rays: Tensor | None = None
    world_from_cam: Tensor | None = None
    has_pose: Tensor | None = None


@dataclass(frozen=True)
class Pi3XOutput:
    """What Pi3X says; lengths are metres as far as ``metric`` is right.

    Attributes:
        local_points: (B, N, H, W, 3) in each camera's frame.
        world_points: (B, N, H, W, 3).
        rays: (B, N, H, W, 3) with z = 1.
        confidence: (B, N, H, W) logits.
        world_from_cam: (B, N, 4, 4).
        metric: (B,) metres per unit that have been multiplied in.
    """

    local_points: Tensor
    world_points: Tensor
    rays: Tensor
    confidence: Tensor
    world_from_cam: Tensor
    metric: Tensor


class MetricBlock(nn.Module):
    """Cross-attention and MLP; keys ``norm2, norm_y, norm3, cross_attn, mlp``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.norm_y = nn.LayerNorm(dim, eps=1e-6)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.cross_attn = CrossAttention(dim, heads)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor, rope: RopeTable, context_rope: RopeTable) -> Tensor:
        """(B, 1, C) with context (B, T, C)."""
        x = x + self.cross_attn(self.norm2(x), self.norm_y(context), rope, context_rope)
        return x + self.mlp(self.norm3(x))


class MetricDecoder(nn.Module):
    """A learned token reads all tokens of all views."""

    def __init__(self, dim_in: int, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.projects_x = nn.Linear(dim_in, dim)
        self.projects_y = nn.Linear(dim_in, dim)
        self.blocks = nn.ModuleList(MetricBlock(dim, heads) for _ in range(depth))
        self.linear_out = nn.Linear(dim, dim)

    def forward(self, token: Tensor, context: Tensor, rope: RopeTable) -> Tensor:
        """(B, 1, dim_in), (B, N * T, dim_in) -> (B, dim); ``rope`` is that of one view."""
        x, y = self.projects_x(token), self.projects_y(context)
        first = RopeTable(rope.cos[:1], rope.sin[:1])
        for block in self.blocks:
            x = block(x, y, first, rope)
        return self.linear_out(x)[:, 0]


class Pi3X(AlternatingDecoder):
    """The network; see the module's description.

    Raises:
        InputError: a multimodal network with heads of other than multiples of 8 channels.
    """

    def __init__(self, config: Pi3XConfig | None = None) -> None:
        settings = config or Pi3XConfig()
        super().__init__(settings.decoder)
        self.settings = settings
        c, dim = settings.decoder, settings.decoder.vit.dim
        if settings.multimodal:
            if dim % (8 * c.heads):
                raise InputError(
                    f"{c.heads} heads of {dim / c.heads:g} channels cannot carry known poses (multiples of 8 do)",
                    remedy="choose fewer heads or another width",
                )
            v = c.vit
            self.depth_encoder = VisionTransformer(
                VitConfig(v.dim, v.depth, v.heads, v.patch, v.registers, v.img_size, 2, False)
            )
            self.depth_emb = nn.Parameter(torch.zeros(1, 1, dim))
            self.ray_embed = PatchEmbed(2, dim, v.patch)
            nn.init.zeros_(self.ray_embed.proj.weight)
            assert self.ray_embed.proj.bias is not None
            nn.init.zeros_(self.ray_embed.proj.bias)
            self.pose_inject_blk = nn.ModuleList(
                Block(dim, c.heads, eps=1e-6, qk_norm=True, layer_scale=0.01) for _ in settings.inject_after
            )
        self.point_decoder = self._head_decoder(c.head_dim)
        self.conf_decoder = self._head_decoder(c.head_dim)
        self.camera_decoder = self._head_decoder(c.camera_dim)
        self.point_head = ConvHead(c.head_dim, (2, 1), settings.widths)
        self.conf_head = ConvHead(c.head_dim, (1,), settings.widths)
        self.camera_head = PoseHead(c.camera_dim)
        self.metric_token = nn.Parameter(torch.randn(1, 1, 2 * dim) * 1e-6)
        self.metric_decoder = MetricDecoder(
            2 * dim, settings.metric_dim, settings.metric_heads, settings.metric_depth
        )
        self.metric_head = nn.Linear(settings.metric_dim, 1)

    def forward(
        self,
        images: Tensor,
        given: Conditions | None = None,
        *,
        chunk: int | None = 8,
        attend: Attend = attend_fully,
    ) -> Pi3XOutput:
        """Reconstruct.

        Args:
            images: (B, N, 3, H, W) in [0, 1]; sides are multiples of the patch.
            given: what is known about the views.
            chunk: views at a time wherever views are independent; only memory depends on it.
            attend: inner product of the attention across views.

        Raises:
            InputError: conditions of other shapes than the pictures'.
            ValueError: conditions for a network without the parts that read them, or poses of a single view.
        """
        if given is not None and not self.settings.multimodal:
            raise ValueError("this network takes pictures only")
        grid, size = self.grid(images), (int(images.shape[-2]), int(images.shape[-1]))
        shape = (images.shape[0], images.shape[1])
        given = None if given is None else usable_conditions(given, shape, size)
        patches = self.embed(images.flatten(0, 1), chunk)
        inject = None
        if given is not None:
            unit = condition_unit(given)
            patches = patches + self._known_geometry(given, unit, shape, size, chunk).to(patches.dtype)
            inject = self._poses(given, unit)
        hidden = self._decode(patches, shape, grid, inject, chunk, attend)
        rope = self.head_rope(*grid, self.config.registers, hidden.device, self.register_token.dtype)
        few = head_chunk(chunk, size, hidden.device)
        step = len(hidden) if few is None else max(1, few)
        parts = (self._heads(hidden[i : i + step], rope, grid, size) for i in range(0, len(hidden), step))
        rays, z, confidence, poses = (p.unflatten(0, shape) for p in join_parts(parts, len(hidden)))
        metric = self._metric(hidden, shape, grid)
        scale = metric[:, None, None, None, None]
        local = rays * z * scale
        poses = torch.cat([poses[..., :3], poses[..., 3:] * _translation_only(metric, poses)], -1)
        return Pi3XOutput(local, points_to_world(local, poses), rays, confidence, poses, metric)

    def _known_geometry(
        self,
        given: Conditions,
        unit: Tensor,
        shape: tuple[int, int],
        size: tuple[int, int],
        chunk: int | None,
    ) -> Tensor:
        """(B * N, P, C) to add to the patch tokens of the pictures: depth and rays of the views that have them."""
        rows, cols = size[0] // self.config.vit.patch, size[1] // self.config.vit.patch
        total = self.register_token.new_zeros(shape[0] * shape[1], rows * cols, self.config.vit.dim)
        if given.depth is not None:
            has = _flags(given.has_depth, shape, total.device).flatten()
            scaled = given.depth / unit[:, None, None, None]
            maps = torch.stack([scaled, (given.depth > 0).to(scaled.dtype)], 2)
            index = torch.nonzero(has)[:, 0]
            step = max(1, len(index) if chunk is None else chunk)
            for i in range(0, len(index), step):
                part = index[i : i + step]
                tokens = self.depth_encoder(maps.flatten(0, 1)[part].to(total.dtype)) + self.depth_emb
                total = total.index_add(0, part, tokens)
        if given.K is not None:
            has = _flags(given.has_rays, shape, total.device).flatten()
            index = torch.nonzero(has)[:, 0]
            rays = pixel_rays(given.K.flatten(0, 1)[index], *size)[..., :2].movedim(-1, 1).to(total.dtype)
            if len(index):
                total = total.index_add(0, index, self.ray_embed(rays).to(total.dtype))
        return total

    def _poses(self, given: Conditions, unit: Tensor) -> tuple[Tensor, Tensor] | None:
        """Camera-from-first matrices (B, N, 4, 4) in the depth's unit, and which views have one (B, N).

        The first is the first view with a pose (view 0 where all have one); views without are put there too.
        """
        if given.world_from_cam is None:
            return None
        shape = given.world_from_cam.shape[:2]
        has = _flags(given.has_pose, (shape[0], shape[1]), given.world_from_cam.device)
        if shape[1] == 1:
            raise ValueError("the pose of a single view says nothing")
        # A lone absolute pose carries nothing either.
        has = has & (has.sum(1, keepdim=True) > 1)
        eye = torch.eye(4, dtype=given.world_from_cam.dtype, device=given.world_from_cam.device)
        known = torch.where(has[..., None, None], given.world_from_cam, eye)
        relative = invert_rigid(known) @ _first_flagged(known, has)
        relative = torch.cat([relative[..., :3], relative[..., 3:] / _translation_only(unit, relative)], -1)
        return torch.where(has[..., None, None], relative, eye), has

    def _decode(
        self,
        patches: Tensor,
        shape: tuple[int, int],
        grid: tuple[int, int],
        inject: tuple[Tensor, Tensor] | None,
        chunk: int | None,
        attend: Attend,
    ) -> Tensor:
        """(B * N, T, 2 C) of the last two blocks."""
        if inject is None:
            layers = self.decode(patches, shape[1], grid, chunk=chunk, attend=attend)
            return torch.cat([layers[self.config.depth - 2], layers[self.config.depth - 1]], -1)
        poses, has = inject
        registers = self.config.registers
        x = torch.cat([self.register_token[0].to(patches.dtype).expand(len(patches), -1, -1), patches], 1)
        rope = self.rope(*grid, registers, x.device, self.register_token.dtype)
        injecting = dict(zip(self.settings.inject_after, self.pose_inject_blk))
        before = x
        for i, block in enumerate(self.decoder):
            if i == self.config.depth - 1:
                before = x
            x = self._one_block(i, block, x, shape[1], rope, chunk, attend)
            if i in injecting:
                own = x[:, registers:].unflatten(0, shape).flatten(1, 2)
                change = _inject(injecting[i], own, poses, grid)
                change = (change.unflatten(1, (shape[1], -1)) * has[..., None, None]).flatten(0, 1)
                x = torch.cat([x[:, :registers], x[:, registers:] + change.to(x.dtype)], 1)
        return torch.cat([before, x], -1)

    def _heads(
        self, hidden: Tensor, rope: RopeTable, grid: tuple[int, int], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rays, depth along z, confidence and poses of some views."""
        registers = self.config.registers
        points, confidence, camera = (
            decoder(hidden, rope)[:, registers:]
            for decoder in (self.point_decoder, self.conf_decoder, self.camera_decoder)
        )
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = self.register_token.dtype
            xy, log_z = self.point_head(points.to(dtype), grid, size)
            (logits,) = self.conf_head(confidence.to(dtype), grid, size)
            poses = self.camera_head(camera.to(dtype))
        rays = torch.cat([xy, torch.ones_like(log_z)], 1).movedim(1, -1)
        return rays, log_z.clamp(max=MAX_LOG_DEPTH).exp().movedim(1, -1), logits[:, 0], poses

    def _metric(self, hidden: Tensor, shape: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """(B,) metres per unit."""
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = self.register_token.dtype
            context = hidden.to(dtype).unflatten(0, shape).flatten(1, 2)
            heads = self.settings.metric_heads
            positions = grid_positions(*grid, self.config.registers, hidden.device)
            rope = rope_table(positions, self.settings.metric_dim // heads, self.config.rope_base, dtype)
            token = self.metric_token.expand(shape[0], -1, -1)
            return self.metric_head(self.metric_decoder(token, context, rope))[:, 0].exp()


def _flags(has: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=torch.bool, device=device) if has is None else has.to(device, torch.bool)


def _first_flagged(poses: Tensor, has: Tensor) -> Tensor:
    """(B, 1, 4, 4): of every sequence the first of the (B, N, 4, 4) poses that is flagged, or that of view 0."""
    return poses[torch.arange(len(poses), device=poses.device), has.int().argmax(1)][:, None]


def _translation_only(scale: Tensor, poses: Tensor) -> Tensor:
    """(B, 1, 4, 1): the scale for translations, 1 for the last row."""
    factor = torch.ones(len(scale), 1, 4, 1, dtype=poses.dtype, device=poses.device)
    factor[:, :, :3] = scale.to(poses.dtype)[:, None, None, None]
    return factor


def usable_conditions(given: Conditions, shape: tuple[int, int], size: tuple[int, int]) -> Conditions:
    """Conditions with every flag spelt out, off where the values are not finite.

    Args:
        given: as handed in.
        shape: (B, N) of the pictures.
        size: (H, W) of the pictures.

    Raises:
        InputError: shapes that do not fit, or values that are not floating-point.
    """
    check_shapes(
        shape,
        {
            "depth": (given.depth, size),
            "K": (given.K, (3, 3)),
            "world_from_cam": (given.world_from_cam, (4, 4)),
        },
        {"has_depth": given.has_depth, "has_rays": given.has_rays, "has_pose": given.has_pose},
    )
    depth, K, poses = given.depth, given.K, given.world_from_cam
    return Conditions(
        None if depth is None else known_depth(depth),
        None if depth is None else _flags(given.has_depth, shape, depth.device),
        K,
        None if K is None else _flags(given.has_rays, shape, K.device) & finite_matrices(K),
        poses,
        None if poses is None else _flags(given.has_pose, shape, poses.device) & finite_matrices(poses),
    )


def condition_unit(given: Conditions) -> Tensor:
    """(B,) by which given lengths are divided, for every sequence by itself: the mean of its known depths; without any
    the mean distance of its known cameras to the first of them, unless they hardly move; else 1.
    """
    unit = _pose_unit(given)
    if given.depth is None:
        return unit
    shape = (given.depth.shape[0], given.depth.shape[1])
    depth = known_depth(given.depth) * _flags(given.has_depth, shape, given.depth.device)[..., None, None]
    count = (depth > 0).flatten(1).sum(1)
    mean = depth.flatten(1).sum(1) / count.clamp_min(1)
    return torch.where(count > 0, mean, unit.to(mean))


def _pose_unit(given: Conditions) -> Tensor:
    """(B,) by which translations are divided where no depth is known."""
    poses = given.world_from_cam
    if poses is None or poses.shape[1] < 2:
        some = next((v for v in (given.depth, given.K, poses) if v is not None), None)
        return torch.ones(1) if some is None else some.new_ones(len(some))
    has = _flags(given.has_pose, (poses.shape[0], poses.shape[1]), poses.device)
    distance = (poses - _first_flagged(poses, has))[..., :3, 3].norm(dim=-1)
    distance = torch.where(has, distance, torch.zeros_like(distance))
    moving = distance.amax(1) >= STATIC_DISTANCE
    mean = distance.sum(1) / (has.sum(1) - 1).clamp_min(1)
    return torch.where(moving, mean, torch.ones_like(mean))


def _inject(block: nn.Module, x: Tensor, cam_from_world: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the poses add to the patch tokens (B, N * P, C); no skip connection inside."""
    assert isinstance(block, Block)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return projective_attention(q, k, v, cam_from_world, grid)

    y = block.ls1(block.attn(block.norm1(x), None, attend))
    return block.ls2(block.mlp(block.norm2(y)))
