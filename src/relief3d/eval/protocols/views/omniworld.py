"""OmniWorld-Game benchmark: video depth and cameras of OmniGeo and OmniVideo (specification multiview.md 5.7, 6).

OmniGeo is the benchmark's part for geometric prediction, OmniVideo the one for video generation. The layout below is
that of the benchmark's release as read by SelfEvo's published evaluation code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Budget, Protocol
from relief3d.eval.protocols.metric.frames import need_folder
from relief3d.eval.protocols.views.camera_rules import (
    CameraProtocol,
    CameraSequence,
    CameraTwin,
    Reader,
    choose_sparse,
    read_pictures,
)
from relief3d.eval.protocols.views.frame_folders import (
    PICTURE_ENDINGS,
    folder_video,
    numbered_files,
    paired_frames,
    scaled_depth,
)
from relief3d.eval.protocols.views.sequence_files import folders_with
from relief3d.eval.protocols.views.video_depth_rules import (
    PAPER_COLUMNS,
    DepthTwin,
    DepthVideo,
    VideoDepthProtocol,
    VideoDepthRules,
    about_every_tenth,
)
from relief3d.eval.published.selfevo import (
    OMNIGEO_ABLATIONS,
    OMNIVIDEO_ABLATIONS,
    TABLE_2,
    ablation_rows,
)
from relief3d.eval.published.table import PublishedTable
from relief3d.io.rigid import rigid_from_file

PARTS = {"omnigeo": "geometric_prediction", "omnivideo": "video_generation"}
_POSES = "camera_poses.npy"


def read_omniworld_videos(root: Path, part: str) -> list[DepthVideo]:
    """Sequences with depth.

    Args:
        root: the benchmark's folder, or that of one part.
        part: ``omnigeo`` or ``omnivideo``.

    Raises:
        InputError: another layout, or a sequence is incomplete.
    """
    base = need_folder(root, (PARTS[part], ""), "the OmniWorld-Game benchmark")
    videos = []
    for folder in folders_with(base, "depth", "the OmniWorld-Game benchmark"):
        pictures = numbered_files(folder / "image", PICTURE_ENDINGS, "pictures")
        pairs = paired_frames(pictures, numbered_files(folder / "depth", (".npy",), "depth maps"))
        videos.append(folder_video(folder.name, pairs, scaled_depth(1.0, metric=False)))
    return videos


def read_omniworld_cameras(root: Path, part: str) -> list[CameraSequence]:
    """Sequences with cameras; arguments and errors as :func:`read_omniworld_videos`."""
    base = need_folder(root, (PARTS[part], ""), "the OmniWorld-Game benchmark")
    sequences = []
    for folder in folders_with(base, _POSES, "the OmniWorld-Game benchmark"):
        pictures = numbered_files(folder / "image", PICTURE_ENDINGS, "pictures")
        poses = functools.partial(read_pose_stack, folder / _POSES)
        # As published: where the numbers differ, the first of both count.
        pictures = pictures[: poses().shape[0]]
        sequences.append(_camera_sequence(folder.name, pictures, poses))
    return sequences


def _camera_sequence(name: str, pictures: Sequence[Path], poses: functools.partial[Tensor]) -> CameraSequence:
    return CameraSequence(
        name,
        [p.name for p in pictures],
        pictures=lambda chosen: read_pictures([pictures[i] for i in chosen]),
        world_from_cam=lambda chosen: rigid_stack(poses()[list(chosen)]),
    )


def read_pose_stack(path: Path) -> Tensor:
    """(N, 4, 4) float64 matrices of an NPY file, as stored.

    Raises:
        InputError: missing, damaged or another shape.
    """
    if not path.is_file():
        raise InputError("the camera file is missing", path=path, remedy="complete the data set")
    try:
        stored = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as exc:
        raise InputError(f"is not a readable array ({exc})", path=path) from exc
    if stored.ndim != 3 or stored.shape[1:] != (4, 4) or stored.dtype.kind != "f":
        raise InputError(f"holds an array of shape {stored.shape}, expected (N, 4, 4)", path=path)
    return torch.from_numpy(stored.astype(np.float64))


def rigid_stack(matrices: Tensor, tolerance: float = 1e-2) -> Tensor:
    """(n, 4, 4) stored poses, made exactly rigid.

    Raises:
        InputError: one is no rigid transform.
    """
    try:
        return torch.stack([rigid_from_file(m, tolerance=tolerance) for m in matrices])
    except ValueError as exc:
        raise InputError(f"a stored camera pose {exc}") from exc


_LAYOUT = (
    "[{folder}/]<sequence>/\n  image/000000.png\n  depth/000000.npy (z-depth, 0 or less unknown)\n"
    "  camera_poses.npy ((N, 4, 4) world_from_cam, OpenCV axes)\n  intrinsics.npy (not used)"
)
_LAYOUT_NOTE = (
    "The layout was confirmed against SelfEvo's published evaluation code, not against the files themselves."
)
_TABLE_NOTE = (
    "The paper's main depth table is not available; the rows are its ablations, whose default is 'random', 'online', "
    "'C (ours)' and 'without'."
)


def _doubts(tables: Sequence[PublishedTable]) -> tuple[str, ...]:
    """What a reader must know about the rows of tables that are shown beside ours."""
    return tuple(f"{table.rows[0].source}: {table.note}" for table in tables if table.note and table.rows)


def _depth_protocol(part: str, title: str, ablations: Sequence[PublishedTable], twin: DepthTwin) -> Protocol:
    return VideoDepthProtocol(
        name=part,
        title=f"OmniWorld-Game, {title}: video depth",
        source="SelfEvo, Tables 1 and 6 to 16; specification multiview.md 6.1",
        reader=functools.partial(read_omniworld_videos, part=part),
        rules=VideoDepthRules(choose=about_every_tenth),
        rows=ablation_rows(ablations, {key: key for key in PAPER_COLUMNS}),
        twin=twin,
        layout=_LAYOUT.format(folder=PARTS[part]),
        notes=(_LAYOUT_NOTE, _TABLE_NOTE, *_doubts(ablations)),
    )


def _camera_protocol(
    part: str, title: str, ablations: Sequence[PublishedTable], twin: CameraTwin
) -> Protocol:
    main = TABLE_2.select({key: f"{part}.{key}" for key in ("auc_5", "auc_15", "auc_30")})
    reader: Reader = functools.partial(read_omniworld_cameras, part=part)
    return CameraProtocol(
        name=f"{part}_cameras",
        title=f"OmniWorld-Game, {title}: relative camera poses",
        source="SelfEvo, Table 2; specification multiview.md 6.2",
        reader=reader,
        choose=choose_sparse,
        rows=(*main, *ablation_rows(ablations, {key: key for key in ("auc_15", "auc_30")})),
        twin=twin,
        layout=_LAYOUT.format(folder=PARTS[part]),
        notes=(_LAYOUT_NOTE, *_doubts(ablations)),
    )


_FRAMES: dict[Budget, int] = {"smoke": 22, "mini": 80}

PROTOCOLS: tuple[Protocol, ...] = (
    _depth_protocol(
        "omnigeo",
        "geometric prediction",
        OMNIGEO_ABLATIONS,
        DepthTwin(family="outdoor", path="walk", moving=3, frames=_FRAMES),
    ),
    _depth_protocol(
        "omnivideo",
        "video generation",
        OMNIVIDEO_ABLATIONS,
        DepthTwin(family="street", path="drive", moving=3, frames=_FRAMES),
    ),
    _camera_protocol(
        "omnigeo",
        "geometric prediction",
        OMNIGEO_ABLATIONS,
        CameraTwin(family="outdoor", path="walk", moving=3, frames=_FRAMES),
    ),
    _camera_protocol(
        "omnivideo",
        "video generation",
        OMNIVIDEO_ABLATIONS,
        CameraTwin(family="street", path="drive", moving=3, frames=_FRAMES),
    ),
)
