"""Acting: what belongs to which step, when the memory is reset, and that evaluation is a bystander."""

from __future__ import annotations

import copy
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Inputs
from lifelong.agent.runtime.evaluation import Evaluator
from lifelong.agent.runtime.record import Record
from lifelong.agent.runtime.rollout import Experience, Rollout
from lifelong.envs.base import BatchedEnv
from lifelong.replay.chunk import SLOTS, copies_dim
from tests.agent.support import (
    CONSTANT,
    COUNT,
    assert_identical,
    make_config,
    make_context,
    make_rollout,
    make_trainer,
    one_by_one,
    policy_for,
    run,
    task_env,
)

LENGTHS = (5, 4, 7)


def count_rollout(copies: int = 6, **options: Any) -> Rollout:
    """Count environments whose episodes have lengths 5, 4 and 7."""
    env = task_env({"kind": COUNT}, copies=copies)
    env.envs[0].set_params(None, length=[LENGTHS[b % 3] for b in range(copies)])
    return make_rollout(env, policy_for(env), **options)


def test_observation_action_and_reward_of_a_row_belong_to_the_same_step() -> None:
    chunk = count_rollout().collect(20).chunk
    count, last = chunk.obs[..., 0], chunk.obs[..., 1]
    assert torch.equal(chunk.reward, 10 * count + chunk.action)
    follows = ~chunk.is_init[1:]
    assert torch.equal(last[1:][follows], chunk.action[:-1][follows].float())
    assert torch.equal(count[1:][follows], count[:-1][follows] + 1)


def test_flags_belong_to_the_step_that_ended_and_resets_to_the_step_that_starts() -> None:
    chunk = count_rollout().collect(20).chunk
    for b in range(6):
        length = LENGTHS[b % 3]
        for t in range(20):
            assert bool(chunk.terminated[t, b]) == (t % length == length - 1)
            assert bool(chunk.is_init[t, b]) == (t % length == 0)
            assert float(chunk.obs[t, b, 0]) == t % length
    assert not chunk.truncated.any() and bool((chunk.weight == 1).all())


def test_chunks_follow_each_other_without_a_gap() -> None:
    one, three = count_rollout(), count_rollout()
    whole = one.collect(15)
    parts = [three.collect(n) for n in (1, 6, 8)]
    for name in vars(whole.chunk):
        if copies_dim(name) == 1 and name not in SLOTS:
            joined = torch.cat([getattr(part.chunk, name) for part in parts])
            assert torch.equal(joined, getattr(whole.chunk, name)), name
    assert torch.equal(torch.cat([part.state_TBS for part in parts]), whole.state_TBS)
    for before, after in itertools.pairwise(parts):
        torch.testing.assert_close(before.chunk.bootstrap_value, after.chunk.value[0], rtol=0, atol=0)
        assert torch.equal(after.chunk.state, after.state_TBS[0])


def test_the_memory_before_each_step_is_recorded_unreset() -> None:
    rollout = count_rollout()
    experience = rollout.collect(12)
    chunk, policy = experience.chunk, rollout.policy
    state = torch.zeros(6, policy.cell.state_size)
    for t in range(12):
        torch.testing.assert_close(experience.state_TBS[t], state, rtol=0, atol=1e-6)
        with torch.no_grad():
            _, state = policy.cell.step(experience.x_TBD[t], state * (~chunk.is_init[t]).unsqueeze(-1))
    torch.testing.assert_close(rollout.state_BS, state, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "at_episode", "at_task"), [("episode", True, True), ("task", False, True), ("never", False, False)]
)
def test_the_memory_is_reset_when_the_setting_says_so(setting: str, at_episode: bool, at_task: bool) -> None:
    env = task_env({"kind": COUNT}, {"kind": COUNT, "bonus": 1.0}, copies=4)
    rollout = make_rollout(env, policy_for(env), reset_memory_on=setting)
    first = rollout.collect(7).chunk  # episodes of five steps
    assert bool(first.is_init[0].all())
    assert bool(first.is_init[5].all()) == at_episode == bool(first.is_init[1:].any())
    rollout.switch(torch.tensor([0, 1, 0, 1]))
    second = rollout.collect(2).chunk
    assert second.is_init[0].tolist() == [False, at_task, False, at_task]
    assert second.obs[0, :, 0].tolist() == [2, 0, 2, 0]  # the environment starts anew in the copies that changed


def test_without_a_memory_every_output_is_that_of_one_observation_alone(tmp_path: Path) -> None:
    """When acting, learning and bootstrapping; and so the carry is nothing before any step."""
    changes = {"reset_memory_on": "step", "previous_action": True, "previous_reward": True}
    env = {"kind": CONSTANT, "max_episode_steps": 3}
    tasks = [{"name": "a", "env": env}]
    trainer = make_trainer(tmp_path, policy=changes, stream={"tasks": tasks}, optimizer={"kind": "sgd", "lr": 0.0})
    trainer.follow_stream()
    policy, experience = trainer.rollout.policy, trainer.rollout.collect(7)
    chunk, copies = experience.chunk, experience.chunk.copies

    def alone(obs: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(copies, policy.distribution.feature_size), torch.zeros(copies)
        inputs = Inputs(obs, *zeros, torch.zeros(copies, dtype=torch.int64), torch.zeros(copies, 0, dtype=torch.bool))
        empty = policy.cell.initial_state(copies, torch.device("cpu"))
        with torch.no_grad():
            return policy.step(inputs, empty, torch.zeros(copies, dtype=torch.bool)).outputs.value

    learned = policy.sequence(chunk, torch.randn_like(chunk.state))
    assert learned.after is not None
    for values, after in ((chunk.value, (chunk.bootstrap_value, chunk.final_value)), (learned.value, learned.after())):
        torch.testing.assert_close(values.detach(), torch.stack([alone(obs) for obs in chunk.obs]))
        torch.testing.assert_close(after[0], alone(chunk.next_obs))
        truncated = int(chunk.truncated.any(1).nonzero()[0])
        torch.testing.assert_close(after[1][truncated], alone(chunk.final_obs[0]))
    assert bool(chunk.truncated.any()) and bool(chunk.is_init.all()) and bool(chunk.next_is_init.all())


def test_a_task_switch_touches_the_changed_copies_only() -> None:
    def make() -> Rollout:
        env = task_env({"kind": COUNT}, {"kind": COUNT, "bonus": 100.0, "length": 9}, copies=4)
        return make_rollout(env, policy_for(env, previous_action=True, previous_reward=True))

    switched, left_alone = make(), make()
    for rollout in (switched, left_alone):
        rollout.collect(3)
    switched.switch(torch.tensor([0, 1, 0, 0]))
    a, b = switched.inputs(), left_alone.inputs()
    same = torch.tensor([0, 2, 3])
    for name in vars(a):
        assert torch.equal(getattr(a, name)[same], getattr(b, name)[same]), name
    assert not a.previous_action[1].any() and not a.previous_reward[1].any() and bool(b.previous_action[1].any())
    assert a.obs[1].tolist() == [0.0, 0.0, 1.0] and a.task.tolist() == [0, 1, 0, 0]
    assert switched.is_init.tolist() == [False, True, False, False]
    chunk = switched.collect(9).chunk
    assert torch.equal(chunk.reward[:, 1], 100 + 10 * torch.arange(9.0) + chunk.action[:, 1])


def test_under_drift_episodes_and_memory_go_on_across_the_borders(tmp_path: Path) -> None:
    tasks = [
        {"name": name, "env": {"kind": COUNT, "length": 1000, "bonus": bonus}}
        for name, bonus in (("a", 0.0), ("b", 8.0), ("c", -4.0))
    ]
    stream = {"tasks": tasks, "steps_per_task": 64, "schedule": {"kind": "drift"}}
    trainer = make_trainer(tmp_path, stream=stream)
    one_by_one(trainer)
    collect, bonuses, tasks_seen = trainer.rollout.collect, [], []

    def remember(steps: int) -> Experience:
        experience = collect(steps)
        chunk = experience.chunk
        bonuses.append((chunk.reward - 10 * chunk.obs[..., 0] - chunk.action)[0, 0].item())
        tasks_seen.append(int(chunk.task[0, 0]))
        assert bool(chunk.is_init.any()) == (trainer.step == 0)
        assert float(chunk.obs[0, 0, 0]) == trainer.step / 8  # the count goes on
        return experience

    trainer.rollout.collect = remember  # type: ignore[method-assign]
    run(trainer)
    assert tasks_seen == [0, 0, 1, 1, 2, 2]
    assert bonuses == pytest.approx([0.0, 4.0, 8.0, 2.0, -4.0, -4.0])


def test_a_switch_to_the_same_tasks_is_nothing() -> None:
    rollout = count_rollout()
    rollout.collect(3)
    before = copy.deepcopy(rollout.state_dict())
    rollout.switch(rollout.env.task_B.clone())
    assert_identical(before, rollout.state_dict())


def test_a_rollout_restored_from_its_state_goes_on_bit_for_bit() -> None:
    rollout, other = count_rollout(), count_rollout()
    rollout.collect(7)
    other.load_state_dict(copy.deepcopy(rollout.state_dict()))
    other.policy.load_state_dict(rollout.policy.state_dict())
    assert_identical(vars(rollout.collect(6).chunk), vars(other.collect(6).chunk))


# ---- evaluation is a bystander ---------------------------------------------------------------------------------------


def everything(trainer: Any) -> dict[str, Any]:
    """Training's state and all global randomness."""
    return copy.deepcopy(
        {
            "trainer": trainer.state_dict(),
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "training": [p.requires_grad for p in trainer.rollout.policy.parameters()],
        }
    )


@pytest.mark.parametrize("deterministic", [True, False])
def test_neither_evaluation_nor_fresh_experience_disturbs_training(deterministic: bool, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, evaluation={"deterministic": deterministic})
    run(trainer, until=224)
    before = everything(trainer)
    first = trainer.evaluator.evaluate(trainer.context(), trainer.strategies)
    assert_identical(before, everything(trainer))
    fresh = list(trainer.source(3))
    assert len(fresh) == 3 and fresh[0].chunk.obs.shape[:2] == (4, 8)
    assert_identical(before, everything(trainer))
    np.testing.assert_array_equal(first, trainer.evaluator.evaluate(trainer.context(), trainer.strategies))


def test_fresh_experience_is_of_the_current_policy_and_tasks_and_new_at_every_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    run(trainer, until=224)
    (one,), (again,) = trainer.source(1), trainer.source(1)
    assert torch.equal(one.chunk.obs, again.chunk.obs)  # reproducible
    assert bool((one.chunk.task == 1).all())
    outputs = trainer.rollout.policy.sequence(one.chunk, one.chunk.state)
    torch.testing.assert_close(outputs.policy.detach(), one.chunk.policy, rtol=0, atol=1e-6)
    trainer.step += 32
    (later,) = trainer.source(1)
    assert not torch.equal(one.chunk.action, later.chunk.action) or not torch.equal(one.chunk.obs, later.chunk.obs)


def evaluator(copies: int, max_steps: int) -> Evaluator:
    env = task_env({"kind": COUNT, "ten": 0.0, "bonus": 1.0}, copies=copies)
    policy = policy_for(env)
    with torch.no_grad():  # always action 0, so that the return is the number of steps
        policy.actor.linear.weight.zero_()
        policy.actor.linear.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    return Evaluator(env, policy, seed=0, reset_memory_on="episode", deterministic=True, max_steps=max_steps)


def test_evaluation_counts_the_first_episode_of_every_copy_and_nothing_else() -> None:
    made = evaluator(6, 40)
    lengths = [3, 11, 1, 30, 5, 11]
    made.env.envs[0].set_params(None, length=lengths)
    ctx = make_context(made.policy, ActorCritic(made.policy.distribution), 6, 4)
    assert made.evaluate(ctx, []).tolist() == [lengths]
    assert made.evaluate(ctx, []).tolist() == [lengths]  # again, from wherever the last one stopped


def test_evaluation_ends_with_its_last_episode() -> None:
    made, made_steps = evaluator(3, 40), []
    steps = made.rollout.steps
    made.rollout.steps = lambda n: made_steps.append(n) or steps(n)  # type: ignore[func-returns-value,method-assign]
    made.env.envs[0].set_params(None, length=[1, 5, 2])
    made.evaluate(make_context(made.policy, ActorCritic(made.policy.distribution), 3, 4), [])
    assert sum(made_steps) == 5


def test_an_episode_that_is_given_up_counts_with_the_return_it_has() -> None:
    made = evaluator(3, 10)
    made.env.envs[0].set_params(None, length=[3, 500, 10])
    ctx = make_context(made.policy, ActorCritic(made.policy.distribution), 3, 4)
    assert made.evaluate(ctx, []).tolist() == [[3, 10, 10]]


# ---- the online return -----------------------------------------------------------------------------------------------


def test_the_online_return_is_the_mean_return_of_the_episodes_that_ended(tmp_path: Path) -> None:
    env = task_env({"kind": COUNT}, {"kind": COUNT, "bonus": 50.0, "length": 3}, copies=4)
    rollout = make_rollout(env, policy_for(env))
    record = Record(make_config(), tmp_path, {}, ["a", "b"], torch.device("cpu"))
    ended: dict[int, list[float]] = {0: [], 1: []}
    running = [0.0] * 4

    def oracle(experience: Experience) -> None:
        chunk = experience.chunk
        for t in range(chunk.steps):
            for b in range(4):
                running[b] += float(chunk.reward[t, b])
                if chunk.terminated[t, b] or chunk.truncated[t, b]:
                    ended[int(chunk.task[t, b])].append(running[b])
                    running[b] = 0.0

    for k in range(5):
        if k == 2:
            rollout.switch(torch.tensor([0, 1, 1, 0]))
            running[1] = running[2] = 0.0
        experience = rollout.collect(4)
        oracle(experience)
        record.add({"loss/total": torch.tensor(float(k))}, experience)
    scalars = record.flush()
    assert scalars["return/a"] == pytest.approx(np.mean(ended[0]))
    assert scalars["return/b"] == pytest.approx(np.mean(ended[1]))
    assert scalars["continual/online_return"] == pytest.approx(np.mean(ended[0] + ended[1]))
    assert scalars["loss/total"] == 2.0
    assert "continual/online_return" not in record.flush()


def test_learning_from_what_acting_kept_is_learning_from_a_forward_pass() -> None:
    rollout = count_rollout()
    rollout.collect(3)
    experience = rollout.collect(9)
    chunk, policy = experience.chunk, rollout.policy
    assert experience.acted is not None
    results = []
    for acted in (None, experience.acted):
        policy.zero_grad()
        state = chunk.state.clone().requires_grad_()
        outputs = policy.sequence(chunk, state, acted)
        (outputs.policy.square().sum() + (outputs.value * chunk.reward).sum()).backward()
        gradients = [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]
        results.append([outputs.policy.detach(), outputs.value.detach(), state.grad, *gradients])
    for plain, kept in zip(*results, strict=True):
        torch.testing.assert_close(kept, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[1][0], chunk.policy, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "copies", "steps"),
    [
        *[("CartPole", 6, 1), ("CartPole", 6, 9), ("CartPole", 64, 40), ("CartPole", 3, 33), (COUNT, 4, 20)],
        *[(kind, 6, 20) for kind in ("MountainCar", "Acrobot", "TMaze", "RepeatPrevious")],
    ],
)
def test_a_compiled_loop_acts_as_one_step_at_a_time_bit_for_bit(kind: str, copies: int, steps: int) -> None:
    rollouts = []
    for _ in range(2):
        env = task_env({"kind": kind, "max_episode_steps": 12 if kind == "CartPole" else 7}, copies=copies)
        rollouts.append(make_rollout(env, policy_for(env)))
    compiled, eager = rollouts
    eager._compiled = lambda steps: None  # type: ignore[method-assign]
    for rollout in rollouts:
        found = rollout._compiled(steps)
        assert (found is None) == (rollout is eager)
        _ = found or rollout.collect(steps)
    for chunk in range(3):
        if chunk == 2:  # the memory of some copies is reset from outside between two chunks
            for rollout in rollouts:
                rollout._forget(torch.arange(copies) % 2 == 0)
        got, expected = compiled.collect(steps), eager.collect(steps)
        assert_identical(experience_parts(got), experience_parts(expected))
        assert_identical(compiled.state_dict(), eager.state_dict())
    if steps >= 9 and kind == "CartPole":
        assert expected.done_TB.any() and expected.chunk.truncated.any() and expected.chunk.final_value.any()


def experience_parts(experience: Experience) -> dict[str, Any]:
    assert experience.acted is not None
    return {**vars(experience), "chunk": vars(experience.chunk), "acted": vars(experience.acted)}


def test_what_has_no_compiled_call_acts_one_step_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    env = task_env({"kind": "CartPole"})
    assert make_rollout(env, policy_for(env))._compiled(2) is not None
    assert make_rollout(env, policy_for(env), reset_memory_on="never")._compiled(2) is None
    silu = {"kind": "mlp", "activation": "silu"}
    for options in ({"cell": "leaky"}, {"encoder": silu}):
        assert make_rollout(env, policy_for(env, **options))._compiled(2) is None  # type: ignore[arg-type]
    own = task_env({"kind": COUNT})
    make_rollout(own, policy_for(own))
    actions_TB = torch.zeros(2, own.num_envs, dtype=torch.int64)
    assert own.compiled_steps(actions_TB) is not None
    monkeypatch.setattr(type(own.envs[0]), "step", lambda self, actions: BatchedEnv.step(self, actions))
    assert own.compiled_steps(actions_TB) is None
