"""Weights of published networks: found on this machine, downloaded only when asked, identified by their bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from relief3d.core.errors import InputError, RunError
from relief3d.core.optional import require
from relief3d.labelling.sources import file_digest


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the configuration and weight files of a folder (or of one file).

    Raises:
        InputError: nothing there.
    """
    if folder.is_file():
        return file_digest(folder)
    names = sorted(p for p in folder.glob("*") if p.suffix in (".safetensors", ".json", ".pth", ".pt"))
    if not any(p.suffix != ".json" for p in names):
        raise InputError("holds no weights", path=folder, remedy="give a folder with a .safetensors file")
    total = hashlib.sha256()
    for path in names:
        total.update(f"{path.name}:{file_digest(path)}\n".encode())
    return total.hexdigest()


def network_folder(model: str, *, download: bool) -> Path:
    """The folder of a network: ``model`` itself, or the local copy of that name on the Hugging Face hub.

    Args:
        model: folder, or ``owner/name``.
        download: fetch it when it is not on this machine.

    Raises:
        InputError: neither a folder nor on this machine.
        RunError: the download fails.
    """
    if Path(model).is_dir():
        return Path(model)
    if model.count("/") != 1 or model.startswith((".", "/")):
        raise InputError("there is no such folder of weights", path=model)
    hub = require("huggingface_hub", extra="hub", purpose="a network by name")
    patterns = ["*.safetensors", "*.json"]
    try:
        return Path(hub.snapshot_download(model, local_files_only=not download, allow_patterns=patterns))
    except Exception as exc:  # the hub's error types differ between versions
        if download:
            raise RunError(f"'{model}' cannot be downloaded ({type(exc).__name__}: {exc})") from exc
        raise InputError(
            f"the weights of '{model}' are not on this machine", remedy="set download=true, or give a folder"
        ) from exc


def weights_name(model: str) -> str:
    """A model's name without the place of its folder on this machine; its bytes are identified by their digest."""
    return Path(model).resolve().name if Path(model).is_dir() else model
