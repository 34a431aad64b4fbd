"""Small networks that come with the package: no download, used when no other is named.

Each lies in a folder of its own below ``relief3d/weights``: safetensors shards in half precision, their index, a model
card ``model.json`` and the same for people, ``README.md``. Every shard is compared with the digest in the card before
it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from relief3d.core.errors import InputError
from relief3d.io.json_file import read_json_object
from relief3d.models.checkpoints import file_digest
from relief3d.models.shards import INDEX_FILE

CARD = "model.json"
PROMPTED, PLAIN = "metric-teacher-mini", "metric-student-mini"
"""Used by default: with sparse metric depth, and without."""
PURPOSES: Mapping[str, str] = MappingProxyType(
    {
        PROMPTED: "dense metric depth from a picture and sparse metric depth",
        PLAIN: "metric depth from a picture alone",
    }
)
"""What is meant to come with the package, also where this copy lacks it."""
TELLS_DEPTH: Mapping[str, bool] = MappingProxyType({PROMPTED: True, PLAIN: False})
"""Whether those are told sparse depth."""


@dataclass(frozen=True)
class PackagedModel:
    """A network of the package.

    Attributes:
        name: of it.
        folder: of its files.
        card: what ``model.json`` says.
    """

    name: str
    folder: Path
    card: Mapping[str, Any]

    @property
    def index(self) -> Path:
        """What to load."""
        return self.folder / INDEX_FILE

    @property
    def architecture(self) -> str:
        """Short name of the kind of network."""
        return str(self.card["architecture"])

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(int(shard["bytes"]) for shard in self.card["shards"])


def weights_root() -> Path:
    """The folder of the packaged networks."""
    return Path(str(files("relief3d"))) / "weights"


def packaged_names(root: Path | None = None) -> tuple[str, ...]:
    """Networks that this copy holds."""
    root = weights_root() if root is None else root
    return tuple(sorted(p.parent.name for p in root.glob(f"*/{CARD}")))


def packaged(name: str, root: Path | None = None) -> PackagedModel:
    """A packaged network, whose files are there and whole.

    Args:
        name: such as ``metric-teacher-mini``.
        root: of all packaged networks; None: the package's own.

    Raises:
        InputError: this copy has none of that name, or its files are incomplete or changed.
    """
    root = weights_root() if root is None else root
    folder = root / name
    if Path(name).name != name or not (folder / CARD).is_file():
        have = ", ".join(packaged_names(root)) or "none"
        raise InputError(
            f"the packaged network '{name}' is not part of this copy of relief3d (it has {have})",
            remedy="name a file of weights or a published network (relief3d models list)",
        )
    card = read_json_object(folder / CARD)
    try:
        shards = {str(s["file"]): str(s["sha256"]) for s in card["shards"]}
        sizes = [int(s["bytes"]) for s in card["shards"]] + [int(card["parameters"])]
        said = ("architecture", "name", "purpose", "licence", "recipe", "size", "budget")
        whole = bool(shards) and min(sizes) > 0 and all(isinstance(card[k], str) for k in said)
        whole = whole and isinstance(card["seed"], int)
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(
            "is no card of a packaged network", path=folder / CARD, remedy="install relief3d again"
        ) from exc
    if not whole:
        raise InputError(
            "is no card of a packaged network", path=folder / CARD, remedy="install relief3d again"
        )
    for file, digest in shards.items():
        if not (folder / file).is_file() or file_digest(folder / file) != digest:
            raise InputError(
                "is missing, or not what the card says", path=folder / file, remedy="install relief3d again"
            )
    return PackagedModel(name, folder, card)


def describe_packaged(model: PackagedModel) -> str:
    """One line for a list."""
    card = model.card
    return (
        f"{model.name}: {model.architecture}, {card['parameters'] / 1e6:.2f} M parameters, "
        f"{model.bytes / 1e6:.1f} MB, comes with relief3d; licence: {card['licence']}; source: "
        f"relief3d train {card['recipe']} --size {card['size']} --budget {card['budget']}, seed {card['seed']}"
    )


def describe_absent(name: str) -> str:
    """One line for what is meant to come with relief3d and does not in this copy."""
    return f"{name}: {PURPOSES[name]}; not part of this copy of relief3d"
