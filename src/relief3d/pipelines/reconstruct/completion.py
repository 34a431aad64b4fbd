"""What dense stereo leaves open, filled by a prompted network and believed only where other views agree.

The prompt of a view are its triangulated points and a thinned part of its stereo depth, in the unit of the scene: the
network follows the unit of its prompt, so unscaled scenes stay unscaled. Stereo depth itself is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from relief3d.core.contract import Depth, Scene, SparsePoints, View
from relief3d.core.device import resolve_device
from relief3d.core.errors import InputError
from relief3d.core.progress import Progress, track
from relief3d.geometry.point_splat import splat_depth
from relief3d.models.metric.opening import REFINER, MetricWeights, find_metric, open_metric
from relief3d.models.metric.prompted import PromptedDepth
from relief3d.models.packaged import PROMPTED
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.stereo.consistency import check_view
from relief3d.stereo.views import PreparedView

STEREO_POINTS = 1500
"""Stereo pixels that go into the prompt of a view, about."""
LEAST_POINTS = 20
"""Views whose prompt has fewer points are left as they are."""
MAX_REPROJECTION = 2.0
"""Pixels of mean error beyond which a triangulated point is not told."""
LEAST_CONFIDENCE = 0.5
"""Of the network, that its relative error is below ten per cent."""
PIXELS, RELATIVE = 2.0, 0.02
"""Tolerances of agreement between views."""
MOST_CONFIDENCE = 0.5
"""Of a filled pixel: less than any that stereo confirmed well."""


@dataclass(frozen=True)
class StereoMap:
    """What stereo knows about one view.

    Attributes:
        view: without lens distortion, with its picture.
        prepared: its camera at the size of the map.
        depth: with holes and confidence.
        neighbours: indices of views that overlap.
    """

    view: View
    prepared: PreparedView
    depth: Depth
    neighbours: tuple[int, ...]


def completion_weights(config: ReconstructConfig, progress: Progress) -> MetricWeights | None:
    """The network that fills holes; None where none is asked for.

    Raises:
        InputError: it cannot be found, or is no network for sparse prompts in any unit.
    """
    if config.completion == "none":
        return None
    weights = find_metric(config.completion_model or PROMPTED, announce=progress.message)
    if weights.architecture != REFINER:
        raise InputError(
            f"{weights.label} is a {weights.architecture} network, which cannot complete stereo depth",
            remedy=f"name weights of a {REFINER} with --completion-model",
        )
    return weights


def complete(
    maps: Mapping[int, StereoMap],
    scene: Scene,
    weights: MetricWeights,
    device: str,
    progress: Progress,
) -> tuple[dict[int, Depth], dict[int, float]]:
    """Fill the holes of all maps.

    Args:
        maps: by index of the view.
        scene: with its sparse points.
        weights: of :func:`completion_weights`.
        device: where the network runs.
        progress: one step per view.

    Returns:
        The maps with holes filled where the network is sure and another view agrees, and the share of every map's
        pixels that was filled.
    """
    network = open_metric(weights, resolve_device(device), announce=progress.message).network
    assert isinstance(network, PromptedDepth)
    said: dict[int, tuple[Tensor, Tensor]] = {}
    for index in track(progress, "completing depth", list(maps)):
        found = _predict(network, maps[index], index, scene.sparse, resolve_device(device))
        if found is not None:
            said[index] = found
    dense = {i: _together(m.depth, said.get(i)) for i, m in maps.items()}
    out: dict[int, Depth] = {}
    shares: dict[int, float] = {}
    for index, one in maps.items():
        if index not in said:
            out[index], shares[index] = one.depth, 0.0
            continue
        keep, score = _believed(
            one, *said[index], [(maps[j].prepared, dense[j]) for j in one.neighbours if j in maps]
        )
        values = torch.where(keep, said[index][0], one.depth.values)
        own = one.depth.confidence
        own = one.depth.valid.float() if own is None else own
        out[index] = Depth(values, one.depth.valid | keep, one.depth.metric, torch.where(keep, score, own))
        shares[index] = float(keep.float().mean())
    return out, shares


def stereo_prompt(depth: Depth, points: int = STEREO_POINTS) -> Tensor:
    """(H, W) the most confident stereo pixel of every square of a grid, about ``points`` of them where all is known."""
    height, width = depth.values.shape
    side = max(1, round(math.sqrt(height * width / points)))
    score = torch.where(
        depth.valid, torch.ones(()) if depth.confidence is None else depth.confidence + 1e-3, 0.0
    )
    best, place = F.max_pool2d(score[None, None], side, side, ceil_mode=True, return_indices=True)
    chosen = place[best > 0]
    out = torch.zeros(height * width)
    out[chosen] = depth.values.reshape(-1)[chosen]
    return out.reshape(height, width)


def point_prompt(sparse: SparsePoints | None, index: int, prepared: PreparedView) -> Tensor:
    """(H, W) z-depth of the triangulated points that a view observes, the nearest one of each pixel."""
    size = (prepared.camera.height, prepared.camera.width)
    if sparse is None or not len(sparse):
        return torch.zeros(size)
    seen = torch.unique(sparse.obs_point[sparse.obs_view == index])
    seen = seen[sparse.error[seen] <= MAX_REPROJECTION]
    T = prepared.cam_from_world
    return splat_depth(sparse.xyz[seen] @ T[:3, :3].T + T[:3, 3], prepared.K, size, z_min=0.0).float()


@torch.no_grad()
def _predict(
    network: PromptedDepth, one: StereoMap, index: int, sparse: SparsePoints | None, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Depth and confidence (H, W) of the network; None without enough of a prompt or a picture."""
    prompt = stereo_prompt(one.depth)
    points = point_prompt(sparse, index, one.prepared)
    prompt = torch.where(prompt > 0, prompt, points)
    if int((prompt > 0).sum()) < LEAST_POINTS or one.view.image is None:
        return None
    size = tuple(prompt.shape)
    image = F.interpolate(
        one.view.load_image()[None], size, mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)
    found = network.predict_sparse(image.to(device), [prompt])
    assert found.confidence is not None
    depth, sure = found.depth[0].cpu(), found.confidence[0].cpu()
    mask = one.view.load_mask()
    usable = torch.isfinite(depth) & (depth > 0)
    if mask is not None:
        usable &= F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0] > 0
    return torch.where(usable, depth, 0.0), torch.where(usable, sure, 0.0)


def _together(depth: Depth, said: tuple[Tensor, Tensor] | None) -> Tensor:
    """(H, W) inverse depth: stereo's, elsewhere the network's where it is sure."""
    values = depth.values
    if said is not None:
        sure = (said[1] >= LEAST_CONFIDENCE) & ~depth.valid
        values = torch.where(sure, said[0], values)
    return torch.where(values > 0, 1 / values.clamp_min(1e-30), 0.0)


def _believed(
    one: StereoMap, values: Tensor, sure: Tensor, others: Sequence[tuple[PreparedView, Tensor]]
) -> tuple[Tensor, Tensor]:
    """(H, W) holes to fill, and their confidence."""
    wanted = ~one.depth.valid & (sure >= LEAST_CONFIDENCE)
    if not others or not bool(wanted.any()):
        return torch.zeros_like(wanted), torch.zeros_like(values)
    inverse = torch.where(wanted, 1 / values.clamp_min(1e-30), 0.0)
    found = check_view(one.prepared, inverse, others, pixels=PIXELS, relative=RELATIVE)
    keep = wanted & (found.count > 0) & (found.count > found.against)
    agreed = (found.count.float() / min(len(others), 6)).clamp_max(1.0)
    return keep, (MOST_CONFIDENCE * sure * (0.5 + 0.5 * agreed)).clamp_min(1e-3) * keep


def completion_facts(shares: Mapping[int, float], scene: Scene, weights: MetricWeights) -> dict[str, Any]:
    """For ``scene.json``."""
    return {
        "network": weights.label,
        "filled": {scene.views[i].name: share for i, share in shares.items()},
        "filled_mean": sum(shares.values()) / max(1, len(shares)),
    }
