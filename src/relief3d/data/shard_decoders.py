"""What members of a shard may be: an allow-list by suffix. Nothing here can run code from a file."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from relief3d.core.errors import InputError


@dataclass(frozen=True)
class ShardLimits:
    """What a shard may ask for.

    Attributes:
        members: files in one shard.
        member_bytes: of one file.
        sample_bytes: of all files of one sample.
        pixels: of a picture, or numbers in an array.
    """

    members: int = 2_000_000
    member_bytes: int = 256 * 1024**2
    sample_bytes: int = 1024**3
    pixels: int = 100_000_000


Decoder = Callable[[bytes, str, ShardLimits], Any]

PROGRAMS = frozenset(
    {"pkl", "pickle", "pyd", "pyc", "py", "pth", "pt", "ckpt", "joblib", "dill", "cloudpickle", "h5", "mat"}
)
"""Suffixes of files that run code when loaded the usual way, or whose loaders did; never decoded."""


def _picture(data: bytes, name: str, limits: ShardLimits) -> Tensor:
    """(3, H, W) float32 RGB in [0, 1]."""
    from relief3d.io.decoders import decode_image

    return decode_image(data, name=name, max_pixels=limits.pixels, kinds=("jpeg", "png", "webp"))


def _array(data: bytes, name: str, limits: ShardLimits) -> Tensor:
    from relief3d.io.depth import read_npy_stream

    return torch.from_numpy(read_npy_stream(io.BytesIO(data), name, limits.pixels).copy())


def _arrays(data: bytes, name: str, limits: ShardLimits) -> dict[str, Tensor]:
    from relief3d.io.depth import read_npz_stream

    arrays = read_npz_stream(io.BytesIO(data), name, min(limits.pixels, limits.sample_bytes // 16))
    return {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}


def _tensors(data: bytes, name: str, limits: ShardLimits) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as exc:
        raise InputError("is no complete safetensors file", path=name) from exc


def _text(data: bytes, name: str, limits: ShardLimits) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError("is not UTF-8 text", path=name) from exc


def _json(data: bytes, name: str, limits: ShardLimits) -> dict[str, Any]:
    from relief3d.io.json_file import parse_json_object

    return parse_json_object(_text(data, name, limits), name)


DECODERS: Mapping[str, Decoder] = MappingProxyType(
    {
        "jpg": _picture,
        "jpeg": _picture,
        "png": _picture,
        "webp": _picture,
        "npy": _array,
        "npz": _arrays,
        "safetensors": _tensors,
        "json": _json,
        "txt": _text,
    }
)
"""Decoders by the last suffix of a member."""


def decode_members(
    members: Mapping[str, bytes],
    name: str,
    *,
    limits: ShardLimits | None = None,
    decoders: Mapping[str, Decoder] = DECODERS,
    ignore: Collection[str] = (),
) -> dict[str, Any]:
    """Contents of the members of one sample.

    Args:
        members: bytes by extension (everything after the first dot).
        name: of the sample, for errors.
        limits: of sizes.
        decoders: by last suffix.
        ignore: last suffixes that are left out.

    Raises:
        InputError: a member that could run code, has no decoder, is too large or damaged.
    """
    limits = ShardLimits() if limits is None else limits
    if sum(len(data) for data in members.values()) > limits.sample_bytes:
        raise InputError(f"the sample has more than {limits.sample_bytes} bytes", path=name)
    out = {}
    for extension, data in members.items():
        suffix = extension.rsplit(".", 1)[-1].lower()
        where = f"{name}.{extension}"
        if suffix in PROGRAMS:
            raise InputError(
                f"is of a kind ({suffix}) that can run code when it is read, and is never read",
                path=where,
                remedy="store arrays as npy or safetensors and the rest as json",
            )
        if suffix in ignore:
            continue
        if suffix not in decoders:
            raise InputError(
                f"there is no decoder for '{suffix}'",
                path=where,
                remedy=f"use one of {', '.join(decoders)}, or name it among those to be left out",
            )
        if len(data) > limits.member_bytes:
            raise InputError(f"has more than {limits.member_bytes} bytes", path=where)
        out[extension] = decoders[suffix](data, where, limits)
    return out
