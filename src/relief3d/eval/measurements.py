"""Measurements on disk: a repeated evaluation only computes what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Measurement
from relief3d.io.json_file import read_json_object, write_json


def measurement_file(folder: Path, sample: str) -> Path:
    """Where the measurement of a sample is kept."""
    return folder / f"{sample}.measurement.json"


def write_measurement(folder: Path, measurement: Measurement, stamp: str) -> None:
    """Keep a measurement together with the stamp of what it was computed from."""
    record: dict[str, Any] = {
        "stamp": stamp,
        "name": measurement.name,
        "group": measurement.group,
        # repr keeps every bit of a float, and knows inf and nan, which JSON does not.
        "values": {k: repr(float(v)) for k, v in measurement.values.items()},
        "weight": repr(float(measurement.weight)),
        "arrays": {k: [repr(float(x)) for x in np.asarray(v).ravel()] for k, v in measurement.arrays.items()},
    }
    write_json(measurement_file(folder, measurement.name), record)


def read_measurement(folder: Path, sample: str, stamp: str) -> Measurement | None:
    """The kept measurement, or None when there is none, it is damaged, or it was computed from something else."""
    path = measurement_file(folder, sample)
    if not path.is_file():
        return None
    try:
        record = read_json_object(path)
        if record["stamp"] != stamp:
            return None
        return Measurement(
            name=record["name"],
            group=record["group"],
            values={k: float(v) for k, v in record["values"].items()},
            weight=float(record["weight"]),
            arrays={k: np.array([float(x) for x in v]) for k, v in record["arrays"].items()},
        )
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        return None
