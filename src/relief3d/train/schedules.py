"""Learning-rate factors over a run."""

from __future__ import annotations

import math

from relief3d.train.config import ScheduleConfig


def schedule_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Factor on the learning rate for the update after ``step`` updates of ``steps``.

    ``cosine``, ``step`` and ``constant`` reach ``start`` at step 0 and 1 after the warm-up; the cosine ends at ``end``
    with the last update (step = steps - 1). ``composite`` is a function of step / steps, so its last point is never
    reached (SelfEvo's released schedule, specification of the multi-view models 5.2).
    """
    warm = config.warmup * steps if config.warmup < 1 else config.warmup
    if step < warm:
        return config.start + (1 - config.start) * step / warm
    if config.kind == "constant":
        return 1.0
    if config.kind == "step":
        passed = sum(step / steps >= share for share in config.milestones)
        return config.factor**passed
    last = steps if config.kind == "composite" else steps - 1
    done = 1.0 if last <= warm else min(1.0, (step - warm) / (last - warm))
    return config.end + (1 - config.end) * 0.5 * (1 + math.cos(math.pi * done))
