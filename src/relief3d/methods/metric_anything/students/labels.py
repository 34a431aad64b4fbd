"""What pictures are taught by: rendered truth, what an imitated source says, or a prompted teacher's answer.

Labels of a world are made once and kept beside the pictures, in a folder named by everything that decides them, the
teacher's weights included. A picture's source, its errors and the prompt follow from seeds, so that every run with the
same options learns from the same labels, and any process may make them.
Source: MetricAnything 3.3; specification 1.3, 7.7 and 19.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress, track
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.prompt_sampling import choose_pixels
from relief3d.io.atomic import write_bytes
from relief3d.labelling.quality import hold_out, hold_out_error
from relief3d.losses.metric_depth import LABEL_RANGE
from relief3d.losses.moge_objective import Label
from relief3d.methods.metric_anything.pictures import Pictures, PictureSource, set_folder
from relief3d.methods.metric_anything.students.config import LabelConfig
from relief3d.models.metric.prompted import PromptedDepth
from relief3d.models.metric.refiner_loading import load_refiner
from relief3d.worlds.depth_sources import CapturedErrors, Family, ReconstructedErrors, observe

FORMAT = 1
LEAST_POINTS = 5
_NEAR, _FAR, _CODES = 1e-3, 1e3, 65533
"""Depth is kept as the logarithm between these metres in 16 bits (steps of 0.02 %), 0 for unknown."""

Source = Literal["reconstructed", "captured", "rendered"]


@dataclass(frozen=True)
class PictureLabel:
    """What one picture is taught by.

    Attributes:
        depth: (H, W) metres, 0 where nothing is known.
        source: of the picture.
        usable: whether it passes the quality rule.
        error: the teacher's median relative error at raw pixels that it was not told; 0 for other labels.
    """

    depth: Tensor
    source: Source
    usable: bool = True
    error: float = 0.0

    def kind(self, labels: LabelConfig) -> Label:
        """Which terms of MoGe-2's loss it can teach: rendered and teacher's depth all, sensors' few."""
        if self.source == "rendered" or labels.kind == "teacher":
            return "A"
        return "B" if self.source == "reconstructed" else "C"


def encode_depth(depth: Tensor) -> np.ndarray:
    """Depth in metres (0: unknown) as 16-bit codes of its logarithm."""
    value = depth.double().numpy()
    safe = np.clip(np.where(value > 0, value, 1.0), _NEAR, _FAR)
    code = 1 + np.rint(np.log(safe / _NEAR) / math.log(_FAR / _NEAR) * _CODES)
    return np.where(value > 0, code, 0).astype(np.uint16)


def decode_depth(code: np.ndarray) -> Tensor:
    """The inverse of :func:`encode_depth`, float32."""
    share = (code.astype(np.float32) - 1) / _CODES
    depth = _NEAR * np.exp(share * np.float32(math.log(_FAR / _NEAR)))
    return torch.from_numpy(np.where(code > 0, depth, 0).astype(np.float32))


def source_errors(severity: float) -> tuple[ReconstructedErrors, CapturedErrors]:
    """The sources' errors times a factor; shares stay below 95 %."""
    r, c, s = ReconstructedErrors(), CapturedErrors(), severity
    low = 1 - min(0.8, s * (1 - c.range_share[0]))
    return (
        replace(
            r,
            holes=min(0.95, s * r.holes),
            failures=min(0.5, s * r.failures),
            fatten=s * r.fatten,
            fattened=min(0.95, s * r.fattened),
            thin=s * r.thin,
            drift=s * r.drift,
            noise=s * r.noise,
        ),
        replace(
            c,
            shift=s * c.shift,
            noise=s * c.noise,
            dropout=min(0.8, s * c.dropout),
            range_share=(low, c.range_share[1]),
            outliers=min(0.5, s * c.outliers),
        ),
    )


class LabelSource:
    """Labels of pictures by number.

    Args:
        pictures: where pictures come from; labels lie in the same folder of sets.
        config: what labels they get.
        device: where a teacher runs.
    """

    def __init__(self, pictures: PictureSource, config: LabelConfig, device: str = "cpu") -> None:
        self.pictures, self.config, self.device = pictures, config, device

    def source(self, index: int) -> Source:
        """Where a picture's depth comes from; rendered for all of them where truth is taught."""
        if self.config.kind == "truth":
            return "rendered"
        first, second = torch.rand(2, generator=self._generator(index, "source")).tolist()
        if first < self.config.rendered:
            return "rendered"
        return "reconstructed" if second < self.config.reconstructed else "captured"

    def label(self, index: int, picture: Pictures) -> PictureLabel:
        """What a picture (V = 1, as it was rendered) is taught by.

        Raises:
            InputError: a damaged file, or the teacher's weights cannot be used.
        """
        source = self.source(index)
        if source == "rendered":
            return PictureLabel(picture.depth[0], source)
        which, world, view = self.pictures.place(index)
        path = self._file(which, world)
        if not path.exists():
            self.make(which, world)
        try:
            with safe_open(path, "np") as file:
                code = file.get_slice("depth")[view]
                error = float(file.get_slice("error")[view])
        except (OSError, SafetensorError, KeyError, IndexError, ValueError) as exc:
            raise InputError(
                "a file of labels cannot be read", path=path, remedy="delete it, and it will be made again"
            ) from exc
        depth = decode_depth(code)
        low, high = LABEL_RANGE
        # Sky has no depth; that it is seen as such is supposed here, and is no part of what is compared.
        depth = torch.where((picture.depth[0] > 0) & (depth >= low) & (depth <= high), depth, 0.0)
        limit = self.config.max_error
        return PictureLabel(depth, source, limit <= 0 or error <= limit, error)

    def raw(self, index: int, picture: Pictures) -> Tensor:
        """(H, W) what the picture's source says, 0 where nothing."""
        source = self.source(index)
        family: Family = source
        reconstructed, captured = source_errors(self.config.severity)
        made = observe(
            family,
            picture.image[0].float() / 255,
            picture.depth[0],
            picture.K[0],
            self._generator(index, "errors"),
            normals=picture.normals[0].permute(1, 2, 0).float() / 127,
            albedo=(picture.albedo[0].float() / 255).expand(3, -1, -1),
            reconstructed=reconstructed,
            captured=captured,
        )
        return made.depth

    def make(self, which: int, world: int) -> None:
        """Make and keep the labels of one world of a set."""
        views = self.pictures.rules[which].views
        indices = [
            (world * views + view) * len(self.pictures.rules) + which for view in range(views)
        ]  # the inverse of PictureSource.place
        depths: list[Tensor] = []
        errors: list[float] = []
        for index in indices:
            picture = self.pictures.picture(index)
            depth, error = self.raw(index, picture), 0.0
            if self.config.kind == "teacher" and self.source(index) != "rendered":
                depth, error = self._taught(index, picture, depth)
            depths.append(depth)
            errors.append(error)
        code = np.stack([encode_depth(d) for d in depths])
        data = save({"depth": code, "error": np.array(errors, np.float32)})
        write_bytes(self._file(which, world), data)

    def fill(self, indices: list[int], progress: Progress | None = None) -> None:
        """Make all labels of pictures that are not there yet."""
        places = {self.pictures.place(i)[:2] for i in indices if self.source(i) != "rendered"}
        missing = [place for place in sorted(places) if not self._file(*place).exists()]
        for place in track(progress or SilentProgress(), "labelling", missing):
            if not self._file(*place).exists():
                self.make(*place)

    def digest(self, which: int) -> str:
        """Name of the labels of a set: a hash of what decides them."""
        c = self.config
        decides = {
            "format": FORMAT,
            "set": self.pictures.rules[which].digest,
            "kind": c.kind,
            "rendered": c.rendered,
            "reconstructed": c.reconstructed,
            "severity": c.severity,
            "seed": c.seed,
        }
        if c.kind == "teacher":
            decides |= {"teacher": self._teacher_digest, "points": c.points}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_teacher"}

    def _seed(self, index: int, what: str) -> int:
        which, world, view = self.pictures.place(index)
        return derive_seed(self.config.seed, what, self.pictures.rules[which].digest, world, view)

    def _generator(self, index: int, what: str) -> torch.Generator:
        return torch_generator(self._seed(index, what))

    def _file(self, which: int, world: int) -> Path:
        beside = set_folder(self.pictures.root, self.pictures.rules[which]).parent
        return beside / f"labels-{self.digest(which)}" / f"world-{world:06d}.safetensors"

    @cached_property
    def _teacher_digest(self) -> str:
        """Of the file, or of an index with the shards beside it."""
        path = Path(self.config.teacher)
        shards = sorted(path.parent.glob("*.safetensors")) if path.suffix == ".json" else []
        found = hashlib.sha256()
        try:
            for file in (path, *shards):
                found.update(file.read_bytes())
            return found.hexdigest()
        except OSError as exc:
            raise InputError("the teacher's weights cannot be read", path=path) from exc

    @cached_property
    def _teacher(self) -> PromptedDepth:
        return load_refiner(self.config.teacher, device=self.device)

    @torch.no_grad()
    def _taught(self, index: int, picture: Pictures, raw: Tensor) -> tuple[Tensor, float]:
        """The teacher's depth (H, W), and its median relative error at raw pixels that it was not told.

        Where a source knows almost nothing there is no prompt, and the raw label stays.
        """
        held = hold_out(raw > 0, self._seed(index, "held"))
        known = (raw > 0) & ~held
        if int(known.sum()) < LEAST_POINTS:
            return raw, math.inf
        generator = self._generator(index, "prompt")
        chosen = choose_pixels("uniform", raw, known, min(self.config.points, int(known.sum())), generator)
        prompt = torch.where(chosen, raw, 0.0)
        image = picture.image.float().to(self.device) / 255
        found = self._teacher.predict_sparse(image, [prompt]).depth[0].cpu()
        error = hold_out_error(found, raw, held)
        return found, error if math.isfinite(error) else math.inf
