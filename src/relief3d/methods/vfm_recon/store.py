"""Depth of submaps and of keyframes on disk, and the record of an alignment: whole files only, resumable.

Depth is kept as float16 of its log minus the log of the map's middle, which is 0.05 % at worst within a factor of e
of the middle and 0.1 % within e^2; confidence as uint8 of its rank within the frame, which is all that masks and
blends need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from relief3d.io.atomic import remove_leftovers, write_bytes, write_text
from relief3d.io.json_file import write_json
from relief3d.methods.vfm_recon.alignment import SceneAlignment
from relief3d.methods.vfm_recon.inputs import DepthSource, SubmapDepth, checked_depth
from relief3d.methods.vfm_recon.submaps import Submap


def pack_depth(depth: Tensor) -> dict[str, Tensor]:
    """(*, H, W) z-depth as float16 log depth around its middle; NaN where unknown."""
    known = torch.isfinite(depth) & (depth > 0)
    middle = float(depth[known].double().median().log()) if bool(known.any()) else 0.0
    log = torch.where(known, depth.double().clamp_min(1e-300).log() - middle, torch.nan)
    return {"log_depth": log.to(torch.float16), "middle": torch.tensor([middle], dtype=torch.float64)}


def unpack_depth(packed: Mapping[str, Tensor]) -> Tensor:
    """(*, H, W) float32 z-depth, 0 where unknown."""
    log = packed["log_depth"].float() + float(packed["middle"])
    return torch.where(torch.isfinite(log), log.exp(), torch.zeros_like(log))


def confidence_ranks(confidence: Tensor) -> Tensor:
    """(n, H, W) uint8: the share of a frame's pixels with less confidence, in 255ths."""
    flat = confidence.float().flatten(1)
    out = torch.zeros_like(flat, dtype=torch.uint8)
    for k, values in enumerate(flat):
        ordered = values.sort().values
        below = torch.searchsorted(ordered, values)
        out[k] = (below * 255 // max(1, len(values))).to(torch.uint8)
    return out.reshape(confidence.shape)


class SubmapStore:
    """A depth source that asks another one once per submap and keeps the answers in a folder.

    Args:
        folder: made when absent.
        source: runs the network.
        plan: everything that the depth depends on (weights, pictures, size), as JSON types; files of another plan are
            removed.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, source: DepthSource, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self._source = source
        text = json.dumps(plan, sort_keys=True)
        listed = folder / "plan.json"
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        if not (listed.is_file() and listed.read_text() == text):
            # The plan goes last: a crash in between leaves too few files, never files of another plan.
            for old in folder.glob("submap_*.safetensors"):
                old.unlink()
            write_text(listed, text)

    def path(self, submap: Submap) -> Path:
        """File of a submap, named by its frames, since loop submaps may be numbered anew."""
        name = "_".join(f"{t:05d}" for t in submap.frames)
        return self.folder / f"submap_{name}.safetensors"

    def __call__(self, submap: Submap) -> SubmapDepth:
        """Depth of a submap, from disk when it is there whole, else computed and written."""
        found = self._read(submap)
        if found is None:
            write_bytes(self.path(submap), save(_packed(submap, checked_depth(self._source, submap))))
            found = load_file(str(self.path(submap)))
        return SubmapDepth(
            unpack_depth(found), found.get("confidence"), found.get("K"), found.get("world_from_cam")
        )

    def _read(self, submap: Submap) -> dict[str, Tensor] | None:
        try:
            found = load_file(str(self.path(submap)))
        except (OSError, SafetensorError):
            return None
        return found if {"log_depth", "middle", "frames"} <= set(found) else None


def _packed(submap: Submap, maps: SubmapDepth) -> dict[str, Tensor]:
    out = {**pack_depth(maps.depth), "frames": torch.tensor(submap.frames)}
    if maps.confidence is not None:
        out["confidence"] = confidence_ranks(maps.confidence)
    for name in ("K", "world_from_cam"):
        value = getattr(maps, name)
        if value is not None:
            out[name] = value.double().contiguous()
    return {name: value.contiguous() for name, value in out.items()}


def write_depth_map(path: Path, depth: Tensor) -> Path:
    """One map (H, W), for aligned or refined depth; read it with :func:`read_depth_map`."""
    return write_bytes(path, save({k: v.contiguous() for k, v in pack_depth(depth).items()}))


def read_depth_map(path: Path) -> Tensor:
    """(H, W) float32 z-depth, 0 where unknown."""
    return unpack_depth(load_file(str(path)))


def alignment_record(alignment: SceneAlignment) -> dict[str, Any]:
    """The alignment as JSON types: units, submaps, edges, components, warnings."""
    solution, submaps = alignment.solution, []
    for m, prior in zip(alignment.submaps, alignment.priors, strict=True):
        submaps.append(
            {
                "id": m.index,
                "kind": m.kind,
                "frames": list(m.frames),
                "log_s0": _number(prior.log_scale),
                "n_samples": prior.count,
                "sigma": _number(prior.spread),
                "prior_weight": float(alignment.prior_weights[m.index]),
                "log_s": float(alignment.log_scale[m.index]),
                "prior_residual": _number(float(solution.prior_residuals[m.index])),
                "prior_factor": float(solution.prior_factors[m.index]),
                "component": int(solution.component[m.index]),
                "matches": prior.samples.matches,
                "kept": prior.samples.kept,
                "parallax_deg": [_number(v) for v in prior.samples.parallax_deg],
                "flags": list(alignment.flags[m.index]),
            }
        )
    edges = []
    for e, edge in enumerate(alignment.edges):
        chain = all(alignment.submaps[k].kind == "chain" for k in (edge.i, edge.j))
        edges.append(
            {
                "i": edge.i,
                "j": edge.j,
                "kind": "chain" if chain else "loop",
                "rho": _number(edge.rho),
                "weight": float(alignment.edge_weights[e]),
                "factor": float(solution.edge_factors[e]),
                "spread": _number(edge.spread),
                "pixels": edge.pixels,
                "frames": edge.frames,
                "residual": _number(float(solution.edge_residuals[e])),
                "suspicious": e in alignment.suspicious_edges,
            }
        )
    graph = alignment.config.graph
    return {
        "units": alignment.units,
        "factor_to_given_poses": alignment.factor,
        "lambda": graph.prior_weight,
        "solver": graph.solver,
        "robust": graph.robust,
        "delta": graph.delta,
        "sign": graph.sign,
        "overlap": alignment.config.overlap.mode,
        "submaps": submaps,
        "edges": edges,
        "components": int(solution.component.max()) + 1,
        "poses": {
            "matches": alignment.pose_check.matches,
            "explained": alignment.pose_check.explained,
            "behind": alignment.pose_check.behind,
        },
        "frames": {
            "names": list(alignment.names),
            "fused": list(alignment.usable),
            "dropped": {str(k): v for k, v in alignment.dropped.items()},
        },
        "warnings": list(alignment.warnings),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_scale_json(path: Path, alignment: SceneAlignment) -> Path:
    """Write :func:`alignment_record` whole or not at all."""
    return write_json(path, alignment_record(alignment))
