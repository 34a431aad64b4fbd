"""Readers of Booster, Middlebury, SUN RGB-D, DIODE and the KITTI selection on tiny copies of their public layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corpora.evaluation import truthful
from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric import readers_booster, readers_diode, readers_middlebury, readers_sunrgbd
from relief3d.eval.protocols.metric.diode_points import PROTOCOLS as DIODE
from relief3d.eval.protocols.metric.diode_ranges import PROTOCOLS as RANGES
from relief3d.eval.protocols.metric.kitti_points import PROTOCOLS as KITTI
from relief3d.eval.protocols.metric.sunrgbd import PROTOCOLS as SUNRGBD
from relief3d.io.pfm import write_pfm

SHAPE = (4, 6)


def picture(path: Path, shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path, format="PNG")
    return rgb


def xml(entries: dict[str, str | tuple[int, int, list[float]]]) -> str:
    parts = []
    for name, value in entries.items():
        if isinstance(value, str):
            parts.append(f"<{name}>{value}</{name}>")
            continue
        rows, cols, data = value
        text = " ".join(str(v) for v in data)
        parts.append(
            f'<{name} type_id="opencv-matrix"><rows>{rows}</rows><cols>{cols}</cols><dt>d</dt>'
            f"\n<data>\n{text}</data></{name}>"
        )
    return '<?xml version="1.0"?>\n<opencv_storage>\n' + "\n".join(parts) + "\n</opencv_storage>\n"


MTX = (3, 3, [200.0, 0.0, 2.5, 0.0, 210.0, 1.5, 0.0, 0.0, 1.0])


def booster(root: Path, entries: dict[str, str | tuple[int, int, list[float]]]) -> np.ndarray:
    scene = root / "balanced" / "Bathroom"
    for name in ("im0.png", "im10.png", "im2.png"):
        picture(scene / "camera_00" / name)
    picture(scene / "camera_02" / "im0.png")
    disparity = np.linspace(1, 40, 24, dtype=np.float32).reshape(SHAPE)
    disparity[0, 0], disparity[0, 1] = 0.0, np.inf
    np.save(scene / "disp_00.npy", disparity)
    mask = np.full(SHAPE, 255, np.uint8)
    mask[1, 1], mask[1, 2] = 0, 1  # any value but 0 keeps
    Image.fromarray(mask).save(scene / "mask_00.png")
    (scene / "calib_00-02.xml").write_text(xml(entries))
    return disparity


def test_booster(tmp_path: Path) -> None:
    disparity = booster(tmp_path, {"mtxL": MTX, "baselineLR": "80.0"})
    frames = readers_booster.open_booster(tmp_path)
    assert [f.name for f in frames] == ["Bathroom/im0", "Bathroom/im2", "Bathroom/im10"]
    frame = frames[0]
    assert frame.group == "Bathroom" and frame.load_image().shape == (3, *SHAPE)
    assert frame.need_K().tolist() == [[200, 0, 3.0], [0, 210, 2.0], [0, 0, 1]]
    depth = frame.load_depth().numpy()
    assert depth[0, 0] == depth[0, 1] == 0
    assert depth[2, 3] == pytest.approx(200 * 80 / (disparity[2, 3] + 1e-6) / 1000)
    valid = frame.load_valid()
    assert int(valid.sum()) == 24 - 3 and not valid[1, 1] and bool(valid[1, 2])
    assert readers_booster.open_booster(tmp_path / "balanced")[0].name == "Bathroom/im0"


def test_booster_baseline_from_the_projection_matrix(tmp_path: Path) -> None:
    P = (3, 4, [200.0, 0, 2.5, -16000.0, 0, 210.0, 1.5, 0, 0, 0, 1, 0])
    disparity = booster(tmp_path, {"mtxL": MTX, "proj_matR": P})
    depth = readers_booster.open_booster(tmp_path)[0].load_depth()
    assert float(depth[3, 5]) == pytest.approx(200 * 80 / disparity[3, 5] / 1000, rel=1e-5)
    nested = (1, 1, [80.0])
    booster(tmp_path, {"mtxL": MTX, "baselineLR": nested})
    assert torch.allclose(readers_booster.open_booster(tmp_path)[0].load_depth(), depth)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"baselineLR": "80"}, "mtxL"),
        ({"mtxL": MTX}, "neither 'baselineLR' nor 'proj_matR'"),
        ({"mtxL": MTX, "baselineLR": "eighty"}, "numbers only"),
        ({"mtxL": (3, 3, [1.0, 2.0]), "baselineLR": "80"}, "3 x 3"),
        ({"mtxL": MTX, "baselineLR": "-80"}, "not positive"),
    ],
)
def test_booster_calibrations_that_make_no_sense(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    booster(tmp_path, entries)
    with pytest.raises(InputError, match=message):
        readers_booster.open_booster(tmp_path)


def test_booster_damage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Booster"):
        readers_booster.open_booster(tmp_path)
    booster(tmp_path, {"mtxL": MTX, "baselineLR": "80"})
    calibration = tmp_path / "balanced" / "Bathroom" / "calib_00-02.xml"
    calibration.write_text(calibration.read_text()[:90])
    with pytest.raises(InputError, match="not valid XML"):
        readers_booster.open_booster(tmp_path)
    calibration.write_text('<!DOCTYPE a [<!ENTITY x "y">]><a/>')
    with pytest.raises(InputError, match="entities"):
        readers_booster.open_booster(tmp_path)
    calibration.unlink()
    with pytest.raises(InputError, match=r"calib_00-02\.xml"):
        readers_booster.open_booster(tmp_path)


CALIB = "cam0=[300.5 0 2; 0 300.5 1; 0 0 1]\ncam1=[300.5 0 5; 0 300.5 1; 0 0 1]\ndoffs=3.25\nbaseline=193.0\n"


@pytest.mark.parametrize(
    ("folder", "name"), [("MiddEval3/trainingF/Adirondack", "disp0GT.pfm"), ("Piano-perfect", "disp0.pfm")]
)
def test_middlebury(tmp_path: Path, folder: str, name: str) -> None:
    scene = tmp_path / folder
    picture(scene / "im0.png")
    disparity = np.linspace(5, 60, 24, dtype=np.float32).reshape(SHAPE)
    disparity[0, 0] = np.inf
    write_pfm(scene / name, disparity)
    (scene / "calib.txt").write_text(CALIB)
    (frame,) = readers_middlebury.open_middlebury(tmp_path)
    assert frame.name == scene.name
    assert frame.need_K().tolist() == [[300.5, 0, 2.5], [0, 300.5, 1.5], [0, 0, 1]]
    depth = frame.load_depth()
    assert depth[0, 0] == 0 and int(frame.load_valid().sum()) == 23
    assert float(depth[2, 4]) == pytest.approx(300.5 * 193 / (disparity[2, 4] + 3.25) / 1000, rel=1e-6)
    assert float(depth[2, 4]) != pytest.approx(300.5 * 193 / disparity[2, 4] / 1000, rel=1e-2)
    (scene / "calib.txt").write_text(CALIB.replace("doffs=3.25\n", ""))
    with pytest.raises(InputError, match="doffs"):
        readers_middlebury.open_middlebury(tmp_path)
    (scene / "calib.txt").write_text("width=3")
    with pytest.raises(InputError, match="cam0"):
        readers_middlebury.open_middlebury(tmp_path)
    (scene / name).unlink()
    with pytest.raises(InputError, match=r"disp0GT\.pfm"):
        readers_middlebury.open_middlebury(tmp_path)
    (scene / "calib.txt").unlink()
    with pytest.raises(InputError, match=r"calib\.txt"):
        readers_middlebury.open_middlebury(tmp_path)


def sunrgbd(root: Path) -> np.ndarray:
    millimetres = np.arange(24, dtype=np.uint16).reshape(SHAPE) * 450
    stored = ((millimetres << 3) | (millimetres >> 13)).astype(np.uint16)
    for name in ("kv1/b3dodata/img_0063", "xtion/sun3ddata/mit/0001"):
        folder = root / "SUNRGBD" / name
        picture(folder / "image" / "img.jpg")
        (folder / "depth").mkdir()
        Image.fromarray(stored).save(folder / "depth" / "img_abs.png")
        (folder / "intrinsics.txt").write_text("529.5 0 365 0 530.0 265 0 0 1")
    return millimetres


def test_sunrgbd(tmp_path: Path) -> None:
    millimetres = sunrgbd(tmp_path)
    with pytest.raises(InputError, match=r"test\.txt"):
        readers_sunrgbd.open_sunrgbd(tmp_path)
    (tmp_path / "test.txt").write_text("# test pictures\nkv1/b3dodata/img_0063\n")
    (frame,) = readers_sunrgbd.open_sunrgbd(tmp_path)
    assert (frame.name, frame.group) == ("kv1/b3dodata/img_0063", "kv1/b3dodata")
    expected = np.minimum(millimetres / 1000.0, 8.0)
    assert (
        np.allclose(frame.load_depth().numpy(), expected, rtol=1e-6)
        and expected.max() == 8 < millimetres.max() / 1000
    )
    assert int(frame.load_valid().sum()) == 23
    assert frame.need_K().tolist() == [[529.5, 0, 365.5], [0, 530, 265.5], [0, 0, 1]]
    sample = SUNRGBD[0].open(tmp_path)[0]
    query, truth = sample.load_query(), sample.load_truth()
    assert SUNRGBD[0].measure(query, truth, truthful(query, truth)).values["abs_rel"] == 0
    picture(tmp_path / "SUNRGBD" / frame.name / "image" / "img.jpg", (8, 12))
    with pytest.raises(InputError, match="has 6 x 4 pixels, its picture 12 x 8"):
        SUNRGBD[0].measure(sample.load_query(), truth, truthful(query, truth))
    assert sample.load_truth().need("depth").shape == (1, *SHAPE)
    (tmp_path / "test.txt").write_text("../elsewhere\n")
    with pytest.raises(InputError, match="not below SUNRGBD"):
        readers_sunrgbd.open_sunrgbd(tmp_path)
    (tmp_path / "test.txt").write_text("kv1/b3dodata/missing\n")
    with pytest.raises(InputError, match="holds 0 pictures"):
        readers_sunrgbd.open_sunrgbd(tmp_path)


def test_sunrgbd_official_split(tmp_path: Path) -> None:
    from scipy.io import savemat

    sunrgbd(tmp_path)
    folder = tmp_path / "SUNRGBDtoolbox" / "traintestSUNRGBD"
    folder.mkdir(parents=True)
    cells = np.empty((1, 2), dtype=object)
    cells[0, 0] = "/n/fs/sun3d/data/SUNRGBD/xtion/sun3ddata/mit/0001"
    cells[0, 1] = "/n/fs/sun3d/data/SUNRGBD/kv1/b3dodata/img_0063/"
    savemat(folder / "allsplit.mat", {"alltest": cells})
    assert [f.name for f in readers_sunrgbd.open_sunrgbd(tmp_path)] == [
        "xtion/sun3ddata/mit/0001",
        "kv1/b3dodata/img_0063",
    ]
    (folder / "allsplit.mat").write_bytes(b"not a mat file")
    with pytest.raises(InputError, match="split file"):
        readers_sunrgbd.open_sunrgbd(tmp_path)


def diode(root: Path) -> None:
    for part, scene in (("indoors", "scene_00019"), ("outdoor", "scene_00022")):
        stem = root / "val" / part / scene / "scan_00183" / "00019_00183_indoors_000_010"
        picture(stem.with_suffix(".png"), (768 // 64, 1024 // 64))
        depth = np.linspace(0.5, 300, 192, dtype=np.float32).reshape(12, 16, 1)
        np.save(f"{stem}_depth.npy", depth)
        mask = np.ones((12, 16))
        mask[0, :4] = 0
        np.save(f"{stem}_depth_mask.npy", mask)


def test_diode(tmp_path: Path) -> None:
    diode(tmp_path)
    frames = readers_diode.open_diode(tmp_path)
    assert [f.group for f in frames] == ["scene_00019", "scene_00022"]
    assert [f.group for f in readers_diode.open_diode(tmp_path, "outdoor")] == ["scene_00022"]
    frame = frames[0]
    assert frame.name == "indoors/scene_00019/scan_00183/00019_00183_indoors_000_010"
    assert frame.need_K().tolist() == [[886.81, 0, 512], [0, 927.06, 384], [0, 0, 1]]
    assert int(frame.load_valid().sum()) == 188 and float(frame.load_depth()[11, 15]) == 300
    assert len(RANGES[0].open(tmp_path)) == 2
    (tmp_path / "val/indoors/scene_00019/scan_00183/00019_00183_indoors_000_010_depth_mask.npy").unlink()
    with pytest.raises(InputError, match="depth_mask"):
        DIODE[0].open(tmp_path)
    with pytest.raises(InputError, match=r"val\.tar\.gz"):
        readers_diode.open_diode(tmp_path / "val" / "outdoor")


def test_kitti_selection_is_warped_to_the_benchmarks_size(tmp_path: Path) -> None:
    folder = tmp_path / "depth_selection" / "val_selection_cropped"
    stem = "2011_09_26_drive_0002_sync_image_0000000005_image_02"
    picture(folder / "image" / f"{stem}.png", (88, 304))
    (folder / "groundtruth_depth").mkdir()
    stored = np.zeros((88, 304), np.uint16)
    stored[40:60, 100:200] = 256 * 20
    Image.fromarray(stored).save(
        folder / "groundtruth_depth" / f"{stem.replace('_image_0', '_groundtruth_depth_0', 1)}.png"
    )
    (folder / "intrinsics").mkdir()
    (folder / "intrinsics" / f"{stem}.txt").write_text("180 0 151.5 0 180 43.5 0 0 1")
    plain, told = (p.open(tmp_path)[0] for p in KITTI)
    truth, query = plain.load_truth(), plain.load_query()
    assert truth.need("depth").shape == (1, 375, 750)
    assert truth.need("depth").max() == pytest.approx(20, rel=1e-3)
    assert query.scene is not None and query.scene.views[0].load_image().shape == (3, 375, 750)
    told_query = told.load_query()
    assert told_query.scene is not None
    K = told_query.scene.views[0].camera.K
    assert K is not None and float(K[0, 0]) == pytest.approx(180 * 375 / 88)
