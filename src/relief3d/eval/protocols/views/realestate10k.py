"""RealEstate10K camera accuracy, 10 random frames per sequence: SelfEvo Table 2 (specification multiview.md 6.2)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, numpy_generator
from relief3d.data.readers.realestate10k import (
    CameraFile,
    camera_rows,
    frame_picture,
    picture_folder,
    read_camera_file,
)
from relief3d.eval.protocols.base import Protocol
from relief3d.eval.protocols.views.camera_rules import (
    CameraProtocol,
    CameraSequence,
    CameraTwin,
    read_pictures,
)
from relief3d.eval.protocols.views.sequence_files import without_file
from relief3d.eval.published import selfevo
from relief3d.io.json_file import read_json_object
from relief3d.io.names import natural_key

SEED = 42
VIEWS = 10
INDEX_FILE = "Re10K_relpose_seq-id-map_seed42.json"
CAMERA_FOLDERS = ("metadata/test", "test", "")


def read_realestate10k(root: Path) -> list[CameraSequence]:
    """Test sequences whose pictures are there; see the protocol's layout.

    Raises:
        InputError: no camera files or no pictures, or a sequence of the index file is missing.
    """
    folder = next((root / f for f in CAMERA_FOLDERS if any((root / f).glob("*.txt"))), None)
    if folder is None:
        raise InputError(
            f"does not look like RealEstate10K: no camera files in {', '.join(f or '.' for f in CAMERA_FOLDERS)}",
            path=root,
            remedy="unpack RealEstate10K.tar.gz there",
        )
    chosen = _read_index(root / INDEX_FILE)
    names = (
        sorted((p.stem for p in folder.glob("*.txt")), key=natural_key) if chosen is None else list(chosen)
    )
    found = {name: pictures for name in names if (pictures := picture_folder(root, name)) is not None}
    if chosen is not None and len(found) < len(names):
        first = next(name for name in names if name not in found)
        raise InputError(
            f"{len(names) - len(found)} of {len(names)} sequences of {INDEX_FILE} have no pictures, such as {first}",
            path=root,
            remedy="complete them, or take the sequences that can no longer be had out of a copy of the file",
        )
    if not found:
        raise InputError(
            "no sequence has pictures",
            path=root,
            remedy="extract the frames to SEQUENCE/images/0000.png, ...",
        )
    cached = functools.lru_cache(maxsize=4)(read_camera_file)
    return [
        _sequence(name, folder / f"{name}.txt", pictures, None if chosen is None else chosen[name], cached)
        for name, pictures in found.items()
    ]


def _sequence(
    name: str,
    file: Path,
    pictures: Path,
    chosen: tuple[int, ...] | None,
    read: Callable[[Path], CameraFile],
) -> CameraSequence:
    times = [words[0] for words in camera_rows(file)]

    def picture(index: int) -> Path:
        path = frame_picture(pictures, index, times[index])
        if path is not None:
            return path
        raise InputError(f"frame {index} (time {times[index]}) is missing", path=pictures)

    return CameraSequence(
        name,
        [f"{i:04d}.png" for i in range(len(times))],
        pictures=lambda frames: read_pictures([picture(i) for i in frames]),
        world_from_cam=lambda frames: read(file).world_from_cam(frames),
        chosen=chosen,
    )


def _read_index(path: Path) -> dict[str, tuple[int, ...]] | None:
    if not path.is_file():
        return None
    out = {}
    for name, entries in read_json_object(path).items():
        if not isinstance(entries, list):
            raise InputError(f"the entry of sequence '{name}' is no list of frames", path=path)
        out[name] = tuple(_frame(entry, name, path) for entry in entries)
    return out


def _frame(entry: Any, name: str, path: Path) -> int:
    value = entry.get("idx") if isinstance(entry, dict) else entry
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"sequence '{name}' names a frame that is no number", path=path)
    return value


def choose_random(sequence: CameraSequence) -> Sequence[int]:
    """10 different frames (all of shorter sequences) in random order, drawn from the sequence's name and seed 42."""
    count = len(sequence.frames)
    order = numpy_generator(derive_seed(SEED, sequence.name)).permutation(count)
    return [int(i) for i in np.asarray(order)[: min(VIEWS, count)]]


PROTOCOLS: tuple[Protocol, ...] = (
    CameraProtocol(
        name="realestate10k_cameras",
        title="RealEstate10K, 10 random frames of 1,719 test sequences: relative camera poses",
        source="SelfEvo, Table 2; specification multiview.md 6.2",
        reader=read_realestate10k,
        choose=choose_random,
        thresholds=(5, 15, 30),
        rows=selfevo.TABLE_2.select({key: f"realestate10k.{key}" for key in ("auc_5", "auc_15", "auc_30")}),
        twin=CameraTwin(family="room", path="walk", frames={"smoke": 12, "mini": 30}),
        deviation=without_file(INDEX_FILE, "other sequences and frames"),
        layout=(
            "RealEstate10K: {metadata/test, test or .}/SEQUENCE.txt and SEQUENCE/images/0000.png, ... (line of the "
            "text file, from 0) or {SEQUENCE, frames/test/SEQUENCE or test/SEQUENCE}/TIMESTAMP.png; "
            f"{INDEX_FILE} of pi3's evaluation branch beside them fixes sequences and frames"
        ),
        notes=(
            f"With {INDEX_FILE} exactly its frames are read, in its order. It is not shipped here: without it all "
            "sequences with pictures count and 10 frames are drawn from the sequence's name and seed 42, which are "
            "other frames than those of the published rows.",
        ),
    ),
)
