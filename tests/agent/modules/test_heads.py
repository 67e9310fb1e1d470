"""Every distribution against torch.distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from torch import Tensor
from torch import distributions as td

from lifelong.agent.modules.heads import ActorHead, Distribution, Heads, MultiCategorical, distribution_of
from lifelong.agent.objectives.supervised import Supervised

SPACES = {
    "discrete": Discrete(4),
    "multi-discrete": MultiDiscrete([2, 4, 3]),
    "box": Box(-1, 1, (3,), np.float32),
}


def make(name: str, rows: int, seed: int = 0) -> tuple[Distribution, Tensor]:
    ours = distribution_of(SPACES[name])
    return ours, torch.randn(rows, ours.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def theirs(name: str, params: Tensor) -> list[td.Distribution]:
    """The independent factors of the distribution, by torch."""
    if name == "discrete":
        return [td.Categorical(logits=params)]
    if name == "multi-discrete":
        return [td.Categorical(logits=part) for part in params.split([2, 4, 3], -1)]
    mean, log_std = params.chunk(2, -1)
    return [td.Independent(td.Normal(mean, log_std.exp()), 1)]


@pytest.mark.parametrize("name", SPACES)
def test_log_probability_entropy_and_kl_are_those_of_torch(name: str) -> None:
    ours, params = make(name, 50)
    _, other = make(name, 50, seed=1)
    factors = theirs(name, params)
    action = ours.sample(params, torch.Generator().manual_seed(2))
    parts = [action[..., i] for i in range(3)] if name == "multi-discrete" else [action]
    log_prob = sum(f.log_prob(a) for f, a in zip(factors, parts, strict=True))
    entropy = sum(f.entropy() for f in factors)
    kl = sum(td.kl_divergence(p, q) for p, q in zip(factors, theirs(name, other), strict=True))
    torch.testing.assert_close(ours.log_prob(params, action), log_prob)
    torch.testing.assert_close(ours.entropy(params), entropy)
    torch.testing.assert_close(ours.kl(params, other), kl)
    assert not ours.kl(params, params).any() or float(ours.kl(params, params).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ["discrete", "multi-discrete"])
def test_sampling_frequencies_are_the_probabilities(name: str) -> None:
    ours, params = make(name, 1)
    draws = 100_000
    action = ours.sample(params.expand(draws, -1), torch.Generator().manual_seed(3))
    columns = action.unbind(-1) if isinstance(ours, MultiCategorical) else [action]
    for column, factor in zip(columns, theirs(name, params[0]), strict=True):
        p = factor.probs  # type: ignore[attr-defined]
        frequency = torch.bincount(column, minlength=len(p)) / draws
        assert bool(((frequency - p).abs() < 4 * (p * (1 - p) / draws).sqrt()).all())
    if len(columns) > 1:  # the parts are drawn independently
        joint = torch.zeros(2, 4).index_put((columns[0], columns[1]), torch.ones(()), accumulate=True) / draws
        assert float((joint - joint.sum(1, keepdim=True) * joint.sum(0)).abs().max()) < 0.01


def test_gaussian_samples_have_the_mean_and_deviation_of_the_parameters() -> None:
    ours, params = make("box", 1)
    draws = 100_000
    action = ours.sample(params.expand(draws, -1), torch.Generator().manual_seed(3))
    mean, log_std = params[0].chunk(2)
    assert bool(((action.mean(0) - mean).abs() < 4 * log_std.exp() / draws**0.5).all())
    torch.testing.assert_close(action.std(0), log_std.exp(), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", SPACES)
def test_samples_depend_on_the_generator_alone(name: str) -> None:
    ours, params = make(name, 20)
    torch.manual_seed(0)
    first = ours.sample(params, torch.Generator().manual_seed(4))
    before = torch.get_rng_state()
    second = ours.sample(params, torch.Generator().manual_seed(4))
    assert torch.equal(first, second) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, ours.sample(params, torch.Generator().manual_seed(5)))


def test_an_action_of_probability_zero_is_never_drawn_even_at_the_ends() -> None:
    ours = distribution_of(Discrete(4))
    params = torch.randn(20_000, 4)
    for allowed in ([False, True, True, False], [True, False, False, False], [False, False, False, True]):
        mask = torch.tensor(allowed)
        action = ours.sample(ours.mask(params, mask), torch.Generator().manual_seed(6))
        assert bool(mask[action].all())
        assert set(action.tolist()) == set(mask.nonzero().flatten().tolist())


def test_discrete_actions_as_input_are_one_hot() -> None:
    assert distribution_of(Discrete(3)).features(torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    multi = distribution_of(MultiDiscrete([2, 3]))
    assert multi.features(torch.tensor([[1, 2]])).tolist() == [[0, 1, 0, 0, 1]] and multi.feature_size == 5


# ---- continuous actions ----------------------------------------------------------------------------------------------


def squashed(size: int = 3) -> Distribution:
    return distribution_of(Box(-1, 1, (size,), np.float32), "tanh")


def by_torch(params: Tensor) -> td.Distribution:
    mean, log_std = params.chunk(2, -1)
    return td.Independent(td.TransformedDistribution(td.Normal(mean, log_std.exp()), td.TanhTransform()), 1)


def test_the_log_probability_of_squashed_actions_is_that_of_torch() -> None:
    ours = squashed()
    params = 0.5 * torch.randn(200, ours.size, dtype=torch.float64)  # torch inverts tanh, which loses digits far out
    action = ours.sample(params, torch.Generator().manual_seed(0))
    expected = by_torch(params).log_prob(ours.clip(action))
    torch.testing.assert_close(ours.log_prob(params, action), expected, rtol=1e-6, atol=1e-6)


def test_squashed_densities_sum_to_one() -> None:
    ours = squashed(1)
    params = torch.tensor([0.3, -0.2], dtype=torch.float64)
    a = torch.linspace(-1, 1, 200_001, dtype=torch.float64)[1:-1]
    density = ours.log_prob(params.expand(len(a), -1), torch.atanh(a).unsqueeze(-1)).exp()
    assert float(density.sum() * 2 / 200_000) == pytest.approx(1.0, abs=1e-4)


def test_far_out_squashed_actions_have_finite_log_probabilities_and_gradients() -> None:
    ours = squashed(1)
    params = torch.tensor([[60.0, 0.0], [-60.0, 0.0]], requires_grad=True)
    log_prob = ours.log_prob(params, torch.tensor([[61.0], [-60.0]]))
    log_prob.sum().backward()
    assert bool(log_prob.isfinite().all()) and bool(params.grad.isfinite().all())  # type: ignore[union-attr]
    assert bool((ours.clip(torch.tensor([[61.0], [-61.0]])).abs() <= 1).all())


def test_the_entropy_of_squashed_actions_is_that_of_many_draws() -> None:
    ours = squashed(2)
    generator = torch.Generator().manual_seed(1)
    params = torch.tensor([[0.0, 1.5, 0.0, -1.0], [-0.7, 0.2, 0.5, -2.0]], dtype=torch.float64)
    draws = params.unsqueeze(0).expand(200_000, -1, -1)
    expected = -ours.log_prob(draws, ours.sample(draws, generator)).mean(0)
    torch.testing.assert_close(ours.entropy(params), expected, rtol=0, atol=0.01)
    torch.testing.assert_close(ours.entropy(params.float()).double(), ours.entropy(params), rtol=1e-5, atol=1e-5)


def test_the_entropy_of_squashed_actions_has_the_gradient_of_finite_differences() -> None:
    ours = squashed(2)
    params = torch.randn(5, ours.size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours.entropy, (params,))


def test_squashing_more_and_more_does_not_pay_in_entropy() -> None:
    """The Gaussian's own entropy grows with its deviation for ever; the squashed one is at most that of the box."""
    ours = squashed(1)
    log_std = torch.linspace(-2, 3, 60, dtype=torch.float64)
    entropy = ours.entropy(torch.stack((torch.zeros_like(log_std), log_std), -1))
    assert float(entropy.max()) < np.log(2) and float(entropy[-1]) < float(entropy.max()) - 0.5


def test_the_environment_and_the_next_step_see_the_squashed_action() -> None:
    ours = squashed(1)
    u = torch.tensor([[0.5], [-3.0]])
    assert torch.equal(ours.clip(u), torch.tanh(u)) and torch.equal(ours.features(u), torch.tanh(u))
    clipped = distribution_of(Box(-1, 1, (1,), np.float32))
    assert clipped.clip(u).tolist() == [[0.5], [-1.0]]


def test_what_cannot_be_squashed_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"policy.squash is tanh, but the actions .* are not bounded"):
        distribution_of(Box(-np.inf, np.inf, (2,), np.float32), "tanh")
    with pytest.raises(ValueError, match=r"policy.squash is tanh, which is for continuous actions, not for Discrete"):
        distribution_of(Discrete(2), "tanh")
    with pytest.raises(ValueError, match="supervised predicts the target in its own unit"):
        Supervised(squashed())


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.5, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.9),
    ],
)
@pytest.mark.parametrize("space", [Discrete(3), Box(-1, 1, (2,))])
def test_an_idle_head_moves_neither_its_values_nor_its_momentum(optimizer: Any, space: Any) -> None:
    torch.manual_seed(0)
    actor = ActorHead(4, distribution_of(space), tasks=3)
    chosen = optimizer(actor.parameters())
    heads = Heads([(parameter, 3) for parameter in actor.parameters()])

    def step(tasks: list[int]) -> None:
        chosen.zero_grad()
        actor(torch.randn(len(tasks), 4), torch.tensor(tasks)).square().sum().backward()
        with heads.idle_kept(chosen):
            chosen.step()

    def rows(task: int) -> list[torch.Tensor]:
        states = [x for p in actor.parameters() for x in (p, *chosen.state[p].values()) if x.shape == p.shape]
        return [x.detach().reshape(3, -1)[task].clone() for x in states]

    step([0, 2, 2])
    step([0, 0, 1])
    idle, busy = rows(2), rows(1)
    step([0, 1, 1])
    assert all(torch.equal(a, b) for a, b in zip(idle, rows(2), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(busy, rows(1), strict=True))
