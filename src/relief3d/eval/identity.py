"""Identifies what a model was shown, so that a kept answer is never measured against another question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import View
from relief3d.core.errors import InputError
from relief3d.core.provenance import versions
from relief3d.eval.protocols.base import Query, Sample


def query_key(query: Query, model: str = "", rules: str = "") -> str:
    """Hash of everything a model sees: pictures, cameras, further tensors and facts, the seed, and who answers.

    Pictures that lie in files of the data set are known by name and size, so that a scan of thousands of pictures is
    not read only for this; all others by their pixels.

    Args:
        query: what is shown.
        model: name of the model.
        rules: of the protocol, where the model sees the truth and thus depends on them.
    """
    digest = hashlib.blake2b(digest_size=16)
    head = [query.name, query.task, list(query.wants), query.seed, model, rules, versions().get("relief3d")]
    _add_json(digest, head)
    _add_json(digest, query.facts)
    for name in sorted(query.tensors):
        digest.update(name.encode())
        _add_tensor(digest, query.tensors[name])
    for view in () if query.scene is None else query.scene.views:
        _add_view(digest, view)
    return digest.hexdigest()


def check_names(samples: Sequence[Sample]) -> None:
    """Refuse sample names that cannot be files below the folder of answers.

    Names come from files of the data set, so they may hold anything.

    Raises:
        InputError: a name is empty, absolute, or leaves the folder.
    """
    for sample in samples:
        parts = sample.name.split("/")
        if "" in parts or "." in parts or ".." in parts or any(c in sample.name for c in "\0\\"):
            raise InputError(
                f"the sample name {sample.name!r} is not a relative path",
                remedy="check the data set's list files",
            )


def _add_view(digest: hashlib.blake2b, view: View) -> None:
    camera = view.camera
    _add_json(digest, [view.name, camera.width, camera.height])
    for matrix in (camera.K, camera.world_from_cam):
        digest.update(b"-") if matrix is None else _add_tensor(digest, matrix)
    if view.path is not None and view.path.is_file():
        _add_json(digest, [view.path.name, view.path.stat().st_size])
    elif view.image is not None:
        _add_tensor(digest, view.load_image())


def _add_json(digest: hashlib.blake2b, value: list[Any] | Mapping[str, Any]) -> None:
    content = dict(value) if isinstance(value, Mapping) else value
    digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\0")


def _add_tensor(digest: hashlib.blake2b, value: Tensor) -> None:
    _add_json(digest, [str(value.dtype), list(value.shape)])
    digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
