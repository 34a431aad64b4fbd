"""Arrays of HDF5 files, through h5py (extra ``datasets``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relief3d.core.errors import InputError
from relief3d.core.optional import require
from relief3d.io.formats import check_regular_file, unreadable

_MAX_VALUES = 1 << 28


def read_hdf5(path: Path, key: str = "dataset", *, what: str = "this data set") -> NDArray[Any]:
    """One array.

    Args:
        path: the file.
        key: of the array, such as "dataset" or "observation/camera_extrinsics/123_left".
        what: who needs it, for the message.

    Raises:
        MissingExtraError: h5py is not installed.
        InputError: missing, damaged, without that array, or too large.
    """
    h5py = require("h5py", extra="datasets", purpose=f"reading {what}")
    path = check_regular_file(path)
    try:
        with h5py.File(str(path), "r") as file:
            if key not in file or not hasattr(file[key], "shape"):
                raise InputError(f"has no array called '{key}'", path=path, remedy="use the official release")
            if file[key].dtype.kind not in "fiub" or int(np.prod(file[key].shape)) > _MAX_VALUES:
                raise InputError(f"the array '{key}' cannot be used", path=path)
            return np.asarray(file[key][()])
    except OSError as exc:
        if exc.errno:
            raise unreadable(path, exc) from exc
        raise InputError("is a damaged HDF5 file", path=path, remedy="copy it again") from exc
