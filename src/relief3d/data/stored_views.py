"""Samples of views in shards: what is written, and a source that reads it back."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Batch, Camera, Depth, Scene, View
from relief3d.core.errors import InputError
from relief3d.core.seeding import derive_seed, torch_generator
from relief3d.data.covisibility import depth_overlap, pose_overlap
from relief3d.data.geometric import Edit, apply_edits
from relief3d.data.shard_decoders import DECODERS, Decoder, decode_members
from relief3d.data.shards import ShardSet, write_shards
from relief3d.data.sources import SampleSource, check_modalities, sample_of_scene
from relief3d.data.view_groups import ViewRequest, choose_from_order, choose_from_overlap
from relief3d.io.names import natural_key

TENSORS, FACTS = "views.safetensors", "sample.json"
_PICTURE = re.compile(r"([0-9]+\.)?(jpg|jpeg|png|webp)")
"""Members that are views; other pictures (``seg.png``, ``mask.png``) are something else."""
_FIELDS = ("K", "has_K", "world_from_cam", "has_pose", "depth", "depth_valid", "sparse_depth", "mask", "time")


def encode_sample(batch: Batch) -> dict[str, bytes]:
    """Members of a shard for a sample (B = 1): ``views.safetensors`` with 8-bit pictures and all that is known exactly,
    ``sample.json`` with names.

    Raises:
        InputError: more than one sample.
    """
    from safetensors.torch import save

    if batch.images.shape[0] != 1:
        raise InputError(f"{batch.images.shape[0]} samples cannot be stored as one")
    tensors = {"images": (batch.images[0] * 255).round().clamp(0, 255).to(torch.uint8)}
    for name in _FIELDS:
        value = getattr(batch, name)
        if value is not None:
            tensors[name] = value[0]
    facts = {
        "views": list(batch.names[0]),
        "metric": None if batch.metric is None else bool(batch.metric[0]),
    }
    # Copies, because two fields may be one tensor (flags that are all true), which the format refuses.
    data = save({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()})
    return {TENSORS: data, FACTS: json.dumps(facts, sort_keys=True).encode()}


def prerender(
    source: SampleSource,
    request: ViewRequest,
    count: int,
    folder: str | Path,
    *,
    seed: int = 0,
    per_shard: int = 256,
    part: int = 0,
    parts: int = 1,
    recipe: Mapping[str, Any] | None = None,
) -> int:
    """Store samples 0 ... count - 1 of a source, so that training reads them instead of making them.

    Ask for more views than training will use: the reader chooses among them anew in every epoch. A killed run is
    continued; see :func:`relief3d.data.shards.write_shards`, whose number of written shards is returned. What a source
    says about itself (its attribute ``recipe``, if it has one) is kept with ``recipe``, so that a folder never mixes
    two of them.

    Raises:
        InputError: a sample cannot be made, or the folder holds other shards.
    """
    if count > len(source):
        raise InputError(f"the source '{source.name}' has {len(source)} samples, {count} are wanted")

    def make(index: int) -> tuple[str, dict[str, bytes]]:
        batch = source.sample(index, request, derive_seed(seed, "prerender", source.name, index))
        return f"{index:08d}", encode_sample(batch)

    facts = {
        **(recipe or {}),
        "source": source.name,
        "source_recipe": dict(getattr(source, "recipe", {})),
        "need": sorted(request.need),
        "seed": seed,
        "views": request.views,
        "size": list(request.size),
        "grouping": dataclasses.asdict(request.grouping),
    }
    facts = json.loads(json.dumps(facts))
    return write_shards(folder, count, make, per_shard=per_shard, recipe=facts, part=part, parts=parts)


class ShardSource:
    """Samples from shards: those of :func:`prerender`, or pictures with cameras.

    A sample holds ``views.safetensors`` with ``images`` (N, 3, H, W) uint8; or pictures ``jpg``, ``000.jpg``,
    ``001.png`` ... in the order of their numbers with, if known, ``K`` and ``world_from_cam`` in ``views.safetensors``
    and depth in ``000.depth.npy``. Pictures with other names (``seg.png``) are no views.

    Args:
        name: of the source.
        shards: where they are.
        decoders: for members, by suffix.
        ignore: suffixes of members that are of no use here.
    """

    def __init__(
        self,
        name: str,
        shards: ShardSet,
        *,
        decoders: Mapping[str, Decoder] | None = None,
        ignore: Collection[str] = (),
    ) -> None:
        self.name, self.shards, self.ignore = name, shards, tuple(ignore)
        self.decoders = None if decoders is None else dict(decoders)

    def __len__(self) -> int:
        return len(self.shards)

    def key(self, index: int) -> str:
        return self.shards.key(index)

    def sample(self, index: int, request: ViewRequest, seed: int) -> Batch:
        decoded = decode_members(
            self.shards.read(index),
            self.key(index),
            limits=self.shards.limits,
            decoders=DECODERS if self.decoders is None else self.decoders,
            ignore=self.ignore,
        )
        generator = torch_generator(derive_seed(seed, "views"))
        tensors, facts = decoded.get(TENSORS, {}), decoded.get(FACTS, {})
        if "images" in tensors:
            return _sample_of_stack(tensors, facts, request, generator)
        return sample_of_scene(_scene(decoded, tensors, facts), request, generator)


def _sample_of_stack(
    tensors: Mapping[str, Tensor], facts: Mapping[str, Any], request: ViewRequest, generator: torch.Generator
) -> Batch:
    """Chosen views of a stack of one size, without a detour over single views."""
    images = tensors["images"]
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or not images.numel():
        raise InputError(f"images of shape {tuple(images.shape)}, {images.dtype} are no stack of pictures")
    count, _, height, width = images.shape
    shapes = {
        "K": (3, 3), "world_from_cam": (4, 4), "has_K": (), "has_pose": (), "time": (),
        **dict.fromkeys(("depth", "depth_valid", "sparse_depth", "mask"), (height, width)),
    }  # fmt: skip
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != (count, *shape):
            raise InputError(f"{name} of shape {tuple(tensors[name].shape)} does not fit {count} pictures")
    for matrix, flag in (("K", "has_K"), ("world_from_cam", "has_pose"), ("depth", "depth_valid")):
        if (matrix in tensors) != (flag in tensors):
            raise InputError(f"holds only one of {matrix} and {flag}")
    if request.grouping.kind == "covisible" and count >= request.views:
        chosen = choose_from_overlap(_stack_overlap(tensors), request, generator)
    else:
        chosen = choose_from_order(count, request, generator)
    rows = torch.tensor(chosen)
    flags = {"has_K", "has_pose", "depth_valid", "mask"}
    known = {
        name: tensors[name][rows][None].to(torch.bool if name in flags else torch.float32)
        for name in shapes
        if name in tensors
    }
    names = facts.get("views")
    if not isinstance(names, list) or len(names) != count:
        names = [str(i) for i in range(count)]
    metric = facts.get("metric")
    batch = Batch(
        images=images[rows][None].float() / 255,
        metric=None if metric is None else torch.tensor([bool(metric)]),
        names=(tuple(str(names[i]) for i in chosen),),
        **known,
    )
    if (height, width) != request.size:
        window = _centre(height, width, request.size)
        batch = apply_edits(batch, [[Edit(0, False, window)] * len(chosen)], request.size)
    return check_modalities(batch, request)


def _centre(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest window of the wanted shape in the middle: left, top, width, height."""
    w = min(width, max(1, round(height * size[1] / size[0])))
    h = min(height, max(1, round(w * size[0] / size[1])))
    return ((width - w) // 2, (height - h) // 2, w, h)


def _stack_overlap(tensors: Mapping[str, Tensor]) -> Tensor:
    if "K" not in tensors or "world_from_cam" not in tensors:
        raise InputError("views that see the same things cannot be found without poses")
    K, pose = tensors["K"].double(), tensors["world_from_cam"].double()
    known = tensors["has_K"].bool() & tensors["has_pose"].bool()
    if "depth" in tensors:
        overlap = depth_overlap(torch.where(tensors["depth_valid"].bool(), tensors["depth"], 0.0), K, pose)
    else:
        height, width = tensors["images"].shape[-2:]
        overlap = pose_overlap(K, pose, torch.tensor([[width, height]] * len(K)))
    return overlap * (known[:, None] & known)  # cameras that are not known hold the identity


def _scene(decoded: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Scene:
    """A scene from pictures as members of their own."""
    pictures = sorted((e for e in decoded if _PICTURE.fullmatch(e.lower())), key=natural_key)
    if not pictures:
        raise InputError("holds no picture", remedy=f"see {ShardSource.__name__} for what a sample holds")
    for name in ("K", "world_from_cam"):
        if name in tensors and len(tensors[name]) != len(pictures):
            raise InputError(f"holds {len(pictures)} pictures and {len(tensors[name])} of {name}")
    views = []
    for i, extension in enumerate(pictures):
        image: Tensor = decoded[extension]
        stem = extension.rpartition(".")[0]
        camera = Camera(
            int(image.shape[-1]),
            int(image.shape[-2]),
            tensors["K"][i] if "K" in tensors else None,
            tensors["world_from_cam"][i] if "world_from_cam" in tensors else None,
        )
        depth = decoded.get(f"{stem}.depth.npy" if stem else "depth.npy")
        views.append(View(extension, camera, image, None if depth is None else Depth.from_values(depth)))
    return Scene(tuple(views), metric=bool(facts.get("metric", False)))
