"""Checkpoints that others publish on the hub: what a user should know of them, and fetching one, verified."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from relief3d.core.errors import RunError
from relief3d.core.optional import require
from relief3d.models.checkpoints import verify_file


@dataclass(frozen=True)
class PublishedModel:
    """A checkpoint that others publish.

    Attributes:
        name: repository on the hub.
        architecture: short name of the kind of network.
        file: of the weights in the repository.
        licence: as stated by the publisher.
        parameters: millions.
        download_gb: size of the file.
        memory_gb: of the weights in float32.
        source: paper.
        optional: beginnings of names that the file may lack.
        sha256: digest of the file; None: not known here, downloads are compared with the digest that the hub states.
    """

    name: str
    architecture: str
    file: str
    licence: str
    parameters: float
    download_gb: float
    memory_gb: float
    source: str
    optional: tuple[str, ...] = ()
    sha256: str | None = None


def describe(model: PublishedModel) -> str:
    """What a user should know before a download."""
    return (
        f"{model.name}: {model.architecture}, {model.parameters:.0f} M parameters, "
        f"download {model.download_gb:.1f} GB, {model.memory_gb:.1f} GB in memory (float32); "
        f"licence: {model.licence}; source: {model.source}"
    )


def to_console(text: str) -> None:
    """A line on standard error."""
    sys.stderr.write(text + "\n")


def fetch_published(model: PublishedModel, *, announce: Callable[[str], None] = to_console) -> Path:
    """The weights of a published model, downloaded once to the hub's cache.

    ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and ``HF_HOME`` are honoured, since huggingface_hub does the work. It compares
    sizes only, so the SHA-256 is compared here: with that of the entry if it is known, else with the one that the hub
    states for the file. It is computed once, and again after a change of the file.

    Args:
        model: the entry.
        announce: gets licence, size, memory and source before anything is downloaded, and whether it is verified.

    Raises:
        InputError: huggingface_hub is not installed.
        RunError: no network, not in the cache while offline, or a file with another checksum.
    """
    announce(describe(model))
    hub = require("huggingface_hub", extra="hub", purpose="downloading weights")
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    try:
        path = Path(hub.hf_hub_download(model.name, model.file))
    except Exception as exc:
        remedy = (
            "unset HF_HUB_OFFLINE or give a local file"
            if offline
            else "check the network or give a local file"
        )
        raise RunError(
            f"the weights of {model.name} could not be fetched ({type(exc).__name__})", remedy=remedy
        ) from exc
    blob = _cached_blob(path)
    digest = model.sha256 or (blob.name if blob else _stated_digest(hub, model, path, offline))
    if digest is None:
        announce(f"{path.name} could not be verified: neither the cache nor the hub states its SHA-256")
    else:
        verify_file(blob or path, digest, announce=announce)
    return path


def cached_file(model: PublishedModel) -> Path | None:
    """The weights of a published model where they are in the hub's cache already; nothing is downloaded.

    Raises:
        InputError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", extra="hub", purpose="a network by name")
    found = hub.try_to_load_from_cache(model.name, model.file)
    return Path(found) if isinstance(found, str) else None


def _cached_blob(path: Path) -> Path | None:
    """What a file of the hub's cache links to, if that is named by its SHA-256, as large files are.

    Only the first link counts: it may lead on to a store that is shared between repositories, whose names are hashes of
    another kind.
    """
    if not path.is_symlink():
        return None
    blob = path.parent / path.readlink()
    return blob if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name) else None


def _stated_digest(hub: ModuleType, model: PublishedModel, path: Path, offline: bool) -> str | None:
    """SHA-256 of a file according to the hub, which gives it as the etag of large files."""
    if offline:
        return None
    try:
        # Of the revision that was downloaded: .../snapshots/REVISION/FILE.
        revision = path.parent.name if path.parent.parent.name == "snapshots" else None
        url = hub.hf_hub_url(model.name, model.file, revision=revision)
        etag = hub.get_hf_file_metadata(url).etag
    except Exception as exc:
        raise RunError(
            f"the checksum of {model.name} could not be fetched ({type(exc).__name__})",
            remedy="check the network or give a local file",
        ) from exc
    return etag if isinstance(etag, str) and _SHA256.fullmatch(etag) else None


_SHA256 = re.compile("[0-9a-f]{64}")
