"""Point tracks without any network: corners followed from picture to picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.labelling.base import Grouping, Labels, TrackLabel, Uses
from relief3d.labelling.epipolar import verify
from relief3d.labelling.lucas_kanade import LkOptions, find_corners, follow_there_and_back, grey, pyramid


@dataclass(frozen=True)
class LkTrackOptions:
    """Options of ``tracks-lk``.

    Attributes:
        window: views per item.
        step: views from one item to the next.
        points: corners at most, per view they start in.
        starts: views of the window in which new corners are looked for, evenly spread.
        max_return_px: largest distance between a point and its image there and back, per step.
        max_epipolar_px: largest Sampson distance of a verified sighting; 0 turns the verification off.
        distance: least distance of two corners in x or y, pixels.
    """

    window: int = 8
    step: int = 7
    points: int = 512
    starts: int = 1
    max_return_px: float = 0.7
    max_epipolar_px: float = 1.5
    distance: int = 6

    def __post_init__(self) -> None:
        Grouping("window", self.window, self.step)
        if self.points < 1 or not 1 <= self.starts <= self.window or self.max_return_px <= 0:
            raise InputError("track options are out of range", remedy="points >= 1, 1 <= starts <= window")


def track_window(
    images: list[Tensor], options: LkTrackOptions, lk: LkOptions | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow corners through pictures of one size.

    Args:
        images: (3, H, W) RGB in [0, 1] each, in order.
        options: corners and thresholds.
        lk: the tracker.

    Returns:
        Positions (T, N, 2), sightings (T, N) bool, and the largest there-and-back error (T, N) in pixels on the way
        from the view in which the corner was found.
    """
    lk = lk or LkOptions()
    count = len(images)
    greys = [grey(image) for image in images]
    pyramids = [pyramid(g, lk.levels) for g in greys]
    places = sorted({round((k + 0.5) * (count - 1) / options.starts) for k in range(options.starts)})
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in places:
        corners = find_corners(greys[start], options.points, distance=options.distance, options=lk)
        xy = corners[:, None].repeat(1, count, 1)
        seen = torch.zeros(len(corners), count, dtype=torch.bool, device=xy.device)
        seen[:, start] = True
        worst = torch.zeros(len(corners), count, device=xy.device)
        for path in (range(start + 1, count), range(start - 1, -1, -1)):
            before = start
            for now in path:
                alive = torch.nonzero(seen[:, before])[:, 0]
                if len(alive) == 0:
                    break
                there, good, error = follow_there_and_back(
                    pyramids[before], pyramids[now], xy[alive, before], options.max_return_px, lk
                )
                xy[alive, now], seen[alive, now] = there, good
                worst[alive, now] = torch.maximum(worst[alive, before], error)
                before = now
        parts.append((xy, seen, worst))
    joined = [torch.cat([part[k] for part in parts]) for k in range(3)]
    return joined[0], joined[1], joined[2]


def verified_tracks(
    xy: Tensor, seen: Tensor, error: Tensor | None, *, max_return_px: float, max_epipolar_px: float, seed: int
) -> TrackLabel:
    """Tracks of at least two sightings, after the epipolar verification.

    Confidence is the share of partner sightings that agree under epipolar geometry (1 without verification) times
    ``exp(-(error / max_return_px)^2)``, error being that of the check there and back (None: no such factor).
    """
    if max_epipolar_px > 0:
        kept, confidence = verify(xy, seen, threshold=max_epipolar_px, seed=seed)
    else:
        kept = seen & (seen.sum(1) >= 2)[:, None]
        confidence = kept.to(torch.float32)
    if error is not None:
        confidence = confidence * torch.exp(-(error / max_return_px).square())
    long = kept.any(1)
    zero = torch.zeros(())
    return TrackLabel(
        torch.where(kept[..., None], xy, zero)[long].to(torch.float32),
        kept[long],
        torch.where(kept, confidence, zero)[long].to(torch.float32),
    )


def same_size_images(scene: Scene) -> list[Tensor]:
    """The pictures of a scene.

    Raises:
        InputError: fewer than two, or of several sizes.
    """
    if len(scene) < 2:
        raise InputError("tracks need at least two pictures")
    images = [view.load_image() for view in scene.views]
    if len({tuple(i.shape) for i in images}) > 1:
        raise InputError("the pictures differ in size", remedy="resize them to one size first")
    return images


def track_facts(tracks: TrackLabel) -> dict[str, float | int]:
    """Numbers of tracks and sightings."""
    sightings = int(tracks.visible.sum())
    return {
        "tracks": len(tracks),
        "sightings": sightings,
        "mean_length": round(sightings / max(1, len(tracks)), 3),
    }


class LkTracks:
    """Corners followed there and back through windows of consecutive views."""

    name = "tracks-lk"
    version = 1
    uses: frozenset[Uses] = frozenset({"image"})

    def __init__(self, options: LkTrackOptions, device: str = "cpu") -> None:
        self.options = options
        self.grouping = Grouping("window", options.window, options.step)
        self._device = device

    def weights_digest(self) -> None:
        """No weights."""
        return

    def label(self, scene: Scene, *, seed: int, work: Path) -> Labels:
        """Verified tracks over the views of a window."""
        device = resolve_device(self._device)
        images = [image.to(device) for image in same_size_images(scene)]
        xy, seen, error = (t.cpu() for t in track_window(images, self.options))
        tracks = verified_tracks(
            xy,
            seen,
            error,
            max_return_px=self.options.max_return_px,
            max_epipolar_px=self.options.max_epipolar_px,
            seed=seed,
        )
        facts = track_facts(tracks) | {"sightings_before_verification": int(seen.sum())}
        return Labels(tracks=tracks, facts=facts)
