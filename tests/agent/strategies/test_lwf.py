"""LwF: nothing at the boundary, its definition afterwards, and an old policy that remembers by itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiDiscrete
from torch import Tensor

from lifelong.agent.modules.heads import distribution_of
from lifelong.agent.policy import Policy, inputs_of
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.runtime.trainer import Trainer
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.lwf import LwF
from lifelong.replay.chunk import Chunk
from tests.agent.support import MAZES, make_trainer, run


def trained(folder: Path, until: int, **changes: Any) -> tuple[Trainer, LwF]:
    spec = {"kind": "lwf", "strength": 3.0, "temperature": 2.0, "value_weight": 0.7}
    trainer = make_trainer(folder, strategy=[spec], **changes)
    run(trainer, until=until)
    strategy = trainer.strategies[0]
    assert isinstance(strategy, LwF)
    return trainer, strategy


def distance(trainer: Trainer, strategy: LwF, chunk: Chunk) -> Tensor | None:
    policy = trainer.rollout.policy
    return strategy.extra_loss(trainer.context(), chunk, policy.sequence(chunk, chunk.state), chunk.copies)


def shift(policy: Policy) -> None:
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))


def test_it_is_nothing_before_and_zero_at_the_boundary_and_then_its_definition(tmp_path: Path) -> None:
    trainer, strategy = trained(tmp_path, 96)
    chunk = trainer.rollout.collect(4).chunk
    assert distance(trainer, strategy, chunk) is None and strategy.report() == {}
    strategy.on_task_end(trainer.context(), trainer.source)
    policy = trainer.rollout.policy
    old = policy.sequence(chunk, chunk.state)
    at_boundary = distance(trainer, strategy, chunk)
    assert at_boundary is not None and float(at_boundary.detach()) == pytest.approx(0.0, abs=1e-6)
    shift(policy)
    now = policy.sequence(chunk, chunk.state)
    p, q = torch.log_softmax(old.policy / 2, -1), torch.log_softmax(now.policy / 2, -1)
    each = 4 * (p.exp() * (p - q)).sum(-1) + 0.7 * (now.value - old.value) ** 2
    got = distance(trainer, strategy, chunk)
    assert got is not None
    torch.testing.assert_close(got, 3.0 * each.mean())
    got.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in policy.parameters())
    assert strategy.old is not None and not any(p.requires_grad for p in strategy.old.parameters())


class Watching(LwF):
    """Keeps the chunks that were learned from after the boundary, and the policy of the boundary."""

    def consolidate(self, ctx: Context, source: Any) -> None:
        super().consolidate(ctx, source)
        self.then, self.chunks = copy.deepcopy(ctx.policy), list[Chunk]()

    def after_chunk(self, ctx: Context, experience: Experience) -> None:
        super().after_chunk(ctx, experience)
        if self.old is not None:
            self.chunks.append(experience.chunk)


@pytest.mark.parametrize("objective", ["actor_critic", "ppo"])
def test_the_old_policy_remembers_what_it_would_have_remembered(objective: str, tmp_path: Path) -> None:
    """Its memory is that of a second rollout of the policy of the boundary over the same inputs, step by step."""
    trainer = make_trainer(
        tmp_path,
        strategy=[{"kind": f"{__name__}:Watching"}],
        objective={"kind": objective},
        optimizer={"kind": "adam", "lr": 0.02},
    )
    run(trainer, until=288)
    strategy = trainer.strategies[0]
    assert isinstance(strategy, Watching) and len(strategy.chunks) == 3
    state = strategy.chunks[0].state
    for chunk in strategy.chunks:
        inputs = inputs_of(chunk)
        for t in range(chunk.steps):
            at_t = type(inputs)(**{name: x[t] for name, x in vars(inputs).items()})
            with torch.no_grad():
                state = strategy.then.step(at_t, state, chunk.is_init[t]).state_BS
    torch.testing.assert_close(strategy.memory_BS, state)
    assert float((strategy.memory_BS - trainer.rollout.state_BS).abs().max()) > 1e-3  # the run remembers otherwise


def test_heads_of_old_tasks_are_distilled_and_that_of_the_task_in_training_is_not(tmp_path: Path) -> None:
    trainer, strategy = trained(tmp_path, 224, policy={"heads": "per_task"})
    policy = trainer.rollout.policy
    assert strategy.heads == [0]
    chunk = trainer.rollout.collect(4).chunk
    assert bool((chunk.task == 1).all())
    got = distance(trainer, strategy, chunk)
    assert got is not None
    (gradient,) = torch.autograd.grad(got, [policy.actor.linear.weight])
    old, new = gradient.view(2, -1)
    assert bool((old != 0).any()) and bool((new == 0).all())
    chunk.task = torch.zeros_like(chunk.task)  # on the old task itself its head is free to learn
    distance(trainer, strategy, chunk)
    assert strategy.report()["kl"] == 0.0


@pytest.mark.parametrize("space", [Box(-1, 1, (2,), np.float32), MultiDiscrete([2, 3])], ids=["gaussian", "multi"])
def test_a_tempered_distribution_is_its_power_normalised(space: Any) -> None:
    distribution, generator = distribution_of(space), torch.Generator().manual_seed(0)
    params = torch.randn(distribution.size, generator=generator, dtype=torch.float64)
    actions = distribution.sample(params.expand(5, -1), generator)
    flat = distribution.tempered(params, 3.0)
    gap = distribution.log_prob(params.expand(5, -1), actions) / 3 - distribution.log_prob(flat.expand(5, -1), actions)
    torch.testing.assert_close(gap, gap[:1].expand(5))


def test_with_other_copies_and_more_tasks_the_old_policy_stays_and_its_memory_begins_anew(tmp_path: Path) -> None:
    _, strategy = trained(tmp_path / "run", 224, policy={"heads": "per_task"})
    tasks = [*MAZES, {"name": "longer", "env": {"kind": "TMaze", "corridor": 4}}]
    changes = {"stream": {"tasks": tasks}, "rollout": {"copies": 6}, "policy": {"heads": "per_task"}}
    larger = make_trainer(tmp_path / "larger", strategy=["lwf"], **changes)
    other = larger.strategies[0]
    assert isinstance(other, LwF) and strategy.old is not None
    other.load_state_dict(strategy.state_dict())
    assert other.old is not None and not bool(other.known_B.any()) and other.heads == [0]
    before, after = strategy.old.actor.linear.weight, other.old.actor.linear.weight
    assert torch.equal(after[: len(before)], before) and len(after) == 9
    chunk = larger.rollout.collect(4).chunk
    loss = distance(larger, other, chunk)
    assert loss is not None and bool(loss.isfinite())
