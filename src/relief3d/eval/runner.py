"""Runs a protocol: answers are made or read, kept, measured and summarised; interrupted runs continue."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError, ReliefError
from relief3d.core.progress import Progress, SilentProgress, stage
from relief3d.eval.identity import check_names, query_key
from relief3d.eval.measurements import read_measurement, write_measurement
from relief3d.eval.metrics.depth_errors import unit_hint
from relief3d.eval.panels import task_panels
from relief3d.eval.predictions import (
    check_poses,
    fingerprint,
    kept_key,
    prediction_files,
    read_answer,
    write_answer,
)
from relief3d.eval.protocols.base import Answer, Measurement, Model, Protocol, Query, Sample, Truth

Oracle = Callable[[Query, Truth], Answer]
METRIC_TASKS = ("mono_depth", "mono_points", "prompted_depth")
"""Tasks whose depth must be in metres, so that a wrong unit is worth a hint also when nothing fails."""


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    Attributes:
        workers: samples computed side by side; 1 for models that use all cores themselves.
        panels: most samples to draw, spread evenly; 0 for none.
        again: ignore kept answers of the model and kept measurements.
        allow_missing: predictions that are absent are left out instead of refused.
        seed: added to the seed that the protocol gives to the model.
        model_name: who answers; answers of another name are not used.
    """

    workers: int = 1
    panels: int = 4
    again: bool = False
    allow_missing: bool = False
    seed: int = 0
    model_name: str = ""


@dataclass(frozen=True)
class RunOutcome:
    """What came out of a run, in the order of the samples.

    Attributes:
        measurements: of all samples that count.
        failed: reason per failed sample.
        left_out: failed samples without a measurement.
        panels: pictures (3, H, W) uint8 by "sample/name".
        hints: sentences about predictions that look as if they had the wrong unit, by sample.
        seconds: wall time.
    """

    measurements: Sequence[Measurement]
    failed: Mapping[str, str]
    left_out: int
    panels: Mapping[str, Tensor] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def choose_samples(samples: Sequence[Sample], subset: str | None) -> list[Sample]:
    """A part of the samples: a whole number takes that many groups spread evenly, anything else is a name pattern.

    Raises:
        InputError: nothing is left, two samples share a name, or a name cannot be that of a file.
    """
    names = [s.name for s in samples]
    if len(set(names)) != len(names):
        raise InputError("two samples have the same name")
    check_names(samples)
    if not samples:
        raise InputError("the data set holds no samples")
    if subset is None:
        return list(samples)
    if subset.isdigit():
        groups = list(dict.fromkeys(s.group for s in samples))
        count = min(int(subset), len(groups))
        if count < 1:
            raise InputError("--subset 0 leaves nothing to measure")
        kept = {groups[round(i * (len(groups) - 1) / max(count - 1, 1))] for i in range(count)}
        return [s for s in samples if s.group in kept]
    patterns = [p.strip() for p in subset.split(",") if p.strip()]
    chosen = [
        s
        for s in samples
        if any(fnmatch.fnmatchcase(s.name, p) or fnmatch.fnmatchcase(s.group, p) for p in patterns)
    ]
    if not chosen:
        raise InputError(
            f"no sample matches --subset '{subset}'",
            remedy=f"names look like '{names[0]}'; * matches anything",
        )
    return chosen


def check_present(samples: Sequence[Sample], predictions: Path) -> list[str]:
    """Names of samples without a prediction.

    Raises:
        InputError: the folder does not exist, or holds none at all.
    """
    if not predictions.is_dir():
        raise InputError("is not a folder of predictions", path=predictions)
    missing = [s.name for s in samples if not prediction_files(predictions, s.name)]
    if len(missing) == len(samples):
        raise InputError(
            f"holds a prediction for none of the {len(samples)} samples",
            path=predictions,
            remedy=f"the first sample is expected as {samples[0].name}.safetensors (or .npz, .npy, .png, .ply, .json)",
        )
    return missing


def run_protocol(
    protocol: Protocol,
    samples: Sequence[Sample],
    *,
    cache: Path,
    model: Model | None = None,
    oracle: Oracle | None = None,
    predictions: Path | None = None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
    data_key: str = "",
) -> RunOutcome:
    """Answer, keep, measure.

    Exactly one of ``model``, ``oracle`` and ``predictions`` says where answers come from. A model's answers are kept
    below ``cache/answers`` and used again, also after an interruption; measurements are kept below
    ``cache/measurements`` and used again while the prediction, the protocol's version and the data stay the same.
    Before an answer is measured anew it must be one to the very same query (:func:`query_key`).

    Args:
        protocol: the rules.
        samples: see :func:`choose_samples`.
        cache: folder for answers and measurements.
        model: maps a query to an answer.
        oracle: the same, but also sees the truth.
        predictions: folder of finished answers (see :mod:`relief3d.eval.predictions`).
        options: see :class:`RunOptions`.
        progress: shown per sample.
        data_key: identifies the data, so that kept numbers of other data are not used.

    Raises:
        InputError: predictions are missing or do not fit; the sentence names the sample.
    """
    if sum(x is not None for x in (model, oracle, predictions)) != 1:
        raise ValueError("give exactly one of model, oracle and predictions")
    options = options or RunOptions()
    began = time.monotonic()
    failed: dict[str, str] = {}
    left_out = 0
    if predictions is not None and (missing := check_present(samples, predictions)):
        if not options.allow_missing:
            shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            raise InputError(
                f"lacks predictions for {len(missing)} of {len(samples)} samples: {shown}",
                path=predictions,
                remedy="add them, choose a --subset, or pass --allow-missing to count them as failures",
            )
        failed |= dict.fromkeys(missing, "no prediction")
    drawn = _spread([s.name for s in samples], options.panels)
    job = _Job(protocol, cache, model, oracle, predictions, options, data_key, frozenset(drawn))
    done: dict[str, _Done] = {}
    with stage(progress or SilentProgress(), protocol.name, len(samples)) as shown_progress:
        for sample_done in job.run(samples, failed):
            done[sample_done.name] = sample_done
            shown_progress.advance(1, sample_done.name)
    measurements = []
    panels: dict[str, Tensor] = {}
    for sample in samples:
        one = done[sample.name]
        if one.reason is not None:
            failed[sample.name] = one.reason
        if one.measurement is None:
            left_out += 1
        else:
            measurements.append(one.measurement)
        panels |= one.panels
    hints = {name: one.hint for name, one in done.items() if one.hint is not None}
    return RunOutcome(measurements, failed, left_out, panels, hints, time.monotonic() - began)


def _spread(names: Sequence[str], count: int) -> list[str]:
    count = min(count, len(names))
    if count <= 0:
        return []
    return [names[round(i * (len(names) - 1) / max(count - 1, 1))] for i in range(count)]


@dataclass(frozen=True)
class _Done:
    name: str
    measurement: Measurement | None
    reason: str | None
    panels: Mapping[str, Tensor] = field(default_factory=dict)
    hint: str | None = None


@dataclass(frozen=True)
class _Job:
    """Everything the workers share; holds no sample, so memory is bounded by the samples in work."""

    protocol: Protocol
    cache: Path
    model: Model | None
    oracle: Oracle | None
    predictions: Path | None
    options: RunOptions
    data_key: str
    drawn: frozenset[str]

    def run(self, samples: Sequence[Sample], failed: Mapping[str, str]) -> Iterator[_Done]:
        """Samples as they are finished."""
        if self.options.workers <= 1:
            yield from (self._one(s, failed.get(s.name)) for s in samples)
            return
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(self.options.workers, initializer=torch.set_num_threads, initargs=(1,))
        try:
            futures: list[Future[_Done]] = [pool.submit(self._one, s, failed.get(s.name)) for s in samples]
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)

    @torch.no_grad()
    def _one(self, sample: Sample, missing: str | None) -> _Done:
        # Whatever is loaded is loaded once, and dropped with this sample.
        load_query, load_truth = functools.cache(self._seeded(sample)), functools.cache(sample.load_truth)
        sample = dataclasses.replace(sample, load_query=load_query, load_truth=load_truth)
        if missing is not None:
            return self._failure(sample, missing)
        answers = self.predictions if self.predictions is not None else self.cache / "answers"
        kept = self._kept(answers, sample.name)
        if self.predictions is None and kept is None:
            reason = self._answer(sample, answers)
            if reason is not None:
                return self._failure(sample, reason)
        if kept is not None and sample.name not in self.drawn:
            return _Done(sample.name, kept, None)
        query, truth = sample.load_query(), sample.load_truth()
        answer = read_answer(answers, sample.name)
        if kept is None:
            try:
                check_poses(answer)
                kept = self.protocol.measure(query, truth, answer)
            except InputError as exc:
                raise self._explained(exc, sample, truth, answer) from exc
            if kept.name != sample.name or kept.group != sample.group:
                raise RuntimeError(f"{self.protocol.name} measured '{kept.name}' as '{sample.name}'")
            write_measurement(self.cache / "measurements", kept, self._stamp(answers, sample.name))
        hint = _unit_hint(truth, answer) if self.protocol.task in METRIC_TASKS else None
        return _Done(sample.name, kept, None, self._panels(sample, query, truth, answer), hint)

    def _seeded(self, sample: Sample) -> Callable[[], Query]:
        def load() -> Query:
            query = sample.load_query()
            return dataclasses.replace(query, seed=query.seed + self.options.seed)

        return load

    def _stamp(self, answers: Path, name: str) -> str:
        """What a measurement depends on."""
        parts = [self.protocol.name, self.protocol.version, self.data_key]
        ran = [self.options.model_name, self.options.seed, kept_key(answers, name)]
        own = [] if self.predictions is not None else ran
        content = [*parts, *own, fingerprint(prediction_files(answers, name))]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _kept(self, answers: Path, name: str) -> Measurement | None:
        if self.options.again or (self.predictions is None and kept_key(answers, name) is None):
            return None
        return read_measurement(self.cache / "measurements", name, self._stamp(answers, name))

    def _answer(self, sample: Sample, answers: Path) -> str | None:
        """Make and keep the answer unless there is one to this query; the reason when the model failed."""
        try:
            query = sample.load_query()  # making a prompt may fail too, for example with too few points
            rules = f"{self.protocol.version} {self.data_key}" if self.oracle is not None else ""
            key = query_key(query, self.options.model_name, rules)
            if not self.options.again and kept_key(answers, sample.name) == key:
                return None
            if self.oracle is not None:
                answer = self.oracle(query, sample.load_truth())
            else:
                assert self.model is not None
                answer = self.model(query)
        except ReliefError as exc:
            return str(exc)
        write_answer(answers, sample.name, answer, key)
        return None

    def _failure(self, sample: Sample, reason: str) -> _Done:
        try:
            query, truth = sample.load_query(), sample.load_truth()
        except InputError:  # the sample itself cannot be made; the reason already says so
            return _Done(sample.name, None, reason)
        return _Done(sample.name, self.protocol.failure(query, truth, reason), reason)

    def _panels(self, sample: Sample, query: Query, truth: Truth, answer: Answer) -> dict[str, Tensor]:
        if sample.name not in self.drawn:
            return {}
        pictures = {**task_panels(query, truth, answer), **self.protocol.panels(query, truth, answer)}
        return {f"{sample.name}/{name}": picture for name, picture in pictures.items()}

    def _explained(self, exc: InputError, sample: Sample, truth: Truth, answer: Answer) -> InputError:
        """The same error with the sample's name, and a hint when the unit looks wrong."""
        return InputError(f"{sample.name}: {exc}", remedy=_unit_hint(truth, answer))


def _unit_hint(truth: Truth, answer: Answer) -> str | None:
    if "depth" not in truth.tensors or "depth" not in answer.tensors:
        return None
    p, g = answer.tensors["depth"], truth.tensors["depth"]
    return unit_hint(p[torch.isfinite(p) & (p > 0)], g[torch.isfinite(g) & (g > 0)])
