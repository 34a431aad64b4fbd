"""From a finished training run to a network that comes with the package: half precision, shards, index, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.core.provenance import commit
from relief3d.io.atomic import atomic_folder, write_text
from relief3d.io.json_file import read_json_object, write_json
from relief3d.models.checkpoints import file_digest
from relief3d.models.metric.opening import configuration, find_metric, open_metric
from relief3d.models.packaged import CARD, PURPOSES, TELLS_DEPTH, PackagedModel, packaged, weights_root
from relief3d.models.shards import INDEX_FILE, write_shards

FORMAT = 1
MAX_BYTES = 12_000_000
"""Of all shards together: what the package may grow by."""
PAGE = "README.md"
LICENCE = "Apache-2.0"
_FROM_RUN = (
    "recipe", "size", "budget", "seed", "commit", "commit_at_the_end", "weights", "steps", "samples", "gives", "unit",
    "prompts", "sizes", "data", "numbers", "hardware", "versions",
)  # fmt: skip
_NEEDED = ("recipe", "size", "budget", "seed", "file", "sha256")


def pack_run(
    run: Path,
    name: str,
    root: Path | None = None,
    *,
    purpose: str = "",
    limit: int = MAX_BYTES,
    overwrite: bool = False,
) -> PackagedModel:
    """Write a packaged network, whole or not at all.

    Args:
        run: folder of a finished training run.
        name: of the packaged network; becomes a folder.
        root: of all packaged networks; None: this package's own.
        purpose: one line; known for the networks that are used by default.
        limit: bytes of all shards at most.
        overwrite: replace one of that name.

    Raises:
        InputError: the folder holds no finished run of a network for metric depth, its file is not what the card
            says, a weight does not go into half precision, or the result is larger than allowed.
    """
    if Path(name).name != name or not name or name.startswith("."):
        raise InputError(f"'{name}' cannot be the name of a network", remedy="use letters, digits and dashes")
    purpose = purpose or PURPOSES.get(name, "")
    if not purpose:
        raise InputError(f"what '{name}' is for is not known", remedy="say it with --purpose")
    card = _card(run)
    source = run / str(card["file"])
    if not source.is_file() or file_digest(source) != card["sha256"]:
        raise InputError(
            "is missing, or not what model.json says", path=source, remedy="finish the run again"
        )
    found = find_metric(str(source))
    if TELLS_DEPTH.get(name, found.needs_prompt) != found.needs_prompt:
        raise InputError(
            f"a {found.architecture} network cannot be {name}, which is used by default for {PURPOSES[name]}",
            path=source,
            remedy="choose another name with --as",
        )
    network = open_metric(found, torch.device("cpu")).module
    architecture, key, config = configuration(network)
    state, rounding = halved(network.state_dict(), source)
    root = weights_root() if root is None else root
    with atomic_folder(root / name, overwrite=overwrite) as folder:
        shards = write_shards(state, folder, metadata={"format": "pt", key: json.dumps(config)})
        size = sum(p.stat().st_size for p in shards)
        if size > limit:
            raise InputError(
                f"{name} would have {size / 1e6:.1f} MB, more than {limit / 1e6:.1f}",
                path=run,
                remedy="train a smaller size",
            )
        facts: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "purpose": purpose,
            "licence": LICENCE,
            "trained_on": "procedural worlds only",
            "architecture": architecture,
            "configuration": config,
            "parameters": sum(p.numel() for p in network.parameters()),
            "dtype": "float16",
            "largest_rounding": rounding,
            "bytes": size,
            "index": INDEX_FILE,
            "shards": [{"file": p.name, "bytes": p.stat().st_size, "sha256": file_digest(p)} for p in shards],
            **{k: card[k] for k in _FROM_RUN if k in card},
            "run_sha256": card["sha256"],
            "packed_at_commit": commit(),
        }
        write_json(folder / CARD, facts)
        write_text(folder / PAGE, render_card(read_json_object(folder / CARD)))
    return packaged(name, root)


def _card(run: Path) -> Mapping[str, Any]:
    path = run / CARD
    if not path.is_file():
        raise InputError("holds no finished training run", path=run, remedy="relief3d train, to its end")
    card = read_json_object(path)
    lacking = [k for k in _NEEDED if k not in card]
    if lacking:
        raise InputError(f"lacks '{lacking[0]}'", path=path, remedy="give the folder of a training run")
    return card


def halved(state: Mapping[str, Tensor], source: Path) -> tuple[dict[str, Tensor], float]:
    """Weights in half precision, and the largest rounding of any, relative to the largest value of its tensor.

    Raises:
        InputError: a weight is not finite, or too large for half precision.
    """
    out: dict[str, Tensor] = {}
    worst = 0.0
    for name, value in state.items():
        if not value.is_floating_point():
            out[name] = value
            continue
        half = value.to(torch.float16)
        if not bool(torch.isfinite(half).all()):
            raise InputError(f"the weight {name} is not finite, or too large for half precision", path=source)
        largest = float(value.abs().max()) if value.numel() else 0.0
        if largest > 0:
            worst = max(worst, float((half.float() - value.float()).abs().max()) / largest)
        out[name] = half
    return out, worst


def render_card(card: Mapping[str, Any]) -> str:
    """The card for people, from the card for programs and nothing else."""
    names = {
        "architecture": "architecture",
        "parameters": "parameters",
        "bytes": "bytes of weights",
        "dtype": "stored as",
        "largest_rounding": "largest rounding of a weight, relative to the largest of its tensor",
        "recipe": "recipe",
        "size": "size",
        "budget": "budget",
        "seed": "seed",
        "steps": "steps",
        "samples": "samples seen",
        "weights": "weights",
        "trained_on": "trained on",
        "commit": "commit of the training",
        "packed_at_commit": "commit of the packing",
        "run_sha256": "SHA-256 of the run's weights",
        "licence": "licence",
    }
    lines = [f"# {card['name']}", "", f"{card['purpose'].capitalize()}.", "", "| | |", "|---|---|"]
    lines += [
        f"| {label} | {_shown(card[key])} |" for key, label in names.items() if card.get(key) is not None
    ]
    lines += ["", "| file | bytes | SHA-256 |", "|---|---|---|"]
    lines += [f"| {s['file']} | {s['bytes']} | {s['sha256']} |" for s in card["shards"]]
    data = card.get("data") or {}
    if data.get("sources"):
        lines += ["", "| training pictures | share | number |", "|---|---|---|"]
        lines += [f"| {s['name']} | {s['share']:.3g} | {s['samples']} |" for s in data["sources"]]
    if card.get("numbers"):
        lines += [
            "",
            "What the run itself measured at its end on held-out procedural worlds, before the weights were stored "
            "in half precision:",
            "",
            "| measured | value |",
            "|---|---|",
        ]
        lines += [f"| {k} | {_shown(v)} |" for k, v in card["numbers"].items()]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
