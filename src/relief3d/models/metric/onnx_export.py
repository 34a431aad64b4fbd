"""Metric networks as ONNX files: the forward pass for pictures of one size; focal solver and metres stay outside.

Works for every network of this package whose forward pass takes pictures and returns a dataclass of tensors: the
point-map network, whose grid of tokens is fixed, Student-DepthMap, Depth Pro, and the teacher without a prompt. The
file's outputs have the names of the dataclass, and its metadata says what a caller needs to know.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.models.metric.pointmap import PointMap, token_grid
from relief3d.models.metric.pointmap_configs import config_to_dict

OPSET = 18
METADATA_KEY = "relief3d"
INPUT = "images"
_EXTERNAL_ABOVE = 1_800_000_000
"""Bytes of weights above which they go to a file of their own: an ONNX file cannot pass 2 GiB."""


class _Fixed(nn.Module):
    """A network with its other arguments held, as a tuple of tensors."""

    def __init__(self, network: nn.Module, arguments: tuple[Any, ...], names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.arguments, self.names = network, arguments, names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        out = self.network(images, *self.arguments)
        return tuple(getattr(out, name) for name in self.names)


def export_onnx(
    network: nn.Module,
    path: str | Path,
    size: tuple[int, int],
    *,
    tokens: int | None = None,
    batch: int = 1,
) -> Mapping[str, Any]:
    """Write a network for pictures of one size; the files appear whole or not at all.

    Args:
        network: of this package, in float32; exported in evaluation mode, from the CPU.
        path: of the file; weights of more than 1.8 GB go to a second file ``PATH.data`` beside it.
        size: (H, W) of the pictures, RGB in [0, 1]. Pyramid networks need the square they work on.
        tokens: for a point-map network, their number; None for the most that it was trained with.
        batch: number of pictures.

    Returns:
        The metadata: input and output names and shapes, and for a point-map network tokens, grid and configuration.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        InputError: a network that is not exportable, a size that it cannot take, or no such folder.
    """
    for package in ("onnx", "onnxscript"):
        require(package, extra="onnx", purpose="writing ONNX files")
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError("there is no such folder", path=path.parent, remedy="make it first")
    arguments, facts = _held(network, size, tokens)
    device = next(network.parameters()).device
    images = torch.zeros(batch, 3, *size, device=device)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            names, shapes = _outputs(network, images, arguments)
            facts |= {"input": {INPUT: list(images.shape)}, "outputs": shapes}
            program = torch.onnx.export(
                _Fixed(network, arguments, names).eval(), (images,), dynamo=True, opset_version=OPSET,
                input_names=[INPUT], output_names=list(names), verbose=False,
            )  # fmt: skip
    finally:
        network.train(was_training)
    assert program is not None
    program.model.metadata_props[METADATA_KEY] = json.dumps(facts)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        program.save(str(Path(folder) / path.name), external_data=weights > _EXTERNAL_ABOVE)
        # Weights first: a file that names missing ones would be half written.
        for part in sorted(Path(folder).iterdir(), key=lambda p: p.name == path.name):
            part.replace(path.parent / part.name)
    return facts


def onnx_metadata(path: str | Path) -> dict[str, Any]:
    """What :func:`export_onnx` wrote beside the network.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        InputError: the file is not one of ours, or damaged.
    """
    text = _session(path).get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise InputError("was not written by relief3d", path=path)
    facts: dict[str, Any] = json.loads(text)
    return facts


def run_onnx(path: str | Path, images: Tensor) -> dict[str, Tensor]:
    """Outputs by name of a file written by :func:`export_onnx`, computed by onnxruntime on the CPU.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        InputError: the file is damaged, or the pictures have another size.
    """
    session = _session(path)
    wanted = list(session.get_inputs()[0].shape)
    if list(images.shape) != wanted:
        raise InputError(f"takes pictures of shape {wanted}, not {list(images.shape)}", path=path)
    found = session.run(None, {session.get_inputs()[0].name: images.float().cpu().numpy()})
    names = [output.name for output in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, found)}


def onnx_differences(network: nn.Module, path: str | Path, images: Tensor) -> dict[str, float]:
    """By output, the largest difference between a file and the network, relative to the largest value.

    Raises:
        InputError: as :func:`run_onnx`.
    """
    found = run_onnx(path, images)
    grid = onnx_metadata(path).get("grid")
    was_training = network.training
    network.eval()
    with torch.no_grad():
        out = network(images, *([tuple(grid)] if grid else []))
    network.train(was_training)
    differences = {}
    for name, value in found.items():
        expected = getattr(out, name).float().cpu()
        size = float(expected.abs().max())
        differences[name] = float((value - expected).abs().max()) / (size if size > 0 else 1.0)
    return differences


def _held(
    network: nn.Module, size: tuple[int, int], tokens: int | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments after the pictures, and facts about them."""
    facts: dict[str, Any] = {"network": type(network).__name__}
    if min(size) < 1:
        raise InputError(f"pictures cannot have {size[1]} x {size[0]} pixels")
    if isinstance(network, PointMap):
        count = network.config.tokens[1] if tokens is None else tokens
        if count < 1:
            raise InputError(f"the number of tokens must be positive, not {count}")
        grid = token_grid(*size, count)
        return (grid,), facts | {
            "tokens": count,
            "grid": list(grid),
            "model_config": config_to_dict(network.config),
        }
    if tokens is not None:
        raise InputError(f"{type(network).__name__} has no number of tokens to choose")
    return (), facts


def _outputs(
    network: nn.Module, images: Tensor, arguments: tuple[Any, ...]
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Names and shapes of what the network gives."""
    try:
        out = network(images, *arguments)
        values = {f.name: getattr(out, f.name) for f in fields(out)}
    except (TypeError, ValueError) as exc:
        raise InputError(f"{type(network).__name__} cannot be exported for this size: {exc}") from exc
    shapes = {name: list(value.shape) for name, value in values.items() if isinstance(value, Tensor)}
    return tuple(shapes), shapes


def _session(path: str | Path) -> Any:
    runtime = require("onnxruntime", extra="onnx", purpose="running ONNX files")
    path = Path(path)
    if not path.is_file():
        raise InputError("there is no such file", path=path)
    try:
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime's errors share no base class of its own
        raise InputError("cannot be read as an ONNX network", path=path, remedy="export it again") from exc
