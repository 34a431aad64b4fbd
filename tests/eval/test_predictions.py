"""Answers on disk, ours and foreign ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from relief3d.core.contract import Mesh, PointCloud
from relief3d.core.errors import InputError
from relief3d.eval.predictions import fingerprint, kept_key, prediction_files, read_answer, write_answer
from relief3d.eval.protocols.base import Answer
from relief3d.io.ply import write_ply


def test_everything_comes_back(tmp_path: Path) -> None:
    mesh = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), torch.tensor([[0, 1, 2]]))
    answer = Answer(
        {"depth": torch.rand(2, 3, 4), "K": torch.eye(3)[None].double()}, mesh, {"answer": "four"}
    )
    write_answer(tmp_path, "scene one/7", answer)
    back = read_answer(tmp_path, "scene one/7")
    assert torch.equal(back.tensors["depth"], answer.tensors["depth"])
    assert back.tensors["K"].dtype == torch.float64
    assert back.mesh is not None and torch.equal(back.mesh.faces, mesh.faces)
    assert back.facts == {"answer": "four"}


def test_an_empty_answer_is_still_an_answer(tmp_path: Path) -> None:
    write_answer(tmp_path, "s", Answer())
    assert prediction_files(tmp_path, "s") and read_answer(tmp_path, "s").facts == {}


def test_depth_files_of_other_programs(tmp_path: Path) -> None:
    depth = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    np.save(tmp_path / "a.npy", depth)
    Image.fromarray((depth * 1000).astype(np.uint16)).save(tmp_path / "b.png")
    np.savez(tmp_path / "c.npz", depth=depth[None])
    (tmp_path / "d").mkdir()
    for i in (10, 2):  # natural order: 2 before 10
        np.save(tmp_path / "d" / f"frame{i}.npy", depth * i)
    for name in "abc":
        assert torch.allclose(read_answer(tmp_path, name).tensors["depth"][0], torch.from_numpy(depth))
    assert read_answer(tmp_path, "d").tensors["depth"][:, 0, 0].tolist() == [2.0, 10.0]


def test_frames_of_different_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d/0.npy", np.ones((2, 2), np.float32))
    np.save(tmp_path / "d/1.npy", np.ones((2, 3), np.float32))
    with pytest.raises(InputError, match="differ in size"):
        read_answer(tmp_path, "d")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prediction for 'x'"):
        read_answer(tmp_path, "x")
    (tmp_path / "x.safetensors").write_bytes(b"junk that is no header")
    with pytest.raises(InputError, match=r"x\.safetensors: is not a readable safetensors file"):
        read_answer(tmp_path, "x")


def test_a_surface_without_triangles_is_an_empty_answer(tmp_path: Path) -> None:
    write_ply(tmp_path / "s.ply", PointCloud(torch.rand(5, 3)))
    mesh = read_answer(tmp_path, "s").mesh
    assert mesh is not None and mesh.faces.shape == (0, 3) and mesh.vertices.shape == (5, 3)


def test_pickles_inside_npz_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", depth=np.array([{"evil": 1}], dtype=object))
    with pytest.raises(InputError):
        read_answer(tmp_path, "x")


def test_the_fingerprint_sees_names_and_contents(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2), np.float32))
    one = fingerprint(prediction_files(tmp_path, "a"))
    np.save(tmp_path / "a.npy", np.ones((2, 2), np.float32) * 2)
    assert fingerprint(prediction_files(tmp_path, "a")) != one


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.float16, torch.bfloat16, torch.uint16])
def test_other_kinds_of_numbers_become_floating_point(tmp_path: Path, kind: torch.dtype) -> None:
    save_file({"depth": torch.ones(1, 2, 2).to(kind)}, str(tmp_path / "a.safetensors"))
    depth = read_answer(tmp_path, "a").tensors["depth"]
    assert depth.dtype == torch.float32 and bool((depth == 1).all())


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    save_file({"depth": torch.ones(1, 2, 2, dtype=torch.complex64)}, str(tmp_path / "a.safetensors"))
    with pytest.raises(InputError, match="complex"):
        read_answer(tmp_path, "a")


def test_a_new_answer_leaves_nothing_of_an_older_one(tmp_path: Path) -> None:
    write_answer(tmp_path, "s", Answer({"depth": torch.ones(1, 2, 2)}, facts={"note": 1}), "one")
    assert kept_key(tmp_path, "s") == "one"
    write_answer(tmp_path, "s", Answer({"depth": torch.ones(1, 2, 2)}))
    assert not read_answer(tmp_path, "s").facts and kept_key(tmp_path, "s") is None


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_depth_files_may_have_any_unit(tmp_path: Path, unit: float) -> None:
    # Video protocols align the scale, so relative depth is an answer.
    np.save(tmp_path / "a.npy", np.full((2, 3), 2.5 * unit, np.float32))
    assert float(read_answer(tmp_path, "a").tensors["depth"].mean()) == pytest.approx(2.5 * unit)
