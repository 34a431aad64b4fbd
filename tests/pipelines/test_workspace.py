"""The output folder: resumable, never overwritten by accident, clean after a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from relief3d.core.contract import Camera, Scene, View
from relief3d.core.errors import InputError
from relief3d.pipelines.reconstruct.config import ReconstructConfig
from relief3d.pipelines.reconstruct.workspace import STAGES, Workspace, input_fingerprint

HASHES = {"cameras": "a", "depth": "b", "mesh": "c"}


def open_workspace(
    root: Path, *, input_hash: str = "i", overwrite: bool = False, **changed: str
) -> Workspace:
    workspace = Workspace(
        root, input_hash=input_hash, stage_hashes={**HASHES, **changed}, overwrite=overwrite
    )
    workspace.close()
    return workspace


def test_stages_are_remembered(tmp_path: Path) -> None:
    first = open_workspace(tmp_path / "out")
    assert not first.done("cameras")
    first.complete_stage("cameras", seconds=1.5, facts={"points": 3})
    again = open_workspace(tmp_path / "out")
    assert again.done("cameras") and not again.complete
    assert again.record("cameras") == {"seconds": 1.5, "facts": {"points": 3}}
    for stage in STAGES:
        again.complete_stage(stage)
    assert open_workspace(tmp_path / "out").complete


def test_other_input_or_options_are_refused_without_overwrite(tmp_path: Path) -> None:
    open_workspace(tmp_path / "out").complete_stage("cameras")
    with pytest.raises(InputError, match="other pictures"):
        open_workspace(tmp_path / "out", input_hash="j")
    with pytest.raises(InputError, match="other options"):
        open_workspace(tmp_path / "out", depth="x")
    assert not open_workspace(tmp_path / "out", depth="x", overwrite=True).done("cameras")


def test_overwrite_removes_only_our_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    open_workspace(out)
    (out / "notes.txt").write_text("mine")
    (out / "mesh.ply").write_text("old")
    open_workspace(out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "mesh.ply").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folders_are_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="not a relief3d result"):
        open_workspace(tmp_path, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_a_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        open_workspace(tmp_path / "out")


def test_begin_stage_clears_half_written_files(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "out")
    (workspace.root / "depth").mkdir()
    (workspace.root / "depth" / "half.npz").write_bytes(b"x")
    workspace.begin_stage("depth")
    assert not (workspace.root / "depth").exists()


def test_abandon_leaves_nothing_of_a_fresh_run(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "out")
    (workspace.work / "features.db").write_bytes(b"x")
    workspace.abandon()
    assert not (tmp_path / "out").exists()


def test_abandon_removes_finished_stages_of_a_refused_run(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "out")
    (workspace.root / "sparse").mkdir()
    workspace.complete_stage("cameras")
    workspace.abandon()
    assert not (tmp_path / "out").exists()


def complete(root: Path, content: str) -> Workspace:
    workspace = open_workspace(root)
    (root / "mesh.ply").write_text(content)
    for stage in STAGES:
        workspace.complete_stage(stage)
    return workspace


def test_overwrite_keeps_the_old_result_until_the_new_one_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    complete(out, "old")
    refused = open_workspace(out, input_hash="j", overwrite=True)
    (out / "mesh.ply").write_text("half")
    refused.abandon()
    assert (out / "mesh.ply").read_text() == "old"
    assert open_workspace(out).complete
    replaced = open_workspace(out, input_hash="j", overwrite=True)
    (out / "mesh.ply").write_text("new")
    for stage in STAGES:
        replaced.complete_stage(stage)
    replaced.tidy()
    assert (out / "mesh.ply").read_text() == "new"
    assert sorted(p.name for p in out.iterdir()) == [".relief3d", "mesh.ply"]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "out", input_hash="i", stage_hashes=HASHES)
    with pytest.raises(InputError, match="another relief3d run"):
        Workspace(tmp_path / "out", input_hash="i", stage_hashes=HASHES)
    first.close()
    open_workspace(tmp_path / "out")


def test_too_little_space_is_said_before_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="free"):
        Workspace(tmp_path / "out", input_hash="i", stage_hashes=HASHES, need_bytes=10**18)
    assert not (tmp_path / "out").exists()


def test_damaged_state_counts_as_foreign(tmp_path: Path) -> None:
    open_workspace(tmp_path / "out")
    (tmp_path / "out" / ".relief3d" / "state.json").write_text("{")
    with pytest.raises(InputError, match="not a relief3d result"):
        open_workspace(tmp_path / "out")


def test_input_fingerprint_sees_changed_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"1")
    scene = Scene((View("a.jpg", Camera(4, 4), path=path),))
    before = input_fingerprint(scene, "x")
    assert before == input_fingerprint(scene, "x")
    path.write_bytes(b"22")
    assert before != input_fingerprint(scene, "x")


def test_options_change_only_their_stage_and_later_ones() -> None:
    base = ReconstructConfig().fingerprint()
    depth = ReconstructConfig(quality="fast").fingerprint()
    mesh = ReconstructConfig(mesh_faces=10).fingerprint()
    assert (
        base["cameras"] == depth["cameras"]
        and base["depth"] != depth["depth"]
        and base["mesh"] != depth["mesh"]
    )
    assert base["depth"] == mesh["depth"] and base["mesh"] != mesh["mesh"]


@pytest.mark.parametrize(
    "bad", [{"voxel_size": 0.0}, {"depth_width": 8}, {"video_frames": 1}, {"mesh_faces": -1}]
)
def test_impossible_options_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        ReconstructConfig(**bad)  # type: ignore[arg-type]


def test_changed_known_depth_is_another_input(tmp_path: Path) -> None:
    depth = tmp_path / "depth"
    depth.mkdir()
    (depth / "a.npz").write_bytes(b"one")
    scene = Scene((View("a.png", Camera(4, 3)),))
    before = input_fingerprint(scene, "photos", (None, depth))
    assert before == input_fingerprint(scene, "photos", (None, depth))
    (depth / "a.npz").write_bytes(b"longer")
    assert before != input_fingerprint(scene, "photos", (None, depth))
