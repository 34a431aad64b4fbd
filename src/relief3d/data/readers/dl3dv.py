"""DL3DV-10K: hand-held videos of places with cameras from COLMAP, in nerfstudio's ``transforms.json``."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath

from relief3d.core.contract import Scene, View
from relief3d.core.errors import InputError
from relief3d.data.readers.files import PICTURES, file_view, folders_holding, load_depth, one_of
from relief3d.data.readers.scene_set import DatasetCard, SceneSet
from relief3d.geometry.projection import resize_intrinsics
from relief3d.io.images import image_size
from relief3d.io.names import natural_key
from relief3d.io.transforms_json import read_transforms_json

PICTURE_FOLDERS = ("images_4", "images_8", "images_2", "images")
DEPTH_ENDINGS = (".npy", ".exr", ".png")
_CAMERAS = ("transforms.json", "nerfstudio/transforms.json", "colmap/transforms.json")

CARD = DatasetCard(
    name="dl3dv",
    title="DL3DV-10K",
    sources=(
        "https://huggingface.co/datasets/DL3DV/DL3DV-10K-Sample",
        "https://github.com/DL3DV-10K/Dataset",
        "https://docs.nerf.studio/quickstart/data_conventions.html",
    ),
    licence="own terms of use (DL3DV-10K Terms of Use), non-commercial research; ask the owners",
    gives=("image", "K", "lens", "pose", "depth (only where you added it)"),
    metric=False,
    layout=(
        "[1K ... 11K/]SCENE/[nerfstudio/ or colmap/]transforms.json\n"
        "beside it images_4/ (or images_8, images_2, images)/frame_00001.png\n"
        "SCENE/depth/frame_00001.{npy,exr,png}: optional, z-depth in the unit of the poses (PNG: thousandths)"
    ),
    conventions=(
        "OpenGL camera axes flipped to OpenCV; applied_transform undone; pixel centres are at +0.5 already; K is "
        "scaled from the size in the file to that of the pictures; the lens stays (undistort before batching)."
    ),
    splits=("1K", "2K", "3K", "4K", "5K", "6K", "7K", "8K", "9K", "10K", "11K"),
    open_points=("The public release holds no depth; the folder 'depth' is ours.",),
)


def open_dl3dv(root: str | Path, *, split: str | None = None, pictures: str | None = None) -> SceneSet:
    """DL3DV scenes; see :data:`CARD`.

    Args:
        root: folder of scenes, or of subsets ("1K", ...) that hold scenes.
        split: one subset.
        pictures: which folder of pictures to take ("images_4", ...); the first of :data:`PICTURE_FOLDERS` when None.

    Raises:
        InputError: no scenes here.
    """
    split = CARD.check_split(split)
    base = Path(root) / split if split else Path(root)
    scenes = folders_holding(base, _CAMERAS, CARD.title, depth=2)
    return SceneSet(CARD, scenes, functools.partial(_scene, pictures=pictures))


def _scene(name: str, folder: Path, pictures: str | None) -> Scene:
    file = next(folder / c for c in _CAMERAS if (folder / c).is_file())
    wanted = PICTURE_FOLDERS if pictures is None else (pictures,)
    source = next((file.parent / w for w in wanted if (file.parent / w).is_dir()), None)
    if source is None:
        raise InputError(
            f"has none of the picture folders {', '.join(wanted)}", path=file.parent, remedy="download one"
        )
    cameras = read_transforms_json(file, require_images=False)
    views = [_view(folder, source, view) for view in cameras.views]
    views.sort(key=lambda view: natural_key(view.name))
    return Scene(tuple(views), metric=False, ordered=True, info={"dataset": CARD.name, "scene": name})


def _view(folder: Path, pictures: Path, view: View) -> View:
    stem = PurePosixPath(view.name).stem
    path = one_of(pictures, stem, PICTURES) or pictures / f"{stem}.png"
    if not path.is_file():
        raise InputError(
            "the picture is missing", path=path, remedy="download the pictures of this scene again"
        )
    size, camera = image_size(path), view.camera
    K = camera.K
    if K is not None:
        K = resize_intrinsics(K, (camera.width, camera.height), size)
    map_file = one_of(folder / "depth", stem, DEPTH_ENDINGS)
    scale = 0.001 if map_file is not None and map_file.suffix == ".png" else 1.0
    depth = map_file and functools.partial(load_depth, map_file, size, scale=scale, metric=False)
    return file_view(
        path.name,
        path,
        K,
        camera.world_from_cam,
        size=size,
        distortion=camera.distortion,
        depth=depth or None,
    )
