"""What the files of all metric networks have in common: where weights come from, and the configuration they carry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import nn

from relief3d.core.errors import InputError
from relief3d.models.checkpoints import read_config
from relief3d.models.published import PublishedModel, fetch_published

Config = TypeVar("Config")


def weights_file(
    source: str | Path,
    published: Mapping[str, PublishedModel],
    what: str,
    announce: Callable[[str], None],
) -> Path:
    """The file that a source names: a published model (downloaded once), or a path.

    Args:
        source: name or path.
        published: models by name.
        what: of networks, for the error.
        announce: see :func:`~relief3d.models.published.fetch_published`.

    Raises:
        InputError: neither a known name nor like a path.
        RunError: see :func:`~relief3d.models.published.fetch_published`.
    """
    known = published.get(str(source))
    if known is not None:
        return fetch_published(known, announce=announce)
    path = Path(source)
    if not path.is_file() and not path.suffix:
        raise InputError(
            f"there is no published {what}network '{source}'",
            remedy=f"known are {', '.join(published)}; or give a file",
        )
    return path


def stored_config(path: Path, key: str, parse: Callable[[Mapping[str, Any]], Config]) -> Config | None:
    """The configuration that a file carries; None where it carries none.

    Args:
        path: of the weights.
        key: of the entry.
        parse: from JSON types; its errors get the name of the file.

    Raises:
        InputError: see :func:`~relief3d.models.checkpoints.read_config`; or ``parse`` refuses it.
    """
    stored = read_config(path, key)
    if stored is None:
        return None
    try:
        return parse(stored)
    except InputError as exc:
        raise InputError(exc.message, path=path, remedy=exc.remedy) from exc


def save_network(
    network: nn.Module,
    path: str | Path,
    key: str,
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write weights and configuration as safetensors, whole or not at all.

    Args:
        network: whose weights they are.
        path: of the file.
        key: of the configuration in the file's metadata.
        config: in JSON types.
        metadata: further entries.
    """
    path = Path(path)
    facts = {**(metadata or {}), key: json.dumps(config)}
    state = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    part = path.with_name(path.name + ".part")
    save_file(state, str(part), facts)
    part.replace(path)
