"""RealEstate10K: camera paths of videos of homes; the pictures must be fetched by the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.data.readers.files import PICTURES, file_view, need_file, one_of
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.conventions import pixel_intrinsics
from relief3d.geometry.transforms import invert_rigid
from relief3d.io.images import image_size
from relief3d.io.names import natural_key
from relief3d.io.rigid import rigid_from_file

_TOLERANCE = 1e-2  # the poses come from structure from motion in single precision

CARD = DatasetCard(
    name="realestate10k",
    title="RealEstate10K",
    sources=("https://google.github.io/realestate10k/download.html",),
    licence="camera paths CC BY 4.0; the videos belong to their uploaders",
    gives=("image", "K", "pose", "time"),
    metric=False,
    layout=(
        "{train,test}/SEQUENCE.txt (or metadata/{train,test}/SEQUENCE.txt)\n"
        "with frames in SEQUENCE/images/, SEQUENCE/, frames/{train,test}/SEQUENCE/ or {train,test}/SEQUENCE/, "
        "named by line (0000.png) or by TIMESTAMP.png"
    ),
    conventions=(
        "intrinsics as shares of width and height, scaled to the picture; camera from world (OpenCV axes), inverted; a "
        "share of one half is the middle of the picture, so pixel centres need no shift."
    ),
    splits=("train", "test"),
    open_points=(
        "Its own page was not at hand: the text format follows public loaders.",
        "Frames without a picture are left out: videos disappear.",
    ),
)


@dataclass(frozen=True)
class CameraFile:
    """One sequence's text file.

    Attributes:
        timestamps: microseconds, as printed.
        intrinsics: (F, 4) fx, fy, cx, cy as shares of width and height.
        matrices: (F, 3, 4) float64 camera from world, as printed.
        path: the file.
    """

    timestamps: tuple[str, ...]
    intrinsics: Tensor
    matrices: Tensor
    path: Path

    def world_from_cam(self, frames: Sequence[int]) -> Tensor:
        """(n, 4, 4) poses of some frames.

        Raises:
            InputError: a pose is not rigid.
        """
        out = []
        for frame in frames:
            try:
                out.append(rigid_from_file(self.matrices[frame], tolerance=_TOLERANCE))
            except ValueError as exc:
                raise InputError(f"the pose of frame {frame} {exc}", path=self.path) from exc
        return invert_rigid(torch.stack(out))

    def K(self, frame: int, size: tuple[int, int]) -> Tensor:
        """(3, 3) pixels of a picture of (width, height)."""
        fx, fy, cx, cy = self.intrinsics[frame].tolist()
        shares = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=torch.float64)
        return pixel_intrinsics(shares, *size)


def camera_rows(path: Path) -> list[list[str]]:
    """The words of every frame's line of a camera file.

    Raises:
        InputError: unreadable, or fewer than two frames.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"cannot be read ({exc})", path=path) from exc
    rows = [words for line in lines[1:] if (words := line.split())]
    if len(rows) < 2:
        raise InputError(f"holds {len(rows)} frames, at least two are needed", path=path)
    return rows


def read_camera_file(path: Path) -> CameraFile:
    """A RealEstate10K text file: the video's address, then per frame time, fx fy cx cy, 0 0, and a 3x4 pose.

    Raises:
        InputError: not of that form, or fewer than two frames.
    """
    rows = camera_rows(path)
    try:
        values = np.array([[float(word) for word in words[1:]] for words in rows])
        if values.shape != (len(rows), 18):
            raise ValueError("a line has not 19 entries")
    except ValueError as exc:
        raise InputError(f"is no camera file of RealEstate10K ({exc})", path=path) from exc
    table = torch.from_numpy(values)
    times = tuple(words[0] for words in rows)
    return CameraFile(times, table[:, :4], table[:, 6:].reshape(-1, 3, 4), path)


def picture_folder(root: Path, name: str, splits: tuple[str, ...] = ("test",)) -> Path | None:
    """Where the frames of a sequence lie, None where they are not."""
    choices = [f"{name}/images", name]
    choices += [f"{base}{split}/{name}" for split in splits for base in ("frames/", "")]
    return next((root / c for c in choices if (root / c).is_dir()), None)


def frame_picture(folder: Path, index: int, timestamp: str) -> Path | None:
    """The picture of a frame: downloaders name frames by position or by time."""
    paths = (one_of(folder, stem, PICTURES) for stem in (f"{index:04d}", timestamp))
    return next((p for p in paths if p is not None), None)


def open_realestate10k(root: str | Path, *, split: str | None = None) -> SceneSet:
    """Sequences that have pictures; see :data:`CARD`.

    Raises:
        InputError: no camera files here, or none with pictures.
    """
    root, split = Path(root), CARD.check_split(split)
    splits = (split,) if split else CARD.splits
    bases = [root / f / s for f in ("metadata", "") for s in splits] + ([] if split else [root])
    items: dict[str, tuple[Path, Path]] = {}
    listed = 0
    for base in bases:
        for file in sorted(base.glob("*.txt"), key=lambda p: natural_key(p.name)):
            listed += 1
            pictures = picture_folder(root, file.stem, tuple(splits))
            if pictures is not None:
                items.setdefault(file.stem, (file, pictures))
    if not items:
        raise InputError(
            f"{listed} camera files, none with pictures"
            if listed
            else "holds no camera files of RealEstate10K",
            path=root,
            remedy="unpack RealEstate10K.tar.gz and extract the frames to SEQUENCE/images/0000.png, ...",
        )
    return SceneSet(CARD, items, _scene)


def _scene(name: str, item: tuple[Path, Path]) -> Scene:
    file, folder = item
    cameras = read_camera_file(need_file(file, "camera file"))
    views = []
    start = float(cameras.timestamps[0])
    for i, stamp in enumerate(cameras.timestamps):
        picture = frame_picture(folder, i, stamp)
        if picture is None:
            continue
        size, pose = image_size(picture), cameras.world_from_cam((i,))[0]
        time = (float(stamp) - start) * 1e-6
        views.append(file_view(f"{i:04d}", picture, cameras.K(i, size), pose, size=size, time=time))
    if not views:
        raise InputError(
            "holds none of the sequence's pictures", path=folder, remedy="extract the frames again"
        )
    return Scene(tuple(views), metric=False, ordered=True, info={"dataset": CARD.name, "scene": name})
