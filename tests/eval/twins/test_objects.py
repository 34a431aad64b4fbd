"""The object twin: closed meshes, exact poses, masks that fit, simulated voters."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import trimesh

from relief3d.core.contract import Mesh
from relief3d.core.errors import InputError
from relief3d.eval.twins.objects import ObjectPlan, object_meshes, render_objects
from relief3d.eval.twins.voters import chance_left, shape_utility, simulated_rating, simulated_vote


@pytest.mark.parametrize("seed", [0, 3])
def test_meshes_are_closed_and_normalised(seed: int) -> None:
    for mesh in object_meshes(seed, 6):
        low, high = mesh.vertices.amin(0), mesh.vertices.amax(0)
        assert torch.allclose(low, -high, atol=1e-6) and float((high - low).max()) == pytest.approx(
            1, abs=1e-6
        )
        solid = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=True)
        solid.merge_vertices(digits_vertex=6)
        assert solid.volume > 0 and solid.is_watertight


def test_pose_brings_the_mesh_onto_the_rendered_depth() -> None:
    picture = render_objects(ObjectPlan(1, (96, 128)))
    item = picture.objects[0]
    v = item.mesh.vertices.double() @ item.cam_from_object[:3, :3].T + item.cam_from_object[:3, 3]
    seen = picture.depth[item.mask]
    assert float(v[:, 2].min()) - 2e-3 < float(seen.min()) and float(seen.max()) < float(v[:, 2].max()) + 2e-3
    # Unprojected pixels lie on the mesh.
    y, x = torch.nonzero(item.mask).T
    rays = torch.stack([x + 0.5, y + 0.5, torch.ones_like(x)], 1).double() @ torch.linalg.inv(picture.K).T
    points = rays * seen[:, None]
    surface = trimesh.Trimesh(v.numpy(), item.mesh.faces.numpy(), process=False)
    sampled = trimesh.sample.sample_surface(surface, 20000, seed=0)[0]
    gap = torch.cdist(points, torch.from_numpy(np.asarray(sampled))).amin(1)
    assert float(gap.max()) < 0.006  # metres; the object measures tens of centimetres
    agree = (item.mask & item.silhouette).sum() / item.mask.sum()
    assert float(agree) > 0.97


def test_plans_are_reproducible_and_refuse_nothing() -> None:
    a, b = render_objects(ObjectPlan(5, (48, 64))), render_objects(ObjectPlan(5, (48, 64)))
    assert torch.equal(a.image, b.image) and torch.equal(
        a.objects[0].mesh.vertices, b.objects[0].mesh.vertices
    )
    assert not torch.equal(a.image, render_objects(ObjectPlan(6, (48, 64))).image)
    assert len(render_objects(ObjectPlan(5, (48, 64), objects=3)).objects) == 3
    with pytest.raises(InputError, match="at least one"):
        render_objects(ObjectPlan(0, objects=0))
    with pytest.raises(InputError, match="were asked for"):
        object_meshes(0, 99)


def test_voters_follow_utility() -> None:
    rng = np.random.default_rng(0)
    assert chance_left(0.25, 0.0) == pytest.approx(1 / (1 + math.exp(-1)))
    assert {simulated_vote(0.04, 0.0, rng) for _ in range(20)} == {"tie"}
    won = [simulated_vote(0.25, 0.0, rng) == "left" for _ in range(2000)]
    assert np.mean(won) == pytest.approx(chance_left(0.25, 0.0), abs=0.03)
    ratings = [simulated_rating(u, rng) for u in (-3.0, 0.0, 3.0)]
    assert ratings[0] == 0 and ratings[1] == pytest.approx(0.5, abs=0.2) and ratings[2] == 1
    (mesh,) = object_meshes(2, 1)
    rough = Mesh(mesh.vertices + 0.03 * torch.sin(9 * mesh.vertices), mesh.faces)
    assert shape_utility(mesh, mesh) == pytest.approx(2.0) and shape_utility(rough, mesh) < 1.5


def test_the_better_of_more_candidates_is_never_worse_on_average() -> None:
    # objects.md 5.7: champion against challenger with the simulated voter.
    rng = np.random.default_rng(1)
    quality = {n: [] for n in (1, 2, 4, 8, 16)}
    for _ in range(1500):
        pool = rng.normal(0, 0.5, 16)
        champion = 0
        for challenger in range(16):
            if challenger and simulated_vote(pool[champion], pool[challenger], rng) == "right":
                champion = challenger
            if challenger + 1 in quality:
                quality[challenger + 1].append(pool[champion])
    means = [np.mean(quality[n]) for n in (1, 2, 4, 8, 16)]
    assert all(b > a for a, b in itertools.pairwise(means))
