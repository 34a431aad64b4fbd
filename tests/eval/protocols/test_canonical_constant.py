"""AbsRel near and far: where the border lies, how pictures are averaged, DIODE's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer
from relief3d.eval.protocols.registry import find_protocol

SIZE = (6, 8)


def diode(root: Path, name: str, depth: np.ndarray, mask: np.ndarray | None = None) -> None:
    folder = root / "val" / "outdoor" / f"scene_{name}" / "scan_00000"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((*SIZE, 3), 99, np.uint8)).save(folder / f"{name}.png")
    np.save(folder / f"{name}_depth.npy", depth.astype(np.float32)[..., None])
    np.save(folder / f"{name}_depth_mask.npy", (np.ones(SIZE) if mask is None else mask).astype(np.float32))


def test_border_and_average(tmp_path: Path) -> None:
    first = np.full(SIZE, 20.0)
    first[0, :4] = (40.0, 40.001, 80.0, 0.0)
    second = np.full(SIZE, 10.0)  # nothing far
    mask = np.ones(SIZE)
    mask[5] = 0
    diode(tmp_path, "00001", first, mask)
    diode(tmp_path, "00002", second)
    protocol = find_protocol("canonical_constant")
    samples = protocol.open(tmp_path)
    assert [s.group for s in samples] == ["scene_00001", "scene_00002"]
    measured = []
    for sample, guess in zip(samples, (22.0, 15.0)):
        measured.append(
            protocol.measure(
                sample.load_query(), sample.load_truth(), Answer({"depth": torch.full((1, *SIZE), guess)})
            )
        )
    d = first[:5].ravel()
    d = d[d > 0]
    near, far = d[d <= 40], d[d > 40]
    assert len(far) == 2
    expected_near = np.mean([np.mean(np.abs(22 - near) / near), 0.5])
    summary = protocol.summarise(measured)
    assert summary["near"] == pytest.approx(expected_near, rel=1e-5)
    assert summary["far"] == pytest.approx(
        np.mean(np.abs(22 - far) / far), rel=1e-5
    )  # of the one picture that has any
    pooled = (np.abs(22 - near) / near).sum() + 0.5 * 48
    assert abs(summary["near"] - pooled / (len(near) + 48)) > 1e-3
    wrong_border = d[d < 40]
    assert abs(expected_near - np.mean([np.mean(np.abs(22 - wrong_border) / wrong_border), 0.5])) > 1e-3


def test_missing_predictions_are_counted_over_both_ranges(tmp_path: Path) -> None:
    depth = np.full(SIZE, 20.0)
    depth[:, 4:] = 60.0
    diode(tmp_path, "00001", depth)
    protocol = find_protocol("canonical_constant")
    sample = protocol.open(tmp_path)[0]
    guess = torch.full((1, *SIZE), 20.0)
    guess[0, :3, :4] = torch.nan
    m = protocol.measure(sample.load_query(), sample.load_truth(), Answer({"depth": guess}))
    assert m.values["left_out"] == pytest.approx(25.0)
    assert m.values["near"] == 0 and m.values["far"] == pytest.approx(40 / 60)


def test_query_gives_intrinsics_and_no_depth(tmp_path: Path) -> None:
    diode(tmp_path, "00001", np.full(SIZE, 20.0))
    query = find_protocol("canonical_constant").open(tmp_path)[0].load_query()
    assert query.task == "mono_depth" and query.wants == ("depth",) and not query.tensors
    assert query.scene is not None and query.scene.views[0].camera.K is not None


def test_twin_reaches_far(tmp_path: Path) -> None:
    depth = torch.cat(
        [s.load_truth().need("depth").reshape(-1) for s in find_protocol("canonical_constant").twin("smoke")]
    )
    assert (
        float((depth > 40).double().mean()) > 0.02
        and float(((depth > 0) & (depth <= 40)).double().mean()) > 0.2
    )


def test_published_rows_and_errors(tmp_path: Path) -> None:
    rows = find_protocol("canonical_constant").published()
    assert [(r.method, r.values["near"], r.values["far"]) for r in rows[-2:]] == [
        ("C = 400", 0.456, 0.562),
        ("C = 600", 0.465, 0.559),
    ]
    with pytest.raises(InputError, match="holds no"):
        find_protocol("canonical_constant").open(tmp_path)
