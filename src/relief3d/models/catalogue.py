"""Every network whose published weights can be loaded, and which network a file of weights is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from relief3d.core.errors import InputError
from relief3d.models.checkpoints import read_config, read_header
from relief3d.models.metric import pointmap_loading, pyramid_loading, refiner_loading
from relief3d.models.multiview import loading as multiview_loading
from relief3d.models.published import PublishedModel, fetch_published, to_console

CATALOGUE: Mapping[str, PublishedModel] = {
    **multiview_loading.PUBLISHED,
    **pyramid_loading.PUBLISHED,
    **pointmap_loading.PUBLISHED,
}
ARCHITECTURES = (
    *multiview_loading.ARCHITECTURES,
    "depth_map",
    "depth_pro",
    "teacher",
    "pointmap",
    "prompt-refiner",
)


def published(name: str) -> PublishedModel:
    """An entry of the catalogue.

    Raises:
        InputError: there is none of that name.
    """
    if name not in CATALOGUE:
        raise InputError(
            f"there is no published model '{name}'",
            remedy=f"known are {', '.join(CATALOGUE)}; or give a file",
        )
    return CATALOGUE[name]


def fetch(name: str, *, announce: Callable[[str], None] = to_console) -> Path:
    """The weights of an entry; see :func:`~relief3d.models.published.fetch_published`.

    Raises:
        InputError: unknown name, or huggingface_hub is not installed.
        RunError: see :func:`~relief3d.models.published.fetch_published`.
    """
    return fetch_published(published(name), announce=announce)


def architecture_of(path: Path, header: Mapping[str, Tensor]) -> str | None:
    """Which network a file of weights is for, from its names and the configuration that it carries; None for none."""
    found = multiview_loading.identify(header) or pyramid_loading.identify(header)
    if found is None and refiner_loading.identify(header):
        found = "prompt-refiner"
    if found is None and (
        pointmap_loading.identify(header) or read_config(path, pointmap_loading.CONFIG_KEY) is not None
    ):
        found = "pointmap"
    return found


def describe_file(path: Path) -> str:
    """What a file of weights holds.

    Raises:
        InputError: see :func:`~relief3d.models.checkpoints.read_state`; or it belongs to none of the networks.
    """
    if not path.exists():
        published(str(path))
    header = read_header(path)
    found = architecture_of(path, header)
    if found is None:
        raise InputError(
            "holds weights of none of the networks", path=path, remedy=f"known are {', '.join(ARCHITECTURES)}"
        )
    count = sum(v.numel() for v in header.values())
    size = sum(v.numel() * v.element_size() for v in header.values())
    kinds = ", ".join(sorted({str(v.dtype).removeprefix("torch.") for v in header.values()}))
    return f"{path.name}: {found}, {len(header)} tensors, {count / 1e6:.2f} M values, {size / 1e9:.2f} GB ({kinds})"
