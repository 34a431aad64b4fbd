"""What a run says: JSON lines, the console, and TensorBoard's format when asked."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.device import peak_memory
from relief3d.core.optional import require
from relief3d.io.atomic import write_error, write_text
from relief3d.io.json_file import to_jsonable

LOG_FILE = "log.jsonl"
PANEL_FOLDER = "panels"


class RunLog:
    """Lines of a run in its folder; only the writing process has one.

    A line's ``step`` is the number of the step that it belongs to, counted from 1. So all lines up to a checkpoint's
    step were written before it, and all others after it: an interrupted run drops the latter and writes them again.

    Args:
        folder: of the run.
        steps: of the whole run, for the remaining time.
        step: steps done where this process begins; later lines of an interrupted run are dropped.
        samples: seen until there.
        device: whose memory is reported.
        flops_peak: of all devices together, in operations per second; 0: unknown.
        tensorboard: also write its format, below ``tensorboard/``.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        *,
        step: int = 0,
        samples: int = 0,
        device: torch.device | None = None,
        flops_peak: float = 0.0,
        tensorboard: bool = False,
    ) -> None:
        self.folder, self.steps, self.flops_peak = folder, steps, flops_peak
        self.device = device or torch.device("cpu")
        self._mark = (time.monotonic(), step, samples)
        self._drop_after(step)
        self._board: Any = None
        if tensorboard:
            require("tensorboard", extra="train", purpose="TensorBoard logs")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def _drop_after(self, step: int) -> None:
        path = self.folder / LOG_FILE
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the line that a kill cut off
        write_text(path, "".join(f"{line}\n" for line in kept))

    def event(self, kind: str, step: int, **values: Any) -> None:
        """One line, written at once; numbers under ``values`` also go to TensorBoard, which has no NaN in JSON."""
        line = json.dumps(to_jsonable({"kind": kind, "step": step, **values}), allow_nan=False)
        path = self.folder / LOG_FILE
        try:
            with path.open("ab", buffering=0) as stream:
                stream.write(f"{line}\n".encode())
        except OSError as exc:
            raise write_error(path, exc) from exc
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def training(
        self, step: int, numbers: Mapping[str, float], samples: int, flops_per_sample: float = 0.0
    ) -> str:
        """A line of the loop: losses, speed since the line before, memory, time left; the same for the console."""
        now, (then, first, seen) = time.monotonic(), self._mark
        self._mark = (now, step, samples)
        seconds = max(now - then, 1e-9)
        per_step = seconds / max(1, step - first)
        speed = (samples - seen) / seconds
        memory = peak_memory(self.device)
        values: dict[str, Any] = {
            **{k: float(v) for k, v in numbers.items()},
            "samples": samples,
            "samples_per_second": round(speed, 3),
            "seconds_per_step": round(per_step, 6),
            "seconds_left": round(per_step * (self.steps - step), 1),
            "peak_bytes": memory,
        }
        note = (
            f"loss {numbers.get('loss', float('nan')):.4g}, {speed:.3g} samples/s, {memory / 2**30:.2f} GiB"
        )
        if flops_per_sample > 0:
            values["flops_per_second"] = round(flops_per_sample * speed)
            if self.flops_peak > 0:
                values["utilisation"] = round(flops_per_sample * speed / self.flops_peak, 4)
                note += f", {100 * values['utilisation']:.0f} % of peak"
        self.event("train", step, **values)
        return f"{note}, {_clock(values['seconds_left'])} left"

    def panels(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Pictures (3, H, W) uint8 to ``panels/STEP_NAME.png``."""
        from relief3d.io.images import write_image

        for name, picture in pictures.items():
            write_image(self.folder / PANEL_FOLDER / f"{step:08d}_{name}.png", picture)
            if self._board is not None:
                self._board.add_image(name, picture, step)

    def flush(self) -> None:
        """Bring the lines to the disk, before a checkpoint that comes after them."""
        path = self.folder / LOG_FILE
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
