"""What a run says: JSON lines, the console, and TensorBoard's format when asked."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from relief3d.core.memory import peak_rss
from relief3d.core.optional import require
from relief3d.core.progress import Progress
from relief3d.io.atomic import write_text

LOG_FILE = "log.jsonl"
PANEL_FOLDER = "panels"


class RunLog:
    """Lines of a run in its folder; only the writing process has one.

    Args:
        folder: of the run.
        steps: of the whole run, for the remaining time.
        progress: the console.
        step: where the run begins; later lines of an interrupted run are dropped.
        tensorboard: also write its format, below ``tensorboard/``.
    """

    def __init__(
        self, folder: Path, steps: int, progress: Progress, *, step: int = 0, tensorboard: bool = False
    ) -> None:
        self.folder, self.steps, self.progress = folder, steps, progress
        self.began, self.first = time.monotonic(), step
        self._drop_after(step)
        self._board: Any = None
        if tensorboard:
            require("tensorboard", extra="train", purpose="TensorBoard logs")
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def _drop_after(self, step: int) -> None:
        path = self.folder / LOG_FILE
        if not path.is_file():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the line that a kill cut off
        write_text(path, "".join(f"{line}\n" for line in kept))

    def event(self, kind: str, step: int, **values: Any) -> None:
        """One line; numbers under ``values`` also go to TensorBoard."""
        line = json.dumps({"kind": kind, "step": step, **values}, allow_nan=True)
        with (self.folder / LOG_FILE).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def training(self, step: int, numbers: Mapping[str, float], samples: int) -> None:
        """A line of the loop: losses, speed, memory, time left."""
        seconds = time.monotonic() - self.began
        per_step = seconds / max(1, step - self.first)
        self.event(
            "train",
            step,
            **{k: float(v) for k, v in numbers.items()},
            samples_per_second=round(samples / max(seconds, 1e-9), 3),
            seconds_per_step=round(per_step, 5),
            seconds_left=round(per_step * (self.steps - step), 1),
            peak_bytes=peak_rss(),
        )

    def panels(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Pictures (3, H, W) uint8 to ``panels/STEP_NAME.png``."""
        from relief3d.io.images import write_image

        for name, picture in pictures.items():
            write_image(self.folder / PANEL_FOLDER / f"{step:08d}_{name}.png", picture)
            if self._board is not None:
                self._board.add_image(name, picture, step)

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()
