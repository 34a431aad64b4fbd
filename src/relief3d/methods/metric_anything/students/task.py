"""Training of the students as the loop sees it: Student-DepthMap and Student-PointMap."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.seeding import derive_seed
from relief3d.losses.metric_depth import student_loss
from relief3d.methods.metric_anything.pictures import pictures_folder
from relief3d.methods.metric_anything.students import evaluation
from relief3d.methods.metric_anything.students.config import (
    DepthMapStudentConfig,
    PointMapStudentConfig,
    StudentConfig,
)
from relief3d.methods.metric_anything.students.panels import student_panel
from relief3d.methods.metric_anything.students.point_losses import point_map_loss
from relief3d.methods.metric_anything.students.samples import StudentBatch, StudentStream, split
from relief3d.methods.metric_anything.task import started
from relief3d.models.metric.inference import DepthMapModel, resize_pictures
from relief3d.models.metric.interface import Focal, GuessedFocalWarning
from relief3d.models.metric.networks import DepthMap
from relief3d.models.metric.pointmap import PointMap
from relief3d.models.metric.pointmap_configs import pointmap_config
from relief3d.models.metric.pointmap_infer import PointMapModel
from relief3d.models.metric.sizes import depth_map_config
from relief3d.train.recipe import DataPlan, SourcePlan
from relief3d.train.task import LossReport, StepInfo

PANELS = 2


class StudentTask(ABC):
    """What both students have in common; see :class:`relief3d.train.task.Task`.

    Args:
        config: of the run.
        device: where it will run; missing labels are made by the CPU in any case, ahead of it.
    """

    name = ""

    def __init__(self, config: Any, device: str = "cpu") -> None:
        self.config: StudentConfig = config

    @abstractmethod
    def network(self) -> nn.Module:
        """With random weights."""

    @abstractmethod
    def predictor(self, model: nn.Module) -> evaluation.Predictor:
        """How the network is asked for depth."""

    @cached_property
    def stream(self) -> StudentStream:
        """The micro-batches by position."""
        return StudentStream(self.config)

    def model(self) -> nn.Module:
        """The network with weights drawn from the run's seed, or those that it starts from.

        Raises:
            InputError: the file to start from cannot be read, or is of another network.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.train.seed, "weights"))
            network = self.network()
        return started(network, self.config.start)

    def batch(self, position: int, part: int = 0, parts: int = 1) -> StudentBatch:
        """Micro-batch number ``position``."""
        return self.stream.batch(position, part, parts)

    def samples(self, batch: StudentBatch) -> Sequence[str]:
        """``family-world-view`` of each."""
        return batch.names

    def split(self, batch: StudentBatch, parts: int) -> Sequence[StudentBatch]:
        """Samples in order."""
        return split(batch, parts)

    def to(self, batch: StudentBatch, device: torch.device) -> StudentBatch:
        """On a device."""
        return batch.to(device)

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @cached_property
    def held_out(self) -> evaluation.HeldOutPictures:
        """The pictures that are judged."""
        return evaluation.held_out_pictures(pictures_folder(self.config.folder), self.config.evaluation)

    @cached_property
    def constants(self) -> Mapping[str, float]:
        """What the best constants reach; they never change."""
        near = self.config.evaluation.near
        return evaluation.score_constants(self.held_out, self.config.hold_out, near)

    def evaluate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """See :func:`relief3d.methods.metric_anything.students.evaluation.score`; constants end in ``_constant``."""
        was = model.training
        with torch.no_grad():
            depth, focal = evaluation.predict_all(self.predictor(model), self.held_out)
        model.train(was)
        near = self.config.evaluation.near
        numbers = evaluation.score(depth, focal, self.held_out, self.config.hold_out, near)
        return {**numbers, **{f"{k}_constant": v for k, v in self.constants.items() if k in numbers}}

    def panels(self, model: nn.Module, step: int) -> Mapping[str, Tensor]:
        """Two held-out pictures of every family."""
        was, out = model.training, {}
        predict = self.predictor(model)
        for family in dict.fromkeys(self.held_out.families):
            for n, at in enumerate(self.held_out.of([family])[:PANELS]):
                rows = slice(at, at + 1)
                with torch.no_grad():
                    depth, _ = predict(self.held_out.images[rows], self.held_out.K[rows])
                out[f"{family}_{n}"] = student_panel(
                    self.held_out.images[at], depth[0].float().cpu(), self.held_out.depth[at]
                )
        model.train(was)
        return out

    # ---- what a person asks -----------------------------------------------------------------------------------------

    def data_plan(self) -> DataPlan:
        """Sets and shares, samples and pictures per micro-batch."""
        sets = self.config.pictures
        kept = ["+".join(f for f in rule.families if f not in self.config.hold_out) for rule in sets]
        counts = Counter(self.stream.pictures.place(i)[0] for i in self.stream.indices)
        total = len(self.stream.indices)
        return DataPlan(
            tuple(SourcePlan(kept[w], count / total, count) for w, count in sorted(counts.items())),
            float(self.config.batch),
            float(self.config.batch),
            (self.config.shape,),
            (self.config.batch,),
        )

    def card(self, architecture: str, gives: str) -> Mapping[str, Any]:
        """Facts that both cards say."""
        labels = self.config.labels
        return {
            "architecture": architecture,
            "size": self.config.size,
            "gives": gives,
            "unit": "metres",
            "labels": labels.kind
            if labels.kind == "truth"
            else f"{labels.kind}, {labels.rendered:g} rendered",
            "held_out_families": list(self.config.hold_out),
            "sizes": [list(self.config.shape)],
        }


class DepthMapTask(StudentTask):
    """Student-DepthMap: depth where the focal length is given."""

    name = "metric-student-depthmap"
    config: DepthMapStudentConfig

    def network(self) -> nn.Module:
        """See :func:`relief3d.models.metric.sizes.depth_map_config`."""
        return DepthMap(depth_map_config(self.config.size, skip_order=self.config.skip_order))

    def loss(
        self, model: nn.Module, batch: StudentBatch, info: StepInfo, teacher: nn.Module | None
    ) -> LossReport:
        """See :func:`relief3d.losses.metric_depth.student_loss`."""
        side = depth_map_config(self.config.size).side
        found = model(resize_pictures(batch.image, side))
        loss = student_loss(found.canonical, batch.targets(), self.config.losses)
        return LossReport(loss.total, {"absolute": loss.absolute, "gradient": loss.gradient})

    def predictor(self, model: nn.Module) -> evaluation.Predictor:
        """Given the true focal length, as the paper's tables 3 and 4 are measured."""
        asked, device = DepthMapModel(model), next(model.parameters()).device  # type: ignore[arg-type]

        def predict(images: Tensor, K: Tensor) -> tuple[Tensor, None]:
            return asked.predict(images.to(device), Focal.given(K[:, 0, 0])).depth, None

        return predict

    def forward(self, model: nn.Module, batch: StudentBatch) -> Any:
        """What the network says, without a loss."""
        return model(resize_pictures(batch.image, depth_map_config(self.config.size).side))

    def model_card(self) -> Mapping[str, Any]:
        """Architecture and what it gives."""
        return {
            **self.card("depth_map", "metric depth of a picture with a known focal length"),
            "skip_order": self.config.skip_order,
        }


class PointMapTask(StudentTask):
    """Student-PointMap: depth and focal length."""

    name = "metric-student-pointmap"
    config: PointMapStudentConfig

    def network(self) -> nn.Module:
        """See :func:`relief3d.models.metric.pointmap_configs.pointmap_config`; its tokens are those of the run."""
        return PointMap(replace(pointmap_config(self.config.size), tokens=self.config.tokens))

    def loss(
        self, model: nn.Module, batch: StudentBatch, info: StepInfo, teacher: nn.Module | None
    ) -> LossReport:
        """See :func:`~relief3d.methods.metric_anything.students.point_losses.point_map_loss`; tokens differ by step."""
        low, high = self.config.tokens
        luck = torch.rand((), generator=info.generator, device=batch.image.device)
        found = model(batch.image, low + min(high - low, int(luck * (high - low + 1))))
        return point_map_loss(found, batch, self.config.losses, info.generator)

    def predictor(self, model: nn.Module) -> evaluation.Predictor:
        """Not told the focal length; depth also where the network sees no surface, as MoGe evaluates."""
        model.eval()
        asked, device = PointMapModel(model, masked=False), next(model.parameters()).device  # type: ignore[arg-type]

        def predict(images: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
            with warnings.catch_warnings():
                # Where nothing can be solved, the guess is judged like any other answer.
                warnings.simplefilter("ignore", GuessedFocalWarning)
                found = asked.infer(images.to(device))
            return found.depth, found.focal.pixels

        return predict

    def forward(self, model: nn.Module, batch: StudentBatch) -> Any:
        """What the network says, without a loss."""
        return model(batch.image, self.config.tokens[1])

    def model_card(self) -> Mapping[str, Any]:
        """Architecture and what it gives."""
        return {
            **self.card("pointmap", "metric points and depth of a picture, its mask and its focal length"),
            "tokens": list(self.config.tokens),
        }
