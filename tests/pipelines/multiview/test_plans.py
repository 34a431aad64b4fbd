"""Plans of whole runs: what is planned fits its own ceiling, and what is refused names what fits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.errors import InputError
from relief3d.core.memory import GIB
from relief3d.pipelines.multiview.networks import build_network
from relief3d.pipelines.multiview.pictures import frame_pictures
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.plan import check_ceiling, plan_scene


def scene(views: int, *sizes: tuple[int, int]) -> Scene:
    return Scene(tuple(View(f"{i}.jpg", Camera(*sizes[i % len(sizes)])) for i in range(views)))


def planned(pictures: Scene, config: ReconstructConfig) -> float:
    plan = plan_scene(pictures, config)
    check_ceiling(plan, pictures, config)
    return plan.peak_bytes


def follow(config: ReconstructConfig, remedy: str) -> ReconstructConfig:
    """The options with what a refusal proposes."""
    changed = config
    for name, value in re.findall(r"--(side|chunk|preprocess|depth-width) (\w+)", remedy):
        if name == "depth-width":
            changed = replace(changed, depth_width=int(value))
        else:
            number = value if name == "preprocess" else int(value)
            changed = replace(changed, multiview=replace(changed.multiview, **{name: number}))
    if "--no-mesh" in remedy:
        changed = replace(changed, mesh=False)
    if least := re.search(r"at least (?:--max-memory )?([\d.]+)", remedy):
        changed = replace(changed, max_memory=float(least[1]))
    return changed


@pytest.mark.parametrize("size", [(640, 480), (4000, 3000), (8000, 6000)])
@pytest.mark.parametrize("views", [2, 100])
@pytest.mark.parametrize(
    "network", [{"model": "vggt"}, {"model": "pi3", "model_size": "nano", "untrained": True}]
)
def test_plans_fit_their_own_ceiling_or_say_what_does(
    size: tuple[int, int], views: int, network: dict[str, object]
) -> None:
    pictures, fits = scene(views, size), 0
    for ceiling in (0.5, 0.9, 1.3, 2.0, 5.5, 7, 10, 32):
        config = ReconstructConfig.of(**network, max_memory=float(ceiling), device="cpu")
        try:
            assert planned(pictures, config) <= ceiling * GIB
            fits += 1
        except InputError as stop:
            remedy = stop.remedy or ""
            if "weights alone" in remedy:
                continue
            changed = config
            # Stages are planned one after the other, so that a second refusal may follow.
            for _ in range(4):
                changed = follow(changed, remedy)
                assert changed != config, remedy
                try:
                    planned(pictures, changed)
                    break
                except InputError as again:
                    assert again.remedy != remedy, remedy
                    remedy = again.remedy or ""
                    if "weights alone" in remedy:
                        break
            else:
                pytest.fail(f"{views} of {size} in {ceiling}: {remedy}")
    assert fits >= 2


def test_tiny_ceilings_are_told_what_the_program_takes() -> None:
    config = ReconstructConfig.of(model="pi3", model_size="nano", untrained=True, side=56, max_memory=0.9)
    with pytest.raises(InputError, match=r"1\.05 GiB") as stop:
        planned(scene(3, (84, 56)), config)
    assert planned(scene(3, (84, 56)), follow(replace(config, mesh=False), stop.value.remedy or "")) > 0


def test_a_file_of_weights_is_planned_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    save_file(build_network("pi3", "micro").state_dict(), str(file))
    by_file = ReconstructConfig.of(model=str(file), model_size="micro", side=56, device="cpu")
    by_name = ReconstructConfig.of(model="pi3", model_size="micro", untrained=True, side=56, device="cpu")
    pictures = scene(4, (84, 56))
    a, b = (plan_scene(pictures, c).stages[0] for c in (by_file, by_name))
    assert a.peak_bytes == pytest.approx(b.peak_bytes, rel=1e-3) and "56x42" in a.note


def test_plan_and_run_agree_on_pictures_of_mixed_shapes() -> None:
    sizes = [(640, 480), (480, 640)]
    config = ReconstructConfig.of(model="vggt", preprocess="keep", side=224, device="cpu")
    framing = frame_pictures(sizes, config.multiview, "vggt-crop")
    assert (framing.width, framing.height) == (224, 224)
    assert "224x224" in plan_scene(scene(4, *sizes), config).stages[0].note
    assert torch.equal(framing.content[0] > 0, torch.tensor([False, True, True, True]))
