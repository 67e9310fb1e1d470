"""The policy acting and the policy learning are the same function of the same inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lifelong.agent.errors import ConfigError
from lifelong.agent.modules.heads import distribution_of
from lifelong.agent.objectives.ppo import PPO
from lifelong.agent.policy import Inputs
from lifelong.envs.tasks import TaskEnv
from tests.agent.support import (
    BUTTONS,
    CELLS,
    COUNT,
    OWN_CELLS,
    make_rollout,
    make_trainer,
    policy_for,
    run,
    task_env,
)

SPECS: dict[str, dict[str, Any]] = {
    "discrete": {"kind": "TMaze", "corridor": 3, "distractors": 2},
    "multi-discrete": {"kind": BUTTONS},
    "gaussian": {"kind": "Pendulum", "max_episode_steps": 6},
}


def make_env(action: str, copies: int = 12) -> TaskEnv:
    return task_env(SPECS[action], copies=copies, random_initial_age=True)


@pytest.mark.parametrize("inputs", [False, True], ids=["plain", "previous-action-and-reward"])
@pytest.mark.parametrize("action", SPECS)
@pytest.mark.parametrize("cell", CELLS + OWN_CELLS)
def test_the_probability_ratio_of_the_first_ppo_minibatch_is_one(cell: str, action: str, inputs: bool) -> None:
    """The cheapest check of the whole pipeline; the error is printed and goes into the closing note."""
    env = make_env(action)
    policy = policy_for(env, cell, previous_action=inputs, previous_reward=inputs)
    rollout = make_rollout(env, policy)
    rollout.collect(5)
    chunk = rollout.collect(16).chunk
    assert bool(chunk.is_init[1:].any()) and bool(chunk.state.any())
    objective = PPO(policy.distribution)
    outputs = policy.sequence(chunk, chunk.state)
    _, metrics = objective.loss(outputs, chunk, objective.prepare(chunk))
    error = float(metrics["max_ratio_error"])
    print(f"\nratio error {error:.1e}")
    assert error <= 1e-6 * max(1.0, float(outputs.policy.detach().abs().max()))  # rounding grows with what is rounded
    assert float(metrics["clip_fraction"]) == 0
    torch.testing.assert_close(outputs.value, chunk.value, rtol=1e-6, atol=1e-5)


def test_the_ratio_check_sees_a_memory_that_was_not_reset() -> None:
    env = make_env("discrete")
    policy = policy_for(env)
    rollout = make_rollout(env, policy)
    chunk = rollout.collect(16).chunk
    chunk.is_init = torch.zeros_like(chunk.is_init)
    objective = PPO(policy.distribution)
    _, metrics = objective.loss(policy.sequence(chunk, chunk.state), chunk, objective.prepare(chunk))
    assert float(metrics["max_ratio_error"]) > 1e-3


@pytest.mark.parametrize("action", SPECS)
def test_previous_action_and_reward_are_those_of_the_step_before_and_zero_at_a_start(action: str) -> None:
    env = make_env(action)
    policy = policy_for(env, previous_action=True, previous_reward=True)
    chunk = make_rollout(env, policy).collect(16).chunk
    features = policy.distribution.features(chunk.action)[:-1]
    started = chunk.is_init[1:]
    assert bool(started.any()) and bool((~started).any())
    expected = torch.where(started.unsqueeze(-1), torch.zeros_like(features), features)
    torch.testing.assert_close(chunk.previous_action[1:], expected, rtol=0, atol=0)
    reward = chunk.reward[:-1].masked_fill(started, 0.0)
    torch.testing.assert_close(chunk.previous_reward[1:], reward, rtol=0, atol=0)
    assert not chunk.previous_action[0].any() and not chunk.previous_reward[0].any()


@pytest.mark.parametrize("which", ["previous_action", "previous_reward", "obs", "task"])
def test_the_cell_reads_an_input_exactly_when_it_was_asked_for(which: str) -> None:
    env = task_env({"kind": COUNT}, {"kind": COUNT, "bonus": 1.0})
    for shown in (False, True):
        asked = {"previous_action": shown, "previous_reward": shown, "task_observed": shown}
        policy = policy_for(env, **asked)
        inputs = make_rollout(env, policy).inputs()
        changed = Inputs(**{**vars(inputs), which: torch.ones_like(getattr(inputs, which))})
        differs = not torch.equal(policy.encode(inputs), policy.encode(changed))
        assert differs == (shown or which == "obs")
        assert policy.encode(inputs).shape[-1] == policy.cell.input_size


def test_each_task_has_a_head_of_its_own_chosen_per_copy_and_step() -> None:
    env = task_env({"kind": COUNT}, {"kind": COUNT, "bonus": 1.0}, copies=4)
    policy = policy_for(env, heads="per_task", task_observed=True)
    y = torch.randn(5, 4, policy.cell.output_size)
    task = torch.randint(2, (5, 4))
    got = policy.actor(y, task)
    weight, bias = policy.actor.linear.weight.view(2, 3, -1), policy.actor.linear.bias.view(2, 3)
    for t in range(5):
        for b in range(4):
            k = int(task[t, b])
            torch.testing.assert_close(got[t, b], weight[k] @ y[t, b] + bias[k])
    got[task == 0].sum().backward()
    rows = policy.actor.linear.weight.grad.view(2, -1)  # type: ignore[union-attr]
    assert bool(rows[0].any()) and not rows[1].any()


def test_each_task_has_a_critic_of_its_own_that_others_do_not_move(tmp_path: Path) -> None:
    env = task_env({"kind": COUNT}, {"kind": COUNT, "bonus": 1.0}, copies=4)
    policy = policy_for(env, critics="per_task", task_observed=True)
    inputs = make_rollout(env, policy).inputs()
    inputs.task = torch.tensor([0, 1, 1, 0])
    y = torch.randn(4, policy.cell.output_size)
    weight, bias = policy.critic.weight, policy.critic.bias
    wanted = torch.stack([weight[k] @ y[b] + bias[k] for b, k in enumerate(inputs.task.tolist())])
    torch.testing.assert_close(policy.heads(y, inputs).value, wanted)
    assert policy.heads(y, inputs).policy.shape == (4, policy.distribution.size)

    trainer = make_trainer(tmp_path, policy={"critics": "per_task"}, optimizer={"kind": "adam", "lr": 0.01})
    critic = trainer.rollout.policy.critic.weight
    before = critic.detach().clone()
    run(trainer, until=trainer.stream.segments[0].end - 32)
    assert not torch.equal(critic[0], before[0]) and torch.equal(critic[1], before[1])
    run(trainer, until=trainer.stream.segments[0].end)
    kept = critic.detach().clone()
    run(trainer)
    assert torch.equal(critic[0], kept[0]) and not torch.equal(critic[1], kept[1])


@pytest.mark.parametrize("key", ["heads", "critics"])
def test_a_head_a_task_needs_to_know_the_task(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"policy\.{key} is per_task, but stream\.task_id is hidden"):
        make_trainer(tmp_path, policy={key: "per_task"}, stream={"task_id": "hidden"})


def test_gaussian_heads_of_different_tasks_have_deviations_of_their_own() -> None:
    env = task_env({"kind": "Pendulum"}, {"kind": "Pendulum", "g": 5.0})
    policy = policy_for(env, heads="per_task", task_observed=True)
    with torch.no_grad():
        policy.actor.log_std.copy_(torch.tensor([[0.5], [-1.5]]))
    params = policy.actor(torch.randn(2, policy.cell.output_size), torch.tensor([1, 0]))
    torch.testing.assert_close(params[:, 1], torch.tensor([-1.5, 0.5]))


def test_masked_actions_have_probability_zero_and_are_never_taken() -> None:
    env = task_env({"kind": "CartPole"}, {"kind": "TMaze"}, copies=64, spaces="pad")
    policy = policy_for(env)
    rollout = make_rollout(env, policy)
    rollout.switch(torch.arange(64) % 2)
    chunk = rollout.collect(20).chunk
    probability = torch.softmax(chunk.policy, -1)
    cartpole = chunk.task == 0
    assert not probability[cartpole][:, 2].any() and int(chunk.action[cartpole].max()) == 1
    assert bool((probability[~cartpole] > 0).all()) and int(chunk.action[~cartpole].max()) == 2
    outputs = policy.sequence(chunk, chunk.state)
    entropy = policy.distribution.entropy(outputs.policy)
    expected = torch.distributions.Categorical(logits=outputs.policy[..., :2]).entropy()
    torch.testing.assert_close(entropy[cartpole], expected[cartpole])
    (policy.distribution.log_prob(outputs.policy, chunk.action).sum() + entropy.sum()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in policy.actor.parameters() if p.grad is not None)


def test_deterministic_acting_takes_the_most_likely_action() -> None:
    for action, spec in SPECS.items():
        env = task_env(spec, copies=6)
        policy = policy_for(env)
        chunk = make_rollout(env, policy, deterministic=True).collect(4).chunk
        if action == "gaussian":
            torch.testing.assert_close(chunk.action, chunk.policy[..., :1])
        else:
            others = policy.distribution.sample(chunk.policy.expand(50, *chunk.policy.shape), torch.Generator())
            best = policy.distribution.log_prob(chunk.policy, chunk.action)
            assert bool(
                (
                    policy.distribution.log_prob(chunk.policy.expand(50, *chunk.policy.shape), others) <= best + 1e-6
                ).all()
            )


def test_actions_of_a_box_are_clipped_and_rescaled_for_the_environment_but_not_for_the_density() -> None:
    env = task_env({"kind": "Pendulum"}, copies=64)
    policy = policy_for(env)
    with torch.no_grad():
        policy.actor.log_std.fill_(2.0)
    chunk = make_rollout(env, policy).collect(2).chunk
    assert float(chunk.action.abs().max()) > 2.0
    assert float(policy.distribution.clip(chunk.action).abs().max()) == 1.0
    assert float(policy.distribution.features(chunk.action).abs().max()) == 1.0
    torque = env.acts[0](policy.distribution.clip(chunk.action[0]))
    torch.testing.assert_close(torque, 2 * chunk.action[0].clamp(-1, 1))
    normal = torch.distributions.Normal(chunk.policy[..., :1], chunk.policy[..., 1:].exp())
    torch.testing.assert_close(chunk.log_prob, normal.log_prob(chunk.action).sum(-1))


def test_an_action_space_without_a_head_is_refused() -> None:
    from gymnasium.spaces import Box, MultiBinary

    for space in (MultiBinary(3), Box(0, 1, (2, 2))):
        with pytest.raises(ValueError, match="no policy head"):
            distribution_of(space)
