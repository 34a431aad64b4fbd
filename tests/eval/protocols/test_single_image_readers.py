"""Readers of iBims-1, ETH3D, Sintel and Spring on tiny copies of their public layouts."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.eval.protocols.metric.frames import check_same_size
from relief3d.eval.protocols.metric.readers_eth3d import has_undistorted, read_eth3d
from relief3d.eval.protocols.metric.readers_ibims import read_ibims
from relief3d.eval.protocols.metric.readers_sintel import read_sintel
from relief3d.eval.protocols.metric.readers_spring import FARTHEST, read_spring


def _picture(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path, format="PNG")  # content decides, so .JPG names may hold exact pixels
    return rgb


def ibims_raw(root: Path) -> tuple[np.ndarray, np.ndarray]:
    folder = root / "ibims1_core_raw"
    rgb = _picture(folder / "rgb" / "office_01.png", 4, 5)
    _picture(folder / "rgb" / "corridor_02.png", 4, 5, 1)
    stored = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    for name in ("office_01", "corridor_02"):
        for sub in ("depth", "mask_invalid", "mask_transp", "calib"):
            (folder / sub).mkdir(exist_ok=True)
        Image.fromarray(stored).save(folder / "depth" / f"{name}.png")
        invalid, transp = np.full((4, 5), 255, np.uint8), np.ones((4, 5), bool)
        invalid[1, 1], transp[2, 2] = 0, False
        Image.fromarray(invalid).save(folder / "mask_invalid" / f"{name}.png")
        Image.fromarray(transp).save(folder / "mask_transp" / f"{name}.png")
        (folder / "calib" / f"{name}.txt").write_text("550.5,551.5,2.0,1.5\n")
    (root / "imagelist.txt").write_text("office_01\ncorridor_02\n")
    return rgb, stored


def test_ibims_png(tmp_path: Path) -> None:
    rgb, stored = ibims_raw(tmp_path)
    frames = read_ibims(tmp_path)
    assert [f.name for f in frames] == ["office_01", "corridor_02"] and frames[0].group == "office"
    frame = frames[0]
    assert np.array_equal(frame.load_image().permute(1, 2, 0).numpy(), rgb)
    expected = stored.astype(np.float64) * 50 / 65535
    expected[1, 1] = expected[2, 2] = 0
    assert np.allclose(frame.load_depth().numpy(), expected, rtol=1e-6)
    assert torch.equal(frame.load_valid(), frame.load_depth() > 0) and int(frame.load_valid().sum()) == 17
    assert frame.need_K().tolist() == [[550.5, 0, 2.5], [0, 551.5, 2.0], [0, 0, 1]]
    assert [f.name for f in read_ibims(tmp_path / "ibims1_core_raw")] == ["office_01", "corridor_02"]


def test_ibims_mat_says_the_same(tmp_path: Path) -> None:
    from scipy.io import savemat

    rgb, stored = ibims_raw(tmp_path)
    raw = read_ibims(tmp_path)[0]
    folder = tmp_path / "other" / "ibims1_core_mat"
    folder.mkdir(parents=True)
    ones = np.ones((4, 5), np.uint8)
    invalid, transp = ones.copy(), ones.copy()
    invalid[1, 1] = transp[2, 2] = 0
    calib = np.array([[550.5, 0, 2.0], [0, 551.5, 1.5], [0, 0, 1]]).T
    data = {
        "rgb": rgb,
        "depth": (stored.astype(np.float64) * 50 / 65535).astype(np.float32),
        "mask_invalid": invalid,
        "mask_transp": transp,
        "calib": calib,
    }
    savemat(folder / "office_01.mat", {"data": data})
    (frame,) = read_ibims(tmp_path / "other")
    assert torch.equal(frame.need_K(), raw.need_K())
    assert torch.allclose(frame.load_depth(), raw.load_depth(), rtol=1e-6)
    assert torch.equal(frame.load_image(), raw.load_image()) and torch.equal(
        frame.load_valid(), raw.load_valid()
    )


def test_ibims_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither"):
        read_ibims(tmp_path)
    ibims_raw(tmp_path)
    calib = tmp_path / "ibims1_core_raw" / "calib" / "office_01.txt"
    calib.write_text("1,2,3")
    with pytest.raises(InputError, match="fx,fy,cx,cy"):
        read_ibims(tmp_path)
    calib.unlink()
    with pytest.raises(InputError, match=r"office_01\.txt"):
        read_ibims(tmp_path)


def sintel(root: Path) -> np.ndarray:
    depth = np.linspace(1, 90, 12, dtype="<f4").reshape(3, 4)
    for sequence in ("market_2", "alley_1"):
        for frame in (1, 2):
            name = f"frame_{frame:04d}"
            _picture(root / "training" / "final" / sequence / f"{name}.png", 3, 4, frame)
            for sub, ending in (("depth", "dpt"), ("camdata_left", "cam")):
                (root / "training" / sub / sequence).mkdir(parents=True, exist_ok=True)
                path = root / "training" / sub / sequence / f"{name}.{ending}"
                head = struct.pack("<f", 202021.25)
                if ending == "dpt":
                    path.write_bytes(head + struct.pack("<ii", 4, 3) + depth.tobytes())
                else:
                    K = [1120.0, 0, 511.5, 0, 1120.0, 217.5, 0, 0, 1]
                    path.write_bytes(head + struct.pack("<21d", *K, *np.eye(4)[:3].ravel()))
    return depth


def test_sintel(tmp_path: Path) -> None:
    depth = sintel(tmp_path)
    frames = read_sintel(tmp_path)
    assert [f.name for f in frames] == [f"{s}/frame_000{i}" for s in ("alley_1", "market_2") for i in (1, 2)]
    assert np.array_equal(frames[0].load_depth().numpy(), depth) and bool(frames[0].load_valid().all())
    assert frames[0].need_K()[:2, 2].tolist() == [512.0, 218.0] and frames[0].need_K()[0, 0] == 1120
    assert len(read_sintel(tmp_path / "training")) == 4
    with pytest.raises(InputError, match="training/clean"):
        read_sintel(tmp_path, "clean")
    broken = tmp_path / "training" / "depth" / "alley_1" / "frame_0002.dpt"
    broken.write_bytes(broken.read_bytes()[:-4])
    with pytest.raises(InputError, match="4 x 3"):
        frames[1].load_depth()
    broken.unlink()
    with pytest.raises(InputError, match=r"frame_0002\.dpt"):
        read_sintel(tmp_path)


def eth3d(root: Path) -> np.ndarray:
    depth = np.arange(1, 21, dtype="<f4").reshape(4, 5)
    depth[0, 0] = np.inf
    scene = root / "courtyard"
    for kind, folder, model in (
        ("jpg", "dslr_images", "THIN_PRISM_FISHEYE 5 4 3.5 3.6 2.5 2.0 0 0 0 0 0 0 0 0"),
        ("undistorted", "dslr_images_undistorted", "PINHOLE 5 4 3.4 3.4 2.4 2.1"),
    ):
        for i, name in enumerate(("DSC_0287.JPG", "DSC_0286.JPG")):
            _picture(scene / "images" / folder / name, 4, 5, i)
        calibration = scene / f"dslr_calibration_{kind}"
        calibration.mkdir(parents=True)
        (calibration / "cameras.txt").write_text(f"# cameras\n7 {model}\n")
        (calibration / "images.txt").write_text(
            f"# images\n1 1 0 0 0 0 0 0 7 {folder}/DSC_0287.JPG\n1.5 2.5 -1\n"
            f"2 1 0 0 0 0 0 0 7 {folder}/DSC_0286.JPG\n\n"
        )
    truth = scene / "ground_truth_depth" / "dslr_images"
    truth.mkdir(parents=True)
    for name in ("DSC_0286.JPG", "DSC_0287.JPG"):
        (truth / name).write_bytes(depth.tobytes())
    return depth


def test_eth3d(tmp_path: Path) -> None:
    depth = eth3d(tmp_path)
    frames = read_eth3d(tmp_path)
    assert [f.name for f in frames] == ["courtyard/DSC_0286", "courtyard/DSC_0287"]
    got = frames[0].load_depth().numpy()
    assert got[0, 0] == 0 and np.array_equal(got.ravel()[1:], depth.ravel()[1:])
    assert int(frames[0].load_valid().sum()) == 19
    assert frames[0].need_K().tolist() == [
        [3.5, 0, 2.5],
        [0, 3.6, 2.0],
        [0, 0, 1],
    ]  # COLMAP: nothing is added
    assert tuple(frames[0].load_image().shape) == (3, 4, 5)
    assert has_undistorted(tmp_path)
    flat = read_eth3d(tmp_path, undistorted=True)
    assert float(flat[0].need_K()[0, 0]) == 3.4
    with pytest.raises(InputError, match="dslr_images_undistorted"):
        flat[0].load_depth()
    with pytest.raises(InputError, match="no focal length"):
        read_eth3d(tmp_path, focal="exif")
    truth = tmp_path / "courtyard" / "ground_truth_depth" / "dslr_images" / "DSC_0286.JPG"
    truth.write_bytes(b"1234")
    with pytest.raises(InputError, match="5 x 4"):
        frames[0].load_depth()
    with pytest.raises(InputError, match="no scene"):
        read_eth3d(tmp_path / "courtyard")


def spring(root: Path) -> np.ndarray:
    disparity = np.full((8, 12), 2.0)
    disparity[0, 0], disparity[0, 2], disparity[0, 4], disparity[1, 1] = 0.0, np.nan, 13.0, 999.0
    for sequence in ("0002", "0001"):
        base = root / "train" / sequence
        for frame in (1, 2):
            _picture(base / "frame_left" / f"frame_left_{frame:04d}.png", 4, 6, frame)
            (base / "disp1_left").mkdir(exist_ok=True)
            np.save(base / "disp1_left" / f"disp1_left_{frame:04d}.npy", disparity)
        (base / "cam_data").mkdir()
        (base / "cam_data" / "intrinsics.txt").write_text("1000 1000 3 2\n2000 2000 3 2\n")
    return disparity


def test_spring(tmp_path: Path) -> None:
    spring(tmp_path)
    frames = read_spring(tmp_path)
    assert [f.name for f in frames][:2] == [
        "train/0001/frame_left_0001",
        "train/0001/frame_left_0002",
    ] and len(frames) == 4
    depth = frames[0].load_depth()
    assert tuple(depth.shape) == (4, 6)
    assert float(depth[0, 0]) == pytest.approx(FARTHEST)  # sky
    assert float(depth[0, 1]) == 0 and not bool(frames[0].load_valid()[0, 1])
    assert float(depth[0, 2]) == pytest.approx(1000 * 0.065 / 13)
    assert float(depth[2, 2]) == pytest.approx(1000 * 0.065 / 2)
    assert float(frames[1].load_depth()[2, 2]) == pytest.approx(2000 * 0.065 / 2)
    check_same_size("x", frames[0].load_image(), depth)
    (tmp_path / "train" / "0001" / "disp1_left" / "disp1_left_0001.npy").rename(
        tmp_path / "train" / "0001" / "disp1_left" / "disp1_left_0001.dsp5"
    )
    with pytest.raises(InputError, match=r"h5py|not a Spring"):
        frames[0].load_depth()
    (tmp_path / "train" / "0001" / "cam_data" / "intrinsics.txt").write_text("1000 1000 3 2\n")
    with pytest.raises(InputError, match="1 lines for 2"):
        read_spring(tmp_path)
    with pytest.raises(InputError, match="disp1_left"):
        read_spring(tmp_path / "train")


def test_sizes_are_compared() -> None:
    with pytest.raises(InputError, match="3 x 2"):
        check_same_size("x", torch.zeros(3, 4, 4), torch.zeros(2, 3))
