"""A small task for tests of the training loop: regression with dropout, a frozen part, and switches for trouble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.seeding import torch_generator
from relief3d.train.task import LossReport, StepInfo

SIZE = 8


class ToyNet(nn.Module):
    """A frozen-able encoder with running statistics and dropout, then a trained head."""

    def __init__(self, dropout: float = 0.1, norm: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.GELU(), nn.Dropout(dropout)
        )
        self.head = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8) -> (B, 4)."""
        return self.head(self.encoder(x))


def toy_model(dropout: float = 0.1, norm: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ToyNet(dropout, norm)


@dataclass
class ToyTask:
    """y = 2 x + 1 on random vectors; ``hook`` may spoil a batch, ``spoil`` a report."""

    name: str = "toy"
    dropout: float = 0.1
    norm: bool = True
    size: int = SIZE
    dtype: torch.dtype = torch.float32
    network: Callable[[], nn.Module] | None = None
    hook: Callable[[int, dict[str, Any]], None] | None = None
    spoil: Callable[[StepInfo, LossReport], LossReport] | None = None
    seen: list[str] = field(default_factory=list)
    teachers: list[nn.Module | None] = field(default_factory=list)

    def model(self) -> nn.Module:
        made = self.network() if self.network is not None else toy_model(self.dropout, self.norm)
        return made.to(self.dtype)

    def batch(self, position: int, part: int = 0, parts: int = 1) -> dict[str, Any]:
        x = torch.randn(self.size, 8, generator=torch_generator(position + 1), dtype=self.dtype)
        share = slice(part * self.size // parts, (part + 1) * self.size // parts)
        names = [f"{position}:{i}" for i in range(self.size)][share]
        batch = {"x": x[share], "y": 2 * x[share, :4] + 1, "names": names}
        if self.hook is not None:
            self.hook(position, batch)
        return batch

    def samples(self, batch: Any) -> Sequence[str]:
        return batch["names"]

    def split(self, batch: Any, parts: int) -> Sequence[Any]:
        n = -(-len(batch["names"]) // parts)
        return [{k: v[i : i + n] for k, v in batch.items()} for i in range(0, len(batch["names"]), n)]

    def to(self, batch: Any, device: torch.device) -> Any:
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def loss(self, model: nn.Module, batch: Any, info: StepInfo, teacher: nn.Module | None) -> LossReport:
        self.teachers.append(teacher)
        self.seen.extend(batch["names"])
        out = model(batch["x"])
        each = (out.float() if out.dtype != torch.float64 else out).sub(batch["y"]).square().mean(1)
        if teacher is not None:
            with torch.no_grad():
                goal = teacher(batch["x"])
            each = each + 0.1 * (out - goal).square().mean(1)
        report = LossReport(each.mean(), {"largest": each.max()}, each)
        return report if self.spoil is None else self.spoil(info, report)

    def evaluate(self, model: nn.Module, step: int) -> Mapping[str, float]:
        x = torch.linspace(-1, 1, 32, dtype=self.dtype).view(4, 8)
        return {"mse": float((model(x) - 2 * x[:, :4] - 1).square().mean())}

    def panels(self, model: nn.Module, step: int) -> Mapping[str, Tensor]:
        return {"grey": torch.full((3, 4, 4), 100, dtype=torch.uint8)}
