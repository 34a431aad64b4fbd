"""Cameras, depth and pictures stay consistent; colours change as drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.augmentation import Augmentation, augment
from relief3d.data.geometric import Edit, Geometric, apply_edits, draw_edits, pixel_map
from relief3d.data.photo_filters import gaussian_blur
from relief3d.data.photometric import Photometric, change_colours
from relief3d.data.view_groups import ViewRequest
from relief3d.geometry.projection import project_world, unproject
from relief3d.geometry.rotations import matrix_from_axis_angle
from relief3d.geometry.transforms import invert_rigid, transform_points
from relief3d.worlds.tabletop import Tabletop, TabletopConfig
from relief3d.worlds.training import TabletopSource

B, N, H, W = 2, 3, 24, 36
OUT = (18, 26)


def posed_batch(seed: int = 0) -> Batch:
    """Random cameras; pictures hold x and y of their own pixels, so that content can be followed."""
    generator = torch_generator(seed)
    K = torch.tensor([[30.0, 0, 17.0], [0, 28.0, 13.0], [0, 0, 1]], dtype=torch.float64).repeat(B, N, 1, 1)
    pose = torch.eye(4, dtype=torch.float64).repeat(B, N, 1, 1)
    vectors = 0.3 * torch.randn((B, N, 3), generator=generator, dtype=torch.float64)
    pose[..., :3, :3] = matrix_from_axis_angle(vectors)
    pose[..., :3, 3] = torch.randn((B, N, 3), generator=generator, dtype=torch.float64)
    x = (torch.arange(W, dtype=torch.float64) + 0.5) / W
    y = (torch.arange(H, dtype=torch.float64) + 0.5) / H
    images = torch.stack([x.expand(H, W), y[:, None].expand(H, W), torch.zeros(H, W, dtype=torch.float64)])
    depth = 1 + torch.rand((B, N, H, W), generator=generator, dtype=torch.float64)
    valid = torch.rand((B, N, H, W), generator=generator) > 0.3
    sparse = torch.where(torch.rand((B, N, H, W), generator=generator) > 0.97, depth, 0.0)
    known = torch.ones(B, N, dtype=torch.bool)
    return Batch(
        images.expand(B, N, 3, H, W).clone(), K, known, pose, known.clone(), torch.where(valid, depth, 0.0), valid,
        sparse, valid.clone(), metric=torch.ones(B, dtype=torch.bool), names=(("a", "b", "c"),) * B,
    )  # fmt: skip


def get(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


RULES = {
    "crop": Geometric(crop=(0.5, 0.9), mirror=0.0, per_view=True),
    "aspect": Geometric(crop=(0.6, 1.0), aspect=1.4, mirror=0.0),
    "mirror": Geometric(crop=(1.0, 1.0), mirror=1.0),
    "turn": Geometric(crop=(1.0, 1.0), mirror=0.0, quarter_turns=1.0, per_view=True),
    "all": Geometric(crop=(0.5, 1.0), aspect=1.3, mirror=0.5, quarter_turns=0.7, per_view=True),
}


@pytest.mark.parametrize("name", RULES)
def test_world_points_land_on_the_same_content(name: str) -> None:
    before = posed_batch()
    edits = draw_edits(RULES[name], B, N, (H, W), OUT, torch_generator(3))
    after = apply_edits(before, edits, OUT)
    points = 3 * torch.randn((B, N, 50, 3), generator=torch_generator(1), dtype=torch.float64)
    for b in range(B):
        mirror = torch.diag(torch.tensor([-1.0 if edits[b][0].mirror else 1.0, 1, 1], dtype=torch.float64))
        for n in range(N):
            world = points[b, n] + torch.tensor([0, 0, 8.0], dtype=torch.float64)
            old, z_old = project_world(
                world, get(before.K)[b, n], invert_rigid(get(before.world_from_cam)[b, n])
            )
            new, z_new = project_world(
                world @ mirror, get(after.K)[b, n], invert_rigid(get(after.world_from_cam)[b, n])
            )
            ahead = z_old > 0.1
            moved = torch.cat([old, torch.ones_like(old[:, :1])], 1) @ pixel_map(edits[b][n], (H, W), OUT).T
            assert int(ahead.sum()) > 10
            assert (moved[ahead, :2] - new[ahead]).abs().max() < 1e-6
            assert (z_old - z_new).abs().max() < 1e-6
    R = get(after.world_from_cam)[..., :3, :3]
    assert torch.allclose(torch.linalg.det(R), torch.ones(B, N, dtype=torch.float64))
    assert (get(after.K).diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("name", RULES)
def test_pictures_show_what_the_pixel_map_says(name: str) -> None:
    before = posed_batch()
    edits = draw_edits(RULES[name], B, N, (H, W), OUT, torch_generator(3))
    images = apply_edits(before, edits, OUT).images
    assert images.shape == (B, N, 3, *OUT)
    y, x = torch.meshgrid(torch.arange(OUT[0]) + 0.5, torch.arange(OUT[1]) + 0.5, indexing="ij")
    at = torch.stack([x, y, torch.ones_like(x)], -1).double()
    inner = (slice(2, -2), slice(2, -2))  # the border of a picture cannot be interpolated
    for b in range(B):
        for n in range(N):
            source = at @ torch.linalg.inv(pixel_map(edits[b][n], (H, W), OUT)).T
            # A picture that shrinks is smoothed by a sampled kernel, which keeps straight lines only nearly.
            _, _, w, h = edits[b][n].window
            exact = 1e-4 if w <= OUT[1] and h <= OUT[0] else 0.15
            assert (images[b, n, 0] * W - source[..., 0])[inner].abs().max() < exact
            assert (images[b, n, 1] * H - source[..., 1])[inner].abs().max() < exact


@pytest.mark.parametrize("name", RULES)
def test_depth_is_that_of_the_pixel_under_the_new_centre(name: str) -> None:
    before = posed_batch()
    edits = draw_edits(RULES[name], B, N, (H, W), OUT, torch_generator(3))
    after = apply_edits(before, edits, OUT)
    y, x = torch.meshgrid(torch.arange(OUT[0]) + 0.5, torch.arange(OUT[1]) + 0.5, indexing="ij")
    at = torch.stack([x, y, torch.ones_like(x)], -1).double()
    for b in range(B):
        for n in range(N):
            source = at @ torch.linalg.inv(pixel_map(edits[b][n], (H, W), OUT)).T
            # On a border between two pixels either may be taken.
            clear = ((source[..., :2] - source[..., :2].round()).abs() > 1e-6).all(-1)
            row, column = source[..., 1].floor().long(), source[..., 0].floor().long()
            row, column = row.clamp(0, H - 1), column.clamp(0, W - 1)
            for old, new in ((before.depth, after.depth), (before.mask, after.mask)):
                assert torch.equal(get(old)[b, n][row, column][clear], get(new)[b, n][clear])
    assert torch.equal(get(after.depth) > 0, get(after.depth_valid))


def test_points_of_all_views_still_meet_in_a_mirrored_and_turned_world() -> None:
    """Unprojecting with new cameras gives the mirrored old points: cameras and depth changed together."""
    before = posed_batch()
    rule = Geometric(crop=(1.0, 1.0), mirror=1.0, quarter_turns=1.0, per_view=True)
    edits = draw_edits(rule, B, N, (24, 24), (24, 24), torch_generator(5))
    square = dataclasses.replace(
        before, images=before.images[..., :24], depth=get(before.depth)[..., :24],
        depth_valid=get(before.depth_valid)[..., :24], sparse_depth=None, mask=None,
    )  # fmt: skip
    after = apply_edits(square, edits, (24, 24))
    assert {e.turns for row in edits for e in row} >= {1, 3} or {e.turns for row in edits for e in row} >= {2}

    def cloud(batch: Batch, b: int, n: int) -> Tensor:
        ys, xs = torch.nonzero(get(batch.depth_valid)[b, n], as_tuple=True)
        xy = torch.stack([xs, ys], 1).double() + 0.5
        local = unproject(xy, get(batch.depth)[b, n, ys, xs], get(batch.K)[b, n])
        points = transform_points(get(batch.world_from_cam)[b, n], local)
        return points[points[:, 0].argsort()]

    for b in range(B):
        for n in range(N):
            old = cloud(square, b, n) * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
            assert (old[old[:, 0].argsort()] - cloud(after, b, n)).abs().max() < 1e-9


def test_sparse_points_move_and_the_nearer_one_stays() -> None:
    sparse = torch.zeros(1, 1, 8, 8)
    sparse[0, 0, 2, 2], sparse[0, 0, 3, 3], sparse[0, 0, 7, 0] = 4.0, 5.0, 2.0
    batch = Batch(torch.zeros(1, 1, 3, 8, 8), sparse_depth=sparse, names=(("v",),))
    half = get(apply_edits(batch, [[Edit(0, True, (0, 0, 8, 8))]], (4, 4)).sparse_depth)[0, 0]
    expected = torch.zeros(4, 4)
    expected[1, 2], expected[3, 3] = 4.0, 2.0
    assert torch.equal(half, expected)


def test_what_is_unknown_stays_unknown() -> None:
    batch = posed_batch()
    known = torch.tensor([[True, False, True]] * B)
    eye = torch.eye(3, dtype=torch.float64)
    batch = dataclasses.replace(
        batch, has_K=known, has_pose=known, K=torch.where(known[..., None, None], get(batch.K), eye),
        world_from_cam=torch.where(known[..., None, None], get(batch.world_from_cam), torch.eye(4).double()),
        depth=None, depth_valid=None, sparse_depth=None, mask=None,
    )  # fmt: skip
    after = apply_edits(batch, draw_edits(RULES["all"], B, N, (H, W), OUT, torch_generator(3)), OUT)
    assert torch.equal(get(after.K)[:, 1], eye.expand(B, 3, 3)) and after.depth is None
    assert torch.equal(get(after.world_from_cam)[:, 1], torch.eye(4).double().expand(B, 4, 4))


def test_worlds_are_mirrored_as_a_whole_and_as_often_as_asked() -> None:
    edits = draw_edits(Geometric(mirror=0.3, per_view=True), 2000, 2, (H, W), OUT, torch_generator(0))
    assert all(row[0].mirror == row[1].mirror for row in edits)
    assert sum(row[0].mirror for row in edits) / 2000 == pytest.approx(0.3, abs=0.04)
    for left, top, w, h in (e.window for row in edits for e in row):
        assert 0 <= left <= W - w and 0 <= top <= H - h and w / h == pytest.approx(OUT[1] / OUT[0], rel=0.06)
    with pytest.raises(InputError, match="some of its views only"):
        apply_edits(posed_batch(), [[Edit(0, n == 0, (0, 0, W, H)) for n in range(N)]] * B, OUT)


def colourful(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand((4, 3, 3, 16, 16), generator=torch_generator(seed), dtype=dtype)


def test_no_range_changes_nothing() -> None:
    images = colourful()
    still = Photometric(brightness=0, contrast=0, saturation=0, hue=0, gamma=0, grey=0)
    assert torch.allclose(change_colours(images, still, torch_generator(0)), images, atol=1e-6)
    never = Photometric(probability=0.0)
    assert torch.equal(change_colours(images, never, torch_generator(0)), images)


def test_views_of_a_scene_share_their_colours_when_asked() -> None:
    """The same picture as every view: equal after shared changes, different after own ones."""
    images = colourful()[:, :1].expand(4, 3, 3, 16, 16)
    for shared, equal in ((1.0, True), (0.0, False)):
        rule = Photometric(probability=1.0, shared=shared, grey=0.0)
        changed = change_colours(images, rule, torch_generator(1))
        assert torch.allclose(changed[:, 0], changed[:, 1]) is equal
        assert (changed[0, 0] - changed[1, 0]).abs().mean() > 0.01


def test_all_views_of_a_scene_have_one_order_of_channels() -> None:
    images = colourful()[:, :1].expand(4, 3, 3, 16, 16)
    rule = Photometric(probability=0.0, shared=0.0, channels=0.7)
    changed = change_colours(images, rule, torch_generator(1))
    assert torch.equal(changed[:, 0], changed[:, 1]) and torch.equal(changed[:, 0], changed[:, 2])
    assert not torch.equal(changed, images)


def test_each_change_does_what_it_says() -> None:
    images = 0.25 + 0.5 * colourful(dtype=torch.float64)
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "gamma": 0.0, "grey": 0.0}
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)

    def changed(**ranges: float) -> Tensor:
        rule = Photometric(**{"probability": 1.0, **off, **ranges})  # type: ignore[arg-type]
        return change_colours(images, rule, torch_generator(2))

    def spread(values: Tensor, *, over: tuple[int, ...]) -> float:
        return float((values.amax(over) - values.amin(over)).abs().max())

    assert spread(changed(brightness=0.3) / images, over=(-1, -2, -3)) < 1e-9
    grey = changed(grey=1.0)
    assert torch.allclose(grey[:, :, 0], grey[:, :, 2])
    assert torch.allclose(torch.einsum("bnchw,c->bnhw", images, luma), grey[:, :, 0])
    turned = changed(hue=0.1)
    assert torch.allclose(
        torch.einsum("bnchw,c->bnhw", turned - images, luma), torch.zeros(1).double(), atol=1e-9
    )
    assert (turned - images).abs().max() > 0.02
    power = torch.log(changed(gamma=0.3)) / torch.log(images)
    assert spread(power, over=(-1, -2, -3)) < 1e-9
    assert float(power.min()) >= 1 / 1.3 and float(power.max()) <= 1.3
    order = changed(channels=1.0)
    assert torch.equal(order.sort(2).values, images.sort(2).values) and not torch.equal(order, images)
    assert float((changed(blur=2.0)).std()) < float(images.std())
    assert 0.01 < float((changed(noise=0.1) - images).std()) < 0.1
    assert 0.005 < float((changed(jpeg=1.0) - images).abs().mean()) < 0.2
    for value in (changed(brightness=1.0, contrast=1.0, noise=1.0), changed(jpeg=1.0, blur=1.0)):
        assert float(value.min()) >= 0 and float(value.max()) <= 1


def test_augmentation_is_a_function_of_its_generator_and_asks_for_a_margin() -> None:
    rule = Augmentation(Geometric(margin=1.25), Photometric())
    assert rule.input_size((10, 14)) == (13, 18)  # never smaller than asked for
    assert rule.input_size((48, 64)) == (60, 80) and Augmentation().input_size((48, 64)) == (48, 64)
    a, b, c = (augment(posed_batch(), rule, OUT, torch_generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.images, b.images) and torch.equal(get(a.K), get(b.K))
    assert not torch.equal(a.images, c.images)
    for bad in ({"crop": (0.0, 1.0)}, {"aspect": 0.5}, {"margin": 0.9}):
        with pytest.raises(InputError):
            Geometric(**bad)  # type: ignore[arg-type]
    for wrong in ({"probability": 1.5}, {"hue": -0.1}, {"contrast": 2.0}):
        with pytest.raises(InputError):
            Photometric(**wrong)  # type: ignore[arg-type]


def test_edited_pictures_are_what_the_new_cameras_see() -> None:
    """Rays of the new cameras, mirrored back where the world was, hit a world of closed-form things at their depth."""
    config = TabletopConfig(noise=0.0)
    source = TabletopSource(config=config, seed=3)
    before = source.sample(5, ViewRequest(3, (240, 320)), 1)
    world = Tabletop.make(derive_seed(3, "world", 5), config)
    rule = Geometric(crop=(0.5, 0.9), aspect=1.2, quarter_turns=0.7, per_view=True)
    for seed in range(6):
        edits = draw_edits(rule, 1, 3, (240, 320), (40, 44), torch_generator(seed))
        after = apply_edits(before, edits, (40, 44))
        for n in range(3):
            K, T = get(after.K)[0, n].double().numpy(), get(after.world_from_cam)[0, n].double().numpy()
            u, v = np.meshgrid(np.arange(44) + 0.5, np.arange(40) + 0.5)
            local = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], -1)
            rays, origin = local @ T[:3, :3].T, T[:3, 3].copy()
            assert abs(np.linalg.det(T[:3, :3]) - 1) < 1e-5 and abs(K[0, 1]) < 1e-4
            if edits[0][n].mirror:
                rays[..., 0] *= -1
                origin[0] *= -1
            directions = torch.from_numpy(rays.reshape(1, -1, 3)).float()
            z = world.hit(torch.from_numpy(origin)[None].float(), directions)[0].view(40, 44)
            z = torch.where(torch.isfinite(z), z, torch.zeros(()))
            stored = get(after.depth)[0, n]
            both = (z > 0) & (stored > 0)
            # A quarter of a pixel away from the ray at most; a shift by half a pixel or a wrong turn is far more.
            error = ((z - stored).abs() / z.clamp_min(0.1))[both]
            assert float(both.float().mean()) > 0.2
            assert float(error.median()) < 0.006 and float((error > 0.08).float().mean()) < 0.06


def test_blur_spreads_a_point_as_far_as_it_says() -> None:
    dot = torch.zeros(2, 3, 41, 41, dtype=torch.float64)
    dot[..., 20, 20] = 1.0
    x = torch.arange(41, dtype=torch.float64) - 20
    for sigma in (0.8, 1.0, 2.5):
        out = gaussian_blur(dot, torch.full((2, 1, 1, 1), sigma, dtype=torch.float64), sigma)
        assert torch.allclose(out.sum((-1, -2)), torch.ones(2, 3, dtype=torch.float64))
        across, down = out[1, 2].sum(0), out[1, 2].sum(1)
        for line in (across, down):
            assert float((line * x).sum()) == pytest.approx(0, abs=1e-9)
            assert float((line * x * x).sum()) ** 0.5 == pytest.approx(sigma, rel=0.03)


def test_shared_contrast_turns_about_the_mean_of_the_scene() -> None:
    """Pictures of one value each: own contrast leaves them, shared contrast moves them about their common mean."""
    levels = torch.tensor([0.2, 0.3, 0.7], dtype=torch.float64)
    images = levels.view(1, 3, 1, 1, 1).expand(5, 3, 3, 4, 4)
    off = {"brightness": 0.0, "saturation": 0.0, "hue": 0.0, "gamma": 0.0, "grey": 0.0, "probability": 1.0}
    own = change_colours(images, Photometric(shared=0.0, contrast=0.4, **off), torch_generator(0))
    assert torch.allclose(own, images)
    together = change_colours(images, Photometric(shared=1.0, contrast=0.4, **off), torch_generator(0))
    for scene in together[:, :, 0, 0, 0]:
        factor = (scene[2] - scene[0]) / 0.5
        assert 0.6 <= float(factor) <= 1.4 and abs(float(factor) - 1) > 1e-3
        assert torch.allclose(scene, 0.4 + factor * (levels - 0.4))


def test_colours_gain_and_lose_strength_about_luma() -> None:
    images = 0.3 + 0.3 * torch.rand((40, 3, 3, 4, 4), generator=torch_generator(1), dtype=torch.float64)
    off = {"brightness": 0.0, "contrast": 0.0, "hue": 0.0, "gamma": 0.0, "grey": 0.0, "probability": 1.0}
    changed = change_colours(images, Photometric(saturation=0.5, **off), torch_generator(3))
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
    luma = (images * weights).sum(2, keepdim=True)
    factor = (changed - luma) / (images - luma)
    middle = factor.flatten(2).median(-1).values
    assert torch.allclose((changed - luma), (images - luma) * middle[..., None, None, None], atol=1e-9)
    assert 0.5 <= float(middle.min()) < 0.6 and 1.4 < float(middle.max()) <= 1.5


def test_exponents_reach_the_ends_of_their_range_and_no_further() -> None:
    images = torch.full((3000, 1, 3, 1, 1), 0.5, dtype=torch.float64)
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grey": 0.0, "probability": 1.0}
    power = change_colours(images, Photometric(gamma=0.6, **off), torch_generator(0)).log2().neg()
    assert 1 / 1.6 <= float(power.min()) < 0.63 and 1.59 < float(power.max()) <= 1.6
