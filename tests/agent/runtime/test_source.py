"""What strategies consolidate from: the steps of whole episodes of the task that ended, with their history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent import config as configs
from lifelong.agent.policy import inputs_of
from lifelong.agent.runtime.build import build
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context, Source
from lifelong.agent.strategies.ewc import fisher_diagonal


def trainer_of(folder: Path, **changes: Any) -> Trainer:
    maze = {"kind": "TMaze", "corridor": 10}
    raw = {
        "name": "x",
        "stream": {"tasks": [{"name": "a", "env": maze}, {"name": "b", "env": {**maze, "reversed": 1}}]},
        "policy": {"cell": {"kind": "elstm", "size": 8}, "encoder": "identity"},
        "gradient": "rtrl",
        "rollout": {"copies": 16, "steps": 4},
        "runtime": {"device": "cpu"},
    }
    raw["stream"]["steps_per_task"] = 2560
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
    return build(configs.check(raw), folder)


def test_every_step_of_an_episode_is_seen_equally_often(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.advance()
    seen = [e.chunk for e in trainer.source(30)]
    weight = torch.cat([chunk.weight.flatten() for chunk in seen])
    obs = torch.cat([chunk.obs.flatten(0, 1) for chunk in seen])
    length = 11  # corridor and junction
    for name, share in (("cue", (obs[:, 0] != 0)), ("junction", (obs[:, 1] != 0))):
        assert float(share.float().sum() / weight.sum()) == pytest.approx(1 / length, abs=0.015), name
    assert not obs[weight == 0].any()  # what was played after a copy's last episode cannot be seen


def test_a_score_has_the_whole_history_behind_it(tmp_path: Path) -> None:
    """The gradient through `start` equals backpropagation through all steps since the episode began."""
    trainer = trainer_of(tmp_path, rollout={"copies": 4, "steps": 4})
    rollout, _ = trainer.fresh.rollout(0)
    rollout.start()
    engine = trainer.fresh.engine(4)
    parts: list[Experience] = []
    for _ in range(2):
        experience = rollout.collect(4)
        parts.append(Experience(experience.chunk, *_rest(experience), engine=trainer.fresh.engine(4)))
        parts[-1].engine.load_state_dict(engine.state_dict())  # type: ignore[union-attr]
        engine.advance(engine.trace(experience.x_TBD, experience.state_TBS, experience.chunk.is_init))
    policy = trainer.rollout.policy
    cell = dict(policy.named_parameters())["cell.weight_input"]

    def gradient(state: Tensor, chunk: Any) -> Tensor:
        outputs = policy.sequence(chunk, state)
        return torch.autograd.grad(outputs.value.square().sum(), cell)[0]

    one = torch.tensor([1])
    second = parts[1].chunk.select(one)
    exact = gradient(parts[1].start(1), second)
    first = parts[0].chunk.select(one)
    whole_state = policy.cell.sequence(policy.encode(inputs_of(first)), first.state, first.is_init)[1]
    outputs = policy.sequence(second, whole_state)
    expected = torch.autograd.grad(outputs.value.square().sum(), cell)[0]
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-6)
    truncated = gradient(second.state, second)
    assert float((truncated - expected).norm() / expected.norm()) > 1e-3


def _rest(experience: Experience) -> tuple[Tensor, ...]:
    return experience.x_TBD, experience.state_TBS, experience.episode_return_TB, experience.done_TB


@pytest.mark.parametrize("width", [0.25, 0.5, 1.0])
def test_at_a_soft_border_a_task_ends_with_the_last_copy_that_trains_it(tmp_path: Path, width: float) -> None:
    trainer = trainer_of(tmp_path, stream={"schedule": {"kind": "blurry", "width": width}}, strategy=[{"kind": "ewc"}])
    told: list[tuple[int, int | None, int]] = []

    def spy(ctx: Context, source: Source) -> None:
        (experience,) = source(1)
        told.append((ctx.step, ctx.task, int((experience.chunk.task != 0).sum())))

    trainer.strategies[0].on_task_end = spy  # type: ignore[method-assign]
    last = 0
    while trainer.step < trainer.stream.total_steps:
        begun = trainer.step
        trainer.advance()
        if bool((trainer.rollout.env.task_B == 0).any()):
            last = begun + trainer.frames
    assert [(task, others) for _, task, others in told] == [(0, 0)]
    assert abs(told[0][0] - last) <= 2 * trainer.frames
    assert abs(trainer.stream.training_end(0) - last) <= 2 * trainer.frames
    assert trainer.stream.training_end(0) == 2560 + 2560 * width / 2


def test_under_drift_a_task_ends_when_the_parameters_are_nearer_to_the_next_ones(tmp_path: Path) -> None:
    pole = [{"name": f"p{i}", "env": {"kind": "CartPole", "length": 0.5 + 0.5 * i}} for i in range(3)]
    changes = {"tasks": pole, "schedule": "drift", "steps_per_task": 640}
    trainer = trainer_of(tmp_path, stream=changes, strategy=[{"kind": "ewc", "sequences": 4}])
    told: list[tuple[int, int | None, list[float]]] = []

    def spy(ctx: Context, source: Source) -> None:
        list(source(1))
        told.append((ctx.step, ctx.task, [trainer.stream.params_at(ctx.step)["length"]]))

    trainer.strategies[0].on_task_end = spy  # type: ignore[method-assign]
    while trainer.step < trainer.stream.total_steps:
        trainer.advance()
    assert told == [(320, 0, [0.75]), (960, 1, [1.25])]
    assert [trainer.stream.training_end(task) for task in range(3)] == [320, 960, 1920]
    assert trainer.evaluations.training_end == [320, 960, 1920]


def test_prediction_copies_without_a_target_count_nothing(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    (experience,) = trainer.source(1)
    chunk = experience.chunk
    weight = chunk.weight * (torch.arange(16) < 3)
    names = ["actor.linear.weight"]
    generator = torch.Generator().manual_seed(0)
    some = fisher_diagonal(trainer.rollout.policy, chunk, generator, names, weight=weight)
    only = fisher_diagonal(
        trainer.rollout.policy, chunk.select(torch.arange(3)), torch.Generator().manual_seed(0), names
    )
    torch.testing.assert_close(some[names[0]], only[names[0]])
