"""Depth of pictures from nano networks: files, focal lengths, prompts, resuming, odd pictures."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from corpora.commands import photo, two_photos
from corpora.depth_networks import sparse, weights
from relief3d.core.contract import Camera, Depth, PointCloud, Scene, View
from relief3d.core.errors import InputError
from relief3d.data.metric_prompt import MetricPrompt
from relief3d.geometry.projection import depth_to_points, intrinsics
from relief3d.io.cameras_json import read_cameras_json, write_cameras_json
from relief3d.io.depth import read_depth, write_depth
from relief3d.io.images import read_image, write_image
from relief3d.io.ply import read_ply, write_ply
from relief3d.models.metric.interface import Focal
from relief3d.models.metric.opening import find_metric, open_metric, with_prior
from relief3d.pipelines.depth import run as depth_run
from relief3d.pipelines.depth.config import DepthConfig
from relief3d.pipelines.depth.run import predict_depth

SIZE = (48, 36)


def config(folder: Path, kind: str = "depth_map", **changes: Any) -> DepthConfig:
    return replace(DepthConfig(model=str(weights(folder, kind)), device="cpu"), **changes)


def one(folder: Path, seed: int = 1) -> Path:
    return photo(folder / "a.png", seed, SIZE)


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "depth.json").read_text())
    return found


def test_files_and_facts_and_the_warning_about_a_guess(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(tmp_path, points=True, normals=True)
    with caplog.at_level(logging.WARNING):
        done = predict_depth(one(tmp_path), tmp_path / "out", config=made)
    assert "guessed" in caplog.text and done.guessed == 1
    out = tmp_path / "out"
    record = report(out)["pictures"][0]
    assert all((out / f).is_file() for f in record["files"]) and len(record["files"]) == 4
    assert record["K_source"] == "guess" and record["focal_px"] == SIZE[0]
    depth = read_depth(out / "depth" / "a.npz", 1.0)
    assert depth.values.shape == (SIZE[1], SIZE[0]) and bool(depth.valid.all())
    assert record["percentiles_m"]["50"] == pytest.approx(
        float(depth.values.double().quantile(0.5)), rel=1e-5
    )
    points = read_ply(out / "points" / "a.ply")
    assert isinstance(points, PointCloud)
    K = intrinsics(SIZE[0], SIZE[0], SIZE[0] / 2, SIZE[1] / 2)
    expected = depth_to_points(depth.values.double(), K).reshape(-1, 3)
    assert torch.allclose(points.xyz.double(), expected, rtol=1e-4)
    frame = json.loads((out / "cameras.json").read_text())["frames"][0]
    assert frame["K_source"] == "guess"
    back = read_cameras_json(out / "cameras.json", require_images=False).views[0]
    assert back.camera.K is not None and torch.allclose(back.camera.K, K)


def test_given_focal_lengths_scale_depth_and_are_not_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(tmp_path)
    predict_depth(one(tmp_path), tmp_path / "guess", config=made)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        predict_depth(one(tmp_path), tmp_path / "given", config=replace(made, intrinsics="96,95,20,19"))
    assert "guessed" not in caplog.text
    first = read_depth(tmp_path / "guess" / "depth" / "a.npz", 1.0).values
    second = read_depth(tmp_path / "given" / "depth" / "a.npz", 1.0).values
    assert torch.allclose(second, 2 * first, rtol=1e-5)
    record = report(tmp_path / "given")["pictures"][0]
    assert record["K_source"] == "given" and record["K"] == [[96, 0, 20], [0, 95, 19], [0, 0, 1]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"fx": 96, "fy": 95, "cx": 20, "cy": 19}, 96),
        ({"K": [[96, 0, 20], [0, 95, 19], [0, 0, 1]], "width": 96, "height": 72}, 48),
    ],
)
def test_intrinsics_from_json(tmp_path: Path, content: dict[str, Any], expected: float) -> None:
    (tmp_path / "k.json").write_text(json.dumps(content))
    made = config(tmp_path, intrinsics=str(tmp_path / "k.json"))
    predict_depth(one(tmp_path), tmp_path / "out", config=made)
    assert report(tmp_path / "out")["pictures"][0]["focal_px"] == expected


def test_cameras_of_the_input_and_networks_that_find_the_focal_length(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    camera = Camera(*SIZE, K=intrinsics(70, 70, 24, 18))
    write_cameras_json(Scene((View("a.png", camera, path=one(folder)),)), folder)
    predict_depth(folder, tmp_path / "out", config=config(tmp_path))
    assert report(tmp_path / "out")["pictures"][0]["focal_px"] == 70
    for kind in ("depth_pro", "pointmap"):
        predict_depth(folder / "a.png", tmp_path / kind, config=config(tmp_path, kind))
        record = report(tmp_path / kind)["pictures"][0]
        assert record["K_source"] in ("estimated", "guess")
        assert kind == "pointmap" or record["K_source"] == "estimated"


def test_a_prior_guides_a_teacher_and_no_other_network(tmp_path: Path) -> None:
    picture = one(tmp_path)
    write_depth(tmp_path / "p.npz", Depth.from_values(sparse(SIZE[1], SIZE[0])))
    prior = weights(tmp_path, "depth_map")
    plain = config(tmp_path, "teacher", prompt=tmp_path / "p.npz")
    guided = replace(plain, prior=str(prior))
    predict_depth(picture, tmp_path / "out", config=plain)
    predict_depth(picture, tmp_path / "guided", config=guided)
    assert report(tmp_path / "guided")["prior"] == prior.name and report(tmp_path / "out")["prior"] is None
    # The prompt's branches of an untrained teacher say nothing yet, so the condition is looked at.
    device = torch.device("cpu")
    image, focal = torch.rand(3, SIZE[1], SIZE[0]), Focal(torch.tensor([48.0]), ("given",))
    said = open_metric(find_metric(str(prior)), device).estimate(image, focal)
    prompt = MetricPrompt.from_depth_map(sparse(SIZE[1], SIZE[0]))
    known = prompt.mask
    ready = with_prior(prompt, replace(said, depth=torch.where(known, prompt.depth, 2.5)[None], valid=None))
    assert float((ready.condition[0][~known] - 1 / 2.5).abs().median()) < 0.01
    # The same folder again with another prior: nothing is kept.
    assert predict_depth(picture, tmp_path / "guided", config=guided).kept == 1
    assert predict_depth(picture, tmp_path / "guided", config=plain).kept == 0
    # A metric prior that is a thousand times nearer tells the unit.
    with pytest.raises(InputError, match="looks like millimetres"):
        with_prior(prompt, replace(said, depth=torch.full((1, SIZE[1], SIZE[0]), 0.0025), valid=None))
    # So it does through the command, which names the file and the option.
    unit = MetricPrompt.from_depth_map(sparse(SIZE[1], SIZE[0]) * 1000, unit="m").depth
    write_depth(tmp_path / "mm.npz", Depth.from_values(unit))
    wrong = replace(guided, prompt=tmp_path / "mm.npz", prompt_scale=1.0, intrinsics="50,50,24,18")
    with pytest.raises(InputError, match="looks like millimetres") as caught:
        predict_depth(picture, tmp_path / "unit", config=wrong)
    assert caught.value.path == tmp_path / "mm.npz" and "--prompt-scale" in str(caught.value.remedy)
    for kind, other, says in (
        ("prompt-refiner", prior, "takes no prior"),
        ("teacher", weights(tmp_path, "prompt-refiner"), "needs a prompt itself"),
        ("teacher", tmp_path / "nowhere.safetensors", "is no file"),
    ):
        wrong = config(tmp_path, kind, prompt=tmp_path / "p.npz", prior=str(other))
        with pytest.raises(InputError, match=says):
            predict_depth(picture, tmp_path / "wrong", config=wrong)
        assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("kind", ["prompt-refiner", "teacher"])
@pytest.mark.parametrize("suffix", [".npz", ".png", ".exr"])
def test_prompts_give_the_scale(tmp_path: Path, kind: str, suffix: str) -> None:
    if kind == "teacher" and suffix != ".npz":
        pytest.skip("files are read in the same way")
    write_depth(tmp_path / f"p{suffix}", Depth.from_values(sparse(SIZE[1], SIZE[0])))
    made = config(tmp_path, kind, prompt=tmp_path / f"p{suffix}")
    predict_depth(one(tmp_path), tmp_path / "out", config=made)
    record = report(tmp_path / "out")["pictures"][0]
    assert record["prompt"] == {"file": f"p{suffix}", "points": 60}
    assert any("millimetres" in note for note in record["notes"]) == (suffix == ".png")
    if kind == "prompt-refiner":
        assert 1.5 < record["percentiles_m"]["50"] < 4.5


def test_a_cloud_is_a_prompt_when_the_camera_is_known(tmp_path: Path) -> None:
    K = intrinsics(50, 50, 24, 18)
    depth = sparse(SIZE[1], SIZE[0])
    xyz = depth_to_points(depth.double(), K)[depth > 0]
    write_ply(tmp_path / "p.ply", PointCloud(xyz.float()))
    made = config(tmp_path, "prompt-refiner", prompt=tmp_path / "p.ply")
    with pytest.raises(InputError, match="needs the intrinsics"):
        predict_depth(one(tmp_path), tmp_path / "out", config=made)
    predict_depth(one(tmp_path), tmp_path / "out", config=replace(made, intrinsics="50,50,24,18"))
    assert report(tmp_path / "out")["pictures"][0]["prompt"]["points"] == 60


def bad(values: torch.Tensor, name: str) -> torch.Tensor:
    few = torch.zeros_like(values)
    few[3, 4] = 2.0
    return {
        "millimetres": values * 1000,
        "negative": -values,
        "single": few,
        "nan": torch.full_like(values, torch.nan),
        "shape": values[:, :20],
    }[name]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("millimetres", "prompt-scale"),
        ("negative", "negative"),
        ("single", "not enough known points"),
        ("nan", "no points"),
        ("shape", "another shape"),
    ],
)
def test_bad_prompts_are_refused(tmp_path: Path, name: str, says: str) -> None:
    import numpy as np

    np.savez(tmp_path / "p.npz", depth=bad(sparse(SIZE[1], SIZE[0]), name).numpy())
    made = config(tmp_path, "prompt-refiner", prompt=tmp_path / "p.npz")
    with pytest.raises(InputError, match=says) as caught:
        predict_depth(one(tmp_path), tmp_path / "out", config=made)
    assert "p.npz" in str(caught.value) and not (tmp_path / "out" / "depth").exists()
    if name == "millimetres":
        predict_depth(one(tmp_path), tmp_path / "out", config=replace(made, prompt_scale=0.001))
        assert report(tmp_path / "out")["pictures"][0]["percentiles_m"]["50"] < 5


def test_a_folder_of_prompts_goes_by_name(tmp_path: Path) -> None:
    pictures = two_photos(tmp_path)
    folder = tmp_path / "prompts"
    folder.mkdir()
    write_depth(folder / "a.npz", Depth.from_values(sparse(240, 320, count=50)))
    made = config(tmp_path, "prompt-refiner", prompt=folder, side=64)
    with pytest.raises(InputError, match=r"1 of 2 pictures have no prompt here, for example b\.png"):
        predict_depth(pictures, tmp_path / "out", config=made)
    write_depth(folder / "b.npz", Depth.from_values(sparse(240, 320, seed=1, count=40) * 3))
    predict_depth(pictures, tmp_path / "out", config=made)
    a, b = report(tmp_path / "out")["pictures"]
    assert (a["prompt"]["points"], b["prompt"]["points"]) == (50, 40)
    assert b["percentiles_m"]["50"] > 2 * a["percentiles_m"]["50"]


def test_finished_pictures_are_kept_and_changed_ones_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, out, made = two_photos(tmp_path), tmp_path / "out", config(tmp_path)
    write = depth_run.write_outputs

    def interrupted(place: Any, *rest: Any) -> None:
        if place.stem == "b":
            raise KeyboardInterrupt
        write(place, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(depth_run, "write_outputs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict_depth(pictures, out, config=made)
    assert report(out)["state"] == "unfinished" and not (out / "records" / "b.json").exists()
    assert predict_depth(pictures, out, config=made).kept == 1
    assert predict_depth(pictures, out, config=made).kept == 2
    (out / "preview" / "a.png").unlink()
    assert predict_depth(pictures, out, config=made).kept == 1
    photo(pictures / "b.png", 7)
    assert predict_depth(pictures, out, config=made).kept == 1
    other = replace(made, format="exr")
    assert predict_depth(pictures, out, config=other).kept == 0
    assert sorted(p.name for p in (out / "depth").iterdir()) == ["a.exr", "b.exr"]


def test_what_is_left_of_other_pictures_is_said_and_removed_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures, out, made = two_photos(tmp_path), tmp_path / "out", config(tmp_path, points=True)
    predict_depth(pictures, out, config=made)
    assert report(out)["left_over"] == []
    with caplog.at_level(logging.WARNING):
        assert predict_depth(pictures / "b.png", out, config=made).kept == 1
    assert "made of 1 other picture(s), for example a;" in caplog.text
    assert report(out)["left_over"] == ["a"] and (out / "depth" / "a.npz").is_file()
    (out / "depth" / "mine.npz").write_bytes(b"not ours")
    assert predict_depth(pictures / "b.png", out, config=replace(made, overwrite=True)).kept == 1
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert not [f for f in files if Path(f).name.startswith("a.")] and report(out)["left_over"] == []
    assert {"depth/b.npz", "depth/mine.npz", "points/b.ply", "records/b.json"} <= set(files)


def test_frames_in_order_are_steadied_and_continued_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = read_image(one(tmp_path)).rgb
    views = []
    for k in range(4):
        path = write_image(folder / f"{k}.png", image)
        camera = Camera(*SIZE, K=intrinsics(50 * (1 + 0.2 * (k % 2)), 50, 24, 18))
        views.append(View(f"{k}.png", camera, path=path))
    write_cameras_json(Scene(tuple(views), ordered=True), folder)
    made = config(tmp_path)
    raw = predict_depth(folder, tmp_path / "raw", config=replace(made, steady=False))
    steady = predict_depth(folder, tmp_path / "steady", config=made)
    jump = [d.records[1]["percentiles_m"]["50"] / d.records[0]["percentiles_m"]["50"] for d in (raw, steady)]
    assert jump[0] == pytest.approx(1.2, rel=1e-4) and jump[1] < 1.03
    (tmp_path / "steady" / "records" / "2.json").unlink()
    again = predict_depth(folder, tmp_path / "steady", config=made)
    assert again.kept == 3
    assert again.records[2]["steady_log_shift"] == pytest.approx(
        steady.records[2]["steady_log_shift"], abs=1e-5
    )


@pytest.mark.parametrize("kind", ["depth_map", "pointmap"])
def test_one_pixel_gives_finite_depth(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (1, 1), (90, 120, 30)).save(tmp_path / "dot.png")
    made = config(tmp_path, kind, points=True, normals=True)
    predict_depth(tmp_path / "dot.png", tmp_path / "out", config=made)
    record = report(tmp_path / "out")["pictures"][0]
    assert record["known"] in (0, 1)


def test_grey_and_transparent_pictures(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize(SIZE).save(tmp_path / "grey.png")
    clear = Image.new("RGBA", SIZE, (200, 10, 10, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 24, 36))
    clear.save(tmp_path / "clear.png")
    made = config(tmp_path)
    predict_depth([tmp_path / "grey.png", tmp_path / "clear.png"], tmp_path / "out", config=made)
    grey, half = report(tmp_path / "out")["pictures"]
    assert grey["known"] == 1 and half["known"] == pytest.approx(0.5)
    depth = read_depth(tmp_path / "out" / "depth" / "clear.npz", 1.0)
    assert not bool(depth.valid[:, :24].any()) and bool(depth.valid[:, 24:].all())


def test_twenty_megapixels(tmp_path: Path) -> None:
    Image.new("RGB", (5472, 3648), (90, 120, 30)).save(tmp_path / "large.jpg")
    prompt = torch.zeros(3648, 5472)
    prompt[::400, ::400] = 2.0
    import numpy as np

    np.save(tmp_path / "p.npy", prompt.numpy())
    made = config(tmp_path, "prompt-refiner", prompt=tmp_path / "p.npy", side=64, format="exr")
    done = predict_depth(tmp_path / "large.jpg", tmp_path / "out", config=made)
    record = done.records[0]
    assert (record["width"], record["height"], record["known"]) == (5472, 3648, 1)
    assert 1 < record["percentiles_m"]["50"] < 4
