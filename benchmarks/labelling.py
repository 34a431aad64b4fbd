"""Tracks and correspondences on procedural walks with exact truth, and the pool with and without killed workers.

    python benchmarks/labelling.py [--scenes 6] [--json results/labelling/labelling.json]

A sighting is right when it lies within 2 pixels of where the surface point of the track really is and that point is
really seen there. Precision: share of right ones among the sightings given (the view in which a corner was found
excepted). Recall: share of the (track, view) pairs that are really visible which were given and right; it counts only
tracks that were started.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.provenance import commit, hardware, versions
from relief3d.core.seeding import derive_seed
from relief3d.labelling.base import LabelerSpec, TrackLabel
from relief3d.labelling.labelers.correspondences import CorrespondenceOptions, Correspondences
from relief3d.labelling.labelers.lk_tracks import LkTrackOptions, LkTracks
from relief3d.labelling.run import LabelSettings, label_scenes
from relief3d.labelling.sources import ProceduralScenes
from relief3d.worlds import World, WorldConfig, make_sequences, make_world

RIGHT_PX = 2.0


@dataclass(frozen=True)
class Walk:
    """A rendered walk and its world."""

    world: World
    scene: Scene


def walk(index: int, views: int, size: tuple[int, int]) -> Walk:
    own = derive_seed(0, "labelling", index) % 2**31
    world = make_world(own, WorldConfig(family="room", texture_size=256, plain_walls=0.0, plain_things=0.0))
    width, height = size
    path = make_sequences(
        world,
        views=views,
        seed=own,
        size=(height, width),
        kind="handheld",
        parallax=(0.02, 0.15),
        overlap=(0.7, 1.0),
    )
    cameras = [Camera(width, height, path.K[0, v], path.world_from_cam[0, v].double()) for v in range(views)]
    seen = world.render(cameras, supersample=2)
    made = tuple(View(f"{v:03d}", c, image=seen.image[v], time=float(v)) for v, c in enumerate(cameras))
    return Walk(world, Scene(made, metric=True, ordered=True))


def true_positions(walk: Walk, tracks: TrackLabel) -> tuple[Tensor, Tensor]:
    """Where the surface point at each track's first sighting is in all views (T, N, 2), and whether it is seen."""
    cameras = [v.camera for v in walk.scene.views]
    K = torch.stack([c.K for c in cameras if c.K is not None]).float()
    pose = torch.stack([c.world_from_cam for c in cameras if c.world_from_cam is not None]).float()
    first = tracks.visible.float().argmax(1)
    xy = tracks.xy[torch.arange(len(tracks)), first]
    ray = torch.linalg.solve(K[first], torch.cat([xy, torch.ones(len(xy), 1)], dim=1)[..., None])
    ray = (pose[first, :3, :3] @ ray)[..., 0]
    centre = pose[first, :3, 3]
    unit = ray / ray.norm(dim=1, keepdim=True)
    distance, _ = walk.world.raycast(centre[None], unit[None])
    points = centre + unit * distance[0][:, None]
    places, visible = [], []
    for k, camera in enumerate(cameras):
        local = (points - pose[k, :3, 3]) @ pose[k, :3, :3]
        z = local[:, 2].clamp_min(1e-3)
        there = (local @ K[k].T)[:, :2] / z[:, None]
        back = points - pose[k, :3, 3]
        length = back.norm(dim=1)
        hit, _ = walk.world.raycast(pose[k, :3, 3].expand_as(back)[None], (back / length[:, None])[None])
        inside = (there >= 0).all(1) & (there[:, 0] <= camera.width) & (there[:, 1] <= camera.height)
        places.append(there)
        visible.append(inside & (local[:, 2] > 0) & (hit[0] > length * 0.995 - 5e-3))
    return torch.stack(places, 1), torch.stack(visible, 1)


def judge(walk: Walk, tracks: TrackLabel) -> dict[str, float]:
    """Counts of sightings that are given, right and possible, besides each track's first one."""
    if len(tracks) == 0:
        return {"given": 0, "right": 0, "possible": 0, "errors": 0.0}
    truth, seen = true_positions(walk, tracks)
    others = torch.ones_like(tracks.visible)
    others[torch.arange(len(tracks)), tracks.visible.float().argmax(1)] = False
    error = (tracks.xy - truth).norm(dim=-1)
    given = tracks.visible & others
    right = given & seen & (error <= RIGHT_PX)
    return {
        "given": int(given.sum()),
        "right": int(right.sum()),
        "possible": int((seen & others).sum()),
        "tracks": len(tracks),
        "median_px": float(error[right].median()) if bool(right.any()) else 0.0,
    }


def measure_tracks(scenes: int, views: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    labelers = {
        "LK, there and back": LkTracks(LkTrackOptions(window=views, step=views - 1, max_epipolar_px=0.0)),
        "LK, there and back, epipolar": LkTracks(LkTrackOptions(window=views, step=views - 1)),
        "LK, no check": LkTracks(
            LkTrackOptions(window=views, step=views - 1, max_return_px=1e6, max_epipolar_px=0.0)
        ),
        "SIFT correspondences": Correspondences(CorrespondenceOptions()),
    }
    walks = [walk(i, views, size) for i in range(scenes)]
    rows = []
    for name, labeler in labelers.items():
        parts, seconds = [], 0.0
        for one in walks:
            with tempfile.TemporaryDirectory() as work, torch.no_grad():
                began = time.perf_counter()
                labels = labeler.label(one.scene, seed=0, work=Path(work))
                seconds += time.perf_counter() - began
            assert labels.tracks is not None
            parts.append(judge(one, labels.tracks))
        total = {k: sum(p[k] for p in parts) for k in ("given", "right", "possible")}
        rows.append(
            {
                "labeler": name,
                "precision": total["right"] / max(1, total["given"]),
                "recall": total["right"] / max(1, total["possible"]),
                "tracks_per_scene": sum(p.get("tracks", 0) for p in parts) / scenes,
                "median_px": sorted(p.get("median_px", 0.0) for p in parts)[scenes // 2],
                "seconds_per_scene": seconds / scenes,
                "per_scene": parts,
            }
        )
    return rows


def measure_pool(items: int) -> list[dict[str, Any]]:
    """Items per second of small items, in this process and on workers; what the store itself costs."""
    rows = []
    source = ProceduralScenes(count=max(1, items // 20), views=20, size=(32, 24))
    for workers in (0, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            summary = label_scenes(
                source,
                Path(folder) / "out",
                LabelerSpec("procedural-relative"),
                LabelSettings(workers=workers),
            )
        rows.append(
            {
                "workers": workers,
                "items": summary.done_now,
                "seconds": summary.seconds,
                "items_per_second": summary.done_now / summary.seconds,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    size = (256, 192)
    began = time.perf_counter()
    data: dict[str, Any] = {
        "command": "python benchmarks/labelling.py " + " ".join(sys.argv[1:]),
        "seed": 0,
        "commit": commit() or "unknown",
        "hardware": hardware(),
        "versions": versions(),
        "scenes": options.scenes,
        "views": options.views,
        "size": size,
        "right_px": RIGHT_PX,
        "tracks": measure_tracks(options.scenes, options.views, size),
        "pool": measure_pool(options.items),
    }
    data["wall_s"] = round(time.perf_counter() - began, 1)
    text = json.dumps(data, indent=1) + "\n"
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
