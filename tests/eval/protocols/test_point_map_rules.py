"""Point-map benchmarks: the warp to a fixed size, what is dropped, what is aligned and what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from corpora.evaluation import measure_samples, truthful
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Measurement, Query, Truth
from relief3d.eval.protocols.metric import diode_points, eth3d_points, ibims_points, kitti_points
from relief3d.eval.protocols.metric.mono_depth_rules import Shot
from relief3d.eval.protocols.metric.point_map_rules import PointMapProtocol, make_warp, warp_depth, warp_image
from relief3d.geometry.masked_resize import masked_nearest_resize
from relief3d.geometry.projection import depth_to_points, intrinsics, pixel_grid, pixel_rays

MODULES = (kitti_points, eth3d_points, ibims_points, diode_points)
PROTOCOLS = {p.name: p for m in MODULES for p in m.PROTOCOLS if isinstance(p, PointMapProtocol)}
RAW = (60, 90)
K = intrinsics(70.0, 76.0, 50.0, 26.0)
SIZE = (30, 48)


def plane_depth(K: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, float]:
    """z-depth of the plane n.X = d."""
    normal, offset = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64), 5.0
    return offset / (pixel_rays(K, *size) @ normal), normal, offset


def outline(size: tuple[int, int]) -> Tensor:
    """Corner positions of a picture's area."""
    return torch.tensor([[0.0, 0.0], [size[1], 0.0], [size[1], size[0]], [0.0, size[0]]], dtype=torch.float64)


def test_warp_takes_the_largest_field_of_view_inside_the_picture() -> None:
    warp = make_warp(K, RAW, SIZE)
    corners = torch.cat([outline(SIZE), torch.ones(4, 1, dtype=torch.float64)], 1)

    def raw_corners(focal: float) -> Tensor:
        target = intrinsics(focal, focal, SIZE[1] / 2, SIZE[0] / 2)
        rays = (corners @ torch.linalg.inv(target).T) @ warp.R
        flat = rays @ K.T
        return flat[:, :2] / flat[:, 2:]

    def inside(xy: Tensor) -> bool:
        limit = torch.tensor([RAW[1], RAW[0]], dtype=torch.float64)
        return bool(((xy >= -1e-6) & (xy <= limit + 1e-6)).all())

    focal = float(warp.K[0, 0])
    assert inside(raw_corners(focal)) and not inside(raw_corners(focal * 0.999))
    assert warp.K[0, 0] == warp.K[1, 1] and warp.K[:2, 2].tolist() == [SIZE[1] / 2, SIZE[0] / 2]
    assert inside(warp.source.reshape(-1, 2))


def test_the_middle_of_the_picture_becomes_the_axis() -> None:
    warp = make_warp(K, RAW, SIZE)
    middle = torch.linalg.inv(K) @ torch.tensor([RAW[1] / 2, RAW[0] / 2, 1.0], dtype=torch.float64)
    turned = warp.R @ middle
    assert turned[:2].abs().max() < 1e-12 and turned[2] > 0
    assert torch.allclose(warp.R @ warp.R.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    centred = make_warp(intrinsics(70.0, 70.0, 45.0, 30.0), RAW, (30, 45))
    assert torch.equal(centred.R, torch.eye(3, dtype=torch.float64))
    assert float(centred.K[0, 0]) == pytest.approx(35.0)


def test_truth_is_moved_as_distance_and_lies_on_the_same_surface() -> None:
    depth, normal, offset = plane_depth(K, RAW)
    warp = make_warp(K, RAW, SIZE)
    moved, known = warp_depth(depth, depth > 0, K, warp)
    assert bool(known.all())
    points = depth_to_points(moved.double(), warp.K) @ warp.R  # back in the raw camera
    assert (points @ normal / offset - 1).abs().max() < 0.03  # nearest neighbour: within half a raw pixel
    # Keeping z instead of the distance would miss the turn of the camera.
    kept = depth_to_points(
        depth[
            warp.source[..., 1].long().clamp(max=RAW[0] - 1), warp.source[..., 0].long().clamp(max=RAW[1] - 1)
        ],
        warp.K,
    )
    assert ((kept @ warp.R) @ normal / offset - 1).abs().max() > 0.05


def test_truth_is_never_mixed_and_follows_the_masked_resize() -> None:
    depth = torch.where(pixel_grid(*RAW)[..., 0] < 40, 2.0, 9.0)
    valid = torch.rand(RAW, generator=torch.Generator().manual_seed(0)) < 0.3
    warp = make_warp(K, RAW, SIZE)
    assert warp.step == (int(60 * float(warp.K[0, 0]) / 76), int(90 * float(warp.K[0, 0]) / 70))
    moved, known = warp_depth(depth, valid, K, warp)
    small, mask = masked_nearest_resize(depth, valid, warp.step)
    scale = torch.tensor([warp.step[1] / 90, warp.step[0] / 60], dtype=torch.float64)
    for row, col in ((3, 4), (15, 24), (29, 47), (10, 40), (0, 0)):
        x, y = (warp.source[row, col] * scale).floor().long().tolist()
        ray = torch.linalg.inv(K) @ torch.tensor(
            [(x + 0.5) / scale[0], (y + 0.5) / scale[1], 1.0], dtype=torch.float64
        )
        new = torch.linalg.inv(warp.K) @ torch.tensor([col + 0.5, row + 0.5, 1.0], dtype=torch.float64)
        want = float(small[y, x] * ray.norm() / new.norm()) if mask[y, x] else 0.0
        assert float(moved[row, col]) == pytest.approx(want, rel=1e-6)
        assert bool(known[row, col]) == bool(mask[y, x])
    # A plain nearest lookup in the raw map would keep far fewer of the sparse points.
    plain = valid[warp.source[..., 1].long().clamp(0, 59), warp.source[..., 0].long().clamp(0, 89)]
    assert int(known.sum()) > 1.3 * int(plain.sum())


def test_pictures_are_filtered_before_they_shrink() -> None:
    big, focal = (120, 180), intrinsics(150.0, 150.0, 90.0, 60.0)
    stripes = ((torch.arange(180) % 2) * 255).to(torch.uint8).expand(3, *big).contiguous()
    warped = warp_image(stripes, make_warp(focal, big, (20, 30)))
    assert warped.shape == (3, 20, 30) and warped.dtype == torch.uint8
    assert int(warped.max()) - int(warped.min()) < 40  # without a filter it would be black or white
    gradient = (pixel_grid(*big)[..., 0] * 1.4).to(torch.uint8).expand(3, *big).contiguous()
    warp = make_warp(focal, big, (20, 30))
    error = warp_image(gradient, warp)[0].double() - warp.source[..., 0] * 1.4
    assert error.abs()[2:-2, 2:-2].max() < 2.5


def test_pictures_shrink_by_lanczos() -> None:
    big, focal = (120, 180), intrinsics(150.0, 150.0, 90.0, 60.0)
    noise = np.random.default_rng(0).integers(0, 256, (*big, 3), dtype=np.uint8)
    warp = make_warp(focal, big, (20, 30))
    assert warp.step == (20, 30)  # nothing but a change of size
    warped = warp_image(torch.from_numpy(noise).permute(2, 0, 1), warp).permute(1, 2, 0).numpy().astype(int)
    picture = Image.fromarray(noise)
    lanczos, bilinear = (
        np.asarray(picture.resize((30, 20), kind)).astype(int)
        for kind in (Image.Resampling.LANCZOS, Image.Resampling.BILINEAR)
    )
    assert np.abs(warped - lanczos).max() <= 1 and np.abs(warped - bilinear).max() > 5


def test_a_field_of_view_that_no_plane_holds_is_refused() -> None:
    with pytest.raises(InputError, match="field of view"):
        make_warp(intrinsics(1.0, 1.0, 900.0, 30.0), (60, 1000), SIZE)


def shot(depth: Tensor, valid: Tensor | None = None) -> Shot:
    image = torch.zeros(3, *depth.shape, dtype=torch.uint8)
    return Shot("a", "g", lambda: image, lambda: (depth, depth > 0 if valid is None else valid), lambda: K)


def samples_of(protocol: PointMapProtocol, depth: Tensor) -> tuple[Query, Truth]:
    sample = protocol._samples([shot(depth)], SIZE)[0]
    return sample.load_query(), sample.load_truth()


def test_far_pixels_are_dropped_by_the_quantile_rule() -> None:
    depth = torch.full(RAW, 2.0)
    depth[20:24, 40:44] = 2600.0
    depth[30:34, 40:44] = 1300.0
    _, truth = samples_of(PROTOCOLS["diode_points"], depth)
    moved, mask = truth.need("depth")[0], truth.need("valid")[0]
    limit = 1000 * float(np.quantile(moved[moved > 0].double().numpy(), 0.01))
    assert 1500 < limit < 2400
    assert torch.equal(mask, (moved > 0) & (moved <= limit))
    assert bool((moved > limit).any()) and bool(((moved > 1000) & mask).any())


def answer_of(
    truth: Truth, noise: float = 0.1, shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> Answer:
    generator = torch.Generator().manual_seed(3)
    points = truth.need("cam_points").double() * (1 + noise * torch.randn(1, *SIZE, 1, generator=generator))
    points = points + torch.tensor(shift, dtype=torch.float64)
    return Answer({"cam_points": points.float(), "depth": points[..., 2].float()})


def measured(protocol: PointMapProtocol, query: Query, truth: Truth, answer: Answer) -> dict[str, float]:
    return protocol.summarise([protocol.measure(query, truth, answer)])


def test_depth_is_not_aligned_but_points_are_moved() -> None:
    protocol = PROTOCOLS["kitti_points"]
    query, truth = samples_of(protocol, plane_depth(K, RAW)[0].float())
    shift = (0.0, 0.0, 1.0)
    plain, moved = (
        measured(protocol, query, truth, answer_of(truth, 0.05, s)) for s in ((0.0, 0.0, 0.0), shift)
    )
    assert moved["rel_point"] == pytest.approx(plain["rel_point"], rel=1e-3)
    answer = answer_of(truth, 0.05, shift)
    mask, g = truth.need("valid")[0], truth.need("depth")[0].double()
    p = answer.need("depth")[0].double()
    ratio = ((p - g).abs() / (g + 1e-6))[mask].mean()
    assert moved["abs_rel"] == pytest.approx(100 * float(ratio), rel=1e-6)
    assert moved["abs_rel"] > 2 * plain["abs_rel"]
    scaled = p * (g[mask].median() / p[mask].median())
    assert abs(100 * float(((scaled - g).abs() / g)[mask].mean()) - moved["abs_rel"]) > 1
    assert moved["delta1"] == pytest.approx(
        100 * float((torch.maximum(p / g, g / p) < 1.25)[mask].double().mean())
    )


def test_pictures_count_the_same_whatever_their_pixels() -> None:
    protocol = PROTOCOLS["ibims_points"]
    small = Measurement("a", "a", {"rel_depth": 0.1, "delta1_depth": 1.0}, weight=10)
    large = Measurement("b", "b", {"rel_depth": 0.4, "delta1_depth": 0.5}, weight=990)
    summary = protocol.summarise([small, large])
    assert summary["abs_rel"] == pytest.approx(25.0) and summary["delta1"] == pytest.approx(75.0)
    assert math.isnan(summary["rel_point"])


def test_depth_models_leave_the_point_columns_empty() -> None:
    protocol = PROTOCOLS["eth3d_points"]
    query, truth = samples_of(protocol, plane_depth(K, RAW)[0].float())
    both = answer_of(truth)
    only = measured(protocol, query, truth, Answer({"depth": both.need("depth")}))
    full = measured(protocol, query, truth, both)
    assert only["abs_rel"] == pytest.approx(full["abs_rel"]) and math.isnan(only["rel_point"])
    points = measured(protocol, query, truth, Answer({"cam_points": both.need("cam_points")}))
    assert points == pytest.approx(full)


def test_answers_that_do_not_fit_are_refused() -> None:
    protocol = PROTOCOLS["eth3d_points"]
    query, truth = samples_of(protocol, plane_depth(K, RAW)[0].float())
    with pytest.raises(InputError, match="resize the prediction"):
        protocol.measure(query, truth, Answer({"depth": torch.ones(1, 5, 7)}))
    masked = torch.full((1, *SIZE), float("inf"))
    with pytest.raises(InputError, match="not finite"):
        protocol.measure(query, truth, Answer({"depth": masked}))
    with pytest.raises(InputError, match="no valid pixels"):
        samples_of(protocol, torch.zeros(RAW))
    other = Query("a", "mono_points", ("depth",), facts={"raw_size": [30, 45]})
    with pytest.raises(InputError, match="has 90 x 60 pixels, its picture 45 x 30"):
        protocol.measure(other, truth, answer_of(truth))


def test_parameters_of_the_benchmarks() -> None:
    assert {name: p.size for name, p in PROTOCOLS.items() if not p.known_fov} == {
        "kitti_points": (375, 750), "eth3d_points": (1365, 2048), "ibims_points": (480, 640),
        "diode_points": (768, 1024),
    }  # fmt: skip
    for name, protocol in PROTOCOLS.items():
        assert protocol.known_fov == name.endswith("_k")
        assert protocol.size == PROTOCOLS[name.removesuffix("_k")].size
    student = {n: p.published()[-1].values for n, p in PROTOCOLS.items()}
    assert student["kitti_points"] == {"abs_rel": 3.22, "delta1": 97.7}
    assert student["kitti_points_k"] == {"abs_rel": 5.47, "delta1": 99.6}


@pytest.mark.parametrize("data", ["kitti", "eth3d", "ibims", "diode"])
def test_twins_differ_only_in_what_the_model_is_told(data: str) -> None:
    plain, told = PROTOCOLS[f"{data}_points"], PROTOCOLS[f"{data}_points_k"]
    a, b = plain.twin("smoke")[1], told.twin("smoke")[1]
    query, informed, truth = a.load_query(), b.load_query(), a.load_truth()
    assert query.scene is not None and informed.scene is not None
    assert query.scene.views[0].camera.K is None
    K = informed.scene.views[0].camera.K
    assert K is not None and torch.equal(K, truth.need("K")[0])
    assert K[:2, 2].tolist() == [v / 2 for v in (truth.need("depth").shape[2], truth.need("depth").shape[1])]
    assert torch.equal(query.scene.views[0].load_image(), informed.scene.views[0].load_image())
    height, width = truth.need("depth").shape[1:]
    assert width / height == pytest.approx(plain.size[1] / plain.size[0], rel=0.02)
    summary = plain.summarise(measure_samples(plain, [a], truthful))
    assert summary["abs_rel"] == pytest.approx(0, abs=1e-5) and summary["delta1_point"] == 100
