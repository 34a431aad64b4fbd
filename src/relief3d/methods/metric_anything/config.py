"""Options of training on sparse metric prompts; every value is plain, so that they go to YAML and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from relief3d.core.errors import InputError
from relief3d.data.photometric import Photometric
from relief3d.losses.prompted import PromptedOptions
from relief3d.methods.metric_anything.pictures import PictureSet
from relief3d.train.config import TrainConfig
from relief3d.train.recipe import Size
from relief3d.worlds.config import Family

Patterns = Literal["uniform", "mixed"]


@dataclass(frozen=True)
class PromptConfig:
    """Prompts that are drawn for training.

    Attributes:
        low: fewest points; their number is log-uniform.
        high: most points.
        patterns: ``uniform`` places (the paper), or ``mixed`` ones for robust training.
        noise: give points errors, a third of the prompts excepted; truth stays exact.
    """

    low: int = 20
    high: int = 2500
    patterns: Patterns = "mixed"
    noise: bool = True


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
class PromptedConfig:
    """A run on sparse prompts.

    Attributes:
        size: of the network.
        pictures: sets that training draws from, in equal shares.
        folder: of rendered sets; empty: ``$RELIEF3D_CACHE/pictures``, or ``~/.cache/relief3d/pictures``.
        crop: height and width of training samples.
        batch: samples per micro-batch.
        mirror: chance of a mirrored sample.
        colours: changes of light and colour.
        prompts: see :class:`PromptConfig`.
        losses: see :class:`relief3d.losses.prompted.PromptedOptions`.
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
    losses: PromptedOptions = field(default_factory=PromptedOptions)
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
