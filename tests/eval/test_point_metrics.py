"""Point metrics against golden values, brute force and properties."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from relief3d.core.errors import InputError
from relief3d.eval.metrics.points import (
    compare_clouds,
    estimate_normals,
    inliers_by_distance,
    inliers_by_norm,
    metric_scale_error,
    normalise_avg_dis,
    ray_error_deg,
    relative_error,
    resize_point_maps,
    score_point_maps,
    view_mean,
)
from relief3d.geometry.alignment import scale_l1


def random_maps(seed: int = 0, views: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(views, 6, 8, 3, generator=generator, dtype=torch.float64) + torch.tensor(
        [0.0, 0.0, 4.0]
    )
    pred = true * (1 + 0.1 * torch.randn(views, 6, 8, 1, generator=generator, dtype=torch.float64))
    pred = pred + 0.1 * torch.randn(true.shape, generator=generator, dtype=torch.float64)
    return pred, true, torch.rand(views, 6, 8, generator=generator) < 0.7


@pytest.mark.shared
def test_golden_point_metrics(shared_data):
    golden = load_file(shared_data.parent / "golden" / "multiview_losses_metrics.safetensors")
    pred, true, mask = (golden[f"point_metrics.inputs.{k}"] for k in ("pred", "gt", "mask"))
    mask = mask.bool()
    for value, name in (
        (relative_error(pred, true, mask), "rel"),
        (inliers_by_norm(pred, true, mask, 1.03), "inlier_103"),
        (inliers_by_norm(pred, true, mask, 1.10), "inlier_110"),
    ):
        assert float(value) == pytest.approx(float(golden[f"point_metrics.outputs.{name}"]), abs=1e-6), name
    # The true distance is another number: the golden values would show the swap.
    assert abs(float(inliers_by_distance(pred, true, mask, 0.10)) - 0.7473684) > 5e-3


@pytest.mark.shared
def test_golden_scale_of_point_sets(shared_data):
    golden = load_file(shared_data.parent / "golden" / "multiview_losses_metrics.safetensors")
    src, dst, weight = (golden[f"scale_align.inputs.{k}"] for k in ("src", "tgt", "weight"))
    got = scale_l1(src.flatten(1), dst.flatten(1), weight[..., None].expand_as(src).flatten(1))
    assert torch.allclose(got, golden["scale_align.outputs.scale"], rtol=1e-5)


@pytest.mark.shared
def test_golden_scale_of_the_pi3_loss(shared_data):
    golden = load_file(shared_data.parent / "golden" / "multiview_losses_metrics.safetensors")
    true = golden["pi3_loss.intermediates.gt_local_points"].double()
    pred = golden["pi3_loss.intermediates.pred_local_points_normalised"].double()
    valid = golden["pi3_loss.inputs.valid_masks"].bool()
    for b in range(true.shape[0]):
        mean_z = torch.stack([z[v].mean() for z, v in zip(true[b, ..., 2], valid[b])])
        weight = 1 / (torch.maximum(true[b, ..., 2], 0.1 * mean_z[:, None, None]) + 1e-6)
        p, g, w = pred[b][valid[b]], true[b][valid[b]], weight[valid[b]]
        # 4096 pixels by nearest-neighbour upsampling of the masked list, as the loss takes them.
        index = (torch.arange(4096) * (len(p) / 4096)).floor().long()
        scale = scale_l1(p[index].flatten(), g[index].flatten(), w[index].repeat_interleave(3))
        assert float(scale) == pytest.approx(float(golden["pi3_loss.outputs.scale"][b]), rel=1e-5)


def test_errors_equal_a_loop():
    pred, true, valid = random_maps()
    for view in range(3):
        rel, norm, near, count = 0.0, 0, 0, 0
        for p, g, v in zip(*(t[view].reshape(-1, *t.shape[3:]).tolist() for t in (pred, true, valid))):
            if v:
                size = math.dist(g, (0, 0, 0))
                rel += math.dist(p, g) / size
                ratio = math.dist(p, (0, 0, 0)) / size
                norm += max(ratio, 1 / ratio) < 1.1
                near += math.dist(p, g) < 0.1 * size
                count += 1
        assert float(relative_error(pred, true, valid)[view]) == pytest.approx(rel / count, rel=1e-12)
        assert float(inliers_by_norm(pred, true, valid, 1.1)[view]) == pytest.approx(norm / count)
        assert float(inliers_by_distance(pred, true, valid, 0.1)[view]) == pytest.approx(near / count)
        assert norm >= near


def test_norm_convention_ignores_direction():
    true = torch.tensor([[[0.0, 0.0, 2.0]]])
    pred = torch.tensor([[[2.0, 0.0, 0.0]]])
    valid = torch.ones(1, 1, dtype=torch.bool)
    assert float(inliers_by_norm(pred, true, valid, 1.03)) == 1
    assert float(inliers_by_distance(pred, true, valid, 0.03)) == 0
    assert float(relative_error(pred, true, valid)) == pytest.approx(math.sqrt(2))
    assert float(inliers_by_norm(torch.zeros_like(pred), true, valid, 1.03)) == 0
    assert float(inliers_by_norm(true * 1.5, true, valid, 1.5)) == 0  # strict


def test_views_without_truth_are_left_out_of_the_mean():
    pred, true, valid = random_maps()
    valid[1] = False
    valid[2, 2:] = False
    pred[2] *= 1.2
    rel = relative_error(pred, true, valid)
    assert math.isnan(float(rel[1]))
    assert view_mean(rel) == pytest.approx(float((rel[0] + rel[2]) / 2))
    # Per view, then over views: not over all pixels at once.
    pooled = float(
        relative_error(pred.reshape(1, -1, 8, 3), true.reshape(1, -1, 8, 3), valid.reshape(1, -1, 8))
    )
    assert abs(view_mean(rel) - pooled) > 1e-5


def test_nothing_valid_or_not_finite():
    pred, true, valid = random_maps()
    for function in (relative_error, inliers_by_norm, inliers_by_distance):
        with pytest.raises(InputError, match="no valid pixels"):
            function(pred, true, torch.zeros_like(valid))
        with pytest.raises(InputError, match="no valid pixels"):
            function(pred, torch.zeros_like(true), valid)
        with pytest.raises(InputError, match="not finite"):
            function(pred * math.nan, true, valid)
        with pytest.raises(InputError, match="must be"):
            function(pred[:2], true, valid)
    hidden = torch.where(valid[..., None], pred, torch.full_like(pred, math.nan))
    assert torch.equal(relative_error(hidden, true, valid), relative_error(pred, true, valid))
    with pytest.raises(InputError, match="no valid pixels"):
        view_mean(torch.tensor([math.nan]))


def rigid(seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = torch.from_numpy(Rotation.random(random_state=rng).as_matrix())
    out[:3, 3] = torch.from_numpy(rng.normal(size=3) * 3)
    return out


def test_normalisation_removes_gauge_and_scale():
    _, points, valid = random_maps()
    depth = points[..., 2]
    poses = torch.stack([rigid(i) for i in range(3)])
    base = normalise_avg_dis(points, depth, poses, valid)
    local = (points - poses[0, :3, 3]) @ poses[0, :3, :3]
    assert base.factor == pytest.approx(float(local[valid].norm(dim=-1).mean()))
    assert torch.allclose(base.world_from_cam[0], torch.eye(4, dtype=torch.float64), atol=1e-12)
    assert float(base.points[valid].norm(dim=-1).mean()) == pytest.approx(1)
    gauge, scale = rigid(9), 2.5
    moved = scale * (points @ gauge[:3, :3].T + gauge[:3, 3])
    new_poses = gauge @ poses
    new_poses[:, :3, 3] *= scale
    other = normalise_avg_dis(moved, scale * depth, new_poses, valid)
    assert other.factor == pytest.approx(scale * base.factor)
    assert torch.allclose(other.points, base.points, atol=1e-9)
    assert torch.allclose(other.depth, base.depth, atol=1e-9)
    assert torch.allclose(other.world_from_cam, base.world_from_cam, atol=1e-9)
    assert metric_scale_error(other.factor, base.factor) == pytest.approx(1.5)
    with pytest.raises(InputError, match="no valid pixels"):
        normalise_avg_dis(points, depth, poses, torch.zeros_like(valid))
    with pytest.raises(InputError, match="not finite"):
        normalise_avg_dis(points * math.nan, depth, poses, valid)
    with pytest.raises(InputError, match="scale is unknown"):
        normalise_avg_dis(torch.zeros_like(points), depth, torch.eye(4).expand(3, 4, 4), valid)


def test_ray_error():
    a = torch.tensor([[[0.0, 0.0, 2.0], [1.0, 0.0, 0.0]]])
    b = torch.tensor([[[0.0, 1.0, 1.0], [-3.0, 0.0, 0.0]]])
    assert float(ray_error_deg(a, b)) == pytest.approx((45 + 180) / 2)
    assert float(ray_error_deg(a, 7 * a)) == pytest.approx(0)


def bumpy(points: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(points, 2, generator=generator, dtype=torch.float64) * 2
    z = 0.3 * torch.sin(3 * xy[:, :1]) + 0.2 * torch.cos(4 * xy[:, 1:])
    return torch.cat([xy, z], 1)


def test_normals_of_a_plane_and_of_few_points():
    generator = torch.Generator().manual_seed(0)
    plane = torch.rand(200, 3, generator=generator, dtype=torch.float64)
    plane[:, 2] = 0.5 * plane[:, 0] - 0.2 * plane[:, 1]
    expected = torch.tensor([-0.5, 0.2, 1.0], dtype=torch.float64)
    expected /= expected.norm()
    for points in (plane, plane[:5]):
        normals = estimate_normals(points)
        assert torch.allclose(
            (normals @ expected).abs(), torch.ones(len(points), dtype=torch.float64), atol=1e-9
        )
    with pytest.raises(InputError, match="three points"):
        estimate_normals(plane[:2])


def test_clouds_equal_brute_force():
    p, g = bumpy(70, 1), bumpy(50, 2)
    distance = cdist(p.numpy(), g.numpy())

    def normals(cloud: np.ndarray) -> np.ndarray:
        order = np.argsort(cdist(cloud, cloud), axis=1)[:, :30]
        out = []
        for index in order:
            near = cloud[index] - cloud[index].mean(0)
            out.append(np.linalg.svd(near)[2][2])
        return np.array(out)

    np_, ng = normals(p.numpy()), normals(g.numpy())
    forward, backward = distance.argmin(1), distance.argmin(0)
    ours = np.abs((np_ * ng[forward]).sum(1))
    theirs = np.abs((ng * np_[backward]).sum(1))
    got = compare_clouds(p, g)
    assert got.accuracy == pytest.approx(distance.min(1).mean())
    assert got.accuracy_median == pytest.approx(np.median(distance.min(1)))
    assert got.completeness == pytest.approx(distance.min(0).mean())
    assert got.completeness_median == pytest.approx(np.median(distance.min(0)))
    assert got.normals_accuracy == pytest.approx(ours.mean())
    assert got.normals_accuracy_median == pytest.approx(np.median(ours))
    assert got.normals_completeness == pytest.approx(theirs.mean())
    assert got.normals_completeness_median == pytest.approx(np.median(theirs))
    assert float(torch.from_numpy(distance.min(1)).median()) != pytest.approx(got.accuracy_median)


def grid_maps() -> tuple[torch.Tensor, torch.Tensor]:
    """Two overlapping views (2, 12, 16, 3) of a bumpy surface, and a mask."""
    y, x = torch.meshgrid(torch.linspace(0, 1.5, 12), torch.linspace(0, 2, 16), indexing="ij")
    views = []
    for shift in (0.0, 0.4):
        xs = (x + shift).double()
        views.append(
            torch.stack([xs, y.double(), 0.3 * torch.sin(3 * xs) + 0.2 * torch.cos(4 * y.double())], -1)
        )
    maps = torch.stack(views)
    valid = torch.ones(maps.shape[:3], dtype=torch.bool)
    valid[:, :2] = False
    return maps, valid


def test_score_ignores_a_similarity_and_the_masked_pixels():
    true, valid = grid_maps()
    gauge = rigid(3)
    pred = 0.4 * true @ gauge[:3, :3].T + gauge[:3, 3]
    pred[~valid] = math.nan
    scores = score_point_maps(pred, true, valid)
    assert scores.accuracy < 1e-9 and scores.completeness < 1e-9
    assert scores.normals_accuracy == pytest.approx(
        1
    ) and scores.normals_completeness_median == pytest.approx(1)


def test_icp_follows_the_similarity():
    true, valid = grid_maps()
    # A third of the first view floats away: the similarity over pixel pairs follows it, ICP's pairs end at 0.1.
    pred = true.clone()
    pred[0, :, ::3] += torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64)
    with_icp = score_point_maps(pred, true, valid)
    without = score_point_maps(pred, true, valid, icp_threshold=1e-9)
    assert with_icp.accuracy_median < 0.5 * without.accuracy_median
    far = score_point_maps(pred, true, valid, icp_threshold=10.0)
    assert with_icp.accuracy_median < far.accuracy_median


def test_maps_are_resized_with_antialiasing():
    true, valid = grid_maps()
    fine = torch.nn.functional.interpolate(
        true.permute(0, 3, 1, 2), (36, 48), mode="bilinear", align_corners=False
    )
    noise = 0.2 * torch.randn(fine.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fine = (fine + noise).permute(0, 2, 3, 1)
    small = resize_point_maps(fine, (12, 16))
    # Anti-aliasing averages over a 6 x 6 triangle per pixel; plain bilinear would keep most of the noise.
    plain = torch.nn.functional.interpolate(fine.permute(0, 3, 1, 2), (12, 16), mode="bilinear").permute(
        0, 2, 3, 1
    )
    assert (small - true)[:, 2:-2, 2:-2].std() < 0.5 * (plain - true)[:, 2:-2, 2:-2].std()
    assert torch.equal(resize_point_maps(true, (12, 16)), true)
    assert score_point_maps(fine, true, valid).accuracy < score_point_maps(plain, true, valid).accuracy


def test_score_refuses_bad_input():
    true, valid = grid_maps()
    with pytest.raises(InputError, match="no valid pixels"):
        score_point_maps(true, true, torch.zeros_like(valid))
    with pytest.raises(InputError, match="not finite"):
        score_point_maps(true * math.nan, true, valid)
    with pytest.raises(InputError, match="do not fit"):
        score_point_maps(true[:1], true, valid)


def test_points_beyond_all_numbers_are_refused():
    truth = torch.rand(1, 6, 8, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with pytest.raises(InputError, match="too far away"):
        score_point_maps(truth * 1e300, truth, torch.ones(1, 6, 8, dtype=torch.bool))
