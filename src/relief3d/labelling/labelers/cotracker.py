"""Point tracks by CoTracker (Karaev et al. 2023, 2024), when the user has installed its package.

Package and weights are for non-commercial use (CC BY-NC 4.0); they are never installed by relief3d.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from relief3d.core.contract import Scene
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError, MissingExtraError
from relief3d.core.optional import available, require
from relief3d.labelling.base import Grouping, Labels, Uses
from relief3d.labelling.labelers.lk_tracks import same_size_images, track_facts, verified_tracks
from relief3d.labelling.labelers.weights import folder_digest


@dataclass(frozen=True)
class CoTrackerOptions:
    """Options of ``tracks-cotracker``.

    Attributes:
        checkpoint: the file that CoTracker publishes.
        window: views per item.
        step: views from one item to the next.
        grid: points per side, spread over the middle view.
        max_return_px: largest distance between a point and its image there and back.
        max_epipolar_px: largest Sampson distance of a verified sighting; 0 turns the verification off.
    """

    checkpoint: Path = Path("scaled_offline.pth")
    window: int = 24
    step: int = 23
    grid: int = 24
    max_return_px: float = 2.0
    max_epipolar_px: float = 2.0


class CoTracker:
    """A grid of points followed through windows, checked there and back, and by epipolar geometry."""

    name = "tracks-cotracker"
    version = 1
    uses: frozenset[Uses] = frozenset({"image"})

    def __init__(self, options: CoTrackerOptions, device: str = "cpu") -> None:
        self.options = replace(options, checkpoint=Path(Path(options.checkpoint).name))
        self._checkpoint = Path(options.checkpoint)
        self.grouping = Grouping("window", options.window, options.step)
        self._device = device
        self._network: Any = None

    def weights_digest(self) -> str:
        """Of the checkpoint.

        Raises:
            MissingExtraError: the package is not installed.
            InputError: no such file.
        """
        if not available("cotracker"):
            raise MissingExtraError(
                "the labeler 'tracks-cotracker' needs the package 'cotracker'",
                remedy="install it from its authors if its licence suits you, or use tracks-lk",
            )
        if not self._checkpoint.is_file():
            raise InputError("the checkpoint is missing", path=self._checkpoint, remedy="set checkpoint=FILE")
        return folder_digest(self._checkpoint)

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Verified tracks over the views of a window."""
        images = same_size_images(scene)
        device = resolve_device(self._device)
        if self._network is None:
            predictor = require("cotracker.predictor", extra="hub", purpose="the labeler 'tracks-cotracker'")
            self._network = predictor.CoTrackerPredictor(checkpoint=str(self._checkpoint)).to(device)
        video = (torch.stack(images)[None] * 255).to(device)
        middle = len(images) // 2
        height, width = images[0].shape[-2:]
        steps = (torch.arange(self.options.grid) + 0.5) / self.options.grid
        ys, xs = torch.meshgrid(steps * height, steps * width, indexing="ij")
        # CoTracker counts pixel centres from 0.
        start = torch.stack([xs, ys], dim=-1).reshape(-1, 2) - 0.5
        xy, seen = self._run(video, torch.cat([torch.full((len(start), 1), float(middle)), start], dim=1))
        error = self._return_error(video, xy, seen, middle)
        seen &= error <= self.options.max_return_px
        seen[:, middle] = True
        tracks = verified_tracks(
            xy + 0.5,
            seen,
            error,
            max_return_px=self.options.max_return_px,
            max_epipolar_px=self.options.max_epipolar_px,
            seed=seed,
        )
        return Labels(tracks=tracks, facts=track_facts(tracks))

    def _run(self, video: torch.Tensor, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (T, N, 2) and sightings (T, N) of queries (T, 3): time, x, y."""
        xy, seen = self._network(video, queries=queries[None].to(video), backward_tracking=True)
        return xy[0].permute(1, 0, 2).float().cpu(), seen[0].permute(1, 0).bool().cpu()

    def _return_error(
        self, video: torch.Tensor, xy: torch.Tensor, seen: torch.Tensor, start: int
    ) -> torch.Tensor:
        """(T, N) how far a track started at its end in each view misses its start."""
        error = torch.zeros(seen.shape)
        for view in range(seen.shape[1]):
            rows = torch.nonzero(seen[:, view])[:, 0]
            if view == start or len(rows) == 0:
                continue
            queries = torch.cat([torch.full((len(rows), 1), float(view)), xy[rows, view]], dim=1)
            back, _ = self._run(video, queries)
            error[rows, view] = (back[:, start] - xy[rows, start]).norm(dim=1)
        return error
