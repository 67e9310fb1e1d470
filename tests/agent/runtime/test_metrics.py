"""Every metric against numbers worked out by hand."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from lifelong.agent.runtime import metrics
from lifelong.agent.runtime.metrics import Evaluations


def make(curves: dict[str, list[float]], training_end: list[int], every: int = 100, first: int = 0) -> Evaluations:
    """Evaluations whose performance is exactly `curves`: scores are (-1, 3), two episodes around the mean."""
    evaluations = Evaluations(list(curves), [(-1.0, 3.0)] * len(curves), training_end)
    for point, values in enumerate(zip(*curves.values(), strict=True)):
        mean = np.array(values) * 4 - 1
        evaluations.add(first + every * point, np.stack([mean - 0.5, mean + 0.5], axis=1))
    return evaluations


@pytest.fixture
def stream() -> Evaluations:
    """Three tasks of 100 steps each, evaluated at 0, 100, 200, 300."""
    curves = {"a": [0.0, 0.8, 0.9, 0.4], "b": [0.1, 0.2, 0.6, 0.5], "c": [0.0, 0.0, 0.1, 1.2]}
    return make(curves, [100, 200, 300])


def test_performance_is_the_mean_return_on_the_scale_of_the_task_and_not_clipped() -> None:
    evaluations = Evaluations(["a", "b"], [(0, 10), (-500, -100)], [1, 2])
    evaluations.add(5, np.array([[10.0, 20.0], [-500.0, -300.0]]))
    np.testing.assert_allclose(evaluations.performance(), [[1.5, 0.25]])


def test_learned_and_final(stream: Evaluations) -> None:
    np.testing.assert_allclose(metrics.learned(stream), [0.8, 0.6, 1.2])
    np.testing.assert_allclose(metrics.final(stream), [0.4, 0.5, 1.2])


def test_learned_takes_the_first_point_at_or_after_the_end_of_training_else_the_last() -> None:
    evaluations = make({"a": [0.1, 0.2, 0.3], "b": [0.4, 0.5, 0.6]}, [101, 999])
    np.testing.assert_allclose(metrics.learned(evaluations), [0.3, 0.6])


def test_averages(stream: Evaluations) -> None:
    assert metrics.average_performance(stream) == pytest.approx((0.4 + 0.5 + 1.2) / 3)
    expected = [0.1 / 3, 1.0 / 3, 1.6 / 3, 2.1 / 3]
    np.testing.assert_allclose(metrics.average_performance_over_time(stream), expected)


def test_forgetting_leaves_the_last_task_out(stream: Evaluations) -> None:
    assert metrics.forgetting(stream) == pytest.approx(((0.8 - 0.4) + (0.6 - 0.5)) / 2)
    assert metrics.backward_transfer(stream) == pytest.approx(-0.25)


def test_forgetting_max_compares_with_the_best_point_before_the_last(stream: Evaluations) -> None:
    assert metrics.forgetting_max(stream) == pytest.approx(((0.9 - 0.4) + (0.6 - 0.5)) / 2)


def test_forgetting_in_the_middle_counts_only_tasks_that_had_time_to_forget() -> None:
    evaluations = make({"a": [0.0, 0.8, 0.5], "b": [0.0, 0.1, 0.7], "c": [0.0, 0.3, 0.2]}, [100, 200, 300])
    assert metrics.forgetting(evaluations) == pytest.approx(0.3)


def test_the_last_task_stays_out_when_an_evaluation_follows_the_end_of_the_stream() -> None:
    evaluations = make({"a": [0.9, 0.7, 0.6], "b": [0.0, 0.8, 0.2]}, [0, 100])
    assert metrics.forgetting(evaluations) == pytest.approx(0.3)


@pytest.mark.parametrize("metric", [metrics.forgetting, metrics.forgetting_max, metrics.backward_transfer])
def test_joint_training_forgets_nothing(metric: object) -> None:
    evaluations = make({"a": [0.5, 0.9, 0.3], "b": [0.5, 0.9, 0.3]}, [200, 200])
    assert callable(metric) and metric(evaluations) == 0.0


def test_retained_is_the_kept_share_and_nan_where_nothing_was_learned() -> None:
    evaluations = make({"a": [0.8, 0.6], "b": [0.0, 0.5], "c": [-0.1, 0.5]}, [0, 0, 0])
    np.testing.assert_allclose(metrics.retained(evaluations), [0.75, np.nan, np.nan])


def test_a_share_of_what_was_never_learned_is_undefined() -> None:
    """From a tenth of the way from useless to solved on; below, 0.00005 -> 0.75 would be kept to 1,500,000 %."""
    evaluations = make({"a": [0.00005, 0.75], "b": [0.0999, 0.5], "c": [0.2, 0.1], "d": [0.8, -0.2]}, [0, 0, 0, 0])
    np.testing.assert_allclose(metrics.retained(evaluations), [np.nan, np.nan, 0.5, -0.25])


def test_forward_transfer_is_the_gap_of_areas() -> None:
    # a is trained in [0, 100], b in [100, 200]; areas are trapezoids over points 50 steps apart
    run = make({"a": [0.0, 0.4, 0.8, 0.8, 0.8], "b": [0.0, 0.0, 0.2, 0.8, 1.0]}, [100, 200], every=50)
    alone_a = make({"a": [0.0, 0.4, 0.8]}, [100], every=50)
    alone_b = make({"b": [0.0, 0.2, 0.8]}, [100], every=50)
    auc_b = 0.5 * (0.2 + 0.8) / 2 + 0.5 * (0.8 + 1.0) / 2  # 0.7
    baseline_b = 0.5 * (0.0 + 0.2) / 2 + 0.5 * (0.2 + 0.8) / 2  # 0.3
    expected = [0.0, (auc_b - baseline_b) / (1 - baseline_b)]
    np.testing.assert_allclose(metrics.forward_transfer_auc(run, [alone_a, alone_b]), expected, atol=1e-12)


def test_forward_transfer_interpolates_where_no_point_lies_on_the_border() -> None:
    run = make({"a": [0.0, 1.0]}, [50], every=100)  # p(t) = t / 100, mean over [0, 50] is 0.25
    alone = make({"a": [0.5]}, [50], first=50)  # one point: constant
    np.testing.assert_allclose(metrics.forward_transfer_auc(run, [alone]), [(0.25 - 0.5) / (1 - 0.5)])


def test_forward_transfer_against_a_perfect_reference_is_undefined() -> None:
    run = make({"a": [0.0, 1.0]}, [100])
    assert np.isnan(metrics.forward_transfer_auc(run, [make({"a": [1.0, 1.0]}, [100])])).all()


def test_forward_transfer_refuses_references_that_do_not_fit() -> None:
    run = make({"a": [0.0, 1.0]}, [100])
    other_score = Evaluations(["a"], [(0, 1)], [100])
    for references, sentence in [
        ([], "one per task"),
        ([make({"b": [0.0, 1.0]}, [100])], "evaluated on"),
        ([make({"a": [0.0, 1.0]}, [200])], "200 steps"),
        ([other_score], "score"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            metrics.forward_transfer_auc(run, references)


def test_metrics_without_an_evaluation_point_say_so() -> None:
    empty = Evaluations(["a"], [(0, 1)], [100])
    for metric in (metrics.learned, metrics.final, metrics.average_performance, metrics.forgetting, metrics.retained):
        with pytest.raises(ValueError, match="no evaluation point"):
            metric(empty)


def test_wrong_input_is_refused(stream: Evaluations) -> None:
    with pytest.raises(ValueError, match="shape"):
        stream.add(400, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="comes after"):
        stream.add(299, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="shape"):
        Evaluations(["a"], [(0, 1)], [1]).add(0, np.zeros((1, 0)))
    with pytest.raises(ValueError, match="nothing can be measured"):
        Evaluations(["a"], [(1, 1)], [100])
    with pytest.raises(ValueError, match="do not match"):
        Evaluations(["a", "b"], [(0, 1)], [100])


def assert_same(left: Evaluations, right: Evaluations) -> None:
    assert (left.tasks, left.scores, left.training_end, left.steps) == (
        right.tasks,
        right.scores,
        right.training_end,
        right.steps,
    )
    np.testing.assert_array_equal(left.tensor(), right.tensor())


def test_saved_file_round_trips_and_holds_the_documented_arrays(stream: Evaluations, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.npz"
    stream.save(path)
    assert_same(Evaluations.load(path), stream)
    with np.load(path, allow_pickle=False) as saved:
        shapes = {name: saved[name].shape for name in saved.files}
        np.testing.assert_array_equal(saved["performance"], stream.performance())
    assert shapes == {
        "steps": (4,),
        "returns": (4, 3, 2),
        "performance": (4, 3),
        "tasks": (3,),
        "scores": (3, 2),
        "training_end": (3,),
        "scored": (3,),
    }
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.npz"]  # no temporary file is left


def test_an_empty_store_round_trips(tmp_path: Path) -> None:
    empty = Evaluations(["a"], [(0, 1)], [100])
    empty.save(tmp_path / "evaluation.npz")
    assert_same(Evaluations.load(tmp_path / "evaluation.npz"), empty)


def test_same_data_gives_the_same_bytes(stream: Evaluations, tmp_path: Path) -> None:
    stream.save(tmp_path / "one.npz")
    Evaluations.load(tmp_path / "one.npz").save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # not the clock


def test_points_of_other_tasks_are_refused(stream: Evaluations, tmp_path: Path) -> None:
    (tmp_path / "evaluation.jsonl").write_text(stream.line())
    with pytest.raises(ValueError, match="in this run"):
        Evaluations(["x"], [(0, 1)], [1]).restore(tmp_path, 10_000)


def test_evaluations_of_some_tasks_are_those_tasks_and_nothing_else() -> None:
    draw = np.random.default_rng(0)
    evaluations = Evaluations(["a", "b", "c"], [(0, 1), (-1, 1), (0, 10)], [100, 200, 300])
    for step in (0, 100, 200, 300):
        evaluations.add(step, draw.normal(size=(3, 4)))
    some = evaluations.only([2, 0])
    assert (some.tasks, some.scores, some.training_end) == (["c", "a"], [(0, 10), (0, 1)], [300, 100])
    assert np.array_equal(some.performance(), evaluations.performance()[:, [2, 0]]) and some.steps == evaluations.steps
