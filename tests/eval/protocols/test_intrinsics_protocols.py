"""Field-of-view protocols: crops, the three ways to the focal length, mean and median, files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corpora.evaluation import measure_samples, truthful
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Query, Truth
from relief3d.eval.protocols.metric.intrinsics import PROTOCOLS, crop_ratio, crop_window
from relief3d.geometry.projection import intrinsics

BY_NAME = {p.name: p for p in PROTOCOLS}
IBIMS, ETH3D = BY_NAME["ibims_intrinsics"], BY_NAME["eth3d_intrinsics"]


def loaded(index: int = 0, seed: int = 0) -> tuple[Query, Truth]:
    sample = IBIMS.twin("smoke", seed)[index]
    return sample.load_query(), sample.load_truth()


def fov(focal: float, side: int) -> float:
    return math.degrees(2 * math.atan(side / (2 * focal)))


def test_crops_have_the_asked_share_of_the_field_of_view() -> None:
    K = intrinsics(500, 500, 320, 240)
    for ratio in (0.5, 0.7, 1.0):
        x0, y0, width, height = crop_window(640, 480, K, ratio)
        assert width + 2 * x0 == 640 and height + 2 * y0 == 480
        assert fov(500, width) == pytest.approx(ratio * fov(500, 640), abs=0.15)
        assert width / height == pytest.approx(4 / 3, rel=0.01)
    ratios = [crop_ratio(f"picture{i}") for i in range(400)]
    assert min(ratios) >= 0.5 and max(ratios) <= 1.0
    assert np.mean(ratios) == pytest.approx(0.75, abs=0.03) and np.std(ratios) == pytest.approx(
        0.144, abs=0.02
    )
    assert crop_ratio("a") == crop_ratio("a") != crop_ratio("b")


def test_the_crop_is_cut_from_the_middle_with_its_camera() -> None:
    (full, true), (crop, true_crop) = loaded(0), loaded(1)
    a, b = full.scene.views[0], crop.scene.views[0]  # type: ignore[union-attr]
    x0, y0 = (a.camera.width - b.camera.width) // 2, (a.camera.height - b.camera.height) // 2
    assert x0 > 0 and crop.name == full.name.replace("/full", "/crop")
    window = a.load_image()[:, y0 : y0 + b.camera.height, x0 : x0 + b.camera.width]
    assert torch.equal(window, b.load_image())
    K, cut = true.tensors["K"][0], true_crop.tensors["K"][0]
    assert torch.equal(K[:2, :2], cut[:2, :2]) and float(cut[0, 2]) == float(K[0, 2]) - x0
    points = true.tensors["cam_points"][:, y0 : y0 + b.camera.height, x0 : x0 + b.camera.width]
    assert torch.equal(points, true_crop.tensors["cam_points"])
    # The same wrong focal length is another error in the crop, whose field of view is smaller.
    wrong = Answer({"K": 1.2 * K[None]}), Answer({"K": 1.2 * cut[None]})
    errors = [
        IBIMS.measure(q, t, w).values for q, t, w in ((full, true, wrong[0]), (crop, true_crop, wrong[1]))
    ]
    for error, key, view in zip(errors, ("error", "crop_error"), (a, b)):
        side, f = view.camera.width, float(K[0, 0])
        assert error[key] == pytest.approx(abs(fov(1.2 * f, side) - fov(f, side)))
    assert errors[0]["error"] != pytest.approx(errors[1]["crop_error"], abs=0.05)


def test_error_is_horizontal_and_in_degrees() -> None:
    query, truth = loaded()
    K = truth.tensors["K"].clone()
    K[0, 1, 1] *= 1.5  # only the vertical field of view is wrong
    values = IBIMS.measure(query, truth, Answer({"K": K})).values
    f = float(truth.tensors["K"][0, 0, 0])
    assert values["error"] == 0
    assert values["vertical_error"] == pytest.approx(fov(f, 48) - fov(1.5 * f, 48))
    K = truth.tensors["K"].clone()
    K[0, 0, 2] += 7  # the principal point does not count
    assert IBIMS.measure(query, truth, Answer({"K": K})).values["error"] == 0


def test_three_ways_to_the_focal_length_are_told_apart() -> None:
    query, truth = loaded()
    points = truth.tensors["cam_points"].clone()
    points[..., 2] -= 0.3 * points[..., 2].min()  # affine points: only MoGe's solver finds the shift
    K = 1.1 * truth.tensors["K"]
    values = IBIMS.measure(query, truth, Answer({"K": K, "cam_points": points})).values
    assert values["solver_error"] < 1e-3 and values["weiszfeld_error"] > 0.5
    f = float(truth.tensors["K"][0, 0, 0])
    assert values["error"] == pytest.approx(fov(f, 64) - fov(1.1 * f, 64))
    alone = IBIMS.measure(query, truth, Answer({"cam_points": points})).values
    assert alone["error"] == alone["weiszfeld_error"] == values["weiszfeld_error"]
    # Points that the answer calls invalid are not used.
    valid = torch.ones(1, 48, 64, dtype=torch.bool)
    valid[:, :24] = False
    spoilt = truth.tensors["cam_points"].clone()
    spoilt[:, :24, :, :2] *= 3
    kept = IBIMS.measure(query, truth, Answer({"cam_points": spoilt, "valid": valid})).values
    assert kept["solver_error"] < 1e-3 and kept["weiszfeld_error"] < 1e-3
    assert IBIMS.measure(query, truth, Answer({"cam_points": spoilt})).values["solver_error"] > 1


def test_no_recovered_focal_length_counts_as_the_widest_view() -> None:
    query, truth = loaded()
    points = truth.tensors["cam_points"].clone()
    points[..., :2] *= -1  # mirrored twice: the best focal length is negative
    values = IBIMS.measure(query, truth, Answer({"K": truth.tensors["K"], "cam_points": points})).values
    f = float(truth.tensors["K"][0, 0, 0])
    assert values["error"] == 0 and values["solver_error"] == pytest.approx(180 - fov(f, 64), abs=0.01)


def test_mean_and_median_over_pictures() -> None:
    base = measure_samples(IBIMS, IBIMS.twin("smoke"), truthful)[0]
    three = [
        replace(base, name=str(i), values={"error": v}, weight=w)
        for i, (v, w) in enumerate(((1, 1), (2, 50), (9, 1)))
    ]
    summary = IBIMS.summarise(three)
    assert summary["mean"] == pytest.approx(4.0) and summary["median"] == 2.0
    assert math.isnan(summary["crop_mean"]) and math.isnan(summary["weiszfeld_median"])


def test_bad_answers() -> None:
    query, truth = loaded()
    with pytest.raises(InputError, match="lacks 'K'"):
        IBIMS.measure(query, truth, Answer({}))
    with pytest.raises(InputError, match="no valid pixels"):
        IBIMS.measure(query, truth, Answer({"cam_points": -truth.tensors["cam_points"]}))
    with pytest.raises(InputError, match="shape"):
        IBIMS.measure(query, truth, Answer({"cam_points": truth.tensors["cam_points"][:, 1:]}))


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path, format="PNG")


def test_eth3d_prefers_undistorted_pictures(tmp_path: Path) -> None:
    def scene(kind: str, folder: str, camera: str) -> None:
        base = tmp_path / "office"
        _picture(base / "images" / folder / "DSC_0001.JPG")
        (base / f"dslr_calibration_{kind}").mkdir(parents=True)
        (base / f"dslr_calibration_{kind}" / "cameras.txt").write_text(f"0 {camera}\n")
        (base / f"dslr_calibration_{kind}" / "images.txt").write_text(
            f"1 1 0 0 0 0 0 0 0 {folder}/DSC_0001.JPG\n\n"
        )

    scene("jpg", "dslr_images", "THIN_PRISM_FISHEYE 30 20 25 25 15 10 0 0 0 0 0 0 0 0")
    samples = ETH3D.open(tmp_path)
    assert [s.name for s in samples] == ["office/DSC_0001/full", "office/DSC_0001/crop"]
    assert float(samples[0].load_truth().tensors["K"][0, 0, 0]) == 25
    scene("undistorted", "dslr_images_undistorted", "PINHOLE 30 20 24 24 15 10")
    full, crop = ETH3D.open(tmp_path)
    query, truth = crop.load_query(), crop.load_truth()
    assert query.wants == ("K", "cam_points") and query.scene.views[0].camera.K is None  # type: ignore[union-attr]
    assert float(truth.tensors["K"][0, 0, 0]) == 24 and "cam_points" not in truth.tensors
    width = query.scene.views[0].camera.width  # type: ignore[union-attr]
    assert width == crop_window(30, 20, truth.tensors["K"][0], crop_ratio("office/DSC_0001"))[2] < 30
    measured = ETH3D.measure(
        full.load_query(), full.load_truth(), truthful(full.load_query(), full.load_truth())
    )
    assert measured.values["error"] == 0 and measured.group == "office"
    other = tmp_path / "facade" / "dslr_calibration_jpg"  # one scene without them: none are used
    other.mkdir(parents=True)
    (other / "cameras.txt").write_text("0 PINHOLE 30 20 26 26 15 10\n")
    (other / "images.txt").write_text("1 1 0 0 0 0 0 0 0 dslr_images/DSC_0009.JPG\n\n")
    assert [s.name for s in ETH3D.open(tmp_path)][::2] == ["facade/DSC_0009/full", "office/DSC_0001/full"]
    with pytest.raises(InputError, match="no scene"):
        ETH3D.open(tmp_path / "nothing")


def test_published_rows() -> None:
    rows = {r.method: r.values for r in ETH3D.published()}
    assert len(rows) == 8 and rows["Student-PointMap"] == {"mean": 2.5, "median": 1.86}
    assert {r.method: r.values for r in IBIMS.published()}["DUSt3R"] == {"mean": 3.83, "median": 2.53}
