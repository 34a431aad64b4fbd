"""A protocol's result as a file: numbers, intervals, and everything needed to repeat them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relief3d.core.errors import InputError
from relief3d.core.memory import peak_rss
from relief3d.core.provenance import commit, hardware, versions
from relief3d.eval.protocols.base import Measurement, Protocol
from relief3d.eval.statistics import RESAMPLES, bootstrap
from relief3d.io.json_file import read_json_object, write_json

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """One model on one protocol.

    Attributes:
        protocol, title, source, version: of the protocol.
        model: name shown in the table.
        data: "procedural twin (mini, seed 0)" or the name of the data folder.
        comparable: the data are the benchmark's own and complete, so the published rows may be compared.
        oracle: the model saw the truth (an upper bound or a best constant), not a method.
        summary: one number per column; None where nothing could be measured.
        interval: (low, high) per column, 95 % bootstrap over groups, None with fewer than two groups.
        samples, groups: how many were measured.
        failed: reason per sample on which the model failed.
        left_out: failed samples that do not count in the numbers.
        per_group: summary of every group.
        provenance: command, seed, commit, versions, hardware, wall time, memory.
    """

    protocol: str
    title: str
    source: str
    version: int
    model: str
    data: str
    comparable: bool
    oracle: bool
    summary: Mapping[str, float | None]
    interval: Mapping[str, tuple[float, float] | None]
    samples: int
    groups: int
    failed: Mapping[str, str]
    left_out: int
    per_group: Mapping[str, Mapping[str, float | None]]
    provenance: Mapping[str, Any]


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {k: (float(v) if math.isfinite(v) else None) for k, v in numbers.items()}


def make_result(
    protocol: Protocol,
    measurements: Sequence[Measurement],
    *,
    model: str,
    data: str,
    comparable: bool,
    oracle: bool = False,
    failed: Mapping[str, str] | None = None,
    left_out: int = 0,
    seed: int = 0,
    command: str = "",
    wall_seconds: float = 0.0,
    resamples: int = RESAMPLES,
) -> EvaluationResult:
    """Summarise measurements.

    Args:
        protocol: gives the columns.
        measurements: of all samples that count.
        model: name for the table.
        data: what was measured on.
        comparable: see :class:`EvaluationResult`.
        oracle: see :class:`EvaluationResult`.
        failed: reason per failed sample.
        left_out: failed samples without a measurement.
        seed: of twin, model and bootstrap.
        command: that repeats the result.
        wall_seconds: of the whole run.
        resamples: of the bootstrap.

    Raises:
        InputError: nothing was measured.
    """
    if not measurements:
        why = next(iter((failed or {}).values()), "there are no samples")
        raise InputError(f"nothing could be measured on {protocol.name}: {why}")
    if all(m.weight == 0 for m in measurements):
        raise InputError(
            f"no valid pixels in any sample of {protocol.name}",
            remedy="check the unit of the true depth and the range that counts",
        )
    summary = protocol.summarise(measurements)
    wrong = {c.key for c in protocol.columns} - set(summary)
    if wrong:
        raise RuntimeError(f"{protocol.name} does not summarise {sorted(wrong)}")
    intervals = bootstrap(measurements, protocol.summarise, seed=seed, resamples=resamples)
    groups: dict[str, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(m.group, []).append(m)
    return EvaluationResult(
        protocol=protocol.name,
        title=protocol.title,
        source=protocol.source,
        version=protocol.version,
        model=model,
        data=data,
        comparable=comparable and not left_out,
        oracle=oracle,
        summary=_finite(summary),
        interval={
            k: None if i.low is None or i.high is None else (i.low, i.high) for k, i in intervals.items()
        },
        samples=len(measurements),
        groups=len(groups),
        failed=dict(failed or {}),
        left_out=left_out,
        per_group={name: _finite(protocol.summarise(own)) for name, own in groups.items()},
        provenance={
            "command": command,
            "seed": seed,
            "bootstrap": {"resamples": resamples, "confidence": 0.95, "unit": "group"},
            "commit": commit(),
            "versions": versions(),
            "hardware": hardware(),
            "wall_seconds": round(wall_seconds, 2),
            "peak_memory_bytes": peak_rss(),
        },
    )


def write_result(path: Path, result: EvaluationResult) -> Path:
    """Write a result file."""
    return write_json(path, {"format": FORMAT, **dataclasses.asdict(result)})


def read_result(path: Path) -> EvaluationResult:
    """Read a result file.

    Raises:
        InputError: it is not one.
    """
    record = read_json_object(path)
    if record.pop("format", None) != FORMAT:
        raise InputError(
            "is not an evaluation result of this version",
            path=path,
            remedy="write it again with relief3d eval",
        )
    fields = {f.name for f in dataclasses.fields(EvaluationResult)}
    if set(record) != fields:
        raise InputError(f"lacks or has unknown entries {sorted(fields ^ set(record))}", path=path)
    record["interval"] = {k: None if v is None else (v[0], v[1]) for k, v in record["interval"].items()}
    return EvaluationResult(**record)
