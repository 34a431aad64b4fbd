"""One evaluation: protocol, data, model; out come a result file, a table and pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, SilentProgress
from relief3d.eval.protocols.base import Protocol, Sample
from relief3d.eval.protocols.downstream.runtime import timed
from relief3d.eval.protocols.registry import find_protocol, load_protocols
from relief3d.eval.results import EvaluationResult, make_result, read_result, write_result
from relief3d.eval.runner import RunOptions, RunOutcome, choose_samples, run_protocol
from relief3d.eval.tables import format_number, html_page, markdown_page
from relief3d.io.atomic import write_text
from relief3d.io.images import write_image
from relief3d.pipelines.evaluate.config import EvaluateConfig
from relief3d.pipelines.evaluate.models import NamedModel, default_models, find_model, named_model


def evaluate(
    protocol_name: str, config: EvaluateConfig, *, progress: Progress | None = None
) -> EvaluationResult:
    """Run one protocol and write the result file, the tables and the panels.

    Args:
        protocol_name: see ``relief3d eval --list``.
        config: options.
        progress: shown per sample.

    Raises:
        InputError: unknown names, data without the public layout, missing or unfit predictions.
    """
    progress = progress or SilentProgress()
    protocol = find_protocol(protocol_name)
    if (config.predictions is None) == (config.model is None):
        raise InputError(
            "say where answers come from", remedy="give either --predictions DIR or --model NAME, not both"
        )
    model = None if config.model is None else find_model(config.model, protocol.task)
    samples, described = _open(protocol, config)
    chosen = choose_samples(samples, config.subset)
    label = config.name or (model.name if model else Path(str(config.predictions)).resolve().name)
    data_key = hashlib.sha256(described[1].encode()).hexdigest()[:12]
    # Answers belong to the model, whatever it is called in the table.
    owner = _file_name(label if model is None else model.cache_name)
    cache = config.cache / protocol.name / owner / data_key
    outcome = _run(protocol, chosen, model, config, cache, data_key, progress)
    deviation = None if config.data is None else protocol.deviation(config.data, samples)
    data = described[0] + ("" if config.subset is None else f", subset {config.subset}")
    data += "" if deviation is None else f", {deviation}"
    result = make_result(
        protocol,
        outcome.measurements,
        model=label,
        data=data,
        comparable=config.data is not None and config.subset is None and deviation is None,
        oracle=model is not None and model.oracle is not None,
        failed=outcome.failed,
        left_out=outcome.left_out,
        seed=config.seed,
        command=repeat_command(protocol.name, config),
        wall_seconds=outcome.seconds,
    )
    for name, hint in list(outcome.hints.items())[:3]:
        progress.message(f"{name}: {hint}")
    _write(protocol, result, outcome, config.out)
    return result


def evaluate_all(
    config: EvaluateConfig, *, progress: Progress | None = None
) -> dict[str, list[EvaluationResult | str]]:
    """Every protocol on its procedural twin: with the named model where it does the task, else with the baselines.

    Returns:
        By protocol, one result per model, or the reason why there is none.

    Raises:
        InputError: options that only make sense for one protocol were given.
    """
    if config.data is not None or config.predictions is not None:
        raise InputError(
            "'all' measures the procedural twins", remedy="name one protocol to use --data or --predictions"
        )
    asked = None if config.model is None else named_model(config.model)
    out: dict[str, list[EvaluationResult | str]] = {}
    for name, protocol in load_protocols().items():
        models: tuple[str, ...] = default_models(protocol.task)
        if asked is not None:
            models = (asked.name,) if protocol.task in asked.tasks else ()
        for model in models:
            own = dataclasses.replace(config, model=model)
            try:
                result: EvaluationResult | str = evaluate(name, own, progress=progress)
            except InputError as exc:
                result = f"{model}: {exc}"
            out.setdefault(name, []).append(result)
    return out


def _open(protocol: Protocol, config: EvaluateConfig) -> tuple[list[Sample], tuple[str, str]]:
    """Samples, and the data's name for people and for the cache."""
    if config.data is None:
        name = f"procedural twin ({config.budget}, seed {config.seed})"
        return protocol.twin(config.budget, config.seed), (name, name)
    if not config.data.is_dir():
        raise InputError(
            "is not a folder",
            path=config.data,
            remedy=f"relief3d eval {protocol.name} --list shows its layout",
        )
    return protocol.open(config.data), (config.data.resolve().name, str(config.data.resolve()))


def _run(
    protocol: Protocol,
    samples: Sequence[Sample],
    model: NamedModel | None,
    config: EvaluateConfig,
    cache: Path,
    data_key: str,
    progress: Progress,
) -> RunOutcome:
    parallel = (model is None or model.parallel) and protocol.task != "runtime"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    workers = config.workers or (min(cores, 8) if parallel else 1)
    answering = None if model is None or model.make is None else model.make(cache / "work")
    if answering is not None and protocol.task == "runtime":
        answering = timed(answering, torch.device("cpu"))
    return run_protocol(
        protocol,
        samples,
        cache=cache,
        model=answering,
        oracle=None if model is None else model.oracle,
        predictions=config.predictions,
        options=RunOptions(
            workers,
            config.panels,
            config.again,
            config.allow_missing,
            seed=config.seed,
            model_name="" if model is None else model.name,
        ),
        progress=progress,
        data_key=data_key,
    )


def repeat_command(protocol: str, config: EvaluateConfig) -> str:
    """The command that repeats a result; folders are given by their last name, since machines differ."""
    parts = ["relief3d", "eval", protocol]
    for flag, path in (("--predictions", config.predictions), ("--data", config.data)):
        if path is not None:
            parts += [flag, path.name]
    if config.model is not None:
        parts += ["--model", config.model]
    if config.subset is not None:
        parts += ["--subset", config.subset]
    if config.data is None:
        parts += ["--budget", config.budget]
    if config.name is not None:
        parts += ["--name", config.name]
    if config.allow_missing:
        parts.append("--allow-missing")
    return shlex.join([*parts, "--seed", str(config.seed)])


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text) or "model"


def _write(protocol: Protocol, result: EvaluationResult, outcome: RunOutcome, out: Path) -> None:
    """Result file, table and pictures; the table shows every result of this protocol in the folder."""
    stem = _free_stem(out, f"{protocol.name}.{_file_name(result.model)}", result)
    write_result(out / f"{stem}.json", result)
    pictures = _write_panels(out / "panels" / stem, outcome.panels)
    others = [
        other
        for path in sorted(out.glob(f"{protocol.name}.*.json"))
        if (other := read_result(path)).version == protocol.version
    ]
    others.sort(key=lambda r: (r.oracle, r.model))
    write_text(out / f"{protocol.name}.md", markdown_page(protocol, others))
    write_text(out / f"{protocol.name}.html", html_page(protocol, others, pictures))


def _free_stem(out: Path, stem: str, result: EvaluationResult) -> str:
    """``stem``, or ``stem-2`` and so on where that file holds another model's, seed's or data set's result."""

    def identity(one: EvaluationResult) -> tuple[str, str, object]:
        return one.model, one.data, one.provenance.get("seed")

    name, number = stem, 1
    while (path := out / f"{name}.json").is_file() and identity(read_result(path)) != identity(result):
        number += 1
        name = f"{stem}-{number}"
    return name


def _write_panels(folder: Path, panels: Mapping[str, Tensor]) -> dict[str, bytes]:
    shutil.rmtree(folder, ignore_errors=True)
    out: dict[str, bytes] = {}
    for name, picture in panels.items():
        path = write_image(folder / f"{_file_name(name)}.png", picture.to(torch.uint8))
        out[name] = path.read_bytes()
    return out


def format_result(protocol: Protocol, result: EvaluationResult, out: Path) -> str:
    """The numbers for the console, and where the files are."""
    lines = [
        f"{protocol.name}: {protocol.title}",
        f"{result.model} on {result.data}, {result.samples} samples",
    ]
    for column in protocol.columns:
        value = result.summary.get(column.key)
        if value is None:
            continue
        bounds = result.interval.get(column.key)
        unit = f" {column.unit}" if column.unit else ""
        spread = "" if bounds is None else f"  [{format_number(bounds[0])}, {format_number(bounds[1])}]"
        lines.append(f"  {column.label:28} {format_number(value)}{unit}{spread}")
    for name, reason in list(result.failed.items())[:5]:
        lines.append(f"  failed on {name}: {reason}")
    if result.left_out:
        lines.append(f"  incomplete: {result.left_out} samples are not in these numbers")
    lines.append(f"table: {out / f'{protocol.name}.md'}")
    return "\n".join(lines)
