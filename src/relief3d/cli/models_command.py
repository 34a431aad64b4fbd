"""``relief3d models``: what can be loaded, and what comes with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from relief3d.cli.commands import _print
from relief3d.core.errors import EXIT_OK, InputError


@dataclass(frozen=True)
class ModelsCommand:
    """Options of ``relief3d models``."""

    action: tyro.conf.Positional[Literal["list", "info", "pull", "pack"]]
    """list: networks that come with relief3d, and published ones that can be loaded. info: one of them, or a file of
    weights. pull: download a published one. pack: make one that comes with relief3d from a finished training run."""
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """Name from the list, vggt, pi3 or pi3x; for info also a file of weights, for pack the folder of the run."""
    name_as: Annotated[str, tyro.conf.arg(name="as", metavar="NAME")] = ""
    """With pack: the name of the packaged network."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """With pack: where packaged networks lie; by default this installation's own."""
    purpose: str = ""
    """With pack: what the network is for, in one line; known for those that are used by default."""
    overwrite: bool = False
    """With pack: replace a packaged network of that name."""

    def run(self) -> int:
        """Show, download or pack."""
        if self.action == "pack" and self.name:
            return self._pack()
        if self.name_as or self.root or self.purpose or self.overwrite:
            raise InputError("--as, --root, --purpose and --overwrite belong to 'models pack'")
        if self.action == "list":
            if self.name:
                raise InputError("'models list' takes no name", remedy=f"relief3d models info {self.name}")
            _print(listing())
            return EXIT_OK
        if not self.name:
            raise InputError(f"'models {self.action}' needs a name", remedy="relief3d models list shows them")
        from relief3d.models.catalogue import CATALOGUE, describe_file, fetch
        from relief3d.models.packaged import PURPOSES, packaged, packaged_names
        from relief3d.models.published import describe
        from relief3d.pipelines.multiview.networks import DEFAULT_WEIGHTS
        from relief3d.pipelines.packaging import render_card

        name = DEFAULT_WEIGHTS.get(self.name, self.name)
        if name in PURPOSES or name in packaged_names():
            if self.action == "pull":
                raise InputError(f"{name} comes with relief3d", remedy="there is nothing to download")
            _print(render_card(packaged(name).card).rstrip())
        elif self.action == "pull":
            _print(str(fetch(name, announce=_print)))
        elif name in CATALOGUE:
            _print(describe(CATALOGUE[name]))
        else:
            _print(describe_file(Path(self.name)))
        return EXIT_OK

    def _pack(self) -> int:
        from relief3d.models.packaged import describe_packaged
        from relief3d.pipelines.packaging import pack_run

        if not self.name_as:
            raise InputError("'models pack' needs a name for the network", remedy="add --as NAME")
        made = pack_run(
            Path(self.name), self.name_as, self.root, purpose=self.purpose, overwrite=self.overwrite
        )
        _print(describe_packaged(made))
        return EXIT_OK


def listing() -> str:
    """One line for every network: those that come with relief3d first."""
    from relief3d.models.catalogue import CATALOGUE
    from relief3d.models.packaged import (
        PURPOSES,
        describe_absent,
        describe_packaged,
        packaged,
        packaged_names,
    )
    from relief3d.models.published import describe

    have = packaged_names()
    lines = [describe_packaged(packaged(name)) for name in have]
    lines += [describe_absent(name) for name in PURPOSES if name not in have]
    return "\n".join([*lines, *(describe(model) for model in CATALOGUE.values())])
