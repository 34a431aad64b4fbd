"""Which views of a scene go together into a sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from relief3d.core.contract import Scene
from relief3d.core.errors import InputError
from relief3d.data.covisibility import scene_overlap

Kind = Literal["contiguous", "strided", "random", "covisible"]
Modality = Literal["K", "pose", "depth"]


@dataclass(frozen=True)
class Grouping:
    """Rule by which views of one scene are chosen.

    Attributes:
        kind: ``contiguous``: neighbours in the scene's order. ``strided``: at one random stride, made smaller until
            the views fit (SelfEvo's clips: strides 1 to 6; specification of the multi-view models 5.3). ``random``: any
            views. ``covisible``: a group that grows from a random view by views that overlap with a chosen one.
        strides: smallest and largest stride.
        overlap: smallest and largest share of a view that a chosen view has to see of it (``covisible``).
        among: of a long scene only so many views around the first one are looked at (``covisible``).
        shuffled: give the views in random order. Stored order tells a network how the camera went.
    """

    kind: Kind = "contiguous"
    strides: tuple[int, int] = (1, 6)
    overlap: tuple[float, float] = (0.3, 1.0)
    among: int = 32
    shuffled: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.strides[0] <= self.strides[1]:
            raise InputError(f"strides {self.strides} are not a range of positive numbers")
        if not 0 <= self.overlap[0] < self.overlap[1]:
            raise InputError(f"overlap {self.overlap} is not a range of shares")


@dataclass(frozen=True)
class ViewRequest:
    """What a sample has to hold.

    Attributes:
        views: number of views.
        size: height and width in pixels.
        need: modalities without which a sample is useless; it then counts as unusable.
        grouping: which views go together.
    """

    views: int
    size: tuple[int, int]
    need: frozenset[Modality] = frozenset()
    grouping: Grouping = field(default_factory=Grouping)

    def __post_init__(self) -> None:
        if self.views < 1 or min(self.size) < 1:
            raise InputError(f"a sample of {self.views} views of {self.size} pixels is no sample")


def choose_from_order(count: int, request: ViewRequest, generator: torch.Generator) -> list[int]:
    """Views of a scene of ``count`` views, by a rule that looks at their order only.

    Raises:
        InputError: too few views, or the rule is ``covisible``.
    """
    rule, wanted = request.grouping, request.views
    if count < wanted:
        raise InputError(f"has {count} views, {wanted} are wanted", remedy="leave it out or ask for fewer")
    if rule.kind == "covisible":
        raise InputError("views that see the same things cannot be told from their order alone")
    if rule.kind == "random":
        chosen = torch.randperm(count, generator=generator)[:wanted]
        return order_views(sorted(chosen.tolist()), rule, generator)
    stride = 1
    if rule.kind == "strided":
        stride = whole_number(rule.strides[0], rule.strides[1], generator)
        while stride > 1 and (wanted - 1) * stride >= count:
            stride -= 1
    start = whole_number(0, count - 1 - (wanted - 1) * stride, generator)
    return order_views([start + stride * i for i in range(wanted)], rule, generator)


def choose_from_overlap(
    overlap: Tensor, request: ViewRequest, generator: torch.Generator, first: int | None = None
) -> list[int]:
    """A group that hangs together: every view but the first overlaps with one chosen before it.

    Args:
        overlap: (N, N) share of view i that view j sees too.
        request: number of views and the allowed overlap.
        generator: on the CPU.
        first: view to start from; a random one when None, another one when its group stays too small.

    Raises:
        InputError: no start gives a group that large.
    """
    low, high = request.grouping.overlap
    shared = torch.minimum(overlap, overlap.T).cpu()
    linked = (shared >= low) & (shared <= high)
    linked.fill_diagonal_(False)
    starts = torch.randperm(len(overlap), generator=generator).tolist()
    if first is not None:
        starts = [first] + [s for s in starts if s != first]
    largest = 0
    for start in starts:
        chosen = [start]
        while len(chosen) < request.views:
            open_views = linked[chosen].any(0)
            open_views[chosen] = False
            near = torch.nonzero(open_views)[:, 0]
            if not len(near):
                break
            chosen.append(int(near[whole_number(0, len(near) - 1, generator)]))
        if len(chosen) == request.views:
            return order_views(sorted(chosen), request.grouping, generator)
        largest = max(largest, len(chosen))
    raise InputError(
        f"no {request.views} of its {len(overlap)} views overlap by {low:g} to {high:g} (at most {largest} do)",
        remedy="ask for fewer views or widen the overlap",
    )


def choose_views(
    scene: Scene, request: ViewRequest, generator: torch.Generator, overlap: Tensor | None = None
) -> list[int]:
    """Views of a scene for a sample, in the order in which they are given.

    Args:
        scene: at least as many views as wanted.
        request: how many, and by which rule.
        generator: on the CPU.
        overlap: (N, N) share of view i that view j sees, if known; else it is found out when the rule needs it.

    Raises:
        InputError: the scene has no such group.
    """
    if request.grouping.kind != "covisible":
        return choose_from_order(len(scene), request, generator)
    if len(scene) < request.views:
        return choose_from_order(len(scene), request, generator)
    if overlap is not None:
        return choose_from_overlap(overlap, request, generator)
    # A view of which nothing is known overlaps with none, so the group starts from another one.
    starts = range(len(scene)) if scene.sparse is not None and len(scene.sparse) else scene.posed
    starts = starts or range(len(scene))
    first = starts[whole_number(0, len(starts) - 1, generator)]
    near = neighbourhood(scene, first, max(request.grouping.among, request.views))
    chosen = choose_from_overlap(scene_overlap(scene, near), request, generator, near.index(first))
    return [near[i] for i in chosen]


def neighbourhood(scene: Scene, first: int, count: int) -> list[int]:
    """The ``count`` views nearest to one: by camera centre where poses are known, else by order; ascending."""
    gaps = torch.tensor([float(abs(i - first)) for i in range(len(scene))], dtype=torch.float64)
    centres = [view.camera.centre for view in scene.views]
    here = centres[first]
    if here is not None:
        gaps = torch.tensor([torch.inf if c is None else float((c - here).norm()) for c in centres])
    return sorted(torch.argsort(gaps, stable=True)[:count].tolist())


def order_views(chosen: list[int], rule: Grouping, generator: torch.Generator) -> list[int]:
    """Chosen views in the order in which a sample has them."""
    if not rule.shuffled:
        return chosen
    return [chosen[i] for i in torch.randperm(len(chosen), generator=generator).tolist()]


def select_student_frames(count: int, keep: int, generator: torch.Generator) -> list[int]:
    """Frames of a clip that SelfEvo's student sees; ascending, the first frame is always among them.

    With probability 0.7 a uniform draw without replacement; else steps of one length of at least 3 where they fit, each
    index moved by -1, 0 or 1, the first set to 0, collisions moved to the nearest free index within a step and what is
    still missing drawn from the rest (code of SelfEvo as in the specification of the multi-view models, 5.5).

    Args:
        count: frames of the clip.
        keep: frames of the student, 1 to ``count``.
        generator: on the CPU.

    Raises:
        InputError: ``keep`` does not fit.
    """
    if not 1 <= keep <= count:
        raise InputError(f"a student cannot see {keep} of {count} frames")
    if keep == 1:
        return [0]
    if float(torch.rand((), generator=generator)) < 0.7:
        rest = torch.randperm(count - 1, generator=generator)[: keep - 1] + 1
        return [0, *sorted(rest.tolist())]
    allowed = max(1, (count - 1) // (keep - 1))
    step = allowed if allowed < 3 else whole_number(3, allowed, generator)
    start = whole_number(0, count - 1 - step * (keep - 1), generator)
    wanted = [start + step * i for i in range(keep)]
    if step > 1:
        jitter = torch.randint(-1, 2, (keep,), generator=generator).tolist()
        wanted = [min(max(w + j, 0), count - 1) for w, j in zip(wanted, jitter)]
    wanted[0] = 0
    taken: set[int] = set()
    for index in wanted:
        free = index if index not in taken else _nearest_free(index, taken, count, step - 1, generator)
        if free is not None:
            taken.add(free)
    unused = [i for i in range(count) if i not in taken]
    for i in torch.randperm(len(unused), generator=generator)[: keep - len(taken)].tolist():
        taken.add(unused[i])
    return sorted(taken)


def _nearest_free(
    index: int, taken: set[int], count: int, reach: int, generator: torch.Generator
) -> int | None:
    left_first = float(torch.rand((), generator=generator)) < 0.5
    for gap in range(1, reach + 1):
        for near in (index - gap, index + gap) if left_first else (index + gap, index - gap):
            if 0 <= near < count and near not in taken:
                return near
    return None


def whole_number(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer of [low, high]."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))
