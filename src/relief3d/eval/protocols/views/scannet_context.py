"""Context analysis of SelfEvo on ScanNet: errors on two distant frames when frames between them are added.

Specification multiview.md 5.7 ("Context analysis"). The figure's values are not in the text of the paper.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relief3d.core.contract import Camera
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, numpy_generator
from relief3d.eval.aggregation import mean, pooled
from relief3d.eval.metrics.camera_conventions import auc_unit_bins, pi3_pair_errors, worst_angles
from relief3d.eval.metrics.depth_alignment import aligned_depth_errors
from relief3d.eval.metrics.mesh import visible_count
from relief3d.eval.protocols.base import Answer, Budget, Column, Measurement, Protocol, Query, Sample, Truth
from relief3d.eval.protocols.views.camera_rules import CameraTwin
from relief3d.eval.protocols.views.nview_rules import PosedSequence, load_truth, posed_clips
from relief3d.eval.protocols.views.sequence_files import (
    depth_maps,
    folders_with,
    resized_pictures,
    square_matrix,
)
from relief3d.eval.twins.rendered import query_scene
from relief3d.geometry.projection import depth_to_world_points
from relief3d.geometry.transforms import invert_rigid
from relief3d.io.images import image_size
from relief3d.io.names import natural_key
from relief3d.io.rigid import rigid_from_file

SEED = 42
CONTEXT = (0, 1, 2, 4, 8)
"""Numbers of frames added between the anchors."""
GAP = 300
"""Frames from one anchor to the other: ten seconds of ScanNet."""
AUC_DEGREES = 30
COVISIBLE_SLACK = 0.05
_COVISIBILITY_SIDE = 48


@dataclass(frozen=True)
class LazyScan:
    """A scan whose frames are only listed when one of its samples is used."""

    name: str
    load: Callable[[], PosedSequence]


def context_frames(name: str, count: int, added: int) -> list[int]:
    """Anchor, ``added`` frames between in order of time, anchor.

    The anchors are :data:`GAP` frames apart (or the ends of a shorter scan), their place is drawn from the name and
    seed 42. The added frames of a smaller number are among those of a larger one.

    Raises:
        InputError: too few frames.
    """
    gap = min(count - 1, GAP)
    if gap - 1 < max(CONTEXT):
        raise InputError(
            f"scan '{name}' has {count} frames with a pose, at least {max(CONTEXT) + 2} are needed"
        )
    rng = numpy_generator(derive_seed(SEED, name))
    start = int(rng.integers(0, count - gap))
    between = rng.permutation(np.arange(start + 1, start + gap))
    return [start, *sorted(int(i) for i in between[:added]), start + gap]


def covisibility(depth: Tensor, K: Tensor, world_from_cam: Tensor) -> float:
    """Mean over ordered pairs (i, j) of the share of view i's known pixels that view j sees too.

    A pixel is seen when it projects into view j on a known depth and lies at most 5 % behind it. Thinned to about 48
    pixels per side.

    Args:
        depth: (N, H, W) z-depth, 0 where unknown.
        K: (N, 3, 3) pixels.
        world_from_cam: (N, 4, 4).

    Raises:
        InputError: "no valid pixels", or fewer than two views.
    """
    views, height, width = depth.shape
    if views < 2:
        raise InputError("covisibility needs at least two views")
    cameras = [Camera(width, height, k, pose) for k, pose in zip(K, world_from_cam)]
    points = _known_points(depth, K, world_from_cam)
    shares = []
    for i, xyz in enumerate(points):
        if xyz.shape[0]:
            others = [j for j in range(views) if j != i]
            seen = visible_count(
                xyz, [cameras[j] for j in others], [depth[j] for j in others], 0.0, COVISIBLE_SLACK
            )
            shares.append(float(seen.double().mean()) / len(others))
    if not shares:
        raise InputError("no valid pixels", remedy="check the true depth")
    return sum(shares) / len(shares)


def _known_points(depth: Tensor, K: Tensor, world_from_cam: Tensor) -> list[Tensor]:
    step = max(1, max(depth.shape[1:]) // _COVISIBILITY_SIDE)
    world = depth_to_world_points(depth.double(), K.double(), world_from_cam.double())
    return [w[::step, ::step][d[::step, ::step] > 0] for w, d in zip(world, depth)]


def read_scannet(root: Path) -> list[LazyScan]:
    """Scans exported from their .sens files; see the protocol's layout.

    Raises:
        InputError: there are none.
    """
    folder = next((root / f for f in ("scans_test", "scans") if (root / f).is_dir()), root)
    return [
        LazyScan(scan.name, functools.cache(functools.partial(_scan, scan)))
        for scan in folders_with(folder, "intrinsic/intrinsic_depth.txt", "exported ScanNet")
    ]


def _scan(folder: Path) -> PosedSequence:
    stems = sorted((p.stem for p in (folder / "color").glob("*.jpg")), key=natural_key)
    if not stems:
        raise InputError(
            "holds no color/*.jpg", path=folder, remedy="export the pictures from the .sens file"
        )
    found = [(stem, square_matrix(folder / "pose" / f"{stem}.txt")) for stem in stems]
    # Tracking was lost where a pose is infinite.
    known = [(stem, pose) for stem, pose in found if bool(torch.isfinite(pose).all())]
    names = [stem for stem, _ in known]
    K = square_matrix(folder / "intrinsic" / "intrinsic_depth.txt")[:3, :3].clone()
    K[:2, 2] += 0.5  # the file counts pixel centres at integers

    def world_from_cam(chosen: Sequence[int]) -> Tensor:
        out = []
        for i in chosen:
            try:
                out.append(rigid_from_file(known[i][1]))
            except ValueError as exc:
                raise InputError(f"the pose {exc}", path=folder / "pose" / f"{names[i]}.txt") from exc
        return torch.stack(out)

    def size(chosen: Sequence[int]) -> tuple[int, int]:
        width, height = image_size(folder / "depth" / f"{names[chosen[0]]}.png")
        return height, width

    return PosedSequence(
        folder.name,
        [f"{name}.jpg" for name in names],
        # Depth pixels count: the larger pictures are brought to the size of the depth maps.
        pictures=lambda chosen: resized_pictures(
            [folder / "color" / f"{names[i]}.jpg" for i in chosen], size(chosen)
        ),
        K=lambda chosen: K.expand(len(chosen), 3, 3),
        world_from_cam=world_from_cam,
        depth=lambda chosen: depth_maps(
            [folder / "depth" / f"{names[i]}.png" for i in chosen], size(chosen), 0.001
        ),
    )


class ContextProtocol(Protocol):
    """Errors on two anchors against the number of frames between them."""

    name = "scannet_context"
    title = "ScanNet context analysis: two distant frames with 0, 1, 2, 4, 8 frames between them"
    source = "SelfEvo, context analysis; specification multiview.md 5.7"
    task = "views"
    columns = (
        *(Column(f"abs_rel_m{m}", f"anchor AbsRel, m={m}") for m in CONTEXT),
        *(
            Column(f"auc_{AUC_DEGREES}_m{m}", f"anchor AUC@{AUC_DEGREES}, m={m}", "%", "higher")
            for m in CONTEXT
        ),
        *(Column(f"covisibility_m{m}", f"covisibility, m={m}", better=None) for m in CONTEXT),
    )
    layout = (
        "ScanNet exported by its SensReader: [scans_test/ or scans/]SCAN/{color/*.jpg, depth/*.png (millimetres), "
        "pose/*.txt (4x4 camera to world), intrinsic/intrinsic_depth.txt}"
    )
    notes = (
        "The paper says 'two anchors far apart plus m random frames between'. Our choice: anchors 300 frames apart "
        "among frames with a pose, place and frames drawn from the scan's name and seed 42, smaller sets inside "
        "larger ones.",
        "Only the anchors are measured: depth AbsRel over both after one 'scale' of 6.1, and AUC@30 of their "
        "relative pose, pooled over scans.",
        "Covisibility is the mean share of a view's pixels that another input view sees (depth within 5 %), over all "
        "ordered pairs of input views, from the true geometry.",
        "Pictures are brought to the size of the depth maps, whose intrinsics (+0.5) are used for the truth.",
    )
    twin_plan = CameraTwin(
        family="room",
        path="walk",
        clips={"smoke": 2, "mini": 12},
        frames={"smoke": 12, "mini": 16},
        size={"smoke": (36, 48), "mini": (120, 160)},
    )

    def open(self, data: Path) -> list[Sample]:
        """One sample per scan and number of added frames."""
        return [self._sample(scan, m) for scan in read_scannet(data) for m in CONTEXT]

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        """Clips of procedural rooms through the same choice of frames."""
        clips = posed_clips(self.twin_plan, budget, derive_seed(seed, self.name))
        scans = [LazyScan(clip.name, functools.partial(_same, clip)) for clip in clips]
        return [self._sample(scan, m) for scan in scans for m in CONTEXT]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        """The answer needs ``depth`` (N, H, W) and ``world_from_cam`` (N, 4, 4) of all pictures."""
        true, valid = truth.need("depth"), truth.need("valid")
        depth = answer.need("depth", true.shape)
        poses = answer.need("world_from_cam", truth.need("world_from_cam").shape)
        anchors = [0, -1]
        errors = aligned_depth_errors(depth[anchors], true[anchors], valid[anchors], "scale")
        angles = pi3_pair_errors(
            invert_rigid(poses[anchors].double()), invert_rigid(truth.need("world_from_cam")[anchors])
        )
        return self._measurement(query, truth, errors.abs_rel, float(angles.worst))

    def failure(self, query: Query, truth: Truth, reason: str) -> Measurement | None:
        """AbsRel 1, the error of depth 0 (there is no largest one), and the worst angle."""
        return self._measurement(query, truth, 1.0, float(worst_angles(2).worst))

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        """Means over scans; the AUC over all scans' anchor pairs."""
        out = {f"abs_rel_m{m}": mean(measurements, f"abs_rel_m{m}") for m in CONTEXT}
        for m in CONTEXT:
            worst = torch.from_numpy(pooled(measurements, f"worst_m{m}"))
            key = f"auc_{AUC_DEGREES}_m{m}"
            out[key] = auc_unit_bins(worst, AUC_DEGREES) if worst.numel() else float("nan")
        return out | {f"covisibility_m{m}": mean(measurements, f"covisibility_m{m}") for m in CONTEXT}

    def _measurement(self, query: Query, truth: Truth, abs_rel: float, worst: float) -> Measurement:
        m = int(truth.facts["added"])
        seen = covisibility(truth.need("depth"), truth.need("K"), truth.need("world_from_cam"))
        values = {f"abs_rel_m{m}": abs_rel, f"covisibility_m{m}": seen}
        arrays = {f"worst_m{m}": np.array([worst])}
        return Measurement(query.name, str(truth.facts["scan"]), values, arrays=arrays)

    def _sample(self, scan: LazyScan, added: int) -> Sample:
        name = f"{scan.name}/m{added}"

        def query() -> Query:
            sequence = scan.load()
            chosen = context_frames(scan.name, len(sequence.frames), added)
            names = [sequence.frames[i] for i in chosen]
            scene = query_scene(sequence.pictures(chosen), names=names)
            return Query(name, "views", ("depth", "world_from_cam"), scene=scene, seed=SEED)

        def truth() -> Truth:
            sequence = scan.load()
            chosen = context_frames(scan.name, len(sequence.frames), added)
            return Truth(load_truth(sequence, chosen), facts={"scan": scan.name, "added": added})

        return Sample(name, scan.name, query, truth)


def _same(sequence: PosedSequence) -> PosedSequence:
    return sequence


PROTOCOLS: tuple[Protocol, ...] = (ContextProtocol(),)
