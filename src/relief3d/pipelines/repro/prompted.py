"""What the tables about prompted networks share: presets per budget, configurations, and scores that are kept.

A score is a function of a network (or a classical method), a pattern and a test, so it is measured once per folder of
runs and read by every table that needs it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from torch import nn

from relief3d.core.errors import InputError
from relief3d.io.json_file import read_json_object, write_json
from relief3d.methods.metric_anything.config import (
    EvaluationConfig,
    PicturesConfig,
    PromptConfig,
    PromptedConfig,
    PyramidTeacherConfig,
    SourcesConfig,
)
from relief3d.methods.metric_anything.pattern_test import (
    Measured,
    PatternTest,
    PatternTestConfig,
    Spread,
    classical,
    constant,
    family_mean,
)
from relief3d.methods.metric_anything.pictures import PictureSet
from relief3d.methods.metric_anything.recipes import prompted, pyramid
from relief3d.methods.metric_anything.samples import pictures_root
from relief3d.pipelines.repro.experiment import Arm, ArmRun
from relief3d.pipelines.repro.trained import TrainedNetwork, trained_network
from relief3d.pipelines.train.configuration import to_plain
from relief3d.train.recipe import Budget, Size
from relief3d.worlds.config import Family

LEAN, PYRAMID = "metric-teacher", "metric-teacher-pyramid"
TRAINED_FAMILIES: tuple[Family, ...] = ("room", "objects", "street")
HELD_OUT: Family = "outdoor"
"""Family of worlds that no training sees."""
HELD_OUT_SEED = 1_000_003
CLASSICAL = {
    "nearest": "nearest point",
    "linear": "linear in 1/z (Delaunay)",
    "bilateral": "bilateral, 16 nearest",
    "guided": "guided filter",
}
BEST = "best_classical"


@dataclass(frozen=True)
class Preset:
    """Sizes of all runs at a budget.

    Attributes:
        small, size: of the lean network; the second one is the main one.
        pyramid: size of the pyramid network.
        worlds: per family, all of the data.
        views: per world.
        picture: height and width.
        lidar: rays stored with a picture.
        texture: pixels of texture pictures.
        crop, batch, steps: of training.
        points: fewest and most of a training prompt on a crop.
        radar_crop, radar_batch, radar_steps: of training on radar.
        held: worlds per family in tests.
        detailed: height and width, worlds of all families together, points of the resolution test.
        seeds: of the main tables.
    """

    small: Size = "nano"
    size: Size = "micro"
    pyramid: Size = "nano"
    worlds: int = 60
    views: int = 4
    picture: tuple[int, int] = (128, 160)
    lidar: tuple[int, int] = (32, 96)
    texture: int = 256
    crop: tuple[int, int] = (64, 80)
    batch: int = 8
    steps: int = 400
    points: tuple[int, int] = (6, 300)
    radar_crop: tuple[int, int] = (96, 128)
    radar_batch: int = 4
    radar_steps: int = 150
    held: int = 8
    detailed: tuple[tuple[int, int], int, int] = ((256, 320), 6, 600)
    seeds: tuple[int, ...] = (0, 1, 2)

    def sets(self, share: float = 1.0) -> tuple[PictureSet, ...]:
        """Training sets with the first worlds of every family: smaller ones are part of larger ones."""
        worlds = max(1, round(share * self.worlds))
        return tuple(self._set((family,), worlds, self.views, 0) for family in TRAINED_FAMILIES)

    def _set(
        self, families: tuple[Family, ...], worlds: int, views: int, seed: int, size: tuple[int, int] = (0, 0)
    ) -> PictureSet:
        size = size if size[0] else self.picture
        return PictureSet(
            families, worlds, views, size, lidar=self.lidar, texture_size=self.texture, seed=seed
        )

    def test(
        self, families: Sequence[Family] = (*TRAINED_FAMILIES, HELD_OUT), views: int = 1, **more: Any
    ) -> PatternTestConfig:
        """Held-out worlds of some families."""
        sets = tuple(self._set((family,), self.held, 2, HELD_OUT_SEED) for family in families)
        return PatternTestConfig(sets, views, **more)

    def detailed_test(self) -> PatternTestConfig:
        """Larger held-out pictures of all families."""
        size, worlds, _ = self.detailed
        every: tuple[Family, ...] = (*TRAINED_FAMILIES, HELD_OUT)
        return PatternTestConfig((self._set(every, worlds, self.views, 1, size),))


PRESETS: Mapping[Budget, Preset] = {
    "smoke": Preset(
        size="nano",
        worlds=2,
        views=2,
        picture=(48, 64),
        lidar=(8, 24),
        texture=32,
        crop=(32, 48),
        batch=2,
        steps=2,
        points=(6, 100),
        radar_crop=(48, 64),
        radar_batch=2,
        radar_steps=1,
        held=1,
        detailed=((64, 80), 1, 60),
        seeds=(0,),
    ),
    "mini": Preset(),
}


def preset(budget: Budget) -> Preset:
    """Sizes at a budget.

    Raises:
        InputError: the tables do not have it.
    """
    if budget not in PRESETS:
        raise InputError(
            f"the tables about prompted networks have no budget '{budget}'",
            remedy=f"there are {', '.join(PRESETS)}",
        )
    return PRESETS[budget]


def _common(p: Preset, base: PicturesConfig, share: float) -> dict[str, Any]:
    train = replace(
        base.train,
        steps=p.steps,
        precision="float32",
        workers=0,
        checkpoint=replace(base.train.checkpoint, every=100, seconds=60),
        log=replace(base.train.log, every=20, panels=0, evaluate=0, utilisation=False),
    )
    return {
        "pictures": p.sets(share),
        "crop": p.crop,
        "batch": p.batch,
        "prompts": PromptConfig(*p.points, "uniform", noise=False),
        "sources": SourcesConfig(1, 1, 1),
        "evaluation": EvaluationConfig(families=()),
        "train": train,
    }


def lean_config(p: Preset, share: float = 1.0, size: Size | None = None, **changes: Any) -> PromptedConfig:
    """The lean network on all sources with clean uniform prompts, on a share of the worlds."""
    base = prompted(size or p.size, "mini")
    return replace(base, **{**_common(p, base, share), **changes})


def pyramid_config(p: Preset, **changes: Any) -> PyramidTeacherConfig:
    """The pyramid on the same samples."""
    base = pyramid(p.pyramid, "mini")
    return replace(base, **{**_common(p, base, 1.0), **changes})


def radar_config(p: Preset, start: str = "") -> PromptedConfig:
    """The lean network on radar returns and exact depth."""
    config = lean_config(
        p,
        crop=p.radar_crop,
        batch=p.radar_batch,
        prompts=PromptConfig(500, 500, "radar_returns", noise=False),
        sources=SourcesConfig(),
        start=start,
    )
    return replace(config, train=replace(config.train, steps=p.radar_steps))


# ---- scores ---------------------------------------------------------------------------------------------------------

Entrant = Callable[[ArmRun], tuple[str, Spread]]
"""A name that tells everything that decides the numbers, and the way of spreading."""


def network(
    recipe: str,
    config: Any,
    wrap: Callable[[nn.Module], Spread],
    *,
    way: str = "",
    seed: int | None = None,
) -> Entrant:
    """A trained network as an entrant.

    Args:
        recipe: its recipe.
        config: of it.
        wrap: how it spreads a prompt.
        way: name of that, when it is not the usual way for the recipe.
        seed: of training; None: that of the run.
    """

    def enter(run: ArmRun) -> tuple[str, Spread]:
        net = trained_network(run, recipe, config.size, config, seed=seed)
        return network_key(net) + (f"-{way}" if way else ""), wrap(net.model)

    return enter


def network_key(net: TrainedNetwork) -> str:
    """Name of a network among scores."""
    return net.weights.parent.name


class Scores:
    """A test and what was measured on it.

    Args:
        config: of the test.
        patterns: of the table.
    """

    def __init__(self, config: PatternTestConfig, patterns: Sequence[str]) -> None:
        self.config, self.patterns = config, tuple(patterns)

    @cached_property
    def test(self) -> PatternTest:
        """The pictures; rendered when they are asked for."""
        return PatternTest(pictures_root(PromptedConfig()), self.config)

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the numbers besides the entrant."""
        return {"test": to_plain(self.config), "patterns": list(self.patterns)}

    def of(self, run: ArmRun, key: str, spread: Spread, pattern: str) -> list[Measured]:
        """Numbers of an entrant under a pattern, measured now or before."""
        digest = hashlib.sha256(json.dumps(to_plain(self.config), sort_keys=True).encode()).hexdigest()[:12]
        path = run.shared / "scores" / key / f"{pattern}-{digest}.json"
        if not path.is_file():
            found = self.test.measure(pattern, spread)
            write_json(path, {"pictures": [asdict(m) for m in found]})
        rows = read_json_object(path)["pictures"]
        return [Measured(**{k: _back(v) for k, v in row.items()}) for row in rows]

    def numbers(self, run: ArmRun, entrant: Entrant) -> dict[str, float]:
        """AbsRel in % by pattern, their geometric ``mean``, that of the held-out family (``held_out``), and ``f1``."""
        key, spread = entrant(run)
        found = {pattern: self.of(run, key, spread, pattern) for pattern in self.patterns}
        out = {p: 100 * family_mean(m, lambda x: x.abs_rel) for p, m in found.items()}
        out["mean"] = _ratio_mean(list(out.values()))
        unseen = [100 * family_mean(m, lambda x: x.abs_rel, HELD_OUT) for m in found.values()]
        out["held_out"] = _ratio_mean(unseen)
        out["f1"] = fmean(family_mean(m, lambda x: x.f1) for m in found.values())
        return out

    def best(self, run: ArmRun, entrants: Sequence[Entrant]) -> dict[str, float]:
        """The best of several under every pattern: a choice that sees the truth."""
        every = [self.numbers(run, entrant) for entrant in entrants]
        out = {p: min(n[p] for n in every) for p in (*self.patterns, "held_out")}
        return {
            **out,
            "mean": _ratio_mean([out[p] for p in self.patterns]),
            "f1": max(n["f1"] for n in every),
        }

    # ---- arms ----

    def arm(self, name: str, title: str, entrant: Entrant, parameters: Mapping[str, Any]) -> Arm:
        """A network's row."""
        return Arm(name, title, {**self.parameters, **parameters}, lambda run: self.numbers(run, entrant))

    def classical_arms(self, best: bool = True) -> tuple[Arm, ...]:
        """Rows of the interpolators, of the best of them under every pattern, and of the constant."""
        own = {name: classical_entrant(name) for name in CLASSICAL}
        arms = [
            Arm(name, title, self.parameters, lambda run, e=own[name]: self.numbers(run, e))  # type: ignore[misc]
            for name, title in CLASSICAL.items()
        ]
        if best:
            title = "the best of these four, chosen for every pattern by its result"
            arms.append(Arm(BEST, title, self.parameters, lambda run: self.best(run, list(own.values()))))
        flat: Entrant = lambda run: ("classical-constant", constant)  # noqa: E731
        title = "constant: the prompt's median"
        arms.append(Arm("constant", title, self.parameters, lambda run: self.numbers(run, flat), True))
        return tuple(arms)


def classical_entrant(name: str) -> Entrant:
    """An interpolator."""
    return lambda run: (f"classical-{name}", classical(name))


def _ratio_mean(values: Sequence[float]) -> float:
    """Geometric mean: hard patterns do not drown easy ones. An error of nothing counts as a millionth."""
    return math.exp(fmean(math.log(max(value, 1e-6)) for value in values))


def _back(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_back(v) for v in value)
    return float("nan") if value is None else value
