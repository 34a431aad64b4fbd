"""Pi3X against a second implementation, written from the specification (0.1 to 0.3, 2.1, 2.4) in numpy, token by token.

It knows the network by its state only. There are no published reference values, so where the text is silent both follow
one reading: no skip connections inside the injection, values and outputs of it rotate as keys do.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import make_rigid
from relief3d.models.multiview.configs import pi3x_config
from relief3d.models.multiview.pi3x import Conditions, Pi3X

Array = np.ndarray
State = dict[str, Array]
Rotate = Callable[[Array, int], Array]
HEIGHT, WIDTH, VIEWS, PATCH = 28, 42, 3, 14
ROWS, COLS, SPECIALS = HEIGHT // PATCH, WIDTH // PATCH, 5
VIT_HEADS, HEADS, HEAD_HEADS, METRIC_HEADS = 4, 3, 4, 4  # of the nano size; states do not tell


def linear(s: State, name: str, x: Array) -> Array:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def norm(s: State, name: str, x: Array, eps: float) -> Array:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps) * s[f"{name}.weight"] + s[
        f"{name}.bias"
    ]


def mlp(s: State, name: str, x: Array) -> Array:
    y = linear(s, f"{name}.fc1", x)
    return linear(s, f"{name}.fc2", y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2))))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def turn(vector: Array, angles: list[float]) -> Array:
    """Rotate pairs (k, k + n / 2) of a vector of n channels."""
    out, half = vector.copy(), len(vector) // 2
    for k, angle in enumerate(angles):
        a, b = vector[k], vector[k + half]
        out[k] = a * math.cos(angle) - b * math.sin(angle)
        out[k + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def rope(vector: Array, y: int, x: int) -> Array:
    width = len(vector) // 2
    halves = []
    for part, at in ((vector[:width], y), (vector[width:], x)):
        halves.append(turn(part, [at * 100 ** (-2 * k / width) for k in range(width // 2)]))
    return np.concatenate(halves)


def place(token: int) -> tuple[int, int]:
    """(y, x) of a token of a view: 0 for special ones, patches from 1."""
    token %= SPECIALS + ROWS * COLS
    if token < SPECIALS:
        return 0, 0
    return (token - SPECIALS) // COLS + 1, (token - SPECIALS) % COLS + 1


def by_place(vector: Array, token: int) -> Array:
    return rope(vector, *place(token))


def unrotated(vector: Array, token: int) -> Array:
    return vector


def mix(
    q: Array, k: Array, v: Array, heads: int, on_q: Rotate, on_k: Rotate, on_v: Rotate = unrotated,
    on_out: Rotate = unrotated,
) -> Array:  # fmt: skip
    d = q.shape[1] // heads
    out = np.zeros_like(q)
    for h in range(heads):
        at = slice(h * d, (h + 1) * d)
        keys = np.stack([on_k(k[j, at], j) for j in range(len(k))])
        values = np.stack([on_v(v[j, at], j) for j in range(len(v))])
        for i in range(len(q)):
            weights = softmax(keys @ on_q(q[i, at], i) / math.sqrt(d))
            out[i, at] = on_out(weights @ values, i)
    return out


def normed(s: State, name: str, rotate: Rotate) -> Rotate:
    """Rotation after the q or k norm, if the state has one."""
    if f"{name}.weight" not in s:
        return rotate
    return lambda vector, token: rotate(norm(s, name, vector, 1e-5), token)


def attention(s: State, name: str, x: Array, heads: int, on: tuple[Rotate, Rotate, Rotate, Rotate]) -> Array:
    c = x.shape[1]
    qkv = linear(s, f"{name}.qkv", x)
    on_q, on_k = normed(s, f"{name}.q_norm", on[0]), normed(s, f"{name}.k_norm", on[1])
    out = mix(qkv[:, :c], qkv[:, c : 2 * c], qkv[:, 2 * c :], heads, on_q, on_k, on[2], on[3])
    return linear(s, f"{name}.proj", out)


def block(s: State, name: str, x: Array, heads: int, rotate: Rotate = unrotated) -> Array:
    on = (rotate, rotate, unrotated, unrotated)
    x = x + s.get(f"{name}.ls1.gamma", 1.0) * attention(
        s, f"{name}.attn", norm(s, f"{name}.norm1", x, 1e-6), heads, on
    )
    return x + s.get(f"{name}.ls2.gamma", 1.0) * mlp(s, f"{name}.mlp", norm(s, f"{name}.norm2", x, 1e-6))


def count(s: State, name: str) -> int:
    return len({k[len(name) + 1 :].split(".")[0] for k in s if k.startswith(name + ".")})


def patches(s: State, name: str, picture: Array) -> Array:
    """(P, C) of (c, H, W): every patch times every filter."""
    weight, bias = s[f"{name}.weight"], s[f"{name}.bias"]
    rows = []
    for r in range(ROWS):
        for c in range(COLS):
            cut = picture[:, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]
            rows.append((weight * cut).sum((1, 2, 3)) + bias)
    return np.stack(rows)


def vit(s: State, name: str, picture: Array) -> Array:
    table = torch.from_numpy(s[f"{name}.pos_embed"][0])
    side = math.isqrt(len(table) - 1)
    grid = table[1:].T.reshape(1, -1, side, side).float()
    grid = torch.nn.functional.interpolate(
        grid, (ROWS, COLS), mode="bicubic", antialias=True, align_corners=False
    )
    places = grid[0].double().numpy().reshape(grid.shape[1], -1).T
    first = s[f"{name}.cls_token"][0] + s[f"{name}.pos_embed"][0, :1]
    x = np.concatenate(
        [first, s[f"{name}.register_tokens"][0], patches(s, f"{name}.patch_embed.proj", picture) + places]
    )
    for i in range(count(s, f"{name}.blocks")):
        x = block(s, f"{name}.blocks.{i}", x, VIT_HEADS)
    return norm(s, f"{name}.norm", x, 1e-6)[5:]


def inject(s: State, name: str, x: Array, cam_from_first: list[Array]) -> Array:
    """What a pose block adds to the patch tokens (N * P, C) of all views."""

    def rotated(vector: Array, token: int, matrix: Array, sign: int) -> Array:
        half = len(vector) // 2
        r, c = divmod(token % (ROWS * COLS), COLS)
        groups = [matrix @ vector[g : g + 4] for g in range(0, half, 4)]
        for at, part in (
            (c, vector[half : half + half // 2]),
            (r, vector[half + half // 2 :]),
        ):
            n = len(part)
            groups.append(turn(part, [-sign * at * 100 ** (-2 * k / n) for k in range(n // 2)]))
        return np.concatenate(groups)

    def camera(token: int) -> Array:
        return cam_from_first[token // (ROWS * COLS)]

    on = (
        lambda v, t: rotated(v, t, camera(t).T, 1),
        lambda v, t: rotated(v, t, np.linalg.inv(camera(t)), 1),
        lambda v, t: rotated(v, t, np.linalg.inv(camera(t)), 1),
        lambda v, t: rotated(v, t, camera(t), -1),
    )
    y = s[f"{name}.ls1.gamma"] * attention(s, f"{name}.attn", norm(s, f"{name}.norm1", x, 1e-6), HEADS, on)
    return s[f"{name}.ls2.gamma"] * mlp(s, f"{name}.mlp", norm(s, f"{name}.norm2", y, 1e-6))


def conv(s: State, name: str, x: Array) -> Array:
    weight, bias = s[f"{name}.weight"], s[f"{name}.bias"]
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)), mode="edge")
    out = np.zeros((len(weight), *x.shape[1:])) + bias[:, None, None]
    for a in range(k):
        for b in range(k):
            out += np.einsum(
                "oc,chw->ohw", weight[:, :, a, b], padded[:, a : a + x.shape[1], b : b + x.shape[2]]
            )
    return out


def doubled(s: State, name: str, x: Array) -> Array:
    weight, bias = s[f"{name}.weight"], s[f"{name}.bias"]
    out = np.zeros((weight.shape[1], 2 * x.shape[1], 2 * x.shape[2]))
    for a in range(2):
        for b in range(2):
            out[:, a::2, b::2] = np.einsum("co,chw->ohw", weight[:, :, a, b], x)
    return out + bias[:, None, None]


def group_norm(s: State, name: str, x: Array, groups: int) -> Array:
    out = np.empty_like(x)
    for part in np.split(np.arange(len(x)), groups):
        out[part] = (x[part] - x[part].mean()) / math.sqrt(x[part].var() + 1e-5)
    return out * s[f"{name}.weight"][:, None, None] + s[f"{name}.bias"][:, None, None]


def with_uv(x: Array) -> Array:
    rows, cols = x.shape[1:]
    aspect = WIDTH / HEIGHT
    sx, sy = aspect / math.hypot(1, aspect), 1 / math.hypot(1, aspect)
    uv = np.empty((2, rows, cols))
    for r in range(rows):
        for c in range(cols):
            uv[:, r, c] = sx * (2 * c + 1 - cols) / cols, sy * (2 * r + 1 - rows) / rows
    return np.concatenate([x, uv])


def resized(x: Array, size: int, axis: int) -> Array:
    """Bilinear along an axis, half-pixel centres."""
    before = x.shape[axis]
    lines = []
    for i in range(size):
        at = max((i + 0.5) * before / size - 0.5, 0)
        low = min(int(at), before - 1)
        high = min(low + 1, before - 1)
        lines.append((1 - at + low) * x.take(low, axis) + (at - low) * x.take(high, axis))
    return np.stack(lines, axis)


def conv_head(s: State, name: str, tokens: Array) -> list[Array]:
    x = tokens.T.reshape(-1, ROWS, COLS)
    for i in range(3):
        at = f"{name}.upsample_blocks.{i}"
        x = conv(s, f"{at}.0.1", doubled(s, f"{at}.0.0", with_uv(x)))
        for j in (1, 2):
            y = conv(s, f"{at}.{j}.layers.2", np.maximum(group_norm(s, f"{at}.{j}.layers.0", x, 1), 0))
            y = np.maximum(group_norm(s, f"{at}.{j}.layers.3", y, len(y) // 32), 0)
            x = x + conv(s, f"{at}.{j}.layers.5", y)
    x = with_uv(resized(resized(x, HEIGHT, 1), WIDTH, 2))
    outputs = (f"{name}.output_block.{k}" for k in range(count(s, f"{name}.output_block")))
    return [conv(s, f"{o}.2", np.maximum(conv(s, f"{o}.0", x), 0)) for o in outputs]


def pose(s: State, tokens: Array) -> Array:
    x = tokens
    for i in range(2):
        y = x
        for j in (1, 2, 3):
            y = np.maximum(linear(s, f"camera_head.res_conv.{i}.res_conv{j}", y), 0)
        x = x + y
    x = x.mean(0)
    for j in (0, 2):
        x = np.maximum(linear(s, f"camera_head.more_mlps.{j}", x), 0)
    m = linear(s, "camera_head.fc_rot", x).reshape(3, 3)
    m = m / np.linalg.norm(m, axis=1, keepdims=True)
    u, _, vt = np.linalg.svd(m.T)
    v = vt.T
    out = np.eye(4)
    out[:3, :3] = v @ np.diag([1, 1, np.linalg.det(v @ u.T)]) @ u.T
    out[:3, 3] = linear(s, "camera_head.fc_t", x)
    return out


def metric(s: State, context: Array) -> float:
    x = linear(s, "metric_decoder.projects_x", s["metric_token"][0])
    y = linear(s, "metric_decoder.projects_y", context)
    for i in range(count(s, "metric_decoder.blocks")):
        at = f"metric_decoder.blocks.{i}"
        a, b = norm(s, f"{at}.norm2", x, 1e-6), norm(s, f"{at}.norm_y", y, 1e-6)
        q, k, v = (linear(s, f"{at}.cross_attn.{n}_proj", t) for n, t in (("q", a), ("k", b), ("v", b)))
        x = x + linear(s, f"{at}.cross_attn.proj", mix(q, k, v, METRIC_HEADS, by_place, by_place))
        x = x + mlp(s, f"{at}.mlp", norm(s, f"{at}.norm3", x, 1e-6))
    return math.exp(linear(s, "metric_head", linear(s, "metric_decoder.linear_out", x))[0, 0])


def unit_of(depths: Array | None, poses: list[Array | None]) -> float:
    """2.4, depth normaliser; ``depths`` are all positive ones of the flagged views."""
    if depths is not None and len(depths):
        return float(depths.mean())
    centres = [p[:3, 3] for p in poses if p is not None]
    distances = [float(np.linalg.norm(c - centres[0])) for c in centres[1:]]
    return sum(distances) / len(distances) if distances and max(distances) >= 0.02 else 1.0


def naive(
    s: State,
    pictures: Array,
    depth: dict[int, Array],
    K: dict[int, Array],
    world_from_cam: dict[int, Array],
    after: tuple[int, ...],
) -> dict[str, Array]:
    """One sequence (N, 3, H, W); conditions by view."""
    poses = [world_from_cam.get(n) for n in range(VIEWS)]
    positive = np.concatenate([d[d > 0] for d in depth.values()]) if depth else None
    unit = unit_of(positive, poses)
    views = []
    for n in range(VIEWS):
        x = vit(s, "encoder", (pictures[n] - s["image_mean"][0]) / s["image_std"][0])
        if n in depth:
            known = np.where(depth[n] > 0, depth[n], 0)
            x = x + vit(s, "depth_encoder", np.stack([known / unit, known > 0])) + s["depth_emb"][0]
        if n in K:
            rays = np.empty((2, HEIGHT, WIDTH))
            for v in range(HEIGHT):
                for u in range(WIDTH):
                    rays[:, v, u] = (np.linalg.inv(K[n]) @ [u + 0.5, v + 0.5, 1])[:2]
            x = x + patches(s, "ray_embed.proj", rays)
        views.append(np.concatenate([s["register_token"][0, 0], x]))
    outputs = []
    for i in range(count(s, "decoder")):
        if i % 2 == 0:
            views = [block(s, f"decoder.{i}", x, HEADS, by_place) for x in views]
        else:
            views = np.split(block(s, f"decoder.{i}", np.concatenate(views), HEADS, by_place), VIEWS)
        if i in after and len(world_from_cam) > 1:
            first = world_from_cam[min(world_from_cam)]
            cameras = [np.linalg.inv(p) @ first if p is not None else np.eye(4) for p in poses]
            for camera in cameras:
                camera[:3, 3] /= unit
            own = np.concatenate([x[SPECIALS:] for x in views])
            change = np.split(inject(s, f"pose_inject_blk.{after.index(i)}", own, cameras), VIEWS)
            views = [
                np.concatenate([x[:SPECIALS], x[SPECIALS:] + change[n]]) if n in world_from_cam else x
                for n, x in enumerate(views)
            ]
        outputs.append(views)
    fused = [np.concatenate([a, b], 1) for a, b in zip(outputs[-2], outputs[-1])]
    scale = metric(s, np.concatenate(fused))
    found: dict[str, list[Array]] = {"rays": [], "local": [], "world": [], "confidence": [], "poses": []}
    for x in fused:
        tokens = {}
        for part in ("point", "conf", "camera"):
            y = linear(s, f"{part}_decoder.projects", x)
            for j in range(count(s, f"{part}_decoder.blocks")):
                y = block(s, f"{part}_decoder.blocks.{j}", y, HEAD_HEADS, by_place)
            tokens[part] = linear(s, f"{part}_decoder.linear_out", y)[SPECIALS:]
        xy, z = conv_head(s, "point_head", tokens["point"])
        rays = np.concatenate([xy, np.ones_like(z)]).transpose(1, 2, 0)
        local = rays * np.exp(np.minimum(z[0], 15))[..., None] * scale
        camera = pose(s, tokens["camera"])
        camera[:3, 3] *= scale
        found["rays"].append(rays)
        found["local"].append(local)
        found["world"].append(local @ camera[:3, :3].T + camera[:3, 3])
        found["confidence"].append(conv_head(s, "conf_head", tokens["conf"])[0][0])
        found["poses"].append(camera)
    return {k: np.stack(v) for k, v in found.items()} | {"metric": np.array(scale)}


@pytest.fixture(scope="module")
def network() -> Pi3X:
    generator = torch.Generator().manual_seed(0)
    net = Pi3X(pi3x_config("nano")).double().eval()
    with torch.no_grad():
        for name, p in net.named_parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            scales = p.ndim == 1 and name.endswith(("weight", "gamma"))
            p.copy_(1 + 0.2 * noise if scales else 0.12 * noise)
    return net


CASES = {  # views with depth, rays, poses
    "pictures": ((), (), ()),
    "everything": ((0, 2), (1, 2), (1, 2)),
    "poses": ((), (), (0, 1, 2)),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_network_is_what_the_text_says(network: Pi3X, case: str) -> None:
    with_depth, with_rays, with_pose = CASES[case]
    generator = torch.Generator().manual_seed(5)
    pictures = torch.rand(1, VIEWS, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    depth = 1 + 3 * torch.rand(1, VIEWS, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    depth[..., :9, 5:20] = 0
    K = torch.tensor([[40.0, 0, 20], [0, 38, 15], [0, 0, 1]]).double().repeat(1, VIEWS, 1, 1)
    K[0, :, 0, 0] += torch.arange(VIEWS)
    axes, shifts = torch.randn(2, 1, VIEWS, 3, generator=generator, dtype=torch.float64)
    T = make_rigid(matrix_from_axis_angle(0.5 * axes), 2 * shifts)

    def flags(views: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([[n in views for n in range(VIEWS)]])

    given = Conditions(
        depth if with_depth else None, flags(with_depth),
        K if with_rays else None, flags(with_rays),
        T if with_pose else None, flags(with_pose),
    )  # fmt: skip
    out = network(pictures, given if case != "pictures" else None)
    state = {k: v.numpy() for k, v in network.state_dict().items()}
    want = naive(
        state,
        pictures[0].numpy(),
        {n: depth[0, n].numpy() for n in with_depth},
        {n: K[0, n].numpy() for n in with_rays},
        {n: T[0, n].numpy() for n in with_pose},
        network.settings.inject_after,
    )
    got = {
        "rays": out.rays, "local": out.local_points, "world": out.world_points,
        "confidence": out.confidence, "poses": out.world_from_cam, "metric": out.metric,
    }  # fmt: skip
    for name, value in got.items():
        off = np.abs(value[0].numpy() - want[name]).max() / np.abs(want[name]).max()
        assert off < 1e-5, (name, off)
    if case != "pictures":
        plain = network(pictures)
        for name, value in (("confidence", plain.confidence), ("local", plain.local_points)):
            change = np.abs(value[0].numpy() - want[name]).max() / np.abs(want[name]).max()
            assert change > 1e-2, f"the conditions must matter for this to prove anything ({name}, {change})"
