"""Options of training students that need no prompt; every value is plain, so that they go to YAML and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from relief3d.core.errors import InputError
from relief3d.data.photometric import Photometric
from relief3d.losses.metric_depth import StudentOptions
from relief3d.losses.moge_local import PatchOptions
from relief3d.methods.metric_anything.pictures import PictureSet
from relief3d.models.metric.networks import SkipOrder
from relief3d.train.config import TrainConfig
from relief3d.train.recipe import Size
from relief3d.worlds.config import Family

Labels = Literal["truth", "raw", "teacher"]


@dataclass(frozen=True)
class LabelConfig:
    """What pictures are taught by.

    Attributes:
        kind: ``truth`` is rendered depth; ``raw`` what an imitated source says, with its holes and mistakes;
            ``teacher`` what a prompted network makes of points of the raw label.
        rendered: share of pictures that count as rendered and keep their truth, whatever ``kind`` says (the paper's
            mixture of real and rendered data is 85:15).
        reconstructed: share of the other pictures whose source is multi-view stereo; the rest has an active sensor.
        severity: factor on the errors of the sources (:mod:`relief3d.worlds.depth_sources`).
        teacher: file with weights of a prompted network (``teacher`` only).
        points: most points of the raw label that the teacher is told.
        max_error: largest median relative error at raw pixels kept out of the prompt; pictures above it teach nothing.
            0: none is left out (``teacher`` only).
        seed: of sources and prompts, the same for every run that shares labels.
    """

    kind: Labels = "truth"
    rendered: float = 0.15
    reconstructed: float = 0.5
    severity: float = 1.0
    teacher: str = ""
    points: int = 800
    max_error: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.rendered <= 1 and 0 <= self.reconstructed <= 1):
            raise InputError("shares of pictures must lie in [0, 1]", remedy="labels.rendered")
        if not self.severity > 0 or self.max_error < 0:
            raise InputError("the severity of errors must be positive", remedy="labels.severity")
        if self.kind == "teacher" and not self.teacher:
            raise InputError(
                "a teacher's labels need its weights", remedy="labels.teacher=RUN/model.safetensors"
            )
        if self.points < 5:
            raise InputError("a teacher needs five points or more", remedy="labels.points")


HELD_OUT = tuple(
    PictureSet((family,), 8, views=2, seed=1_000_003) for family in ("room", "objects", "street", "outdoor")
)


@dataclass(frozen=True)
class StudentEvaluation:
    """Held-out pictures, the same for every seed of training.

    Attributes:
        pictures: sets of worlds that training never uses.
        near: metres that divide near from far.
    """

    pictures: tuple[PictureSet, ...] = HELD_OUT
    near: float = 20.0


@dataclass(frozen=True)
class StudentConfig:
    """What runs of both students have in common.

    Attributes:
        size: of the network.
        pictures: sets that training draws from, in equal shares.
        folder: of rendered sets; empty: ``$RELIEF3D_CACHE/pictures``, or ``~/.cache/relief3d/pictures``.
        hold_out: families of worlds that training leaves out.
        share: of the worlds of every set; smaller shares are parts of larger ones.
        shape: height and width of training pictures.
        zoom: range of the side of a window, relative to the largest that fits; narrow windows have long focal lengths.
        place: how far from the middle windows may lie: 0 not at all, 1 anywhere in the picture.
        mirror: chance of a mirrored sample.
        batch: samples per micro-batch.
        colours: changes of light and colour.
        labels: see :class:`LabelConfig`.
        start: file with weights that training begins with; empty: from scratch.
        evaluation: see :class:`StudentEvaluation`.
        train: of the loop.
    """

    size: Size = "nano"
    pictures: tuple[PictureSet, ...] = (PictureSet(),)
    folder: str = ""
    hold_out: tuple[Family, ...] = ()
    share: float = 1.0
    shape: tuple[int, int] = (96, 128)
    zoom: tuple[float, float] = (0.5, 1.0)
    place: float = 1.0
    mirror: float = 0.5
    batch: int = 8
    colours: Photometric = field(default_factory=Photometric)
    labels: LabelConfig = field(default_factory=LabelConfig)
    start: str = ""
    evaluation: StudentEvaluation = field(default_factory=StudentEvaluation)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if min(self.shape) < 16 or self.batch < 1:
            raise InputError("a batch needs a sample with sides of 16 pixels or more", remedy="shape, batch")
        if not 0 < self.zoom[0] <= self.zoom[1] <= 1 or not 0 <= self.place <= 1:
            raise InputError("zoom is a range in (0, 1] and place lies in [0, 1]", remedy="zoom, place")
        if not 0 < self.share <= 1:
            raise InputError(f"the share of the data is {self.share}, not in (0, 1]", remedy="share")
        if not {f for rule in self.pictures for f in rule.families} - set(self.hold_out):
            raise InputError("all families of worlds are held out", remedy="hold_out")


@dataclass(frozen=True)
class DepthMapStudentConfig(StudentConfig):
    """A run of Student-DepthMap.

    Attributes:
        skip_order: of the decoder: ``inverse`` as published, or ``unet``.
        losses: see :class:`relief3d.losses.metric_depth.StudentOptions`: objective (``space``), C and clamping.
    """

    skip_order: SkipOrder = "inverse"
    losses: StudentOptions = field(default_factory=StudentOptions)


@dataclass(frozen=True)
class PointLosses:
    """The loss of Student-PointMap: MoGe-2's with its published weights, and a term of our own.

    Attributes:
        resolution: side of the reduction on which points are aligned; the cost grows with its fourth power.
        patches: levels of local patches, see :class:`relief3d.losses.moge_local.PatchOptions`; terms of levels that are
            not named are left out.
        metric_scale: weight of the scale, 0.1 as published.
        metric_depth: weight of ``|ln (scale * z) - ln depth|``, mean over pixels: points that are metric as they are
            need no shift, which a small network's points determine badly. 0 is MoGe-2's loss.
        rays: weight of the angle in radians between predicted and true rays, mean over pixels. 0 is MoGe-2's loss.
    """

    resolution: int = 48
    patches: tuple[PatchOptions, ...] = (
        PatchOptions(4, 24, 16),
        PatchOptions(16, 12, 256),
        PatchOptions(64, 6, 4096),
    )
    metric_scale: float = 0.1
    metric_depth: float = 0.0
    rays: float = 0.0

    def __post_init__(self) -> None:
        if self.resolution < 2 or min(self.metric_scale, self.metric_depth, self.rays) < 0:
            raise InputError("the alignment needs 2 cells per side, and weights must not be negative")
        if unknown := {p.level for p in self.patches} - {4, 16, 64}:
            raise InputError(f"there are no patches of level {min(unknown)}", remedy="use 4, 16 and 64")


@dataclass(frozen=True)
class PointMapStudentConfig(StudentConfig):
    """A run of Student-PointMap.

    Attributes:
        place: see :class:`StudentConfig`; the network supposes that the optical axis meets the middle of the picture,
            so windows stay near it.
        tokens: fewest and most tokens of a step; the network's own range in use.
        losses: see :class:`PointLosses`.
    """

    place: float = 0.1
    tokens: tuple[int, int] = (24, 48)
    losses: PointLosses = field(default_factory=PointLosses)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tokens[0] <= self.tokens[1]:
            raise InputError(f"no step can have between {self.tokens[0]} and {self.tokens[1]} tokens")
