"""Samples in numbered TAR files with WebDataset's naming, read one by one through an offset table.

Members of a sample follow each other and are called ``key.extension``; the key ends at the first dot of the file name.
Beside ``shard-000000.tar`` lies ``shard-000000.index.json`` with the shard's size, SHA-256, and place of every member;
``index.json`` lists the shards once all are there. Shards of others have no index and are looked through once.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from relief3d.core.errors import InputError
from relief3d.data.shard_decoders import ShardLimits
from relief3d.io.archive import ArchiveLimits, list_tar
from relief3d.io.atomic import atomic_path, remove_leftovers
from relief3d.io.formats import check_regular_file
from relief3d.io.json_file import Record, read_json_object, to_jsonable, write_json

PLAN, INDEX = "plan.json", "index.json"
FORMAT = 1
_KEY = re.compile(r"(?!__)[A-Za-z0-9_][A-Za-z0-9_-]*(/[A-Za-z0-9_][A-Za-z0-9_-]*)*")
_NOTE = re.compile(r"__[^/]*__($|/)")
"""Names that WebDataset's own reader passes over: notes about the shard."""
_EXTENSION = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
Members = Mapping[str, bytes]
Place = tuple[int, int]


@dataclass(frozen=True)
class Stored:
    """Where a sample is: key and, by extension, offset and size in its shard."""

    key: str
    members: Mapping[str, Place]


@dataclass(frozen=True)
class ShardIndex:
    """What is in a shard.

    Attributes:
        path: of the TAR.
        size: of it in bytes.
        sha256: of it; empty when nobody wrote it down.
        samples: in order.
    """

    path: Path
    size: int
    sha256: str
    samples: tuple[Stored, ...]


def shard_name(number: int) -> str:
    """File name of a shard: ``shard-000000.tar``."""
    return f"shard-{number:06d}.tar"


def index_path(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_suffix(".index.json")


def write_shards(
    folder: str | Path,
    count: int,
    make: Callable[[int], tuple[str, Members]],
    *,
    per_shard: int = 256,
    recipe: Mapping[str, Any] | None = None,
    part: int = 0,
    parts: int = 1,
) -> int:
    """Write samples 0 ... count - 1; a run that was killed is continued and ends with the same bytes.

    A shard appears only when it is complete. Several processes may write at once, each its own ``part``.

    Args:
        folder: created when it does not exist.
        count: samples in all.
        make: key and members (bytes by extension) of a sample; a function of its number alone.
        per_shard: samples per shard.
        recipe: facts about how the samples are made (JSON types), kept in ``plan.json``; a run with other facts is
            refused.
        part: this process writes shards ``part``, ``part + parts``, ...
        parts: number of processes.

    Returns:
        Number of shards that were written now; the rest were there already.

    Raises:
        InputError: the folder holds shards of another plan; two samples of a shard have one key; the disk is full.
    """
    folder = Path(folder)
    if count < 1 or per_shard < 1 or not 0 <= part < parts:
        raise InputError(f"{count} samples, {per_shard} per shard, part {part} of {parts} make no plan")
    plan = {"format": FORMAT, "count": count, "per_shard": per_shard, "recipe": to_jsonable(recipe or {})}
    folder.mkdir(parents=True, exist_ok=True)
    if parts == 1:
        remove_leftovers(folder)
    if not (folder / PLAN).is_file():
        write_json(folder / PLAN, plan)
    elif read_json_object(folder / PLAN) != plan:
        raise InputError(
            "belongs to shards of another plan",
            path=folder / PLAN,
            remedy="use another folder or delete this one",
        )
    shards = [folder / shard_name(n) for n in range(-(-count // per_shard))]
    written = 0
    for number, path in list(enumerate(shards))[part::parts]:
        if not path.is_file():
            first = number * per_shard
            _write_shard(path, [make(i) for i in range(first, min(first + per_shard, count))])
            written += 1
        if not index_path(path).is_file():
            _write_index(path)
    if all(index_path(path).is_file() for path in shards):
        _write_list(folder, shards)
    return written


def _write_shard(path: Path, samples: Sequence[tuple[str, Members]]) -> None:
    keys = [key for key, _ in samples]
    if len(set(keys)) != len(keys):
        raise InputError("two samples have the same key", path=path)
    with atomic_path(path) as temporary:
        with (
            temporary.open("wb") as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as packed,
        ):
            for key, members in samples:
                _pack(packed, path, key, members)
        try:
            found = [sample.key for sample in scan_shard(temporary).samples]
        except InputError as exc:
            raise InputError(f"would not be readable: {exc.message}", path=path) from exc
        if found != keys:
            raise InputError(f"keys such as '{keys[0]}' would be read as {found[:1]}", path=path)


def _pack(packed: tarfile.TarFile, path: Path, key: str, members: Members) -> None:
    if not _KEY.fullmatch(key) or len(key) > 80 or not members:
        raise InputError(f"'{key}' with {len(members)} members is no sample", path=path)
    for extension in sorted(members):
        if not _EXTENSION.fullmatch(extension) or len(extension) > 60:
            raise InputError(f"'{extension}' is no extension", path=path)
        # All that could differ between machines and moments stays 0.
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size, info.mode = len(members[extension]), 0o644
        packed.addfile(info, io.BytesIO(members[extension]))


def _write_index(path: Path) -> None:
    found = scan_shard(path)
    write_json(
        index_path(path),
        {
            "format": FORMAT,
            "shard": path.name,
            "bytes": found.size,
            "sha256": _digest(path),
            "samples": [
                {"key": s.key, "members": {e: list(place) for e, place in s.members.items()}}
                for s in found.samples
            ],
        },
    )


def _write_list(folder: Path, shards: Sequence[Path]) -> None:
    rows = []
    for path in shards:
        entry = read_json_object(index_path(path))
        rows.append(
            {
                "shard": path.name,
                "bytes": entry["bytes"],
                "sha256": entry["sha256"],
                "samples": len(entry["samples"]),
            }
        )
    write_json(folder / INDEX, {"format": FORMAT, "samples": sum(r["samples"] for r in rows), "shards": rows})


def scan_shard(path: str | Path, limits: ShardLimits | None = None) -> ShardIndex:
    """Find the samples of a shard by looking through it.

    Raises:
        InputError: the shard is compressed, damaged, holds links or names that lead elsewhere, or is above a limit.
    """
    path, limits = Path(path), limits or ShardLimits()
    rows: list[tuple[str, dict[str, Place]]] = []
    for member in list_tar(path, limits=ArchiveLimits(members=limits.members, total_bytes=1 << 42)):
        if member.size > limits.member_bytes:
            raise InputError(f"the member '{member.name[:80]}' has {member.size} bytes", path=path)
        place = PurePosixPath(member.name)
        stem, _, extension = place.name.partition(".")
        key = (place.parent / stem).as_posix()
        if _NOTE.match(place.as_posix()) or not stem or not extension:
            continue  # notes, and files without a key or an extension
        if not rows or rows[-1][0] != key:
            rows.append((key, {}))
        rows[-1][1][extension] = (member.offset, member.size)
    keys = [key for key, _ in rows]
    if len(set(keys)) != len(keys):
        raise InputError(
            "members of one sample do not follow each other", path=path, remedy="sort the archive"
        )
    return ShardIndex(path, path.stat().st_size, "", tuple(Stored(key, members) for key, members in rows))


def read_index(path: str | Path) -> ShardIndex:
    """The index that was written with a shard.

    Raises:
        InputError: the index is damaged, or belongs to a shard of another size.
    """
    path = Path(path)
    file = index_path(path)
    record = Record(read_json_object(file), file)
    size = check_regular_file(path, max_bytes=1 << 42).stat().st_size
    if record.integer("format") != FORMAT or record.integer("bytes") != size:
        raise record.error(
            f"does not belong to {path.name} as it is now", "copy the shard and its index again"
        )
    samples = []
    for entry in record.objects("samples"):
        key, members = entry.get("key"), entry.get("members")
        if not isinstance(key, str) or not isinstance(members, dict) or not members:
            raise record.error("holds a sample without key or members")
        places = {}
        for extension, place in members.items():
            good = (
                isinstance(place, list) and len(place) == 2 and all(type(n) is int and n >= 0 for n in place)
            )
            if not good or place[0] + place[1] > size:
                raise record.error(f"names a place outside the shard for '{key[:80]}.{extension[:40]}'")
            places[extension] = (place[0], place[1])
        samples.append(Stored(key, places))
    return ShardIndex(path, size, record.text("sha256") or "", tuple(samples))


def verify_shards(folder: str | Path) -> int:
    """Compare every shard with its index, byte for byte, and every index with ``index.json``; number of samples.

    Raises:
        InputError: naming the first file that does not agree.
    """
    folder, total = Path(folder), 0
    listed = Record(read_json_object(folder / INDEX), folder / INDEX)
    for entry in listed.objects("shards"):
        path = folder / str(entry.get("shard"))
        index, found = read_index(path), scan_shard(path)
        if index.samples != found.samples:
            raise InputError("does not agree with its index", path=path, remedy="delete the index")
        if not _digest(path) == index.sha256 == entry.get("sha256") or entry.get("bytes") != found.size:
            raise InputError("was changed or damaged", path=path, remedy="copy it again")
        total += len(found.samples)
    if total != listed.integer("samples"):
        raise listed.error(f"promises other than the {total} samples that are there")
    return total


class ShardSet:
    """Samples of several shards by number.

    Args:
        path: a folder of shards, or one TAR file, or a list of them. Of a folder that is still being written the
            complete shards are used.
        limits: of sizes.

    Raises:
        InputError: nothing there, or a shard or index cannot be read.
    """

    def __init__(self, path: str | Path | Sequence[str | Path], limits: ShardLimits | None = None) -> None:
        self.limits = limits or ShardLimits()
        if isinstance(path, str | Path):
            place = Path(path)
            files = _tar_files(place) if place.is_dir() else [place]
            if not files:
                raise InputError("holds no TAR files", path=place, remedy="give a folder of shards")
        else:
            files = [Path(p) for p in path]
        self.shards = [
            read_index(f) if index_path(f).is_file() else scan_shard(f, self.limits) for f in files
        ]
        self.ends: list[int] = []
        for shard in self.shards:
            self.ends.append((self.ends[-1] if self.ends else 0) + len(shard.samples))
        if not self.ends or self.ends[-1] == 0:
            raise InputError("the shards hold no samples", path=files[0] if files else None)

    def __len__(self) -> int:
        return self.ends[-1]

    def _find(self, index: int) -> tuple[ShardIndex, Stored]:
        if not 0 <= index < len(self):
            raise InputError(f"there is no sample {index} of {len(self)}")
        shard = bisect.bisect_right(self.ends, index)
        return self.shards[shard], self.shards[shard].samples[index - self.ends[shard]]

    def key(self, index: int) -> str:
        """``shard/key`` of a sample."""
        shard, sample = self._find(index)
        return f"{shard.path.stem}/{sample.key}"

    def read(self, index: int) -> dict[str, bytes]:
        """Bytes of the members of a sample by extension.

        Raises:
            InputError: above a limit, or the shard is gone or cut short.
        """
        shard, sample = self._find(index)
        if sum(size for _, size in sample.members.values()) > self.limits.sample_bytes:
            raise InputError(f"the sample '{sample.key}' is above the limit of bytes", path=shard.path)
        out = {}
        try:
            with shard.path.open("rb") as stream:
                for extension, (offset, size) in sample.members.items():
                    stream.seek(offset)
                    out[extension] = stream.read(size)
                    if len(out[extension]) != size:
                        raise InputError(
                            f"is cut short at '{sample.key}'", path=shard.path, remedy="copy it again"
                        )
        except OSError as exc:
            raise InputError(f"cannot be read ({exc.strerror})", path=shard.path) from exc
        return out


def _tar_files(folder: Path) -> list[Path]:
    """Complete TAR files of a folder; those of a running writer begin with a dot."""
    return sorted(p for p in folder.glob("*.tar") if not p.name.startswith("."))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
