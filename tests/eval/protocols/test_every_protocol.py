"""What every protocol promises: a twin that runs anywhere, a perfect score for the truth, columns that are filled."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import pytest
import torch

from corpora.evaluation import measure_samples, truthful
from relief3d.eval.protocols.base import Protocol, Query
from relief3d.eval.protocols.registry import find_protocol, load_protocols
from relief3d.eval.published.registry import load_tables

PROTOCOLS: Mapping[str, Protocol] = load_protocols()

PROMISED = {
    "dl3dv_8view", "scannetpp_8view", "realestate10k_cameras", "scannet_context", "omnigeo", "omnivideo",
    "omnigeo_cameras", "omnivideo_cameras", "sintel_video", "bonn_video", "kitti_video", "droid", "hoi4d", "bedlam2",
    "nyu_completion", "eth3d_completion", "kitti_completion", "kitti_scaling", "nuscenes_radar", "prompt_density",
    "canonical_constant", "booster", "middlebury", "sunrgbd", "nuscenes_mono", "sintel_mono", "eth3d_mono",
    "kitti_points", "eth3d_points", "ibims_points", "diode_points", "kitti_points_k", "eth3d_points_k",
    "ibims_points_k", "diode_points_k", "diode_ranges", "sintel_boundaries", "spring_boundaries", "ibims_boundaries",
    "eth3d_intrinsics", "ibims_intrinsics", "eth3d_multiview", "scannet_multiview", "vsi_bench", "libero", "runtime",
    "scannet_mesh", "scannet_mesh_atlas", "scannet_mesh_plain", "scannet_depth2d", "tum_mesh", "tanks_temples",
    "sa3dao_shape", "sa3dao_layout", "adt_layout", "iso3d", "preference_objects", "preference_scenes",
    "preference_texture",
}  # fmt: skip

WITHOUT_PUBLISHED_ROWS = {
    "sevenscenes_points", "nrgbd_points", "scale_alignment", "scannet_context", "sintel_video", "bonn_video",
    "kitti_video", "sintel_trajectory", "hoi4d_cameras",
}  # fmt: skip
"""The specifications hold no figures for these (images missing from the papers' text, or our own diagnostics)."""


def test_every_benchmark_of_the_five_papers_is_there() -> None:
    assert set(PROTOCOLS) >= PROMISED, sorted(PROMISED - set(PROTOCOLS))


def test_published_tables_of_all_papers() -> None:
    papers = {key.split("/")[0] for key in load_tables()}
    assert len(papers) == 5, papers


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_description(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert re.fullmatch(r"[a-z0-9_]+", name)
    assert protocol.title and protocol.source and protocol.layout
    keys = [c.key for c in protocol.columns]
    assert len(set(keys)) == len(keys)
    rows = protocol.published()
    assert bool(rows) != (name in WITHOUT_PUBLISHED_ROWS), f"{len(rows)} published rows"
    for row in rows:
        assert set(row.values) <= set(keys), (row.method, set(row.values) - set(keys))
        assert row.source


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_truth_scores_perfectly_on_the_twin(name: str) -> None:
    protocol = PROTOCOLS[name]
    samples = protocol.twin("smoke")
    names = [s.name for s in samples]
    assert len(set(names)) == len(names) and len({s.group for s in samples}) >= 2
    measurements = measure_samples(protocol, samples, truthful)
    assert [(m.name, m.group) for m in measurements] == [(s.name, s.group) for s in samples]
    summary = protocol.summarise(measurements)
    assert {c.key for c in protocol.columns} <= set(summary)
    filled = 0
    for column in protocol.columns:
        value = summary[column.key]
        if math.isnan(value) or column.better is None or protocol.task == "runtime":
            continue
        filled += 1
        floor = protocol.floors.get(column.key)
        if column.better == "lower":
            assert abs(value) < (2e-3 if floor is None else floor), (column.key, value)
        elif column.key.startswith("elo"):
            continue
        elif floor is not None:
            assert floor <= value <= 100, (column.key, value)
        else:
            assert min(abs(value - 1), abs(value - 100)) < 2e-3, (column.key, value)
    assert filled or protocol.task in ("runtime", "records") or name == "iso3d"


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_the_twin_repeats_and_follows_its_seed(name: str) -> None:
    def first(seed: int) -> Query:
        return PROTOCOLS[name].twin("smoke", seed)[0].load_query()

    def same(a: Query, b: Query) -> bool:
        if a.facts != b.facts or set(a.tensors) != set(b.tensors):
            return False
        if any(not torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors):
            return False
        if (a.scene is None) != (b.scene is None):
            return False
        if a.scene is None or b.scene is None:
            return True
        return len(a.scene) == len(b.scene) and all(
            torch.equal(x.load_image(), y.load_image()) for x, y in zip(a.scene.views, b.scene.views)
        )

    assert same(first(0), first(0))
    if PROTOCOLS[name].task != "runtime":
        truths = [PROTOCOLS[name].twin("smoke", s)[0].load_truth() for s in (0, 1)]
        changed = not same(first(0), first(1)) or truths[0].facts != truths[1].facts
        assert changed, "another seed must give another twin"


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_queries_hide_the_truth(name: str) -> None:
    sample = PROTOCOLS[name].twin("smoke")[0]
    query = sample.load_query()
    assert query.name == sample.name and query.task == PROTOCOLS[name].task and query.wants
    assert not set(query.wants) & set(query.tensors), "what is wanted must not be given"
    assert not set(query.wants) & set(query.facts)
    if query.scene is not None:
        assert query.scene.mesh is None and query.scene.sparse is None
        for view in query.scene.views:
            assert view.depth is None
            image = view.load_image()
            assert image.dtype == torch.float32 and 0 <= float(image.min()) <= float(image.max()) <= 1
            if "world_from_cam" in query.wants:
                assert view.camera.world_from_cam is None
            if "K" in query.wants:
                assert view.camera.K is None


def test_names_are_suggested() -> None:
    with pytest.raises(Exception, match="relief3d eval --list"):
        find_protocol("no_such_thing")
