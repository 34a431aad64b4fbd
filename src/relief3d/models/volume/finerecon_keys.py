"""Checkpoints of the released FineRecon (specification 4.9): names there and here.

Its activations have the slope 1, so the network for them is ``volume_config("full", "finerecon",
finerecon_compat=True)``. The layout is held against the specification's list of names; no released checkpoint was at
hand when this was written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from relief3d.models.checkpoints import load_weights, read_state
from relief3d.models.volume.network import VolumeNetwork

_RULES: tuple[tuple[str, str], ...] = (
    ("voxel_cnn.trunk.features.3.", "cnn2d.conv1."),
    ("voxel_cnn.trunk.features.4.", "cnn2d.conv2."),
    ("voxel_cnn.trunk.features.", "cnn2d.conv0."),
    ("voxel_cnn.", "cnn2d."),
    ("point_cnn.trunk.features.3.", "cnn2d_pb.conv1."),
    ("point_cnn.trunk.features.4.", "cnn2d_pb.conv2."),
    ("point_cnn.trunk.features.", "cnn2d_pb.conv0."),
    ("point_cnn.", "cnn2d_pb."),
    ("voxel_norm.", "fusion.bn."),
    ("point_norm.", "point_fusion.bn."),
    ("unet.", "cnn3d."),
    ("point_mlp.", "point_feat_mlp."),
    ("surface.net.", "surface_predictor."),
    ("occupied.net.", "occ_predictor."),
)
_BACK = tuple((theirs, ours) for ours, theirs in sorted(_RULES, key=lambda r: -len(r[1])))
_CONSTANTS = re.compile(r"image_(mean|std)|.*\.(mean|std)")


def to_finerecon(key: str) -> str:
    """FineRecon's name of one of ours.

    Raises:
        KeyError: it has no such part.
    """
    for ours, theirs in _RULES:
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    raise KeyError(f"FineRecon has nothing like {key}")


def from_finerecon(key: str) -> str:
    """Our name of one of FineRecon's.

    Raises:
        KeyError: we have no such part.
    """
    for theirs, ours in _BACK:
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    raise KeyError(f"{key} belongs to no part of a FineRecon network")


def finerecon_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A FineRecon state in our names; constants for pictures (mean and standard deviation), which we have in the code,
    are left out, and names of no known part are kept as they are, for the loader to complain about.
    """
    out = {}
    for key, value in state.items():
        if _CONSTANTS.fullmatch(key):
            continue
        try:
            out[from_finerecon(key)] = value
        except KeyError:
            out[key] = value
    return out


def load_finerecon(network: VolumeNetwork, path: str | Path) -> None:
    """Fill a network (variant ``finerecon``) from a Lightning checkpoint of FineRecon.

    Raises:
        InputError: the file is damaged, or its names or shapes do not fit.
    """
    load_weights(network, finerecon_state(read_state(path)), source=path)
