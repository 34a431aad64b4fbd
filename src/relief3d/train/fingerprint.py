"""What a run depends on, so that a folder is never continued with other settings by mistake."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from relief3d.io.json_file import to_jsonable
from relief3d.train.config import TrainConfig

MAY_CHANGE = frozenset(
    {"workers", "checkpointing", "compile", "compile_backend", "deterministic", "guard", "checkpoint", "log"}
)
"""Options that decide neither the batches nor the loss nor the schedule. The number of steps is not among them: the
schedule is a function of it, so more steps are another run."""


def fingerprint(task: str, config: TrainConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides the weights a run ends with, as JSON values by dotted name.

    Args:
        task: its name.
        config: of the loop; options in :data:`MAY_CHANGE` are left out.
        settings: of the task: data, model, losses; anything with a JSON form.
    """
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in MAY_CHANGE}
    return {
        "task": task,
        **_flat("train", to_jsonable(fields)),
        **_flat("settings", to_jsonable(settings)),
    }


def first_difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """A clause that names the first field that differs and both values; None when all agree."""
    for name in [*saved, *(n for n in now if n not in saved)]:
        if name not in saved or name not in now or saved[name] != now[name]:
            old, new = (repr(side[name]) if name in side else "absent" for side in (saved, now))
            return f"'{name}' was {old} and is {new} now"
    return None


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flat(f"{prefix}.{key}", item).items()}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return {k: v for i, item in enumerate(value) for k, v in _flat(f"{prefix}.{i}", item).items()}
    return {prefix: value}
