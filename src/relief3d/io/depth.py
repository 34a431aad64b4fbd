"""Depth maps and masks in and out: 16-bit PNG with a scale, NPY, NPZ, EXR, PFM, float TIFF.

Whatever is not finite, not positive or absurdly far becomes invalid; a map without a single valid
pixel is an error, never a silent zero. Nothing is unpickled, and array sizes are read from the header
before memory is taken.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relief3d.core.contract import Depth
from relief3d.core.errors import InputError
from relief3d.io.atomic import atomic_path
from relief3d.io.decoders import damaged, open_picture
from relief3d.io.exr import read_exr, write_exr
from relief3d.io.formats import DEPTH_FORMATS, check_regular_file, sniff, unreadable
from relief3d.io.images import read_image
from relief3d.io.limits import DEFAULT_MAX_PIXELS, check_pixels
from relief3d.io.pfm import read_pfm, write_pfm

DEFAULT_PNG_SCALE = 0.001
"""Metres per unit of an integer depth file when nothing is said: millimetres."""

MAX_DEPTH = 1e6
"""Values from here on mean "nothing there" in many renderers; they become invalid (file unit x scale)."""

PLAUSIBLE_METRES = (0.01, 2000.0)
"""Median depth outside of this range is taken for a wrong unit when no scale was given."""

_DEPTH_NAMES = ("depth", "z", "Z", "depths", "arr_0")


def read_depth(
    path: str | Path,
    scale: float | None = None,
    metric: bool = True,
    *,
    key: str | None = None,
    size: tuple[int, int] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Depth:
    """Read one depth map.

    Args:
        path: 16-bit PNG or TIFF, NPY, NPZ, EXR or PFM; recognised by content.
        scale: depth = stored value x scale. None: 0.001 for integers (millimetres), 1 for floats; the
            result is then checked for a plausible unit.
        metric: the result is in metres.
        key: array name in an NPZ or channel in an EXR; by default "depth", "Z", "Y" or the only one.
        size: (width, height) that the map must have.
        max_pixels: larger maps are refused before they are loaded.

    Returns:
        Depth with (H, W) float32 z-depth, 0 where invalid, and the confidence if the file holds one.

    Raises:
        InputError: damaged file, wrong size, no valid pixels, implausible unit.
    """
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise InputError(f"the depth scale must be positive, got {scale}", path=path)
    stored, confidence, stored_valid = _read_values(path, key, max_pixels)
    if stored.ndim == 3 and 1 in (stored.shape[0], stored.shape[2]):
        stored = stored[0] if stored.shape[0] == 1 else stored[..., 0]
    if stored.ndim != 2 or 0 in stored.shape:
        raise InputError(f"a depth map must be (H, W), got {stored.shape}", path=path)
    if stored.dtype.kind not in "fui":
        raise InputError(f"depth values of type {stored.dtype} cannot be used", path=path)
    height, width = stored.shape
    if size is not None and (width, height) != tuple(size):
        raise InputError(
            f"the depth map has {width} x {height} pixels, its picture {size[0]} x {size[1]}",
            path=path,
            remedy="resize the depth map to the picture (nearest neighbour)",
        )
    unit = scale if scale is not None else (DEFAULT_PNG_SCALE if stored.dtype.kind in "ui" else 1.0)
    depth = clean_depth(torch.from_numpy(stored.astype(np.float64)) * unit, metric=metric, path=path)
    if stored_valid is not None and stored_valid.shape == stored.shape:
        valid = depth.valid & torch.from_numpy(stored_valid.astype(bool))
        depth = Depth(depth.values * valid, valid, metric)
        _require_valid(depth, path)
    if scale is None and metric:
        _check_unit(depth, path)
    if confidence is not None and confidence.shape == stored.shape:
        weights = torch.from_numpy(np.nan_to_num(confidence.astype(np.float32))).clamp(0.0, 1.0)
        depth = Depth(depth.values, depth.valid, metric, weights)
    return depth


def read_stored_depth(
    path: str | Path, *, key: str | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Tensor:
    """(H, W) values as a depth file stores them, negative and non-finite ones included, of the file's number type.

    For checks that :func:`read_depth` would hide by marking such values unknown.

    Raises:
        InputError: damaged file, or no map of plain numbers.
    """
    stored, _, valid = _read_values(path, key, max_pixels)
    if stored.ndim == 3 and 1 in (stored.shape[0], stored.shape[2]):
        stored = stored[0] if stored.shape[0] == 1 else stored[..., 0]
    if stored.ndim != 2 or 0 in stored.shape or stored.dtype.kind not in "fui":
        raise InputError(f"a depth map must be (H, W) numbers, got {stored.shape} {stored.dtype}", path=path)
    if valid is not None and valid.shape == stored.shape:
        stored = np.where(valid.astype(bool), stored, np.zeros_like(stored))
    if stored.dtype.kind == "f":
        return torch.from_numpy(stored.astype(np.float64))
    return torch.from_numpy(stored.astype(np.int64))


def clean_depth(values: Tensor, *, metric: bool = True, path: str | Path | None = None) -> Depth:
    """Mark usable values of an (H, W) map of any float type: finite, positive, below :data:`MAX_DEPTH`.

    Raises:
        InputError: "no valid pixels".
    """
    as_float = values.to(torch.float32)
    valid = torch.isfinite(as_float) & (as_float > torch.finfo(torch.float32).tiny) & (as_float < MAX_DEPTH)
    depth = Depth(torch.where(valid, as_float, torch.zeros_like(as_float)), valid, metric)
    _require_valid(depth, path)
    return depth


def _require_valid(depth: Depth, path: str | Path | None) -> None:
    if not bool(depth.valid.any()):
        raise InputError(
            "the depth map has no valid pixels",
            path=path,
            remedy="leave it out, or check its scale and the value that marks holes",
        )


def _check_unit(depth: Depth, path: str | Path) -> None:
    median = float(depth.values[depth.valid].median())
    low, high = PLAUSIBLE_METRES
    if not low <= median <= high:
        raise InputError(
            f"the median depth would be {median:g} m, so the unit is probably not metres",
            path=path,
            remedy="say how many metres one unit is (scale), or that the depth is not metric",
        )


def _read_values(
    path: str | Path, key: str | None, max_pixels: int
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """(stored values, confidence or None, validity or None)."""
    kind = sniff(path)
    if kind not in DEPTH_FORMATS:
        found = f"a {kind} file" if kind else "in no known format"
        raise InputError(
            f"is {found}, not a depth map", path=path, remedy="use 16-bit PNG, TIFF, NPY, NPZ, EXR or PFM"
        )
    if kind == "npy":
        with Path(path).open("rb") as stream:
            return read_npy_stream(stream, path, max_pixels), None, None
    if kind == "npz":
        arrays = read_npz(path, max_pixels=max_pixels)
        name = _choose(arrays, key, path, "array")
        return arrays[name], arrays.get("confidence"), arrays.get("valid")
    if kind == "exr":
        channels = read_exr(path, max_pixels=max_pixels)
        return channels[_choose(channels, key, path, "channel")], channels.get("confidence"), None
    if kind == "pfm":
        values = read_pfm(path, max_pixels=max_pixels)
        return (values[..., 0] if values.ndim == 3 else values), None, None
    return _read_integer_picture(path, max_pixels), None, None


def _choose(names: dict[str, Any], key: str | None, path: str | Path, what: str) -> str:
    if key is not None:
        if key not in names:
            raise InputError(f"has no {what} '{key}', only {', '.join(sorted(names))}", path=path)
        return key
    for name in (*_DEPTH_NAMES, "Y", "R"):
        if name in names:
            return name
    if len(names) == 1:
        return next(iter(names))
    raise InputError(
        f"has several {what}s ({', '.join(sorted(names))})",
        path=path,
        remedy="name one with key, or save one alone",
    )


def _read_integer_picture(path: str | Path, max_pixels: int) -> NDArray[Any]:
    kind = sniff(path) or ""
    with open_picture(path, kind, max_pixels) as (picture, _):
        if picture.mode not in ("I;16", "I;16B", "I;16L", "I", "F"):
            raise InputError(
                f"a depth picture must be 16-bit grey, this one is {picture.mode}",
                path=path,
                remedy="export depth as 16-bit PNG, NPZ or EXR",
            )
        try:
            picture.load()
            return np.array(picture)
        except Exception as exc:  # decoders raise many types on damaged bytes
            raise damaged(path, exc) from exc


def read_npy_stream(stream: IO[bytes], path: str | Path, max_pixels: int) -> NDArray[Any]:
    """One array from an open NPY stream; the header is judged before any data is read. ``path`` is for messages.

    Raises:
        InputError: damaged, truncated, no plain numbers, or above ``max_pixels`` entries.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise InputError(f"NPY version {version} is not supported", path=path)
        shape, fortran, dtype = read[version](stream)
        if dtype.hasobject or dtype.kind not in "fuib" or dtype.itemsize > 8:
            raise InputError(f"array type {dtype} cannot be used", path=path, remedy="save plain numbers")
        if len(shape) > 4 or any(side < 0 for side in shape):
            raise InputError(f"array shape {shape} cannot be used", path=path)
        count = int(np.prod([int(side) for side in shape], dtype=object)) if shape else 1
        if count > max_pixels:
            check_pixels(count, 1, path=path, max_pixels=max_pixels)
        wanted = count * dtype.itemsize
        data = stream.read(wanted)
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except InputError:
        raise
    except Exception as exc:  # header parser and zip decoder raise many types on damaged bytes
        raise InputError(f"damaged array file ({type(exc).__name__})", path=path) from exc
    if len(data) < wanted:
        raise InputError(f"truncated: {len(data)} of {wanted} bytes", path=path, remedy="copy the file again")
    flat = np.frombuffer(data, dtype=dtype)
    array = flat.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))


def read_npz(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> dict[str, NDArray[Any]]:
    """All plain arrays of an NPZ by name, sizes checked before loading; no pickle.

    Raises:
        InputError: damaged archive, object arrays, or an array above ``max_pixels`` entries.
    """
    path = check_regular_file(path)
    return read_npz_stream(path, path, max_pixels)


def read_npz_stream(
    source: Path | IO[bytes], path: str | Path, max_pixels: int = DEFAULT_MAX_PIXELS
) -> dict[str, NDArray[Any]]:
    """As :func:`read_npz`, from a file or an open stream; ``path`` is for messages."""
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(source) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            if len(members) > 64:
                raise InputError(f"holds {len(members)} arrays, more than 64", path=path)
            total = sum(m.file_size for m in members)
            if total > 16 * max_pixels:
                raise InputError(
                    f"would expand to {total / 1e9:.1f} GB",
                    path=path,
                    remedy="raise max_pixels if it is yours",
                )
            for member in members:
                with archive.open(member) as stream:
                    arrays[member.filename[:-4]] = read_npy_stream(stream, path, max_pixels)
    except InputError:
        raise
    except OSError as exc:
        raise unreadable(path, exc) from exc
    except Exception as exc:  # zipfile raises many types on damaged archives
        raise InputError(f"damaged NPZ archive ({type(exc).__name__})", path=path) from exc
    if not arrays:
        raise InputError("the archive holds no arrays", path=path)
    return arrays


def write_depth(
    path: str | Path, depth: Depth | Tensor, *, scale: float = DEFAULT_PNG_SCALE, metric: bool = True
) -> Path:
    """Write a depth map atomically; the suffix chooses .png (16-bit), .npz, .npy, .exr or .pfm.

    Args:
        path: target file.
        depth: Depth, or (H, W) z-depth where anything not finite and positive is invalid.
        scale: PNG only: stored value = round(depth / scale), invalid is 0.
        metric: whether a tensor's values are metres (a Depth knows itself).

    Raises:
        InputError: unknown suffix; a PNG in which some depth exceeds 65535 x scale.
    """
    path = Path(path)
    if isinstance(depth, Tensor):
        depth = Depth.from_values(depth.detach().cpu(), metric=metric)
    values = torch.where(depth.valid, depth.values, torch.zeros_like(depth.values)).detach().cpu().numpy()
    values = np.ascontiguousarray(values, dtype=np.float32)
    suffix = path.suffix.lower()
    confidence = (
        None if depth.confidence is None else depth.confidence.detach().cpu().numpy().astype(np.float32)
    )
    if suffix == ".png":
        return _write_png16(path, values, scale)
    if suffix == ".pfm":
        return write_pfm(path, values)
    if suffix == ".exr":
        channels = {"Z": values} if confidence is None else {"Z": values, "confidence": confidence}
        return write_exr(path, channels)
    if suffix not in (".npz", ".npy"):
        raise InputError("unknown depth suffix", path=path, remedy="use .png, .npz, .npy, .exr or .pfm")
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        if suffix == ".npy":
            np.save(stream, values, allow_pickle=False)
        else:
            arrays = {"depth": values, "metric": np.array(depth.metric)}
            if confidence is not None:
                arrays["confidence"] = confidence
            np.savez_compressed(stream, allow_pickle=False, **arrays)
    return path


def _write_png16(path: Path, values: NDArray[np.float32], scale: float) -> Path:
    from PIL import Image

    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"the depth scale must be positive, got {scale}", path=path)
    stored = np.round(values.astype(np.float64) / scale)
    if stored.max(initial=0) > 65535:
        raise InputError(
            f"depth {values.max():g} does not fit 16 bits at a scale of {scale:g}",
            path=path,
            remedy="use a larger scale, or .npz or .exr",
        )
    with atomic_path(path) as temporary:
        Image.fromarray(stored.astype(np.uint16)).save(temporary, format="PNG")
    return path


def read_mask(
    path: str | Path, *, size: tuple[int, int] | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Tensor:
    """Read a mask picture as (H, W) bool, True where the picture may be used (bright or opaque).

    A picture with transparency is judged by its alpha, any other by its brightness: at least half.

    Args:
        path: any picture format.
        size: (width, height) that the mask must have.
        max_pixels: larger masks are refused before decoding.

    Raises:
        InputError: not a picture, damaged, or of another size.
    """
    loaded = read_image(path, max_pixels=max_pixels)
    mask = loaded.mask if loaded.mask is not None else loaded.rgb.mean(dim=0) >= 0.5
    if size is not None and (mask.shape[1], mask.shape[0]) != tuple(size):
        raise InputError(
            f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, its picture {size[0]} x {size[1]}",
            path=path,
            remedy="resize the mask to the picture (nearest neighbour)",
        )
    return mask
