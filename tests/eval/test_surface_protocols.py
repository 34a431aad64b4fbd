"""Surface protocols by hand on planes, against brute force, and against each other's rules."""

import json
import math

import numpy as np
import pytest
import torch

from relief3d.core.contract import Camera, Mesh
from relief3d.core.errors import InputError
from relief3d.eval.metrics.mesh_atlas import atlas_scores, refuse_mesh
from relief3d.eval.metrics.mesh_tanks import (
    CropPolygon,
    read_crop_polygon,
    refine_alignment,
    sampled_mesh,
    similarity_of_centres,
    tanks_scores,
)
from relief3d.eval.metrics.mesh_transformerfusion import (
    MISSING,
    OcclusionGrid,
    observed_space,
    transformerfusion_scores,
)
from relief3d.eval.metrics.rendered_depth import rendered_depth_metrics
from relief3d.eval.metrics.scale_diagnostics import frame_abs_rel, next_view_agreement, scale_error
from relief3d.eval.metrics.surface_protocols import (
    near_share,
    score_distances,
    seen_surface,
    voxel_downsample,
)
from relief3d.geometry.alignment import Similarity
from relief3d.render.open3d_backend import load_open3d, open3d_status

USABLE, WHY = open3d_status()
EMPTY = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.int64))


def plane(z=0.0, n=41, x=(-1.0, 1.0), y=(-1.0, 1.0), facing=-1):
    """A grid of triangles at height z, seen from -z (a camera at the origin looking along +z) by default."""
    gx, gy = torch.meshgrid(torch.linspace(*x, n), torch.linspace(*y, n), indexing="ij")
    vertices = torch.stack((gx, gy, torch.full_like(gx, z)), -1).reshape(-1, 3)
    i = (torch.arange(n - 1)[:, None] * n + torch.arange(n - 1)).reshape(-1)
    up = torch.cat((torch.stack((i, i + n, i + n + 1), -1), torch.stack((i, i + n + 1, i + 1), -1)))
    return Mesh(vertices, up if facing > 0 else up.flip(1))


def camera(width=64, height=48, focal=50.0, shift=(0.0, 0.0, 0.0)):
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    return Camera(width, height, K, pose)


# ---- transformerfusion


def test_parallel_planes_three_and_eight_centimetres_apart():
    reference = plane(0.0).vertices
    near = transformerfusion_scores(plane(0.03), reference, None, samples=20_000)
    # Samples lie between the vertices (5 cm apart), so accuracy is a little more than the gap.
    assert near.accuracy == pytest.approx(0.036, abs=0.003)
    assert near.completeness == pytest.approx(0.031, abs=0.001)
    assert near.chamfer == pytest.approx((near.accuracy + near.completeness) / 2)
    assert (near.precision, near.recall, near.fscore) == (1, 1, 1)
    far = transformerfusion_scores(plane(0.08), reference, None, samples=5000)
    assert (far.precision, far.recall, far.fscore) == (0, 0, 0)


def test_reference_points_are_vertices_not_area_samples():
    # A dense half and a coarse half of equal area: every vertex counts once.
    dense, coarse = plane(0.0, n=41, x=(-1.0, 0.0)), plane(0.0, n=3, x=(0.5, 1.5))
    reference = torch.cat((dense.vertices, coarse.vertices))
    got = transformerfusion_scores(dense, reference, None, samples=60_000)
    assert got.recall == pytest.approx(
        1681 / 1690, abs=1e-9
    )  # half of the area is missing, 9 of 1690 vertices


def test_distances_are_clamped_at_one_metre():
    got = transformerfusion_scores(plane(7.0), plane(0.0).vertices, None, samples=1000)
    assert (got.accuracy, got.completeness, got.chamfer) == (1.0, 1.0, 1.0)


def test_a_point_at_exactly_the_threshold_is_near_only_where_the_protocol_says_so():
    distances = torch.tensor([0.05, 0.01, 0.2], dtype=torch.float64)
    assert near_share(distances, 0.05, strict=False) == pytest.approx(2 / 3)
    assert near_share(distances, 0.05, strict=True) == pytest.approx(1 / 3)
    # Half of a world unit is exact in binary: both protocols on the same data.
    one = Mesh(torch.tensor([[0.0, 0, 0], [1e-9, 0, 0], [0, 1e-9, 0]]), torch.tensor([[0, 1, 2]]))
    reference = torch.tensor([[0.0, 0.0, 0.5]])
    got = transformerfusion_scores(one, reference, None, samples=1, threshold=0.5)
    assert got.recall == 1.0 == got.precision


def test_the_occlusion_mask_drops_the_right_half_of_the_prediction_but_not_from_recall():
    left = plane(0.0, x=(-1.0, 0.0))
    grown = plane(0.0, x=(-1.0, 1.0), n=81)
    mask = torch.zeros(41, 41, 11)
    mask[21:] = 1  # x > 0 was never observed
    world2grid = torch.eye(4, dtype=torch.float64)
    world2grid[:3, :3] *= 20
    world2grid[:3, 3] = torch.tensor([20.0, 20.0, 5.0])
    grid = OcclusionGrid(mask, world2grid)
    kept = transformerfusion_scores(grown, left.vertices, grid, samples=20_000)
    everything = transformerfusion_scores(grown, left.vertices, None, samples=20_000)
    assert kept.precision == 1.0 and everything.precision == pytest.approx(0.525, abs=0.01)
    assert kept.recall == everything.recall == 1.0
    # Completeness looks for the nearest of ALL predicted points: what only the hidden half explains is explained.
    shown = plane(0.0, x=(0.2, 1.0))
    other = transformerfusion_scores(shown, shown.vertices, OcclusionGrid(mask, world2grid), samples=20_000)
    assert other.recall == 1.0 and other.precision == 1.0  # none is visible, so all are kept


def test_visibility_is_trilinear_over_voxel_centres_with_nothing_outside():
    generator = torch.Generator().manual_seed(3)
    mask = (torch.rand(5, 6, 7, generator=generator) < 0.3).double()
    world2grid = torch.eye(4, dtype=torch.float64)
    world2grid[:3, :3] *= 2.0
    world2grid[:3, 3] = torch.tensor([1.0, 0.5, 2.0])
    points = torch.rand(400, 3, generator=generator, dtype=torch.float64) * 5 - 1.5
    at = points @ world2grid[:3, :3].T + world2grid[:3, 3]
    scaled = at / torch.tensor([4.0, 5.0, 6.0]) * 2 - 1
    want = torch.nn.functional.grid_sample(
        (1 - mask).permute(2, 1, 0)[None, None], scaled[None, None, None], align_corners=True
    ).view(-1)
    got = OcclusionGrid(mask, world2grid)
    assert torch.allclose(got.visibility(points), want, atol=1e-12)
    assert not bool(got.visible(torch.tensor([[1e9, 0.0, 0.0], [-1e9, 0.0, 0.0]])).any())
    free = OcclusionGrid(torch.zeros(3, 3, 3), torch.eye(4))
    border = torch.tensor([[0.0, 0, 0], [2, 2, 2], [2.1, 1, 1], [-1e-7, 1, 1]])
    assert free.visible(border).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    "mesh", [None, EMPTY, Mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 2]]))], ids=["none", "empty", "flat"]
)
def test_missing_mesh_defaults(mesh):
    got = transformerfusion_scores(mesh, plane().vertices, None)
    assert got == MISSING
    assert (got.accuracy, got.completeness, got.chamfer) == (1.0, 1.0, 1.0)
    assert (got.precision, got.recall, got.fscore) == (1.0, 0.0, 0.0)


def test_observed_space_marks_what_no_frame_saw():
    depth = torch.full((48, 64), 2.0)
    depth[:, 40:] = 0  # unknown: sees nothing
    low, high = torch.tensor([-3.0, -1.0, 0.1]), torch.tensor([3.0, 1.0, 3.0])
    grid = observed_space([(camera(), depth)], low, high, 0.1, slack_voxels=2.0)
    axes = [low[k] + 0.1 * torch.arange(grid.mask.shape[k]) for k in range(3)]
    for i, j, k in [(30, 10, 10), (30, 10, 20), (30, 10, 22), (0, 10, 2), (34, 10, 10), (33, 10, 19)]:
        x, y, z = axes[0][i], axes[1][j], axes[2][k]
        u, v = 50 * x / z + 32, 50 * y / z + 24
        seen = bool(0 <= u < 64 and 0 <= v < 48) and float(depth[int(v), int(u)]) > 0 and z <= 2.2 + 1e-5
        assert bool(grid.mask[i, j, k]) == (not seen), (i, j, k)
    point = torch.tensor([[0.0, 0.0, 1.0]])
    assert torch.allclose(
        point.double() @ grid.world2grid[:3, :3].T + grid.world2grid[:3, 3],
        torch.tensor([[30.0, 10.0, 9.0]]).double(),
        atol=1e-5,
    )
    with pytest.raises(InputError, match="too large"):
        observed_space([], low * 1e4, high * 1e4, 0.1)


# ---- atlas


def test_atlas_keeps_only_what_the_cameras_see_and_no_second_wall():
    # A wall 2 m away, larger than the picture, and one behind it that is hidden.
    wall, hidden = plane(2.0, x=(-3.0, 3.0), y=(-3.0, 3.0)), plane(2.6, x=(-3.0, 3.0), y=(-3.0, 3.0))
    both = Mesh(torch.cat((wall.vertices, hidden.vertices)), torch.cat((wall.faces, hidden.faces + 1681)))
    trimmed = refuse_mesh(both, [camera()])
    assert float((trimmed.vertices[:, 2] - 2.0).abs().max()) < 0.005
    assert float(trimmed.vertices[:, 0].abs().max()) == pytest.approx(2.0 * 32 / 50, abs=0.06)
    reference = plane(2.0, n=80, x=(-1.2, 1.2), y=(-0.9, 0.9)).vertices
    got = atlas_scores(both, reference, [camera()])
    assert got.precision == pytest.approx(1.0, abs=0.05) and got.recall == 1.0 and got.accuracy < 0.02
    # Without the trimming (the neighbours' rule) half of the prediction would be wrong.
    assert transformerfusion_scores(both, reference, None, samples=5000).precision < 0.2


def test_atlas_ignores_what_lies_beyond_five_metres_and_faces_seen_from_behind():
    assert refuse_mesh(plane(5.2, x=(-3, 3), y=(-3, 3)), [camera()]).vertices.shape[0] == 0
    assert refuse_mesh(plane(4.8, x=(-3, 3), y=(-3, 3)), [camera()]).vertices.shape[0] > 0
    front = plane(1.0, x=(-3, 3), y=(-3, 3), facing=1)
    back = plane(2.0, x=(-3, 3), y=(-3, 3))
    both = Mesh(torch.cat((front.vertices, back.vertices)), torch.cat((front.faces, back.faces + 1681)))
    assert float((refuse_mesh(both, [camera()]).vertices[:, 2] - 2.0).abs().max()) < 0.01


def test_atlas_directions_are_not_swapped_and_nothing_is_clamped():
    # The prediction is the left third of the reference: all of it is right, a third is found.
    half = plane(2.0, n=61, x=(-0.9, -0.3), y=(-0.6, 0.6))
    reference = plane(2.0, n=61, x=(-0.9, 0.9), y=(-0.6, 0.6)).vertices
    got = atlas_scores(half, reference, [camera(160, 120, 120.0)])
    assert got.precision > 0.98 and got.recall == pytest.approx(0.36, abs=0.05)
    assert got.completeness > 3 * got.accuracy
    far = torch.cat((reference, torch.tensor([[50.0, 0.0, 2.0]])))
    shift = atlas_scores(half, far, [camera(160, 120, 120.0)]).completeness - got.completeness
    count = voxel_downsample(far, 0.02).shape[0]
    assert shift == pytest.approx(50.3 / count, rel=0.02)  # 1 m when clamped


def test_atlas_thins_both_sides_to_two_centimetres():
    mesh = plane(2.0, n=41, x=(-0.6, 0.6), y=(-0.6, 0.6))
    dense = plane(2.0, n=201, x=(-0.6, 0.0), y=(-0.6, 0.6)).vertices  # left half: 3 to 6 mm apart
    sparse = plane(2.4, n=31, x=(0.0, 0.6), y=(-0.6, 0.6)).vertices  # right half, 40 cm off: 2 to 4 cm apart
    got = atlas_scores(mesh, torch.cat((dense, sparse)), [camera(120, 90, 100.0)])
    raw = len(dense) / (len(dense) + len(sparse))
    thin = len(voxel_downsample(dense, 0.02)) / len(voxel_downsample(torch.cat((dense, sparse)), 0.02))
    assert got.recall == pytest.approx(thin, abs=0.01) and abs(thin - raw) > 0.2


def test_atlas_is_strict_at_the_threshold_in_both_directions(monkeypatch):
    # The trimmed mesh is handed in, so that a distance of exactly the threshold can be had.
    monkeypatch.setattr("relief3d.eval.metrics.mesh_atlas.refuse_mesh", lambda mesh, cameras: mesh)
    one = Mesh(torch.tensor([[0.0, 0, 0], [0, 1, 0], [1, 0, 0]]), torch.tensor([[0, 1, 2]]))
    got = atlas_scores(one, one.vertices + torch.tensor([0.0, 0, 0.5]), [], threshold=0.5)
    assert (got.precision, got.recall, got.accuracy, got.completeness) == (0.0, 0.0, 0.5, 0.5)
    near = atlas_scores(one, one.vertices + torch.tensor([0.0, 0, 0.5]), [], threshold=0.500001)
    assert (near.precision, near.recall) == (1.0, 1.0)


def test_atlas_has_no_scores_for_nothing():
    assert atlas_scores(None, plane().vertices, [camera()]) is None
    assert atlas_scores(EMPTY, plane().vertices, [camera()]) is None
    assert atlas_scores(plane(-2.0), plane().vertices, [camera()]) is None


@pytest.mark.skipif(not USABLE, reason=WHY)
def test_thinning_is_open3ds():
    o3d = load_open3d()
    points = torch.randn(3000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.numpy())).voxel_down_sample(0.3)
    want = np.asarray(cloud.points)
    got = voxel_downsample(points, 0.3).numpy()
    assert got.shape == want.shape
    assert np.allclose(got[np.lexsort(got.T)], want[np.lexsort(want.T)], atol=1e-12)
    with pytest.raises(InputError, match="too small"):
        voxel_downsample(torch.tensor([[0.0, 0, 0], [1e9, 1e9, 1e9]]), 1e-9)
    with pytest.raises(InputError, match="positive"):
        voxel_downsample(points, 0.0)


# ---- plain


def test_triangles_no_camera_saw_are_culled():
    wall, hidden = plane(2.0), plane(2.6)
    both = Mesh(torch.cat((wall.vertices, hidden.vertices)), torch.cat((wall.faces, hidden.faces + 1681)))
    depth = torch.full((48, 64), 2.0)
    seen = seen_surface(both, [(camera(), depth)], slack=0.12)
    assert float(seen.vertices[:, 2].max()) == 2.0 and 0 < seen.faces.shape[0] < wall.faces.shape[0] + 1
    loose = seen_surface(both, [(camera(), depth)], slack=0.7)
    assert float(loose.vertices[:, 2].max()) == pytest.approx(2.6)


# ---- rendered depth


def test_rendered_depth_metrics_by_hand():
    rendered = torch.tensor([[2.0, 0.0, 3.0], [1.04, 5.0, 1.3]])
    sensor = torch.tensor([[2.2, 1.0, 0.0], [1.0, 10.0, 1.0]])
    got = rendered_depth_metrics(rendered, sensor)
    # Counted: (2, 2.2), (1.04, 1), (1.3, 1). The sensor's 10 m is too far, 0 is unknown.
    assert got["abs_rel"] == pytest.approx((0.2 / 2.2 + 0.04 + 0.3) / 3, abs=1e-6)
    assert got["abs_diff"] == pytest.approx((0.2 + 0.04 + 0.3) / 3, abs=1e-6)
    assert got["sq_rel"] == pytest.approx((0.04 / 2.2 + 0.0016 + 0.09) / 3, abs=1e-6)
    assert got["rmse"] == pytest.approx(math.sqrt((0.04 + 0.0016 + 0.09) / 3), abs=1e-6)
    logs = [math.log(2 / 2.2), math.log(1.04), math.log(1.3)]
    assert got["rmse_log"] == pytest.approx(math.sqrt(sum(x * x for x in logs) / 3), abs=1e-6)
    assert got["d105"] == pytest.approx(1 / 3) and got["d110"] == pytest.approx(1 / 3)
    assert got["d125"] == pytest.approx(2 / 3) and got["d125_2"] == 1.0 == got["d125_3"]
    assert got["comp"] == pytest.approx(5 / 6)  # of ALL pixels, wherever the sensor is blind
    edge = rendered_depth_metrics(torch.tensor([[1.25, 1.0]]), torch.ones(1, 2))
    assert edge["d125"] == 0.5 and edge["d125_2"] == 1.0  # a ratio equal to the limit does not count
    assert rendered_depth_metrics(torch.zeros(2, 3), sensor) is None
    with pytest.raises(InputError, match="one size"):
        rendered_depth_metrics(rendered, sensor[:1])


# ---- Tanks and Temples

SQUARE = torch.tensor([[0.0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]], dtype=torch.float64)


def similarity(scale, degrees, shift):
    a = math.radians(degrees)
    R = [[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]]
    return Similarity(
        torch.tensor(scale, dtype=torch.float64),
        torch.tensor(R, dtype=torch.float64),
        torch.tensor(shift, dtype=torch.float64),
    )


def inverse(s):
    R = s.rotation.T
    return Similarity(1 / s.scale, R, -(R @ s.translation) / s.scale)


def test_crop_polygon_inside_by_the_even_odd_rule():
    crop = CropPolygon("Z", -1.0, 1.0, SQUARE)
    points = torch.tensor([[1.0, 1, 0], [1, 1, 1], [1, 1, 1.01], [3, 1, 0], [1, -0.1, 0], [1.999, 0.001, -1]])
    assert crop.inside(points).tolist() == [True, True, False, False, False, True]
    # A notch from above: inside the hull, outside the polygon.
    notched = torch.tensor([[0.0, 0, 0], [4, 0, 0], [4, 4, 0], [2, 1, 0], [0, 4, 0]])
    inside = CropPolygon("Z", -1.0, 1.0, notched).inside(
        torch.tensor([[2.0, 2, 0], [2, 0.5, 0], [0.5, 3, 0]])
    )
    assert inside.tolist() == [False, True, True]
    generator = torch.Generator().manual_seed(0)
    cloud = torch.rand(500, 3, generator=generator, dtype=torch.float64) * 4 - 1
    for axis, order in (("X", (2, 0, 1)), ("Y", (0, 2, 1))):
        turned = CropPolygon(axis, -1.0, 1.0, SQUARE[:, order])
        u, v, w = [order.index(k) for k in range(3)] if axis == "X" else (0, 2, 1)
        want = (cloud[:, [u, v]] > 0).all(1) & (cloud[:, [u, v]] < 2).all(1) & (cloud[:, w] <= 1)
        assert torch.equal(turned.inside(cloud), want & (cloud[:, w] >= -1))


@pytest.mark.skipif(not USABLE, reason=WHY)
@pytest.mark.parametrize("axis", ["X", "Y", "Z"])
def test_crop_is_open3ds(axis, tmp_path):
    generator = torch.Generator().manual_seed(7)
    corners = torch.rand(9, 3, generator=generator, dtype=torch.float64) * 4 - 1
    content = {
        "class_name": "SelectionPolygonVolume",
        "version_major": 1,
        "version_minor": 0,
        "orthogonal_axis": axis,
        "axis_min": -0.5,
        "axis_max": 1.5,
        "bounding_polygon": corners.tolist(),
    }
    path = tmp_path / "crop.json"
    path.write_text(json.dumps(content))
    points = torch.rand(4000, 3, generator=generator, dtype=torch.float64) * 4 - 1
    o3d = load_open3d()
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.numpy()))
    want = np.asarray(
        o3d.visualization.read_selection_polygon_volume(str(path)).crop_point_cloud(cloud).points
    )
    got = read_crop_polygon(path).crop(points).numpy()
    assert 0 < len(got) < 4000 and np.array_equal(got, want)


def test_crop_files_that_are_none(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"class_name": "Other"}))
    with pytest.raises(InputError, match="SelectionPolygonVolume"):
        read_crop_polygon(path)
    path.write_text(json.dumps({"class_name": "SelectionPolygonVolume", "axis_min": 0}))
    with pytest.raises(InputError, match="bounding_polygon"):
        read_crop_polygon(path)
    bad = {"class_name": "SelectionPolygonVolume", "axis_min": 0, "axis_max": 1, "orthogonal_axis": "W"}
    path.write_text(json.dumps(bad | {"bounding_polygon": SQUARE.tolist()}))
    with pytest.raises(InputError, match=r"x\.json"):
        read_crop_polygon(path)


def bumpy(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 2
    z = 0.2 * torch.sin(5 * xy[:, 0]) * torch.cos(4 * xy[:, 1])
    return torch.cat((xy, z[:, None]), -1)


def test_similarity_of_centres_survives_wrong_cameras():
    truth = similarity(2.5, 70.0, [3.0, -2.0, 1.0])
    reference = torch.randn(60, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2
    estimated = inverse(truth).apply(reference)
    estimated[:15] += 1.0
    got = similarity_of_centres(estimated, reference)
    assert float(got.scale) == pytest.approx(2.5, abs=1e-9)
    assert torch.allclose(got.rotation, truth.rotation, atol=1e-9)
    assert torch.allclose(got.translation, truth.translation, atol=1e-8)
    with pytest.raises(InputError, match="cameras"):
        similarity_of_centres(estimated[1:], reference)


def test_icp_recovers_a_known_similarity_and_refuses_wild_ones():
    tau, crop = 0.02, CropPolygon("Z", -1.0, 1.0, SQUARE)
    truth = similarity(0.5, 30.0, [1.0, 2.0, 3.0])
    scan = bumpy(6000)
    points = inverse(truth).apply(scan)
    start = similarity(0.5 * 1.01, 30.3, [1.01, 2.0, 3.01])
    got = refine_alignment(points, scan, crop, start, tau)
    assert got.accepted and got.scale_change == pytest.approx(1 - 1 / 1.01, abs=2e-3)
    assert float((got.similarity.apply(points) - scan).norm(dim=1).mean()) < 0.2 * tau
    before = tanks_scores(points, scan, crop, start, tau, [tau])[0].fscore
    after = tanks_scores(points, scan, crop, got.similarity, tau, [tau])[0].fscore
    assert after > 0.99 and before < 0.9
    # 9 % too large about the middle of the crop: hardly a shift, but no correction either.
    middle = scan.mean(0)
    wild = refine_alignment(
        points, scan, crop, similarity(0.545, 30.0, (1.09 * truth.translation - 0.09 * middle).tolist()), tau
    )
    assert wild.scale_change >= 0.05 and wild.shift < 10 * tau
    assert not wild.accepted and float(wild.similarity.scale) == pytest.approx(0.545)
    far = refine_alignment(points, scan, crop, similarity(0.5, 30.0, [1.0, 2.0, 3.0 + 12 * tau]), tau)
    assert far.shift > 10 * tau and not far.accepted  # ICP found the way back, but from too far off


def test_tanks_scores_crop_thin_and_compare_strictly():
    tau, crop = 0.125, CropPolygon("Z", -1.0, 1.0, SQUARE)
    axis = torch.arange(8, dtype=torch.float64) * 0.25 + 0.125
    flat = torch.cartesian_prod(axis, axis, torch.zeros(1, dtype=torch.float64))
    raised = flat + torch.tensor([0.0, 0.0, 0.125])
    outside = flat[:20] + torch.tensor([5.0, 0.0, 0.0])
    one = similarity(1.0, 0.0, [0.0, 0.0, 0.0])
    got = tanks_scores(torch.cat((raised, outside)), flat, crop, one, tau, [tau, 2 * tau])
    assert (got[0].precision, got[0].recall, got[0].fscore) == (0, 0, 0)  # exactly tau is not near
    assert (got[1].precision, got[1].recall, got[1].fscore) == (1, 1, 1)  # points outside do not count
    half = flat[flat[:, 0] < 1]
    got = tanks_scores(half, flat, crop, one, tau, [tau])[0]
    assert got.precision == 1.0 and got.recall == 0.5 and got.fscore == pytest.approx(2 / 3)
    assert tanks_scores(outside, flat, crop, one, tau, [tau]) is None
    with pytest.raises(InputError, match="no valid points"):
        tanks_scores(flat, outside, crop, one, tau, [tau])


def test_mesh_is_sampled_in_the_unit_of_the_scan():
    mesh = plane(0.0, n=2)  # 4 square units
    assert sampled_mesh(mesh, similarity(1.0, 0, [0.0, 0, 0]), 0.1).shape[0] == pytest.approx(1600, abs=1)
    assert sampled_mesh(mesh, similarity(2.0, 0, [0.0, 0, 0]), 0.1).shape[0] == pytest.approx(6400, abs=1)


# ---- alignment diagnostics


def test_scale_error_and_abs_rel_by_hand():
    truth = torch.tensor([[1.0, 2.0, 4.0, 0.0]])
    depth = torch.tensor([[0.5, 1.0, 4.0, 3.0]])
    valid = truth > 0
    assert scale_error(depth, truth, valid) == pytest.approx(math.log(2))
    assert frame_abs_rel(depth, truth, valid, median_scaled=False) == pytest.approx(1 / 3)
    assert frame_abs_rel(depth, truth, valid, median_scaled=True) == pytest.approx(1 / 3)
    assert frame_abs_rel(depth * 7, truth, valid, median_scaled=True) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="no valid pixels"):
        scale_error(torch.zeros(1, 4), truth, valid)
    with pytest.raises(InputError, match="one size"):
        scale_error(depth[:, :2], truth, valid)


def test_agreement_with_the_next_view():
    K = camera().K.expand(2, 3, 3)
    poses = torch.stack((torch.eye(4), torch.eye(4))).double()
    poses[1, 2, 3] = 0.5  # half a metre forward
    depth = torch.stack((torch.full((48, 64), 2.0), torch.full((48, 64), 1.5)))
    ((count, (two, five)),) = next_view_agreement(depth, K, poses)
    assert 0 < count < 48 * 64 and two == five == count
    depth[1] = 1.55  # 3.2 % off
    ((count, (two, five)),) = next_view_agreement(depth, K, poses)
    assert two == 0 and five == count
    depth[1, :, 32:] = 0
    ((half, _),) = next_view_agreement(depth, K, poses)
    assert half == pytest.approx(count / 2, rel=0.05)


def test_nothing_to_compare():
    with pytest.raises(InputError, match="no valid"):
        score_distances(torch.zeros(0), torch.zeros(3), 0.1, strict=True)
