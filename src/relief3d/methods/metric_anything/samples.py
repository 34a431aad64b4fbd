"""From rendered pictures to training samples of the prompted networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.draw_order import permuted
from relief3d.data.photometric import change_colours
from relief3d.data.prompt_alignment import NEIGHBOURS
from relief3d.data.prompt_candidates import PromptCandidates, prompt_candidates
from relief3d.data.prompt_noise import NoiseRanges, PromptNoise, add_noise
from relief3d.data.prompt_sampling import (
    MIXED,
    CountOptions,
    Kind,
    SamplingOptions,
    choose_pixels,
    draw_count,
    sample_prompt,
)
from relief3d.geometry.point_splat import splat_depth
from relief3d.methods.metric_anything.config import RETURNS, PicturesConfig, PromptConfig, SourcesConfig
from relief3d.methods.metric_anything.pictures import Pictures, PictureSource, pictures_folder
from relief3d.worlds.depth_sources import draw_family, observe

NOISY = PromptNoise(relative=0.02, outliers=0.05)
"""Errors of the evaluation's noisy prompts."""
POINTS_MULTIPLE = 256
"""Points of a batch are padded to a multiple of this."""
_TRIES = 20


@dataclass(frozen=True)
class PromptedBatch:
    """B samples.

    Attributes:
        image: (B, 3, H, W) in [0, 1].
        depth: (B, H, W) true z-depth, 0 where unknown.
        exact: (B,) bool, rendered truth.
        candidates: of the prompts.
        off: (B, P) log inverse depth of each point less the truth at its place.
        known: (B, P) bool, points with a truth.
        names: of the pictures.
    """

    image: Tensor
    depth: Tensor
    exact: Tensor
    candidates: PromptCandidates
    off: Tensor
    known: Tensor
    names: tuple[str, ...]

    @property
    def truth(self) -> Tensor:
        """(B, H, W) log inverse depth relative to the prompt's median; anything where depth is unknown."""
        safe = torch.where(self.depth > 0, self.depth, 1.0)
        return -safe.log() - self.candidates.middle[:, None, None]

    def to(self, device: torch.device | str) -> PromptedBatch:
        """On a device."""
        moved = {n: getattr(self, n).to(device) for n in ("image", "depth", "exact", "off", "known")}
        return replace(self, **moved, candidates=self.candidates.to(device))


def pictures_root(config: PicturesConfig) -> Path:
    """Folder of rendered sets."""
    return pictures_folder(config.folder)


class PromptedStream:
    """Training batches by position; a function of position and configuration alone.

    Args:
        config: of the run.
        device: where missing pictures are rendered.
    """

    def __init__(self, config: PicturesConfig, device: str = "cpu") -> None:
        self.config = config
        self.source = PictureSource(pictures_root(config), config.pictures, device)
        self.options = sampling_options(config.prompts)

    def keys(self, position: int, part: int = 0, parts: int = 1) -> list[tuple[int, int]]:
        """Picture and seed of every sample of a batch.

        Raises:
            InputError: the batch cannot be shared equally.
        """
        if self.config.batch % parts:
            raise InputError(
                f"a batch of {self.config.batch} samples cannot be shared between {parts} processes",
                remedy="batch",
            )
        share = self.config.batch // parts
        first = position * self.config.batch + part * share
        seed = self.config.train.seed
        out = []
        for number in range(first, first + share):
            epoch, place = divmod(number, len(self.source))
            index = permuted(place, len(self.source), derive_seed(seed, "epoch", epoch))
            out.append((index, derive_seed(seed, "sample", number)))
        return out

    def batch(self, position: int, part: int = 0, parts: int = 1) -> PromptedBatch:
        """A batch or a share of it."""
        return collate([self._sample(*key) for key in self.keys(position, part, parts)])

    def _sample(self, index: int, seed: int) -> PromptedBatch:
        view, prompt, exact = self.draw(index, seed)
        return make_sample(view, prompt, exact)

    def draw(self, index: int, seed: int) -> tuple[Pictures, Tensor, bool]:
        """A view (V = 1) of a picture with the depth that a source gives of it, its prompt (H, W), and whether the
        depth is exact. The next picture takes the place of one that shows too little.

        Raises:
            InputError: many pictures in a row do.
        """
        for attempt in range(_TRIES):
            picture = self.source.picture((index + attempt) % len(self.source))
            picture, exact = observed(
                picture, self.config.sources, torch_generator(derive_seed(seed, "source", attempt))
            )
            generator = torch_generator(derive_seed(seed, "view", attempt))
            view = augmented(picture, self.config, generator)
            prompt = self._prompt(view, generator)
            if prompt is not None:
                return view, prompt, exact
        raise InputError(
            f"{_TRIES} pictures in a row show almost nothing but sky, or nothing that gives a prompt"
        )

    def _prompt(self, view: Pictures, generator: torch.Generator) -> Tensor | None:
        """(H, W) sparse depth of a view, None where it has fewer than five points."""
        depth, known = view.depth[0], view.depth[0] > 0
        if self.config.prompts.patterns not in RETURNS:
            drawn = sample_prompt(depth, known, generator, self.options, image=view.image[0])
            return None if drawn is None else drawn.prompt.depth
        given = returns_prompt(view, self.config.prompts.patterns)
        count = draw_count(int(known.sum()), depth.numel(), generator, self.options.count)
        places = torch.nonzero(given.reshape(-1))[:, 0]
        kept = places[torch.randperm(len(places), generator=generator)[:count]]
        if len(kept) < NEIGHBOURS:
            return None
        thinned = torch.zeros_like(given.reshape(-1))
        thinned[kept] = given.reshape(-1)[kept]
        return thinned.reshape(given.shape)


def sampling_options(config: PromptConfig) -> SamplingOptions:
    """What the prompts of a run are drawn from."""
    single = "uniform" if config.patterns in RETURNS else config.patterns
    kinds = dict(MIXED) if config.patterns == "mixed" else {single: 1.0}
    count = CountOptions(low=config.low, high=config.high, full_pixels=0)
    return SamplingOptions(count, kinds, NoiseRanges() if config.noise else None)  # type: ignore[arg-type]


def observed(picture: Pictures, sources: SourcesConfig, generator: torch.Generator) -> tuple[Pictures, bool]:
    """A picture (V = 1) with the depth that a source drawn for it would give, and whether that is exact.

    Errors are those of the whole picture, so they are made before it is cropped.
    """
    if set(sources.sizes) == {"rendered"}:
        return picture, True
    made = observe(
        draw_family(sources.sizes, generator),
        picture.image[0].float() / 255,
        picture.depth[0],
        picture.K[0],
        generator,
        normals=picture.normals[0].permute(1, 2, 0).float() / 127,
        albedo=(picture.albedo[0].float() / 255).expand(3, -1, -1),
    )
    return replace(picture, depth=made.depth[None]), made.synthetic


def returns_prompt(view: Pictures, kind: str) -> Tensor:
    """(H, W) sparse depth of the raw ``lidar_returns`` or ``radar_returns`` of a view (V = 1); the nearest wins."""
    points = (view.lidar if kind == "lidar_returns" else view.radar)[0]
    points = points[torch.isfinite(points).all(-1)]
    height, width = view.depth.shape[-2:]
    return splat_depth(points, view.K[0], (int(height), int(width))).to(view.depth)


def augmented(picture: Pictures, config: PicturesConfig, generator: torch.Generator) -> Pictures:
    """A crop (V = 1), perhaps mirrored, in other colours; the image as float in [0, 1]."""
    height, width = config.crop
    full = picture.depth.shape[-2:]
    luck = torch.rand(3, generator=generator).tolist()
    top = int(luck[0] * (full[0] - height + 1))
    left = int(luck[1] * (full[1] - width + 1))
    rows, cols = slice(top, top + height), slice(left, left + width)
    image = picture.image[..., rows, cols].float() / 255
    depth = picture.depth[..., rows, cols]
    K = picture.K.clone()
    K[:, 0, 2] -= left
    K[:, 1, 2] -= top
    lidar, radar = picture.lidar, picture.radar
    if luck[2] < config.mirror:
        image, depth = image.flip(-1), depth.flip(-1)
        K[:, 0, 2] = width - K[:, 0, 2]
        turn = torch.tensor([-1.0, 1.0, 1.0])
        lidar, radar = lidar * turn, radar * turn
    image = change_colours(image[None], config.colours, generator)[0]
    return replace(picture, image=image, depth=depth, K=K, lidar=lidar, radar=radar)


def make_sample(view: Pictures, prompt: Tensor, exact: bool = True) -> PromptedBatch:
    """One sample (B = 1) from a view with a float image and a sparse prompt (H, W)."""
    candidates = prompt_candidates(prompt)
    xy = candidates.xy[0].long()
    at = view.depth[0][xy[:, 1], xy[:, 0]]
    known = at > 0
    said = candidates.value[0] + candidates.middle
    off = torch.where(known, said + torch.where(known, at, 1.0).log(), 0.0)
    return PromptedBatch(
        view.image, view.depth, torch.tensor([exact]), candidates, off[None], known[None], view.names
    )


def collate(samples: list[PromptedBatch]) -> PromptedBatch:
    """Samples of one size in a batch."""
    candidates = PromptCandidates.stack([s.candidates for s in samples], POINTS_MULTIPLE)
    longest = candidates.value.shape[1]

    def padded(value: Tensor) -> Tensor:
        return torch.cat([value, value.new_zeros(1, longest - value.shape[1])], 1)

    return PromptedBatch(
        torch.cat([s.image for s in samples]),
        torch.cat([s.depth for s in samples]),
        torch.cat([s.exact for s in samples]),
        candidates,
        torch.cat([padded(s.off) for s in samples]),
        torch.cat([padded(s.known) for s in samples]),
        tuple(name for s in samples for name in s.names),
    )


def split(batch: PromptedBatch, parts: int) -> list[PromptedBatch]:
    """The samples in order, in at most ``parts`` smaller batches."""
    count = len(batch.image)
    size = math.ceil(count / min(parts, count))
    out = []
    for at in range(0, count, size):
        rows = slice(at, at + size)
        candidates = batch.candidates
        out.append(
            PromptedBatch(
                batch.image[rows],
                batch.depth[rows],
                batch.exact[rows],
                candidates[rows],
                batch.off[rows],
                batch.known[rows],
                batch.names[rows],
            )
        )
    return out


def named_prompt(text: str, depth: Tensor, image: Tensor, seed: int) -> Tensor:
    """A prompt of an evaluation by name, such as ``uniform-500`` or ``keypoints-500-noisy``.

    Args:
        text: kind, number of points, and ``noisy`` for 2 % noise and 5 % outliers.
        depth: (H, W) true depth, 0 where unknown.
        image: (3, H, W) in [0, 1].
        seed: of the draw.

    Returns:
        (H, W) sparse depth.

    Raises:
        InputError: a name that says something else.
    """
    kind, _, rest = text.partition("-")
    number, _, noisy = rest.partition("-")
    if kind not in MIXED or not number.isdigit() or noisy not in ("", "noisy"):
        raise InputError(
            f"'{text}' names no prompt", remedy="say for example uniform-500 or keypoints-500-noisy"
        )
    generator = torch_generator(seed)
    name: Kind = kind  # type: ignore[assignment]
    chosen = choose_pixels(name, depth, depth > 0, int(number), generator, image)
    given = torch.where(chosen, depth, 0.0)
    return add_noise(given, NOISY, generator) if noisy else given
