from __future__ import annotations

import gzip
import io
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from relief3d.core.errors import InputError
from relief3d.io.archive import ArchiveLimits, extract_archive

FILES = {
    "images/a.jpg": b"\xff\xd8picture",
    "images/deep/b.txt": b"hello",
    "empty.txt": b"",
    "naïve/ü.txt": b"x",
}


def tar(path: Path, mode: str, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, mode) as out:  # type: ignore[call-overload]
        for info, data in members:
            out.addfile(info, io.BytesIO(data))
    return path


def info(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    return member


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz", "w:bz2", "w:xz"])
def test_good_archives(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "archive"
    if kind == "zip":
        zipped(path, FILES)
    else:
        folder = info("images", kind=tarfile.DIRTYPE)
        tar(path, kind, [(folder, b""), *((info(name, data), data) for name, data in FILES.items())])
    target = extract_archive(path, tmp_path / "out")
    assert contents(target) == FILES
    with pytest.raises(InputError, match="exists"):
        extract_archive(path, target)
    (target / "old.txt").write_text("old")
    assert contents(extract_archive(path, target, overwrite=True)) == FILES


def zip_symlink(path: Path) -> Path:
    link = zipfile.ZipInfo("link")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(link, "/etc/passwd")
    return path


def zip_pairs(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name in names:
            out.writestr(name, b"x")
    return path


def zip_bad_checksum(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("a.txt", b"A" * 100)
    data = bytearray(path.read_bytes())
    data[data.index(b"AAAA") + 5] = 66
    path.write_bytes(bytes(data))
    return path


def zip_renamed(path: Path, stored: str, real: str) -> Path:
    """A name that the zipfile module would not write."""
    assert len(stored) == len(real)
    zip_pairs(path, [stored])
    path.write_bytes(path.read_bytes().replace(stored.encode(), real.encode()))
    return path


def zip_false_size(path: Path) -> Path:
    zipped(path, {"a.txt": b"0" * 5000})
    data = path.read_bytes()
    path.write_bytes(data.replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    return path


def zip_false_offset(path: Path) -> Path:
    zipped(path, {"a.txt": b"A" * 100})
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    data[end + 16 : end + 20] = (int.from_bytes(data[end + 16 : end + 20], "little") + 900).to_bytes(
        4, "little"
    )
    path.write_bytes(bytes(data))
    return path


def tar_damaged_header(path: Path) -> Path:
    tar(path, "w", [(info("a.txt", b"x" * 600), b"x" * 600), (info("b.txt", b"y"), b"y")])
    data = bytearray(path.read_bytes())
    data[512 + 1024 + 150] ^= 0xFF  # inside the checksum of the second header
    path.write_bytes(bytes(data))
    return path


def tar_cut(path: Path) -> Path:
    tar(path, "w", [(info("a.txt", b"x" * 6000), b"x" * 6000)])
    path.write_bytes(path.read_bytes()[:3000])
    return path


def tar_huge_header(path: Path) -> Path:
    header = info("././@LongLink", kind=tarfile.GNUTYPE_LONGNAME)
    header.size = 2**33
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"a" * 4096)
    return path


def tar_huge_member(path: Path) -> Path:
    member = info("a.bin")
    member.size = 2**40
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"a" * 4096)
    return path


def gzip_bomb(path: Path) -> Path:
    with gzip.open(path, "wb", compresslevel=9) as out:
        member = info("zeros.bin")
        member.size = 256 * 1024**2
        out.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(32):
            out.write(bytes(1024**2))
    return path


def one(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[Path], Path]:
    data = b"evil" if kind == tarfile.REGTYPE else b""
    return lambda path: tar(path, "w", [(info("good.txt", b"1"), b"1"), (info(name, data, kind, link), data)])


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "tar parent": one("../evil.txt"),
    "tar parent inside": one("a/../../evil.txt"),
    "tar absolute": one("/relief3d_evil.txt"),
    "tar drive": one("C:/evil.txt"),
    "tar backslash": one("..\\evil.txt"),
    "tar newline": one("a\nb.txt"),
    "tar symlink": one("link", tarfile.SYMTYPE, "/etc/passwd"),
    "tar symlink inside": one("link", tarfile.SYMTYPE, "good.txt"),
    "tar hard link": one("link", tarfile.LNKTYPE, "good.txt"),
    "tar device": one("null", tarfile.CHRTYPE),
    "tar block device": one("disk", tarfile.BLKTYPE),
    "tar fifo": one("pipe", tarfile.FIFOTYPE),
    "tar sparse": one("sparse", tarfile.GNUTYPE_SPARSE),
    "tar duplicate": one("good.txt"),
    "tar case clash": one("GOOD.txt"),
    "tar file as folder": one("good.txt/evil.txt"),
    "tar deep": one("/".join(["d"] * 300) + "/x"),
    "tar long": one("x" * 2000),
    "tar huge header": tar_huge_header,
    "tar huge member": tar_huge_member,
    "tar damaged header": tar_damaged_header,
    "tar cut": tar_cut,
    "tar.gz bomb": gzip_bomb,
    "zip parent": lambda p: zip_pairs(p, ["../evil.txt"]),
    "zip absolute": lambda p: zip_pairs(p, ["/relief3d_evil.txt"]),
    "zip drive": lambda p: zip_pairs(p, ["C:evil.txt"]),
    "zip backslash": lambda p: zip_renamed(p, "..|evil.txt", "..\\evil.txt"),
    "zip nul": lambda p: zip_renamed(p, "good.txt|evil", "good.txt\0evil"),
    "zip case clash": lambda p: zip_pairs(p, ["a.txt", "A.txt"]),
    "zip file and folder": lambda p: zip_pairs(p, ["a", "a/b"]),
    "zip symlink": zip_symlink,
    "zip bad checksum": zip_bad_checksum,
    "zip false size": zip_false_size,
    "zip false offset": zip_false_offset,
    "zip bomb": lambda p: zipped(p, {"zeros": bytes(64 * 1024**2)}),
    "zip cut": lambda p: zipped(p, FILES).write_bytes(p.read_bytes()[:150]) and p,
    "zip empty": lambda p: zipped(p, {}),
    "no archive": lambda p: p.write_bytes(b"just some text " * 100) and p,
    "zero bytes": lambda p: p.write_bytes(b"") or p,
}


@pytest.mark.timeout(20)
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_write_nothing(tmp_path: Path, case: str) -> None:
    room = tmp_path / "room"
    room.mkdir()
    path = HOSTILE[case](room / "archive")
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        extract_archive(path, room / "out")
    assert time.monotonic() - began < 2
    assert caught.value.path == path
    assert [p.name for p in room.iterdir()] == ["archive"] and [p.name for p in tmp_path.iterdir()] == [
        "room"
    ]
    assert not Path("/relief3d_evil.txt").exists()


def test_limits(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {f"{i}.txt": b"12345" for i in range(10)})
    for limits in (ArchiveLimits(members=9), ArchiveLimits(total_bytes=49), ArchiveLimits(path_length=4)):
        with pytest.raises(InputError):
            extract_archive(path, tmp_path / "out", limits=limits)
    assert len(contents(extract_archive(path, tmp_path / "out", limits=ArchiveLimits(members=10)))) == 10


def test_archives_inside_stay_packed(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", FILES).read_bytes()
    path = zipped(tmp_path / "outer.zip", {"inner.zip": inner})
    assert contents(extract_archive(path, tmp_path / "out")) == {"inner.zip": inner}
