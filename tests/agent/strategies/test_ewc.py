"""EWC: the Fisher against its definition, the penalty against its closed form."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from lifelong.agent.objectives.actor_critic import ActorCritic
from lifelong.agent.policy import Policy
from lifelong.agent.runtime.rollout import Experience
from lifelong.agent.strategies.ewc import EWC, fisher_diagonal
from lifelong.envs.base import BatchedEnv
from lifelong.replay.chunk import Chunk
from tests.agent.support import (
    CountState,
    act_through,
    make_context,
    make_policy,
    make_rollout,
    make_trainer,
    policy_for,
    random_chunk,
    task_env,
)

ACTIONS, STEPS = 3, 2


def one_sequence(policy: Policy) -> Chunk:
    chunk = random_chunk(policy, STEPS, 1, seed=3, dtype=torch.float64)
    chunk.is_init[:] = False
    chunk.state = torch.randn(
        1, policy.cell.state_size, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    return chunk


def definition(policy: Policy, chunk: Chunk, names: list[str]) -> dict[str, Tensor]:
    """F_i = sum_t sum_a p_t(a) (d log p_t(a) / d theta_i)^2: cross terms between steps vanish, for E[score] = 0."""
    parameters = [dict(policy.named_parameters())[n] for n in names]
    total = [torch.zeros_like(p) for p in parameters]
    for t, a in itertools.product(range(STEPS), range(ACTIONS)):
        log_p = torch.log_softmax(policy.sequence(chunk, chunk.state).policy, -1)[t, 0, a]
        grads = torch.autograd.grad(log_p, parameters, materialize_grads=True)
        total = [f + log_p.detach().exp() * g.square() for f, g in zip(total, grads, strict=True)]
    return dict(zip(names, total, strict=True))


def enumerated(policy: Policy, chunk: Chunk, names: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The mean of our estimator over all action sequences, each with its probability: no sampling error."""
    p = torch.softmax(policy.sequence(chunk, chunk.state).policy, -1).detach()[:, 0]
    total: dict[str, Any] = dict.fromkeys(names, 0.0)
    for actions in itertools.product(range(ACTIONS), repeat=STEPS):
        drawn = torch.tensor(actions).unsqueeze(1)
        monkeypatch.setattr(policy.distribution, "sample", lambda params, generator, drawn=drawn: drawn)
        weight = float(np.prod([p[t, a] for t, a in enumerate(actions)]))
        for n, f in fisher_diagonal(policy, chunk, torch.Generator(), names).items():
            total[n] = total[n] + weight * f
    return total


@pytest.mark.parametrize("cell", ["elstm", "gru", "lstm"])
def test_the_fisher_is_its_definition_for_every_parameter(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(cell, 5).double()
    names = [n for n, _ in policy.named_parameters() if not n.startswith("critic.")]
    chunk = one_sequence(policy)
    expected = definition(policy, chunk, names)
    got = enumerated(policy, chunk, names, monkeypatch)
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-10)
        assert bool((got[name] > 0).any())


def test_the_fisher_of_the_softmax_layer_has_its_textbook_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """sum_t p_k (1 - p_k) y_j^2 for the weight, sum_t p_k (1 - p_k) for the bias."""
    policy = make_policy("elstm", 5).double()
    chunk = one_sequence(policy)
    got = enumerated(policy, chunk, ["actor.linear.weight", "actor.linear.bias"], monkeypatch)
    with torch.no_grad():
        y = policy.cell.sequence(chunk.obs, chunk.state, chunk.is_init)[0][:, 0]
        p = torch.softmax(policy.sequence(chunk, chunk.state).policy, -1)[:, 0]
    variance = p * (1 - p)
    torch.testing.assert_close(got["actor.linear.bias"], variance.sum(0), rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(got["actor.linear.weight"], variance.T @ y.square(), rtol=1e-5, atol=1e-12)


def test_the_fisher_of_a_linear_gaussian_policy_is_its_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """y_j^2 / sigma^2 for the weight, 1 / sigma^2 for the bias, 2 for log sigma, summed over the steps; the mean over
    actions is by quadrature, exact up to the fourth power of the noise."""
    policy = make_policy("elstm", 5, action=Box(-9, 9, (2,), np.float32)).double()
    with torch.no_grad():
        policy.actor.log_std.copy_(torch.tensor([[0.3, -0.4]]))
    chunk = random_chunk(make_policy().double(), STEPS, 1, dtype=torch.float64)
    chunk.is_init[:] = False
    chunk.state = torch.zeros(1, 5, dtype=torch.float64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    names = ["actor.linear.weight", "actor.linear.bias", "actor.log_std"]
    got: dict[str, Any] = dict.fromkeys(names, 0.0)
    for drawn in itertools.product(range(3), repeat=2 * STEPS):
        noise = torch.tensor(nodes[list(drawn)]).view(STEPS, 1, 2)

        def sample(params: Tensor, generator: torch.Generator, noise: Tensor = noise) -> Tensor:
            mean, log_std = params.chunk(2, -1)
            return mean + log_std.exp() * noise

        monkeypatch.setattr(policy.distribution, "sample", sample)
        share = float(np.prod(weights[list(drawn)] / weights.sum()))
        for name, fisher in fisher_diagonal(policy, chunk, torch.Generator(), names).items():
            got[name] = got[name] + share * fisher
    with torch.no_grad():
        y = policy.cell.sequence(chunk.obs, chunk.state, chunk.is_init)[0][:, 0]
    precision = torch.exp(-2 * policy.actor.log_std.detach()[0])
    torch.testing.assert_close(got["actor.linear.bias"], STEPS * precision, rtol=1e-6, atol=0)
    torch.testing.assert_close(got["actor.linear.weight"], precision[:, None] * y.square().sum(0), rtol=1e-6, atol=0)
    expected = torch.full((1, 2), 2.0 * STEPS, dtype=torch.float64)
    torch.testing.assert_close(got["actor.log_std"], expected, rtol=1e-6, atol=0)


def test_steps_that_do_not_count_add_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("elstm", 5).double()
    chunk = one_sequence(policy)
    names = ["actor.linear.bias"]
    chunk.weight[1] = 0.0
    p = torch.softmax(policy.sequence(chunk, chunk.state).policy, -1).detach()[0, 0]
    got = enumerated(policy, chunk, names, monkeypatch)["actor.linear.bias"]
    torch.testing.assert_close(got, p * (1 - p), rtol=1e-5, atol=1e-12)


# ---- over whole episodes, against enumeration ------------------------------------------------------------------------


class Stairs(BatchedEnv):
    """Action 0 goes one step up, action 1 ends the episode, and so does the fifth step. The observation is the step."""

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        return Box(0, 1, (5,), np.float32), Discrete(2)

    def draw_state(self) -> CountState:
        zero = torch.zeros(self.num_envs, dtype=torch.int64)
        return CountState(zero, torch.zeros(self.num_envs), zero)

    def advance(self, state: CountState, action: Tensor) -> tuple[CountState, Tensor, Tensor, dict[str, Tensor]]:
        count = state.count + 1
        end = (action == 1) | (count == 5)
        return CountState(count.clamp(max=4), state.last, state.episode), torch.zeros(self.num_envs), end, {}

    def observe(self, state: CountState) -> Tensor:
        return torch.nn.functional.one_hot(state.count, 5).float()


def stairs(folder: Path, gradient: str, sequences: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(estimated, exact) Fisher of a recurrent policy; every step has one history, so the sum over them is short."""
    tasks = [
        {"name": "stairs", "env": {"kind": f"{__name__}:Stairs"}},
        {"name": "b", "env": {"kind": f"{__name__}:Stairs"}},
    ]
    ewc_options = {"kind": "ewc", "sequences": sequences, "normalize": "none"}
    changes = {"stream": {"tasks": tasks}, "rollout": {"copies": 50, "steps": 2}, "gradient": gradient}
    trainer = make_trainer(folder, strategy=[ewc_options], **changes)
    policy, ewc = trainer.rollout.policy, trainer.strategies[0]
    assert isinstance(ewc, EWC)
    with torch.no_grad():
        policy.actor.linear.weight.normal_(std=2.0, generator=torch.Generator().manual_seed(1))
        policy.actor.linear.bias.copy_(torch.tensor([1.0, -1.0]))
    ewc.consolidate(trainer.context(), trainer.source)
    parameters = {n: p for n, p in policy.named_parameters() if n in ewc.parameters}
    chunk = next(trainer.source(1)).chunk
    one = chunk.select(torch.zeros(1, dtype=torch.int64))
    rows = torch.zeros(5, dtype=torch.int64)
    whole = one.map(lambda name, x, dim: x.index_select(0, rows) if dim and len(x) == one.steps else x)
    whole = replace(whole, obs=torch.eye(5).unsqueeze(1), is_init=torch.arange(5).unsqueeze(1) == 0)
    log_p = torch.log_softmax(policy.sequence(whole, torch.zeros_like(whole.state)).policy[:, 0], -1)
    exact = {n: torch.zeros_like(p) for n, p in parameters.items()}
    reached, length = 1.0, 0.0
    for step in range(5):
        length += reached
        for action in range(2):
            score = torch.autograd.grad(
                log_p[step, action], list(parameters.values()), retain_graph=True, materialize_grads=True
            )
            probability = reached * float(log_p[step, action].detach().exp())
            for name, gradient_of in zip(parameters, score, strict=True):
                exact[name] += probability * gradient_of.square()
        reached *= float(log_p[step, 0].detach().exp())
    assert 1.5 < length < 4.5
    return ewc.importance, {n: f / length for n, f in exact.items()}


def test_the_fisher_of_a_small_task_is_that_of_all_its_histories(tmp_path: Path) -> None:
    got, exact = stairs(tmp_path / "rtrl", "rtrl", 800)
    errors = {name: float((got[name] - f).norm() / f.norm()) for name, f in exact.items()}
    assert max(errors.values()) < 0.2, errors
    truncated, _ = stairs(tmp_path / "bptt", "bptt", 200)
    for name in ("cell.weight_input", "cell.bias"):  # without the carry, what came before the sequence is missing
        assert float((truncated[name] - exact[name]).norm() / exact[name].norm()) > 0.4


# ---- the penalty -----------------------------------------------------------------------------------------------------


def consolidated(**options: Any) -> tuple[EWC, Policy, Any, Any]:
    env = task_env({"kind": "TMaze", "corridor": 3}, copies=8)
    policy = policy_for(env, size=5)
    ewc = EWC(sequences=12, **options)
    ctx = make_context(policy, ActorCritic(policy.distribution), 8, 4)
    ewc.setup(ctx, 0)

    def source(chunks: int) -> Iterator[Experience]:
        rollout = make_rollout(task_env({"kind": "TMaze", "corridor": 3}, copies=8), policy)
        return (rollout.collect(4) for _ in range(chunks))

    ewc.on_task_end(ctx, source)
    return ewc, policy, ctx, source


def penalty_of(ewc: EWC, policy: Policy, ctx: Any) -> Tensor | None:
    chunk = random_chunk(policy, 2, 2)
    return ewc.extra_loss(ctx, chunk, policy.sequence(chunk, chunk.state), 2)


def test_the_penalty_and_its_gradient_are_the_quadratic_form() -> None:
    ewc, policy, ctx, _ = consolidated(strength=7.0)
    at_anchor = penalty_of(ewc, policy, ctx)
    assert at_anchor is not None and float(at_anchor) == 0.0
    torch.manual_seed(1)
    shift = {n: 0.1 * torch.randn_like(p) for n, p in policy.named_parameters()}
    with torch.no_grad():
        for n, p in policy.named_parameters():
            p += shift[n]
    penalty = penalty_of(ewc, policy, ctx)
    assert penalty is not None
    expected = 3.5 * sum(float((f.double() * shift[n].double() ** 2).sum()) for n, f in ewc.importance.items())
    assert float(penalty) == pytest.approx(expected, rel=1e-5)
    assert ewc.report()["penalty"] == float(penalty)
    penalty.backward()
    for n, p in policy.named_parameters():
        if n in ewc.importance:
            torch.testing.assert_close(p.grad, 7.0 * ewc.importance[n] * shift[n], rtol=1e-4, atol=1e-6)
        else:
            assert n.startswith("critic.") and p.grad is None


def test_there_is_no_penalty_before_the_first_task_has_ended() -> None:
    policy = make_policy()
    ewc = EWC()
    ctx = make_context(policy, ActorCritic(policy.distribution), 2, 2)
    ewc.setup(ctx, 0)
    assert penalty_of(ewc, policy, ctx) is None and ewc.report() == {}


def test_normalised_importance_has_mean_one_overall_or_in_every_tensor() -> None:
    raw, overall, each = (consolidated(normalize=how)[0].importance for how in ("none", "all", "tensor"))
    mean = torch.cat([f.flatten() for f in raw.values()]).mean()
    assert abs(float(mean) - 1) > 0.1
    for name, fisher in raw.items():
        torch.testing.assert_close(overall[name], fisher / mean)
        torch.testing.assert_close(each[name], fisher / fisher.mean().clamp(min=1e-12))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_a_second_task_adds_to_the_decayed_importance_and_moves_the_anchor(decay: float) -> None:
    ewc, policy, ctx, source = consolidated(decay=decay)
    first = {n: f.clone() for n, f in ewc.importance.items()}
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.05
    alone, _, _, _ = consolidated(decay=decay)
    alone.importance = {}
    alone.generator.set_state(ewc.generator.get_state())
    fresh = make_context(policy, ctx.objective, 8, 4)
    alone.consolidate(fresh, source)
    ewc.consolidate(fresh, source)
    for n, f in ewc.importance.items():
        torch.testing.assert_close(f, decay * first[n] + alone.importance[n])
        assert torch.equal(ewc.anchor[n], dict(policy.named_parameters())[n])


def test_the_mean_over_tasks_weighs_them_alike_however_many_there_were() -> None:
    added, policy, ctx, source = consolidated(tasks="sum")
    averaged, _, _, _ = consolidated(tasks="mean")
    averaged.parameters = added.parameters
    for _ in range(2):
        with torch.no_grad():
            for p in policy.parameters():
                p += 0.05
        for ewc in (added, averaged):
            ewc.generator.manual_seed(3)
            ewc.consolidate(ctx, source)
    for n, f in added.importance.items():
        torch.testing.assert_close(averaged.importance[n], f / 3)


def test_the_critic_counts_only_when_asked_for() -> None:
    assert not any(n.startswith("critic.") for n in consolidated()[0].importance)
    weighted = consolidated(value_weight=1.0)[0].importance
    assert bool((weighted["critic.weight"] > 0).any())


def test_the_critic_as_a_gaussian_has_the_squared_features_as_importance() -> None:
    """Precision w around V = w y + b gives F_b = w T and F_j = w sum_t y_j^2, in expectation over the noise."""
    policy = make_policy("elstm", 5).double()
    chunk = one_sequence(policy)
    copies = chunk.select(torch.zeros(2500, dtype=torch.int64))
    got = fisher_diagonal(policy, copies, torch.Generator().manual_seed(0), ["critic.weight", "critic.bias"], 3.0)
    got = {name: f / 2500 for name, f in got.items()}
    y = act_through(policy, chunk)[0]
    with torch.no_grad():
        features = policy.cell.sequence(y.x_TBD, chunk.state, chunk.is_init)[0][:, 0]
    torch.testing.assert_close(
        got["critic.bias"], torch.full((1,), 3.0 * STEPS, dtype=torch.float64), rtol=0.12, atol=0
    )
    torch.testing.assert_close(got["critic.weight"][0], 3.0 * features.square().sum(0), rtol=0.12, atol=0)
