"""What a method offers to be trained by name: a configuration for every size and budget, and the task it describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from relief3d.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from relief3d.train.task import Task

Size = Literal["nano", "micro", "mini", "small", "full"]
Budget = Literal["smoke", "mini", "gpu", "paper"]
Strategy = Literal["ddp", "fsdp", "deepspeed"]
"""How several processes share a run; see :mod:`relief3d.train.distributed`."""
SIZES: tuple[Size, ...] = ("nano", "micro", "mini", "small", "full")
BUDGETS: tuple[Budget, ...] = ("smoke", "mini", "gpu", "paper")


class RecipeConfig(Protocol):
    """A frozen dataclass of plain values; one of its fields are the options of the loop."""

    @property
    def train(self) -> TrainConfig:
        """Options of the loop."""
        ...


@dataclass(frozen=True)
class SourcePlan:
    """A source of samples in a plan.

    Attributes:
        name: of the source.
        share: of the samples, in [0, 1].
        samples: how many it has; None: it makes new ones for ever.
    """

    name: str
    share: float
    samples: int | None


@dataclass(frozen=True)
class DataPlan:
    """What a run will see.

    Attributes:
        sources: with their shares.
        samples: per micro-batch, on average.
        images: per micro-batch, on average.
        sizes: height and width of the pictures, one of them per micro-batch.
        counts: every number of samples that a micro-batch may have; empty: unknown.
    """

    sources: tuple[SourcePlan, ...]
    samples: float
    images: float
    sizes: tuple[tuple[int, int], ...]
    counts: tuple[int, ...] = ()


class Trainable(Protocol):
    """What a recipe's task can say besides :class:`relief3d.train.task.Task`."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        """What the network says of a batch, without a loss; for plans of networks too large to be run."""
        ...

    def data_plan(self) -> DataPlan:
        """What a run will see."""
        ...

    def model_card(self) -> Mapping[str, Any]:
        """Facts for those who load the weights: architecture, size, what it was trained to give."""
        ...


if TYPE_CHECKING:

    class RecipeTask(Task, Trainable, Protocol):
        """Both."""


@dataclass(frozen=True)
class Recipe:
    """A method's training by name.

    Attributes:
        name: on the command line.
        title: one line.
        config: class of its configuration.
        make: the configuration for a size and a budget; any size goes with any budget.
        task: what is trained, from a configuration and the name of the device it will run on.
        use: how the weights are used, with {weights}, {size} and {side} to be filled in.
    """

    name: str
    title: str
    config: type[Any]
    make: Callable[[Size, Budget], Any]
    task: Callable[[Any, str], RecipeTask]
    use: str = "relief3d reconstruct PHOTOS -o OUT --model {weights} --model-size {size}{side}"
