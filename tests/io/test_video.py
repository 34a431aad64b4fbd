"""Video: what decodes is used and counted; frames keep their time; memory stays flat."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from corpora.videos import panning_frames, texture, write_sound, write_video
from relief3d.core.errors import InputError
from relief3d.core.memory import peak_rss
from relief3d.io import video as video_module
from relief3d.io.exif import orient_array
from relief3d.io.video import read_video_info, sample_video, video_scene, write_video_frames

FRAMES = panning_frames(40, blurred=(12, 13, 14))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", FRAMES)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1) / 255


def test_facts(clip: Path) -> None:
    info = read_video_info(clip)
    assert (info.width, info.height, info.declared_frames, info.codec) == (160, 96, 40, "h264")
    assert info.frame_rate == pytest.approx(30) and info.duration == pytest.approx(40 / 30, abs=0.01)


def test_frames_are_lazy_exact_and_timed(clip: Path) -> None:
    sample = sample_video(clip)
    assert sample.decoded == 40 and sample.damaged == 0 and sample.notes == ()
    assert 8 <= len(sample.frames) <= 20
    assert not {12, 13, 14} & {f.index for f in sample.frames}
    scene = video_scene(sample)
    assert scene.ordered
    for view, frame in list(zip(scene.views, sample.frames))[::4]:
        assert view.time == pytest.approx(frame.index / 30, abs=1e-3)
        image = view.load_image()
        assert image.shape == (3, 96, 160)
        own = float((image - tensor(FRAMES[frame.index])).abs().mean())
        other = float((image - tensor(FRAMES[frame.index - 1])).abs().mean())
        assert own < 0.03 < other
    again = pickle.loads(pickle.dumps(scene.views[1]))  # views cross process boundaries
    assert torch.equal(again.load_image(), scene.views[1].load_image())


def test_max_frames_and_window(clip: Path) -> None:
    assert len(sample_video(clip, max_frames=5).frames) <= 5
    part = sample_video(clip, start=0.5, end=0.9)
    assert all(0.5 <= f.time <= 0.9 for f in part.frames)
    with pytest.raises(InputError, match="no frame lies"):
        sample_video(clip, start=100)


@pytest.mark.parametrize(("degrees", "orientation"), [(90, 8), (180, 3), (-90, 6)])
def test_rotation_metadata_is_applied_once(tmp_path: Path, degrees: float, orientation: int) -> None:
    path = write_video(tmp_path / "a.mov", FRAMES[:3], rotation=degrees)
    info = read_video_info(path)
    assert info.orientation == orientation
    assert (info.width, info.height) == ((160, 96) if degrees == 180 else (96, 160))
    view = sample_video(path).views()[0]
    image = view.load_image()
    assert (view.camera.width, view.camera.height) == (image.shape[2], image.shape[1])
    stored = tensor(FRAMES[sample_video(path).frames[0].index])
    assert float((image - orient_array(stored, orientation)).abs().mean()) < 0.03


def test_variable_rate_keeps_time_stamps(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.4, 0.5, 0.9, 1.0, 2.0]
    path = write_video(tmp_path / "a.mp4", FRAMES[::5], times=times)
    sample = sample_video(path, motion=0.02)
    assert sample.decoded == 8
    assert [f.time for f in sample.frames] == pytest.approx([times[f.index] for f in sample.frames], abs=2e-3)


@pytest.mark.parametrize("suffix", ["mkv", "avi", "ts", "mov", "webm"])
def test_containers(tmp_path: Path, suffix: str) -> None:
    codec = "libvpx" if suffix == "webm" else "libx264"
    sample = sample_video(write_video(tmp_path / f"a.{suffix}", FRAMES[:12], codec=codec))
    assert sample.decoded == 12 and sample.notes == ()
    assert sample.views()[-1].load_image().shape == (3, 96, 160)


def test_ten_bit_and_one_frame(tmp_path: Path) -> None:
    ten = sample_video(write_video(tmp_path / "a.mp4", FRAMES[:6], pixel_format="yuv420p10le"))
    image = ten.views()[0].load_image()
    assert float((image - tensor(FRAMES[ten.frames[0].index])).abs().mean()) < 0.03
    one = sample_video(write_video(tmp_path / "b.mp4", FRAMES[:1]))
    assert len(one.frames) == one.decoded == 1


def test_hdr_is_noted(tmp_path: Path) -> None:
    options = {"x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
    path = write_video(tmp_path / "a.mp4", FRAMES[:2], pixel_format="yuv420p10le", options=options)
    assert "HDR" in read_video_info(path).notes[0]


@pytest.mark.parametrize("share", [0.35, 0.6, 0.9])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_cut_video_is_used_as_far_as_it_decodes(tmp_path: Path, suffix: str, share: float) -> None:
    muxer = {"movflags": "faststart"} if suffix == "mp4" else None
    path = write_video(tmp_path / f"a.{suffix}", FRAMES, muxer=muxer)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    sample = sample_video(path)
    assert 1 <= sample.decoded < 40
    assert any(f"{sample.decoded}" in note and "damaged" in note for note in sample.notes)
    assert sample.views()[-1].load_image().shape == (3, 96, 160)


def test_video_without_index(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.raises(InputError, match="no readable index or is cut off"):
        sample_video(path)


def test_sound_only_and_no_frames(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sound but no video"):
        sample_video(write_sound(tmp_path / "a.mp4"))
    path = write_video(tmp_path / "b.mp4", FRAMES[:4], muxer={"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a single frame"):
        sample_video(path)


def test_not_videos(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for data, words in ((b"", "empty"), (b"text", "no known format"), (b"\xff\xd8\xff\xe0" * 9, "jpeg")):
        path.write_bytes(data)
        with pytest.raises(InputError, match=words):
            sample_video(path)
    with pytest.raises(InputError, match="no such file"):
        sample_video(tmp_path / "missing.mp4")


def test_odd_names_are_no_protocols(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a|b.mp4", "-i.mp4", "http:x.mp4", "ü n.mp4", "100%.mp4"):
        Path(name).write_bytes(clip.read_bytes())
        assert read_video_info(name).declared_frames == 40


def test_size_change_midway(tmp_path: Path) -> None:
    small = write_video(tmp_path / "a.ts", FRAMES[:8])
    large = write_video(tmp_path / "b.ts", panning_frames(8, width=192, height=112, speed=4))
    path = tmp_path / "c.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    sample = sample_video(path, motion=0.02)
    sizes = {(f.width, f.height) for f in sample.frames}
    assert sizes == {(160, 96), (192, 112)}
    assert any("size changes" in note for note in sample.notes)
    assert np.all(np.diff([f.time for f in sample.frames]) > 0)
    for view in sample.views()[::3]:
        image = view.load_image()
        assert (image.shape[2], image.shape[1]) == (view.camera.width, view.camera.height)


def test_frames_written_once_are_read_from_there(clip: Path, tmp_path: Path) -> None:
    sample = sample_video(clip, max_frames=6)
    views = write_video_frames(sample, tmp_path / "frames")
    assert sorted(p.name for p in (tmp_path / "frames").iterdir()) == [v.name for v in views]
    for stored, decoded in zip(views, sample.views()):
        assert float((stored.load_image() - decoded.load_image()).abs().max()) < 1 / 255
        assert stored.path is not None and stored.time == decoded.time
    before = views[0].path.stat().st_mtime_ns  # type: ignore[union-attr]
    write_video_frames(sample, tmp_path / "frames")
    assert views[0].path.stat().st_mtime_ns == before  # type: ignore[union-attr]


def test_huge_frames_are_refused(clip: Path) -> None:
    with pytest.raises(InputError, match="megapixels"):
        sample_video(clip, max_pixels=1000)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    frames = [texture(640, 480, 0)] * 60
    path = write_video(tmp_path / "a.mp4", frames, options={"preset": "ultrafast", "crf": "30"})
    before = peak_rss()
    sample = sample_video(path)
    assert sample.decoded == 60
    assert peak_rss() - before < 100 * 1024**2  # all frames as float32 would be 221 MB


def test_long_video_uses_key_frames(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_module, "KEY_FRAMES_ONLY_ABOVE", 20)
    sample = sample_video(clip, motion=0.02)
    assert sample.decoded < 10 and "key frames" in sample.notes[-1]
    assert sample.views()[-1].load_image().shape == (3, 96, 160)


def test_missing_extra_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"relief3d\[video\]"):
        read_video_info(clip)
