"""What the objectives aim at, at every kind of episode end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong.agent.gradients.bptt import BPTT
from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.objectives.base import Mean
from lifelong.agent.objectives.ppo import PPO
from lifelong.agent.policy import Inputs, Outputs, Policy, inputs_of
from lifelong.agent.runtime.learner import Learner
from lifelong.kernels.advantages import gae, vtrace
from lifelong.replay.chunk import Chunk
from tests.agent.support import CONSTANT, make_context, make_policy, make_rollout, policy_for, random_chunk, task_env


def next_value(chunk: Chunk, value: np.ndarray, t: int, b: int) -> float:
    """V after step t, written out case by case."""
    if chunk.terminated[t, b]:
        return 0.0
    if chunk.truncated[t, b]:
        return float(chunk.final_value[t, b])
    if t + 1 < chunk.steps:
        return float(value[t + 1, b])
    return float(chunk.bootstrap_value[b])


def test_gae_equals_its_definition_as_a_sum_around_every_kind_of_episode_end() -> None:
    """A_t = sum_k (gamma lam)^k delta_{t+k}, summed directly up to the episode's end (Schulman 2016, eq. 16)."""
    policy = make_policy().double()
    chunk = random_chunk(policy, 12, 30, seed=3, dtype=torch.float64)
    assert all(
        bool((e & ~o).any()) for e, o in ((chunk.terminated, chunk.truncated), (chunk.truncated, chunk.terminated))
    )
    objective = PPO(policy.distribution, gamma=0.9, lam=0.8, normalize_advantage=False)
    prepared = objective.prepare(chunk)
    value = chunk.value.numpy()
    for b in range(30):
        for t in range(12):
            total = 0.0
            for k in range(t, 12):
                delta = float(chunk.reward[k, b]) + 0.9 * next_value(chunk, value, k, b) - value[k, b]
                total += (0.9 * 0.8) ** (k - t) * delta
                if chunk.terminated[k, b] or chunk.truncated[k, b]:
                    break
            assert abs(float(prepared["advantage"][t, b]) - total) < 1e-10
            assert abs(float(prepared["target"][t, b]) - total - value[t, b]) < 1e-10


def test_gae_by_hand_at_an_end_in_the_middle() -> None:
    """gamma = 0.5, lam = 1, V = 1 everywhere: the flags are those of the step that ended the episode."""
    policy = make_policy()
    chunk = random_chunk(policy, 3, 2)
    chunk.reward[:] = torch.tensor([[1.0, 1], [2, 2], [4, 4]])
    chunk.value[:], chunk.bootstrap_value[:], chunk.final_value[:] = 1.0, 8.0, 6.0
    chunk.terminated[:] = torch.tensor([[False, False], [True, False], [False, False]])
    chunk.truncated[:] = torch.tensor([[False, False], [False, True], [False, False]])
    target = PPO(policy.distribution, gamma=0.5, lam=1.0).prepare(chunk)["target"]
    # terminated: 1 + .5 * 2, 2, 4 + .5 * 8;  truncated: 1 + .5 * 5, 2 + .5 * 6, 8
    torch.testing.assert_close(target, torch.tensor([[2.0, 3.5], [2.0, 5.0], [8.0, 8.0]]))


def test_vtrace_of_the_acting_policy_is_the_n_step_return() -> None:
    policy = make_policy().double()
    chunk = random_chunk(policy, 10, 20, seed=4, dtype=torch.float64)
    outputs = policy.sequence(chunk, chunk.state, current=20)
    chunk.log_prob = policy.distribution.log_prob(outputs.policy, chunk.action).detach()
    value = outputs.value.detach()
    target, _ = vtrace(
        torch.zeros_like(chunk.log_prob), chunk.reward, value, chunk.bootstrap_value, chunk.terminated,
        chunk.truncated, chunk.final_value, gamma=0.9,
    )  # fmt: skip
    expected = torch.zeros_like(value)
    for b in range(20):
        for t in reversed(range(10)):
            ended = chunk.terminated[t, b] or chunk.truncated[t, b] or t == 9
            after = next_value(chunk, value.numpy(), t, b) if ended else float(expected[t + 1, b])
            expected[t, b] = chunk.reward[t, b] + 0.9 * after
    torch.testing.assert_close(target, expected)
    # and the objective's loss is built on it: -mean(log pi * A) + 0.5 * mean (V - G)^2 / 2 - 0.01 * entropy
    loss, _ = ActorCritic(policy.distribution, gamma=0.9).loss(outputs, chunk, {})
    following = torch.cat([expected[1:], chunk.bootstrap_value[None]])
    following = torch.where(chunk.truncated, chunk.final_value, following).masked_fill(chunk.terminated, 0.0)
    advantage = chunk.reward + 0.9 * following - value
    categorical = torch.distributions.Categorical(logits=outputs.policy)
    hand = -(categorical.log_prob(chunk.action) * advantage).mean()
    hand = hand + 0.25 * (outputs.value - expected).square().mean() - 0.01 * categorical.entropy().mean()
    torch.testing.assert_close(loss, hand)


@pytest.mark.parametrize("lam", [1.0, 0.95, 0.5, 0.0])
def test_the_policy_gradient_of_the_acting_policy_weighs_actions_by_gae_and_by_impalas_letter_if_asked(
    lam: float,
) -> None:
    """d loss / d log pi(a_t) is -A_t / (T B): with one head and V apart, the gradient of the logits shows A."""
    policy = make_policy().double()
    chunk = random_chunk(policy, 10, 20, seed=4, dtype=torch.float64)
    logits, value = chunk.policy.clone().requires_grad_(), chunk.value
    delta_and_letter = []
    for advantage in ("lambda", "impala"):
        objective = ActorCritic(policy.distribution, gamma=0.9, lam=lam, entropy_weight=0.0, advantage=advantage)
        loss, _ = objective.loss(Outputs(logits, value), chunk, {})
        (gradient,) = torch.autograd.grad(loss, logits)
        pull = torch.nn.functional.one_hot(chunk.action, logits.shape[-1]) - torch.softmax(logits, -1)
        delta_and_letter.append((-gradient / pull)[..., 0].detach() * value.numel())
    tensors = (chunk.reward, value, chunk.bootstrap_value, chunk.terminated, chunk.truncated, chunk.final_value)
    expected, returns = gae(*tensors, gamma=0.9, lam=lam)
    torch.testing.assert_close(delta_and_letter[0], expected)
    one_step, _ = gae(*tensors, gamma=0.9, lam=0.0)
    ended = chunk.terminated | chunk.truncated
    after = torch.cat([returns[1:] - value[1:], torch.zeros_like(value[:1])]).masked_fill(ended, 0.0)
    torch.testing.assert_close(delta_and_letter[1], one_step + 0.9 * after)


def test_the_ppo_loss_is_the_clipped_objective_of_the_paper() -> None:
    policy = make_policy().double()
    chunk = random_chunk(policy, 10, 20, seed=4, dtype=torch.float64)
    objective = PPO(policy.distribution, clip=0.2, normalize_advantage=False)
    prepared = objective.prepare(chunk)
    outputs = policy.sequence(chunk, chunk.state)
    _loss, metrics = objective.loss(outputs, chunk, prepared)
    terms = []
    new = torch.distributions.Categorical(logits=outputs.policy).log_prob(chunk.action).detach().numpy()
    for r, a in zip(np.exp(new - chunk.log_prob.numpy()).ravel(), prepared["advantage"].numpy().ravel(), strict=True):
        terms.append(min(r * a, min(max(r, 0.8), 1.2) * a))
    assert float(metrics["policy"].detach()) == pytest.approx(-np.mean(terms), rel=1e-9)
    assert 0 < float(metrics["clip_fraction"]) < 1


# ---- truncation ------------------------------------------------------------------------------------------------------


def test_the_final_value_is_read_from_the_true_last_observation_with_the_memory_of_its_episode() -> None:
    env = task_env({"kind": "CartPole", "max_episode_steps": 5}, copies=6)
    policy = policy_for(env, previous_action=True, previous_reward=True)
    rollout = make_rollout(env, policy)
    finals = []

    step = env.step

    def remember(action: Any) -> Any:
        result = step(action)
        finals.append(result[4]["final_obs"])
        return result

    env.step = remember  # type: ignore[method-assign]
    env.compiled_steps = lambda action_TB: None  # type: ignore[method-assign]
    experience = rollout.collect(12)
    chunk = experience.chunk
    pure = chunk.truncated & ~chunk.terminated
    assert int(pure.sum()) >= 6
    assert not chunk.final_value[~pure].any()
    resetting, blind = [], []
    for t, b in pure.nonzero().tolist():
        start = t - 4  # episodes are five steps long: read the whole one and then its last observation
        assert bool(chunk.is_init[start, b]) and not bool(chunk.is_init[start + 1 : t + 1, b].any())
        state = policy.cell.initial_state(1)
        rows = inputs_of(chunk)
        for k in range(start, t + 1):
            now = Inputs(*(getattr(rows, name)[k, b : b + 1] for name in vars(rows)))
            _, state, _, _ = policy.step(now, state, torch.zeros(1, dtype=torch.bool))
        last = Inputs(
            finals[t][b : b + 1],
            policy.distribution.features(chunk.action[t, b : b + 1]),
            chunk.reward[t, b : b + 1],
            chunk.task[t, b : b + 1],
            chunk.action_mask[t, b : b + 1],
        )
        value = policy.step(last, state, torch.zeros(1, dtype=torch.bool)).outputs.value
        assert abs(float(value) - float(chunk.final_value[t, b])) < 1e-5
        resetting.append(abs(float(policy.step(last, state, torch.ones(1, dtype=torch.bool)).outputs.value - value)))
        blind.append(abs(float(chunk.value[t, b] - value)))
    assert max(resetting) > 1e-2 and max(blind) > 1e-2  # the usual mistakes would be seen


def test_reading_the_bootstrap_value_does_not_advance_the_memory() -> None:
    envs = [task_env({"kind": "TMaze", "distractors": 2}, copies=4) for _ in range(2)]
    policy = policy_for(envs[0])
    two, one = (make_rollout(env, policy) for env in envs)
    first, second = two.collect(5), two.collect(5)
    whole = one.collect(10)
    torch.testing.assert_close(torch.cat([first.state_TBS, second.state_TBS]), whole.state_TBS, rtol=0, atol=0)
    assert torch.equal(torch.cat([first.chunk.action, second.chunk.action]), whole.chunk.action)
    torch.testing.assert_close(first.chunk.bootstrap_value, second.chunk.value[0], rtol=0, atol=0)
    assert torch.equal(two.state_BS, one.state_BS)


def learned_values(objective_name: str, **spec: Any) -> Tensor:
    """The critic's values [T, B] after learning the environment of constant reward, gamma = 0.8."""
    env = task_env({"kind": CONSTANT, **spec}, copies=8, random_initial_age=False)
    policy = policy_for(env, size=8)
    options = {"gamma": 0.8, "lam": 0.9, "entropy_weight": 0.0}
    if objective_name == "ppo":
        objective: Any = PPO(policy.distribution, epochs=4, minibatches=1, **options)
    else:
        objective = ActorCritic(policy.distribution, **options)
    optimizer = torch.optim.Adam(policy.parameters(), 0.03)
    engine = BPTT(policy.cell, 8)
    learner = Learner(policy, engine, objective, optimizer, [], 0.0, torch.Generator().manual_seed(0))
    rollout = make_rollout(env, policy)
    ctx = make_context(policy, objective, 8, 8)
    for _ in range(250 if objective_name == "actor_critic" else 100):
        learner.update(ctx, rollout.collect(8))
    return rollout.collect(10).chunk.value


@pytest.mark.parametrize("objective", ["actor_critic", "ppo"])
def test_with_a_time_limit_the_value_of_constant_reward_is_that_of_going_on_forever(objective: str) -> None:
    """1 / (1 - 0.8) = 5; a truncation taken for an end would give at most 3.4, and less at every later step."""
    value = learned_values(objective)
    error = float((value - 5.0).abs().max())
    assert error < 0.8, error


@pytest.mark.parametrize("objective", ["actor_critic", "ppo"])
def test_with_a_true_end_the_value_is_the_sum_of_the_remaining_rewards(objective: str) -> None:
    value = learned_values(objective, length=5, max_episode_steps=0)
    expected = torch.tensor([(1 - 0.8**n) / 0.2 for n in (5, 4, 3, 2, 1)] * 2)
    error = float((value - expected.unsqueeze(1)).abs().max())
    assert error < 0.8, error


# ---- steps that do not count -----------------------------------------------------------------------------------------


def test_the_mean_is_over_the_steps_that_count() -> None:
    x, weight = torch.randn(5, 4), (torch.rand(5, 4) < 0.6).float()
    torch.testing.assert_close(Mean(weight)(x), x[weight > 0].mean())
    assert float(Mean(torch.zeros_like(x))(x)) == 0.0


@pytest.mark.parametrize("name", ["actor_critic", "ppo"])
def test_copies_without_weight_change_neither_the_loss_nor_its_gradient(name: str) -> None:
    policy: Policy = make_policy().double()
    chunk = random_chunk(policy, 6, 8, dtype=torch.float64)
    objective: Any = {"actor_critic": ActorCritic, "ppo": PPO}[name](policy.distribution)
    chunk.weight[:, 5:] = 0.0
    chunk.reward[:, 5:] = 1000.0
    results = []
    for batch in (chunk, chunk.select(torch.arange(5))):
        policy.zero_grad()
        loss, _ = objective.loss(policy.sequence(batch, batch.state), batch, objective.prepare(batch))
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)])
    for masked, without in zip(*results, strict=True):
        torch.testing.assert_close(masked, without, rtol=1e-9, atol=1e-12)


def test_advantages_are_normalised_over_the_steps_that_count() -> None:
    policy = make_policy().double()
    chunk = random_chunk(policy, 6, 8, dtype=torch.float64)
    chunk.weight[:, 5:] = 0.0
    raw = PPO(policy.distribution, normalize_advantage=False).prepare(chunk)["advantage"]
    got = PPO(policy.distribution).prepare(chunk)["advantage"][:, :5]
    live = raw[:, :5]
    torch.testing.assert_close(got, (live - live.mean()) / live.std(correction=0), rtol=1e-6, atol=1e-6)


def test_the_loss_ignores_gradients_through_its_targets() -> None:
    policy = make_policy().double()
    chunk = random_chunk(policy, 6, 8, dtype=torch.float64)
    logits = torch.randn(6, 8, 3, dtype=torch.float64, requires_grad=True)
    value = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    objective = ActorCritic(policy.distribution, entropy_weight=0.0)
    loss, _ = objective.loss(Outputs(logits, value), chunk, {})
    (got,) = torch.autograd.grad(loss, value)
    target, _ = vtrace(
        policy.distribution.log_prob(logits, chunk.action).detach() - chunk.log_prob, chunk.reward, value.detach(),
        chunk.bootstrap_value, chunk.terminated, chunk.truncated, chunk.final_value, gamma=0.99,
    )  # fmt: skip
    torch.testing.assert_close(got, 0.5 * (value.detach() - target) / value.numel())
