"""Running a protocol's samples with models that know the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relief3d.eval.protocols.base import Answer, Measurement, Protocol, Query, Sample, Truth

Oracle = Callable[[Query, Truth], Answer]


def truthful(query: Query, truth: Truth) -> Answer:
    """The truth as an answer: everything the query wants."""
    return Answer(
        {k: truth.tensors[k] for k in query.wants if k in truth.tensors},
        truth.mesh if "mesh" in query.wants else None,
        {k: truth.facts[k] for k in query.wants if k in truth.facts},
    )


def measure_samples(protocol: Protocol, samples: Sequence[Sample], oracle: Oracle) -> list[Measurement]:
    """Measure every sample with an oracle's answers."""
    out = []
    for sample in samples:
        query, truth = sample.load_query(), sample.load_truth()
        out.append(protocol.measure(query, truth, oracle(query, truth)))
    return out
