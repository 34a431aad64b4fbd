"""Point cloud reconstruction on 7-Scenes and NRGBD in pi3's protocol (specification multiview.md 6.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed
from relief3d.eval.aggregation import mean
from relief3d.eval.metrics.points import score_point_maps
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.views.camera_rules import CameraTwin, read_pictures
from relief3d.eval.protocols.views.nview_rules import (
    PosedSequence,
    Reader,
    answered_geometry,
    load_truth,
    posed_clips,
)
from relief3d.eval.protocols.views.sequence_files import depth_maps, folders_with, number_table, square_matrix
from relief3d.eval.twins.rendered import query_scene
from relief3d.geometry.conventions import convert_world_from_cam
from relief3d.geometry.projection import intrinsics
from relief3d.io.images import image_size
from relief3d.io.names import natural_key
from relief3d.io.rigid import rigid_from_file

FARTHEST = 10.0
"""Metres; farther true depth is unknown in both data sets' evaluation."""
SEVENSCENES_K = (525.0, 525.0, 320.0, 240.0)
NRGBD_K = (554.2562584220408, 554.2562584220408, 320.0, 240.0)
_SIZE = (480, 640)


def strided_frames(count: int, stride: int) -> list[int]:
    """Every ``stride``-th frame from the first, at least two of them.

    Raises:
        InputError: fewer than two frames.
    """
    if count < 2:
        raise InputError(f"a reconstruction needs at least two frames, got {count}")
    return list(range(0, count, max(1, min(stride, count // 2))))


class PointCloudProtocol(Protocol):
    """Accuracy, completeness and normal consistency of the points of all frames of a sequence.

    Args:
        name, title, source, layout, notes, version: see :class:`Protocol`.
        reader: root folder -> sequences.
        stride: frames from one picture to the next.
        twin: the procedural stand-in.
        icp_threshold: largest distance of an ICP pair in the data's unit (0.1; DTU 100).
    """

    task = "views"
    columns = (
        Column("accuracy", "Acc. mean", "m"),
        Column("accuracy_median", "Acc. med.", "m"),
        Column("completeness", "Comp. mean", "m"),
        Column("completeness_median", "Comp. med.", "m"),
        Column("normals", "NC mean", better="higher"),
        Column("normals_median", "NC med.", better="higher"),
    )

    def __init__(
        self,
        name: str,
        title: str,
        source: str,
        reader: Reader,
        stride: int,
        twin: CameraTwin,
        icp_threshold: float = 0.1,
        layout: str = "",
        notes: Sequence[str] = (),
        version: int = 1,
    ) -> None:
        self.name, self.title, self.source, self.layout, self.version = name, title, source, layout, version
        self.notes = (*_NOTES, *notes)
        self.stride, self.icp_threshold = stride, icp_threshold
        self._reader, self._twin = reader, twin

    def open(self, data: Path) -> list[Sample]:
        """One sample per sequence."""
        return [self._sample(sequence) for sequence in self._reader(data)]

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Clips of procedural rooms through the same stride."""
        return [self._sample(s) for s in posed_clips(self._twin, budget, derive_seed(seed, self.name))]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """The answer needs ``world_points`` (N, h, w, 3) of any size, or what :func:`answered_geometry` accepts."""
        true, valid = truth.need("world_points"), truth.need("valid")
        points = answer.tensors.get("world_points")
        if points is None:
            points, _, _ = answered_geometry(query, answer, valid.shape)
        elif points.ndim != 4 or points.shape[0] != valid.shape[0] or points.shape[-1] != 3:
            raise InputError(
                f"'world_points' has shape {tuple(points.shape)}, expected ({valid.shape[0]}, h, w, 3)"
            )
        scores = score_point_maps(points, true, valid, self.icp_threshold)
        values = {
            "accuracy": scores.accuracy,
            "accuracy_median": scores.accuracy_median,
            "completeness": scores.completeness,
            "completeness_median": scores.completeness_median,
            "normals": (scores.normals_accuracy + scores.normals_completeness) / 2,
            "normals_median": (scores.normals_accuracy_median + scores.normals_completeness_median) / 2,
        }
        return Measurement(query.name, str(truth.facts["group"]), values)

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        """Distances to the centroid of the true points, and no consistent normal (distances have no upper bound)."""
        xyz = truth.need("world_points")[truth.need("valid")].double()
        if xyz.shape[0] == 0:
            raise InputError("no valid pixels", remedy="check the true depth")
        away = (xyz - xyz.mean(0)).norm(dim=-1)
        typical, middle = float(away.mean()), float(away.median())
        values = {"accuracy": typical, "completeness": typical, "normals": 0.0, "normals_median": 0.0}
        values |= {"accuracy_median": middle, "completeness_median": middle}
        return Measurement(query.name, str(truth.facts["group"]), values)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Means over sequences."""
        return {column.key: mean(measurements, column.key) for column in self.columns}

    def _sample(self, sequence: PosedSequence) -> Sample:
        chosen = strided_frames(len(sequence.frames), self.stride)
        names = [sequence.frames[i] for i in chosen]
        group = sequence.group or sequence.name

        def query() -> Query:
            scene = query_scene(sequence.pictures(chosen), names=names)
            return Query(sequence.name, "views", ("world_points",), scene=scene)

        def truth() -> Truth:
            return Truth(load_truth(sequence, chosen), facts={"group": group})

        return Sample(sequence.name, group, query, truth)


def read_sevenscenes(root: Path) -> list[PosedSequence]:
    """Test sequences of 7-Scenes; see the protocol's layout.

    Raises:
        InputError: no scenes, or a test sequence is missing.
    """
    out = []
    for scene in folders_with(root, "TestSplit.txt", "7-Scenes"):
        for line in (scene / "TestSplit.txt").read_text(encoding="utf-8").split():
            digits = "".join(c for c in line if c.isdigit())
            if not digits:
                raise InputError(f"names no sequence in '{line}'", path=scene / "TestSplit.txt")
            out.append(_sevenscenes(scene / f"seq-{int(digits):02d}", scene.name))
    return out


def _sevenscenes(folder: Path, scene: str) -> PosedSequence:
    stems = sorted(
        (p.name.removesuffix(".color.png") for p in folder.glob("frame-*.color.png")), key=natural_key
    )
    if not stems:
        raise InputError(
            "holds no frame-*.color.png", path=folder, remedy="unpack all test sequences of 7-Scenes"
        )

    def depth(chosen: Sequence[int]) -> Tensor:
        files = [folder / f"{stems[i]}.depth.proj.png" for i in chosen]
        if not files[0].is_file():
            raise InputError(
                "is missing: depth registered to the colour pictures is not in the release",
                path=files[0],
                remedy="make it with SimpleRecon's 7scenes_preprocessing.py, as the papers do",
            )
        return depth_maps(files, _SIZE, 0.001, FARTHEST)

    def poses(chosen: Sequence[int]) -> Tensor:
        return torch.stack(
            [_rigid(square_matrix(p), p) for p in (folder / f"{stems[i]}.pose.txt" for i in chosen)]
        )

    return PosedSequence(
        f"{scene}/{folder.name}",
        [f"{stem}.color.png" for stem in stems],
        pictures=lambda chosen: read_pictures([folder / f"{stems[i]}.color.png" for i in chosen]),
        K=lambda chosen: _centred(SEVENSCENES_K).expand(len(chosen), 3, 3),
        world_from_cam=poses,
        depth=depth,
        group=scene,
    )


def read_nrgbd(root: Path) -> list[PosedSequence]:
    """Scenes of NRGBD (neural_rgbd_data); see the protocol's layout.

    Raises:
        InputError: no scenes, or files are missing.
    """
    return [_nrgbd(folder) for folder in folders_with(root, "poses.txt", "NRGBD")]


def _nrgbd(folder: Path) -> PosedSequence:
    count = len(list((folder / "images").glob("img*.png")))
    table = number_table(folder / "poses.txt", 4)
    if table.shape[0] != 4 * count:
        raise InputError(f"holds {table.shape[0]} rows for {count} pictures", path=folder / "poses.txt")
    matrices = table.reshape(count, 4, 4)
    # Frames without a pose are written as nan.
    known = [i for i in range(count) if bool(torch.isfinite(matrices[i]).all())]

    def poses(chosen: Sequence[int]) -> Tensor:
        stored = [_rigid(matrices[known[i]], folder / "poses.txt") for i in chosen]
        return convert_world_from_cam(torch.stack(stored), "opengl", "opencv")

    return PosedSequence(
        folder.name,
        [f"img{i}.png" for i in known],
        pictures=lambda chosen: read_pictures([folder / "images" / f"img{known[i]}.png" for i in chosen]),
        K=lambda chosen: _centred(NRGBD_K).expand(len(chosen), 3, 3),
        world_from_cam=poses,
        depth=lambda chosen: depth_maps(
            [folder / "depth" / f"depth{known[i]}.png" for i in chosen],
            _picture_size(folder / "images" / f"img{known[chosen[0]]}.png"),
            0.001,
            FARTHEST,
        ),
    )


def _picture_size(path: Path) -> tuple[int, int]:
    width, height = image_size(path)
    return height, width


def _centred(values: tuple[float, float, float, float]) -> Tensor:
    """Intrinsics of evaluation code that counts pixel centres at integers."""
    fx, fy, cx, cy = values
    return intrinsics(fx, fy, cx + 0.5, cy + 0.5)


def _rigid(matrix: Tensor, path: Path) -> Tensor:
    try:
        return rigid_from_file(matrix)
    except ValueError as exc:
        raise InputError(f"a pose {exc}", path=path) from exc


TWIN = CameraTwin(
    family="room",
    path="walk",
    clips={"smoke": 2, "mini": 10},
    frames={"smoke": 6, "mini": 10},
    size={"smoke": (36, 48), "mini": (96, 128)},
)
"""Strides are longer than the clips, so two frames of each are taken."""

_NOTES = (
    "Predicted points are resized to the true grid (bilinear, anti-aliased), aligned by a similarity over all valid "
    "pixels, then by rigid point-to-point ICP (pairs up to 0.1 m, at most 30 rounds).",
    "Normals of both clouds are estimated from the 30 nearest points; NC is the mean of both directions.",
    "The true depth counts up to 10 m. The specification gives no published figures for these sets.",
    "Frame strides are those of the sparse setting of pi3's public evaluation (dense: 40 and 100); our specification "
    "does not give them.",
    "A failed sequence counts the distances of the true points from their centroid and NC 0.",
)

PROTOCOLS: tuple[Protocol, ...] = (
    PointCloudProtocol(
        name="sevenscenes_points",
        title="7-Scenes, every 200th frame of the test sequences: reconstructed points",
        source="pi3 evaluation; specification multiview.md 6.4",
        reader=read_sevenscenes,
        stride=200,
        twin=TWIN,
        layout=(
            "7-Scenes: SCENE/TestSplit.txt, SCENE/seq-NN/frame-NNNNNN.{color.png, pose.txt, depth.proj.png}; the last "
            "from SimpleRecon's preprocessing (depth registered to colour, millimetres)"
        ),
    ),
    PointCloudProtocol(
        name="nrgbd_points",
        title="NRGBD, every 500th frame: reconstructed points",
        source="pi3 evaluation; specification multiview.md 6.4",
        reader=read_nrgbd,
        stride=500,
        twin=TWIN,
        layout="NRGBD: SCENE/{images/imgN.png, depth/depthN.png (millimetres), poses.txt (OpenGL, 4 rows each)}",
    ),
)
