"""Training of the pyramid teacher: conditions in place of candidates, the paper's loss in canonical inverse depth.

Pictures, sources, prompts and seeds are those of the lean network (:mod:`samples`): with equal options both see the
same samples in the same order. The prior is "none" (:mod:`relief3d.data.prompt_preparation`): the condition holds the
mean of the nearest points and the mean of all, and the mask. Focal lengths are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.seeding import derive_seed
from relief3d.data.prompt_alignment import GlobalOptions, PixelwiseOptions, prompt_condition
from relief3d.losses.metric_depth import DepthTarget, teacher_loss
from relief3d.methods.metric_anything import evaluation
from relief3d.methods.metric_anything.config import PicturesConfig, PyramidTeacherConfig
from relief3d.methods.metric_anything.samples import PromptedStream, pictures_root
from relief3d.methods.metric_anything.task import PANELS, data_plan, started
from relief3d.models.metric.inference import TeacherModel, canonical_condition, metric_depth, resize_pictures
from relief3d.models.metric.interface import Focal
from relief3d.models.metric.networks import Teacher
from relief3d.models.metric.sizes import teacher_config
from relief3d.train.recipe import DataPlan
from relief3d.train.task import LossReport, StepInfo

_FEW = GlobalOptions(scale_only_below=10)
_TENSORS = ("image", "depth", "exact", "condition", "focal")


@dataclass(frozen=True)
class PyramidBatch:
    """B samples.

    Attributes:
        image: (B, 3, H, W) in [0, 1].
        depth: (B, H, W) z-depth of the source in metres, 0 where unknown.
        exact: (B,) bool, rendered truth.
        condition: (B, 3, H, W) in 1/m, see :func:`condition_of`.
        focal: (B,) fx in pixels of the samples.
        names: of the pictures.
    """

    image: Tensor
    depth: Tensor
    exact: Tensor
    condition: Tensor
    focal: Tensor
    names: tuple[str, ...]

    def __getitem__(self, rows: slice) -> PyramidBatch:
        """Some samples."""
        return PyramidBatch(**{n: getattr(self, n)[rows] for n in _TENSORS}, names=self.names[rows])


def condition_of(prompt: Tensor) -> Tensor:
    """(3, H, W) PDSA and GMDR without a prior, in 1/m, and mask of a sparse prompt (H, W)."""
    none = torch.ones_like(prompt)
    return prompt_condition(none, prompt, pixelwise=PixelwiseOptions(fewer=True), overall=_FEW).values


class PyramidStream(PromptedStream):
    """The samples of :class:`PromptedStream`, prepared for the pyramid."""

    def batch(self, position: int, part: int = 0, parts: int = 1) -> PyramidBatch:  # type: ignore[override]
        """A batch or a share of it."""
        samples = [self._conditioned(*key) for key in self.keys(position, part, parts)]
        joined = {n: torch.cat([getattr(s, n) for s in samples]) for n in _TENSORS}
        return PyramidBatch(**joined, names=tuple(name for s in samples for name in s.names))

    def _conditioned(self, index: int, seed: int) -> PyramidBatch:
        view, prompt, exact = self.draw(index, seed)
        return PyramidBatch(
            view.image,
            view.depth,
            torch.tensor([exact]),
            condition_of(prompt)[None],
            view.K[:, 0, 0],
            view.names,
        )


class PyramidTask:
    """The pyramid teacher on rendered pictures; see :class:`relief3d.train.task.Task`.

    Args:
        config: of the run.
        device: where it will run; pictures are rendered on the CPU in any case.
    """

    name = "metric-teacher-pyramid"

    def __init__(self, config: PyramidTeacherConfig, device: str = "cpu") -> None:
        self.config = config

    @cached_property
    def stream(self) -> PyramidStream:
        """The micro-batches by position."""
        return PyramidStream(self.config)

    def model(self) -> nn.Module:
        """The network with weights drawn from the run's seed, or those that it starts from."""
        kind = self.config.injection
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.train.seed, "weights"))
            network = Teacher(teacher_config(self.config.size, injection="dpt" if kind == "none" else kind))
        return started(network, self.config.start)

    def batch(self, position: int, part: int = 0, parts: int = 1) -> PyramidBatch:
        """Micro-batch number ``position``."""
        return self.stream.batch(position, part, parts)

    def samples(self, batch: PyramidBatch) -> Sequence[str]:
        """``family-world-view`` of each."""
        return batch.names

    def split(self, batch: PyramidBatch, parts: int) -> Sequence[PyramidBatch]:
        """Samples in order."""
        count = len(batch.image)
        size = math.ceil(count / min(parts, count))
        return [batch[at : at + size] for at in range(0, count, size)]

    def to(self, batch: PyramidBatch, device: torch.device) -> PyramidBatch:
        """On a device."""
        return replace(batch, **{n: getattr(batch, n).to(device) for n in _TENSORS})

    def forward(self, model: nn.Module, batch: PyramidBatch) -> Any:
        """What the network says, without a loss."""
        side = model.config.side if isinstance(model, Teacher) else 4 * teacher_config(self.config.size).tile
        told = None
        if self.config.injection != "none":
            told = canonical_condition(batch.condition, batch.focal, int(batch.image.shape[-1]), side)
        return model(resize_pictures(batch.image, side), told)

    def loss(
        self, model: nn.Module, batch: PyramidBatch, info: StepInfo, teacher: nn.Module | None
    ) -> LossReport:
        """The paper's: see :func:`relief3d.losses.metric_depth.teacher_loss`."""
        found = self.forward(model, batch)
        width = int(batch.image.shape[-1])
        with torch.autocast(batch.image.device.type, enabled=False):
            targets = [
                DepthTarget(depth, depth > 0, float(focal) / width, bool(exact))
                for depth, focal, exact in zip(batch.depth, batch.focal, batch.exact, strict=True)
            ]
            loss = teacher_loss(found.canonical, targets, self.config.losses)
        return LossReport(loss.total, {"absolute": loss.absolute, "gradient": loss.gradient})

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @cached_property
    def _held_out(self) -> Mapping[str, evaluation.HeldOut]:
        config, root = self.config.evaluation, pictures_root(self.config)
        return {family: evaluation.HeldOut(root, config, family) for family in config.families}

    @cached_property
    def classical(self) -> Mapping[str, float]:
        """What interpolation says; it never changes."""
        return evaluation.score_classical(self._held_out)

    def evaluate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        """AbsRel by family and prompt, and that of the interpolators."""
        assert isinstance(model, Teacher)
        out: dict[str, float] = {}
        blind = self.config.injection == "none"
        for family, scenes in self._held_out.items():
            for text, prompts in scenes.prompts.items():
                depth = [
                    pyramid_depth(model, image, prompt, focal, blind=blind)
                    for image, prompt, focal in zip(scenes.images, prompts, scenes.focal, strict=True)
                ]
                out[f"{family}_{text}"] = evaluation.abs_rel(torch.stack(depth), scenes.depth)
        return {**out, **self.classical}

    def panels(self, model: nn.Module, step: int) -> Mapping[str, Tensor]:
        """Two held-out pictures of every family with the last prompt."""
        from relief3d.methods.metric_anything.panels import prompted_panel

        assert isinstance(model, Teacher)
        out: dict[str, Tensor] = {}
        for family, scenes in self._held_out.items():
            prompts = scenes.prompts[list(scenes.prompts)[-1]]
            for n in range(min(PANELS, len(scenes.images))):
                image, truth = scenes.images[n], scenes.depth[n]
                blind = self.config.injection == "none"
                depth = pyramid_depth(model, image, prompts[n], scenes.focal[n], blind=blind)
                panel = prompted_panel(image, prompts[n], depth, truth, torch.ones_like(truth))
                out[f"{family}_{n}"] = panel
        return out

    # ---- what a person asks -----------------------------------------------------------------------------------------

    def data_plan(self) -> DataPlan:
        """Sets and shares, samples and pictures per micro-batch."""
        return data_plan(self.config)

    def model_card(self) -> Mapping[str, Any]:
        """Architecture and what it gives."""
        config: PicturesConfig = self.config
        return {
            "architecture": "teacher",
            "size": config.size,
            "injection": self.config.injection,
            "gives": "canonical inverse depth from a picture and a condition",
            "unit": "that of the prompt, with a known focal length",
            "prompts": [config.prompts.low, config.prompts.high],
            "sizes": [list(config.crop)],
        }


def pyramid_depth(
    model: Teacher, image: Tensor, prompt: Tensor, focal: Tensor | float, *, blind: bool = False
) -> Tensor:
    """(H, W) metres of a picture (3, H, W) in [0, 1] and a prompt (H, W).

    Args:
        model: the network; it is left in the mode that it was in.
        image: the picture.
        prompt: 0 where unknown.
        focal: fx in pixels of the picture.
        blind: the network is not told the prompt.
    """
    was, device = model.training, next(model.parameters()).device
    known = Focal.given(torch.as_tensor(focal))
    picture = image[None].to(device)
    wrapped = TeacherModel(model)  # switches to evaluation mode
    try:
        if not blind:
            return wrapped.predict(picture, condition_of(prompt)[None], known).depth[0].cpu()
        with torch.no_grad():
            said = model(resize_pictures(picture, wrapped.side), None)
        height, width = (int(n) for n in prompt.shape)
        return metric_depth(said.canonical, known.pixels, (height, width), wrapped.limits)[0][0].cpu()
    finally:
        model.train(was)
