"""Batches by position: the same with any number of workers, parts and interruptions."""

from __future__ import annotations

import dataclasses
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from relief3d.core.contract import Batch, Camera, Depth, Scene, View
from relief3d.core.errors import InputError, MissingExtraError
from relief3d.data.augmentation import Augmentation
from relief3d.data.geometric import Geometric
from relief3d.data.mixtures import Mixture
from relief3d.data.photometric import Photometric
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.data.sources import LazyScenes, SceneSource, open_folders
from relief3d.data.streams import BatchStream, StreamConfig, sample_names, split_batch
from relief3d.data.view_groups import Grouping, ViewRequest
from relief3d.train.feeding import feed
from relief3d.train.task import LossReport


class Numbers:
    """Tiny pictures that hold their number; some are broken."""

    def __init__(self, name: str, length: int, broken: frozenset[int] = frozenset()) -> None:
        self.name, self.length, self.broken = name, length, broken

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        return str(index)

    def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
        if index in self.broken:
            raise InputError("damaged or truncated picture", path=f"{index}.jpg", remedy="copy it again")
        generator = torch.Generator().manual_seed(seed)
        images = torch.rand((1, request.views, 3, *request.size), generator=generator)
        return Batch(images=images, names=(tuple(str(i) for i in range(request.views)),))


@dataclasses.dataclass
class StreamTask:
    """A task that only hands out batches."""

    stream: BatchStream
    name: str = "stream"

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def batch(self, position: int, part: int = 0, parts: int = 1) -> Batch:
        return self.stream.batch(position, part, parts)

    def samples(self, batch: Batch) -> tuple[str, ...]:
        return sample_names(batch)

    def split(self, batch: Batch, parts: int) -> list[Batch]:
        return split_batch(batch, parts)

    def to(self, batch: Batch, device: torch.device) -> Batch:
        return batch.to(device)

    def loss(self, model: Any, batch: Any, info: Any, teacher: Any) -> LossReport:
        raise NotImplementedError

    def evaluate(self, model: Any, step: int) -> dict[str, float]:
        return {}

    def panels(self, model: Any, step: int) -> dict[str, torch.Tensor]:
        return {}


def stream(**changes: Any) -> BatchStream:
    sources = [Numbers("a", 97, frozenset({3, 50})), Numbers("b", 40), Numbers("c", 11)]
    augmentation = Augmentation(Geometric(), Photometric())
    options: dict[str, Any] = {
        "views": (1, 3), "images": 12, "divisible_by": 2, "sizes": ((4, 4), (4, 6)), "augmentation": augmentation,
    }  # fmt: skip
    return BatchStream(Mixture(sources, [5, 3, 2], seed=3), StreamConfig(**{**options, **changes}), seed=8)


def names_of(task: StreamTask, first: int, wanted: int, workers: int) -> list[str]:
    found: list[str] = []
    for batch in feed(task, first, first + 1000, workers=workers):
        found += [f"{name} {batch.images[i].sum():.6f}" for i, name in enumerate(sample_names(batch))]
        if len(found) >= wanted:
            return found[:wanted]
    raise AssertionError


def test_the_next_thousand_samples_are_the_same_with_any_number_of_workers_after_resuming() -> None:
    plain = {"images": 60, "augmentation": None}
    task = StreamTask(stream(**plain))
    whole = names_of(task, 0, 1400, 0)
    done = 10  # positions before the interruption
    skipped = sum(len(task.stream.keys(p)) for p in range(done))
    assert 300 < skipped < 400
    for workers in (0, 1, 2, 4):
        assert names_of(StreamTask(stream(**plain)), done, 1000, workers) == whole[skipped : skipped + 1000]


def test_parts_put_together_are_the_whole_batch() -> None:
    source = stream()
    for position in range(3):
        whole = source.batch(position)
        halves = [source.batch(position, part, 2) for part in range(2)]
        assert torch.equal(torch.cat([h.images for h in halves]), whole.images)
        assert halves[0].names + halves[1].names == whole.names
    with pytest.raises(InputError, match="cannot be shared between 5 processes"):
        source.keys(0, 0, 5)
    with pytest.raises(InputError):
        source.keys(-1)


def test_batches_hold_as_many_scenes_as_pictures_allow() -> None:
    source = stream(augmentation=None)
    shapes = [tuple(source.batch(p).images.shape[:2]) for p in range(9)]
    assert {views for _, views in shapes} == {1, 2, 3}
    assert all(scenes == {1: 12, 2: 6, 3: 4}[views] for scenes, views in shapes)
    for start in (0, 3, 6):
        assert sorted(views for _, views in shapes[start : start + 3]) == [1, 2, 3]
    assert StreamConfig(scenes=5, divisible_by=2).scenes_of(9) == 4
    assert StreamConfig(images=4).scenes_of(9) == 1


def test_draws_follow_each_other_without_gaps() -> None:
    source = stream()
    numbers = [key.number for p in range(20) for key in source.keys(p)]
    assert numbers == list(range(len(numbers)))
    assert {key.size for p in range(30) for key in source.keys(p)} == {(4, 4), (4, 6)}


def test_a_broken_sample_is_replaced_by_the_same_one_every_time(caplog: pytest.LogCaptureFixture) -> None:
    source = stream()
    where = next(p for p in range(200) if any(k.name == "a/50" for k in source.keys(p)))
    with caplog.at_level(logging.WARNING):
        used = sample_names(source.batch(where))
    wanted = [k.name for k in source.keys(where)]
    place = wanted.index("a/50")
    assert used[:place] + used[place + 1 :] == tuple(wanted[:place] + wanted[place + 1 :])
    assert used[place].startswith("a/") and used[place] not in ("a/50", "a/3")
    assert "50.jpg: the sample 'a/50' cannot be used: damaged or truncated picture" in caplog.text
    assert sample_names(stream().batch(where)) == used
    with pytest.raises(InputError, match="the sample 'a/50' cannot be used") as caught:
        stream(on_error="stop").batch(where)
    assert caught.value.path == Path("50.jpg")


def test_a_source_of_broken_samples_ends_the_run() -> None:
    source = BatchStream(
        Mixture([Numbers("a", 4, frozenset(range(4)))]), StreamConfig(views=(1, 1), scenes=1)
    )
    with pytest.raises(InputError, match="10 samples in a row of 'a' cannot be used"):
        source.batch(0)


def test_another_seed_is_another_stream() -> None:
    mixture = Mixture([Numbers("a", 97)], seed=1)
    a, b = (BatchStream(Mixture([Numbers("a", 97)], seed=s), seed=0).keys(0) for s in (1, 2))
    assert [k.name for k in a] != [k.name for k in b]
    assert pickle.loads(pickle.dumps(BatchStream(mixture))).keys(4) == BatchStream(mixture).keys(4)


def _scene(broken: bool = False) -> Scene:
    views = []
    for i in range(6):
        K = torch.tensor([[8.0, 0, 8], [0, 8, 6], [0, 0, 1]])
        pose = torch.eye(4)
        pose[0, 3] = i
        depth = None if broken else Depth.from_values(torch.full((12, 16), 1.0 + i))
        views.append(View(f"{i}.png", Camera(16, 12, K, pose), torch.full((3, 12, 16), i / 10), depth))
    return Scene(tuple(views), metric=True)


def test_scenes_become_samples_with_what_is_needed() -> None:
    opened: list[int] = []

    def opener(number: int) -> Any:
        def open_scene() -> Scene:
            opened.append(number)
            return _scene(broken=number == 1)

        return open_scene

    source = SceneSource("rooms", LazyScenes([opener(0), opener(1)]), keys=["hall", "cellar"])
    request = ViewRequest(3, (6, 8), frozenset({"K", "pose", "depth"}), Grouping("contiguous"))
    batch = source.sample(0, request, 4)
    assert opened == [0] and batch.images.shape == (1, 3, 3, 6, 8)
    order = [int(n[0]) for n in batch.names[0]]
    assert batch.world_from_cam is not None and batch.world_from_cam[0, :, 0, 3].tolist() == order
    assert batch.depth is not None and batch.depth[0, :, 0, 0].tolist() == [1.0 + i for i in order]
    assert batch.K is not None and batch.K[0, 0, 0, 0] == 4
    with pytest.raises(InputError, match="has no depth for every view"):
        source.sample(1, request, 4)
    mixed = BatchStream(
        Mixture([source]), StreamConfig(views=(3, 3), scenes=2, sizes=((6, 8),), need=frozenset({"depth"}))
    )
    assert set(sample_names(mixed.batch(0))) == {"rooms/hall"}


def test_folders_are_opened_when_asked_for(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(3):
        (tmp_path / "walk").mkdir(exist_ok=True)
        Image.new("RGB", (16, 12), (51 * number, 0, 0)).save(tmp_path / "walk" / f"{number}.png")
    source = open_folders("walks", [tmp_path / "walk", tmp_path / "missing"])
    batch = source.sample(0, ViewRequest(3, (6, 8), grouping=Grouping(shuffled=False)), 0)
    assert batch.images[0, :, 0, 0, 0].tolist() == pytest.approx([0.0, 0.2, 0.4])
    both = BatchStream(Mixture([source]), StreamConfig(views=(2, 2), scenes=2, sizes=((6, 8),)))
    assert set(sample_names(both.batch(0))) == {f"walks/{(tmp_path / 'walk').as_posix()}"}


def test_a_missing_package_is_no_broken_sample() -> None:
    class NoVideo(Numbers):
        def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
            raise MissingExtraError("reading videos needs the package 'av'")

    with pytest.raises(MissingExtraError):
        BatchStream(Mixture([NoVideo("a", 3)])).batch(0)


def test_scenes_of_a_data_set_keep_their_names() -> None:
    card = DatasetCard("x", "X", (), "none", (), True, "", "")
    scenes = SceneSet(card, {"hall": 0, "cellar": 1}, lambda name, item: _scene())
    assert SceneSource("x", scenes).key(1) == "cellar"


def test_the_blocks_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "training_data.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("8000", "3"), names)
    assert len(blocks) == 2 and len(names["pool"]) == 3
    assert len(names["stream"].keys(417)) % 2 == 0


def test_numbers_that_are_not_finite_make_a_sample_unusable() -> None:
    class Bad(Numbers):
        def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
            return super().sample(index, dataclasses.replace(request, views=request.views + 1), seed)

    with pytest.raises(InputError, match="gave pictures"):
        BatchStream(Mixture([Bad("a", 3)]), StreamConfig(on_error="stop")).batch(0)
    scene = _scene()
    views = (scene.views[0].replace(image=torch.full((3, 12, 16), torch.nan)), *scene.views[1:])
    source = SceneSource("s", [scene.replace(views=views)])
    with pytest.raises(InputError, match="numbers in images that are not finite"):
        source.sample(0, ViewRequest(6, (12, 16)), 0)


def test_batches_are_split_in_order() -> None:
    whole = stream(views=(2, 2), images=14, divisible_by=1).batch(0)
    parts = split_batch(whole, 3)
    assert [p.images.shape[0] for p in parts] == [2, 3, 2]
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
    assert sum((p.names for p in parts), ()) == whole.names
    assert len(split_batch(whole, 99)) == 7


def write_video(path: Path, frames: int) -> None:
    """The upper half of frame i is grey of value 20 i + 20; below, a pattern moves to the right."""
    av = pytest.importorskip("av", reason="reading videos needs PyAV")
    import numpy as np

    with av.open(str(path), "w") as out:
        track = out.add_stream("mpeg4", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        pattern = np.kron(np.random.default_rng(0).integers(60, 200, (6, 16)), np.ones((8, 8)))
        for i in range(frames):
            pixels = np.repeat(np.roll(pattern, 9 * i, 1)[:, :64, None], 3, 2).astype(np.uint8)
            pixels[:24] = 20 * i + 20
            for packet in track.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                out.mux(packet)
        for packet in track.encode():
            out.mux(packet)


@pytest.mark.parametrize("stored", [False, True])
def test_videos_are_sources(tmp_path: Path, stored: bool) -> None:
    write_video(tmp_path / "walk.mp4", 10)
    options: dict[str, Any] = {"frames_folder": tmp_path / "frames"} if stored else {}
    source = open_folders("clips", [tmp_path / "walk.mp4", tmp_path / "gone.mp4"], max_frames=6, **options)
    contiguous = ViewRequest(3, (12, 16), grouping=Grouping(shuffled=False))
    batch = source.sample(0, contiguous, 0)
    assert batch.images.shape == (1, 3, 3, 12, 16)
    grey = batch.images[0, :, :, :5].mean((1, 2, 3)) * 255
    steps = grey.diff()
    # Neighbours among 6 evenly chosen of 10 frames: 1 or 2 frames, so 20 or 40 levels, apart.
    assert bool((steps > 14).all()) and bool((steps < 46).all()), grey
    assert torch.equal(batch.images, source.sample(0, contiguous, 0).images)
    both = BatchStream(Mixture([source]), StreamConfig(views=(2, 2), scenes=2, sizes=((12, 16),)), seed=1)
    batch = both.batch(0)  # the missing one is replaced
    assert set(sample_names(batch)) == {f"clips/{(tmp_path / 'walk.mp4').as_posix()}"}
    parts = torch.cat([both.batch(0, part, 2).images for part in range(2)])
    assert torch.equal(parts, batch.images)
    with pytest.raises(InputError, match=r"gone\.mp4"):
        source.sample(1, contiguous, 0)
    (tmp_path / "bad.mp4").write_bytes(b"\0\0\0\x18ftypisom" + b"x" * 500)
    with pytest.raises(InputError, match=r"bad\.mp4"):
        open_folders("clips", [tmp_path / "bad.mp4"]).sample(0, contiguous, 0)


def test_damaged_and_odd_photos_of_a_folder_are_named(tmp_path: Path) -> None:
    from PIL import Image

    for number, size in enumerate(((16, 12), (12, 16), (40, 30))):
        Image.new("RGB", size, (51 * number, 0, 0)).save(tmp_path / f"{number}.png")
    request = ViewRequest(3, (6, 8), grouping=Grouping(shuffled=False))
    source = open_folders("photos", [tmp_path])
    assert source.sample(0, request, 0).images.shape == (1, 3, 3, 6, 8)  # sizes may differ
    with pytest.raises(InputError, match="has 3 views, 4 are wanted"):
        source.sample(0, ViewRequest(4, (6, 8)), 0)
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(InputError, match=r"2\.png"):
        source.sample(0, request, 0)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="empty"):
        open_folders("photos", [empty]).sample(0, request, 0)


def test_one_good_sample_in_a_source_is_found() -> None:
    """Ten attempts go through all others of a source of ten, so luck plays no part."""
    for good in (0, 4, 9):
        broken = frozenset(range(10)) - {good}
        for seed in range(5):
            found = BatchStream(
                Mixture([Numbers("a", 10, broken)], seed=seed), StreamConfig(views=(1, 1), scenes=10)
            )
            assert set(sample_names(found.batch(0))) == {f"a/{good}"}


def test_a_tiny_source_gets_its_share_and_repeats_evenly() -> None:
    sources = [Numbers("big", 1000), Numbers("one", 1), Numbers("few", 3)]
    mixture = Mixture(sources, [0.89, 0.0115, 0.0985], seed=2)  # no round of at most 1000 draws keeps this
    draws = [mixture.draw(number) for number in range(2000)]
    one, few, big = ([d for d in draws if d.source == source] for source in (1, 2, 0))
    assert all(abs(len(d) - n) <= 1 for d, n in ((one, 23), (few, 197), (big, 1780)))
    assert [d.epoch for d in one] == list(range(len(one))) and len({d.seed for d in one}) == len(one)
    counts = [sum(d.index == i for d in few) for i in range(3)]
    assert max(counts) - min(counts) <= 1
    assert len({d.index for d in big[:1000]}) == 1000


def test_every_draw_is_augmented_anew() -> None:
    """The same picture again and again comes out with another brightness, in the next epoch too."""

    class Grey(Numbers):
        def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
            images = torch.full((1, request.views, 3, *request.size), 0.4)
            return Batch(images=images, names=(tuple(str(i) for i in range(request.views)),))

    colour = Photometric(probability=1.0, contrast=0.0, saturation=0.0, hue=0.0, gamma=0.0, grey=0.0)
    config = StreamConfig(views=(1, 1), scenes=4, augmentation=Augmentation(None, colour))
    source = BatchStream(Mixture([Grey("a", 4)]), config, seed=0)
    seen = {
        round(float(v), 6) for position in range(3) for v in source.batch(position).images.amax((1, 2, 3, 4))
    }
    assert len(seen) == 12
