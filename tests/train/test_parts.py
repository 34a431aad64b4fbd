"""Optimiser, average, schedules, accumulation: each against a formula written here once more."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.corpora.toy_run import block_net
from tests.corpora.toy_task import ToyNet, ToyTask, toy_model
from torch import nn

from relief3d.core.errors import InputError
from relief3d.nn.blocks import Block
from relief3d.train.adapt import adapt_blocks
from relief3d.train.checkpoint import load_checkpoint, tensors_digest
from relief3d.train.config import (
    CheckpointConfig,
    EmaConfig,
    GroupConfig,
    LogConfig,
    OptimiserConfig,
    ScheduleConfig,
    TrainConfig,
)
from relief3d.train.ema import MovingAverage
from relief3d.train.engine import SingleEngine
from relief3d.train.loop import fit
from relief3d.train.optimiser import freeze, make_optimiser, plan_parameters, set_learning_rate, train_mode
from relief3d.train.schedules import schedule_factor

QUIET = LogConfig(every=1, utilisation=False)
CPU = torch.device("cpu")


def run(tmp_path: Path, name: str, task: ToyTask, config: TrainConfig) -> nn.Module:
    return fit(task, config, tmp_path / name, device="cpu").model


# ---- accumulation, blocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_accumulated_gradients_are_those_of_the_large_batch(
    tmp_path: Path, dtype: torch.dtype, bound: float
) -> None:
    class Sliced(ToyTask):
        """Batches of 8 samples, handed out in ``accumulate`` slices."""

        slices = 1

        def batch(self, position: int, part: int = 0, parts: int = 1) -> dict[str, object]:
            whole = super().batch(position // self.slices)
            n = self.size // self.slices
            first = position % self.slices * n
            return {k: v[first : first + n] for k, v in whole.items()}

    found = []
    for k in (1, 2, 4):
        task = Sliced(dropout=0.0, norm=False, dtype=dtype)
        task.slices = k
        # AdamW divides by the root of the second moment: eps keeps rounding of near-zero gradients from being blown up.
        config = TrainConfig(steps=3, accumulate=k, optimiser=OptimiserConfig(lr=1e-2, eps=1e-3), log=QUIET)
        found.append(run(tmp_path, str(k), task, config).state_dict())
    start = toy_model(0.0, False).to(dtype).state_dict()
    assert any((found[0][n] - start[n]).abs().max() > 1e-3 for n in start)
    for other in found[1:]:
        assert max(float((found[0][n] - other[n]).abs().max()) for n in start) <= bound


def test_batches_of_a_step_count_by_their_samples(tmp_path: Path) -> None:
    """Micro-batches of 2 and 6 samples give the gradient of the 8 together, and the mean of all in the log."""

    class Uneven(ToyTask):
        def batch(self, position: int, part: int = 0, parts: int = 1) -> dict[str, object]:
            whole = super().batch(position // 2)
            cut = slice(None, 2) if position % 2 == 0 else slice(2, None)
            return {k: v[cut] for k, v in whole.items()}

    config = TrainConfig(steps=2, optimiser=OptimiserConfig(lr=1e-2, eps=1e-3), log=QUIET)
    options = {"dropout": 0.0, "norm": False, "dtype": torch.float64}
    plain = run(tmp_path, "whole", ToyTask(**options), config).state_dict()  # type: ignore[arg-type]
    uneven = run(tmp_path, "uneven", Uneven(**options), replace(config, accumulate=2)).state_dict()  # type: ignore[arg-type]
    assert all(torch.allclose(plain[k], uneven[k], atol=1e-12) for k in plain)
    logged = [[x["loss"] for x in _lines(tmp_path / n) if x["kind"] == "train"] for n in ("whole", "uneven")]
    assert logged[0] == pytest.approx(logged[1], rel=1e-6)


def _lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "change",
    [
        {"checkpointing": True},
        {"compile": True, "compile_backend": "eager"},
        {"compile": True, "compile_backend": "eager", "checkpointing": True, "log": LogConfig(every=1)},
    ],
    ids=["recompute", "compile", "both, counting operations"],
)
def test_recomputed_and_compiled_blocks_train_the_same(tmp_path: Path, change: dict[str, object]) -> None:
    config = TrainConfig(steps=3, optimiser=OptimiserConfig(lr=1e-2), ema=EmaConfig(0.9), log=QUIET)
    plain = run(tmp_path, "plain", ToyTask(network=block_net), config)
    other = run(tmp_path, "other", ToyTask(network=block_net), replace(config, **change))  # type: ignore[arg-type]
    assert list(plain.state_dict()) == list(other.state_dict())
    for (name, a), b in zip(plain.state_dict().items(), other.state_dict().values()):
        assert torch.allclose(a, b, atol=1e-6), name


def test_blocks_are_recomputed_and_compiled_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    real = Block._forward

    def counted(self, *arguments):  # type: ignore[no-untyped-def]
        passes.append(1)
        return real(self, *arguments)

    monkeypatch.setattr(Block, "_forward", counted)
    for wanted, count in ((False, 2), (True, 4)):
        passes.clear()
        run(
            tmp_path,
            str(wanted),
            ToyTask(network=block_net),
            TrainConfig(steps=1, checkpointing=wanted, log=QUIET),
        )
        trained = len(passes) - 2  # the evaluation goes through both blocks once
        assert trained == count
    model = block_net()
    adapt_blocks(model, TrainConfig(compile=True, compile_backend="eager"))
    assert all(b._compiled_call_impl is not None for b in model.modules() if isinstance(b, Block))


def test_deterministic_algorithms_are_asked_for(tmp_path: Path) -> None:
    seen: list[int] = []

    class Looking(ToyTask):
        def loss(self, model, batch, info, teacher):  # type: ignore[no-untyped-def]
            seen.append(torch.get_deterministic_debug_mode())
            return super().loss(model, batch, info, teacher)

    for wanted in (True, False):
        run(tmp_path, str(wanted), Looking(), TrainConfig(steps=1, deterministic=wanted, log=QUIET))
    assert seen == [1, 0]


def test_networks_without_blocks_cannot_be_recomputed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no transformer blocks"):
        run(tmp_path, "x", ToyTask(), TrainConfig(steps=1, checkpointing=True))


# ---- frozen parts, groups -----------------------------------------------------------------------------------------


def test_frozen_parts_keep_their_bits_and_stay_in_evaluation_mode(tmp_path: Path) -> None:
    modes: list[bool] = []

    class Watching(ToyTask):
        def loss(self, model, batch, info, teacher):  # type: ignore[no-untyped-def]
            modes.extend(m.training for m in model.encoder.modules())
            modes.append(not model.head[2].training)
            return super().loss(model, batch, info, teacher)

    groups = (GroupConfig("*encoder*", frozen=True),)
    config = TrainConfig(
        steps=4, optimiser=OptimiserConfig(lr=1e-2, groups=groups), log=replace(QUIET, evaluate=2)
    )
    model = run(tmp_path, "frozen", Watching(), config)
    assert isinstance(model, ToyNet)
    assert not any(modes)
    fresh = toy_model()
    assert isinstance(fresh, ToyNet)
    assert tensors_digest(model.encoder.state_dict()) == tensors_digest(fresh.encoder.state_dict())
    assert tensors_digest(model.head.state_dict()) != tensors_digest(fresh.head.state_dict())
    saved = load_checkpoint(tmp_path / "frozen" / "checkpoints" / "step_00000004")
    assert not [name for name in saved.tensors["optimiser"] if name.startswith("encoder")]
    assert all(p.grad is None for p in model.encoder.parameters())


def test_groups_first_fit_counts_and_vectors_do_not_decay() -> None:
    config = OptimiserConfig(
        lr=1.0,
        weight_decay=0.1,
        groups=(
            GroupConfig("head.0.*", lr_scale=0.5, weight_decay=0.3),
            GroupConfig("head.*", lr_scale=2.0, clip="heads"),
        ),
    )
    model = toy_model()
    plans = {p.name: p for p in plan_parameters(model, config)}
    assert (plans["head.0.bias"].lr_scale, plans["head.0.bias"].weight_decay) == (0.5, 0.3)
    assert (plans["head.3.weight"].lr_scale, plans["head.3.weight"].weight_decay) == (2.0, 0.1)
    assert (plans["head.3.bias"].weight_decay, plans["head.3.bias"].clip) == (0.0, "heads")
    assert (plans["encoder.0.weight"].lr_scale, plans["encoder.0.weight"].clip) == (1.0, "all")
    everything = plan_parameters(model, replace(config, decay_vectors=True))
    assert {p.weight_decay for p in everything} == {0.1, 0.3}
    optimiser = make_optimiser(model, plans.values(), config)
    set_learning_rate(optimiser, 0.25)
    rates = {n: g["lr"] for g in optimiser.param_groups for n in g["names"]}
    assert (rates["head.0.weight"], rates["head.3.weight"], rates["encoder.0.weight"]) == (0.125, 0.5, 0.25)


def test_patterns_that_fit_nothing_are_errors() -> None:
    model = toy_model()
    with pytest.raises(InputError, match=r"no parameter of ToyNet fits '\*camera\*'.*encoder"):
        plan_parameters(model, OptimiserConfig(groups=(GroupConfig("*camera*"),)))
    with pytest.raises(InputError, match="taken by an earlier group"):
        plan_parameters(model, OptimiserConfig(groups=(GroupConfig("head.*"), GroupConfig("head.0.*"))))
    with pytest.raises(InputError, match="nothing to train"):
        plan_parameters(model, OptimiserConfig(groups=(GroupConfig("*", frozen=True),)))
    plan_parameters(model, OptimiserConfig(groups=(GroupConfig("*camera*"),), must_match=False))


def test_what_a_network_holds_fixed_stays_fixed(tmp_path: Path) -> None:
    def partly_fixed() -> nn.Module:
        model = toy_model()
        model.encoder[0].requires_grad_(False)  # type: ignore[index, union-attr]
        return model

    model = run(tmp_path, "x", ToyTask(network=partly_fixed), TrainConfig(steps=2, log=QUIET))
    assert isinstance(model, ToyNet)
    assert not model.encoder[0].weight.requires_grad
    fresh = toy_model()
    assert isinstance(fresh, ToyNet)
    assert torch.equal(model.encoder[0].weight, fresh.encoder[0].weight)
    with pytest.raises(InputError, match="nothing to train"):
        plan_parameters(nn.Linear(2, 2).requires_grad_(False), OptimiserConfig())


def test_tied_weights_are_trained_averaged_and_restored_as_one(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))[:, :4]

    def tied() -> nn.Module:
        torch.manual_seed(1)
        return Tied()

    config = TrainConfig(steps=4, ema=EmaConfig(0.5), log=QUIET)
    whole = fit(ToyTask(network=tied), config, tmp_path / "whole", device="cpu")
    fit(ToyTask(network=tied), config, tmp_path / "parts", device="cpu", stop_at=2)
    parts = fit(ToyTask(network=tied), config, tmp_path / "parts", device="cpu")
    for found in (parts.model, parts.average):
        assert isinstance(found, Tied) and found.a.weight is found.b.weight
    assert parts.average is not None and whole.average is not None
    for x, y in ((whole.model, parts.model), (whole.average, parts.average)):
        assert tensors_digest(x.state_dict()) == tensors_digest(y.state_dict())


def test_norms_after_an_inner_stack_do_not_come_before_an_outer_one() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleDict(
                {
                    "patch": nn.Linear(2, 2),
                    "blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(2)),
                    "norm": nn.LayerNorm(2),
                }
            )
            self.embed = nn.Linear(2, 2)
            self.decoder = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
            self.head = nn.Linear(2, 2)

    scales = {p.name: p.lr_scale for p in plan_parameters(Outer(), OptimiserConfig(layer_decay=0.5))}
    assert scales["encoder.norm.weight"] == scales["head.weight"] == 1.0
    assert [scales[f"encoder.blocks.{i}.weight"] for i in range(2)] == [0.25, 0.5]
    assert (scales["encoder.patch.weight"], scales["embed.weight"]) == (0.125, 0.03125)
    assert [scales[f"decoder.{i}.weight"] for i in range(4)] == [0.0625, 0.125, 0.25, 0.5]


def test_layer_decay_counts_each_stack_and_what_comes_before_it() -> None:
    class Tower(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 2))
            self.patch = nn.Linear(2, 2)
            self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))
            self.norm = nn.LayerNorm(2)

    model = nn.ModuleDict({"a": Tower(3), "b": Tower(2)})
    scales = {p.name: p.lr_scale for p in plan_parameters(model, OptimiserConfig(layer_decay=0.5))}
    assert [scales[f"a.blocks.{i}.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert [scales[f"b.blocks.{i}.bias"] for i in range(2)] == [0.25, 0.5]
    assert (scales["a.token"], scales["a.patch.weight"], scales["b.patch.bias"]) == (0.0625, 0.0625, 0.125)
    assert scales["a.norm.weight"] == scales["b.norm.weight"] == 1.0


def test_every_set_is_clipped_for_itself() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 1, bias=False), "b": nn.Linear(2, 1, bias=False)})
    a, b = model["a"].weight, model["b"].weight
    a.grad, b.grad = torch.tensor([[3.0, 0.0, 4.0]]), torch.tensor([[0.3, 0.4]])
    engine = SingleEngine(CPU, None)
    optimiser = torch.optim.AdamW(model.parameters())
    norms = engine.gradients(model, optimiser, {"x": ["a.weight"], "y": ["b.weight"]}, 1.0)
    assert (float(norms["x"]), float(norms["y"])) == pytest.approx((5.0, 0.5))
    assert torch.allclose(a.grad, torch.tensor([[0.6, 0.0, 0.8]]), atol=1e-6)
    assert torch.equal(b.grad, torch.tensor([[0.3, 0.4]]))
    norms = SingleEngine(CPU, None).gradients(model, optimiser, {"x": ["a.weight"]}, None)
    assert float(norms["x"]) == pytest.approx(1.0, abs=1e-5)


def test_training_mode_follows_what_is_trained() -> None:
    model = toy_model()
    plans = plan_parameters(model, OptimiserConfig(groups=(GroupConfig("head.0.*", frozen=True),)))
    freeze(model, plans)
    train_mode(model.eval())
    assert isinstance(model, ToyNet)
    assert [m.training for m in model.head] == [False, True, True, True] and model.encoder[1].training


# ---- average ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        EmaConfig(0.9),
        EmaConfig(0.9, ramp=5),
        EmaConfig(0.8, final=1.0),
        EmaConfig(0.9, every=2),
        EmaConfig(0.7, copy_first=True),
        EmaConfig(0.9, buffers=False),
    ],
)
def test_average_follows_its_formula_at_every_step(tmp_path: Path, config: EmaConfig) -> None:
    steps = 8
    train = TrainConfig(
        steps=steps,
        ema=config,
        optimiser=OptimiserConfig(lr=1e-2),
        checkpoint=CheckpointConfig(every=1, keep_last=steps),
        log=QUIET,
    )
    fit(ToyTask(), train, tmp_path, device="cpu")
    shadow = {k: v.double() for k, v in toy_model().state_dict().items()}
    updates = 0
    for step in range(1, steps + 1):
        saved = load_checkpoint(tmp_path / "checkpoints" / f"step_{step:08d}")
        if step % config.every == 0:
            decay = config.decay
            if config.final is not None:
                share = (step - 1) / steps
                decay = config.final + (config.decay - config.final) * (1 + math.cos(math.pi * share)) / 2
            if config.ramp:
                decay = min(decay, (1 + updates) / (config.ramp + updates))
            if config.copy_first and updates == 0:
                decay = 0.0
            for name, now in saved.tensors["model"].items():
                copied = "num_batches" in name or ("running" in name and not config.buffers)
                keep = 0.0 if copied else decay
                shadow[name] = keep * shadow[name] + (1 - keep) * now.double()
            updates += 1
        for name, value in saved.tensors["ema"].items():
            assert torch.allclose(value.double(), shadow[name], atol=1e-6, rtol=1e-6), (step, name)
    assert updates == saved.state["ema_updates"]


def test_the_teacher_gets_no_gradient(tmp_path: Path) -> None:
    task = ToyTask()
    config = TrainConfig(steps=100, ema=EmaConfig(0.9), log=replace(QUIET, every=50))
    result = fit(task, config, tmp_path, device="cpu")
    assert result.average is not None and len(task.teachers) == 100
    assert all(t is result.average for t in task.teachers)
    with_gradient = [p for p in result.average.parameters() if p.requires_grad or p.grad is not None]
    assert with_gradient == [] and not any(m.training for m in result.average.modules())
    assert not {p.data_ptr() for p in result.average.parameters()} & {
        p.data_ptr() for p in result.model.parameters()
    }


def test_buffers_of_infinity_stay_what_they_are() -> None:
    model = nn.Linear(2, 1)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]), persistent=False)
    model.register_buffer("moving", torch.zeros(2))
    average = MovingAverage(model, EmaConfig(0.75))
    model.get_buffer("moving").fill_(1.0)
    average.update(model, 0.0, lambda t: t)
    assert average.network.get_buffer("mask").tolist() == [0.0, -math.inf]
    assert average.network.get_buffer("moving").tolist() == [0.25, 0.25]


def test_bad_averages_are_refused() -> None:
    for wrong in ({"decay": 1.5}, {"final": -0.1}, {"every": 0}, {"ramp": -1.0}):
        with pytest.raises(InputError):
            EmaConfig(**wrong)  # type: ignore[arg-type]


def test_averages_are_in_double_when_the_network_is() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    average = MovingAverage(model, EmaConfig(0.75))
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1
    average.update(model, 0.0, lambda t: t)
    assert torch.allclose(average.network.weight, before + 0.25, atol=1e-15)


# ---- schedules ----------------------------------------------------------------------------------------------------


def test_composite_is_the_schedule_of_selfevo() -> None:
    config = ScheduleConfig("composite", warmup=0.05, start=1e-3, end=1e-3)
    rate = [1e-5 * schedule_factor(config, step, 1000) for step in range(1000)]
    for step in (0, 1, 25, 49):  # linear 1e-8 -> 1e-5 over the first 5 %
        assert rate[step] == pytest.approx(1e-8 + (1e-5 - 1e-8) * (step / 1000) / 0.05, rel=1e-12)
    for step in (50, 51, 525, 999):  # cosine 1e-5 -> 1e-8 over the rest
        share = (step / 1000 - 0.05) / 0.95
        wanted = 1e-8 + (1e-5 - 1e-8) * 0.5 * (1 + math.cos(math.pi * share))
        assert rate[step] == pytest.approx(wanted, rel=1e-12)
    assert rate[50] == 1e-5 and max(rate) == rate[50]
    assert rate[999] > 1e-8  # the last point of the cosine is never reached


def test_cosine_ends_with_the_last_update() -> None:
    config = ScheduleConfig("cosine", warmup=10, start=0.1, end=0.02)
    values = [schedule_factor(config, s, 110) for s in range(110)]
    assert values[0] == pytest.approx(0.1) and values[5] == pytest.approx(0.55) and values[10] == 1.0
    assert values[109] == pytest.approx(0.02, abs=1e-15)
    assert values[10 + 33] == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi / 3)))


def test_steps_and_constant() -> None:
    config = ScheduleConfig("step", warmup=0, milestones=(0.5, 0.75), factor=0.1)
    assert [schedule_factor(config, s, 8) for s in (0, 3, 4, 5, 6, 7)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    # 0.55 * 100 is a little more than 55: shares are compared, not products.
    late = ScheduleConfig("step", warmup=0, milestones=(0.55,))
    assert [schedule_factor(late, s, 100) for s in (54, 55)] == [1.0, 0.1]
    after = ScheduleConfig("step", warmup=2, start=0.5, milestones=(0.25,), factor=0.1)
    assert [schedule_factor(after, s, 8) for s in range(3)] == pytest.approx([0.5, 0.75, 0.1])
    constant = ScheduleConfig("constant", warmup=0.25, start=0.0)
    assert [schedule_factor(constant, s, 8) for s in range(4)] == [0.0, 0.5, 1.0, 1.0]


def test_schedules_at_their_limits() -> None:
    for kind in ("cosine", "composite"):
        no_warmup = ScheduleConfig(kind, warmup=0, end=0.1)  # type: ignore[arg-type]
        assert schedule_factor(no_warmup, 0, 10) == 1.0
        assert schedule_factor(no_warmup, 0, 1) in (1.0, 0.1)
        all_warmup = ScheduleConfig(kind, warmup=10, start=0.5)  # type: ignore[arg-type]
        assert [schedule_factor(all_warmup, s, 10) for s in (0, 9)] == pytest.approx([0.5, 0.95])
    # A warm-up of 1 is one step, of less a share; the first step after it is at the top.
    assert schedule_factor(ScheduleConfig(warmup=1.0), 1, 50) == 1.0
    assert schedule_factor(ScheduleConfig(warmup=0.5), 25, 50) == 1.0
    assert schedule_factor(ScheduleConfig(warmup=0.5), 24, 50) == pytest.approx(24 / 25)


def test_the_run_uses_the_schedule(tmp_path: Path) -> None:
    import json

    config = TrainConfig(
        steps=6, optimiser=OptimiserConfig(lr=0.5), schedule=ScheduleConfig(warmup=2), log=QUIET
    )
    fit(ToyTask(), config, tmp_path, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([0.5 * schedule_factor(config.schedule, s, 6) for s in range(6)])
