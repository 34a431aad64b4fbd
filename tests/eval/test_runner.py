"""Running a protocol: what is kept, what is computed again, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from corpora.toy_protocol import NAMES, SIZE, ToyProtocol, times
from relief3d.core.errors import InputError
from relief3d.eval.protocols.base import Answer, Query, Sample, Truth
from relief3d.eval.runner import RunOptions, choose_samples, run_protocol
from relief3d.eval.twins.rendered import query_scene


def values(outcome: object) -> list[float]:
    return [m.values["abs_rel"] for m in outcome.measurements]  # type: ignore[attr-defined]


def test_an_oracle_is_measured_on_every_sample(tmp_path: Path) -> None:
    toy = ToyProtocol()
    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=times(1.1))
    assert values(outcome) == pytest.approx([10.0] * 4, rel=1e-6)
    assert not outcome.failed and outcome.left_out == 0
    assert [m.name for m in outcome.measurements] == list(NAMES)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_numbers_or_order(tmp_path: Path, workers: int) -> None:
    toy = ToyProtocol()
    options = RunOptions(workers=workers)
    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=times(1.1), options=options)
    assert [m.name for m in outcome.measurements] == list(NAMES)
    assert sorted(toy.measured) == sorted(NAMES)


def test_kept_answers_and_measurements_are_used_again(tmp_path: Path) -> None:
    first, second = ToyProtocol(), ToyProtocol()
    options = RunOptions(panels=0)
    one = run_protocol(first, first.twin("smoke"), cache=tmp_path, oracle=times(1.1), options=options)

    def never(query: Query, truth: Truth) -> Answer:
        raise AssertionError("the kept answer should be used")

    two = run_protocol(second, second.twin("smoke"), cache=tmp_path, oracle=never, options=options)
    assert values(two) == values(one)
    assert second.measured == []


def test_metrics_can_be_computed_again_without_the_model(tmp_path: Path) -> None:
    first = ToyProtocol()
    run_protocol(first, first.twin("smoke"), cache=tmp_path, oracle=times(1.1))
    changed = ToyProtocol()
    changed.version = 2  # a changed rule must not reuse old numbers
    outcome = run_protocol(changed, changed.twin("smoke"), cache=tmp_path, predictions=tmp_path / "answers")
    assert sorted(changed.measured) == sorted(NAMES)
    assert values(outcome) == pytest.approx([10.0] * 4, rel=1e-6)


def test_a_changed_prediction_or_other_data_is_measured_again(tmp_path: Path) -> None:
    toy = ToyProtocol()
    options = RunOptions(panels=0)
    run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=times(1.1), options=options)
    answers = tmp_path / "answers"
    run_protocol(toy, toy.twin("smoke"), cache=tmp_path, predictions=answers, options=options)
    save_file({"depth": torch.full((1, *SIZE), 2.0)}, str(answers / "a/0.safetensors"))
    toy.measured.clear()
    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path, predictions=answers, options=options)
    assert toy.measured == ["a/0"]
    assert values(outcome)[0] == pytest.approx(100.0)
    toy.measured.clear()
    run_protocol(
        toy, toy.twin("smoke"), cache=tmp_path, predictions=answers, options=options, data_key="other"
    )
    assert sorted(toy.measured) == sorted(NAMES)


def test_answers_of_another_model_seed_or_picture_are_not_used(tmp_path: Path) -> None:
    asked: list[str] = []

    def run(factor: float, seed: int = 0, name: str = "m", protocol: ToyProtocol | None = None) -> float:
        toy = protocol or ToyProtocol()
        asked.clear()

        def model(query: Query) -> Answer:
            asked.append(query.name)
            return Answer({"depth": torch.full((1, *SIZE), factor + 100 * query.seed)})

        options = RunOptions(panels=0, seed=seed, model_name=name)
        return values(run_protocol(toy, toy.twin("smoke"), cache=tmp_path, model=model, options=options))[0]

    assert run(1.5) == pytest.approx(50.0) and len(asked) == 4
    assert run(1.7) == pytest.approx(50.0) and not asked
    assert run(1.7, name="other") == pytest.approx(70.0) and len(asked) == 4
    assert run(1.7, seed=1, name="other") == pytest.approx(10070.0) and len(asked) == 4

    class OtherFrames(ToyProtocol):
        version = 2  # other frames, as after a changed rule of sampling

        def _query(self, name: str) -> Query:
            images = torch.full((1, 3, *SIZE), 9, dtype=torch.uint8)
            return Query(name, "mono_depth", ("depth",), query_scene(images))

    class OtherMetric(ToyProtocol):
        version = 3

    assert run(1.2, seed=1, name="other", protocol=OtherMetric()) == pytest.approx(10070.0) and not asked
    assert run(1.2, protocol=OtherFrames()) == pytest.approx(20.0) and len(asked) == 4


def test_a_half_written_answer_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(query: Query, truth: Truth) -> Answer:
        return Answer({"depth": truth.need("depth") * 1.1}, facts={"note": 1})

    toy = ToyProtocol()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("relief3d.eval.predictions.save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=both)
    assert (tmp_path / "answers/a/0.json").is_file()
    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=both)
    assert values(outcome) == pytest.approx([10.0] * 4, rel=1e-6)


@pytest.mark.parametrize("name", ["../b/0", "/tmp/b/0", "b//0", "", "b/..", "b\\0"])
def test_names_of_samples_stay_below_the_folder_of_answers(name: str) -> None:
    sample = Sample(name, "b", ToyProtocol().twin("smoke")[0].load_query, Truth)
    with pytest.raises(InputError, match="not a relative path"):
        choose_samples([sample], None)


@pytest.mark.parametrize("name", ["living room/ü 1", "日本/0", "a.b"])
def test_unusual_names_work(tmp_path: Path, name: str) -> None:
    toy = ToyProtocol()

    def query() -> Query:
        return Query(name, "mono_depth", ("depth",), query_scene(torch.zeros(1, 3, *SIZE, dtype=torch.uint8)))

    samples = choose_samples(
        [Sample(name, name[0], query, lambda: Truth({"depth": torch.ones(1, *SIZE)}))], None
    )
    outcome = run_protocol(toy, samples, cache=tmp_path, oracle=times(1.1))
    assert values(outcome) == pytest.approx([10.0], rel=1e-6)


def test_poses_that_are_not_rigid_are_refused(tmp_path: Path) -> None:
    # Relative rotations of mirrored cameras are perfect, so the numbers would not show it.
    toy = ToyProtocol()

    def mirrored(query: Query, truth: Truth) -> Answer:
        return Answer({"depth": truth.need("depth"), "world_from_cam": -torch.eye(4)[None]})

    with pytest.raises(InputError, match=r"a/0: the predicted pose of view 0"):
        run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=mirrored)


def test_a_damaged_kept_measurement_is_computed_again(tmp_path: Path) -> None:
    toy = ToyProtocol()
    options = RunOptions(panels=0)
    run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=times(1.1), options=options)
    (tmp_path / "measurements/a/0.measurement.json").write_text('{"stamp": ')
    toy.measured.clear()
    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=times(1.1), options=options)
    assert toy.measured == ["a/0"] and len(outcome.measurements) == 4


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    toy = ToyProtocol()
    calls: list[str] = []

    def interrupted(query: Query, truth: Truth) -> Answer:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(query.name)
        return times(1.1)(query, truth)

    with pytest.raises(KeyboardInterrupt):
        run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=interrupted)
    seen: list[str] = []

    def counted(query: Query, truth: Truth) -> Answer:
        seen.append(query.name)
        return times(1.1)(query, truth)

    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=counted)
    assert seen == list(NAMES[2:]) and len(outcome.measurements) == 4


def test_a_failing_model_counts_as_the_protocol_says(tmp_path: Path) -> None:
    toy = ToyProtocol()
    out = run_protocol(toy, toy.twin("smoke"), cache=tmp_path / "1", oracle=times(1.1, ["b/0"]))
    assert out.left_out == 1 and out.failed == {"b/0": "it broke"} and len(out.measurements) == 3
    out = run_protocol(toy, toy.twin("smoke"), cache=tmp_path / "2", oracle=times(1.1, ["b/0"], "worst"))
    assert out.left_out == 0 and values(out)[2] == 100.0


def test_missing_predictions_are_named(tmp_path: Path) -> None:
    toy = ToyProtocol()
    folder = tmp_path / "predictions"
    with pytest.raises(InputError, match="not a folder"):
        run_protocol(toy, toy.twin("smoke"), cache=tmp_path, predictions=folder)
    folder.mkdir()
    with pytest.raises(InputError, match="for none of the 4 samples"):
        run_protocol(toy, toy.twin("smoke"), cache=tmp_path, predictions=folder)
    (folder / "a").mkdir()
    np.save(folder / "a/0.npy", np.full(SIZE, 1.1, np.float32))
    with pytest.raises(InputError, match=r"3 of 4 samples: a/1, b/0, b/1"):
        run_protocol(toy, toy.twin("smoke"), cache=tmp_path, predictions=folder)
    options = RunOptions(allow_missing=True)
    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path, predictions=folder, options=options)
    assert outcome.left_out == 3 and values(outcome) == pytest.approx([10.0], rel=1e-5)


def test_a_wrong_size_names_the_sample(tmp_path: Path) -> None:
    toy = ToyProtocol()

    def small(query: Query, truth: Truth) -> Answer:
        return Answer({"depth": torch.ones(1, 3, 3)})

    with pytest.raises(InputError, match=r"a/0: 'depth' of the answer has shape \(1, 3, 3\)"):
        run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=small)


def test_millimetres_get_a_hint(tmp_path: Path) -> None:
    toy = ToyProtocol()
    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=times(1000.0))
    assert len(outcome.hints) == 4 and "millimetres" in outcome.hints["a/0"]
    fine = run_protocol(toy, toy.twin("smoke"), cache=tmp_path / "fine", oracle=times(2.0))
    assert not fine.hints


def test_choosing_samples() -> None:
    samples = ToyProtocol().twin("smoke")
    assert [s.name for s in choose_samples(samples, None)] == list(NAMES)
    assert [s.name for s in choose_samples(samples, "1")] == ["a/0", "a/1"]
    assert [s.name for s in choose_samples(samples, "b")] == ["b/0", "b/1"]
    assert [s.name for s in choose_samples(samples, "*/1,a/0")] == ["a/0", "a/1", "b/1"]
    with pytest.raises(InputError, match="no sample matches"):
        choose_samples(samples, "zebra")
    with pytest.raises(InputError, match="same name"):
        choose_samples([samples[0], samples[0]], None)
    with pytest.raises(InputError, match="no samples"):
        choose_samples([], None)


def test_subsets_by_number_are_spread_over_the_scenes() -> None:
    one = ToyProtocol().twin("smoke")[0]
    many = [Sample(f"s{i}", f"s{i}", one.load_query, one.load_truth) for i in range(11)]
    assert [s.name for s in choose_samples(many, "3")] == ["s0", "s5", "s10"]
    assert len(choose_samples(many, "99")) == 11


def test_panels_are_drawn_for_a_few_samples(tmp_path: Path) -> None:
    toy = ToyProtocol()
    options = RunOptions(panels=2)
    outcome = run_protocol(toy, toy.twin("smoke"), cache=tmp_path, oracle=times(1.1), options=options)
    assert set(outcome.panels) == {"a/0/depth", "b/1/depth"}
    assert all(p.dtype == torch.uint8 and p.shape[0] == 3 for p in outcome.panels.values())


def test_a_query_that_cannot_be_made_is_a_failure_of_that_sample(tmp_path: Path) -> None:
    toy = ToyProtocol()

    def broken() -> Query:
        raise InputError("not enough known points")

    samples = [
        Sample(s.name, s.group, broken if s.name == "a/1" else s.load_query, s.load_truth)
        for s in toy.twin("smoke")
    ]
    outcome = run_protocol(toy, samples, cache=tmp_path, oracle=times(1.1))
    assert outcome.failed == {"a/1": "not enough known points"} and outcome.left_out == 1
    assert len(outcome.measurements) == 3
