"""Shards: whole samples only, the same bytes after any kill, nothing from a stranger runs or leads elsewhere."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import random
import signal
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relief3d.core.contract import Batch
from relief3d.core.errors import InputError
from relief3d.data.mixtures import Mixture
from relief3d.data.shard_decoders import DECODERS, ShardLimits, decode_members
from relief3d.data.shards import ShardSet, index_path, scan_shard, shard_name, verify_shards, write_shards
from relief3d.data.stored_views import ShardSource, encode_sample, prerender
from relief3d.data.streams import BatchStream, StreamConfig, sample_names
from relief3d.data.view_groups import Grouping, ViewRequest


def make(index: int) -> tuple[str, dict[str, bytes]]:
    noise = random.Random(index).randbytes(300 + 37 * (index % 7))
    return f"{index:06d}", {"json": json.dumps({"n": index}).encode(), "000.bin": noise, "txt": b"hello"}


def slowly(index: int) -> tuple[str, dict[str, bytes]]:
    time.sleep(0.0008)
    return make(index)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_samples_come_back_byte_for_byte_and_files_agree_with_their_index(tmp_path: Path) -> None:
    assert write_shards(tmp_path, 25, make, per_shard=10) == 3
    shards = ShardSet(tmp_path)
    assert len(shards) == 25 and verify_shards(tmp_path) == 25
    for index in (0, 9, 10, 24):
        assert shards.read(index) == make(index)[1]
    assert shards.key(10) == "shard-000001/000010"
    # A foreign reader sees the naming of WebDataset: members of a sample in a row, key before the first dot.
    with tarfile.open(tmp_path / "shard-000001.tar") as packed:
        names = packed.getnames()
    assert names[:3] == ["000010.000.bin", "000010.json", "000010.txt"] and len(names) == 30
    with pytest.raises(InputError, match="there is no sample 25 of 25"):
        shards.read(25)


def test_the_bytes_do_not_depend_on_the_number_of_writers(tmp_path: Path) -> None:
    write_shards(tmp_path / "one", 25, make, per_shard=4)
    for part in (2, 0, 1):
        write_shards(tmp_path / "three", 25, make, per_shard=4, part=part, parts=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_writer_killed_at_20_moments_leaves_whole_samples_and_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    count, per_shard = 40, 5
    began = time.monotonic()
    write_shards(tmp_path / "whole", count, slowly, per_shard=per_shard)
    seconds = time.monotonic() - began
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")
    folder, inside = tmp_path / "killed", 0
    for kill in range(20):
        if kill == 10:  # a second run, so that kills fall on early shards again
            folder = tmp_path / "killed again"
        writer = context.Process(
            target=write_shards, args=(folder, count, slowly), kwargs={"per_shard": per_shard}
        )
        writer.start()
        time.sleep(rng.uniform(0.02, 0.02 + seconds / 5))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        inside += writer.exitcode == -signal.SIGKILL
        if any(folder.glob("shard-*.tar")):
            seen = ShardSet(folder)
            assert len(seen) % per_shard == 0
            for index in range(len(seen)):
                assert seen.read(index) == make(int(seen.key(index).split("/")[1]))[1]
    assert inside >= 5
    for folder in (tmp_path / "killed", tmp_path / "killed again"):
        write_shards(folder, count, make, per_shard=per_shard)
        assert contents(folder) == contents(tmp_path / "whole")
        assert write_shards(folder, count, make, per_shard=per_shard) == 0


@pytest.mark.parametrize("stop", range(6))
def test_a_stop_before_any_file_appears_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """The plan, two shards with their indices and the list appear one after the other."""
    write_shards(tmp_path / "whole", 8, make, per_shard=4)
    replace, left = Path.replace, [stop]

    def die(path: Path, target: Path) -> Path:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_shards(tmp_path / "cut", 8, make, per_shard=4)
    assert len([p for p in (tmp_path / "cut").iterdir() if not p.name.startswith(".")]) == stop
    write_shards(tmp_path / "cut", 8, make, per_shard=4)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_half_written_shard_is_not_seen(tmp_path: Path) -> None:
    write_shards(tmp_path, 4, make, per_shard=2)
    (tmp_path / ".relief3d-0123456789ab.tar").write_bytes(b"half")
    assert len(ShardSet(tmp_path)) == 4


def test_another_plan_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, 4, make, per_shard=2, recipe={"seed": 1})
    for options in ({"per_shard": 3, "recipe": {"seed": 1}}, {"per_shard": 2, "recipe": {"seed": 2}}):
        with pytest.raises(InputError, match="shards of another plan"):
            write_shards(tmp_path, 4, make, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="two samples have the same key"):
        write_shards(tmp_path / "b", 2, lambda i: ("x", {"txt": b"1"}))
    with pytest.raises(InputError, match="is no sample"):
        write_shards(tmp_path / "c", 1, lambda i: ("../x", {"txt": b"1"}))


def test_changes_and_damage_are_found(tmp_path: Path) -> None:
    write_shards(tmp_path, 6, make, per_shard=3)
    shard = tmp_path / shard_name(1)
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match="was changed or damaged"):
        verify_shards(tmp_path)
    shard.write_bytes(data[:-512])
    with pytest.raises(InputError, match=r"does not belong to shard-000001.tar as it is now"):
        ShardSet(tmp_path)
    entry = json.loads(index_path(tmp_path / shard_name(0)).read_text())
    entry["samples"][0]["members"]["json"] = [0, 10**9]
    index_path(tmp_path / shard_name(0)).write_text(json.dumps(entry))
    with pytest.raises(InputError, match=r"names a place outside the shard for '000000.json'"):
        ShardSet(tmp_path / shard_name(0))


def foreign(path: Path, members: list[tuple[Any, bytes]]) -> Path:
    """A TAR of somebody else; names, or whole headers."""
    with tarfile.open(path, "w") as packed:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_foreign_shards_are_looked_through_once(tmp_path: Path) -> None:
    path = foreign(
        tmp_path / "a.tar",
        [
            ("d/x.1.jpg", b"1"),
            ("d/x.cls", b"2"),
            ("__note__", b"{}"),
            ("d/y.jpg", b"3"),
            ("readme", b"4"),
        ],
    )
    shards = ShardSet(path)
    assert [shards.key(i) for i in range(len(shards))] == ["a/d/x", "a/d/y"]
    assert shards.read(0) == {"1.jpg": b"1", "cls": b"2"}
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        shards.read(0)


HOSTILE: dict[str, list[tuple[Any, bytes]]] = {
    "parent": [("../x.txt", b"1")],
    "inner parent": [("a/../../x.txt", b"1")],
    "absolute": [("/etc/x.txt", b"1")],
    "drive": [("C:/x.txt", b"1")],
    "backslash": [("..\\x.txt", b"1")],
    "control": [("a\nb.txt", b"1")],
    "deep": [("d/" * 300 + "x.txt", b"1")],
    "symbolic link": [(special("x.txt", tarfile.SYMTYPE, "/etc/passwd"), b"")],
    "hard link": [(special("x.txt", tarfile.LNKTYPE, "../y"), b"")],
    "device": [(special("x.txt", tarfile.CHRTYPE), b"")],
    "pipe": [(special("x.txt", tarfile.FIFOTYPE), b"")],
    "sparse": [(special("x.txt", tarfile.GNUTYPE_SPARSE), b"")],
    "twice": [("x.txt", b"1"), ("x.txt", b"2")],
    "case": [("x.txt", b"1"), ("X.TXT", b"2")],
    "scattered": [("x.txt", b"1"), ("y.txt", b"2"), ("x.jpg", b"3")],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_members_are_refused(tmp_path: Path, kind: str) -> None:
    path = foreign(tmp_path / "bad.tar", HOSTILE[kind])
    with pytest.raises(InputError, match=r"bad\.tar"):
        ShardSet(path)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.tar"]


@pytest.mark.parametrize("spoil", ["size", "checksum", "cut", "gzip", "huge header", "empty"])
def test_damaged_archives_are_refused(tmp_path: Path, spoil: str) -> None:
    path = foreign(tmp_path / "bad.tar", [("x.txt", b"1" * 2000), ("y.txt", b"2" * 2000)])
    data = bytearray(path.read_bytes())
    if spoil == "size":
        header = tarfile.TarInfo("x.txt")
        header.size = 1 << 40
        data[:512] = header.tobuf()
    elif spoil == "checksum":
        data[2560 + 150] ^= 1
    elif spoil == "cut":
        data = data[:1500]
    elif spoil == "huge header":
        header = special("x", tarfile.XHDTYPE)
        header.size = (1 << 33) - 1
        data[:512] = header.tobuf(tarfile.USTAR_FORMAT)
    elif spoil == "gzip":
        import gzip

        data = bytearray(gzip.compress(bytes(data)))
    else:
        data = bytearray()
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.tar"):
        scan_shard(path)


def npz_bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "|u1", "fortran_order": False, "shape": (40_000_000,)}
        )
        packed.writestr("a.npy", head.getvalue() + bytes(40_000_000))
    return stream.getvalue()


def pickled_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        ("pkl", b"cos\nsystem\n(S'touch canary'\ntR.", "can run code"),
        ("state.pth", b"PK\x03\x04", "can run code"),
        ("data.PYD", b"x", "can run code"),
        ("npy", pickled_array(), "array type object cannot be used"),
        ("npz", npz_bomb(), "more than the limit|would expand"),
        ("cls", b"5", "there is no decoder for 'cls'"),
        ("json", b'{"a": NaN}', "not valid JSON"),
        ("json", b"[" * 100_000, "not valid JSON"),
        ("txt", b"\xff\xfe\xfa", "is not UTF-8"),
        ("safetensors", b"\xff" * 64, "no complete safetensors file"),
        ("jpg", b"\xff\xd8\xff\xe0 nothing", "damaged or truncated picture"),
        ("png", b"cos\nsystem\n", "is neither JPEG nor PNG nor WEBP"),
        ("txt", b"x" * 5000, "has more than 4096 bytes"),
    ],
)
def test_members_that_are_not_allowed(member: str, data: bytes, message: str, tmp_path: Path) -> None:
    limits = ShardLimits(pixels=1_000_000, member_bytes=4096 if member == "txt" else 1 << 28)
    with pytest.raises(InputError, match=message):
        decode_members({member: data}, "shard/000001", limits=limits)
    assert not Path("canary").exists()


def test_allowed_members_are_decoded() -> None:
    from PIL import Image

    stream, array, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.new("RGB", (4, 3), (255, 0, 51)).save(stream, "PNG")
    np.save(array, np.arange(6, dtype=np.float32).reshape(2, 3))
    np.savez_compressed(arrays, a=np.ones(3), b=np.zeros(2, np.int64))
    got = decode_members(
        {"0.png": stream.getvalue(), "npy": array.getvalue(), "npz": arrays.getvalue(),
         "json": b'{"a": 1}', "cls": b"7"},
        "s/0", ignore=["cls"],
    )  # fmt: skip
    assert torch.allclose(got["0.png"][:, 0, 0], torch.tensor([1.0, 0.0, 0.2])) and got["0.png"].shape == (
        3,
        3,
        4,
    )
    assert got["npy"].tolist() == [[0, 1, 2], [3, 4, 5]] and got["npz"]["a"].tolist() == [1, 1, 1]
    assert got["json"] == {"a": 1} and "cls" not in got
    own: dict[str, Callable[..., Any]] = {**DECODERS, "cls": lambda data, name, limits: int(data)}
    assert decode_members({"cls": b"7"}, "s/0", decoders=own) == {"cls": 7}
    # Not even an own decoder brings pickle back.
    with pytest.raises(InputError, match="never read"):
        decode_members({"pkl": b""}, "s/0", decoders={**own, "pkl": lambda data, name, limits: data})


class Rendered:
    """A source of exactly known views."""

    name = "rendered"

    def __len__(self) -> int:
        return 10

    def key(self, index: int) -> str:
        return str(index)

    def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
        n, (h, w) = request.views, request.size
        K = torch.tensor([[w, 0, w / 2], [0, w, h / 2], [0, 0, 1.0]]).repeat(1, n, 1, 1)
        pose = torch.eye(4).repeat(1, n, 1, 1)
        pose[0, :, 0, 3] = 0.3 * torch.arange(n)
        images = torch.randint(0, 256, (1, n, 3, h, w), generator=torch.Generator().manual_seed(index)) / 255
        known = torch.ones(1, n, dtype=torch.bool)
        depth = torch.full((1, n, h, w), 2.0 + index)
        names = (tuple(f"v{i}" for i in range(n)),)
        return Batch(
            images, K, known, pose, known, depth, depth > 0, metric=torch.tensor([True]), names=names
        )


def test_prerendered_samples_train_like_fresh_ones(tmp_path: Path) -> None:
    request = ViewRequest(6, (8, 12), grouping=Grouping(shuffled=False))
    assert prerender(Rendered(), request, 10, tmp_path, per_shard=4) == 3
    source = ShardSource("pool", ShardSet(tmp_path))
    assert len(source) == 10
    whole = source.sample(7, request, 0)
    fresh = Rendered().sample(7, request, 0)
    for name in ("images", "K", "has_K", "world_from_cam", "has_pose", "depth", "depth_valid", "metric"):
        assert torch.equal(getattr(whole, name), getattr(fresh, name)), name
    assert whole.names == fresh.names
    some = source.sample(7, ViewRequest(3, (8, 12), frozenset({"depth", "pose", "K"})), 5)
    order = [int(n[1:]) for n in some.names[0]]
    assert torch.equal(some.images, fresh.images[:, order])
    near = source.sample(2, ViewRequest(2, (8, 12), grouping=Grouping("covisible", overlap=(0.9, 0.95))), 1)
    assert abs(int(near.names[0][0][1:]) - int(near.names[0][1][1:])) == 1  # 0.3 of 4 m apart at depth 4
    small = source.sample(7, ViewRequest(6, (4, 4), grouping=Grouping(shuffled=False)), 0)
    assert small.images.shape == (1, 6, 3, 4, 4)
    assert small.K is not None and small.K[0, 0].tolist() == [[6, 0, 2], [0, 6, 2], [0, 0, 1]]
    stream = BatchStream(Mixture([source]), StreamConfig(views=(2, 3), scenes=5, sizes=((8, 12),)), seed=1)
    seen = [n for p in range(2) for n in sample_names(stream.batch(p))]
    assert sorted(seen) == sorted(f"pool/{source.key(i)}" for i in range(10))


def test_pictures_with_cameras_are_a_sample(tmp_path: Path) -> None:
    from PIL import Image
    from safetensors.torch import save

    def picture(value: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (12, 8), (value, value, value)).save(stream, "PNG")
        return stream.getvalue()

    depth = io.BytesIO()
    np.save(depth, np.full((8, 12), 3.0, np.float32))
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[1, 0, 3] = 1.0
    K = torch.tensor([[12.0, 0, 6], [0, 12, 4], [0, 0, 1]]).repeat(2, 1, 1)
    path = foreign(
        tmp_path / "s.tar",
        [
            ("a.000.png", picture(51)), ("a.001.png", picture(102)), ("a.000.depth.npy", depth.getvalue()),
            ("a.views.safetensors", save({"K": K, "world_from_cam": pose})), ("b.txt", b"no picture"),
        ],
    )  # fmt: skip
    source = ShardSource("s", ShardSet(path))
    batch = source.sample(0, ViewRequest(2, (8, 12), frozenset({"K", "pose"}), Grouping(shuffled=False)), 0)
    assert batch.images[0, :, 0, 0, 0].tolist() == pytest.approx([0.2, 0.4])
    assert batch.depth is not None and batch.depth[0, 0, 0, 0] == 3 and batch.depth[0, 1, 0, 0] == 0
    assert batch.world_from_cam is not None and batch.world_from_cam[0, 1, 0, 3] == 1
    with pytest.raises(InputError, match="holds no picture"):
        source.sample(1, ViewRequest(1, (8, 12)), 0)


def test_stacks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load, save

    members = encode_sample(Rendered().sample(0, ViewRequest(3, (8, 12)), 0))
    tensors = load(members["views.safetensors"])
    spoiled = {
        "does not fit 3 pictures": {**tensors, "K": tensors["K"][:2]},
        "no stack of pictures": {**tensors, "images": tensors["images"].float()},
        "holds only one of depth and depth_valid": {k: v for k, v in tensors.items() if k != "depth_valid"},
        "numbers in depth that are not finite": {**tensors, "depth": tensors["depth"] * torch.nan},
    }
    for number, (message, bad) in enumerate(spoiled.items()):
        path = foreign(tmp_path / f"{number}.tar", [("x.views.safetensors", save(bad))])
        with pytest.raises(InputError, match=message):
            ShardSource("s", ShardSet(path)).sample(0, ViewRequest(3, (8, 12)), 0)


def test_keys_that_would_be_lost_or_read_otherwise_are_refused(tmp_path: Path) -> None:
    for number, key in enumerate(("__x", "a/", "a//b", "/a", "a.b", "a/../b", "", "x" * 81)):
        with pytest.raises(InputError, match="is no sample"):
            write_shards(tmp_path / str(number), 1, lambda i, key=key: (key, {"txt": b"1"}))
    deep = "/".join("abcdefghijklmnopqrstuvwxyzabcdefghijkl")  # deeper than what is read
    for number, keys in enumerate((("x", "X"), (deep, deep + "b"))):
        folder = tmp_path / f"pair{number}"
        with pytest.raises(InputError, match="would not be readable"):
            write_shards(folder, 2, lambda i, keys=keys: (keys[i], {"txt": b"1"}))
        assert [p.name for p in folder.iterdir()] == ["plan.json"]
    write_shards(tmp_path / "fine", 2, lambda i: (("a/b_c-1", "a/__d")[i], {"txt": b"1"}))
    shards = ShardSet(tmp_path / "fine")
    assert [shards.key(i) for i in range(2)] == ["shard-000000/a/b_c-1", "shard-000000/a/__d"]


NAMED = [
    ("__abc.jpg", ("__abc", "jpg")),  # two lines in front are no note
    ("__note__", None),
    ("__dir__/q.jpg", None),
    ("a.b/c.d.jpg", ("a.b/c", "d.jpg")),  # dots in folders belong to the key
    ("d/x.cam.0.json", ("d/x", "cam.0.json")),
    ("nodot", None),
    (".hidden", None),
    ("s.JPG", ("s", "JPG")),
]
"""Names and how WebDataset's own reader takes them: key and extension (which it turns to small letters)."""


def test_names_are_taken_as_by_webdataset(tmp_path: Path) -> None:
    path = foreign(tmp_path / "n.tar", [(name, b"1") for name, _ in NAMED])
    shards = ShardSet(path)
    found = [(shards.key(i).removeprefix("n/"), *shards.read(i)) for i in range(len(shards))]
    assert found == [taken for _, taken in NAMED if taken]


def test_webdataset_and_this_package_read_each_other(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    path = foreign(tmp_path / "n.tar", [(name, b"1") for name, _ in NAMED])
    theirs = [
        (s["__key__"], k) for s in wds.WebDataset(str(path), shardshuffle=False) for k in s if k[0] != "_"
    ]
    assert theirs == [(key, ext.lower()) for _, taken in NAMED if taken for key, ext in [taken]]
    write_shards(tmp_path / "ours", 5, make, per_shard=5)
    for i, s in enumerate(wds.WebDataset(str(tmp_path / "ours" / shard_name(0)), shardshuffle=False)):
        assert s["__key__"] == make(i)[0] and {k: s[k] for k in s if k[0] != "_"} == make(i)[1]
    with wds.TarWriter(str(tmp_path / "t.tar")) as packed:
        for i in range(3):
            packed.write(
                {"__key__": f"d.v1/s{i}", "jpg": np.full((4, 4, 3), 51, np.uint8), "meta.json": {"a": i}}
            )
    source = ShardSource("t", ShardSet(tmp_path / "t.tar"))
    assert source.key(2) == "t/d.v1/s2"
    image = source.sample(1, ViewRequest(1, (4, 4)), 0).images
    assert image.shape == (1, 1, 3, 4, 4) and float(image.mean()) == pytest.approx(0.2, abs=0.02)
    assert json.loads(source.shards.read(2)["meta.json"]) == {"a": 2}


def test_archives_of_a_folder_itself_are_read(tmp_path: Path) -> None:
    """``tar -cf x.tar .`` begins with the folder "./" and puts it before every name."""
    path = tmp_path / "x.tar"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(b"1")
    with tarfile.open(path, "w") as packed:
        packed.add(tmp_path / "in", "./", recursive=False)
        packed.add(tmp_path / "in" / "a.txt", "./a.txt")
    assert ShardSet(path).key(0) == "x/a"


def test_pools_of_two_recipes_are_never_mixed(tmp_path: Path) -> None:
    from relief3d.worlds.tabletop import TabletopConfig
    from relief3d.worlds.training import TabletopSource

    request = ViewRequest(2, (8, 8))
    prerender(TabletopSource(), request, 2, tmp_path, per_shard=1)
    assert prerender(TabletopSource(), request, 2, tmp_path, per_shard=1) == 0
    for other, asked in (
        (TabletopSource(config=TabletopConfig(boxes=1)), request),
        (TabletopSource(seed=1), request),
        (TabletopSource(pool=9), request),
        (TabletopSource(), ViewRequest(2, (8, 8), frozenset({"depth"}))),
        (TabletopSource(), ViewRequest(2, (8, 9))),
    ):
        with pytest.raises(InputError, match="shards of another plan"):
            prerender(other, asked, 2, tmp_path, per_shard=1)


def test_cameras_that_are_not_known_overlap_with_nothing(tmp_path: Path) -> None:
    sample = Rendered().sample(0, ViewRequest(5, (8, 12)), 0)
    known = torch.tensor([[True, True, False, True, True]])
    for keep_depth in (True, False):
        pose = torch.where(known[..., None, None], sample.world_from_cam, torch.eye(4))
        partly = dataclasses.replace(sample, has_pose=known, world_from_cam=pose)
        if not keep_depth:
            partly = dataclasses.replace(partly, depth=None, depth_valid=None)
        path = foreign(
            tmp_path / f"{keep_depth}.tar", [(f"x.{k}", v) for k, v in encode_sample(partly).items()]
        )
        source = ShardSource("s", ShardSet(path))
        wanted = ViewRequest(4, (8, 12), grouping=Grouping("covisible", overlap=(0.1, 1.0)))
        for seed in range(10):
            assert sorted(source.sample(0, wanted, seed).names[0]) == ["v0", "v1", "v3", "v4"]


def test_only_numbered_pictures_are_views_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    from PIL import Image

    def picture(value: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), (value, value, value)).save(stream, "PNG")
        return stream.getvalue()

    members = [
        ("a.10.png", picture(255)),
        ("a.9.png", picture(51)),
        ("a.9.seg.png", picture(0)),
        ("a.seg.png", picture(0)),
    ]
    source = ShardSource("s", ShardSet(foreign(tmp_path / "s.tar", members)))
    batch = source.sample(0, ViewRequest(2, (4, 4), grouping=Grouping(shuffled=False)), 0)
    assert batch.names == (("9.png", "10.png"),)
    assert batch.images[0, :, 0, 0, 0].tolist() == pytest.approx([0.2, 1.0])
    with pytest.raises(InputError, match="has 2 views, 3 are wanted"):
        source.sample(0, ViewRequest(3, (4, 4)), 0)


def test_stored_pictures_are_rounded_not_cut() -> None:
    from safetensors.torch import load

    images = torch.tensor([51.9, 52.4, 255.0]).view(1, 3, 1, 1, 1).expand(1, 3, 3, 2, 2) / 255
    batch = Batch(images, names=(("a", "b", "c"),))
    assert load(encode_sample(batch)["views.safetensors"])["images"][:, 0, 0, 0].tolist() == [52, 52, 255]
