"""VSI-Bench: layouts, scores per type, averages, rank; questions about procedural rooms have right answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relief3d.core.errors import InputError, MissingExtraError
from relief3d.eval.protocols.base import Answer, Measurement
from relief3d.eval.protocols.downstream.vsi_bench import CHOICE, NUMERIC, VsiBench, read_questions
from relief3d.eval.protocols.downstream.vsi_rooms import (
    Room,
    RoomObject,
    ask,
    bearing,
    make_room,
    quadrant,
    turning_poses,
)
from relief3d.eval.protocols.registry import find_protocol

ROWS: list[dict[str, Any]] = [
    {
        "id": 7, "dataset": "scannet", "scene_name": "scene0011_00", "question_type": "object_counting",
        "question": "How many chair(s) are in this room?", "options": None, "ground_truth": "4",
    },
    {
        "id": 8, "dataset": "scannet", "scene_name": "scene0011_00", "question_type": "object_rel_distance",
        "question": "Which is closest?", "options": ["A. chair", "B. table", "C. sofa", "D. bed"], "ground_truth": "C",
    },
    {
        "id": 9, "dataset": "arkitscenes", "scene_name": "41069025", "question_type": "object_abs_distance",
        "question": "How far?", "options": None, "ground_truth": 2.5,
    },
]  # fmt: skip


def write(root: Path, rows: list[dict[str, Any]], ending: str = "jsonl") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(r) for r in rows) if ending == "jsonl" else json.dumps(rows)
    (root / f"test.{ending}").write_text(text)
    return root


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_reader(tmp_path: Path, ending: str) -> None:
    write(tmp_path, ROWS, ending)
    (tmp_path / "scannet").mkdir()
    (tmp_path / "scannet" / "scene0011_00.mp4").write_bytes(b"x")
    samples = VsiBench().open(tmp_path)
    assert [s.name for s in samples] == [
        "scannet/scene0011_00/7",
        "scannet/scene0011_00/8",
        "arkitscenes/41069025/9",
    ]
    assert [s.group for s in samples] == ["scannet/scene0011_00"] * 2 + ["arkitscenes/41069025"]
    query = samples[1].load_query()
    assert query.wants == ("answer",) and query.facts["options"] == ROWS[1]["options"]
    assert query.facts["video"].endswith("scene0011_00.mp4")
    shown = json.dumps(dict(query.facts))
    assert "ground_truth" not in shown and "answer" not in query.facts
    assert "video" not in samples[2].load_query().facts


def test_reader_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not look like VSI-Bench"):
        read_questions(tmp_path)
    for change, text in (
        ({"question_type": "riddle"}, "unknown question type"),
        ({"ground_truth": "zero"}, "positive number"),
        ({"question": None}, "is missing"),
    ):
        with pytest.raises(InputError, match=text):
            read_questions(write(tmp_path, [ROWS[0] | change]))
    with pytest.raises(InputError, match="names none of the 'options'"):
        read_questions(write(tmp_path, [ROWS[1] | {"ground_truth": "E"}]))
    with pytest.raises(InputError, match="two questions"):
        read_questions(write(tmp_path, [ROWS[0], ROWS[0]]))
    with pytest.raises(InputError, match="no questions"):
        read_questions(write(tmp_path / "empty", [], "json"))
    (tmp_path / "test.jsonl").write_text("{broken")
    with pytest.raises(InputError, match="not valid JSON"):
        read_questions(tmp_path)


def test_parquet_needs_its_packages_or_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1")

    class Table:
        def to_dict(self, kind: str) -> list[dict[str, Any]]:
            return [ROWS[0] | {"options": float("nan")}, ROWS[1] | {"options": np.array(ROWS[1]["options"])}]

    class Pandas:
        def __init__(self, works: bool) -> None:
            self.works = works

        def read_parquet(self, path: Path) -> Table:
            if not self.works:
                raise ImportError("no engine")
            return Table()

    import importlib

    from relief3d.eval.protocols.downstream import vsi_bench

    original = importlib.import_module
    for works in (True, False):
        fake = Pandas(works)
        monkeypatch.setattr(
            vsi_bench.importlib, "import_module", lambda n, fake=fake: fake if n == "pandas" else original(n)
        )
        if works:
            assert [r.question.truth for r in read_questions(tmp_path)] == ["4", "C"]
        else:
            with pytest.raises(MissingExtraError, match="pyarrow"):
                read_questions(tmp_path)


def score(protocol: VsiBench, index: int, root: Path, answer: object) -> Measurement:
    sample = protocol.open(root)[index]
    return protocol.measure(sample.load_query(), sample.load_truth(), Answer(facts={"answer": answer}))


def test_scores(tmp_path: Path) -> None:
    root, protocol = write(tmp_path, ROWS), VsiBench()
    assert score(protocol, 0, root, "4").values["object_counting"] == 100
    assert score(protocol, 0, root, "There are 5").values["object_counting"] == pytest.approx(50)
    assert score(protocol, 1, root, "C").values["object_rel_distance"] == 100
    assert score(protocol, 1, root, "sofa").values["object_rel_distance"] == 100
    assert score(protocol, 1, root, "A").values["object_rel_distance"] == 0
    assert score(protocol, 2, root, 2.5).values["object_abs_distance"] == 100
    sample = protocol.open(root)[2]
    failed = protocol.failure(sample.load_query(), sample.load_truth(), "crash")
    assert failed is not None and failed.values["object_abs_distance"] == 0
    with pytest.raises(InputError, match="has no fact 'answer'"):
        protocol.measure(sample.load_query(), sample.load_truth(), Answer())


def made(kind: str, value: float, real: bool = True) -> Measurement:
    return Measurement(kind, "g", {kind: value} | ({"published": 1.0} if real else {}))


def test_types_count_the_same_and_levels_share_one() -> None:
    protocol = VsiBench()
    found = [made("object_counting", 80.0)] * 30 + [made("route_planning", 20.0)] * 2
    found += [made("object_rel_direction_easy", 90.0)] * 8 + [made("object_rel_direction_hard", 30.0)]
    summary = protocol.summarise(found)
    assert summary["obj_cnt"] == 80 and summary["route"] == 20
    assert summary["rel_dir"] == 60  # of questions it would be 83.3
    assert summary["avg"] == pytest.approx((80 + 20 + 60) / 3)  # of questions it would be near 77
    assert np.isnan(summary["room_size"])
    assert set(protocol.summarise([])) == {c.key for c in protocol.columns}


def test_rank_among_the_published_averages() -> None:
    protocol = VsiBench()
    assert protocol.summarise([made("room_size_estimation", 47.0)])["rank"] == 3
    assert protocol.summarise([made("room_size_estimation", 60.0)])["rank"] == 1
    assert protocol.summarise([made("room_size_estimation", 1.0)])["rank"] == 14
    assert np.isnan(protocol.summarise([made("room_size_estimation", 60.0, real=False)])["rank"])
    rows = {r.method: r.values for r in protocol.published()}
    assert len(rows) == 13 and rows["Ours"]["avg"] == 58.3 and rows["GPT-4o"]["abs_dist"] == 5.3


def box(name: str, x: float, y: float, view: int | None = 0) -> RoomObject:
    centre = np.array([x, y, 0.5])
    return RoomObject(name, centre - 0.25, centre + np.array([0.25, 0.25, 0.75]), view)


def room(objects: list[RoomObject]) -> Room:
    return Room(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), 17.25, tuple(objects))


def answers(objects: list[RoomObject], seed: int = 0) -> dict[str, str]:
    """The words of the right answer by kind."""
    out = {}
    for q in ask(room(objects), seed):
        right = q.truth
        if q.options:
            right = next(o for o in q.options if o.startswith(f"{q.truth}."))[3:]
        out[q.kind] = right
    return out


def test_directions_by_hand() -> None:
    here, ahead = np.zeros(3), np.array([1.0, 0, 0])
    assert bearing(here, ahead, np.array([1.0, 1.0, 5.0])) == pytest.approx(45)
    assert bearing(here, ahead, np.array([0.0, -1.0, 0])) == pytest.approx(-90)
    assert [quadrant(a, False) for a in (60, -60, 170, -150, 5, 130)] == [
        "left",
        "right",
        "back",
        "back",
        "",
        "",
    ]
    assert [quadrant(a, True) for a in (45, -45, 120, -120, 88, 175)] == [
        "front-left", "front-right", "back-left", "back-right", "", ""
    ]  # fmt: skip


def test_questions_of_a_room_worked_by_hand() -> None:
    objects = [
        box("table", 0, 0, 1), box("chair", 2, 0, 0), box("chair", 2, 1, 2), box("sofa", 0, 1, 3),
        box("plant", 0, -3, 5), box("lamp", 4, -3, 6),
    ]  # fmt: skip
    found = answers(objects)
    assert found["object_counting"] == "2" and found["room_size_estimation"] == "17.2"
    assert found["object_size_estimation"] == "100.0"
    order = next(q for q in ask(room(objects), 0) if q.kind == "obj_appearance_order")
    right = next(o for o in order.options if o.startswith(order.truth))
    assert right[3:] == "table, sofa, plant, lamp"
    for seed in range(6):
        for q in ask(room(objects), seed):
            if q.kind == "object_rel_distance":
                target = q.text.split(" to the ")[1].strip("?")
                nearest = {"table": "sofa", "sofa": "table", "plant": "table", "lamp": "plant"}[target]
                assert next(o for o in q.options if o.startswith(f"{q.truth}.")) == f"{q.truth}. {nearest}"
    # Unseen objects are neither counted nor asked about.
    hidden = answers([box("chair", 0, 0), box("chair", 1, 1, None), box("table", 2, 2, None)])
    assert set(hidden) == {"room_size_estimation"}


def test_route_turns_are_seen_from_the_way_point() -> None:
    objects = [box("table", 0, 0), box("sofa", 2, 0), box("plant", 2, 2)]
    for seed in range(8):
        for q in ask(room(objects), seed):
            if q.kind != "route_planning":
                continue
            words = next(o for o in q.options if o.startswith(f"{q.truth}."))[3:]
            start, way = q.text.split("beginning at the ")[1].split(".")[0].split(" facing the ")
            goal = q.text.split("navigate to the ")[1].split(".")[0]
            expected = {
                ("table", "sofa", "plant"): "Turn Left", ("plant", "sofa", "table"): "Turn Right",
                ("sofa", "table", "plant"): "Turn Back", ("table", "plant", "sofa"): "Turn Back",
                ("sofa", "plant", "table"): "Turn Back", ("plant", "table", "sofa"): "Turn Back",
            }  # fmt: skip
            allowed = expected[start, way, goal]
            # At the table and the plant the goal lies 135 degrees back, on the border, and is not asked about.
            assert allowed != "Turn Back" and words == allowed


def test_rendered_rooms_agree_with_their_surfaces() -> None:
    built = make_room(11, (48, 64))
    assert built.images.shape == (8, 3, 48, 64)
    assert 8 < built.area < 40
    for o in built.objects:
        assert bool((o.high > o.low).all()) and o.low[2] > -0.05 and o.high[2] < 3.1
    poses = turning_poses(1.5)
    assert float((torch.linalg.det(poses[:, :3, :3]) - 1).abs().max()) < 1e-9
    # The camera turns left: what is ahead in view 2 lies to the left of view 0.
    assert bearing(np.zeros(3), poses[0, :3, 2].numpy(), poses[2, :3, 2].numpy()) == pytest.approx(90)


def test_twin_covers_numbers_and_choices() -> None:
    kinds = {s.load_truth().facts["question_type"] for s in find_protocol("vsi_bench").twin("smoke", 1)}
    assert kinds & set(NUMERIC) and len(kinds) >= 3
    assert set(CHOICE.values()) == {"rel_dist", "rel_dir", "route", "appr_order"}
