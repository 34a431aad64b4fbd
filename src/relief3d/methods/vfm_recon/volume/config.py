"""Options of training the volumetric network; every value is plain, so that they go to YAML and back."""

from __future__ import annotations

from dataclasses import dataclass, field

from relief3d.core.errors import InputError
from relief3d.data.photometric import Photometric
from relief3d.methods.vfm_recon.volume.scenes import SceneSet
from relief3d.models.volume.config import Variant
from relief3d.models.volume.unet3d import MULTIPLE
from relief3d.train.config import TrainConfig
from relief3d.train.recipe import Size
from relief3d.worlds.config import Family

COLOURS = Photometric(
    probability=1.0,
    shared=1.0,
    brightness=0.25,
    contrast=0.25,
    saturation=0.25,
    hue=0.25,
    gamma=0.0,
    grey=0.0,
)
"""FineRecon's jitter, the same for all views of a fragment."""


@dataclass(frozen=True)
class DepthErrors:
    """Errors given to the true depth before the network sees it, in place of those of a real pipeline.

    Attributes:
        scale: half of the views are multiplied by a number from [1 - scale, 1 + scale] each (FineRecon: 0.1).
        smooth: standard deviation of smooth relative noise (correlated over an eighth of the width).
        dropped: chance that a view has a rectangle of up to a third of its sides without depth.
    """

    scale: float = 0.1
    smooth: float = 0.03
    dropped: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.scale < 1 or self.smooth < 0 or not 0 <= self.dropped <= 1:
            raise InputError("errors of depth: scale in [0, 1), smooth from 0, dropped a probability")


@dataclass(frozen=True)
class FoundationConfig:
    """Where the frozen feature network comes from.

    Attributes:
        weights: file of a VGGT (``relief3d train multiview-supervised-vggt`` makes one; its size must be that of the
            variant), or the name of a published one; empty: none was given, which is refused.
        untrained: take random weights all the same; features of such a network mean nothing.
    """

    weights: str = ""
    untrained: bool = False


@dataclass(frozen=True)
class VolumeEvaluationConfig:
    """Held-out fragments, the same for every seed of training.

    Attributes:
        families: of worlds; "room" is in-domain, others are not.
        scenes: per family.
        fragments: per scene.
        seed: of the worlds; training never uses it.
    """

    families: tuple[Family, ...] = ("room", "objects", "outdoor")
    scenes: int = 4
    fragments: int = 2
    seed: int = 1_000_003

    def __post_init__(self) -> None:
        if not self.families or self.scenes < 1 or self.fragments < 1:
            raise InputError("an evaluation needs a family, a scene and a fragment")


@dataclass(frozen=True)
class VolumeConfig:
    """A run.

    Attributes:
        size: of the network.
        variant: see :func:`relief3d.models.volume.config.volume_config`.
        finerecon_compat: activations as in the released FineRecon.
        voxel_size: of the network's grid, metres; true distances have their own grid.
        scenes: that training draws from, in equal shares.
        folder: of rendered sets; empty: ``$RELIEF3D_CACHE/volumes``, or ``~/.cache/relief3d/volumes``.
        crop: voxels along x, y, z of a fragment, multiples of 4.
        views: per fragment.
        points: query points per fragment.
        reach: a view belongs to a fragment when it is nearer than this to a point of it that it sees, metres.
        tilt: largest tilt of a fragment in degrees.
        batch: fragments per micro-batch.
        colours: jitter of colours.
        depth: errors of depth.
        foundation: see :class:`FoundationConfig`; for variants that have one.
        evaluation: see :class:`VolumeEvaluationConfig`.
        train: of the loop.
    """

    size: Size = "nano"
    variant: Variant = "vfm"
    finerecon_compat: bool = False
    voxel_size: float = 0.08
    scenes: tuple[SceneSet, ...] = (SceneSet(),)
    folder: str = ""
    crop: tuple[int, int, int] = (32, 32, 16)
    views: int = 6
    points: int = 4096
    reach: float = 4.0
    tilt: float = 3.0
    batch: int = 2
    colours: Photometric = COLOURS
    depth: DepthErrors = field(default_factory=DepthErrors)
    foundation: FoundationConfig = field(default_factory=FoundationConfig)
    evaluation: VolumeEvaluationConfig = field(default_factory=VolumeEvaluationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if any(n < MULTIPLE or n % MULTIPLE for n in self.crop):
            raise InputError(
                f"sides of a fragment are multiples of {MULTIPLE}, not {self.crop}", remedy="crop"
            )
        if self.views < 1 or self.points < 1 or self.batch < 1 or min(self.voxel_size, self.reach) <= 0:
            raise InputError("a fragment needs views, points, voxels and a reach, and a batch a fragment")
        if not self.scenes:
            raise InputError("training needs scenes")
        kinds = {(s.size, s.truncation) for s in self.scenes}
        if len(kinds) > 1:
            raise InputError("scenes of one run share picture size and truncation", remedy="scenes")
