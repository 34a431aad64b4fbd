"""Preference tests of SAM 3D on objects and scenes: votes between methods, win rate and Elo.

A sample is one target with the comparisons made on it. The answer is a judge's verdicts: recorded human votes (the
truth of the data set) or those of a model that stands in for people, whose agreement with the recorded votes is a
column of its own.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, numpy_generator
from relief3d.eval.aggregation import pooled
from relief3d.eval.metrics.preference import (
    SCORES,
    anchor_ratings,
    components,
    fit_ratings,
    wilson_interval,
    win_matrix,
)
from relief3d.eval.protocols.base import (
    Answer,
    Budget,
    Column,
    Measurement,
    Protocol,
    Query,
    Sample,
    Truth,
)
from relief3d.eval.published.sam3d import HEADLINE, REWARD_AGREEMENT
from relief3d.eval.published.table import PublishedRow
from relief3d.eval.twins.objects import object_meshes
from relief3d.eval.twins.voters import shape_utility, simulated_vote
from relief3d.io.json_file import Record, read_json_object
from relief3d.io.whole_file import read_utf8

VOTES_FILE = "votes.jsonl"
STUDY_FILE = "study.json"
_SYNONYMS = {"equal": "tie", "both_bad": "tie"}
_TWIN_SKILL = {"ours": 0.012, "baseline": 0.014, "weak": 0.018}
"""Size of the bumps on the twin's candidates, share of the longest side."""

COLUMNS = (
    Column("win_rate", "win rate", "%", better=None),
    Column("win_low", "low", "%", better=None),
    Column("win_high", "high", "%", better=None),
    Column("odds", "wins per loss", better=None),
    Column("elo", "Elo", better="higher"),
    Column("agreement", "agreement with the recorded votes", "%", better="higher"),
    Column("votes", "votes", better=None),
)
PREFERENCE_LAYOUT = """DATA/votes.jsonl: one JSON object per line, {"target", "left", "right", "winner"}, the
  winner being left, right or tie, with an optional "set" (iso3d, pref, sa3dao, lvis); further keys are ignored;
DATA/study.json (optional): {"subject": method whose win rate is reported, "reference": method with an Elo of 1000}.
Predictions: <target>.json with {"winners": ["left", ...]}, one verdict per comparison in the order of the query."""

_VOTE = 'give one JSON object per line: {"target", "left", "right", "winner"}'


@dataclass(frozen=True)
class Comparison:
    """One recorded vote; see :data:`PREFERENCE_LAYOUT`."""

    target: str
    left: str
    right: str
    winner: str
    group: str = ""


@dataclass(frozen=True)
class Study:
    """All votes of a test.

    Attributes:
        votes: recorded.
        subject: the method whose win rate is reported.
        reference: the method with an Elo of 1000.
    """

    votes: tuple[Comparison, ...]
    subject: str
    reference: str

    @property
    def methods(self) -> list[str]:
        """Subject, reference, then the others in alphabetical order: their places are the methods' numbers."""
        known = {v.left for v in self.votes} | {v.right for v in self.votes}
        return [self.subject, self.reference, *sorted(known - {self.subject, self.reference})]


def read_votes(data: Path) -> Study:
    """Votes of a folder.

    Raises:
        InputError: no votes, a line that is no vote, or a subject or reference that no vote names.
    """
    path = data / VOTES_FILE
    if not path.is_file():
        raise InputError(f"lacks {VOTES_FILE}", path=data, remedy=_VOTE)
    votes = []
    for number, line in enumerate(read_utf8(path).splitlines(), 1):
        if line.strip():
            votes.append(_vote(line, number, path))
    given: Mapping[str, Any] = {}
    if (data / STUDY_FILE).is_file():
        given = read_json_object(data / STUDY_FILE)
    return make_study(votes, given.get("subject"), given.get("reference"), path)


def _vote(line: str, number: int, path: Path) -> Comparison:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as exc:
        raise InputError(f"line {number} is not valid JSON ({exc.msg})", path=path) from exc
    if not isinstance(values, dict):
        raise InputError(f"line {number} is not a JSON object", path=path, remedy=_VOTE)
    record = Record(values, path, f"line {number}")
    fields = {key: record.text(key) for key in ("target", "left", "right", "winner")}
    lacking = [key for key, value in fields.items() if value is None]
    if lacking:
        raise record.error(f"lacks {', '.join(lacking)}", _VOTE)
    target, left, right, winner = (str(value) for value in fields.values())
    if left == right:
        raise record.error(f"compares '{left}' with itself")
    if PurePosixPath(target).is_absolute() or ".." in PurePosixPath(target).parts:
        raise record.error(f"the target '{target}' is not a plain name", "answers are kept under it")
    return Comparison(target, left, right, _verdict(winner, f"line {number}", path), record.text("set") or "")


def _verdict(winner: str, where: str, path: Path | None = None) -> str:
    winner = _SYNONYMS.get(winner, winner)
    if winner not in SCORES:
        raise InputError(f"{where}: the winner is left, right or tie, not '{winner}'", path=path)
    return winner


def make_study(
    votes: Sequence[Comparison], subject: str | None, reference: str | None, path: Path | None = None
) -> Study:
    """Votes with a chosen subject and reference; by default "ours" or the first method, and the next one.

    Raises:
        InputError: no vote, or a name that no vote has.
    """
    if not votes:
        raise InputError("holds no votes", path=path)
    known = sorted({v.left for v in votes} | {v.right for v in votes})
    for name in (subject, reference):
        if name is not None and name not in known:
            raise InputError(f"no vote names '{name}'", path=path, remedy=f"use one of {', '.join(known)}")
    subject = subject or ("ours" if "ours" in known else known[0])
    reference = reference or next(name for name in known if name != subject)
    if subject == reference:
        raise InputError(f"'{subject}' cannot be both subject and reference", path=path)
    return Study(tuple(votes), subject, reference)


class PreferenceProtocol(Protocol):
    """Votes between methods.

    Attributes:
        sets: names of the sets that have a column of their own (texture).
    """

    task = "records"
    layout = PREFERENCE_LAYOUT
    notes = (
        "A tie counts half a win for each side, in the win rate, in Elo and (against a verdict) in the agreement.",
        "Elo: Bradley-Terry by maximum likelihood with a normal prior of 400 points, the reference at 1000; not "
        "available when no chain of comparisons links subject and reference.",
        "'low' and 'high' are Wilson's 95% interval, which takes votes as independent; the interval of the bootstrap "
        "draws targets.",
        "The twin's voters are simulated from known shapes (objects.md 5.7); nothing follows from them about people.",
    )

    def __init__(
        self,
        name: str,
        title: str,
        source: str,
        rows: Callable[[], Sequence[PublishedRow]],
        twin: Callable[[Budget, int], Study],
        sets: Sequence[str] = (),
    ) -> None:
        self.name, self.title, self.source = name, title, source
        self.sets = tuple(sets)
        self.columns = COLUMNS + tuple(Column(s, f"win rate, {s}", "%", better=None) for s in self.sets)
        self._rows, self._twin = rows, twin

    def open(self, data: Path) -> list[Sample]:
        return self._samples(read_votes(data))

    def twin(self, budget: Budget, seed: int = 0) -> list[Sample]:
        return self._samples(self._twin(budget, seed))

    def _samples(self, study: Study) -> list[Sample]:
        methods = study.methods
        by_target: dict[str, list[Comparison]] = {}
        for vote in study.votes:
            by_target.setdefault(vote.target, []).append(vote)

        def sample(target: str, votes: Sequence[Comparison]) -> Sample:
            pairs = [[v.left, v.right] for v in votes]
            query = Query(target, "records", ("winners",), facts={"target": target, "pairs": pairs})
            truth = Truth(
                facts={
                    "winners": [v.winner for v in votes],
                    "methods": methods,
                    "sets": [v.group for v in votes],
                }
            )
            return Sample(target, target, lambda: query, lambda: truth)

        return [sample(target, votes) for target, votes in by_target.items()]

    def measure(self, query: Query, truth: Truth, answer: Answer) -> Measurement:
        pairs, methods = query.facts["pairs"], truth.facts["methods"]
        winners = answer.facts.get("winners")
        if not isinstance(winners, list) or len(winners) != len(pairs):
            raise InputError(
                f"the answer to '{query.name}' needs 'winners', a list of {len(pairs)} verdicts",
                remedy="give left, right or tie for every pair of the query",
            )
        verdicts = [SCORES[_verdict(str(w), f"the answer to '{query.name}'")] for w in winners]
        recorded = [SCORES[w] for w in truth.facts["winners"]]
        number = {name: float(i) for i, name in enumerate(methods)}
        arrays = {
            "left": np.array([number[left] for left, _ in pairs]),
            "right": np.array([number[right] for _, right in pairs]),
            "score": np.array(verdicts),
            "agreement": 1 - np.abs(np.array(verdicts) - np.array(recorded)),
            "set": np.array(
                [float(self.sets.index(s)) if s in self.sets else -1.0 for s in truth.facts["sets"]]
            ),
        }
        return Measurement(query.name, query.name, {"votes": float(len(pairs))}, arrays=arrays)

    def summarise(self, measurements: Sequence[Measurement]) -> dict[str, float]:
        names = ("left", "right", "score", "agreement", "set")
        left, right, score, agreement, where = (pooled(measurements, name) for name in names)
        left, right = left.astype(np.int64), right.astype(np.int64)
        summary = {c.key: float("nan") for c in self.columns} | {"votes": float(len(score))}
        if not len(score):
            return summary
        # The subject is method 0, the reference method 1.
        subject = (left == 0) | (right == 0)
        won = np.where(left == 0, score, 1 - score)
        if subject.any():
            wins, count = float(won[subject].sum()), int(subject.sum())
            low, high = wilson_interval(wins, count)
            rate = wins / count
            summary |= {"win_rate": 100 * rate, "win_low": 100 * low, "win_high": 100 * high}
            summary["odds"] = rate / (1 - rate) if rate < 1 else math.inf
        for i, name in enumerate(self.sets):
            here = subject & (where == i)
            if here.any():
                summary[name] = 100 * float(won[here].mean())
        methods = max(2, int(max(left.max(), right.max())) + 1)
        wins_over = win_matrix(left, right, score, methods)
        part = components(wins_over)
        if part[0] == part[1]:
            summary["elo"] = float(anchor_ratings(fit_ratings(wins_over), part, 1)[0])
        summary["agreement"] = 100 * float(agreement.mean())
        return summary

    def published(self) -> Sequence[PublishedRow]:
        return self._rows()


def corrupted(mesh: Mesh, strength: float, rng: np.random.Generator) -> Mesh:
    """A candidate of a simulated method: the true shape with smooth random bumps.

    Args:
        mesh: in the object frame (longest side 1).
        strength: size of the bumps, share of the longest side.
        rng: of the bumps.
    """
    wave = torch.from_numpy(rng.normal(0, 6, (3, 3)))
    phase = torch.from_numpy(rng.uniform(0, math.tau, 3))
    bumps = torch.sin(mesh.vertices.double() @ wave + phase)
    return Mesh((mesh.vertices.double() + strength * bumps).float(), mesh.faces)


def simulated_study(budget: Budget, seed: int, objects: int) -> Study:
    """Votes of simulated annotators between three methods of known skill.

    Args:
        budget: how many targets.
        seed: of worlds, candidates and votes.
        objects: per target: one, or several whose utilities are averaged (a scene).
    """
    targets, voters = (4, 2) if budget == "smoke" else (24, 3)
    votes = []
    for index in range(targets):
        world = seed * 1000 + index
        rng = numpy_generator(derive_seed(world, "voters", objects))
        meshes = object_meshes(world, objects)
        utility = {}
        for method, skill in _TWIN_SKILL.items():
            marks = [shape_utility(corrupted(m, skill * rng.uniform(0.5, 1.5), rng), m) for m in meshes]
            utility[method] = math.fsum(marks) / len(marks)
        votes += vote_on_all_pairs(f"target_{world:06d}", utility, voters, rng)
    return make_study(votes, "ours", "baseline")


def vote_on_all_pairs(
    target: str, utility: Mapping[str, float], voters: int, rng: np.random.Generator, group: str = ""
) -> list[Comparison]:
    """Every voter compares every pair of methods, sides at random."""
    votes = []
    for _ in range(voters):
        for pair in itertools.combinations(utility, 2):
            left, right = pair if rng.random() < 0.5 else pair[::-1]
            winner = simulated_vote(utility[left], utility[right], rng)
            votes.append(Comparison(target, left, right, winner, group))
    return votes


def _object_rows() -> Sequence[PublishedRow]:
    return HEADLINE.select({"odds": "objects"}) + REWARD_AGREEMENT.select({"agreement": "agreement"})


PROTOCOLS: tuple[Protocol, ...] = (
    PreferenceProtocol(
        "preference_objects",
        "Preference for single objects",
        "SAM 3D, headline 5:1 and reward models of the appendix; objects.md 5.5, 6.4, 4.4",
        _object_rows,
        lambda budget, seed: simulated_study(budget, seed, objects=1),
    ),
    PreferenceProtocol(
        "preference_scenes",
        "Preference for scenes of several objects",
        "SAM 3D, headline 6:1; objects.md 5.5, 6.4",
        lambda: HEADLINE.select({"odds": "scenes"}),
        lambda budget, seed: simulated_study(budget, seed, objects=2),
    ),
)
