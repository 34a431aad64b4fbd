"""Files with random damage are read or refused with the file's name; nothing else may happen."""

from __future__ import annotations

import io
import os
import random
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.corpora.known_scene import known_scene, textured_mesh

from relief3d.core.errors import InputError
from relief3d.io.archive import extract_archive
from relief3d.io.cameras_json import read_cameras_json, write_cameras_json
from relief3d.io.colmap import read_colmap_model, write_colmap_model
from relief3d.io.glb import read_glb, write_glb
from relief3d.io.ply import read_ply, write_ply
from relief3d.io.scene_json import read_scene_json, write_scene_json
from relief3d.io.splat import read_splat_ply, write_splat_ply
from relief3d.io.trajectories import read_kitti, read_tum, scene_trajectory, write_kitti, write_tum
from relief3d.io.transforms_json import read_transforms_json, write_transforms_json

STRESS = pytest.param(
    1000,
    marks=[
        pytest.mark.stress,
        pytest.mark.timeout(1800),
        pytest.mark.skipif(not os.environ.get("RELIEF3D_STRESS"), reason="full counts run in 'make stress'"),
    ],
)
TOKENS = (b"nan", b"-1", b"1e999", b"99999999999999999999", b"", b"null", b"{}", b'"x"', b"\xff" * 8, b"[]")


def damage(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    kind = chance.randrange(4)
    at = chance.randrange(len(out))
    if kind == 0:
        return bytes(out[:at])
    if kind == 1:
        for _ in range(chance.randrange(1, 6)):
            out[chance.randrange(len(out))] = chance.randrange(256)
    elif kind == 2:
        out[at:at] = chance.randbytes(chance.randrange(1, 9))
    else:
        out[at : at + chance.randrange(1, 40)] = chance.choice(TOKENS)
    return bytes(out)


def unpack(path: Path) -> Any:
    return extract_archive(path, path.parent / "out", overwrite=True)


def archives(folder: Path) -> list[Path]:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/b.txt", b"hello" * 50)
        packed.writestr("c.txt", b"x")
    for mode, suffix in (("w", "tar"), ("w:gz", "tgz"), ("w:xz", "txz"), ("w:bz2", "tbz")):
        with tarfile.open(folder / f"a.{suffix}", mode) as out:  # type: ignore[call-overload]
            for name, size in (("a/b.txt", 50), ("c" * 150, 5)):
                member = tarfile.TarInfo(name)
                member.size = size
                out.addfile(member, io.BytesIO(b"h" * size))
    return sorted(folder.glob("a.*"))


def good_files(folder: Path) -> list[tuple[Path, Callable[[Path], Any]]]:
    scene = known_scene(count=6)
    assert scene.points is not None and scene.mesh is not None
    write_colmap_model(scene, folder / "bin")
    write_colmap_model(scene, folder / "txt", binary=False)
    path = scene_trajectory(scene)
    return [
        *(
            (p, lambda p: read_colmap_model(p.parent))
            for end in ("bin", "txt")
            for p in (folder / end).iterdir()
        ),
        (write_cameras_json(scene, folder), lambda p: read_cameras_json(p, require_images=False)),
        (write_transforms_json(scene, folder), lambda p: read_transforms_json(p, require_images=False)),
        (write_scene_json(folder, scene), read_scene_json),
        (write_tum(folder / "tum.txt", path), read_tum),
        (write_kitti(folder / "kitti.txt", path), read_kitti),
        (write_splat_ply(folder / "splats.ply", scene.points), read_splat_ply),
        (write_glb(folder / "mesh.glb", textured_mesh(), texture_format="png"), read_glb),
        (write_ply(folder / "mesh.ply", scene.mesh), read_ply),
        (write_ply(folder / "ascii.ply", scene.mesh, format="ascii"), read_ply),
        *((p, unpack) for p in archives(folder)),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rounds", [10, STRESS])
def test_random_damage(tmp_path: Path, rounds: int) -> None:
    chance = random.Random(20)
    refused = 0
    files = good_files(tmp_path)
    for path, reader in files:
        good = path.read_bytes()
        reader(path)
        for _ in range(rounds):
            path.write_bytes(damage(good, chance))
            began = time.monotonic()
            try:
                reader(path)
            except InputError as exc:
                refused += 1
                assert exc.path is not None and exc.path.is_relative_to(tmp_path), str(exc)
            assert time.monotonic() - began < 5, path.name
        path.write_bytes(good)
    print(f"{len(files) * rounds} damaged files of {len(files)} kinds: {refused} refused, the others read")
    assert refused > len(files) * rounds // 2


@pytest.mark.shared
def test_real_sets_read(shared_data: Path) -> None:
    sets = sorted(path.parent for path in shared_data.glob("*/cameras.json"))
    assert sets
    for folder in sets:
        view = read_cameras_json(folder).views[0]
        assert view.load_image().shape == (3, view.camera.height, view.camera.width), folder.name
        depth, mask = view.load_depth(), view.load_mask()
        assert depth is None or bool(depth.valid.any())
        assert mask is None or bool(mask.any())
