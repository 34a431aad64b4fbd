"""Options of training on sparse metric prompts; every value is plain, so that they go to YAML and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from relief3d.core.errors import InputError
from relief3d.data.photometric import Photometric
from relief3d.losses.metric_depth import TeacherOptions
from relief3d.losses.prompted import PromptedOptions
from relief3d.methods.metric_anything.pictures import PictureSet
from relief3d.train.config import TrainConfig
from relief3d.train.recipe import Size
from relief3d.worlds.config import Family
from relief3d.worlds.depth_sources import Family as Source

Patterns = Literal[
    "uniform",
    "mixed",
    "keypoints",
    "lidar",
    "grid",
    "hole",
    "range",
    "radar",
    "cluster",
    "lidar_returns",
    "radar_returns",
]
RETURNS: tuple[Patterns, ...] = ("lidar_returns", "radar_returns")
"""Prompts made of the raw returns that are stored with a picture."""


@dataclass(frozen=True)
class PromptConfig:
    """Prompts that are drawn for training.

    Attributes:
        low: fewest points; their number is log-uniform.
        high: most points.
        patterns: ``uniform`` places (the paper), ``mixed`` ones for robust training, or a single kind of
            :func:`relief3d.data.prompt_sampling.choose_pixels`; ``lidar_returns`` and ``radar_returns`` are the raw
            clouds that are stored with the pictures, projected with a z-buffer, of which at most the drawn number of
            points is kept; they have errors of their own.
        noise: give other points errors, a third of the prompts excepted; truth stays as it is.
    """

    low: int = 20
    high: int = 2500
    patterns: Patterns = "mixed"
    noise: bool = True


@dataclass(frozen=True)
class SourcesConfig:
    """Where training depth comes from, and the prompt with it (:mod:`relief3d.worlds.depth_sources`).

    Every picture is seen through one source, drawn anew for every sample: in proportion to the root of these numbers,
    rendered in 15 % of the samples at least. Only rendered truth counts as exact.

    Attributes:
        reconstructed: size of the sources that imitate multi-view stereo.
        captured: of those that imitate lidar, time of flight and sparse sensors.
        rendered: of those without errors.
    """

    reconstructed: int = 0
    captured: int = 0
    rendered: int = 1

    def __post_init__(self) -> None:
        if min(self.reconstructed, self.captured) < 0 or self.rendered < 1:
            raise InputError(
                "sources have sizes from 0, and some depth must be rendered", remedy="sources.rendered"
            )

    @property
    def sizes(self) -> dict[Source, int]:
        """Of the sources that there are."""
        every: dict[Source, int] = {
            "reconstructed": self.reconstructed,
            "captured": self.captured,
            "rendered": self.rendered,
        }
        return {name: size for name, size in every.items() if size}


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out pictures, the same for every seed of training.

    Attributes:
        families: of worlds; those that training does not draw from hold out a whole family.
        worlds: per family, one picture of each.
        size: height and width.
        seed: of the worlds; training never uses it.
        prompts: ``<kind>-<points>``, with ``-noisy`` for 2 % noise and 5 % outliers.
    """

    families: tuple[Family, ...] = ("room", "objects", "street", "outdoor")
    worlds: int = 8
    size: tuple[int, int] = (128, 160)
    seed: int = 1_000_003
    prompts: tuple[str, ...] = ("uniform-100", "uniform-500", "keypoints-500-noisy")


@dataclass(frozen=True)
class PicturesConfig:
    """What runs on sparse prompts share, whatever the network.

    Attributes:
        size: of the network.
        pictures: sets that training draws from, in equal shares.
        folder: of rendered sets; empty: ``$RELIEF3D_CACHE/pictures``, or ``~/.cache/relief3d/pictures``.
        crop: height and width of training samples.
        batch: samples per micro-batch.
        mirror: chance of a mirrored sample.
        colours: changes of light and colour.
        prompts: see :class:`PromptConfig`.
        sources: see :class:`SourcesConfig`.
        start: file of weights of the same network that training starts from (fine-tuning); empty: random ones.
        evaluation: see :class:`EvaluationConfig`.
        train: of the loop.
    """

    size: Size = "nano"
    pictures: tuple[PictureSet, ...] = (PictureSet(),)
    folder: str = ""
    crop: tuple[int, int] = (112, 144)
    batch: int = 8
    mirror: float = 0.5
    colours: Photometric = field(default_factory=Photometric)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    start: str = ""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        height, width = self.crop
        if height % 2 or width % 2 or height < 16 or width < 16:
            raise InputError("a crop needs even sides of 16 pixels or more", remedy="crop")
        if any(height > p.size[0] or width > p.size[1] for p in self.pictures):
            raise InputError(f"a crop of {height}x{width} is larger than the pictures", remedy="crop")
        if self.batch < 1:
            raise InputError("a batch needs a sample", remedy="batch")
        if self.prompts.patterns == "lidar_returns" and any(0 in p.lidar for p in self.pictures):
            raise InputError(
                "prompts of lidar returns need pictures that have them", remedy="pictures[].lidar"
            )


@dataclass(frozen=True)
class PromptedConfig(PicturesConfig):
    """A run of the lean network.

    Attributes:
        losses: see :class:`relief3d.losses.prompted.PromptedOptions`.
    """

    losses: PromptedOptions = field(default_factory=PromptedOptions)


@dataclass(frozen=True)
class PyramidTeacherConfig(PicturesConfig):
    """A run of the pyramid teacher.

    Attributes:
        injection: how the condition enters; ``none`` leaves it out, so that depth has to come from picture and focal
            length alone.
        losses: the paper's, see :class:`relief3d.losses.metric_depth.TeacherOptions`.
    """

    injection: Literal["dpt", "adaln", "cross_attention", "controlnet", "parallel", "none"] = "dpt"
    losses: TeacherOptions = field(default_factory=TeacherOptions)
