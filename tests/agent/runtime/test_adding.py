"""`lifelong resume RUN --add TASK.yaml`: a trained run takes new tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from lifelong.agent import adding, cli, run
from lifelong.agent import config as configs
from lifelong.agent.errors import ConfigError
from lifelong.agent.runtime import changes, checkpoint, metrics, session
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.handover import hand_over
from lifelong.agent.runtime.summary import load_summary
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context, Source, Strategy
from tests.agent.strategies.test_conformance import AT_WORK
from tests.agent.support import assert_identical, make_config

NEW = {"name": "longer", "env": {"kind": "TMaze", "corridor": 6}, "steps": 128}


def begin(folder: Path, until: int | None = None, **more: Any) -> Trainer:
    """A run on two small mazes of 192 steps each; stopped at the evaluation at or after step `until`."""

    def stop(step: int, evaluations: Any) -> None:
        if until is not None and step >= until:
            raise KeyboardInterrupt

    settings = {"evaluation": {"every": 64, "episodes": 4, "max_steps": 8}, "checkpoint": {"every": 32}}
    config = make_config(**configs.merge(settings, more))
    if until is None:
        return run.start(config, folder, quiet=True)[0]
    with pytest.raises(KeyboardInterrupt):
        run.start(config, folder, quiet=True, on_evaluation=stop)
    return session.load(config, folder, run._planned(config))[0]


def add(folder: Path, *tasks: Any, words: tuple[str, ...] = ()) -> Trainer:
    files = []
    for index, task in enumerate(tasks):
        files.append(str(folder.parent / f"task-{index}.yaml"))
        Path(files[-1]).write_text(json.dumps(task))
    trainer, finished = run.resume(folder, list(words), add=files, quiet=True)
    assert finished
    return trainer


def opened(folder: Path, task: Any) -> Trainer:
    """The trainer that a run with one more task would go on with."""
    file = folder.parent / "opened.yaml"
    file.write_text(json.dumps(task))
    config = session.load_config(folder, add=[str(file)])
    return session.load(config, folder, run._planned(config))[0]


def segments(trainer: Trainer) -> list[tuple[int, int, int | None]]:
    return [(s.start, s.end, s.task) for s in trainer.stream.segments]


# ---- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["finetune", "ewc", "clear"])
@pytest.mark.parametrize("until", [None, 96])
def test_a_run_that_was_given_a_task_is_the_run_that_was_planned_with_it_bit_for_bit(
    until: int | None, strategy: str, tmp_path: Path
) -> None:
    hidden = {"stream": {"task_id": "hidden"}, "strategy": {"kind": strategy}}
    begin(tmp_path / "run", until, **hidden)
    grown = add(tmp_path / "run", NEW)
    tasks = make_config().stream.tasks
    planned = [{"name": task.name, "env": task.env} for task in tasks]
    whole = begin(tmp_path / "whole", **configs.merge(hidden, {"stream": {"tasks": [*planned, NEW]}}))
    assert grown.step == whole.step == 512 and segments(grown) == segments(whole)
    for part in ("policy", "optimizer", "carry", "rollout", "strategies", "strategy_shards", "torch_random"):
        assert_identical(grown.state_dict()[part], whole.state_dict()[part])
    np.testing.assert_array_equal(grown.evaluations.tensor()[-1], whole.evaluations.tensor()[-1])


@pytest.mark.parametrize(
    ("stream", "before"),
    [
        ({"cycles": 2}, [(0, 192, 0), (192, 384, 1), (384, 576, 0), (576, 768, 1)]),
        ({"schedule": "interleaved"}, [(0, 384, None)]),
        ({"schedule": {"kind": "blurry", "width": 0.5}}, [(0, 192, 0), (192, 384, 1)]),
        ({"schedule": "drift"}, [(0, 192, 0), (192, 384, 1)]),
    ],
)
def test_added_tasks_come_after_what_was_planned_whatever_the_schedule(
    stream: dict[str, Any], before: list[Any], tmp_path: Path
) -> None:
    first = begin(tmp_path / "run", stream=stream)
    assert segments(first) == before
    trainer = add(tmp_path / "run", {**NEW, "env": {"kind": "TMaze", "corridor": 3}})
    end = before[-1][1]
    assert segments(trainer) == [*before, (end, end + 128, 2)]
    assert trainer.step == end + 128 and trainer.evaluations.training_end == [
        *first.evaluations.training_end,
        end + 128,
    ]
    assert set(trainer.stream.tasks_at(end, 8).tolist()) == {2}


def test_a_random_schedule_draws_what_it_drew(tmp_path: Path) -> None:
    schedule = {"kind": "random", "every": 64}
    first = begin(tmp_path / "run", stream={"schedule": schedule})
    trainer = add(tmp_path / "run", [NEW, {**NEW, "name": "other"}])
    assert segments(trainer)[:6] == segments(first)
    assert {task for _, _, task in segments(trainer)[6:]} == {2, 3} and trainer.step == 640


def test_tasks_can_be_added_again_and_again_and_a_plain_resume_goes_on(tmp_path: Path) -> None:
    begin(tmp_path / "run", 96)
    file = tmp_path / "task.yaml"
    for name in ("third", "fourth"):
        file.write_text(yaml.safe_dump({**NEW, "name": name}))
        with pytest.raises(KeyboardInterrupt):
            run.resume(tmp_path / "run", add=[str(file)], quiet=True, on_evaluation=_interrupt)
    trainer, finished = run.resume(tmp_path / "run", quiet=True)
    assert finished and trainer.step == 384 + 2 * 128 and trainer.config.stream.added == [1, 1]
    summary = load_summary(tmp_path / "run")
    assert [task["name"] for task in summary["tasks"]] == ["maze", "opposite", "third", "fourth"]
    assert [segment["task"] for segment in summary["segments"]] == [0, 1, 2, 3]
    assert [(c["kind"], c["key"]) for c in summary["changes"]] == [("add", "stream.tasks.2"), ("add", "stream.tasks.3")]


def _interrupt(step: int, evaluations: Any) -> None:
    raise KeyboardInterrupt


def test_a_share_of_a_stream_takes_no_tasks(tmp_path: Path) -> None:
    begin(tmp_path / "run", stream={"share": 0.5})
    with pytest.raises(ConfigError, match=r"stream\.share is 0\.5"):
        add(tmp_path / "run", NEW)
    assert add(tmp_path / "run", NEW, words=("stream.share=1",)).step == 512


# ---- what grows ------------------------------------------------------------------------------------------------------

OWN_HEADS = {"policy": {"heads": "per_task", "critics": "per_task"}, "strategy": ["ewc", "gpm"]}


@pytest.mark.parametrize("cell", ["elstm", "diagonal_lstm", "gru", "lstm"])
def test_what_was_learned_keeps_every_bit_when_heads_and_task_inputs_grow(cell: str, tmp_path: Path) -> None:
    gradient = "bptt" if cell in ("gru", "lstm") else "rtrl"
    before = begin(
        tmp_path / "run",
        256,
        gradient=gradient,
        **configs.merge(OWN_HEADS, {"policy": {"cell": {"kind": cell, "size": 6}}}),
    )
    after = opened(tmp_path / "run", NEW)
    old, new = before.rollout.policy.state_dict(), after.rollout.policy.state_dict()
    grew = {name for name in old if old[name].shape != new[name].shape}
    assert {"actor.linear.weight", "actor.linear.bias"} < grew
    for name, tensor in old.items():
        assert torch.equal(new[name][_region(tensor)], tensor), name
    for name, tensor in before.learner.engine.state_dict().items():
        carry = after.learner.engine.state_dict()[name]
        assert torch.equal(carry[_region(tensor)], tensor) and carry.count_nonzero() == tensor.count_nonzero(), name
    for index, state in before.learner.optimizer.state_dict()["state"].items():
        for key, tensor in state.items():
            grown = after.learner.optimizer.state_dict()["state"][index][key]
            assert torch.equal(grown[_region(tensor)], tensor) and grown.count_nonzero() == tensor.count_nonzero(), key
            assert grown.shape == (() if key == "step" else after.learner.parameters[index].shape)


def _region(tensor: Tensor) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in tensor.shape)


@pytest.mark.parametrize("cell", ["elstm", "lstm"])
def test_the_policy_does_on_old_tasks_what_it_did(cell: str, tmp_path: Path) -> None:
    gradient = "bptt" if cell == "lstm" else "rtrl"
    policy = configs.merge(OWN_HEADS["policy"], {"cell": {"kind": cell, "size": 6}})  # type: ignore[arg-type]
    before = begin(tmp_path / "run", 256, gradient=gradient, policy=policy, strategy=["ewc", "gpm"])
    after = opened(tmp_path / "run", NEW)
    for step in range(3):
        one, two = before.rollout.collect(4), after.rollout.collect(4)
        assert torch.equal(one.chunk.action, two.chunk.action), step
        torch.testing.assert_close(one.chunk.policy, two.chunk.policy)


@pytest.mark.parametrize("cell", ["elstm", "lstm"])
def test_what_strategies_protect_stays_protected(cell: str, tmp_path: Path) -> None:
    """GPM's bases get rows of zeros where an input is new, so an update still moves no output on a stored input."""
    gradient = "bptt" if cell == "lstm" else "rtrl"
    policy = configs.merge(OWN_HEADS["policy"], {"cell": {"kind": cell, "size": 6}})  # type: ignore[arg-type]
    before = begin(tmp_path / "run", 256, gradient=gradient, policy=policy, strategy=["ewc", "gpm"])
    after = opened(tmp_path / "run", NEW)
    (ewc, gpm), (old_ewc, old_gpm) = after.strategies, before.strategies
    for name, fisher in old_ewc.importance.items():  # type: ignore[attr-defined]
        grown = ewc.importance[name]  # type: ignore[attr-defined]
        assert torch.equal(grown[_region(fisher)], fisher) and grown.count_nonzero() == fisher.count_nonzero()
    seen = old_gpm.taps.vectors(before.rollout.collect(4))  # type: ignore[attr-defined]
    with_task = gpm.taps.vectors(after.rollout.collect(4))  # type: ignore[attr-defined]
    for tap, basis in gpm.protected.items():  # type: ignore[attr-defined]
        narrow = old_gpm.protected[tap]  # type: ignore[attr-defined]
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]))
        torch.testing.assert_close(with_task[tap] @ basis, seen[tap] @ narrow)
    trainer, finished = run.resume(tmp_path / "run", add=[str(tmp_path / "opened.yaml")], quiet=True)
    assert finished and trainer.step == 512


@pytest.mark.parametrize("name", ["c_chain", "cpr", "hare_tortoise", "parseval", "spectral", "trac", "upgd"])
def test_what_strategies_keep_of_every_parameter_grows_with_it(name: str, tmp_path: Path) -> None:
    begin(tmp_path / "run", policy={"heads": "per_task"}, strategy={"kind": name, **AT_WORK.get(name, {})})
    trainer = add(tmp_path / "run", NEW)
    assert trainer.step == 512
    assert all(bool(p.isfinite().all()) for p in trainer.rollout.policy.parameters())


def test_one_head_of_one_task_becomes_the_first_of_two(tmp_path: Path) -> None:
    one = {"stream": {"tasks": [{"name": "maze", "env": {"kind": "TMaze", "corridor": 3}}]}}
    before = begin(tmp_path / "run", **configs.merge(OWN_HEADS, one))
    assert add(tmp_path / "run", NEW).rollout.policy.actor.tasks == 2 > before.rollout.policy.actor.tasks


# ---- evaluations and metrics -----------------------------------------------------------------------------------------


def test_a_new_task_is_evaluated_before_it_is_trained_and_is_not_a_number_before_that(tmp_path: Path) -> None:
    first = begin(tmp_path / "run").evaluations
    evaluations = add(tmp_path / "run", NEW).evaluations
    tensor = evaluations.tensor()
    points = len(first.steps)
    np.testing.assert_array_equal(tensor[:points, :2], first.tensor())
    assert np.isnan(tensor[:points, 2]).all() and not np.isnan(tensor[points:]).any()
    assert evaluations.steps[points - 1 : points + 1] == [384, 384] and evaluations.steps[-1] == 512
    again = metrics.Evaluations.load(tmp_path / "run/evaluation.npz")
    np.testing.assert_array_equal(again.tensor(), tensor)
    saved = load_summary(tmp_path / "run")
    assert all(np.isfinite([task["learned"], task["final"]]).all() for task in saved["tasks"])
    assert np.isfinite([saved["average_performance"], saved["forgetting"], saved["forgetting_max"]]).all()


def test_metrics_leave_out_what_there_was_not(tmp_path: Path) -> None:
    evaluations = metrics.Evaluations(["a"], [(0, 1)], [100])
    with open(tmp_path / "evaluation.jsonl", "w") as file:
        for step, value in ((0, 0.0), (100, 0.8), (200, 0.6)):
            evaluations.add(step, np.full((1, 2), value))
            file.write(evaluations.line())
    grown = metrics.Evaluations(["a", "b"], [(0, 1), (0, 2)], [100, 300])
    grown.restore(tmp_path, (tmp_path / "evaluation.jsonl").stat().st_size)
    assert not grown.complete
    grown.add(200, np.array([[0.6, 0.6], [0.0, 0.4]]))
    grown.add(300, np.array([[0.4, 0.6], [2.0, 2.0]]))
    assert grown.complete
    np.testing.assert_allclose(grown.performance(), [[0, np.nan], [0.8, np.nan], [0.6, np.nan], [0.6, 0.1], [0.5, 1.0]])
    np.testing.assert_allclose(metrics.average_performance_over_time(grown), [0, 0.8, 0.6, 0.35, 0.75])
    np.testing.assert_allclose(metrics.learned(grown), [0.8, 1.0])
    assert metrics.forgetting(grown) == pytest.approx(0.3) and metrics.forgetting_max(grown) == pytest.approx(0.3)
    alone = metrics.Evaluations(["b"], [(0, 2)], [100])
    for step, value in ((0, 0.0), (100, 2.0)):
        alone.add(step, np.full((1, 2), value))
    first = metrics.Evaluations(["a"], [(0, 1)], [100])
    for step, value in ((0, 0.0), (100, 0.8)):
        first.add(step, np.full((1, 2), value))
    np.testing.assert_allclose(metrics.forward_transfer_auc(grown, [first, alone]), [0.0, (0.55 - 0.5) / 0.5])


def test_the_report_shows_old_and_new_tasks_and_what_was_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path / "run")
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(NEW))
    assert cli.main(["resume", str(tmp_path / "run"), "--quiet", "--add", str(file)]) == 0
    assert "changed at step 384: stream.tasks.2" in capsys.readouterr().out
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "run/report.html").read_text()
    for text in (printed, page):
        assert all(word in text for word in ("maze", "opposite", "longer", "stream.tasks.2", "384"))


# ---- strategies see the boundary -------------------------------------------------------------------------------------


class Witness(Strategy):
    """Writes down the boundaries that it sees, and on which task the source's experience is."""

    seen: ClassVar[list[tuple[str, int, int | None]]] = []

    def on_task_start(self, ctx: Context) -> None:
        self.seen.append(("start", ctx.step, ctx.task))

    def on_task_end(self, ctx: Context, source: Source) -> None:
        (experience,) = source(1)
        assert set(experience.chunk.task.flatten().tolist()) == {ctx.task}
        self.seen.append(("end", ctx.step, ctx.task))


def test_strategies_see_the_end_of_the_last_old_task_and_the_start_of_the_new(tmp_path: Path) -> None:
    begin(tmp_path / "run", strategy="tests.agent.runtime.test_adding:Witness")
    Witness.seen.clear()
    add(tmp_path / "run", NEW)
    assert Witness.seen == [("end", 384, 1), ("start", 384, 2)]


# ---- what cannot be --------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ({"name": "pole", "env": "CartPole"}, "different spaces"),
        ({"name": "maze", "env": {"kind": "TMaze"}}, "used twice"),
        ({"name": "x"}, "holds no task"),
        ([], "holds no task"),
        ("words", "holds no task"),
        ({"name": "x", "env": "TMze"}, "TMaze"),
        ({"name": "x", "env": "TMaze", "stps": 5}, "steps"),
        ({"stream": {"steps_per_task": 5}}, "holds no task"),
    ],
)
def test_a_task_that_cannot_be_added_is_refused_in_a_sentence_and_nothing_is_written(
    task: Any, sentence: str, tmp_path: Path
) -> None:
    begin(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigError, match=sentence) as refused:
        add(tmp_path / "run", task)
    assert len(str(refused.value)) <= 300
    assert contents(tmp_path / "run") == before
    assert run.resume(tmp_path / "run", quiet=True)[1]


def test_padding_takes_a_smaller_task_and_refuses_a_larger(tmp_path: Path) -> None:
    pole = {"name": "pole", "env": {"kind": "CartPole"}}
    count = {"name": "count", "env": {"kind": "tests.agent.support:Constant"}, "steps": 128}
    raw = {"stream": {"tasks": [pole], "task_id": "hidden"}, "strategy": {"kind": "clear", "start": 8, "capacity": 64}}
    begin(tmp_path / "run", **raw)
    with pytest.raises(ConfigError, match=r"stream\.spaces to pad"):
        add(tmp_path / "run", count)
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigError, match="change the size of what the policy reads or does"):
        add(tmp_path / "run", {"name": "maze", "env": "TMaze"}, words=("stream.spaces=pad",))
    assert contents(tmp_path / "run") == before
    trainer = add(tmp_path / "run", count, words=("stream.spaces=pad",))  # and the replay gets a mask
    assert trainer.step == 320 and trainer.rollout.env.padded  # type: ignore[attr-defined]


def test_files_hold_a_task_a_list_or_a_config(tmp_path: Path) -> None:
    def tasks(content: Any) -> list[dict[str, Any]]:
        (tmp_path / "file.yaml").write_text(json.dumps(content))
        return adding.tasks_in(str(tmp_path / "file.yaml"))

    assert tasks(NEW) == tasks([NEW]) == tasks({"stream": {"tasks": [NEW]}}) == [NEW]
    bare = {"name": "a", "env": "TMaze"}
    assert tasks({"stream": {"tasks": [bare, NEW], "steps_per_task": 7}}) == [{"steps": 7, **bare}, NEW]
    assert [task["steps"] for task in adding.tasks_in("quickstart")] == [500_000] * 3


def test_a_run_that_was_killed_after_a_task_was_added_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    begin(tmp_path / "run")
    whole = shutil.copytree(tmp_path / "run", tmp_path / "whole")
    add(whole, NEW)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            (tmp_path / "task.yaml").write_text(yaml.safe_dump(NEW))
            more = [] if changes.read(tmp_path / "run") else [str(tmp_path / "task.yaml")]
            run.resume(tmp_path / "run", add=more, quiet=True, on_evaluation=_interrupt)
    run.resume(tmp_path / "run", quiet=True)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert (tmp_path / "run/evaluation.npz").read_bytes() == (whole / "evaluation.npz").read_bytes()
    one, two = (checkpoint.load(folder / "checkpoints")[0] for folder in (tmp_path / "run", whole))
    for state in (one, two):  # what depends on the clock
        del state["manifest"]
    assert_identical(one, two)
    assert len(json.loads((whole / "summary.json").read_text())["changes"]) == 1


def test_blocks_of_environment_runners_that_were_under_way_grow_with_the_inputs_of_the_cell(tmp_path: Path) -> None:
    """Their steps saw none of the new tasks."""
    trainer = begin(tmp_path / "run")
    width = trainer.rollout.policy.cell.input_size
    x_TBD = torch.rand(4, 2, width)
    saved = trainer.state_dict()
    working = {"rollout": {}, "block": {"arrays": {"x_TBD": x_TBD}}}
    saved["rollout"] = {"runners": [None, {"rollout": {}, "block": None}, working]}
    (tmp_path / "task.yaml").write_text(json.dumps(NEW))
    config = session.load_config(tmp_path / "run", add=[str(tmp_path / "task.yaml")])
    hand_over(saved, [], trainer.config, build(config, tmp_path / "run"))
    grown = working["block"]["arrays"]["x_TBD"]  # type: ignore[index]
    assert grown.shape == (4, 2, width + 1)
    assert torch.equal(grown[..., :-1], x_TBD) and not grown[..., -1].any()
