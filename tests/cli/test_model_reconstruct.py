"""``relief3d reconstruct --model`` with what users get wrong: one sentence, exit code 2, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from corpora.commands import photo, run
from relief3d.core.contract import Camera, Prediction, Scene, View
from relief3d.io.cameras_json import write_cameras_json
from relief3d.io.colmap import read_colmap_model
from relief3d.io.images import write_image
from relief3d.models.multiview.interface import Known, Pi3Model, Pi3XModel
from relief3d.pipelines.multiview.config import MultiviewConfig
from relief3d.pipelines.multiview.networks import build_network, open_network

NANO = ("--model", "pi3", "--model-size", "nano", "--untrained", "--side", "56")
QUICK = ("--no-mesh", "--no-splats", "-q")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        photo(folder / f"p{i}.png", i, (84, 56))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of nano weights of each network, a cut-off one, and one of something else."""
    root = tmp_path_factory.mktemp("weights")
    files = {}
    torch.manual_seed(0)
    for name in ("vggt", "pi3", "pi3x", "reliev3r"):
        files[name] = root / f"{name}_nano.safetensors"
        save_file(build_network(name, "nano").state_dict(), str(files[name]))
    files["truncated"] = root / "cut.safetensors"
    data = files["pi3"].read_bytes()
    files["truncated"].write_bytes(data[: len(data) // 2])
    files["other"] = root / "resnet.safetensors"
    save_file({"layer1.weight": torch.zeros(3, 3)}, str(files["other"]))
    files["blind"] = root / "blind.safetensors"
    save_file(build_network("reliev3r", "nano", fov_head=False).state_dict(), str(files["blind"]))
    return files


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *options: object, code: int = 2) -> str:
    out = folder.parent / "out"
    assert run("reconstruct", folder, "-o", out, "-q", *options) == code
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1 and message.endswith(")"), message
    if code == 2:
        assert not out.exists(), "nothing half-written"
    return message


BAD_OPTIONS = [
    (("--model", "vgtt"), "no network, no published name and no file"),
    (("--model", "reliev3r"), "no published weights of reliev3r"),
    (("--model", "vggt", "--model-size", "nano"), "published at full size"),
    (("--model", "facebook/VGGT-1B", "--model-size", "mini"), "published at full size"),
    (("--model", "facebook/VGGT-1B", "--untrained"), "builds a network by name"),
    (("--untrained",), "need a network"),
    (("--model-size", "nano"), "need a network"),
    (("--model", "pi3", "--side", "100"), "not a multiple of 14"),
    (("--model", "pi3", "--chunk", "1"), "--chunk 1"),
    (("--model", "pi3", "--chunk", "4", "--overlap", "4"), "leaves nothing new"),
    (("--depth-source", "model"), "needs a network"),
    ((*NANO, "--max-memory", "0"), "not positive"),
    ((*NANO, "--refine", "on"), "nothing to refine in random weights"),
    (("--side", "56"), "--side needs a network"),
    (("--chunk", "4"), "--chunk needs a network"),
    (("--overlap", "2"), "--overlap needs a network"),
    (("--attention", "sparse"), "--attention needs a network"),
    (("--refine", "on"), "--refine on needs a network"),
    (("--preprocess", "keep"), "--preprocess needs a network"),
    (("--precision", "bfloat16"), "--precision needs a network"),
    ((*NANO, "--poses", "refine"), "--poses refine belongs to structure from motion"),
    ((*NANO, "--features", "aliked-lightglue"), "--features aliked-lightglue belongs"),
    ((*NANO, "--mapper", "global"), "--mapper global belongs"),
    ((*NANO, "--overlap", "-1"), "--overlap -1 is not possible"),
    ((*NANO, "--max-memory", "0.5"), "at least --max-memory 1.1"),
]


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS, ids=[w for _, w in BAD_OPTIONS])
def test_contradictions_are_refused(
    options: tuple[str, ...], words: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(photos, capsys, *options)


def test_weights_of_another_network_are_named(
    photos: Path, weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--model-size", "nano")
    said = refused(photos, capsys, "--model", "pi3", "--weights", weights["vggt"], *size)
    assert "weights of vggt, not of pi3" in said and "vggt_nano.safetensors" in said
    assert "none of the multi-view networks" in refused(photos, capsys, "--model", weights["other"])
    assert "damaged, truncated" in refused(photos, capsys, "--model", weights["truncated"], *size)
    assert "check that model and size" in refused(
        photos, capsys, "--model", weights["pi3"], "--model-size", "micro"
    )
    assert "no such file" in refused(photos, capsys, "--model", "pi3", "--weights", photos / "none.pt", *size)
    assert "--untrained and --weights" in refused(photos, capsys, *NANO, "--weights", weights["pi3"])
    assert "weights needs the name" in refused(
        photos, capsys, "--model", weights["pi3"], "--weights", weights["pi3"], *size
    )


def test_intrinsics_that_a_network_needs_are_asked_for(
    photos: Path, weights: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(photos, capsys, "--model", weights["blind"], "--model-size", "nano", "--side", "56")
    assert "needs the intrinsics" in said


def test_float16_is_not_for_cpus(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "float16 is not for CPUs" in refused(
        photos, capsys, *NANO, "--precision", "float16", "--device", "cpu"
    )


def test_weights_that_cannot_be_fetched(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("huggingface_hub")
    # The library reads its environment when it is imported, so its constants are set as well.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert "HF_HUB_OFFLINE" in refused(photos, capsys, "--model", "facebook/VGGT-1B", "--max-memory", "64")


def test_too_little_memory_says_what_would_fit(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(photos, capsys, "--model", "vggt", "--untrained", "--max-memory", "2")
    assert "GiB" in said and "the weights alone take" in said


def test_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    assert "empty" in refused(folder, capsys, *NANO)


def test_one_picture_of_an_odd_size_works_with_a_note(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    photo(folder / "only.png", 0, (101, 67))
    out = tmp_path / "out"
    assert run("reconstruct", folder, "-o", out, *NANO, *QUICK) == 0
    text = (out / "scene.json").read_text()
    assert "resized to 56 x 42" in text and '"registered": 1' in text


def test_mixed_shapes_work_with_a_note(photos: Path, tmp_path: Path) -> None:
    photo(photos / "tall.png", 9, (56, 84))
    out = tmp_path / "out"
    assert run("reconstruct", photos, "-o", out, *NANO, *QUICK) == 0
    assert "different shapes" in (out / "scene.json").read_text()


@pytest.mark.parametrize("name", ["vggt", "pi3", "pi3x", "reliev3r"])
def test_files_of_weights_work_by_themselves(
    name: str, photos: Path, weights: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file alone gives the very same network that its weights came from."""
    config = MultiviewConfig(model=str(weights[name]), model_size="nano", side=56)
    model, source = open_network(config, announce=lambda text: None)
    assert source.architecture == model.name == name and not source.untrained
    stored = load_file(str(weights[name]))
    inner = model.network.state_dict()  # type: ignore[attr-defined]
    assert set(inner) == set(stored) and all(torch.equal(inner[k], stored[k]) for k in stored)
    assert run("plan", photos, "--model", weights[name], "--model-size", "nano", "--side", "56") == 0
    assert f"{name}_nano.safetensors, 56x42" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("no"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 1"),
    ],
)
def test_memory_that_runs_out_ends_with_a_remedy(
    error: Exception, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Pi3Model, images: torch.Tensor, known: Known | None = None) -> Prediction:
        raise error

    monkeypatch.setattr(Pi3Model, "predict", fails)
    said = refused(photos, capsys, *NANO, code=1)
    assert "out of memory" in said
    assert all(option in said for option in ("--side", "--chunk", "--max-memory"))


def test_short_names_of_published_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "info", "vggt") == 0
    assert capsys.readouterr().out.startswith("facebook/VGGT-1B:")
    assert run("models", "info", "pi3x") == 0
    assert capsys.readouterr().out.startswith("yyfz233/Pi3X:")


def test_masks_that_hide_everything_are_named(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = photos.parent / "masks"
    masks.mkdir()
    for file in photos.iterdir():
        write_image(masks / file.name, torch.zeros(3, 56, 84))
    said = refused(photos, capsys, *NANO, "--masks", masks)
    assert "the mask hides all of the picture" in said and "--masks" in said and "texture" not in said


def test_cameras_that_are_given_reach_the_network(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = []
    for i, file in enumerate(sorted(photos.iterdir())):
        pose = torch.eye(4, dtype=torch.float64)
        pose[0, 3] = 0.3 * i
        K = torch.tensor([[70.0, 0, 42], [0, 70, 28], [0, 0, 1]], dtype=torch.float64)
        views.append(View(file.name, Camera(84, 56, K, pose)))
    write_cameras_json(Scene(tuple(views), metric=True), tmp_path / "cameras.json")
    told, real = [], Pi3XModel.predict

    def recorded(self: Pi3XModel, images: torch.Tensor, known: Known | None = None) -> Prediction:
        told.append(known)
        return real(self, images, known)

    monkeypatch.setattr(Pi3XModel, "predict", recorded)
    out = tmp_path / "out"
    nano = ("--model", "pi3x", "--model-size", "nano", "--untrained", "--side", "56")
    assert run("reconstruct", photos, "-o", out, *nano, "--cameras", tmp_path / "cameras.json", *QUICK) == 0
    assert told[0] is not None and told[0].K is not None and told[0].world_from_cam is not None
    assert abs(float(told[0].world_from_cam[0, 2, 0, 3] - told[0].world_from_cam[0, 0, 0, 3]) - 0.6) < 1e-5
    found = read_colmap_model(out / "sparse" / "0")
    for view, true in zip(found.views, views):
        assert torch.allclose(view.camera.world_from_cam, true.camera.world_from_cam, rtol=0, atol=1e-9)  # type: ignore[arg-type]


def test_values_that_are_not_numbers_end_the_run(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Pi3Model.predict

    def broken(self: Pi3Model, images: torch.Tensor, known: Known | None = None) -> Prediction:
        out = real(self, images, known)
        assert out.depth is not None
        depth = out.depth.clone()
        depth[0, 1] = torch.nan
        return Prediction(
            depth=depth, depth_confidence=out.depth_confidence, K=out.K, world_from_cam=out.world_from_cam
        )

    monkeypatch.setattr(Pi3Model, "predict", broken)
    said = refused(photos, capsys, *NANO, code=1)
    assert "p1.png" in said and "not finite" in said
    out = photos.parent / "out"
    assert (
        not (out / "scene.json").exists() and not (out / "depth").exists() and not (out / "sparse").exists()
    )


def test_the_plan_knows_the_network(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", photos, "--model", "vggt", "--max-memory", "24") == 0
    said = capsys.readouterr().out
    assert "facebook/VGGT-1B" in said and "518x350" in said and "one pass" in said
    assert run("plan", photos, *NANO, "--chunk", "2") == 0
    assert "UNTRAINED pi3 nano" in (said := capsys.readouterr().out) and "2 passes of 2" in said


def test_random_weights_are_announced(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reconstruct", photos, "-o", tmp_path / "out", *NANO, "--no-mesh", "--no-splats") == 0
    shown = capsys.readouterr()
    assert "UNTRAINED" in shown.out and "random weights" in shown.err
