"""What is learned from old data aims at the values of the critic as it is now."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.agent import registry
from lifelong.agent.gradients.base import GradientEngine
from lifelong.agent.objectives import actor_critic
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Inputs, Outputs, Policy, inputs_of
from lifelong.agent.runtime.learner import Learner
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.agent.strategies.clear import CLEAR
from lifelong.agent.strategies.er import ER
from lifelong.agent.strategies.replaying import Replaying
from lifelong.replay.chunk import Chunk, concatenate
from tests.agent.support import CELLS, COUNT, Constant, make_context, make_rollout, policy_for, random_truncations
from tests.agent.support import task_env as make_env

T, B = 9, 7


@torch.no_grad()
def perturb(policy: Policy, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def cut_rollout(cell: str = "elstm", *, inputs: bool = False, **options: Any) -> Rollout:
    """Episodes of 2 to 7 steps that are truncated, in a chunk of nine; one copy's end of themselves."""
    env = make_env({"kind": COUNT, "ten": 0.1, "length": 50}, copies=B)
    random_truncations(env, 2, 8)
    env.envs[0].set_params(torch.arange(B) == 3, length=4)
    options |= {"previous_action": True, "previous_reward": True} if inputs else {}
    return make_rollout(env, policy_for(env, cell=cell, **options))


def acted(rollout: Rollout) -> tuple[Experience, list[Tensor]]:
    """A chunk of a later time, and the true observations after each of its steps."""
    rollout.collect(5)
    finals, step = [], rollout.env.step

    def remember(action: Any) -> Any:
        result = step(action)
        finals.append(result[4]["final_obs"])
        return result

    rollout.env.step = remember  # type: ignore[method-assign]
    rollout._compiled = lambda steps: None  # type: ignore[method-assign]
    return rollout.collect(T), finals


@torch.no_grad()
def now(policy: Policy, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """What the policy says of the time after a chunk."""
    outputs = policy.sequence(chunk, chunk.state)
    assert outputs.after is not None
    return outputs.after()


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_the_values_after_a_chunk_are_those_of_the_critic_as_it_is_now(cell: str, inputs: bool, dense: bool) -> None:
    rollout = cut_rollout(cell, inputs=inputs)
    policy = rollout.policy
    experience, finals = acted(rollout)
    chunk, after_last = experience.chunk, rollout.inputs()
    pure = chunk.truncated & ~chunk.terminated
    assert int(pure.sum(0).max()) == chunk.slots > 2 and bool(chunk.terminated.any())
    perturb(policy)
    with torch.no_grad():
        outputs = policy.sequence(chunk, chunk.state)
        bootstrap_B, final_TB = outputs.after(dense=dense)  # type: ignore[call-arg, misc]
        last_BS, memories = chunk.state, []  # one step after the other, as the policy would act now
        rows = inputs_of(chunk)
        for t in range(T):
            here = Inputs(*(getattr(rows, name)[t] for name in vars(rows)))
            last_BS = policy.step(here, last_BS, chunk.is_init[t]).state_BS
            memories.append(last_BS)
        expected = policy.step(after_last, last_BS, rollout.is_init).outputs.value
        torch.testing.assert_close(bootstrap_B, expected)
        assert not final_TB[~pure].any()
        for t, b in pure.nonzero().tolist():
            one = slice(b, b + 1)
            features = policy.distribution.features(chunk.action[t, one])
            last = Inputs(
                finals[t][one],
                features if inputs else features[:, :0],
                chunk.reward[t, one],
                chunk.task[t, one],
                chunk.action_mask[t, one],
            )
            value = policy.step(last, memories[t][one], torch.zeros(1, dtype=torch.bool)).outputs.value
            torch.testing.assert_close(final_TB[t, one], value)
    assert float((final_TB - chunk.final_value)[pure].abs().max()) > 0.1  # the critic that acted says something else
    assert float((bootstrap_B - chunk.bootstrap_value).abs().max()) > 0.1


@pytest.mark.parametrize("dense", [False, True])
def test_the_values_of_copies_that_are_current_are_left_as_they_are(dense: bool) -> None:
    rollout = cut_rollout()
    chunk = rollout.collect(T).chunk
    perturb(rollout.policy)
    last_BS, memory_TBS = torch.randn_like(chunk.state), torch.randn(T, *chunk.state.shape)
    every, some = (
        rollout.policy.after(chunk, last_BS, lambda copies: memory_TBS[:, copies], current, dense=dense)
        for current in (0, 4)
    )
    for new, mixed, stored in zip(every, some, (chunk.bootstrap_value, chunk.final_value), strict=True):
        assert torch.equal(mixed[..., :4], stored[..., :4])
        torch.testing.assert_close(mixed[..., 4:], new[..., 4:])
        assert not torch.equal(new[..., :4], stored[..., :4])


def test_a_device_with_slots_for_all_truncations_that_there_can_be_stores_the_same() -> None:
    rollouts = []
    for _ in range(2):
        env = make_env({"kind": COUNT, "max_episode_steps": 3}, {"kind": COUNT, "max_episode_steps": 4}, copies=B)
        rollouts.append(make_rollout(env, policy_for(env)))
        rollouts[-1].switch(torch.arange(B) % 2)
    sparse, dense = rollouts
    dense.dense = True
    for _ in range(3):
        a, b = sparse.collect(T).chunk, dense.collect(T).chunk
        assert b.slots == dense.env.truncations(T) == 3
        assert torch.equal(a.with_slots(3).final_step, b.final_step)
        filled = a.final_step < T
        assert torch.equal(a.final_obs[filled], b.final_obs[: a.slots][filled])
        torch.testing.assert_close(a.final_value, b.final_value)
        assert torch.equal(a.bootstrap_value, b.bootstrap_value)


def test_a_chunk_in_which_nothing_was_truncated_has_no_slots() -> None:
    env = make_env({"kind": COUNT}, copies=B)
    chunk = make_rollout(env, policy_for(env)).collect(T).chunk
    assert chunk.terminated.any() and chunk.slots == 0
    assert chunk.final_obs.numel() == 0


def seen_by_vtrace(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """The bootstrap and final values that V-trace gets from now on."""
    seen: list[tuple[Tensor, Tensor]] = []
    vtrace = actor_critic.vtrace

    def remember(*tensors: Tensor, **options: Any) -> Any:
        seen.append((tensors[3], tensors[6]))
        return vtrace(*tensors, **options)

    monkeypatch.setattr(actor_critic, "vtrace", remember)
    return seen


def make_learner(rollout: Rollout, strategies: list[Any], gradient: str = "rtrl", lr: float = 0.0) -> Learner:
    policy, copies = rollout.policy, rollout.env.num_envs
    engine: GradientEngine = registry.build("gradient", {"kind": gradient}, policy.cell, copies)
    objective = ActorCritic(policy.distribution, gamma=0.8, lam=0.9, entropy_weight=0.0)
    optimizer = torch.optim.Adam(policy.parameters(), lr)
    return Learner(policy, engine, objective, optimizer, strategies, 0.0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [CLEAR, ER])
@pytest.mark.parametrize("gradient", ["bptt", "rtrl"])
def test_live_copies_keep_the_values_that_acting_gave_them_bit_for_bit(
    gradient: str, kind: type[Replaying], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = cut_rollout()
    clear = kind(capacity=50, start=1, ratio=2.0)
    learner = make_learner(rollout, [clear], gradient)
    ctx = make_context(rollout.policy, learner.objective, B, T)
    clear.setup(ctx, 0)
    old = rollout.collect(T)
    seen = seen_by_vtrace(monkeypatch)
    learner.update(ctx, old)  # nothing to replay yet
    assert torch.equal(seen[0][0], old.chunk.bootstrap_value) and torch.equal(seen[0][1], old.chunk.final_value)
    clear.after_chunk(ctx, old)
    perturb(rollout.policy)
    live = rollout.collect(T)
    learner.update(ctx, live)
    bootstrap, final = seen[1]
    assert torch.equal(bootstrap[:B], live.chunk.bootstrap_value) and torch.equal(final[:, :B], live.chunk.final_value)
    value_B, final_TB = now(rollout.policy, old.chunk)
    for copy in range(B, 3 * B):  # every replayed copy has the current critic's values of the sequence that it is
        same = [
            b
            for b in range(B)
            if torch.allclose(bootstrap[copy], value_B[b], atol=1e-5)
            and torch.allclose(final[:, copy], final_TB[:, b], atol=1e-5)
        ]
        assert same, copy


def test_what_older_parameters_acted_is_bootstrapped_with_those_of_the_learner(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = cut_rollout()
    learner = make_learner(rollout, [])
    ctx = make_context(rollout.policy, learner.objective, B, T)
    experience = rollout.collect(T)
    experience.acted, experience.lags = None, True  # as runners send it
    perturb(rollout.policy)
    seen = seen_by_vtrace(monkeypatch)
    learner.update(ctx, experience)
    for got, expected in zip(seen[0], now(rollout.policy, experience.chunk), strict=True):
        torch.testing.assert_close(got, expected)


def test_twice_the_critic_bootstraps_twice_the_value() -> None:
    """A zero reward and no end: the target of the first step is gamma^T times the critic's value at x_T."""
    env = make_env({"kind": "CartPole"}, copies=16)
    policy = policy_for(env)
    rollout = make_rollout(env, policy)
    chunk = rollout.collect(4).chunk
    after_last, state_BS, is_init = rollout.inputs(), rollout.state_BS, rollout.is_init
    chunk.reward.zero_()
    chunk.terminated, chunk.truncated = torch.zeros(4, 16, dtype=torch.bool), torch.zeros(4, 16, dtype=torch.bool)
    with torch.no_grad():
        policy.critic.weight.mul_(2.0)
        policy.critic.bias.fill_(100.0)
        outputs = policy.sequence(chunk, chunk.state)
        chunk.log_prob = policy.distribution.log_prob(outputs.policy, chunk.action)
        expected = 0.99**4 * policy.step(after_last, state_BS, is_init).outputs.value
    assert outputs.after is not None
    nothing = torch.zeros_like(chunk.reward)
    target, _ = actor_critic.vtrace(
        nothing, nothing, outputs.value, outputs.after()[0], chunk.terminated, chunk.truncated, nothing, gamma=0.99
    )
    torch.testing.assert_close(target[0], expected, rtol=1e-4, atol=1e-4)


class Blank(Constant):
    """A constant reward that says nothing of the time."""

    def observe(self, state: Any) -> Tensor:
        return torch.ones(self.num_envs, 2)


def learned_value(gradient: str, limit: int, *, stale: bool = False) -> float:
    """The critic's mean value after learning a reward of 1 at every step, gamma = 0.8, mostly from old chunks.

    The memory goes on over the time limit, so that what the critic reads there is what it has learned about.
    """
    env = make_env({"kind": f"{__name__}:Blank", "max_episode_steps": limit}, copies=8)
    rollout = make_rollout(env, policy_for(env, size=8), reset_memory_on="never")
    clear = CLEAR(capacity=4000, start=8, policy_cloning=0.0, value_cloning=0.0, ratio=4.0)
    learner = make_learner(rollout, [clear], gradient, lr=0.01)
    ctx = make_context(rollout.policy, learner.objective, 8, 3)
    clear.setup(ctx, 0)
    if stale:
        sequence = learner.passes.sequence

        def believe(chunk: Any, state: Tensor, acted: Any, current: int) -> Outputs:
            return sequence(chunk, state, acted, chunk.copies)

        learner.passes.sequence = believe  # type: ignore[method-assign]
    for _ in range(250):
        experience = rollout.collect(3)
        learner.update(ctx, experience)
        clear.after_chunk(ctx, experience)
    return float(rollout.collect(10).chunk.value.mean())


@pytest.mark.parametrize("gradient", ["bptt", "rtrl"])
@pytest.mark.parametrize("limit", [0, 2, 5])
def test_replay_learns_the_value_of_a_constant_reward_with_time_limits_and_without(gradient: str, limit: int) -> None:
    """1 / (1 - 0.8) = 5. With a limit of 2 steps every chunk of three has a truncated one."""
    assert learned_value(gradient, limit) == pytest.approx(5.0, abs=0.15)


@pytest.mark.parametrize("limit", [0, 2])
def test_that_test_would_see_values_of_the_critic_that_acted(limit: int) -> None:
    assert learned_value("bptt", limit, stale=True) < 4.6


def test_old_chunks_with_and_without_truncated_steps_are_learned_from_side_by_side() -> None:
    parts = []
    for limit in (3, 50):
        env = make_env({"kind": COUNT, "length": 50, "max_episode_steps": limit}, copies=2)
        rollout = make_rollout(env, policy_for(env))
        parts.append(rollout.collect(T).chunk)
    assert [part.slots for part in parts] == [3, 0]
    both, policy = concatenate(parts), rollout.policy
    perturb(policy)
    together, apart = now(policy, both), [now(policy, part) for part in parts]
    for got, *expected in zip(together, *apart, strict=True):
        torch.testing.assert_close(got, torch.cat(expected, -1))
