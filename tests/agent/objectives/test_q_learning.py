"""Recurrent Q-learning: its targets by hand, how it acts, its target network, what stands beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lifelong.agent.errors import ConfigError
from lifelong.agent.modules.heads import NEGATIVE
from lifelong.agent.modules.values import EpsilonGreedy
from lifelong.agent.objectives.q_learning import QLearning, n_step_returns, rescaled, unscaled
from lifelong.agent.policy import Inputs, Policy
from lifelong.agent.runtime import checkpoint
from lifelong.agent.runtime.rollout import Rollout
from lifelong.agent.strategies.er import ER
from lifelong.replay.chunk import Chunk
from tests.agent.objectives.test_bootstrap import acted, cut_rollout, perturb
from tests.agent.support import assert_identical, make_context, make_policy, make_trainer, random_chunk, run

T, B = 9, 7


def by_values(policy: Policy, **options: Any) -> QLearning:
    """The objective of a policy that acts by values from now on; its target network has other parameters."""
    policy.distribution = EpsilonGreedy(policy.distribution.size)
    objective = QLearning(policy.distribution, **options)
    objective.setup(policy)
    perturb(objective.target, seed=5)
    return objective


def test_the_rescaling_and_its_inverse() -> None:
    x = torch.cat([-torch.logspace(-6, 6, 200, dtype=torch.float64), torch.logspace(-6, 6, 200, dtype=torch.float64)])
    torch.testing.assert_close(unscaled(rescaled(x)), x, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(rescaled(unscaled(x / 100)), x / 100, rtol=1e-8, atol=1e-10)
    assert float(rescaled(torch.tensor(3.0))) == pytest.approx(1.0 + 0.003)
    assert float(rescaled(torch.tensor(-8.0))) == pytest.approx(-2.0 - 0.008)


def test_n_step_returns_by_hand() -> None:
    """gamma 1/2: the first copy goes on, the second terminates at step 1, the third is truncated there."""
    reward = torch.tensor([1.0, 2, 4, 8]).unsqueeze(-1).expand(4, 3).contiguous()
    following = torch.full((4, 3), 16.0)
    following[-1] = 32.0
    terminated, truncated = torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4, 3, dtype=torch.bool)
    terminated[1, 1] = truncated[1, 2] = True
    final = torch.zeros(4, 3)
    final[1, 2] = 64.0
    got = n_step_returns(reward, following, terminated, truncated, final, 0.5, 3)
    last = [4 + 4 + 8.0, 8 + 16.0]  # to the end of the chunk, fewer than three steps
    expected = [
        [1 + 1 + 1 + 2, 2 + 2 + 2 + 4, *last],
        [1 + 1, 2, *last],
        [1 + 1 + 16, 2 + 32, *last],
    ]
    assert got.T.tolist() == expected
    assert n_step_returns(reward, following, terminated, truncated, final, 0.5, 1)[:, 0].tolist() == [9, 10, 12, 24]


@torch.no_grad()
def said(policy: Policy, chunk: Chunk, b: int) -> tuple[list[np.ndarray], np.ndarray, dict[int, np.ndarray]]:
    """Q of one copy step by step: at every step, after the chunk, and of last observations of truncated episodes."""
    state, values, finals = chunk.state[b : b + 1], [], {}

    def inputs(obs: torch.Tensor, reward: torch.Tensor, t: int) -> Inputs:
        action = chunk.previous_action[t, b : b + 1]
        return Inputs(obs, action, reward, chunk.task[t, b : b + 1], chunk.action_mask[t, b : b + 1])

    no = torch.zeros(1, dtype=torch.bool)
    for t in range(chunk.steps):
        reward = chunk.previous_reward[t, b : b + 1]
        step = policy.step(inputs(chunk.obs[t, b : b + 1], reward, t), state, chunk.is_init[t, b : b + 1])
        values.append(step.outputs.policy[0].double().numpy())
        state = step.state_BS
        for slot in (chunk.final_step[:, b] == t).nonzero().flatten().tolist():
            last = policy.step(inputs(chunk.final_obs[slot, b : b + 1], chunk.reward[t, b : b + 1], t), state, no)
            finals[t] = last.outputs.policy[0].double().numpy()
    after = policy.step(
        inputs(chunk.next_obs[b : b + 1], chunk.reward[-1, b : b + 1], -1), state, chunk.next_is_init[[b]]
    )
    return values, after.outputs.policy[0].double().numpy(), finals


def h(x: float) -> float:
    return float(np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + 1e-3 * x)


def h_inverse(y: float) -> float:
    """By bisection."""
    low, high = -1e6, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if h(middle) < y else (low, middle)
    return low


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("n", [1, 3, 20])
@pytest.mark.parametrize("cell", ["elstm", "gru"])
def test_the_loss_is_that_of_the_definition_around_every_kind_of_episode_end(cell: str, n: int, rescale: bool) -> None:
    rollout = cut_rollout(cell)
    policy = rollout.policy
    objective = by_values(policy, gamma=0.9, n_step=n, rescale=rescale)
    experience, _ = acted(rollout)
    chunk = experience.chunk
    assert bool((chunk.truncated & ~chunk.terminated).any()) and bool(chunk.terminated.any()) and chunk.slots > 1
    perturb(policy)
    outputs = policy.sequence(chunk, chunk.state)
    loss, _ = objective.loss(outputs, chunk, {})
    squash, back = (h, h_inverse) if rescale else (float, float)
    errors = np.zeros((T, B))
    for b in range(B):
        q, after, finals = said(policy, chunk, b)
        q_target, after_target, finals_target = said(objective.target, chunk, b)
        for t in range(T):
            total, discount = 0.0, 1.0
            for k in range(t, min(t + n, T)):
                total, discount = total + discount * float(chunk.reward[k, b]), discount * 0.9
                ends = bool(chunk.terminated[k, b] | chunk.truncated[k, b])
                if ends or k == min(t + n, T) - 1:
                    break
            if chunk.terminated[k, b]:
                value = 0.0
            elif chunk.truncated[k, b]:
                value = finals_target[k][finals[k].argmax()]
            elif k == T - 1:
                value = after_target[after.argmax()]
            else:
                value = q_target[k + 1][q[k + 1].argmax()]
            y = squash(total + (0.0 if chunk.terminated[k, b] else discount * back(value)))
            errors[t, b] = q[t][int(chunk.action[t, b])] - y
    assert outputs.error is not None
    np.testing.assert_allclose(outputs.error.detach().numpy(), errors, atol=2e-4)
    assert float(loss.detach()) == pytest.approx(0.5 * np.square(errors).mean(), rel=1e-3)


def test_after_a_burn_in_the_loss_is_that_of_the_rest() -> None:
    """A replayed sequence after a burn-in has as many steps, those before stand behind it: they change nothing."""
    rollout = cut_rollout()
    policy = rollout.policy
    objective = by_values(policy)
    strategy = ER(capacity=B, start=1, burn_in=3, writing="ring")
    ctx = make_context(policy, objective, B, T)
    strategy.setup(ctx, 0)
    experience, _ = acted(rollout)
    strategy.after_chunk(ctx, experience)
    drawn = strategy.draw(ctx, 4 * B)
    assert drawn is not None

    def loss(chunk: Chunk) -> torch.Tensor:
        return objective.loss(policy.sequence(chunk, chunk.state), chunk, {})[0]

    before = loss(drawn)
    drawn.obs[-3:], drawn.reward[-3:], drawn.action[-3:] = 7.0, 100.0, 0
    torch.testing.assert_close(loss(drawn), before)
    drawn.reward[2] += 1.0
    assert abs(float((loss(drawn) - before).detach())) > 1e-3


def test_dueling_the_mean_of_the_values_over_allowed_actions_is_the_critic() -> None:
    distribution, g = EpsilonGreedy(4), torch.Generator().manual_seed(0)
    advantage, value = torch.randn(5, 3, 4, generator=g), torch.randn(5, 3, generator=g)
    q, best = distribution.combined(advantage, value, torch.ones(5, 3, 0, dtype=torch.bool))
    torch.testing.assert_close(q.mean(-1), value)
    torch.testing.assert_close(best, q.amax(-1))
    mask = torch.tensor([True, True, False, True]).expand(5, 3, 4)
    q, best = distribution.combined(advantage, value, mask)
    torch.testing.assert_close(q[..., [0, 1, 3]].mean(-1), value)
    assert bool((q[..., 2] == NEGATIVE).all())
    torch.testing.assert_close(best, q[..., [0, 1, 3]].amax(-1))


def test_every_copy_explores_as_much_as_the_ladder_of_ape_x_says() -> None:
    """epsilon_i = 0.4^(1 + 7 i / (N - 1)): the first 0.4, the last 0.4^8 = 0.00065536 (Horgan et al. 2018)."""
    distribution = EpsilonGreedy(4)
    params = torch.tensor([0.0, 3.0, NEGATIVE, 1.0]).expand(4000, 5, 4)
    epsilon = distribution.epsilons(params)
    torch.testing.assert_close(epsilon[[0, 2, 4]], torch.tensor([0.4, 0.4**4.5, 0.00065536]))
    assert distribution.epsilons(params[:, :1]).tolist() == [pytest.approx(0.4)]
    action = distribution.act(params, torch.Generator().manual_seed(0))
    for copy in range(5):
        counts = np.bincount(action[:, copy], minlength=4)
        assert counts[2] == 0
        explored = float(epsilon[copy]) / 3 * 2  # of three allowed actions two are not the best one
        assert stats.binomtest(int(counts[0] + counts[3]), 4000, explored).pvalue > 0.005
    each = torch.stack([distribution.act_log_prob(params[0], torch.full((5,), a)).exp() for a in (0, 1, 3)])
    torch.testing.assert_close(each.sum(0), torch.ones(5))
    torch.testing.assert_close(each[0], epsilon / 3)
    assert bool((distribution.mode(params) == 1).all())


def test_a_chunk_records_the_probability_with_which_it_was_acted() -> None:
    rollout: Rollout = cut_rollout()
    by_values(rollout.policy)
    chunk = rollout.collect(T).chunk
    expected = rollout.policy.distribution.act_log_prob(chunk.policy, chunk.action)
    assert torch.equal(chunk.log_prob, expected)
    greedy = chunk.action == chunk.policy.argmax(-1)
    assert bool(greedy[:, -1].all()) and not bool(greedy[:, 0].all())


def test_where_a_strategy_asks_for_probabilities_they_are_a_softmax() -> None:
    distribution = EpsilonGreedy(3, temperature=0.5)
    q = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    p = torch.distributions.Categorical(logits=q / 0.5)
    other = torch.distributions.Categorical(logits=q.flip(0) / 0.5)
    action = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(distribution.log_prob(q, action), p.log_prob(action))
    torch.testing.assert_close(distribution.entropy(q), p.entropy())
    torch.testing.assert_close(distribution.log_prob_and_entropy(q, action)[1], p.entropy())
    torch.testing.assert_close(distribution.kl(q, q.flip(0)), torch.distributions.kl_divergence(p, other))
    drawn = distribution.sample(q[:1].expand(20_000, 3), torch.Generator().manual_seed(0))
    expected = torch.softmax(q[0].double() / 0.5, -1).numpy() * 20_000
    assert stats.chisquare(np.bincount(drawn, minlength=3), expected).pvalue > 0.005


def test_the_target_network_follows_at_its_rate_and_acts_by_its_own_parameters() -> None:
    policy = make_policy()
    objective = by_values(policy, target_rate=0.25)
    chunk = random_chunk(policy, 3, 2)
    expected = {name: p.clone() for name, p in objective.target.named_parameters()}
    for _ in range(3):
        perturb(policy)
        with torch.no_grad():
            objective.target.read_out()  # fills its cache
        objective.stepped()
        expected = {name: 0.75 * e + 0.25 * dict(policy.named_parameters())[name] for name, e in expected.items()}
    for name, parameter in objective.target.named_parameters():
        torch.testing.assert_close(parameter, expected[name].detach())
        assert not parameter.requires_grad
    with torch.no_grad():
        weight, _ = objective.target.read_out()
    torch.testing.assert_close(
        weight, torch.cat([objective.target.actor.linear.weight, objective.target.critic.weight])
    )
    assert chunk.steps == 3


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            {"kind": "Pendulum"},
            r"q_learning compares the values of all actions, which Box\(.* use objective actor_critic",
        )
    ],
)
def test_actions_that_are_not_discrete_are_refused(task: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        make_trainer(tmp_path, stream={"tasks": [{"name": "one", "env": task}]}, objective={"kind": "q_learning"})


def test_an_option_that_cannot_be_is_named_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"objective q_learning: epsilon is 2; it must be"):
        make_trainer(tmp_path, objective={"kind": "q_learning", "epsilon": 2})


R2D2 = {"kind": "er", "capacity": 24, "start": 8, "sampling": "prioritised", "burn_in": 1}


@pytest.mark.parametrize("strategy", [["finetune"], [R2D2]], ids=["live", "r2d2"])
def test_a_resumed_run_is_the_uninterrupted_one(strategy: list[Any], tmp_path: Path) -> None:
    changes: dict[str, Any] = {"strategy": strategy, "objective": {"kind": "q_learning", "epsilon": 0.9}}
    whole = make_trainer(tmp_path / "whole", **changes)
    run(whole)
    assert isinstance(whole.rollout.policy.distribution, EpsilonGreedy)
    assert whole.rollout.policy.distribution.epsilon == 0.9
    first = make_trainer(tmp_path / "cut", **changes)
    run(first, until=224)
    second = make_trainer(tmp_path / "cut", **changes)
    saved, _ = checkpoint.load(tmp_path / "cut" / "checkpoints")
    second.load_state_dict(saved)
    second.evaluations = first.evaluations
    run(second)
    assert_identical(whole.state_dict(), second.state_dict())


def test_a_run_of_another_objective_goes_on_with_its_own_policy_as_the_target(tmp_path: Path) -> None:
    old = make_trainer(tmp_path / "old")
    run(old, until=96)
    new = make_trainer(tmp_path / "new", objective={"kind": "q_learning"})
    new.load_state_dict(old.state_dict())
    objective = new.learner.objective
    assert isinstance(objective, QLearning)
    assert_identical(dict(objective.target.state_dict()), dict(new.rollout.policy.state_dict()))


def test_a_target_network_grows_with_the_policy() -> None:
    small, large = (make_policy(tasks=n, task_observed=True, heads="per_task") for n in (2, 3))
    saved = by_values(small).state_dict()
    objective = by_values(large)
    objective.load_state_dict(saved)
    target = objective.target.state_dict()
    assert torch.equal(target["actor.linear.weight"][:6], saved["target"]["actor.linear.weight"])
    assert torch.equal(target["actor.linear.weight"][6:], large.actor.linear.weight[6:])


BESIDE = ["ewc", "si", "mas", "lwf", "functional", "gpm", "clear", "der_pp", "agem", "redo", "l2_init"]


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("gradient", ["bptt", "rtrl"])
def test_strategies_stand_beside_it(name: str, gradient: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"ewc": {"sequences": 8}, "functional": {"sequences": 8, "capacity": 12, "batch": 4}}
    replaying = {"capacity": 24, "start": 8, "sampling": "prioritised"}
    options |= {"gpm": {"chunks": 2}, "mas": {"sequences": 8}} | dict.fromkeys(("clear", "der_pp", "agem"), replaying)
    spec = [{"kind": name, **options.get(name, {})}]
    trainer = make_trainer(tmp_path, strategy=spec, objective={"kind": "q_learning"}, gradient=gradient)
    before = {n: p.clone() for n, p in trainer.rollout.policy.named_parameters()}
    seen = run(trainer).seen
    assert all(np.isfinite(value) for value in seen.values())
    assert any(not torch.equal(before[n], p) for n, p in trainer.rollout.policy.named_parameters())


def test_under_rtrl_live_copies_have_their_carry_and_replayed_ones_none(tmp_path: Path) -> None:
    """The gradient with the carry differs from the truncated one; of replayed sequences alone it does not."""
    gradients = []
    for engine in ("rtrl", "bptt"):
        trainer = make_trainer(
            tmp_path / engine, objective={"kind": "q_learning"}, gradient=engine, optimizer={"kind": "sgd", "lr": 0.0}
        )
        run(trainer, until=96)
        policy, learner = trainer.rollout.policy, trainer.learner
        chunk = trainer.rollout.collect(4).chunk
        chunk.is_init.zero_()
        state = learner.engine.attach(chunk.state)
        loss, _ = learner.objective.loss(policy.sequence(chunk, state), chunk, {})
        gradients.append(torch.autograd.grad(loss, list(policy.cell.parameters())[:2]))
    assert any((a - b).abs().max() > 1e-7 for a, b in zip(*gradients, strict=True))


@pytest.mark.slow
def test_it_learns_to_remember(tmp_path: Path) -> None:
    """A short maze: at the junction the right turn is that of the cue; chance is one half."""
    trainer = make_trainer(
        tmp_path,
        stream={"tasks": [{"name": "maze", "env": {"kind": "TMaze", "corridor": 3}}], "steps_per_task": 60_000},
        policy={"cell": {"kind": "elstm", "size": 24}},
        objective={"kind": "q_learning", "gamma": 0.97},
        optimizer={"kind": "adam", "lr": 2e-3},
        strategy=[{"kind": "er", "sampling": "prioritised", "burn_in": 2}],
        rollout={"copies": 16, "steps": 8},
        evaluation={"every": 60_000, "episodes": 32, "max_steps": 32},
        log_every=60_000,
    )
    assert run(trainer).seen["continual/average_performance"] > 0.95
