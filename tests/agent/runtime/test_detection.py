"""Boundaries that a detector finds: the strategies hear of them, look back, and the log says how well it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from lifelong.agent.detectors.base import Detector
from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.registry import REGISTRY
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.detection import Kept, relived, verdict
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context, Source, Strategy
from lifelong.envs.stream import Blurry, Drift, Phases, Sequential, TaskStream
from lifelong.envs.tasks import Task
from tests.agent.strategies.test_conformance import AT_WORK
from tests.agent.support import assert_identical, make_rollout, make_trainer, perturb, policy_for, run, task_env

CHANGED = 192  # where the task of the small stream changes


class AtChunk(Detector):
    """Gives an alarm at chunk 8, which it says began a chunk before: at step 224 of the two mazes."""

    def update(self, values_TBD: Tensor) -> int:
        return 2 if self.age == 8 else 0


class Witness(Strategy):
    """Writes down what it is told of, and what the source gives it."""

    seen: ClassVar[list[tuple[Any, ...]]] = []

    def fresh_sequences(self, copies: int) -> int:
        return 3 * copies

    def on_task_start(self, ctx: Context) -> None:
        self.seen.append(("start", ctx.step, ctx.segment, ctx.task))

    def on_task_end(self, ctx: Context, source: Source) -> None:
        self.seen.append(("end", ctx.step, ctx.segment, ctx.task, list(source(3))))


AT_CHUNK = {"kind": "tests.agent.runtime.test_detection:AtChunk", "gap": 1}
WITNESS = "tests.agent.runtime.test_detection:Witness"


def detected(folder: Path, detector: Any = AT_CHUNK, **changes: Any) -> Any:
    stream = {"boundaries": "detected", **changes.pop("stream", {})}
    return make_trainer(folder, detector=detector, stream=stream, **changes)


@pytest.mark.parametrize("task_id", ["hidden", "observed"])
def test_strategies_are_told_of_what_is_found_and_look_back_on_the_chunks_before_it(
    task_id: str, tmp_path: Path
) -> None:
    Witness.seen.clear()
    stream = {"task_id": task_id, "steps_per_task": CHANGED}
    trainer = detected(tmp_path, strategy=[WITNESS], stream=stream)
    chunks: list[Experience] = []
    while trainer.step < 384:
        experience = trainer.advance()
        assert experience is not None
        chunks.append(experience)
    first, end, start = Witness.seen
    shown = (0, 1) if task_id == "observed" else (None, None)
    assert first == ("start", 0, 0, shown[0])
    assert end[:4] == ("end", 8 * 32, 0, shown[0]) and start == ("start", 8 * 32, 1, shown[1])
    for found, lived in zip(end[4], chunks[3:6], strict=True):  # chunks 7 and 8 are of the new context
        assert torch.equal(found.chunk.obs, lived.chunk.obs) and torch.equal(found.chunk.action, lived.chunk.action)
        assert torch.equal(found.done_TB, lived.done_TB)
    assert set(end[4][-1].chunk.task.flatten().tolist()) == {0}  # the task, or the first context


def test_nothing_is_kept_for_strategies_that_look_at_nothing(tmp_path: Path) -> None:
    trainer = detected(tmp_path, strategy=[{"kind": "explore", "steps": 100}])
    run(trainer)
    assert trainer.detection.kept == [] and trainer.strategies[0].begun == 8 * 32


# ---- what is looked back on ------------------------------------------------------------------------------------------


def lived(chunks: int, steps: int = 4, copies: int = 3) -> tuple[Any, list[Kept]]:
    env = task_env({"kind": "tests.agent.support:Buttons"}, copies=copies)
    policy = policy_for(env, size=5)
    rollout = make_rollout(env, policy)
    found = []
    for index in range(chunks):
        experience = rollout.collect(steps)
        found.append(Kept(index, experience.chunk, experience.episode_return_TB, experience.done_TB))
    return policy, found


def test_under_unchanged_parameters_it_is_what_was_lived() -> None:
    policy, kept = lived(4)
    for experience, one in zip(relived(policy, lambda n: BPTT(policy.cell, n), kept, None, 3), kept[1:], strict=True):
        for name, value in vars(experience.chunk).items():
            torch.testing.assert_close(value, getattr(one.chunk, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("engine", "exact"), [(RTRL, True), (BPTT, False)])
def test_its_gradient_is_that_of_one_graph_from_the_oldest_chunk_on(engine: type[GradientEngine], exact: bool) -> None:
    policy, kept = lived(3)
    assert any(bool(one.chunk.is_init[1:].any()) for one in kept[1:])  # a reset inside
    perturb(policy)  # since then the policy has learned
    *_, last = relived(policy, lambda n: engine(policy.cell, n), kept, 5, 1)
    assert set(last.chunk.task.flatten().tolist()) == {5}
    outputs = policy.sequence(last.chunk, torch.cat([last.start(b) for b in range(3)]))
    got = torch.autograd.grad(outputs.value.sum() + outputs.policy.sum(), list(policy.cell.parameters()))
    state = kept[0].chunk.state
    for one in kept:
        x = policy.encode(_inputs(one))
        y, after = policy.cell.sequence(x, state, one.chunk.is_init)
        state, before = after, state
    torch.testing.assert_close(last.chunk.state, before)
    whole = policy.heads(y, _inputs(kept[-1]))
    torch.testing.assert_close(last.chunk.value, whole.value.detach())
    expected = torch.autograd.grad(whole.value.sum() + whole.policy.sum(), list(policy.cell.parameters()))
    equal = [torch.allclose(a, b, atol=1e-5, rtol=1e-4) for a, b in zip(got, expected, strict=True)]
    assert all(equal) == exact


def _inputs(one: Kept) -> Any:
    from lifelong.agent.policy import inputs_of

    return inputs_of(one.chunk)


# ---- through the trainer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGISTRY["detector"])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(name: str, tmp_path: Path) -> None:
    eager = {"cusum": {"threshold": 0.5, "drift": 0.1, "warm_up": 2}, "recode_novelty": {"threshold": 0.0, "memory": 2}}
    eager |= {"distribution_shift": {"window": 1, "alpha": 0.5, "size": 0.0}, "nearest_mean": {"radius": 0.05}}
    eager |= {"one_class": {"share": 0.0, "memory": 2, "outside": 0.3}}
    spec = {"kind": name, "gap": 2, "rows": 8, **eager[name]}
    if name not in ("cusum", "distribution_shift"):
        spec["patience"] = 1
    strategies = [{"kind": "ewc", "sequences": 8}, {"kind": "gpm", "chunks": 2}]

    def make(folder: str) -> Any:
        return detected(tmp_path / folder, spec, strategy=strategies)

    whole, first = make("whole"), make("cut")
    run(whole)
    assert whole.detection.alarms, "it never acted"
    run(first, until=160)
    second = make("cut")
    saved, damaged = checkpoint.load(tmp_path / "cut" / "checkpoints")
    assert not damaged
    second.load_state_dict(saved)
    second.evaluations = first.evaluations
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize("name", REGISTRY["strategy"])
def test_every_strategy_works_with_boundaries_that_are_found(name: str, tmp_path: Path) -> None:
    spec = {"kind": name, **AT_WORK.get(name, {})}
    try:
        trainer = detected(tmp_path, strategy=[spec], stream={"task_id": "hidden"})
    except ConfigError as error:
        assert "set stream.task_id to observed" in str(error)
        trainer = detected(tmp_path, strategy=[spec], stream={"task_id": "observed"})
    log = run(trainer)
    assert all(bool(p.isfinite().all()) for p in trainer.rollout.policy.parameters())
    assert log.seen["detector/alarms"] == 1.0 and log.seen["detector/delay"] == 256 - CHANGED


def test_units_that_were_reset_are_forgotten_in_what_is_kept(tmp_path: Path) -> None:
    trainer = detected(tmp_path, strategy=["ewc"])
    for _ in range(3):
        trainer.advance()
    trainer.forget(torch.tensor([1, 4]))
    for one in trainer.detection.kept:
        assert not one.chunk.state[:, [1, 4]].any() and (one is trainer.detection.kept[0] or one.chunk.state.any())


def test_a_detector_that_is_chosen_and_would_not_be_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one_class is asked only where stream\.boundaries is detected"):
        make_trainer(tmp_path, detector="one_class")


def test_another_detector_in_a_trained_run_starts_afresh_and_the_alarms_stay(tmp_path: Path) -> None:
    from lifelong.agent.runtime import changes, handover

    trainer = detected(tmp_path / "a", strategy=["ewc"])
    run(trainer, until=288)
    saved, _ = checkpoint.load(tmp_path / "a" / "checkpoints")
    other = detected(tmp_path / "b", "one_class", strategy=["ewc"])
    found = changes.between(trainer.config, other.config)
    assert [(c.key, c.note) for c in found] == [("detector", "what the detector knows")]
    handover.hand_over(saved, found, trainer.config, other)
    other.load_state_dict(saved)
    assert other.detection.alarms == [256] and other.detection.detector.age == 0
    run(other)


# ---- beside the truth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "alarms", "step", "expected"),
    [
        ([], [], 500, {"alarms": 0, "false_alarms": 0, "missed": 0}),
        ([], [10, 20], 500, {"alarms": 2, "false_alarms": 2, "missed": 0}),
        ([100], [], 120, {"alarms": 0, "false_alarms": 0, "missed": 0}),  # may still be found
        ([100], [130], 150, {"alarms": 1, "false_alarms": 0, "missed": 0, "delay": 30}),
        ([100, 200], [130, 140, 210], 300, {"alarms": 3, "false_alarms": 1, "missed": 0, "delay": 20}),
        ([100, 200], [90, 210], 300, {"alarms": 2, "false_alarms": 1, "missed": 1, "delay": 10}),
        ([100, 200], [200], 300, {"alarms": 1, "false_alarms": 0, "missed": 0, "delay": 100}),
    ],
)
def test_alarms_are_judged_by_the_truth(
    changes: list[int], alarms: list[int], step: int, expected: dict[str, float]
) -> None:
    assert verdict(changes, alarms, step) == pytest.approx(expected)


def test_what_was_not_found_when_the_stream_is_over_is_missed() -> None:
    assert verdict([100], [], 120, over=True)["missed"] == 1.0


def test_the_stream_knows_where_its_task_changes() -> None:
    tasks = [Task.from_spec(f"t{i}", {"kind": "CartPole", "gravity": 9.0 + i}, 100) for i in range(3)]
    steps = [100, 100, 100]
    assert TaskStream(tasks, Sequential(steps, 2, 0)).changes == [100, 200, 300, 400, 500]
    assert TaskStream(tasks[:1], Sequential(steps[:1], 3, 0)).changes == []
    assert TaskStream(tasks, Blurry(steps, 1, 0, width=0.5)).changes == [75, 175]
    assert TaskStream(tasks, Drift(steps, 1, 0)).changes == [50, 150]
    phases = Phases([Blurry(steps[:2], 1, 0, width=0.5), Sequential(steps[:1], 1, 0)])
    assert TaskStream(tasks, phases).changes == [75, 200]
