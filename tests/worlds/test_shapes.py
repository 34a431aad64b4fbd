"""Ray hits lie on the surface, normals are the distance's gradient."""

import math

import pytest
import torch

from relief3d.worlds.layout import Kind
from relief3d.worlds.shapes import DISTANCE, HIT, NORMAL, Shape, Vec

SOLIDS = {
    Kind.BOX: (0.5, 0.3, 0.7, 0, 0, 0),
    Kind.ELLIPSOID: (0.5, 0.3, 0.7, 0, 0, 0),
    Kind.CYLINDER: (0.4, 0.4, 0.6, 0, 0, 0),
    Kind.CONE: (0.5, 0.15, 0.6, 0, 0, 0),
    Kind.ROUNDED_BOX: (0.5, 0.4, 0.3, 0.12, 0, 0),
    Kind.TORUS: (0.5, 0.15, 1.0, 0, 0, 0),
    Kind.SUPERQUADRIC: (0.5, 0.4, 0.6, 3.5, 2.5, 0),
    Kind.LATHE: (0.4, 0.4, 0.5, 0.12, -0.05, 0.04),
}


def make_shape(kind, dtype=torch.float32):
    numbers = SOLIDS[kind]
    s0, s1, s2 = numbers[:3]
    if kind == Kind.TORUS:
        bound = s0 + s1
    elif kind == Kind.LATHE:
        bound = math.hypot(s0 + sum(map(abs, numbers[3:])), s2)
    else:
        bound = math.sqrt(s0**2 + s1**2 + s2**2)
    return Shape(*(torch.tensor(v, dtype=dtype) for v in (*numbers, bound)))


def random_rays(count, seed):
    g = torch.Generator().manual_seed(seed)
    o = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1) * 3
    target = (torch.rand(count, 3, generator=g) - 0.5) * 1.6
    d = torch.nn.functional.normalize(target - o, dim=-1)
    return Vec(*o.unbind(-1)), Vec(*d.unbind(-1))


@pytest.mark.parametrize("kind", SOLIDS, ids=lambda k: k.name)
def test_hits_lie_on_the_surface(kind):
    shape = make_shape(kind)
    o, d = random_rays(4000, 1)
    t = HIT[kind](o, d, shape)
    hit = torch.isfinite(t)
    assert 0.1 < hit.float().mean() < 0.95
    at = Vec(*(o[i][hit] + t[hit] * d[i][hit] for i in range(3)))
    assert DISTANCE[kind](at, shape).abs().max() < 5e-4


@pytest.mark.parametrize("kind", SOLIDS, ids=lambda k: k.name)
def test_nothing_is_hit_earlier_and_nothing_is_missed(kind):
    """Dense samples along each ray: inside only after the hit, and never for a miss (beyond slivers)."""
    shape = make_shape(kind)
    o, d = random_rays(1500, 2)
    t = HIT[kind](o, d, shape)
    steps = torch.linspace(1.0, 5.0, 600)
    p = Vec(*(o[i][:, None] + steps * d[i][:, None] for i in range(3)))
    inside = DISTANCE[kind](p, shape) < -2e-3
    first = torch.where(inside.any(1), steps[inside.float().argmax(1)], math.inf)
    wrong = torch.where(torch.isfinite(t), first < t - 1e-3, torch.isfinite(first))
    # The lathe is sampled along the ray: chords shorter than a step at its lips may be missed.
    assert wrong.float().mean() < (0.006 if kind == Kind.LATHE else 0.002)


@pytest.mark.parametrize("kind", SOLIDS, ids=lambda k: k.name)
def test_normals_are_the_gradient_of_the_distance(kind):
    shape = make_shape(kind, torch.float64)
    o, d = random_rays(3000, 3)
    o, d = Vec(*(v.double() for v in o)), Vec(*(v.double() for v in d))
    t = HIT[kind](o, d, shape)
    hit = torch.isfinite(t)
    p = torch.stack([o[i][hit] + t[hit] * d[i][hit] for i in range(3)])
    normal = torch.nn.functional.normalize(torch.stack(list(NORMAL[kind](Vec(*p), shape))), dim=0)
    # Just outside: on the surface itself the distance has no gradient.
    p = (p + 1e-5 * normal).requires_grad_()
    (gradient,) = torch.autograd.grad(DISTANCE[kind](Vec(*p), shape).sum(), p)
    cosine = (normal * torch.nn.functional.normalize(gradient, dim=0)).sum(0)
    # Rays that meet an edge exactly may take either side.
    assert (cosine > 0.999).double().mean() > 0.995
    facing = sum(normal[i] * d[i][hit] for i in range(3))
    assert (facing < 1e-3).all()


def test_a_ray_from_inside_meets_only_the_room():
    shape = make_shape(Kind.BOX)
    o = Vec(*(torch.zeros(1) for _ in range(3)))
    d = Vec(torch.ones(1), torch.zeros(1), torch.zeros(1))
    assert torch.isinf(HIT[Kind.BOX](o, d, shape)).all()
    assert torch.allclose(HIT[Kind.SHELL](o, d, shape), torch.tensor([0.5]))
