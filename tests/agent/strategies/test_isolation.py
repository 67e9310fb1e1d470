"""Views: what belongs to old tasks is bit-identical, whatever later tasks do; a swap leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.agent.errors import ConfigError
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.gradients.rtrl import RTRL
from lifelong.agent.moments import moments
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.strategies.base import Context, Strategy
from lifelong.agent.strategies.componet import CompoNet
from lifelong.agent.strategies.dst import DST
from lifelong.agent.strategies.isolation import Isolation, Masked
from lifelong.agent.strategies.packnet import PackNet
from lifelong.agent.strategies.progressive import Progressive
from lifelong.agent.strategies.shrink_perturb import ShrinkPerturb
from tests.agent.gradients.test_rtrl import EXACT, B, split
from tests.agent.group import in_group
from tests.agent.runtime.test_adding import NEW, add, begin
from tests.agent.support import (
    CELLS,
    UNIT_CELLS,
    act_through,
    assert_identical,
    make_context,
    make_policy,
    make_trainer,
    random_chunk,
    run,
)

T = 5
MASKED: dict[str, Callable[[], Masked]] = {
    "packnet": lambda: PackNet(keep=0.4),
    "dst": lambda: DST(density=0.4, period=2),
    "progressive": lambda: Progressive(columns=4),
    "componet": lambda: CompoNet(columns=4),
}
SPECS: dict[str, dict[str, Any]] = {
    "packnet": {"kind": "packnet", "prune_after": 96},
    "dst": {"kind": "dst", "density": 0.4, "period": 3, "growth": "set"},
    "progressive": {"kind": "progressive"},
    "componet": {"kind": "componet"},
}
every_mask = pytest.mark.parametrize("name", MASKED)
MLP = {"encoder": {"kind": "mlp", "hidden": [9, 8]}}


class Life:
    """A policy that trains on random chunks through the learner, one task after the other."""

    def __init__(
        self, strategies: list[Strategy], cell: str = "elstm", tasks: int = 4, optimizer: str = "adamw", **options: Any
    ) -> None:
        composed = any(strategy.composes for strategy in strategies)
        self.policy = make_policy(cell, 8, tasks=tasks, composed=composed, **{**MLP, **options})
        make = {
            "adamw": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1),
            "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01),
        }[optimizer]
        self.optimizer: torch.optim.Optimizer = make(self.policy.parameters())
        self.strategies, self.segment, self.seed = strategies, -1, 0
        objective = ActorCritic(self.policy.distribution)
        engine = GradientEngine(self.policy.cell, 4)
        self.learner = Learner(self.policy, engine, objective, self.optimizer, strategies, 1.0, torch.Generator())
        for index, strategy in enumerate(strategies):
            strategy.setup(self.ctx(None), index)

    def ctx(self, task: int | None) -> Context:
        ctx = make_context(self.policy, self.learner.objective, 4, T, task=task, segment=self.segment)
        return replace(ctx, optimizer=self.optimizer)

    def start(self, task: int | None) -> list[Tensor]:
        """A segment begins; the units that are said to begin anew."""
        self.segment += 1
        told = [strategy.on_task_start(self.ctx(task)) for strategy in self.strategies]
        return [units for units in told if units is not None]

    def train(self, task: int | None, updates: int = 6) -> None:
        for _ in range(updates):
            self.seed += 1
            chunk = random_chunk(self.policy, T, 4, seed=self.seed)
            if self.policy.actor.tasks > 1:
                chunk.task += task or 0
            experience, _ = act_through(self.policy, chunk)
            self.learner.update(self.ctx(task), experience)
            for strategy in self.strategies:
                strategy.after_chunk(self.ctx(task), experience)

    def outputs(self, task: int) -> Tensor:
        """Of the policy as it is, on data that is always the same."""
        chunk = random_chunk(self.policy, 7, 4, seed=99)
        chunk.task += task if self.policy.actor.tasks > 1 else 0
        with torch.no_grad():
            said = self.policy.sequence(chunk, chunk.state)
        return torch.cat([said.policy, said.value.unsqueeze(-1)], -1)

    def seen(self, task: int) -> Tensor:
        """The same under the view of a task."""
        with ExitStack() as stack:
            for strategy in self.strategies:
                stack.enter_context(strategy.evaluation_view(self.ctx(None), task))
            return self.outputs(task)

    def values(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.policy.named_parameters()}


def lived(strategy: Isolation, order: list[int], **options: Any) -> tuple[Life, dict[int, Tensor]]:
    """A life through the tasks, and what was said when each was left."""
    life, said = Life([strategy], **options), {}
    for index, task in enumerate(order):
        life.start(task)
        if index:
            said[order[index - 1]] = life.seen(order[index - 1])
        life.train(task)
    return life, said


# ---- old tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["shared", "per_task"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("cell", ["elstm", "lstm"])
@every_mask
def test_a_view_says_bit_for_bit_what_it_said_when_its_task_was_left(
    name: str, cell: str, optimizer: str, heads: str
) -> None:
    """Momentum and weight decay would move what has no gradient; a free critic may move."""
    life, said = lived(MASKED[name](), [2, 0, 1, 3], cell=cell, optimizer=optimizer, heads=heads)
    assert list(said) == [2, 0, 1]
    for task, then in said.items():
        assert torch.equal(life.seen(task), then)
        assert not torch.equal(life.outputs(task), then)
    assert len({tuple(x.flatten().tolist()) for x in said.values()}) == 3


@every_mask
def test_strategies_that_write_to_parameters_themselves_do_not_reach_what_is_held(name: str) -> None:
    strategy = MASKED[name]()
    life = Life([ShrinkPerturb(shrink=0.01, noise=0.1, recurrence=True), strategy])
    life.start(0)
    life.train(0)
    life.start(1)
    then = life.seen(0)
    life.train(1)
    live, masks = life.values(), strategy.masks[1]
    for parameter, frozen in strategy.frozen.items():
        reads = masks[parameter] & frozen
        assert torch.equal(live[parameter][reads], strategy.store[parameter][reads])
        assert not bool(live[parameter][~masks[parameter]].any())
    assert torch.equal(life.seen(0), then)


@every_mask
def test_the_step_that_other_strategies_see_has_nothing_of_what_is_held(name: str) -> None:
    class Listen(Strategy):
        def transform_update(self, ctx: Context, deltas: Mapping[str, Tensor]) -> None:
            steps.append({n: x.clone() for n, x in deltas.items()})

    steps: list[dict[str, Tensor]] = []
    strategy = MASKED[name]()
    life = Life([strategy, Listen()])
    for task in (0, 1):
        life.start(task)
        life.train(task, 1)
    for n, movable in strategy.movable.items():
        assert bool(steps[-1][n][movable].all()) and not bool(steps[-1][n][~movable].any())


@every_mask
def test_other_strategies_are_told_of_what_a_switch_has_changed(name: str) -> None:
    told: list[dict[str, Tensor]] = []

    class Listen(Strategy):
        def on_reset(self, ctx: Context, entries: Mapping[str, Tensor]) -> None:
            told.append({n: mask.clone() for n, mask in entries.items()})

    strategy = MASKED[name]()
    life = Life([strategy])
    life.start(0)
    life.train(0)
    before = life.values()
    strategy.on_task_start(replace(life.ctx(1), strategies=(strategy, Listen())))
    for n, value in life.values().items():
        changed = torch.stack([entries[n] for entries in told if n in entries]).any(0)
        assert bool(changed[value != before[n]].all())
    assert bool(told[-1]["actor.linear.weight"].any())


@every_mask
def test_a_task_that_comes_back_finds_its_view_and_moves_only_what_it_alone_has(name: str) -> None:
    strategy = MASKED[name]()
    life, said = lived(strategy, [0, 1, 2])
    life.start(0)
    said[2] = life.seen(2)
    assert torch.equal(life.outputs(0), said[0])
    shared = {n: p for n, p in life.values().items() if n in strategy.store}
    life.train(0)
    assert not torch.equal(life.outputs(0), said[0])  # head and biases learn on
    assert all(torch.equal(life.values()[n], value) for n, value in shared.items())
    assert torch.equal(life.seen(1), said[1]) and torch.equal(life.seen(2), said[2])


@every_mask
def test_a_free_critic_learns_on_in_every_view(name: str) -> None:
    strategy = MASKED[name]()
    strategy.critic = "free"
    life, said = lived(strategy, [0, 1, 2])
    critic = life.policy.critic.weight.detach().clone()
    for task, then in said.items():
        now = life.seen(task)
        assert torch.equal(now[..., :-1], then[..., :-1]) and not torch.equal(now[..., -1], then[..., -1])
    life.start(3)
    assert torch.equal(life.policy.critic.weight, critic)


# ---- the swap --------------------------------------------------------------------------------------------------------


@every_mask
def test_an_evaluation_leaves_no_trace_even_if_it_fails(name: str) -> None:
    life, _ = lived(MASKED[name](), [0, 1, 2])
    before = life.values()
    for task in (0, 1, 2, 3):
        life.seen(task)
    with pytest.raises(RuntimeError, match="stop"), life.strategies[0].evaluation_view(life.ctx(None), 0):
        assert not torch.equal(life.values()["actor.linear.weight"], before["actor.linear.weight"])
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[n]) for n, value in life.values().items())
    assert torch.equal(life.seen(2), life.outputs(2)) and torch.equal(life.seen(3), life.outputs(3))


def test_views_of_two_strategies_lie_in_one_another() -> None:
    """The inner one is what is seen, and both put back what they found."""
    outer, inner = PackNet(keep=0.5), PackNet(keep=0.5)
    life = Life([outer, inner])
    for task in range(3):
        life.start(task)
        life.train(task)
    before, expected = life.values(), inner.view(0)
    with outer.evaluation_view(life.ctx(None), 0), inner.evaluation_view(life.ctx(None), 0):
        assert all(torch.equal(life.values()[n], value) for n, value in expected.items())
    assert all(torch.equal(value, before[n]) for n, value in life.values().items())


@every_mask
def test_acting_with_cached_weights_sees_the_view(name: str) -> None:
    """Read-outs are cached by the version of the weights."""
    life, _ = lived(MASKED[name](), [0, 1])
    policy, strategy = life.policy, life.strategies[0]
    with torch.no_grad():
        policy.read_out()
        with strategy.evaluation_view(life.ctx(None), 0):
            weight = policy.read_out()[0]
            assert torch.equal(weight, torch.cat([policy.actor.linear.weight, policy.critic.weight]))
        assert torch.equal(policy.read_out()[0], torch.cat([policy.actor.linear.weight, policy.critic.weight]))
        assert not torch.equal(policy.read_out()[0], weight)


@every_mask
def test_a_new_view_starts_without_moments_memory_and_carry(name: str) -> None:
    strategy = MASKED[name]()
    life = Life([strategy])
    assert life.start(0) == []
    life.train(0)
    assert life.start(0) == [] and life.optimizer.state  # the same task goes on
    life.train(0, 1)
    (units,) = life.start(1)
    assert units.tolist() == list(range(8))
    assert not life.optimizer.state
    life.train(1, 1)
    for parameter, movable in strategy.movable.items():
        for kept in moments(life.optimizer, life.policy.get_parameter(parameter)).values():  # type: ignore[arg-type]
            assert not bool(kept[~movable].any())


def test_through_the_trainer_memory_and_carry_are_zero_after_a_border_where_episodes_go_on(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strategy=[SPECS["packnet"]], policy={"reset_memory_on": "never"})
    run(trainer, until=192)
    assert trainer.rollout.state_dict()["state"].any()
    trainer.follow_stream()
    assert not trainer.rollout.state_dict()["state"].any()
    assert not any(bool(x.any()) for x in trainer.learner.engine.state_dict().values())


def test_before_any_boundary_and_with_all_tasks_at_once_nothing_is_withheld(tmp_path: Path) -> None:
    """A strategy that is taken up in the middle of a run waits for the next boundary; `interleaved` has one segment."""
    life = Life([PackNet()])
    before = life.values()
    life.train(None)
    assert all(not torch.equal(value, before[n]) for n, value in life.values().items())
    trainer = make_trainer(tmp_path, strategy=["packnet"], stream={"schedule": "interleaved"})
    run(trainer)
    assert trainer.strategies[0].report()["tasks"] == 1


def test_hidden_boundaries_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"packnet needs task boundaries.*set it to given or detected$"):
        make_trainer(tmp_path, strategy=["packnet"], stream={"boundaries": "hidden"})
    with pytest.raises(ConfigError, match=r"packnet needs to know the task.*set stream\.task_id to observed"):
        make_trainer(tmp_path, strategy=["packnet"], stream={"boundaries": "detected", "task_id": "hidden"})


# ---- through the trainer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["shared", "per_task"])
@pytest.mark.parametrize("name", SPECS)
def test_the_returns_of_a_task_never_change_once_it_was_left(name: str, heads: str, tmp_path: Path) -> None:
    """Every evaluation draws the same episodes, so equal views get equal returns to the last bit."""
    if name == "componet" and heads == "per_task":
        with pytest.raises(ConfigError, match=r"policy\.heads is per_task, but strategy componet composes heads"):
            make_trainer(tmp_path, strategy=[SPECS[name]], policy={"heads": heads})
        return
    trainer = make_trainer(
        tmp_path,
        strategy=[SPECS[name], "l2_init"],
        stream={"cycles": 1, "steps_per_task": 256},
        policy={"heads": heads, "encoder": {"kind": "mlp", "hidden": [6]}},
        evaluation={"every": 64, "episodes": 16},
        optimizer={"kind": "adamw", "lr": 0.05, "weight_decay": 0.1},
    )
    run(trainer)
    steps, tensor = np.array(trainer.evaluations.steps), trainer.evaluations.tensor()
    assert steps.tolist() == [0, 64, 128, 192, 256, 320, 384, 448, 512]
    maze = tensor[steps >= 256, 0]
    np.testing.assert_array_equal(maze, np.broadcast_to(maze[0], maze.shape))
    assert len(np.unique(tensor[:, 1], axis=0)) > 1  # while the other task has moved


def _group(workers: Any, folder: Path) -> dict[str, Any]:
    from lifelong.agent.runtime.build import build
    from tests.agent.support import make_config

    trainer = build(make_config(strategy=[SPECS["packnet"]]), folder, workers)
    run(trainer)
    return {"policy": trainer.rollout.policy.state_dict(), "strategy": trainer.strategies[0].state_dict()}


def test_two_workers_have_the_same_views(tmp_path: Path) -> None:
    first, second = in_group(2, tmp_path, {"packnet": _group})["packnet"]
    assert_identical(first, second)


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("cell", EXACT)
def test_the_gradient_of_what_may_move_is_exact_in_a_later_view(name: str, cell: str) -> None:
    """One graph over three chunks in the view of the second task, resets inside and on a border; BPTT is truncated."""
    strategy = MASKED[name]()
    if name in ("progressive", "componet") and cell in CELLS and cell not in UNIT_CELLS:
        with pytest.raises(ValueError, match="hear each other"):
            lived(strategy, [0, 1], cell=cell, encoder={"kind": "identity"})
        return
    life, _ = lived(strategy, [0, 1], cell=cell, encoder={"kind": "identity"})
    policy = life.policy.double()
    movable = {n: m for n, m in strategy.movable.items() if n.startswith("cell.") and bool(m.any())}
    data = random_chunk(policy, 12, B, dtype=torch.float64)
    data.is_init[:] = False
    data.is_init[3, 3] = data.is_init[4, 2] = True
    parts = split(policy, data, 4)
    names = [n for n in movable if n.removeprefix("cell.") in RTRL(policy.cell, B).exact_parameters()]  # type: ignore[arg-type]
    assert names

    def loss(outputs: Any) -> Tensor:
        return (outputs.policy.square().mean() + outputs.value.mean()) * 3

    def gradients() -> dict[str, Tensor]:
        found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
        strategy.transform_gradients(life.ctx(1), found)
        return found

    policy.zero_grad()
    state, total = parts[0].chunk.state, torch.zeros((), dtype=torch.float64)
    for part in parts:
        total = total + loss(policy.sequence(part.chunk, state))
        x_TBD = policy.encoder(part.chunk.obs.flatten(0, 1)).view(4, B, -1)
        _, state = policy.cell.sequence(x_TBD, state, part.chunk.is_init)
    total.backward()
    expected = gradients()

    def error(engine: GradientEngine) -> float:
        policy.zero_grad()
        for part in parts:
            trace = engine.trace(part.x_TBD, part.state_TBS, part.chunk.is_init)
            loss(policy.sequence(part.chunk, engine.attach(part.chunk.state))).backward()
            engine.advance(trace)
        got = gradients()
        return max(float((got[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in names)

    assert error(RTRL(policy.cell, B)) < 1e-10  # type: ignore[arg-type]
    assert error(BPTT(policy.cell, B)) > 1e-3
    for n in names:
        assert not bool(expected[n][~movable[n]].any())


# ---- new tasks of a finished run -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", [SPECS["packnet"], SPECS["dst"], {"kind": "progressive", "columns": 3}], ids=lambda spec: spec["kind"]
)
def test_a_task_added_to_a_finished_run_is_trained_and_changes_no_return_of_the_others(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    begin(tmp_path / "run", strategy=[spec, "l2_init"], policy={"heads": "per_task"}, optimizer={"lr": 0.05})
    trainer = add(tmp_path / "run", NEW)
    strategy: Any = trainer.strategies[0]
    assert strategy.order == [0, 1, 2] and any(bool(m.any()) for m in strategy.movable.values())
    steps, tensor = np.array(trainer.evaluations.steps), trainer.evaluations.tensor()
    assert steps[-1] == 512 and 384 in steps
    for task in (0, 1):
        ended = tensor[steps >= 192 * (task + 1), task]
        np.testing.assert_array_equal(ended, np.broadcast_to(ended[0], ended.shape))


# ---- a policy that grows ---------------------------------------------------------------------------------------------


def grown_policy(policy: Policy, **options: Any) -> Policy:
    """A policy with another task, whose old entries are those of `policy` (as `resume --add` makes it)."""
    options = {"task_observed": True, "composed": policy.composed, **options, **MLP}
    new = make_policy("elstm", 8, tasks=policy.tasks + 1, seed=5, **options)
    for name, parameter in policy.named_parameters():
        with torch.no_grad():
            new.get_parameter(name)[tuple(slice(0, n) for n in parameter.shape)] = parameter
    return new


@every_mask
def test_a_policy_that_gets_a_task_keeps_its_views_and_trains_the_new_one(name: str) -> None:
    heads = "shared" if name == "componet" else "per_task"
    life, said = lived(MASKED[name](), [0, 1, 2], tasks=3, heads=heads, task_observed=True)
    later = Life([MASKED[name]()], tasks=4, heads=heads, task_observed=True)
    new = grown_policy(life.policy, heads=heads)
    later.policy.load_state_dict(new.state_dict())
    later.segment = life.segment
    strategy: Any = later.strategies[0]
    strategy.load_state_dict(life.strategies[0].state_dict())
    for task, then in said.items():
        torch.testing.assert_close(later.seen(task), then, rtol=1e-5, atol=1e-6)
    exact = {task: later.seen(task) for task in said}
    head = later.policy.actor.linear.weight.detach().clone()
    later.start(3)
    exact[2] = later.seen(2)
    later.train(3)
    for task, then in exact.items():
        assert torch.equal(later.seen(task), then)
    new_rows = slice(len(head) // 4 * 3, None)
    assert not torch.equal(later.policy.actor.linear.weight[new_rows], head[new_rows])
