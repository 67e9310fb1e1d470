"""Recode: the reward against its definition, what it is added to and what it is kept from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.objectives.base import Metrics
from lifelong.agent.policy import Outputs
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.base import Context
from lifelong.agent.strategies.recode import EPS, Recode
from lifelong.replay.chunk import Chunk
from tests.agent.support import make_context, make_policy, make_trainer, random_chunk, run


def made(**options: float) -> tuple[Recode, Context, Chunk]:
    policy = make_policy("elstm")
    ctx = make_context(policy, ActorCritic(policy.distribution), 4, 5)
    recode = Recode(**options)  # type: ignore[arg-type]
    recode.setup(ctx, seed=3)
    return recode, ctx, random_chunk(policy, 5, 4)


@torch.no_grad()
def test_the_reward_is_how_far_the_novelty_of_what_an_action_led_to_is_above_the_mean() -> None:
    recode, ctx, chunk = made(weight=0.7)
    chunk.terminated.zero_()
    chunk.truncated.zero_()
    chunk.terminated[2, 1] = chunk.truncated[4, 3] = True
    assert recode.extra_reward(ctx, chunk) is None  # nothing is known yet, so nothing is newer than the rest
    known = torch.tensor([[0.3] * 32, [-0.1] * 32], dtype=torch.float64)
    recode.memory.atoms[:2], recode.memory.counts[:2] = known, torch.tensor([4.0, 1.5], dtype=torch.float64)
    recode.memory.used, recode.memory.scale = 2, 9.0
    got = recode.extra_reward(ctx, chunk)
    assert got is not None

    def novelty(e: Tensor) -> float:
        near = (known - e.double()).square().sum(1) / 9.0
        kernel = torch.where(near < 1.0, EPS / (EPS + near), 0.0)
        return float(1.0 / ((kernel * torch.tensor([5.0, 2.5])).sum().sqrt() + 0.01))

    after = torch.cat([chunk.obs[1:], chunk.next_obs[None]])
    wanted = torch.tensor([[novelty(recode.embedding(o[None])[0]) for o in row] for row in after])
    wanted = 0.7 * (wanted - wanted.mean()).clamp(min=0) / (wanted.std(correction=0) + EPS)
    wanted[2, 1] = wanted[4, 3] = 0.0
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_what_was_often_seen_earns_less_than_what_is_new() -> None:
    recode, ctx, chunk = made(rows=20)
    old = chunk
    torch.manual_seed(0)
    new = replace(chunk, obs=chunk.obs + 4.0 * torch.randn_like(chunk.obs), next_obs=chunk.next_obs + 4.0)

    class Seen:
        chunk = old

    for _ in range(30):
        recode.after_chunk(ctx, Seen())  # type: ignore[arg-type]
    with torch.no_grad():
        seen, unseen = (recode.memory.novelty(recode.embed(c).double().flatten(0, 1)).mean() for c in (old, new))
    assert unseen > 2 * seen


def test_the_embedding_learns_which_action_was_taken() -> None:
    recode, ctx, chunk = made(lr=3e-3)
    torch.manual_seed(1)
    surprises = []
    for _ in range(300):
        chunk = random_chunk(ctx.policy, 16, 16)
        chunk.terminated.zero_()
        chunk.truncated.zero_()
        for t in range(16):  # the action moves every number of the observation
            after = chunk.obs[t] + 2.0 * chunk.action[t].unsqueeze(-1)
            if t < 15:
                chunk.obs[t + 1] = after
            else:
                chunk.next_obs.copy_(after)

        class Seen:
            pass

        Seen.chunk = chunk  # type: ignore[attr-defined]
        recode.after_chunk(ctx, Seen())  # type: ignore[arg-type]
        surprises.append(recode.metrics["surprise"])
    assert sum(surprises[-10:]) < 0.5 * sum(surprises[:10])


def test_the_loss_sees_the_reward_and_replay_does_not(tmp_path: Path) -> None:
    kept: list[Tensor] = []
    learned: list[Tensor] = []
    trainer = make_trainer(tmp_path, strategy=[{"kind": "recode", "weight": 5.0}])
    recode, objective = trainer.strategies[0], trainer.learner.objective
    after_chunk, loss = recode.after_chunk, objective.loss

    def keep(ctx: Context, experience: Experience) -> None:
        kept.append(experience.chunk.reward.clone())
        after_chunk(ctx, experience)

    def learn(outputs: Outputs, chunk: Chunk, prepared: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        learned.append(chunk.reward.clone())
        return loss(outputs, chunk, prepared)

    recode.after_chunk, objective.loss = keep, learn  # type: ignore[method-assign]
    run(trainer)
    assert len(kept) == len(learned) > 3
    assert torch.equal(kept[0], learned[0])  # nothing is known in the first chunk
    assert any(not torch.equal(a, b) for a, b in zip(kept[1:], learned[1:], strict=True))
    assert all((b >= a).all() for a, b in zip(kept, learned, strict=True))  # it only adds
